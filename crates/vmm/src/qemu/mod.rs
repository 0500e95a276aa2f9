//! Stock QEMU, nothing patched: taking the memory and state of a running VM, and starting VMs from them elsewhere.
//!
//! ```text
//! QEMU (source) ──its own migration──▶ capture ──▶ image + DeviceState ─ ─network─ ─▶ LazyImage + DeviceState
//!                                                         Emitter ──its own migration, post-copy included──▶ QEMU -incoming
//! ```
//!
//! - [`capture`] takes a VM in different ways, and chooses the best one that the VM allows ([`Way`]).
//! - [`Emitter`] acts as the source of a migration towards a waiting QEMU, with pages from a [`crate::lazy::LazyImage`].
//! - [`rehearse`] finds out what a clone will touch first.
//! - [`Launch`] starts that QEMU; [`Qmp`] talks to it; [`Fingerprint`] says beforehand whether it can take the VM.
//! - [`libvirt`] reads and writes what `virsh save` and `virsh restore` do.
//! - [`stream`] is the migration stream itself.
//!
//! docs/qemu.md has the layout, what is opaque, and what is refused.

pub mod capture;
pub mod disks;
pub mod emit;
mod error;
mod keeper;
pub mod launch;
pub mod libvirt;
mod qmp;
mod rehearse;
mod state;
pub mod stream;

pub use capture::{CaptureOptions, Captured, Standing, Way, capture, capture_for_transfer};
pub use emit::{EmitFaults, EmitMode, EmitOptions, EmitProgress, EmitReport, Emitter, SETTLE};
pub use error::QemuError;
pub use keeper::Keeper;
pub use launch::{Identity, Launch, Vm};
pub use qmp::{Qmp, QmpError, QmpEvent};
pub use rehearse::rehearse;
pub use state::{DeviceState, Fingerprint, Mismatch, RamBlockRow, StateError};
