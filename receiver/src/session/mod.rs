//! The receiving session of one transfer at one host, without I/O, threads or a clock of its own.
//!
//! **Call order.** Feed it with [`Session::handle_control`], [`Session::handle_datagram`],
//! [`Session::handle_drained`], [`Session::handle_checked`] and [`Session::handle_timeout`], each with the time
//! since any fixed instant; after any of them drain [`Session::poll_action`] until `None`, then sleep until
//! [`Session::poll_timeout`] at the latest.
//!
//! A block goes `announced → collecting → checking → done`. Collecting takes authenticated symbols; checking
//! (decode, digest, place) happens elsewhere, on what [`Action::Check`] hands out, and comes back as
//! [`Checked`]. The sender asks what is missing with `Through`; the answer waits until the socket was drained
//! and, if datagrams seem missing, until later ones have come or none come any more, because TCP may overtake UDP.

mod answers;
mod arrivals;
mod blocks;

use crate::check::Job;
use crate::id_hash::IdHash;
use arrivals::Arrivals;
use fec::{BlockShape, Collector};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;
use wire::control::{self, HostStats, Join, Through, ToHost, ToSender};
use wire::datagram::View;
use wire::seal::Opener;
use wire::{BlockId, BlockSet, ChannelId, Digest};

/// What bounds a session.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// Largest symbol of the session, from the offer.
    pub symbol_size_max: u16,
    /// Number of VMs that must complete.
    pub vms: usize,
    /// Bytes of blocks being collected or checked; datagrams of further blocks are dropped and asked for again.
    pub in_flight_bytes_max: u64,
    /// Blocks collected before their announcement came; with further ones, the oldest are dropped and asked for again.
    pub unannounced_blocks_max: usize,
    /// How long an answer to `Through` waits for datagrams that overtook each other.
    pub reorder_grace: Duration,
    /// An answer waits for datagrams still on their way (TCP may have overtaken them) until none came for so long.
    pub quiet: Duration,
    /// How long news of finished blocks may wait for company.
    pub report_delay: Duration,
}

impl SessionConfig {
    /// The usual bounds: 256 MiB in flight, 64 unannounced blocks, 2 ms of grace, 10 ms of quiet,
    /// 10 ms of delay.
    #[must_use]
    pub fn new(symbol_size_max: u16, vms: usize) -> Self {
        Self {
            symbol_size_max,
            vms,
            in_flight_bytes_max: 256 << 20,
            unannounced_blocks_max: 64,
            reorder_grace: Duration::from_millis(2),
            quiet: Duration::from_millis(10),
            report_delay: Duration::from_millis(10),
        }
    }
}

/// What the driver has to do next.
#[derive(Debug)]
pub enum Action {
    /// Send a control message.
    Send(ToSender),
    /// Join a multicast group, then call [`Session::joined`].
    Join {
        /// For the answer.
        channel: ChannelId,
        /// The group.
        group: IpAddr,
    },
    /// Leave a multicast group that no channel uses any more.
    Leave {
        /// The group.
        group: IpAddr,
    },
    /// Decode, verify and place a block, then call [`Session::handle_checked`].
    Check(Box<Job>),
    /// Sync and name a VM's image, then call [`Session::handle_finished`].
    FinishVm(u16),
    /// Complete here; call [`Session::all_complete`] with what the process cost.
    AllPlaced,
    /// The sender released or cancelled the transfer; with its reason if it was cancelled.
    End {
        /// The journal may go.
        released: bool,
        /// Why the sender cancelled.
        reason: Option<String>,
    },
}

/// The sender broke the protocol; the connection is to be closed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// A message that has no place in a running session.
    #[error("unexpected message in a running session")]
    Unexpected,
    /// A block's announcement does not fit what is known of it.
    #[error("block {0} announced with an impossible length")]
    Announce(u64),
    /// A block was announced before with another length or digest.
    #[error("block {0} announced again, and differently")]
    Changed(u64),
    /// Far more questions than are ever under way, none of them answerable yet.
    #[error("more than {ASKED_MAX} questions wait for their answers")]
    Questions,
}

struct Channel {
    opener: Opener,
    group: Option<IpAddr>,
    arrivals: Arrivals,
}

impl Channel {
    fn count(&mut self, view: &View<'_>) {
        self.arrivals.note(view.header.counter);
    }
}

struct Entry {
    shape: BlockShape,
    digest: Option<Digest>,
    stage: Stage,
}

enum Stage {
    /// No symbol yet.
    Expected,
    Collecting(Collector),
    /// Handed out; symbols that still arrive are redundant.
    Checking,
    /// It names contents that are not here; the sender was told, and supplies them.
    Lacking,
}

struct Asked {
    through: Through,
    arrived: Duration,
    /// Nothing came on the channels asked about since then …
    quiet_since: Duration,
    /// … when they had received so many datagrams.
    received: u64,
}

/// See the module's text.
pub struct Session {
    config: SessionConfig,
    channels: HashMap<u32, Channel, IdHash>,
    blocks: HashMap<u64, Entry, IdHash>,
    /// Blocks with datagrams and without an announcement, oldest first.
    early: VecDeque<u64>,
    /// One more than the highest id announced.
    announced_end: u64,
    done: BlockSet,
    news: Vec<BlockId>,
    news_since: Option<Duration>,
    asked: VecDeque<Asked>,
    answered_seq: u64,
    in_flight_bytes: u64,
    spare: Vec<Collector>,
    scratch: Vec<u8>,
    complete_vms: BTreeSet<u16>,
    finished_vms: BTreeSet<u16>,
    actions: VecDeque<Action>,
    stats: HostStats,
    over_budget: u64,
}

/// Collectors kept for reuse; each holds one block's buffer.
const SPARE_COLLECTORS_MAX: usize = 32;

