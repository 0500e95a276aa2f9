//! Why guests cannot run.

use crate::store::StoreError;

/// Why guests cannot run here, or can no longer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GuestError {
    /// This host has no program for the kind.
    #[error("this host may not start VMs of kind {kind}: allow it with `--launch {kind}` there, if it is to")]
    Kind {
        /// The kind.
        kind: String,
    },
    /// The program cannot run this VM.
    #[error("{kind} on this host cannot run the VM: {reason}")]
    Unfit {
        /// The kind.
        kind: String,
        /// Why.
        reason: String,
    },
    /// The offer names a VM twice, or one that is not offered.
    #[error("the offer contradicts itself: guest of VM {vm}")]
    Offer {
        /// The VM.
        vm: u16,
    },
    /// Its memory cannot be prepared.
    #[error("cannot prepare the memory of guests")]
    Memory(#[source] StoreError),
    /// The sender said what makes no sense.
    #[error("the sender broke the protocol: {0}")]
    Protocol(String),
    /// What was handed over to this host before cannot be read.
    #[error("the hand-over journal of this host cannot be read")]
    Journal(#[source] std::io::Error),
    /// An answer cannot be placed.
    #[error("VM {vm}: an answer to a page fault cannot be placed")]
    Place {
        /// The VM.
        vm: u16,
        /// Why.
        #[source]
        source: vmm::lazy::LazyError,
    },
}
