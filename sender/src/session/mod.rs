//! The sending session of one transfer, without I/O, threads or a clock of its own.
//!
//! **Call order.** Feed it with the `handle_*` methods, each with the time since any fixed instant; then drain
//! [`Session::poll_control`], [`Session::poll_transmit`], [`Session::poll_catch_up`], [`Session::poll_release`] and
//! [`Session::poll_event`] until `None`, and sleep until [`Session::poll_timeout`] at the latest.
//!
//! A block's way: *encoded* → announced to its hosts → *in flight* (source symbols transmitted, hosts asked by
//! `Through`, deficits merged and answered once for all) → released when every host on the group has it. A host
//! that is not on the group then — late, silent, slow, not able to join — *owes* the block and gets it whole over
//! its control channel. So nobody waits for anybody: the group's pace is that of the hosts on it, and who holds
//! it up is taken off.

mod announce;
mod catch_up;
mod channels;
mod config;
mod deaf;
mod flight;
mod host;
mod judge;
mod questions;
mod repair;
mod reports;
mod shared;
mod spec;

pub use config::SessionConfig;
pub use host::Phase;
pub use spec::{ChannelSpec, Event, SegmentSpec, SessionStats, Symbols, Transmit};

use crate::rate::Pacer;
use channels::{Channel, Segment};
use fec::CostModel;
use flight::{Burst, InFlight, NextEsis};
use host::Host;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;
use wire::control::ToHost;
use wire::datagram::OVERHEAD_BYTES;
use wire::{BlockId, Digest};

/// Bytes that IPv4, UDP and Ethernet add to a datagram: what pacing counts beside the datagram itself.
pub(crate) const FRAME_OVERHEAD_BYTES: u64 = 20 + 8 + 14;

struct Block {
    segment: usize,
    len: u32,
    digest: Digest,
    /// Source symbols have been handed out (or every host held the block).
    sent: bool,
    /// How often the group carried it again.
    recalls: u8,
    next_esis: NextEsis,
}

/// See the module's text.
pub struct Session {
    config: SessionConfig,
    cost_model: CostModel,
    pacer: Pacer,
    hosts: Vec<Host>,
    channels: Vec<Channel>,
    segments: Vec<Segment>,
    blocks: Vec<Block>,
    in_flight: BTreeMap<u64, InFlight>,
    /// Blocks in flight with a deficit not yet answered.
    dirty: BTreeSet<u64>,
    /// What is left of the blocks begun.
    bursts: VecDeque<Burst>,
    /// Blocks that guests on several hosts wait for, with the number of hosts that asked: the most wanted first.
    hastened: Vec<(u32, u64)>,
    /// Symbols asked for, and recalled blocks.
    repairs: VecDeque<Burst>,
    /// The next burst is a repair, if there is one.
    repair_turn: bool,
    /// Nothing could be sent although pacing allowed it: for want of credit, a channel or a block. Only news changes that.
    stalled: bool,
    window_used: u64,
    encoding_done: bool,
    started_at: Option<Duration>,
    /// For how long answers could be heard, counted until `listened_at`.
    listened: Duration,
    listened_at: Duration,
    cancelled: bool,
    control: VecDeque<(usize, ToHost)>,
    releases: VecDeque<BlockId>,
    recalls: VecDeque<BlockId>,
    events: VecDeque<Event>,
    stats: SessionStats,
}

impl Session {
    /// A session over so many hosts, channels, and segments in the order of the schedule.
    #[must_use]
    pub fn new(
        config: SessionConfig,
        cost_model: CostModel,
        hosts: usize,
        channels: Vec<ChannelSpec>,
        segments: &[SegmentSpec],
    ) -> Self {
        let mut last_use = vec![0; channels.len()];
        for (index, segment) in segments.iter().enumerate() {
            last_use[segment.channel] = index;
        }
        let hosts = (0..hosts).map(|_| Host::new(channels.len())).collect();
        Self {
            pacer: Pacer::new(config.rate.clone()),
            config,
            cost_model,
            hosts,
            channels: channels
                .into_iter()
                .zip(last_use)
                .map(|(spec, last)| Channel::new(spec, last))
                .collect(),
            segments: segments.iter().map(Segment::new).collect(),
            blocks: Vec::new(),
            in_flight: BTreeMap::new(),
            dirty: BTreeSet::new(),
            bursts: VecDeque::new(),
            hastened: Vec::new(),
            repairs: VecDeque::new(),
            repair_turn: false,
            stalled: false,
            window_used: 0,
            encoding_done: false,
            started_at: None,
            listened: Duration::ZERO,
            listened_at: Duration::ZERO,
            cancelled: false,
            control: VecDeque::new(),
            releases: VecDeque::new(),
            recalls: VecDeque::new(),
            events: VecDeque::new(),
            stats: SessionStats::default(),
        }
    }

    /// Whether another stripe of this segment should be encoded: its channel's share of the window has room beside
    /// what is being encoded already, for this channel and in all.
    ///
    /// A channel may use `WINDOW_SHARE` (3) times what is free (the dynamic threshold of Choudhury and Hahne, "Dynamic queue length
    /// thresholds for shared-memory packet switches", 1998): alone, three quarters of the window; and however many
    /// channels are held up by slow hosts, there is room for the next one.
    #[must_use]
    pub fn wants_blocks(&self, segment: usize, pending_channel_bytes: u64, pending_bytes: u64) -> bool {
        self.has_room(self.segments[segment].channel, pending_channel_bytes, pending_bytes)
    }

    fn has_room(&self, channel: usize, pending_channel_bytes: u64, pending_bytes: u64) -> bool {
        const WINDOW_SHARE: u64 = 3;
        let free = self.config.window_bytes.saturating_sub(self.window_used + pending_bytes);
        self.channels[channel].window_used + pending_channel_bytes < WINDOW_SHARE * free
    }

