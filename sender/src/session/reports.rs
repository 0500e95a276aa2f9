//! What hosts say.

use super::flight::At;
use super::host::{Counted, Membership, Phase};
use super::{Event, Session, index};
use crate::rate::{Mark, Sample};
use std::collections::BTreeSet;
use std::time::Duration;
use wire::control::{Accept, Deficit, HostStats, RefuseCause, Report, ToSender};
use wire::{BlockId, ChannelId};

/// Digests that one host may claim to hold: 32 MiB of them, for 100 GiB of images and more.
const HELD_MAX: usize = 1 << 20;

/// A host that claims to lack a block, sent whole, so often has failed …
const RETOLD_MAX: u32 = 4;
/// … and so has one that does it once for so many blocks: a symbol forged by a member may be to blame for a few.
const RETOLD_BLOCKS_MAX: usize = 1024;

/// Weight of the newest measurement in a host's smoothed loss.
const LOSS_WEIGHT: f64 = 0.2;

impl Session {
    /// The connection to a host is up, and its offer is on the way. What it knew of an earlier connection is void.
    pub fn handle_connected(&mut self, host: usize, now: Duration) {
        let channels = self.channels.len();
        self.hosts[host].connections += 1;
        if self.hosts[host].connections > self.config.connections_max {
            let times = self.config.connections_max;
            self.fail(host, format!("connected {times} times without getting any further"), now);
            return;
        }
        let entry = &mut self.hosts[host];
        entry.connected = false;
        entry.held.clear();
        entry.membership = vec![Membership::No; channels];
        entry.asks.clear();
        entry.to_ask.clear();
        entry.counted.clear();
        entry.catching_up.clear();
        entry.last_heard = now;
    }

    /// The connection is lost; it may come back until the host's time is over.
    pub fn handle_disconnected(&mut self, host: usize, now: Duration) {
        let entry = &mut self.hosts[host];
        if !entry.connected || entry.is_over() {
            return;
        }
        entry.connected = false;
        entry.asks.clear();
        entry.membership.fill(Membership::No);
        entry.catching_up.clear();
        self.set_phase(host, Phase::Absent, now);
    }

    /// Datagrams cannot be sent to this host alone: what only it needs goes over its control connection.
    pub fn forbid_unicast(&mut self, host: usize) {
        self.hosts[host].no_unicast = true;
    }

    /// Why a host cannot be reached at the moment; told if its time runs out.
    pub fn note(&mut self, host: usize, reason: String) {
        self.hosts[host].last_trouble = Some(reason);
    }

    /// A host's message.
    pub fn handle_control(&mut self, host: usize, message: ToSender, now: Duration) {
        if self.hosts[host].is_over() {
            return;
        }
        self.stalled = false;
        self.hosts[host].last_heard = now;
        let accepted = self.hosts[host].connected;
        match message {
            ToSender::Held { digests } if !accepted => {
                let held = &mut self.hosts[host].held;
                let room = HELD_MAX.saturating_sub(held.len());
                held.extend(digests.into_iter().take(room));
            }
            ToSender::Accept(accept) if !accepted => self.accepted(host, &accept, now),
            // Its connection is tried again until its time is over.
            ToSender::Refuse { cause: RefuseCause::Busy, reason } => self.note(host, reason),
            ToSender::Refuse { reason, .. } | ToSender::Failed { reason } => self.fail(host, reason, now),
            _ if !accepted => self.fail(host, "spoke before it accepted the offer", now),
            ToSender::Joined { channel } => self.handle_joined(host, ChannelId(channel), Ok(()), now),
            ToSender::JoinFailed { channel, reason } => {
                self.handle_joined(host, ChannelId(channel), Err(reason), now);
            }
            ToSender::Report(report) => self.report(host, report, now),
            ToSender::VmComplete { vm } => {
                self.hosts[host].last_progress = now;
                self.events.push_back(Event::VmComplete { host, vm });
            }
            ToSender::AllComplete(stats) => self.completed(host, stats, now),
            _ => self.fail(host, "sent a message that has no place in a transfer", now),
        }
    }

