//! What is said of VMs that run while their memory arrives (docs/post-copy.md).
//!
//! ```text
//! sender                                   host
//!   Offer (…, guests) ─────────────────────▶
//!   ◀──────────────────────────── Accept
//!   Attachment* (device state, settings) ──▶     before everything else
//!   FirstTouched* (recorded working set) ──▶     its contents are the first blocks
//!   ◀────────────────────── Guest (running)      a clone's first instruction
//!   ◀───────────────────────────── Want*         pages that guests wait for
//!   Pages* ────────────────────────────────▶     each at most once on a connection, ahead of all other data
//!   ◀────────────── Guest (complete, figures)
//! ```

use super::check::at_most;
use super::{ControlError, LeaveOffer};
use crate::{Digest, limits};
use serde::{Deserialize, Serialize};

/// A VM of the offer that is started while its memory arrives, once or several times.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GuestOffer {
    /// The VM of the offer whose memory it has.
    pub vm: u16,
    /// What runs it, as `microvm`: the host chooses the program by this word, or refuses.
    pub kind: String,
    /// What the host's program must be able to run: version, machine, CPU. Empty if the kind needs none.
    pub fingerprint: String,
    /// What is needed beside the memory before it can start; at most [`limits::ATTACHMENTS_MAX`].
    pub attachments: Vec<AttachmentOffer>,
    /// The clones to start on this host; at most [`limits::CLONES_MAX`].
    pub clones: Vec<CloneOffer>,
    /// Pages of its recorded working set, told by `FirstTouched`; at most [`limits::WORKING_SET_MAX`].
    pub working_set: u32,
    /// Which pages are asked for before a guest waits for them, and when clones start.
    pub paging: Paging,
    /// It is no clone: the VM itself moves here. Its attachments are told when it stands, and it is one `clone`.
    pub leaves: Option<LeaveOffer>,
}

/// Which pages a host asks for beside those that guests wait for, and when clones start.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Paging {
    /// Missing pages asked for behind a fault, and half as many before it; only while no blocks come. 0: none.
    pub around: u16,
    /// The recorded working set is asked for in its order; only while no blocks come.
    pub working_set: bool,
    /// Clones wait for their working set for so long at most before they start, in milliseconds. 0: they start at once.
    pub wait_ms: u16,
}

/// A part of a recorded working set: pages in the order in which a guest first touched them. Parts come in order.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FirstTouched {
    /// The VM.
    pub vm: u16,
    /// At most [`limits::FIRST_TOUCHED_MAX`].
    pub pages: Vec<u32>,
}

/// Device state, settings: bytes that a VM needs beside its memory.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AttachmentOffer {
    /// What it is, as `state`.
    pub name: String,
    /// Bytes; at most [`limits::ATTACHMENT_BYTES_MAX`].
    pub len: u32,
    /// BLAKE3 of them.
    pub digest: Digest,
}

/// One clone's identity.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CloneOffer {
    /// Number of the clone in the transfer; unique over all hosts.
    pub clone: u32,
    /// Its name.
    pub name: String,
}

/// A part of an attachment, compressed: parts come in order.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Attachment {
    /// The VM.
    pub vm: u16,
    /// Which of its attachments.
    pub index: u8,
    /// Whether the attachment ends with this part.
    pub last: bool,
    /// Zstandard (RFC 8878), one frame over all parts; at most [`limits::ATTACHMENT_PART_BYTES_MAX`] in one message.
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
}

/// `count` pages from `first` on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct PageRange {
    /// First page.
    pub first: u32,
    /// Number of pages, at least 1.
    pub count: u32,
}

/// Pages that are missing at a host. The sender answers a page once on a connection; what is on its way already is not
/// sent again.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Want {
    /// The VM.
    pub vm: u16,
    /// Pages that guests wait for, in the order of their faults; at most [`limits::WANTED_MAX`].
    pub pages: Vec<u32>,
    /// Pages that they will probably touch next; at most [`limits::WANTED_MAX`] pages in all ranges.
    pub ahead: Vec<PageRange>,
}

/// How a clone fares.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub enum GuestState {
    /// Its virtual CPUs execute instructions.
    Running,
    /// All of its memory is here: it depends on nobody any more.
    Complete,
    /// It could not be started, or was ended because its memory can never be whole.
    Failed {
        /// Why, in words.
        reason: String,
    },
    /// It ended by itself.
    Ended,
}

