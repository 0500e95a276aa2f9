//! The hosts of a session: their phases, and who is waited for.

use super::flight::At;
use super::{Event, Session};
use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::time::Duration;
use wire::control::{self, Announce, HostStats, Through, ToHost};
use wire::{BlockId, BlockSet, Digest, limits};

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

/// While nothing can be sent, hosts are asked no more often.
const FLUSH_INTERVAL: Duration = Duration::from_millis(1);
/// Questions under way to one host.
const ASKS_MAX: usize = 2;
/// See `Session::patience`.
const NUDGE: Duration = Duration::from_millis(15);
const NUDGES_MAX: usize = 16;
const NUDGE_FINISHING: Duration = Duration::from_millis(50);
const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// Slowness is judged over so long …
const SLOW_WINDOW: Duration = Duration::from_millis(400);
/// … and is holding the others up for this share of it. Equal hosts that take turns do not come near.
const SLOW_SHARE: f64 = 0.7;
/// A host that was too slow so often stays off its groups.
const TIMES_APART_MAX: u32 = 3;

/// A question `Through` under way.
pub(super) struct Ask {
    pub(super) seq: u64,
    pub(super) at: Duration,
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
    pub(super) announced_bytes: u64,
    unannounced: Vec<u64>,
    /// Blocks to be sent whole over the control channel.
    pub(super) owed: BTreeSet<u64>,
    /// Those under way there, with their lengths.
    pub(super) catching_up: BTreeMap<u64, u32>,
    pub(super) held: HashSet<Digest>,
    pub(super) last_progress: Duration,
    /// For how long it held the group up, with few others, since `blocking_since`.
    pub(super) blocking: Duration,
    pub(super) blocking_since: Duration,
    charged_at: Duration,
    /// Smoothed time from question to answer.
    pub(super) latency: Duration,
    /// How often it was too slow for its groups, or could not join.
    pub(super) times_apart: u32,
    /// Smoothed share of datagrams lost on the way to it.
    pub(super) loss: f64,
    /// Per channel id, at the last report.
    pub(super) counted: BTreeMap<u32, Counted>,
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
            announced_bytes: 0,
            unannounced: Vec::new(),
            owed: BTreeSet::new(),
            catching_up: BTreeMap::new(),
            held: HashSet::new(),
            last_progress: Duration::ZERO,
            blocking: Duration::ZERO,
            blocking_since: Duration::ZERO,
            charged_at: Duration::ZERO,
            latency: Duration::ZERO,
            times_apart: 0,
            loss: 0.0,
            counted: BTreeMap::new(),
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
    fn has_caught_up(&self) -> bool {
        const BLOCKS: usize = 16;
        self.connected
            && self.times_apart < TIMES_APART_MAX
            && self.owed.len() + self.catching_up.len() < BLOCKS
    }

    fn has_work(&self) -> bool {
        !self.owed.is_empty() || !self.catching_up.is_empty() || self.done_bytes < self.announced_bytes
    }
}

impl Session {
    /// Queues a message for a host, behind the announcements that it may refer to.
    pub(super) fn say(&mut self, host: usize, message: ToHost) {
        self.flush_announcements(host);
        self.control.push_back((host, message));
    }

    pub(super) fn announce(&mut self, host: usize, id: u64) {
        let len = self.blocks[super::index(BlockId(id))].len;
        let entry = &mut self.hosts[host];
        if entry.is_over() {
            return;
        }
        entry.announced_bytes += u64::from(len);
        if entry.connected {
            entry.unannounced.push(id);
        }
    }

    pub(super) fn flush_announcements(&mut self, host: usize) {
        let ids = std::mem::take(&mut self.hosts[host].unannounced);
        for range in control::ranges(ids.into_iter().map(BlockId)) {
            let ids: Vec<BlockId> = range.ids().collect();
            for chunk in ids.chunks(limits::ANNOUNCED_MAX) {
                let blocks = chunk.iter().map(|id| {
                    let block = &self.blocks[super::index(*id)];
                    (block.len, block.digest)
                });
                let announce = Announce { first_block: chunk[0].0, blocks: blocks.collect() };
                self.control.push_back((host, ToHost::Announce(announce)));
            }
        }
    }

