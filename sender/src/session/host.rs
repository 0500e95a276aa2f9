//! What the session knows of one host.

use crate::rate::Mark;
use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::time::Duration;
use wire::control::HostStats;
use wire::{BlockSet, Digest};

/// Where a host stands.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "kebab-case", tag = "phase")]
#[non_exhaustive]
pub enum Phase {
    /// Not connected, or not yet.
    Absent,
    /// On its groups.
    Active,
    /// Does not answer; not waited for. Its next word makes it active again.
    Suspended,
    /// Too slow for its groups, or unable to join: off them, fed over its control channel.
    Unicast,
    /// Has every image.
    Complete,
    /// Will not have its images from this session.
    Failed {
        /// Why, in words.
        reason: String,
    },
}

/// A host that was too slow so often stays off its groups.
pub(super) const TIMES_APART_MAX: u32 = 3;

/// A question `Through` under way.
pub(super) struct Ask {
    pub(super) seq: u64,
    pub(super) at: Mark,
    /// The session's [`Session::listened`] then.
    pub(super) listened: Duration,
    /// The host's `sent_bytes` at that time: acknowledged by the answer.
    pub(super) sent_bytes: u64,
    /// Datagrams sent on the channels named.
    pub(super) sent: Vec<(u32, u64)>,
    pub(super) blocks: Vec<u64>,
}

pub(super) struct Host {
    pub(super) phase: Phase,
    pub(super) connected: bool,
    /// Per channel.
    pub(super) membership: Vec<Membership>,
    /// Bytes that may be under way before a report.
    pub(super) credit: u64,
    pub(super) sent_bytes: u64,
    pub(super) acked_bytes: u64,
    pub(super) seq: u64,
    pub(super) asks: VecDeque<Ask>,
    pub(super) to_ask: Vec<u64>,
    pub(super) last_ask: Duration,
    pub(super) done: BlockSet,
    pub(super) done_bytes: u64,
    /// Blocks that it needs, as far as they are encoded.
    pub(super) announced: BlockSet,
    pub(super) announced_bytes: u64,
    pub(super) unannounced: Vec<u64>,
    /// Blocks to be sent whole over the control channel.
    pub(super) owed: BTreeSet<u64>,
    /// Those of them of which it lacks contents that were only named to it.
    pub(super) lacking: BTreeSet<u64>,
    /// Those under way there, with their lengths.
    pub(super) catching_up: BTreeMap<u64, u32>,
    pub(super) held: HashSet<Digest>,
    /// Since when nothing was heard of it.
    pub(super) last_heard: Duration,
    /// Since when it got nothing done although something was under way to it.
    pub(super) last_progress: Duration,
    /// Start of the window over which its usefulness is judged, and its `done_bytes` then.
    pub(super) useful_since: Duration,
    pub(super) useful_bytes: u64,
    /// Most `done_bytes` of any connection, and connections made since it had so many.
    pub(super) done_bytes_max: u64,
    pub(super) connections: u32,
    /// Blocks in flight to it.
    pub(super) flights: usize,
    /// Blocks asked about that are neither done nor lacking nor in flight: asked about again after a while.
    pub(super) undecided: Vec<(Duration, u64)>,
    /// Blocks sent whole that it claimed to lack all the same, and how often.
    pub(super) retold: BTreeMap<u64, u32>,
    /// Gets no datagrams of its own (see `Session::forbid_unicast`).
    pub(super) no_unicast: bool,
    /// Left a `Join` unanswered for long: no group waits for it again.
    pub(super) joins_late: bool,
    /// How often it fell silent lately, and when last.
    pub(super) silences: u32,
    pub(super) silent_at: Duration,
    /// For how long it held the group up, with few others, since `blocking_since`.
    pub(super) blocking: Duration,
    pub(super) blocking_since: Duration,
    pub(super) charged_at: Duration,
    /// Smoothed time from question to answer.
    pub(super) latency: Duration,
    /// How often it was too slow for its groups, or could not join.
    pub(super) times_apart: u32,
    /// Symbols of groups that were sent to it, and that it claimed to lack, since `blocking_since`.
    pub(super) offered: u64,
    pub(super) claimed: u64,
    /// The share of them, of the last such time that told.
    pub(super) claim_share: Option<f64>,
    /// Smoothed share of datagrams lost on the way to it.
    pub(super) loss: f64,
    /// Since when next to nothing reaches it.
    pub(super) deaf_since: Option<Duration>,
    /// Per channel id, at the last report.
    pub(super) counted: BTreeMap<u32, Counted>,
    /// When the question of that report was asked, or the host became a member.
    pub(super) counted_at: Mark,
    pub(super) stats: Option<HostStats>,
    pub(super) last_trouble: Option<String>,
}