    /// Takes in the next encoded block; its id is the count of earlier ones. Segments may alternate.
    pub fn handle_block(&mut self, segment: usize, len: u32, digest: Digest) -> BlockId {
        let id = self.blocks.len() as u64;
        let symbols = self.shape_of(len).symbols();
        let next_esis = NextEsis { cauchy: symbols, raptorq: symbols };
        self.blocks.push(Block { segment, len, digest, sent: false, recalls: 0, next_esis });
        self.stalled = false;
        self.segments[segment].waiting.push_back(id);
        self.segments[segment].encoded_bytes += u64::from(len);
        self.stats.blocks += 1;
        self.stats.encoded_bytes += u64::from(len);
        self.window_used += u64::from(len);
        let channel = self.segments[segment].channel;
        self.channels[channel].window_used += u64::from(len);
        self.stats.window_peak_bytes = self.stats.window_peak_bytes.max(self.window_used);
        for host in self.channels[channel].spec.hosts.clone() {
            self.announce(host, id);
        }
        BlockId(id)
    }

    /// All blocks of this segment have been handed in.
    pub fn handle_segment_encoded(&mut self, segment: usize) {
        self.segments[segment].encoded = true;
        self.encoding_done = self.segments.iter().all(|segment| segment.encoded);
    }

    /// Time has passed: late answers, repairs, joins, leaves.
    pub fn handle_timeout(&mut self, now: Duration) {
        self.stalled = false;
        self.listen(now);
        self.judge_hosts(now);
        self.judge_deafness(now);
        if !self.has_started(now) {
            return;
        }
        self.open_channels(now);
        self.plan_repairs(now);
        self.close_channels(now);
        self.ask_hosts(now, false);
    }

    /// When [`Session::handle_timeout`] must be called at the latest. After [`Session::poll_transmit`] had nothing to
    /// give, pacing is no reason to come back: a report, a block or one of the other times is.
    #[must_use]
    pub fn poll_timeout(&self, now: Duration) -> Option<Duration> {
        if self.is_over() {
            return None;
        }
        // Silence and lag are judged on a coarse tick.
        let tick = now + self.config.lag_limit / 8;
        if self.started_at.is_none() {
            return Some(self.start_due().clamp(now, tick));
        }
        let repair = self.repair_due();
        let join = self.join_due(now);
        let pace = (!self.stalled && self.has_bursts()).then(|| self.pacer.ready_at(now));
        let ask = self.ask_due(self.stalled);
        [repair, join, pace, ask, Some(tick)].into_iter().flatten().min().map(|at| at.max(now))
    }

    /// The next control message to send.
    pub fn poll_control(&mut self) -> Option<(usize, ToHost)> {
        self.control.pop_front()
    }

    /// The next block whose bytes are no longer needed.
    pub fn poll_release(&mut self) -> Option<BlockId> {
        self.releases.pop_front()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Whether every host is complete or has failed.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.hosts.iter().all(|host| matches!(host.phase, Phase::Complete | Phase::Failed { .. }))
    }

    /// Whether [`Session::cancel`] ended it.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.cancelled
    }

    /// Counters so far.
    #[must_use]
    pub fn stats(&self) -> &SessionStats {
        &self.stats
    }

    /// When the session began to send.
    #[must_use]
    pub fn started_at(&self) -> Option<Duration> {
        self.started_at
    }

    /// Something of so many bytes was sent beside the session's own datagrams: it takes its share of the link, of which a quarter is
    /// left to datagrams whatever is sent.
    pub fn spend(&mut self, now: Duration, bytes: u64) {
        self.pacer.spend_beside(now, bytes);
    }

    /// The pacing rate now, in bytes per second, all headers counted.
    #[must_use]
    pub fn rate_bytes_per_s(&self) -> u64 {
        self.pacer.bytes_per_s()
    }

    /// A host's phase.
    #[must_use]
    pub fn phase(&self, host: usize) -> &Phase {
        &self.hosts[host].phase
    }

    /// Encoded bytes that a host has, and that it needs as far as blocks are known.
    #[must_use]
    pub fn progress(&self, host: usize) -> (u64, u64) {
        (self.hosts[host].done_bytes, self.hosts[host].announced_bytes)
    }

    /// Encoded bytes that a host will need in all, as far as they can be told.
    #[must_use]
    pub fn expected_bytes(&self, host: usize) -> u64 {
        let needed = self.segments.iter().filter(|s| self.channels[s.channel].spec.hosts.contains(&host));
        let yet: u64 = needed.filter(|s| !s.encoded).map(Segment::remaining_bytes).sum();
        self.hosts[host].announced_bytes + yet
    }

    /// Length of a block in bytes.
    #[must_use]
    pub fn block_len(&self, block: BlockId) -> Option<u32> {
        self.blocks.get(index(block)).map(|block| block.len)
    }

    fn shape(&self, id: u64) -> fec::BlockShape {
        self.shape_of(self.blocks[index(BlockId(id))].len)
    }

    fn shape_of(&self, len: u32) -> fec::BlockShape {
        fec::BlockShape::for_len(len, self.config.symbol_size_max)
            .expect("the encoder keeps blocks in the limits")
    }

    /// Bytes of one symbol of a block on the network, all headers counted.
    fn symbol_wire_bytes(&self, id: u64) -> u64 {
        u64::from(self.shape(id).symbol_size) + OVERHEAD_BYTES as u64 + FRAME_OVERHEAD_BYTES
    }
}

/// A block id as an index. Ids are handed out by this session, one after the other.
fn index(BlockId(id): BlockId) -> usize {
    usize::try_from(id).expect("block ids count up from 0")
}
