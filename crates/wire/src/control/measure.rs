//! `scatter measure` between a coordinator and the hosts whose images it asks about; what the parts mean is told by
//! `pages::measure`, the order by this:
//!
//! ```text
//! coordinator                              host
//!   Start (key, sampling, VMs) ────────────▶   reads all pages
//!   ◀─────────────── Scanned (VMs, contents)
//!   Fingerprints (bits: by all contents) ──▶
//!   ◀─────────────────── Fingerprints*, each with a part of the code
//!   Candidates*, a bit for each fingerprint ▶
//!   ◀────────────── Sets*, Hashes*, Complete        encodes some contents meanwhile
//! ```
//!
//! Before a transfer whose plan counts on pages that a host has already, the sender asks in the same way which of the contents
//! for that host it holds:
//!
//! ```text
//! sender                                   host
//!   Residents (key, transfer) ─────────────▶   reads all pages
//!   ◀───────────────────────── Scanned (contents)
//!   Fingerprints (bits) ───────────────────▶
//!   ◀─────────────────── Fingerprints*
//!   Candidates*, a bit for each: needed here ▶
//!   ◀────────────────────── Names*, Complete   keeps where these contents stand, for that transfer
//! ```
//!
//! Instead of any of its messages a host says `Failed` and why. While it reads it says `Busy` every second or so.

use super::ControlError;
use super::check::at_most;
use crate::limits;
use serde::{Deserialize, Serialize};

/// Bytes of fingerprints' code, or of candidates' bits, in one message.
pub const PART_BYTES_MAX: usize = 256 << 10;
/// VM sets in one message.
pub const SETS_PART_MAX: usize = 8192;
/// VMs of all sets in one message.
pub const SETS_VMS_MAX: usize = 64 << 10;
/// Candidates in one message.
pub const HASHES_PART_MAX: usize = 16 << 10;
/// Names of contents in one message.
pub const NAMES_PART_MAX: usize = 16 << 10;

/// What a coordinator asks.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Ask {
    /// First message.
    Start(Start),
    /// Tell your fingerprints, so many bits of each.
    Fingerprints {
        /// 8 to 56.
        bits: u8,
    },
    /// Which fingerprints others have, too, in their order.
    Candidates {
        /// A bit for each, lowest first.
        #[serde(with = "serde_bytes")]
        bits: Vec<u8>,
    },
    /// First message, of another purpose: which contents of a transfer need not be sent to you?
    Residents(Residents),
}

/// Before a transfer: what does a host hold already?
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Residents {
    /// [`crate::VERSION`] of the sender.
    pub version: u8,
    /// The transfer that will ask for them.
    pub transfer: String,
    /// The key of the contents' names, drawn for this session of the transfer.
    pub key: [u8; 32],
    /// Names of the images that may be used, each with its domain. Nothing: all, in domain 0.
    pub images: Vec<(String, u32)>,
}

/// How to measure.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Start {
    /// [`crate::VERSION`] of the coordinator.
    pub version: u8,
    /// The measurement's key, drawn for it.
    pub key: [u8; 32],
    /// `pages::measure::Sampling::threshold`.
    pub keep_below: u64,
    /// How contents would be encoded, as `pages::block::Encoding` is written.
    pub encoding: String,
    /// Names of the VMs wanted, each with its domain. Nothing: all, in domain 0.
    pub vms: Vec<(String, u32)>,
}

/// What a host tells.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Tell {
    /// Still reading.
    Busy,
    /// All pages were read.
    Scanned {
        /// The VMs that are here; sets name them by their position.
        vms: Vec<VmTold>,
        /// Contents kept.
        contents: u64,
    },
    /// A part of `pages::measure::Fingerprints`; the last one when all of `code_bytes` are there.
    Fingerprints {
        /// As in the type named.
        rice: u8,
        /// Bytes of the whole code.
        code_bytes: u64,
        /// The next of them.
        #[serde(with = "serde_bytes")]
        part: Vec<u8>,
    },
    /// The next VM sets.
    Sets(Vec<SetTold>),
    /// The next candidates.
    Hashes(Vec<HashTold>),
    /// That was all.
    Complete,
    /// Cannot, or will not.
    Failed {
        /// Why, in words, with the way out.
        reason: String,
    },
    /// The next names of contents that are needed and here, little-endian.
    Names(Vec<[u8; 16]>),
}

/// A VM that was measured.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VmTold {
    /// Its name: the image's, without its ending.
    pub name: String,
    /// Pages of the image.
    pub pages: u64,
    /// Of these, pages of zeroes.
    pub zero: u64,
    /// Of these, pages of one repeated word that is not 0.
    pub uniform_nonzero: u64,
}

/// A VM set and its contents that are no candidates.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SetTold {
    /// The VMs, as positions in `Scanned`.
    pub vms: Vec<u16>,
    /// Encoded bytes of a content, on average.
    pub content_bytes: u16,
    /// Contents, each once.
    pub contents: u64,
    /// Pages that hold them.
    pub pages: u64,
    /// Of `contents`, those that stand at several pages.
    pub repeated_contents: u64,
    /// Their pages.
    pub repeated_pages: u64,
}

/// A candidate.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HashTold {
    /// Its hash, little-endian.
    pub hash: [u8; 16],
    /// Its VM set, by position in all `Sets`.
    pub set: u32,
    /// Pages here that hold it.
    pub pages: u32,
    /// Bytes that it takes encoded, about.
    pub bytes: u16,
}

fn check_vms(vms: &[(String, u32)]) -> Result<(), ControlError> {
    at_most("VMs", vms.len(), limits::VMS_MAX)?;
    vms.iter().try_for_each(|(name, _)| at_most("VM name", name.len(), limits::NAME_BYTES_MAX))
}

impl Ask {
    pub(super) fn check(&self) -> Result<(), ControlError> {
        match self {
            Self::Start(start) => {
                at_most("encoding", start.encoding.len(), limits::NAME_BYTES_MAX)?;
                check_vms(&start.vms)
            }
            Self::Residents(start) => {
                at_most("transfer name", start.transfer.len(), limits::NAME_BYTES_MAX)?;
                check_vms(&start.images)
            }
            Self::Fingerprints { bits } => at_most("fingerprint bits", (*bits).into(), 56),
            Self::Candidates { bits } => at_most("candidates' bytes", bits.len(), PART_BYTES_MAX),
        }
    }
}

impl Tell {
    pub(super) fn check(&self) -> Result<(), ControlError> {
        match self {
            Self::Scanned { vms, .. } => {
                at_most("VMs", vms.len(), limits::VMS_MAX)?;
                vms.iter().try_for_each(|vm| at_most("VM name", vm.name.len(), limits::NAME_BYTES_MAX))
            }
            Self::Fingerprints { part, .. } => at_most("fingerprints' bytes", part.len(), PART_BYTES_MAX),
            Self::Sets(sets) => {
                at_most("VM sets", sets.len(), SETS_PART_MAX)?;
                at_most("VMs of sets", sets.iter().map(|set| set.vms.len()).sum(), SETS_VMS_MAX)
            }
            Self::Hashes(hashes) => at_most("hashes", hashes.len(), HASHES_PART_MAX),
            Self::Failed { reason } => at_most("reason", reason.len(), limits::REASON_BYTES_MAX),
            Self::Names(names) => at_most("names", names.len(), NAMES_PART_MAX),
            Self::Busy | Self::Complete => Ok(()),
        }
    }
}
