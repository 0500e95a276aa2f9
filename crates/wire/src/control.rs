//! Control messages: what sender and host say to each other beside the data, a frame each on their TLS
//! connection, in postcard's format (varints, little-endian; <https://postcard.jamesmunns.com>).
//!
//! ```text
//! sender                                   host
//!   Offer (version, session, VMs) ─────────▶
//!   ◀──────────── Held* , Accept │ Refuse        what an earlier, interrupted run left there
//!   Join (channel, key, group) ────────────▶
//!   ◀──────────────────────────────── Joined
//!   Announce (blocks: length, digest) ─────▶     before the blocks' datagrams
//!   Through (seq, blocks sent so far) ─────▶     asks: what is missing of these?
//!   ◀── Report (seq, done, deficits, counts)     also unasked, when blocks get done
//!   BlockData ─────────────────────────────▶     catch-up of a host that is off the group
//!   Leave ─────────────────────────────────▶
//!   ◀────────────────────────── VmComplete*
//!   ◀──────────────────────────── AllComplete
//!   Release ───────────────────────────────▶     over everywhere: forget the journal
//! ```
//!
//! Either side ends early with `Cancel`/`Failed` and a reason in words.

use crate::seal::ChannelSecret;
use crate::{BlockId, ChannelId, Digest, VERSION, limits};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};

/// What the sender says to a host.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ToHost {
    /// First message: what is to come. Answered by `Accept` or `Refuse`.
    Offer(Offer),
    /// Become a member of a channel. Answered by `Joined` or `JoinFailed`.
    Join(Join),
    /// No longer needed: leave the group and forget the key.
    Leave {
        /// The channel left.
        channel: u32,
    },
    /// Blocks that this host needs, before their datagrams.
    Announce(Announce),
    /// All listed blocks have been sent (once more): report what is missing.
    Through(Through),
    /// A whole block, for a host that is off the group.
    BlockData {
        /// The block, announced before.
        block: u64,
        /// Its bytes.
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
    /// The transfer is complete on every host that did not fail: the journal can go.
    Release,
    /// The transfer ends here; what is held stays for a later run.
    Cancel {
        /// Why, in words.
        reason: String,
    },
    /// `scatter doctor`: join a group and count what arrives.
    Probe(Probe),
}

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
}

/// One VM of an offer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VmOffer {
    /// Index used in placements; unique in the session.
    pub vm: u16,
    /// The image is rebuilt at `STORE/<name>.ram`.
    pub name: String,
    /// Bytes of the image file.
    pub file_len: u64,
    /// Pages of 4 KiB: `file_len / 4096`, rounded up.
    pub page_count: u32,
    /// Pages that are not uniform: the space that the image needs on disk.
    pub content_pages: u32,
}

/// What a session will transfer to this host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Offer {
    /// [`VERSION`] of the sender.
    pub version: u8,
    /// Random; another session of the same transfer has another.
    pub session: u64,
    /// The plan's name: a later session of the same name resumes.
    pub transfer: String,
    /// The name by which the plan knows this host.
    pub host: String,
    /// Largest symbol of the session in bytes; each block's own follows from its length.
    pub symbol_size_max: u16,
    /// UDP port of the session's multicast groups.
    pub multicast_port: u16,
    /// The groups are IPv6's.
    pub ipv6: bool,
    /// The VMs for this host.
    pub vms: Vec<VmOffer>,
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

/// Membership of one channel.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Join {
    /// The channel, as in datagrams' headers.
    pub channel: u32,
    /// The channel's key.
    pub key: [u8; 32],
    /// The nonce's fixed part.
    pub salt: [u8; 4],
    /// The multicast group, or nothing for the host's own unicast port.
    pub group: Option<IpAddr>,
}

/// Consecutive blocks of one channel.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Announce {
    /// Id of the first.
    pub first_block: u64,
    /// Length in bytes and digest of each; at most [`limits::ANNOUNCED_MAX`].
    pub blocks: Vec<(u32, Digest)>,
}

/// `count` blocks from `first` on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BlockRange {
    /// First block's id.
    pub first: u64,
    /// Number of blocks, at least 1.
    pub count: u32,
}

/// All listed blocks have been transmitted.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Through {
    /// Numbers this host's `Through` messages from 1.
    pub seq: u64,
    /// For each of this host's channels used since the last: the channel, and the count of datagrams sent on it
    /// since the session began.
    pub sent: Vec<(u32, u64)>,
    /// The blocks, not listed twice.
    pub blocks: Vec<BlockRange>,
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
    /// For each channel named in that `Through`: datagrams received on it since the session began.
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

