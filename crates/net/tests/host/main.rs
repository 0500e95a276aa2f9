//! The crate against the real kernel: loopback, and network namespaces where this user may make them.

mod certificates;
mod control;
mod doctor;
mod namespace;
mod udp;