/// News of one clone.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GuestReport {
    /// Number of the clone.
    pub clone: u32,
    /// What became of it.
    pub state: GuestState,
    /// Its page faults so far.
    pub faults: FaultFigures,
    /// How it runs, in its program's words: what its memory shares, where its monitor is. May be empty; at most
    /// [`limits::REASON_BYTES_MAX`].
    pub words: String,
}

/// A transfer is cancelled.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EndClones {
    /// Its name.
    pub transfer: String,
    /// Why, in words.
    pub reason: String,
}

/// Page faults of a guest, and what they waited for. All zero where its program does not count.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct FaultFigures {
    /// On pages that were on the host already.
    pub here: u64,
    /// On pages that a block brought while the fault waited.
    pub block: u64,
    /// On pages that the sender answered.
    pub sender: u64,
    /// On pages that another receiver answered.
    pub peer: u64,
    /// Half of the faults that had to wait took at most so long, in microseconds.
    pub waited_p50_us: u32,
    /// 99 of 100 took at most so long.
    pub waited_p99_us: u32,
}

impl FaultFigures {
    /// Faults that had to wait for the network.
    #[must_use]
    pub fn network(&self) -> u64 {
        self.block.saturating_add(self.sender).saturating_add(self.peer)
    }
}

impl GuestOffer {
    /// Whether this is the same guest with the same clones; how its pages are brought may differ.
    #[must_use]
    pub fn is_same_guest(&self, other: &Self) -> bool {
        let leaves =
            |offer: &Self| offer.leaves.as_ref().map(|of| LeaveOffer { outline: Vec::new(), ..of.clone() });
        let of = |offer: &Self| Self {
            working_set: 0,
            paging: Paging::default(),
            leaves: leaves(offer),
            ..offer.clone()
        };
        of(self) == of(other)
    }

    pub(super) fn check(&self) -> Result<(), ControlError> {
        at_most("guest kind", self.kind.len(), limits::NAME_BYTES_MAX)?;
        at_most("fingerprint", self.fingerprint.len(), limits::FINGERPRINT_BYTES_MAX)?;
        at_most("attachments", self.attachments.len(), limits::ATTACHMENTS_MAX)?;
        self.attachments.iter().try_for_each(AttachmentOffer::check)?;
        at_most("clones", self.clones.len(), limits::CLONES_MAX)?;
        self.leaves.as_ref().map_or(Ok(()), LeaveOffer::check)?;
        at_most("working set", self.working_set as usize, limits::WORKING_SET_MAX)?;
        self.clones
            .iter()
            .try_for_each(|clone| at_most("clone name", clone.name.len(), limits::NAME_BYTES_MAX))
    }
}

impl EndClones {
    pub(super) fn check(&self) -> Result<(), ControlError> {
        at_most("transfer name", self.transfer.len(), limits::NAME_BYTES_MAX)?;
        at_most("reason", self.reason.len(), limits::REASON_BYTES_MAX)
    }
}

impl FirstTouched {
    pub(super) fn check(&self) -> Result<(), ControlError> {
        at_most("pages touched first", self.pages.len(), limits::FIRST_TOUCHED_MAX)
    }
}

impl AttachmentOffer {
    pub(super) fn check(&self) -> Result<(), ControlError> {
        at_most("attachment name", self.name.len(), limits::NAME_BYTES_MAX)?;
        at_most("attachment length", self.len as usize, limits::ATTACHMENT_BYTES_MAX)
    }
}

impl Want {
    pub(super) fn check(&self) -> Result<(), ControlError> {
        at_most("wanted pages", self.pages.len(), limits::WANTED_MAX)?;
        at_most("ranges of pages", self.ahead.len(), limits::WANTED_MAX)?;
        let ahead = self.ahead.iter().map(|range| range.count as usize).sum();
        at_most("pages ahead", ahead, limits::WANTED_MAX)
    }
}

impl GuestReport {
    pub(super) fn check(&self) -> Result<(), ControlError> {
        at_most("words", self.words.len(), limits::REASON_BYTES_MAX)?;
        match &self.state {
            GuestState::Failed { reason } => at_most("reason", reason.len(), limits::REASON_BYTES_MAX),
            _ => Ok(()),
        }
    }
}