/// A multicast reachability probe.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Probe {
    /// Group to join.
    pub group: IpAddr,
    /// UDP port.
    pub port: u16,
    /// Datagrams that will be sent.
    pub count: u32,
    /// How long to listen, in milliseconds, at most 10,000.
    pub listen_ms: u32,
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

/// Why a frame is no valid message.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// Not in the format, or bytes left over.
    #[error("control message of {0} bytes is malformed")]
    Malformed(usize),
    /// A list, name or number is over its named limit.
    #[error("control message: {field} of {value} is over the limit of {limit}")]
    Limit {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// What is allowed.
        limit: u64,
    },
}

impl Join {
    /// The channel and its secret.
    #[must_use]
    pub fn secret(&self) -> (ChannelId, ChannelSecret) {
        (ChannelId(self.channel), ChannelSecret { key: self.key, salt: self.salt })
    }
}

impl BlockRange {
    /// The ids in the range.
    pub fn ids(self) -> impl Iterator<Item = BlockId> {
        (self.first..self.first.saturating_add(u64::from(self.count))).map(BlockId)
    }
}

/// Puts single ids into the fewest ranges; `ids` must ascend.
#[must_use]
pub fn ranges(ids: impl IntoIterator<Item = BlockId>) -> Vec<BlockRange> {
    let mut out: Vec<BlockRange> = Vec::new();
    for BlockId(id) in ids {
        match out.last_mut() {
            Some(last) if last.first + u64::from(last.count) == id => last.count += 1,
            _ => out.push(BlockRange { first: id, count: 1 }),
        }
    }
    out
}

impl Offer {
    /// Whether this build can speak the offer's version. The window is one version wide as yet.
    #[must_use]
    pub fn version_is_spoken(&self) -> bool {
        self.version == VERSION
    }
}

/// A message in either direction: encoding and checked decoding.
pub trait Message: Serialize + for<'de> Deserialize<'de> {
    /// Checks every list, name and number against [`limits`].
    ///
    /// # Errors
    /// [`ControlError::Limit`] names the field.
    fn check(&self) -> Result<(), ControlError>;

    /// The frame's bytes.
    ///
    /// # Panics
    /// Never: no message holds a type that postcard cannot write.
    fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("control messages are plain data")
    }

    /// Reads a frame.
    ///
    /// # Errors
    /// [`ControlError`] if the frame is not exactly one message within the limits.
    fn decode(frame: &[u8]) -> Result<Self, ControlError> {
        at_most("frame", frame.len(), limits::FRAME_BYTES_MAX as usize)?;
        match postcard::take_from_bytes::<Self>(frame) {
            Ok((message, [])) => message.check().map(|()| message),
            _ => Err(ControlError::Malformed(frame.len())),
        }
    }
}

fn at_most(field: &'static str, value: usize, limit: usize) -> Result<(), ControlError> {
    if value <= limit {
        return Ok(());
    }
    Err(ControlError::Limit { field, value: value as u64, limit: limit as u64 })
}

fn check_ranges(ranges: &[BlockRange]) -> Result<(), ControlError> {
    at_most("block ranges", ranges.len(), limits::RANGES_MAX)?;
    // Ranges may overlap, so their sum is bounded too.
    let blocks: usize = ranges.iter().map(|range| range.count as usize).sum();
    at_most("blocks in ranges", blocks, limits::RANGED_BLOCKS_MAX)?;
    ranges.iter().try_for_each(|range| check_ids(range.first, range.count as usize))
}

fn check_ids(first: u64, count: usize) -> Result<(), ControlError> {
    let end = first.saturating_add(count as u64);
    if end <= limits::BLOCKS_MAX {
        return Ok(());
    }
    Err(ControlError::Limit { field: "block id", value: end, limit: limits::BLOCKS_MAX })
}

fn check_block_len(len: u32) -> Result<(), ControlError> {
    at_most("block length", len as usize, limits::BLOCK_BYTES_MAX as usize)
}