    fn accepted(&mut self, host: usize, accept: &Accept, now: Duration) {
        let entry = &mut self.hosts[host];
        entry.connected = true;
        entry.credit = accept.credit_bytes;
        entry.last_progress = now;
        entry.useful_since = now;
        entry.useful_bytes = 0;
        entry.last_ask = now;
        self.set_phase(host, Phase::Active, now);
        self.announce_all(host);
        self.flush_announcements(host);
        self.join_open_channels(host);
    }

    fn completed(&mut self, host: usize, stats: HostStats, now: Duration) {
        self.hosts[host].stats = Some(stats);
        for channel in 0..self.channels.len() {
            self.leave(host, channel);
        }
        self.set_phase(host, Phase::Complete, now);
    }

    /// What a complete host said that the transfer cost there.
    #[must_use]
    pub fn host_stats(&self, host: usize) -> Option<&HostStats> {
        self.hosts[host].stats.as_ref()
    }

    fn report(&mut self, host: usize, report: Report, now: Duration) {
        if self.hosts[host].phase == Phase::Suspended {
            self.resume(host, now);
        }
        self.mark_all_done(host, &report.done, now);
        let lacking: BTreeSet<u64> = report.deficits.iter().map(|deficit| deficit.block).collect();
        self.answered(host, report.seq, &report.received, &lacking, now);
        for deficit in report.deficits {
            self.deficit(host, deficit, now);
        }
    }

    /// Everything up to question `seq` is answered: credit comes back, losses are counted, and what the answers
    /// did not name is being decoded.
    fn answered(
        &mut self,
        host: usize,
        seq: u64,
        received: &[(u32, u64)],
        lacking: &BTreeSet<u64>,
        now: Duration,
    ) {
        let mut progress = false;
        while self.hosts[host].asks.front().is_some_and(|ask| ask.seq <= seq) {
            let Some(ask) = self.hosts[host].asks.pop_front() else { break };
            progress |= ask.sent_bytes > self.hosts[host].acked_bytes;
            let latency = &mut self.hosts[host].latency;
            *latency = (*latency * 3 + now.saturating_sub(ask.at.at)) / 4;
            self.hosts[host].acked_bytes = self.hosts[host].acked_bytes.max(ask.sent_bytes);
            for id in ask.blocks {
                self.settle(host, id, lacking, now);
            }
            if ask.seq == seq {
                self.count_losses(host, (ask.at, &ask.sent), received, now);
            }
        }
        if progress {
            self.hosts[host].last_progress = now;
        }
    }

    /// A block that was asked about and is not done.
    fn settle(&mut self, host: usize, id: u64, lacking: &BTreeSet<u64>, now: Duration) {
        if self.hosts[host].done.contains(BlockId(id)) {
            return;
        }
        match self.in_flight.get_mut(&id).and_then(|flight| flight.hosts.get_mut(&host)) {
            Some(at) if *at == At::Asked => *at = At::Pending(now),
            Some(_) => {}
            // Asked because the host seemed to hold it from an earlier run, and it does not.
            None if lacking.contains(&id) => {
                self.hosts[host].owed.insert(id);
            }
            None if self.hosts[host].owed.contains(&id) => {}
            None => self.hosts[host].undecided.push((now, id)),
        }
    }

