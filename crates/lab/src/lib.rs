//! Where VMScatter is tried out: hosts made of network namespaces, a network in memory, generated guest memory, and
//! the programs that it is compared with.
//!
//! - [`hosts::Lab`]: hosts on a real, multicast-snooping Linux bridge, with real loss, rates and counters.
//! - [`sim::SimNet`]: a seeded network with virtual time, for pairing sans-IO sessions in one thread.
//! - [`memory::Fleet`]: believable memory images of VMs, where no real guests are at hand.
//! - [`peers`]: UFTP, udpcast and plain TCP over a [`hosts::Lab`], for measuring beside them.
//!
//! Nothing here is used by a transfer of real VMs; only `demo`, tests and benches stand on it.
//!
//! `unsafe` is found only in [`hosts`], where a child enters a namespace between fork and exec and where raw
//! packet sockets are opened.

pub mod hosts;
pub mod memory;
pub mod peers;
mod rng;
pub mod sim;