/// Questions that wait for their answers: a sender has at most 18 under way, and one more a second while it hears nothing.
const ASKED_MAX: usize = 256;
/// A block is announced when it is encoded, so a datagram never comes before the announcements of so many blocks.
const EARLY_AHEAD_MAX: u64 = 1 << 16;

impl Session {
    /// A session that has accepted an offer.
    #[must_use]
    pub fn new(config: SessionConfig) -> Self {
        let scratch = vec![0; usize::from(wire::limits::SYMBOL_BYTES_MAX)];
        Self {
            config,
            channels: HashMap::default(),
            blocks: HashMap::default(),
            early: VecDeque::new(),
            announced_end: 0,
            done: BlockSet::default(),
            news: Vec::new(),
            news_since: None,
            asked: VecDeque::new(),
            answered_seq: 0,
            in_flight_bytes: 0,
            spare: Vec::new(),
            scratch,
            complete_vms: BTreeSet::new(),
            finished_vms: BTreeSet::new(),
            actions: VecDeque::new(),
            stats: HostStats::default(),
            over_budget: 0,
        }
    }

    /// Counters so far.
    #[must_use]
    pub fn stats(&self) -> &HostStats {
        &self.stats
    }

    /// Bytes of blocks being collected or checked.
    #[must_use]
    pub fn in_flight_bytes(&self) -> u64 {
        self.in_flight_bytes
    }

    /// Takes in a message of the sender. `held` answers whether a block with this digest is held from an
    /// earlier run (and counts it as placed if so).
    ///
    /// # Errors
    /// [`ProtocolError`]: close the connection, keep what is held.
    pub fn handle_control(
        &mut self,
        now: Duration,
        message: ToHost,
        held: &mut dyn FnMut(&Digest) -> Option<Vec<u16>>,
    ) -> Result<(), ProtocolError> {
        match message {
            ToHost::Join(join) => self.join(&join),
            ToHost::Leave { channel } => self.leave(channel),
            ToHost::Announce(announce) => self.announce(now, announce, held)?,
            ToHost::Through(through) => {
                if self.asked.len() >= ASKED_MAX {
                    return Err(ProtocolError::Questions);
                }
                self.asked.push_back(Asked { through, arrived: now, quiet_since: now, received: 0 });
                self.answer(now, false);
            }
            ToHost::BlockData { block, bytes } => self.block_data(now, block, bytes),
            ToHost::Supply { block, body } => self.supply(now, block, body),
            ToHost::Release => self.actions.push_back(Action::End { released: true, reason: None }),
            ToHost::Cancel { reason } => {
                self.actions.push_back(Action::End { released: false, reason: Some(reason) });
            }
            _ => return Err(ProtocolError::Unexpected),
        }
        Ok(())
    }

    fn join(&mut self, join: &Join) {
        let (channel, secret) = join.secret();
        let entry = Channel { opener: Opener::new(&secret), group: join.group, arrivals: Arrivals::new() };
        self.channels.insert(channel.0, entry);
        match join.group {
            Some(group) => self.actions.push_back(Action::Join { channel, group }),
            None => self.joined(channel, Ok(())),
        }
    }

    /// The driver joined a group, or could not.
    pub fn joined(&mut self, channel: ChannelId, result: Result<(), String>) {
        let ChannelId(channel) = channel;
        self.actions.push_back(Action::Send(match result {
            Ok(()) => ToSender::Joined { channel },
            Err(reason) => ToSender::JoinFailed { channel, reason: control::reason(&reason) },
        }));
    }

    fn leave(&mut self, channel: u32) {
        let Some(Channel { group: Some(group), .. }) = self.channels.remove(&channel) else { return };
        if !self.channels.values().any(|other| other.group == Some(group)) {
            self.actions.push_back(Action::Leave { group });
        }
    }

    /// VMs without any page, or complete from an earlier run before the first announcement. A host that has no VM in this plan is
    /// complete as soon as it is told so.
    pub fn handle_complete_vms(&mut self, vms: &[u16]) {
        if self.config.vms == 0 {
            self.actions.push_back(Action::AllPlaced);
        }
        for vm in vms {
            if self.complete_vms.insert(*vm) {
                self.actions.push_back(Action::FinishVm(*vm));
            }
        }
    }

    /// A VM's image has its final name.
    pub fn handle_finished(&mut self, vm: u16) {
        self.finished_vms.insert(vm);
        self.flush_news();
        self.actions.push_back(Action::Send(ToSender::VmComplete { vm }));
        if self.finished_vms.len() == self.config.vms {
            self.actions.push_back(Action::AllPlaced);
        }
    }

    /// Answers [`Action::AllPlaced`]: tells the sender, with what the process cost.
    pub fn all_complete(&mut self, cpu: Duration, peak_memory_bytes: u64, kernel_drops: u64) -> HostStats {
        let cpu_us = u64::try_from(cpu.as_micros()).unwrap_or(u64::MAX);
        let stats = HostStats { cpu_us, peak_memory_bytes, kernel_drops, ..self.stats.clone() };
        self.actions.push_back(Action::Send(ToSender::AllComplete(stats.clone())));
        stats
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Duration) {
        if self.news_since.is_some_and(|since| now >= since + self.config.report_delay) {
            self.flush_news();
        }
    }

    /// When to call [`Session::handle_timeout`] (and [`Session::handle_drained`], if the sockets are empty).
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        let answer = self.asked.front().map(|asked| {
            let grace = asked.arrived + self.config.reorder_grace;
            if self.is_passed(asked) { grace } else { grace.max(asked.quiet_since + self.config.quiet) }
        });
        let news = self.news_since.map(|since| since + self.config.report_delay);
        answer.into_iter().chain(news).min()
    }

    /// The next thing to do, if any.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }
}
