//! The crate against the real kernel: loopback, and network namespaces where this user may make them.

mod namespace;
mod udp;
