//! What a host says to the sender.

use super::check::{at_most, check_ranges};
use super::{BlockRange, ControlError, Fetched, GuestReport, HostStatus, HostWord, Message, Want, measure};
use crate::{Digest, limits};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// What a host says to the sender.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ToSender {
    /// Ready to receive.
    Accept(Accept),
    /// Will not take part.
    Refuse {
        /// Why, for machines.
        cause: RefuseCause,
        /// Why, in words, with the way out.
        reason: String,
    },
    /// Digests of blocks held from an earlier run; precede `Accept`.
    Held {
        /// At most [`limits::DIGESTS_MAX`].
        digests: Vec<Digest>,
    },
    /// Member of the channel from now on.
    Joined {
        /// The channel joined.
        channel: u32,
    },
    /// Could not join; the host stays without this channel.
    JoinFailed {
        /// The channel.
        channel: u32,
        /// Why, in words.
        reason: String,
    },
    /// State of blocks and counters.
    Report(Report),
    /// An image is whole, synced, and has its final name.
    VmComplete {
        /// Index in the offer.
        vm: u16,
    },
    /// Every image of this host is complete.
    AllComplete(HostStats),
    /// This host cannot go on. What it holds stays for a later run.
    Failed {
        /// Why, in words.
        reason: String,
    },
    /// Answer to `Probe`: the group is joined.
    ProbeReady,
    /// Result of a probe.
    ProbeResult(ProbeResult),
    /// Answer to `Measure`.
    Measured(measure::Tell),
    /// Pages that guests here wait for.
    Want(Want),
    /// News of a clone here.
    Guest(GuestReport),
    /// Answer to `Status`.
    Status(HostStatus),
    /// Answer to `Fetch`.
    Fetched(Fetched),
    /// A block names contents that are not here, or not any more. Answered by `Supply`.
    Lacks {
        /// The block.
        block: u64,
    },
    /// Of a VM that moves to this host.
    HandOver {
        /// The VM.
        vm: u16,
        /// What is said of it.
        word: HostWord,
    },
}

/// A host's readiness.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Accept {
    /// Version that the host will speak.
    pub version: u8,
    /// Where unicast datagrams for this host go; of the groups' address family.
    pub unicast: SocketAddr,
    /// Bytes of datagrams that the host can take in before it reports: its receive credit.
    pub credit_bytes: u64,
}

/// What one block still lacks at one host.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Deficit {
    /// The block.
    pub block: u64,
    /// Bit i: source symbol i is missing.
    pub missing: u128,
    /// Cauchy repair symbols held.
    pub cauchy: u8,
    /// RaptorQ repair symbols held.
    pub raptorq: u16,
}

/// A host's answer to `Through`, or its own news.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// The latest `Through` that is fully answered by this and earlier reports; 0 before the first.
    pub seq: u64,
    /// For each channel named in that `Through`: how many of the datagrams that it says were sent have come.
    pub received: Vec<(u32, u64)>,
    /// Blocks verified and placed since the last report.
    pub done: Vec<BlockRange>,
    /// Blocks that cannot be decoded yet.
    pub deficits: Vec<Deficit>,
}

/// Why a host refuses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub enum RefuseCause {
    /// No common protocol version.
    Version,
    /// Another transfer is under way.
    Busy,
    /// The image exists already.
    Exists,
    /// Not enough room, or the store cannot be written.
    Store,
    /// The offer makes no sense.
    Offer,
}

/// What the transfer cost at a host.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct HostStats {
    /// Datagrams accepted.
    pub datagrams: u64,
    /// Datagrams dropped: malformed, unknown channel, seal not opening.
    pub rejected: u64,
    /// Datagrams that the kernel dropped for want of buffer.
    pub kernel_drops: u64,
    /// Symbols received that the block did not need any more.
    pub redundant: u64,
    /// Blocks decoded without a solver, by Cauchy, by RaptorQ, and received whole by TCP.
    pub blocks_plain: u64,
    /// See `blocks_plain`.
    pub blocks_cauchy: u64,
    /// See `blocks_plain`.
    pub blocks_raptorq: u64,
    /// See `blocks_plain`.
    pub blocks_unicast: u64,
    /// Blocks held from an earlier run and not received again.
    pub blocks_held: u64,
    /// Blocks whose digest did not match.
    pub digest_mismatches: u64,
    /// CPU time of the receiving process since the offer, in microseconds.
    pub cpu_us: u64,
    /// Peak resident memory of the receiving process, in bytes.
    pub peak_memory_bytes: u64,
}

/// What came of a probe.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ProbeResult {
    /// Probe datagrams received intact.
    pub intact: u32,
    /// Probe datagrams whose pattern was wrong: a path that corrupts (e.g. broken segmentation offload).
    pub corrupt: u32,
    /// The interface listened on.
    pub interface: String,
    /// Why nothing could be joined, if so.
    pub error: Option<String>,
    /// Host's clock in seconds since 1970, to be compared with the sender's.
    pub clock_s: u64,
}

impl Message for ToSender {
    fn check(&self) -> Result<(), ControlError> {
        match self {
            Self::Held { digests } => at_most("held digests", digests.len(), limits::DIGESTS_MAX),
            Self::Report(report) => {
                at_most("channels", report.received.len(), limits::RANGES_MAX)?;
                at_most("deficits", report.deficits.len(), limits::DEFICITS_MAX)?;
                check_ranges(&report.done)
            }
            Self::Refuse { reason, .. } | Self::JoinFailed { reason, .. } | Self::Failed { reason } => {
                at_most("reason", reason.len(), limits::REASON_BYTES_MAX)
            }
            Self::ProbeResult(result) => {
                at_most("interface name", result.interface.len(), limits::NAME_BYTES_MAX)
            }
            Self::Measured(tell) => tell.check(),
            Self::Want(want) => want.check(),
            Self::Guest(report) => report.check(),
            Self::HandOver { word, .. } => word.check(),
            Self::Status(status) => status.check(),
            Self::Fetched(fetched) => fetched.check(),
            Self::Accept(_)
            | Self::Joined { .. }
            | Self::VmComplete { .. }
            | Self::AllComplete(_)
            | Self::ProbeReady
            | Self::Lacks { .. } => Ok(()),
        }
    }
}
