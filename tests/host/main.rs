//! Whole transfers between real hosts: the `scatter` binary in network namespaces on a bridge that snoops multicast, with
//! the memory of real guests where there is some. What is judged is counted by the interfaces and compared on disk, not
//! taken from what the program says of itself.
//!
//! Without the right to make namespaces each test prints why it was skipped; `SCATTER_REQUIRE_LAB=1` makes that a failure.
//! `scatter-lab enter -- cargo test --test host` runs them for any user. The tests take turns, also across processes:
//! two transfers at once on one small machine would judge each other.

mod cancel;
mod clone;
mod delivery;
mod doctor;
mod evacuate;
mod failures;
mod fleet;
mod handover;
mod images;
mod links;
mod peers;
mod planned;
mod process;
mod qemu;
mod rate;
mod residents;
mod resume;
mod sending;
mod vmms;