    /// Announces all blocks so far to a host that has just connected. Those that it seems to hold are asked for,
    /// those whose time on the group has passed are owed.
    pub(super) fn announce_all(&mut self, host: usize) {
        let entry = &mut self.hosts[host];
        entry.done = BlockSet::default();
        entry.done_bytes = 0;
        entry.announced_bytes = 0;
        entry.unannounced.clear();
        entry.owed.clear();
        for id in 0..self.blocks.len() as u64 {
            if !self.needs(host, id) {
                continue;
            }
            self.announce(host, id);
            let block = &self.blocks[super::index(BlockId(id))];
            if block.sent {
                if self.hosts[host].held.contains(&block.digest) {
                    self.hosts[host].to_ask.push(id);
                } else {
                    self.hosts[host].owed.insert(id);
                }
            }
        }
    }

    pub(super) fn needs(&self, host: usize, id: u64) -> bool {
        let segment = self.blocks[super::index(BlockId(id))].segment;
        self.channels[self.segments[segment].channel].spec.hosts.contains(&host)
    }

    pub(super) fn set_phase(&mut self, host: usize, phase: Phase, now: Duration) {
        if self.hosts[host].phase == phase {
            return;
        }
        self.hosts[host].phase = phase.clone();
        self.hosts[host].blocking = Duration::ZERO;
        self.hosts[host].blocking_since = now;
        if phase != Phase::Active {
            self.take_off_flights(host);
        }
        self.events.push_back(Event::Phase { host, phase });
    }

    /// Fails a host: it is named, with the reason, and never waited for again.
    pub fn fail(&mut self, host: usize, reason: impl Into<String>, now: Duration) {
        if self.hosts[host].is_over() {
            return;
        }
        let reason = reason.into();
        if self.hosts[host].connected {
            self.say(host, ToHost::Cancel { reason: control::reason(&reason) });
        }
        self.hosts[host].owed.clear();
        self.hosts[host].catching_up.clear();
        self.set_phase(host, Phase::Failed { reason }, now);
    }

    /// Ends the session: every host that is not complete is told so and fails with `reason`.
    pub fn cancel(&mut self, reason: &str, now: Duration) {
        self.cancelled = true;
        for host in 0..self.hosts.len() {
            self.fail(host, reason, now);
        }
    }

    /// Takes the host off every block in flight; what it lacks of them it owes.
    fn take_off_flights(&mut self, host: usize) {
        let ids: Vec<u64> =
            self.in_flight.iter().filter(|(_, f)| f.hosts.contains_key(&host)).map(|(id, _)| *id).collect();
        for id in ids {
            self.owe(host, id);
        }
        let entry = &mut self.hosts[host];
        entry.acked_bytes = entry.sent_bytes;
        // Of the others, which it seemed to hold, nobody will ask any more.
        entry.owed.extend(entry.to_ask.drain(..));
    }

    /// A silent host speaks again. It was on its groups all the while, so it may well have what it owes: it is asked
    /// first, and only what it lacks is sent whole.
    pub(super) fn resume(&mut self, host: usize, now: Duration) {
        self.set_phase(host, Phase::Active, now);
        let entry = &mut self.hosts[host];
        if entry.owed.len() <= limits::DEFICITS_MAX {
            entry.to_ask.extend(std::mem::take(&mut entry.owed));
        }
    }