/// Datagrams of a channel, since the session began.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Counted {
    pub(super) sent: u64,
    /// Most that were ever missing of them at a report.
    pub(super) missing: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Membership {
    No,
    Joining,
    /// Datagrams reach it from this time on.
    From(Duration),
}

impl Host {
    pub(super) fn new(channels: usize) -> Self {
        Self {
            phase: Phase::Absent,
            connected: false,
            membership: vec![Membership::No; channels],
            credit: 0,
            sent_bytes: 0,
            acked_bytes: 0,
            seq: 0,
            asks: VecDeque::new(),
            to_ask: Vec::new(),
            last_ask: Duration::ZERO,
            done: BlockSet::default(),
            done_bytes: 0,
            announced: BlockSet::default(),
            announced_bytes: 0,
            unannounced: Vec::new(),
            owed: BTreeSet::new(),
            lacking: BTreeSet::new(),
            catching_up: BTreeMap::new(),
            held: HashSet::new(),
            last_heard: Duration::ZERO,
            last_progress: Duration::ZERO,
            useful_since: Duration::ZERO,
            useful_bytes: 0,
            done_bytes_max: 0,
            connections: 0,
            flights: 0,
            undecided: Vec::new(),
            retold: BTreeMap::new(),
            no_unicast: false,
            joins_late: false,
            silences: 0,
            silent_at: Duration::ZERO,
            blocking: Duration::ZERO,
            blocking_since: Duration::ZERO,
            charged_at: Duration::ZERO,
            latency: Duration::ZERO,
            times_apart: 0,
            offered: 0,
            claimed: 0,
            claim_share: None,
            loss: 0.0,
            deaf_since: None,
            counted: BTreeMap::new(),
            counted_at: Mark::default(),
            stats: None,
            last_trouble: None,
        }
    }

    pub(super) fn is_active(&self) -> bool {
        self.phase == Phase::Active
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Complete | Phase::Failed { .. })
    }

    /// Bytes under way to it.
    pub(super) fn under_way(&self) -> u64 {
        self.sent_bytes - self.acked_bytes
    }

    pub(super) fn is_member(&self, channel: usize, now: Duration) -> bool {
        self.is_active() && matches!(self.membership[channel], Membership::From(at) if at <= now)
    }

    /// Bytes of blocks under way on its control channel.
    pub(super) fn catching_up_bytes(&self) -> u64 {
        self.catching_up.values().map(|len| u64::from(*len)).sum()
    }

    /// Has nearly everything that was sent meanwhile, and may be tried on the groups again.
    pub(super) fn has_caught_up(&self) -> bool {
        const BLOCKS: usize = 16;
        self.connected
            && self.times_apart < TIMES_APART_MAX
            && self.owed.len() + self.catching_up.len() < BLOCKS
    }

    /// Something was sent to it, or is about to be, that it has not said to have.
    pub(super) fn has_under_way(&self) -> bool {
        self.flights > 0 || !self.catching_up.is_empty()
    }

    /// Has all blocks there are.
    pub(super) fn has_all(&self) -> bool {
        self.done_bytes == self.announced_bytes
    }

    /// May be sent blocks whole.
    pub(super) fn is_reachable(&self) -> bool {
        self.connected && matches!(self.phase, Phase::Active | Phase::Unicast)
    }
}
