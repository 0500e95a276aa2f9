//! Questions: what does a host lack of the blocks transmitted?

use super::Session;
use super::flight::At;
use super::host::Ask;
use std::time::Duration;
use wire::BlockId;
use wire::control::{self, Through, ToHost};

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
        // Who waits for credit gets it with fewer questions, of more blocks each.
        let at_end = self.encoding_done && !self.has_source();
        for host in 0..self.hosts.len() {
            let entry = &self.hosts[host];
            if !entry.connected || entry.is_over() {
                continue;
            }
            // One answer tells as much as several that come at once.
            let interval = if flush && at_end { FLUSH_INTERVAL } else { self.config.through_interval };
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
