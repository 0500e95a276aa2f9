//! Questions: what does a host lack of the blocks transmitted?

use super::Session;
use super::flight::At;
use super::host::Ask;
use std::time::Duration;
use wire::BlockId;
use wire::control::{self, Through, ToHost};

/// Blocks in one question at most: their deficits fit one report.
const ASK_BLOCKS_MAX: usize = wire::limits::DEFICITS_MAX;
/// A block asked about that is neither done nor lacking is being decoded; after so long it is asked about again.
const PATIENCE: Duration = Duration::from_millis(500);
/// While nothing can be sent, hosts are asked no more often.
const FLUSH_INTERVAL: Duration = Duration::from_millis(1);
/// Questions under way to one host.
const ASKS_MAX: usize = 2;
/// See `Session::patience`.
const NUDGE: Duration = Duration::from_millis(15);
const NUDGES_MAX: usize = 16;
const NUDGE_FINISHING: Duration = Duration::from_millis(50);
const KEEP_ALIVE: Duration = Duration::from_secs(1);

impl Session {
    /// A block that a host said nothing of for long is asked about again.
    pub(super) fn ask_again(&mut self, now: Duration) {
        for (id, flight) in &mut self.in_flight {
            for (host, at) in &mut flight.hosts {
                if matches!(at, At::Pending(since) if now > *since + PATIENCE) {
                    *at = At::Sending;
                    self.hosts[*host].to_ask.push(*id);
                }
            }
        }
        for entry in &mut self.hosts {
            let due = entry.undecided.partition_point(|(since, _)| now > *since + PATIENCE);
            entry.to_ask.extend(entry.undecided.drain(..due).map(|(_, id)| id));
        }
    }

    /// Asks each host what it lacks of the blocks transmitted since the last question. `flush`: nothing else can be
    /// sent now, so do not wait for the interval.
    pub(super) fn ask_hosts(&mut self, now: Duration, flush: bool) {
        for host in 0..self.hosts.len() {
            if self.ask_due_at(host, flush).is_some_and(|due| now >= due) {
                self.ask(host, now);
            }
        }
    }

    /// Asks every host of which answers are not outstanding, because of a moment that answers are to be told apart by.
    pub(super) fn ask_all(&mut self, now: Duration) {
        for host in 0..self.hosts.len() {
            let entry = &self.hosts[host];
            if entry.is_active() && entry.asks.len() < ASKS_MAX && entry.under_way() > 0 {
                self.ask(host, now);
            }
        }
    }

    /// When the next question is due.
    pub(super) fn ask_due(&self, flush: bool) -> Option<Duration> {
        (0..self.hosts.len()).filter_map(|host| self.ask_due_at(host, flush)).min()
    }

    fn ask_due_at(&self, host: usize, flush: bool) -> Option<Duration> {
        let entry = &self.hosts[host];
        if !entry.connected || entry.is_over() {
            return None;
        }
        let nudge = entry.last_ask + self.patience(host);
        if entry.asks.len() >= ASKS_MAX {
            return Some(nudge);
        }
        let asked = entry.asks.back().map_or(entry.acked_bytes, |ask| ask.sent_bytes);
        let unasked = entry.is_active() && entry.sent_bytes - asked > entry.credit / 4;
        let unanswered = flush && entry.under_way() > 0 && entry.asks.is_empty();
        if entry.to_ask.is_empty() && !unasked && !unanswered {
            return Some(nudge);
        }
        // One answer tells as much as several that come at once; and who waits for credit gets it with fewer questions, of
        // more blocks each.
        let interval = if flush && self.encoding_done && !self.has_source() {
            FLUSH_INTERVAL
        } else {
            self.config.through_interval
        };
        Some(nudge.min(entry.last_ask + interval))
    }

    /// After how long a host is asked anew although there is nothing new to ask: TCP finds out quickly that a segment was
    /// lost if others follow it, and after 200 ms if none do.
    fn patience(&self, host: usize) -> Duration {
        let entry = &self.hosts[host];
        let finishing = self.encoding_done && entry.has_all();
        if !entry.asks.is_empty() && entry.asks.len() < NUDGES_MAX {
            NUDGE
        } else if finishing {
            NUDGE_FINISHING
        } else {
            KEEP_ALIVE.min(self.config.host_timeout / 4)
        }
    }

    fn ask(&mut self, host: usize, now: Duration) {
        let sent: Vec<(u32, u64)> = (self.channels.iter().enumerate())
            .filter(|(channel, c)| self.hosts[host].is_member(*channel, now) && c.sent > 0)
            .map(|(_, c)| (c.spec.id.0, c.sent))
            .collect();
        let entry = &mut self.hosts[host];
        let mut blocks = std::mem::take(&mut entry.to_ask);
        // What is on its way whole, or done meanwhile, needs no question.
        blocks.retain(|id| {
            !entry.owed.contains(id)
                && !entry.catching_up.contains_key(id)
                && !entry.done.contains(BlockId(*id))
        });
        blocks.sort_unstable();
        blocks.dedup();
        entry.to_ask = blocks.split_off(blocks.len().min(ASK_BLOCKS_MAX));
        entry.seq += 1;
        entry.last_ask = now;
        let (seq, sent_bytes) = (entry.seq, entry.sent_bytes);
        for id in &blocks {
            if let Some(at) = self.in_flight.get_mut(id).and_then(|flight| flight.hosts.get_mut(&host)) {
                *at = At::Asked;
            }
        }
        let listed = control::ranges(blocks.iter().copied().map(BlockId));
        let (at, listened) = (self.pacer.mark(now), self.listened);
        entry.asks.push_back(Ask { seq, at, listened, sent_bytes, sent: sent.clone(), blocks });
        self.say(host, ToHost::Through(Through { seq, sent, blocks: listed }));
    }
}
