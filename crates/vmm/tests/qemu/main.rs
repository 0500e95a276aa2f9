//! Stock QEMU, for real: Debian guests that check their own memory, under TCG.
//!
//! `examples/guests/make-ticker.sh` makes the guest. Without it or without QEMU each test prints why it was skipped;
//! `SCATTER_REQUIRE_LAB=1` makes that a failure.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod capture;
mod emit;
mod evacuate;
mod in_place;
mod launch;
mod libvirt;
mod rehearse;
mod support;
