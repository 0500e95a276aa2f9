//! What the sender says to a host.

use super::check::{at_most, check_block_len, check_ids, check_ranges};
use super::{
    Attachment, BlockRange, Circle, ControlError, EndClones, Fetch, FirstTouched, GuestOffer, Message, Peer,
    SourceWord, measure, peers,
};
use crate::seal::ChannelSecret;
use crate::{ChannelId, Digest, VERSION, limits};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

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
    /// `scatter measure`: what do your VMs have in common with other hosts'?
    Measure(measure::Ask),
    /// A part of what a VM needs beside its memory.
    Attachment(Attachment),
    /// Pages that guests wait for: a block's body that is no block of the transfer, from the sender's memory.
    Pages {
        /// The body, as [`limits::BLOCK_BYTES_MAX`] bounds it.
        #[serde(with = "serde_bytes")]
        body: Vec<u8>,
    },
    /// `scatter status`, in place of an offer: what runs there? Answered by `Status`.
    Status,
    /// A part of a guest's recorded working set.
    FirstTouched(FirstTouched),
    /// A host of the same transfer, in place of an offer: blocks that it lacks. Answered by `Fetched`.
    Fetch(Fetch),
    /// Answer to `Lacks`: the contents of a block that named them, as a body that carries them.
    Supply {
        /// The block, announced before.
        block: u64,
        /// The body, with the same placements.
        #[serde(with = "serde_bytes")]
        body: Vec<u8>,
    },
    /// Of a VM that leaves the sender's host.
    HandOver {
        /// The VM.
        vm: u16,
        /// What is said of it.
        word: SourceWord,
    },
    /// Clones that lack pages are ended, those that have all of their memory run on. Said by the sender of its own transfer, and answered by
    /// `Guest` for each that is ended, and `Failed`; or in place of an offer (`scatter cancel`), and answered by `Status`.
    EndClones(EndClones),
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
    /// Those of them that are started while their memory arrives; a VM is named at most once.
    pub guests: Vec<GuestOffer>,
    /// Other hosts that need some of the same blocks, for when the sender is gone; none if nothing depends on it.
    pub peers: Vec<Peer>,
    /// Which of them need the same blocks. A circle that is not listed has this host alone.
    pub circles: Vec<Circle>,
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
    /// The circle of hosts that need them; 0 if none was offered.
    pub circle: u32,
    /// Length in bytes and digest of each; at most [`limits::ANNOUNCED_MAX`].
    pub blocks: Vec<(u32, Digest)>,
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

impl Join {
    /// The channel and its secret.
    #[must_use]
    pub fn secret(&self) -> (ChannelId, ChannelSecret) {
        (ChannelId(self.channel), ChannelSecret { key: self.key, salt: self.salt })
    }
}

impl Offer {
    /// Whether this build can speak the offer's version. The window is one version wide as yet.
    #[must_use]
    pub fn version_is_spoken(&self) -> bool {
        self.version == VERSION
    }
}

impl Message for ToHost {
    fn check(&self) -> Result<(), ControlError> {
        match self {
            Self::Offer(offer) => {
                at_most("VMs", offer.vms.len(), limits::VMS_MAX)?;
                at_most("transfer name", offer.transfer.len(), limits::NAME_BYTES_MAX)?;
                at_most("host name", offer.host.len(), limits::NAME_BYTES_MAX)?;
                at_most("symbol size", offer.symbol_size_max.into(), limits::SYMBOL_BYTES_MAX.into())?;
                at_most("guests", offer.guests.len(), limits::VMS_MAX)?;
                offer.guests.iter().try_for_each(GuestOffer::check)?;
                peers::check(&offer.peers, &offer.circles)?;
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
            Self::Measure(ask) => ask.check(),
            Self::Attachment(part) => {
                at_most("attachment part", part.bytes.len(), limits::ATTACHMENT_PART_BYTES_MAX)
            }
            Self::Supply { body, .. } => at_most("supply", body.len(), limits::BLOCK_BYTES_MAX as usize),
            Self::Pages { body } => at_most("pages", body.len(), limits::BLOCK_BYTES_MAX as usize),
            Self::FirstTouched(part) => part.check(),
            Self::Fetch(fetch) => fetch.check(),
            Self::HandOver { word, .. } => word.check(),
            Self::EndClones(end) => end.check(),
            Self::Join(_) | Self::Leave { .. } | Self::Release | Self::Status => Ok(()),
        }
    }
}
