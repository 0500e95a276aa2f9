//! A small VMM of our own on KVM, with a guest that checks its own memory: for the demo and for tests.
//!
//! **Never a product.** One vCPU, memory up to 3 GiB, a console to write on and a control device: no disk, no
//! network, no interrupts that anyone waits for. It is there so that capture, transfer and post-copy can be tried with a
//! *running* VM wherever `/dev/kvm` is, without another program; what it cannot do, a hypervisor must.
//!
//! [`MicroVm::boot`] starts the guest ([`guest::ELF`], sources in `crates/vmm/guest`, built with this crate).
//! [`MicroVm::capture`] takes the state ([`VmState`]) of a paused VM, [`MicroVm::restore`] continues it on any
//! [`GuestMemory`](crate::memory::GuestMemory): anonymous (also behind userfaultfd), or a private, copy-on-write view of a file that
//! many clones share. Each clone has an [`Identity`], which the guest sees. docs/microvm.md has the rest.
//!
//! x86-64 only, also on KVM without hardware virtualisation (PVM): the guest runs at ring 3.

mod console;
mod device;
pub mod guest;
mod machine;
mod record;
mod runner;
mod state;
mod vcpu;

pub use console::{Console, Report, Seen};
pub use device::{Identity, Pattern, Workload};
pub use machine::{Config, MicroVm, available};
pub use record::{RecordError, record_working_set};
pub use state::{STATE_BYTES_MAX, StateError, VmState};

use crate::memory::MemoryError;
use std::io;
use std::time::Duration;

/// What fails in a micro-VM.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MicroVmError {
    /// `/dev/kvm` is missing or may not be opened.
    #[error("/dev/kvm cannot be opened: the micro-VM needs KVM and the right to use it")]
    NoKvm(#[source] io::Error),
    /// KVM refuses a call.
    #[error("KVM refuses to {action}")]
    Kvm {
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// Memory cannot be mapped or written.
    #[error("the guest's memory cannot be used")]
    Memory(#[from] MemoryError),
    /// The length is no multiple of 4 KiB, or out of range.
    #[error("guest memory of {bytes} bytes: whole MiB from {min} to {max} MiB are possible")]
    MemorySize {
        /// What was asked.
        bytes: u64,
        /// Least MiB.
        min: u64,
        /// Most MiB.
        max: u64,
    },
    /// The memory is not as long as the state says.
    #[error("the state belongs to {state} bytes of memory, but {given} are given")]
    MemoryMismatch {
        /// In the state.
        state: u64,
        /// Given.
        given: u64,
    },
    /// A state file is damaged, or of another version.
    #[error("the micro-VM's state cannot be used")]
    State(#[from] StateError),
    /// The vCPU did not stop in time: it may wait for a page that nobody brings.
    #[error("the vCPU did not answer a request to {action} within {waited:?}: does it wait for a page?")]
    NoAnswer {
        /// What was asked of it.
        action: &'static str,
        /// For how long.
        waited: Duration,
    },
    /// The vCPU has ended.
    #[error("the VM has ended: {reason}")]
    Ended {
        /// Why.
        reason: String,
    },
    /// Only a paused VM can be captured.
    #[error("the VM runs: pause it before its state is taken")]
    Running,
}

/// Maps a failed KVM call to an error that says what was tried.
fn kvm(action: &'static str) -> impl Fn(kvm_ioctls::Error) -> MicroVmError {
    move |error| MicroVmError::Kvm { action, source: io::Error::from_raw_os_error(error.errno()) }
}