impl Message for ToHost {
    fn check(&self) -> Result<(), ControlError> {
        match self {
            Self::Offer(offer) => {
                at_most("VMs", offer.vms.len(), limits::VMS_MAX)?;
                at_most("transfer name", offer.transfer.len(), limits::NAME_BYTES_MAX)?;
                at_most("host name", offer.host.len(), limits::NAME_BYTES_MAX)?;
                at_most("symbol size", offer.symbol_size_max.into(), limits::SYMBOL_BYTES_MAX.into())?;
                offer.vms.iter().try_for_each(|vm| at_most("VM name", vm.name.len(), limits::NAME_BYTES_MAX))
            }
            Self::Announce(announce) => {
                at_most("announced blocks", announce.blocks.len(), limits::ANNOUNCED_MAX)?;
                check_ids(announce.first_block, announce.blocks.len())?;
                announce.blocks.iter().try_for_each(|(len, _)| check_block_len(*len))
            }
            Self::Through(through) => {
                at_most("channels", through.sent.len(), limits::RANGES_MAX)?;
                check_ranges(&through.blocks)
            }
            Self::BlockData { bytes, .. } => at_most("block", bytes.len(), limits::BLOCK_BYTES_MAX as usize),
            Self::Cancel { reason } => at_most("reason", reason.len(), limits::REASON_BYTES_MAX),
            Self::Probe(probe) => at_most("listening time", probe.listen_ms as usize, 10_000),
            Self::Join(_) | Self::Leave { .. } | Self::Release => Ok(()),
        }
    }
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
            Self::Accept(_)
            | Self::Joined { .. }
            | Self::VmComplete { .. }
            | Self::AllComplete(_)
            | Self::ProbeReady => Ok(()),
        }
    }
}

/// A reason cut to [`limits::REASON_BYTES_MAX`] at a character's border.
#[must_use]
pub fn reason(words: &str) -> String {
    let mut end = words.len().min(limits::REASON_BYTES_MAX);
    while !words.is_char_boundary(end) {
        end -= 1;
    }
    words[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn offer() -> ToHost {
        let vm = VmOffer { vm: 0, name: "a".into(), file_len: 4097, page_count: 2, content_pages: 1 };
        ToHost::Offer(Offer {
            version: VERSION,
            session: 1,
            transfer: "t".into(),
            host: "h1".into(),
            symbol_size_max: 1424,
            multicast_port: 7700,
            ipv6: false,
            vms: vec![vm],
        })
    }

    fn report() -> ToSender {
        ToSender::Report(Report {
            seq: 9,
            received: vec![(1, 2)],
            done: vec![BlockRange { first: 3, count: 4 }],
            deficits: vec![Deficit { block: 5, missing: 1 << 127 | 6, cauchy: 7, raptorq: 8 }],
        })
    }

    #[test]
    fn round_trips_and_rejects_trailing_bytes() {
        let mut frame = offer().encode();
        assert_eq!(ToHost::decode(&frame), Ok(offer()));
        frame.push(0);
        assert_eq!(ToHost::decode(&frame), Err(ControlError::Malformed(frame.len())));
        assert_eq!(ToSender::decode(&report().encode()), Ok(report()));
    }

    #[test]
    fn limits_are_checked_by_name() {
        let long = ToHost::Cancel { reason: "x".repeat(limits::REASON_BYTES_MAX + 1) };
        let error = ToHost::decode(&long.encode()).expect_err("too long");
        assert!(matches!(error, ControlError::Limit { field: "reason", .. }), "{error}");
        let blocks = vec![(limits::BLOCK_BYTES_MAX + 1, [0; 32])];
        let announce = ToHost::Announce(Announce { first_block: 0, blocks });
        assert!(ToHost::decode(&announce.encode()).is_err());
        let ids_end = ToHost::Announce(Announce { first_block: u64::MAX, blocks: vec![(8, [0; 32]); 2] });
        assert!(matches!(
            ToHost::decode(&ids_end.encode()),
            Err(ControlError::Limit { field: "block id", .. })
        ));
        // Few bytes that would keep a peer busy for minutes.
        let range = BlockRange { first: 0, count: 1 << 22 };
        let many = ToHost::Through(Through { seq: 1, sent: vec![], blocks: vec![range; 2] });
        let error = ToHost::decode(&many.encode()).expect_err("too many");
        assert!(matches!(error, ControlError::Limit { field: "blocks in ranges", .. }), "{error}");
        assert_eq!(reason(&"é".repeat(600)).len(), limits::REASON_BYTES_MAX);
    }

    #[test]
    fn ranges_are_fewest() {
        let ids = [1, 2, 3, 7, 9, 10].map(BlockId);
        let ranged = ranges(ids);
        assert_eq!(ranged.iter().map(|r| (r.first, r.count)).collect::<Vec<_>>(), [(1, 3), (7, 1), (9, 2)]);
        assert!(ranged.iter().flat_map(|r| r.ids()).eq(ids));
    }

    proptest! {
        #[test]
        fn damaged_frames_never_panic(flips in proptest::collection::vec((any::<u16>(), any::<u8>()), 1..8)) {
            for frame in [offer().encode(), report().encode()] {
                let mut damaged = frame;
                for (at, value) in &flips {
                    let at = usize::from(*at) % damaged.len();
                    damaged[at] = *value;
                }
                let _ = ToHost::decode(&damaged);
                let _ = ToSender::decode(&damaged);
            }
        }
    }
}
