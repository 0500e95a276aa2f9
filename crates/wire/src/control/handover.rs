//! What source and host of a leaving VM say to each other (docs/evacuation.md).
//!
//! ```text
//! source                                            host
//!   Stale* (which pages come in newer versions) ────▶  those are missing again
//!   State, Attachment* ─────────────────────────────▶  hypervisor loads it, standing
//!   ◀────────────────────────────────────────── Ready
//!   Decision: on disk at the source ────────────────▶  on disk at the host, too; then its vCPUs start
//!   ◀──────────────────────────────────────── Running
//!   Pages* ─────────────────────────────────────────▶
//!   ◀─────────────────────────────────────── Complete
//! ```

use super::check::at_most;
use super::{AttachmentOffer, ControlError, PageRange};
use crate::limits;
use serde::{Deserialize, Serialize};

/// How a guest leaves its source: it is a VM that runs there, and moves.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LeaveOffer {
    /// The host says that it is ready only when it has all of the memory (pre-copy).
    pub whole: bool,
    /// What the VM's hypervisor tells of it while it still runs, so that the host's can be fed before; at most
    /// [`limits::OUTLINE_BYTES_MAX`], empty if nothing is told.
    #[serde(with = "serde_bytes")]
    pub outline: Vec<u8>,
}

impl LeaveOffer {
    pub(super) fn check(&self) -> Result<(), ControlError> {
        at_most("outline", self.outline.len(), limits::OUTLINE_BYTES_MAX)
    }
}

/// A word of the source.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub enum SourceWord {
    /// These pages changed since blocks were made of them: what blocks bring of them is old, from this moment on. Their newest
    /// versions come as `Pages`.
    Stale {
        /// Numbers the lists of one VM, from 1; a list may take several messages. One that the host has taken in whole says
        /// nothing new.
        epoch: u32,
        /// At most [`limits::STALE_RANGES_MAX`].
        ranges: Vec<PageRange>,
        /// The list ends with this message.
        last: bool,
    },
    /// The VM stands; what it needs beside its memory follows in `Attachment`s.
    State {
        /// At most [`limits::ATTACHMENTS_MAX`].
        attachments: Vec<AttachmentOffer>,
    },
    /// The VM is the host's; this is on the source's disk.
    Decision,
    /// The VM stays at its source.
    Withdrawn {
        /// Why, in words.
        reason: String,
    },
}

/// A word of the host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub enum HostWord {
    /// The VM is loaded, and stands.
    Ready,
    /// It runs; this is on the host's disk.
    Running,
    /// All of its memory is here.
    Complete,
    /// It is gone.
    Gone {
        /// It ran here before.
        ran: bool,
        /// Why, in words.
        reason: String,
    },
}

impl SourceWord {
    pub(super) fn check(&self) -> Result<(), ControlError> {
        match self {
            Self::Stale { ranges, .. } => at_most("stale ranges", ranges.len(), limits::STALE_RANGES_MAX),
            Self::State { attachments } => {
                at_most("attachments", attachments.len(), limits::ATTACHMENTS_MAX)?;
                attachments.iter().try_for_each(AttachmentOffer::check)
            }
            Self::Decision => Ok(()),
            Self::Withdrawn { reason } => at_most("reason", reason.len(), limits::REASON_BYTES_MAX),
        }
    }
}

impl HostWord {
    pub(super) fn check(&self) -> Result<(), ControlError> {
        match self {
            Self::Gone { reason, .. } => at_most("reason", reason.len(), limits::REASON_BYTES_MAX),
            Self::Ready | Self::Running | Self::Complete => Ok(()),
        }
    }
}
