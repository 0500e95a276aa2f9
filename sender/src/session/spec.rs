//! What goes into a session, and what comes out of it.

use super::Phase;
use std::net::IpAddr;
use std::ops::Range;
use wire::seal::ChannelSecret;
use wire::{BlockId, ChannelId};

/// A multicast group (or one host's unicast port) and its members.
#[derive(Clone, Debug)]
pub struct ChannelSpec {
    /// The group; `None` for a channel of one host.
    pub group: Option<IpAddr>,
    /// Its members: indexes of hosts, ascending.
    pub hosts: Vec<usize>,
    /// As in the datagrams' headers.
    pub id: ChannelId,
    /// Its key.
    pub secret: ChannelSecret,
}

/// Contents of one host set, sent together.
#[derive(Clone, Copy, Debug)]
pub struct SegmentSpec {
    /// Index of its channel.
    pub channel: usize,
    /// Bytes expected, for joining ahead and for the estimated time.
    pub expected_bytes: u64,
    /// The circle of hosts that may have its blocks from each other, as the offers name it; 0: none.
    pub circle: u32,
}

/// Symbols of one block to be sealed and sent in one batch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Transmit {
    /// Index of the channel.
    pub channel: usize,
    /// The block.
    pub block: BlockId,
    /// Which symbols.
    pub symbols: Symbols,
}

/// Which symbols of a block.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Symbols {
    /// Consecutive source symbols.
    Source(Range<u32>),
    /// The source symbols with these numbers, again.
    SourceAgain(Vec<u32>),
    /// Consecutive repair symbols of a scheme.
    Repair(fec::Scheme, Range<u32>),
}

impl Symbols {
    /// How many.
    ///
    /// # Panics
    /// Never: a block has at most 128 source symbols.
    #[must_use]
    pub fn count(&self) -> u32 {
        match self {
            Self::Source(range) | Self::Repair(_, range) => range.end - range.start,
            Self::SourceAgain(list) => u32::try_from(list.len()).expect("at most 128 source symbols"),
        }
    }
}

/// What a progress display or a report may want to know.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A host came to another phase.
    Phase {
        /// Its index.
        host: usize,
        /// The new phase.
        phase: Phase,
    },
    /// A VM is whole at a host.
    VmComplete {
        /// Index of the host.
        host: usize,
        /// Index of the VM.
        vm: u16,
    },
    /// A segment's first symbol is about to go out.
    SegmentStarted {
        /// Its index.
        segment: usize,
    },
}

/// Counters of a session.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct SessionStats {
    /// Blocks encoded.
    pub blocks: u64,
    /// Bytes of encoded blocks: what every copy-once transfer must carry.
    pub encoded_bytes: u64,
    /// Blocks not sent, since every host held them from an earlier run.
    pub blocks_skipped: u64,
    /// Datagrams with source symbols, first transmission.
    pub source_datagrams: u64,
    /// Datagrams with source symbols sent again.
    pub again_datagrams: u64,
    /// Datagrams with Cauchy symbols.
    pub cauchy_datagrams: u64,
    /// Datagrams with RaptorQ symbols.
    pub raptorq_datagrams: u64,
    /// Blocks that needed repair at some host.
    pub blocks_repaired: u64,
    /// Blocks sent whole to single hosts, and their bytes.
    pub catch_up_blocks: u64,
    /// See `catch_up_blocks`.
    pub catch_up_bytes: u64,
    /// Blocks that a group carried once more, for several members that owed them.
    pub recalled_blocks: u64,
    /// Blocks sent out of turn, since guests on several hosts wait for their pages.
    pub hastened_blocks: u64,
    /// Groups joined and left, summed over hosts.
    pub joins: u64,
    /// See `joins`.
    pub leaves: u64,
    /// Largest sum of encoded bytes kept at once.
    pub window_peak_bytes: u64,
}
