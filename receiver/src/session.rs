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
//! and, if datagrams seem missing, for a short grace, because TCP may overtake UDP on the way.

use crate::check::{Checked, Job, Outcome, Payload};
use fec::{BlockShape, Collector, Scheme};
use crate::id_hash::IdHash;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;
use wire::control::{self, Announce, Deficit, HostStats, Join, Report, Through, ToHost, ToSender};
use wire::datagram::{self, View};
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
    /// Blocks collected before their announcement came; further ones are dropped and asked for again.
    pub unannounced_blocks_max: usize,
    /// How long an answer to `Through` waits for datagrams that TCP overtook.
    pub reorder_grace: Duration,
    /// How long news of finished blocks may wait for company.
    pub report_delay: Duration,
}

impl SessionConfig {
    /// The usual bounds: 256 MiB in flight, 64 unannounced blocks, 2 ms of grace, 2 ms of delay.
    #[must_use]
    pub fn new(symbol_size_max: u16, vms: usize) -> Self {
        Self {
            symbol_size_max,
            vms,
            in_flight_bytes_max: 256 << 20,
            unannounced_blocks_max: 64,
            reorder_grace: Duration::from_millis(2),
            report_delay: Duration::from_millis(2),
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
}

struct Channel {
    opener: Opener,
    group: Option<IpAddr>,
    received: u64,
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
}

struct Asked {
    through: Through,
    arrived: Duration,
}

/// See the module's text.
pub struct Session {
    config: SessionConfig,
    channels: HashMap<u32, Channel, IdHash>,
    blocks: HashMap<u64, Entry, IdHash>,
    unannounced: usize,
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

impl Session {
    /// A session that has accepted an offer.
    #[must_use]
    pub fn new(config: SessionConfig) -> Self {
        let scratch = vec![0; usize::from(wire::limits::SYMBOL_BYTES_MAX)];
        Self {
            config,
            channels: HashMap::default(),
            blocks: HashMap::default(),
            unannounced: 0,
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
                self.asked.push_back(Asked { through, arrived: now });
                self.answer(now, false);
            }
            ToHost::BlockData { block, bytes } => self.block_data(block, bytes),
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
        let entry = Channel { opener: Opener::new(&secret), group: join.group, received: 0 };
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

    fn announce(
        &mut self,
        now: Duration,
        announce: Announce,
        held: &mut dyn FnMut(&Digest) -> Option<Vec<u16>>,
    ) -> Result<(), ProtocolError> {
        for (id, (len, digest)) in (announce.first_block..).zip(announce.blocks) {
            let shape = BlockShape::for_len(len, self.config.symbol_size_max)
                .map_err(|_| ProtocolError::Announce(id))?;
            if self.done.contains(BlockId(id)) {
                self.tell_done(now, id);
                continue;
            }
            if let Some(complete) = held(&digest) {
                self.stats.blocks_held += 1;
                self.forget(id);
                self.finish_block(now, id, &complete);
                continue;
            }
            match self.blocks.get_mut(&id) {
                Some(entry) if entry.shape == shape => {
                    if entry.digest.is_none() {
                        self.unannounced -= 1;
                        entry.digest = Some(digest);
                    }
                    self.check_if_ready(id);
                }
                Some(_) => {
                    // Collected from datagrams whose header told another length: forged by a member.
                    self.forget(id);
                    self.blocks.insert(id, Entry { shape, digest: Some(digest), stage: Stage::Expected });
                }
                None => {
                    self.blocks.insert(id, Entry { shape, digest: Some(digest), stage: Stage::Expected });
                }
            }
        }
        Ok(())
    }

    fn block_data(&mut self, id: u64, bytes: Vec<u8>) {
        let Some(entry) = self.blocks.get_mut(&id) else { return };
        let Some(digest) = entry.digest else { return };
        if matches!(entry.stage, Stage::Checking) || bytes.len() != entry.shape.len as usize {
            return;
        }
        let shape = entry.shape;
        if let Stage::Collecting(collector) = std::mem::replace(&mut entry.stage, Stage::Checking) {
            self.spare(collector);
        } else {
            self.in_flight_bytes += u64::from(shape.len);
        }
        let payload = Payload::Whole(bytes);
        self.actions.push_back(Action::Check(Box::new(Job { block: BlockId(id), digest, shape, payload })));
    }

    /// Takes in one datagram: authenticates it, opens it into its place, and hands the block out for checking
    /// once it has enough symbols. Datagrams that are not ours are counted and dropped.
    pub fn handle_datagram(&mut self, bytes: &[u8]) {
        if self.accept_datagram(bytes).is_none() {
            self.stats.rejected += 1;
        }
    }

    fn accept_datagram(&mut self, bytes: &[u8]) -> Option<()> {
        let view = datagram::parse(bytes).ok()?;
        let channel = self.channels.get_mut(&view.header.channel.0)?;
        let BlockId(id) = view.header.block;
        let wanted = match self.blocks.get(&id) {
            Some(Entry { stage: Stage::Checking, .. }) => false,
            Some(entry) => {
                let shape = entry.shape;
                if shape.symbol_len() != view.symbol.len() || shape.len != view.header.block_len {
                    return None;
                }
                true
            }
            None => !self.done.contains(BlockId(id)),
        };
        if !wanted {
            // Authentic or not, nobody needs it: spare the decryption.
            channel.received += 1;
            self.stats.datagrams += 1;
            self.stats.redundant += 1;
            return Some(());
        }
        if !self.blocks.contains_key(&id) {
            return self.early_datagram(view);
        }
        self.collect(view)
    }

    /// A symbol of a block not announced yet: authenticated before anything is kept for it.
    fn early_datagram(&mut self, view: View<'_>) -> Option<()> {
        let channel = self.channels.get_mut(&view.header.channel.0)?;
        let shape = BlockShape::for_len(view.header.block_len, self.config.symbol_size_max).ok()?;
        let out = self.scratch.get_mut(..view.symbol.len())?;
        if shape.symbol_len() != view.symbol.len() || channel.opener.open(&view, out).is_err() {
            return None;
        }
        if self.unannounced >= self.config.unannounced_blocks_max {
            channel.received += 1;
            self.over_budget += 1;
            return Some(());
        }
        self.unannounced += 1;
        self.blocks.insert(view.header.block.0, Entry { shape, digest: None, stage: Stage::Expected });
        self.collect(view)
    }

    fn collect(&mut self, view: View<'_>) -> Option<()> {
        let BlockId(id) = view.header.block;
        let channel = self.channels.get_mut(&view.header.channel.0)?;
        let entry = self.blocks.get_mut(&id)?;
        if matches!(entry.stage, Stage::Expected) {
            let bytes = u64::from(entry.shape.len);
            if self.in_flight_bytes + bytes > self.config.in_flight_bytes_max {
                channel.received += 1;
                self.over_budget += 1;
                return Some(());
            }
            self.in_flight_bytes += bytes;
            let collector = match self.spare.pop() {
                Some(mut collector) => {
                    collector.reset(entry.shape);
                    collector
                }
                None => Collector::new(entry.shape),
            };
            entry.stage = Stage::Collecting(collector);
        }
        let Stage::Collecting(collector) = &mut entry.stage else { return None };
        let esi = view.header.esi;
        let new = if esi < entry.shape.symbols() {
            match collector.slot(esi) {
                Some(slot) => {
                    channel.opener.open(&view, slot).ok()?;
                    collector.mark(esi);
                    true
                }
                None => false,
            }
        } else {
            let scheme = Scheme::from_code(view.header.scheme)?;
            let out = self.scratch.get_mut(..view.symbol.len())?;
            channel.opener.open(&view, out).ok()?;
            collector.add_repair(scheme, esi, out).ok()?
        };
        channel.received += 1;
        self.stats.datagrams += 1;
        self.stats.redundant += u64::from(!new);
        self.check_if_ready(id);
        Some(())
    }

    fn check_if_ready(&mut self, id: u64) {
        let Some(entry) = self.blocks.get_mut(&id) else { return };
        let Some(digest) = entry.digest else { return };
        let Stage::Collecting(collector) = &entry.stage else { return };
        let (raptorq, cauchy) = collector.repair_counts();
        if collector.missing_bitmap().count_ones() > raptorq + cauchy {
            return;
        }
        let Stage::Collecting(collector) = std::mem::replace(&mut entry.stage, Stage::Checking) else {
            return;
        };
        let (shape, payload) = (entry.shape, Payload::Symbols(collector));
        self.actions.push_back(Action::Check(Box::new(Job { block: BlockId(id), digest, shape, payload })));
    }

    /// Takes back a block that was handed out.
    pub fn handle_checked(&mut self, now: Duration, checked: Checked) {
        let BlockId(id) = checked.block;
        match checked.outcome {
            Outcome::Placed { how, reopened, complete_vms } => {
                how.count(&mut self.stats);
                for vm in reopened {
                    self.complete_vms.remove(&vm);
                    self.finished_vms.remove(&vm);
                }
                if let Some(collector) = checked.collector {
                    self.spare(collector);
                }
                self.forget(id);
                self.finish_block(now, id, &complete_vms);
            }
            Outcome::NeedMore | Outcome::Mismatch => {
                if matches!(checked.outcome, Outcome::Mismatch) {
                    self.stats.digest_mismatches += 1;
                }
                let Some(entry) = self.blocks.get_mut(&id) else { return };
                entry.stage = match checked.collector {
                    Some(collector) => Stage::Collecting(collector),
                    None => {
                        self.in_flight_bytes -= u64::from(entry.shape.len);
                        Stage::Expected
                    }
                };
                let deficits = self.deficit(id).into_iter().collect();
                self.send_report(Report { seq: self.answered_seq, deficits, ..Report::default() });
            }
            Outcome::Failed(reason) => {
                let reason = control::reason(&reason);
                self.actions.push_back(Action::Send(ToSender::Failed { reason: reason.clone() }));
                self.actions.push_back(Action::End { released: false, reason: Some(reason) });
            }
        }
    }

    fn finish_block(&mut self, now: Duration, id: u64, complete_vms: &[u16]) {
        self.done.insert(BlockId(id));
        self.tell_done(now, id);
        for vm in complete_vms {
            if self.complete_vms.insert(*vm) {
                self.actions.push_back(Action::FinishVm(*vm));
            }
        }
    }

    /// VMs without any page, or complete from an earlier run before the first announcement.
    pub fn handle_complete_vms(&mut self, vms: &[u16]) {
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

    /// The driver has read all datagrams that the sockets held.
    pub fn handle_drained(&mut self, now: Duration) {
        self.answer(now, true);
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
        let answer = self.asked.front().map(|asked| asked.arrived + self.config.reorder_grace);
        let news = self.news_since.map(|since| since + self.config.report_delay);
        answer.into_iter().chain(news).min()
    }

    /// The next thing to do, if any.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Answers the `Through` messages that can be answered: nothing missing, or drained and waited for.
    fn answer(&mut self, now: Duration, drained: bool) {
        let mut report = Report::default();
        while let Some(asked) = self.asked.front() {
            let arrived_all = asked.through.sent.iter().all(|(channel, sent)| {
                self.channels.get(channel).is_none_or(|channel| channel.received >= *sent)
            });
            if !arrived_all && !(drained && now >= asked.arrived + self.config.reorder_grace) {
                break;
            }
            let Some(Asked { through, .. }) = self.asked.pop_front() else { break };
            report.seq = through.seq;
            self.answered_seq = through.seq;
            report.received = through
                .sent
                .iter()
                .filter_map(|(channel, _)| Some((*channel, self.channels.get(channel)?.received)))
                .collect();
            let deficits = through.blocks.iter().flat_map(|range| range.ids());
            report.deficits.extend(deficits.filter_map(|BlockId(id)| self.deficit(id)));
        }
        if report.seq != 0 {
            report.deficits.truncate(wire::limits::DEFICITS_MAX);
            self.send_report(report);
        }
    }

    fn deficit(&self, id: u64) -> Option<Deficit> {
        let entry = self.blocks.get(&id)?;
        match &entry.stage {
            Stage::Checking => None,
            Stage::Expected => {
                let missing = u128::MAX >> (128 - entry.shape.symbols());
                Some(Deficit { block: id, missing, cauchy: 0, raptorq: 0 })
            }
            Stage::Collecting(collector) => {
                let (raptorq, cauchy) = collector.repair_counts();
                let (raptorq, cauchy) =
                    (u16::try_from(raptorq).unwrap_or(u16::MAX), u8::try_from(cauchy).unwrap_or(u8::MAX));
                Some(Deficit { block: id, missing: collector.missing_bitmap(), cauchy, raptorq })
            }
        }
    }

    fn tell_done(&mut self, now: Duration, id: u64) {
        self.news.push(BlockId(id));
        self.news_since.get_or_insert(now);
    }

    fn flush_news(&mut self) {
        if !self.news.is_empty() {
            self.send_report(Report { seq: self.answered_seq, ..Report::default() });
        }
    }

    /// Sends a report with the news of done blocks on top.
    fn send_report(&mut self, mut report: Report) {
        self.news.sort_unstable();
        self.news.dedup();
        report.done = control::ranges(self.news.drain(..));
        self.news_since = None;
        let mut rest = report.done.split_off(report.done.len().min(wire::limits::RANGES_MAX));
        self.actions.push_back(Action::Send(ToSender::Report(report)));
        while !rest.is_empty() {
            let after = rest.split_off(rest.len().min(wire::limits::RANGES_MAX));
            let more = Report { seq: self.answered_seq, done: rest, ..Report::default() };
            self.actions.push_back(Action::Send(ToSender::Report(more)));
            rest = after;
        }
    }

    /// Drops what is kept for a block.
    fn forget(&mut self, id: u64) {
        let Some(entry) = self.blocks.remove(&id) else { return };
        if entry.digest.is_none() {
            self.unannounced -= 1;
        }
        if !matches!(entry.stage, Stage::Expected) {
            self.in_flight_bytes -= u64::from(entry.shape.len);
        }
        if let Stage::Collecting(collector) = entry.stage {
            self.spare(collector);
        }
    }

    fn spare(&mut self, collector: Collector) {
        if self.spare.len() < SPARE_COLLECTORS_MAX {
            self.spare.push(collector);
        }
    }
}
