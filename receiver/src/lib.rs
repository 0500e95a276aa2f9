//! Collects, verifies and places blocks into the images of the VMs of a host.
//!
//! A datagram's way: [`driver`] reads it in a batch, [`session`] opens it into its block, [`check`] decodes the
//! block, compares its digest and decompresses it, [`store`] writes its pages and its journal record. The
//! session knows no I/O and no clock; [`guests`] starts VMs while their memory arrives and asks for pages that they wait for;
//! [`service`] is the process around it: it listens, authenticates senders,
//! and runs one transfer at a time.
//!
//! Entry types: [`service::Service`] for a receiver, [`session::Session`] for a simulation.

#![forbid(unsafe_code)]

mod arrival;
mod board;
pub mod check;
pub mod driver;
mod endings;
mod fetch;
pub mod guests;
pub mod handover;
mod id_hash;
pub mod link;
mod listen;
mod live;
pub mod measure;
mod offer;
mod probe;
pub mod residents;
pub mod service;
pub mod session;
pub mod shelf;
pub mod store;
mod workers;