    fn deficit(&mut self, host: usize, deficit: Deficit, now: Duration) {
        let id = deficit.block;
        let entry = &mut self.hosts[host];
        // A host is sent nothing that it does not need, whatever it claims to lack.
        if !entry.announced.contains(BlockId(id)) || entry.done.contains(BlockId(id)) {
            return;
        }
        if entry.catching_up.remove(&id).is_some() {
            self.whole_and_lacking(host, id, now);
            return;
        }
        let symbols = self.shape(id).all_symbols();
        let flight = self.in_flight.get_mut(&id);
        let Some(flight) = flight.filter(|flight| flight.hosts.contains_key(&host)) else {
            // Asked about after its time on the group, or damaged: nobody else will send it.
            if self.blocks[index(BlockId(id))].sent && !self.recall_part(host, deficit, now) {
                self.hosts[host].owed.insert(id);
            }
            return;
        };
        let at = flight.hosts.get_mut(&host).expect("looked up just before");
        if matches!(at, At::Sending | At::Deficit(_)) {
            // An answer to an older question, or said twice: symbols are on their way.
            return;
        }
        let missing = (deficit.missing & symbols).count_ones();
        if missing == 0 {
            // Nothing lacks, and yet it is not done: no symbol will help.
            self.owe(host, id);
            return;
        }
        *at = At::Deficit(deficit);
        flight.first_deficit.get_or_insert(now);
        self.dirty.insert(id);
        self.hosts[host].claimed += u64::from(missing);
    }

    /// Sent whole and not accepted: sent again, but not for ever. TLS damages nothing.
    pub(super) fn whole_and_lacking(&mut self, host: usize, id: u64, now: Duration) {
        let entry = &mut self.hosts[host];
        let times = entry.retold.entry(id).or_insert(0);
        *times += 1;
        if *times >= RETOLD_MAX || entry.retold.len() > RETOLD_BLOCKS_MAX {
            self.fail(
                host,
                format!("block {id} was sent whole again and again, and it still claims to lack it"),
                now,
            );
            return;
        }
        entry.owed.insert(id);
    }

    /// The first datagrams of a channel go out: the members' first reports tell already what became of them.
    pub(super) fn count_from_here(&mut self, channel: usize, now: Duration) {
        let (id, mark) = (self.channels[channel].spec.id.0, self.pacer.mark(now));
        for host in self.channels[channel].spec.hosts.clone() {
            if self.hosts[host].is_member(channel, now) {
                let entry = &mut self.hosts[host];
                if entry.counted.is_empty() {
                    entry.counted_at = mark;
                }
                entry.counted.insert(id, Counted { sent: 0, missing: 0 });
            }
        }
    }

    /// What was sent on a channel and never arrived, as far as the report tells: datagrams that arrived after the
    /// question hide as many losses at first, but not for long.
    fn count_losses(
        &mut self,
        host: usize,
        (until, sent): (Mark, &[(u32, u64)]),
        received: &[(u32, u64)],
        now: Duration,
    ) {
        let since = std::mem::replace(&mut self.hosts[host].counted_at, until);
        let (mut sent_more, mut lost) = (0, 0);
        for (channel, sent) in sent {
            let Some((_, received)) = received.iter().find(|(id, _)| id == channel) else { continue };
            let missing = sent.saturating_sub(*received);
            match self.hosts[host].counted.get_mut(channel) {
                Some(before) => {
                    sent_more += sent.saturating_sub(before.sent);
                    lost += missing.saturating_sub(before.missing);
                    *before = Counted { sent: *sent, missing: missing.max(before.missing) };
                }
                // What went out before the host was a member is no loss.
                None => {
                    self.hosts[host].counted.insert(*channel, Counted { sent: *sent, missing });
                }
            }
        }
        if sent_more == 0 {
            return;
        }
        // What was missing before and is counted only now is no loss of these.
        let lost = lost.min(sent_more);
        #[expect(clippy::cast_precision_loss, reason = "counts of datagrams between two reports")]
        let loss = lost as f64 / sent_more as f64;
        let entry = &mut self.hosts[host];
        entry.loss += (loss - entry.loss) * LOSS_WEIGHT;
        if self.pacer.observe(host, Sample { since, until, sent: sent_more, lost }, now) {
            self.ask_all(now);
        }
    }
}