    /// How long a host may be silent: the configured time, or much longer than half of the hosts take to answer, since
    /// then the machines are busy. If half of them are silent at once, it is the network or this host that does not hear.
    fn silence_max(&self, now: Duration) -> Duration {
        let here: Vec<&Host> = self.hosts.iter().filter(|host| host.connected && !host.is_over()).collect();
        let mut latencies: Vec<Duration> = here.iter().map(|host| host.latency).collect();
        latencies.sort_unstable();
        let median = latencies.get(latencies.len() / 2).copied().unwrap_or_default();
        let lag = self.config.lag_limit.max(median * 4);
        let is_silent = |host: &&&Host| host.asks.front().is_some_and(|ask| now > ask.at + lag);
        let silent = here.iter().filter(is_silent).count();
        if silent > 1 && silent * 2 >= here.len() { lag * 8 } else { lag }
    }

    /// Sending starts when every host has accepted or failed, or those that have not had their time.
    pub(super) fn has_started(&mut self, now: Duration) -> bool {
        if self.started_at.is_some() {
            return true;
        }
        let absent = || self.hosts.iter().filter(|host| host.phase == Phase::Absent);
        let tried = absent().all(|host| host.last_trouble.is_some());
        let grace = if tried { self.config.start_grace } else { self.config.start_wait_max };
        if absent().next().is_none() || now >= grace {
            self.started_at = Some(now);
        }
        self.started_at.is_some()
    }

    /// Judges silence and slowness.
    pub(super) fn judge_hosts(&mut self, now: Duration) {
        self.charge_full_window(now);
        self.ask_again(now);
        let (lag, timeout) = (self.silence_max(now), self.config.host_timeout);
        for host in 0..self.hosts.len() {
            let entry = &mut self.hosts[host];
            let silent = entry.asks.front().is_some_and(|ask| now > ask.at + lag);
            let stuck = now > entry.last_progress + timeout;
            match &entry.phase {
                Phase::Active if silent => self.set_phase(host, Phase::Suspended, now),
                Phase::Active if now > entry.blocking_since + SLOW_WINDOW => {
                    let slow = entry.blocking > SLOW_WINDOW.mul_f64(SLOW_SHARE);
                    entry.blocking = Duration::ZERO;
                    entry.blocking_since = now;
                    if slow && self.may_serve_apart() {
                        self.serve_apart(host, now);
                    }
                }
                Phase::Unicast if !stuck && entry.has_caught_up() => {
                    self.set_phase(host, Phase::Active, now);
                    self.join_open_channels(host);
                }
                Phase::Active | Phase::Unicast if stuck && entry.has_work() => {
                    let reason = format!("no progress for {} s", timeout.as_secs());
                    self.fail(host, reason, now);
                }
                Phase::Absent | Phase::Suspended if stuck => {
                    let trouble = entry.last_trouble.as_ref().map(|trouble| format!(": {trouble}"));
                    let trouble = trouble.unwrap_or_default();
                    let reason = format!("no answer for {} s{trouble}", timeout.as_secs());
                    self.fail(host, reason, now);
                }
                _ => {}
            }
        }
    }

    /// Whether yet another host may be taken off its groups for slowness. If half of them are slow, slow is normal.
    fn may_serve_apart(&self) -> bool {
        let apart = self.hosts.iter().filter(|host| host.phase == Phase::Unicast).count();
        let here = self.hosts.iter().filter(|host| !host.is_over() && host.connected).count();
        (apart + 1) * 2 <= here
    }

    fn serve_apart(&mut self, host: usize, now: Duration) {
        for channel in 0..self.channels.len() {
            self.leave(host, channel);
        }
        self.hosts[host].times_apart = self.hosts[host].times_apart.saturating_add(1);
        self.set_phase(host, Phase::Unicast, now);
    }

    /// Charges the hosts that hold up the others, if they are few, with the time since they were last charged.
    pub(super) fn charge(&mut self, blockers: &[usize], of: usize, now: Duration) {
        if of < 2 || blockers.len() * 2 > of {
            return;
        }
        for host in blockers {
            let entry = &mut self.hosts[*host];
            entry.blocking += now.saturating_sub(entry.charged_at).min(self.config.through_interval);
            entry.charged_at = now;
        }
    }

    /// A block that a host said nothing of for long is asked about again.
    fn ask_again(&mut self, now: Duration) {
        const PATIENCE: Duration = Duration::from_millis(500);
        for (id, flight) in &mut self.in_flight {
            for (host, at) in &mut flight.hosts {
                if matches!(at, At::Pending(since) if now > *since + PATIENCE) {
                    *at = At::Sending;
                    self.hosts[*host].to_ask.push(*id);
                }
            }
        }
    }

    /// Asks each host what it lacks of the blocks transmitted since the last question. `flush`: nothing else can be
    /// sent now, so do not wait for the interval.
    pub(super) fn ask_hosts(&mut self, now: Duration, flush: bool) {
        for host in 0..self.hosts.len() {
            let entry = &self.hosts[host];
            if !entry.connected || entry.is_over() {
                continue;
            }
            // One answer tells as much as several that come at once.
            let interval = if flush { FLUSH_INTERVAL } else { self.config.through_interval };
            let may = now >= entry.last_ask + interval && entry.asks.len() < ASKS_MAX;
            let unasked = entry.asks.back().map_or(entry.acked_bytes, |ask| ask.sent_bytes);
            let unasked = entry.is_active() && entry.sent_bytes - unasked > entry.credit / 4;
            let unanswered = flush && entry.under_way() > 0 && entry.asks.is_empty();
            let wanted = !entry.to_ask.is_empty() || unasked || unanswered;
            if (may && wanted) || now >= entry.last_ask + self.patience(host) {
                self.ask(host, now);
            }
        }
    }

    /// After how long a host is asked anew although there is nothing new to ask: TCP finds out quickly that a segment was
    /// lost if others follow it, and after 200 ms if none do.
    fn patience(&self, host: usize) -> Duration {
        let entry = &self.hosts[host];
        let finishing = self.encoding_done && entry.done_bytes == entry.announced_bytes;
        if !entry.asks.is_empty() && entry.asks.len() < NUDGES_MAX {
            NUDGE
        } else if finishing {
            NUDGE_FINISHING
        } else {
            KEEP_ALIVE
        }
    }

    fn ask(&mut self, host: usize, now: Duration) {
        let sent: Vec<(u32, u64)> = (self.channels.iter().enumerate())
            .filter(|(channel, c)| self.hosts[host].is_member(*channel, now) && c.sent > 0)
            .map(|(_, c)| (c.spec.id.0, c.sent))
            .collect();
        let entry = &mut self.hosts[host];
        let mut blocks = std::mem::take(&mut entry.to_ask);
        // What is on its way whole needs no question.
        blocks.retain(|id| !entry.owed.contains(id) && !entry.catching_up.contains_key(id));
        blocks.sort_unstable();
        blocks.dedup();
        entry.seq += 1;
        entry.last_ask = now;
        let (seq, sent_bytes) = (entry.seq, entry.sent_bytes);
        for id in &blocks {
            if let Some(at) = self.in_flight.get_mut(id).and_then(|flight| flight.hosts.get_mut(&host)) {
                *at = At::Asked;
            }
        }
        let listed = control::ranges(blocks.iter().copied().map(BlockId));
        entry.asks.push_back(Ask { seq, at: now, sent_bytes, sent: sent.clone(), blocks });
        self.say(host, ToHost::Through(Through { seq, sent, blocks: listed }));
    }

    /// When the next question is due.
    pub(super) fn ask_due(&self) -> Option<Duration> {
        let asking =
            (0..self.hosts.len()).filter(|host| self.hosts[*host].connected && !self.hosts[*host].is_over());
        let due = asking.map(|host| {
            let entry = &self.hosts[host];
            let may = !entry.to_ask.is_empty() && entry.asks.len() < ASKS_MAX;
            let wait = if may { self.config.through_interval } else { self.patience(host) };
            entry.last_ask + wait
        });
        due.min()
    }
}
