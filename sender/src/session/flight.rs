//! Blocks in flight: from the first symbol handed out until every host on the group has the block.

use super::host::Phase;
use super::{Session, Symbols, Transmit, index};
use fec::Scheme;
use std::collections::BTreeMap;
use std::time::Duration;
use wire::BlockId;
use wire::control::Deficit;
use wire::datagram::OVERHEAD_BYTES;

/// Loss from which on parity goes out with the source symbols instead of waiting for deficits.
const PROACTIVE_LOSS: f64 = 0.03;

/// More parity than this leaves Cauchy too few symbols for the deficits that follow.
const CAUCHY_PARITY_MAX: u32 = 64;

pub(super) struct InFlight {
    pub(super) channel: usize,
    pub(super) hosts: BTreeMap<usize, At>,
    pub(super) first_deficit: Option<Duration>,
    /// Next unused ESI of each scheme.
    pub(super) next_cauchy: u32,
    pub(super) next_raptorq: u32,
    /// Repairs so far.
    pub(super) rounds: u32,
    /// Bursts not handed out yet.
    pub(super) bursts: u32,
}

/// Where a block stands at one host.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum At {
    /// Symbols are being handed out, or the question is not out yet.
    Sending,
    /// Asked what is missing.
    Asked,
    /// Answered, without naming the block: being decoded since then.
    Pending(Duration),
    Deficit(Deficit),
}

/// Symbols waiting for their turn.
#[derive(Debug)]
pub(super) struct Burst {
    pub(super) channel: usize,
    pub(super) block: BlockId,
    pub(super) symbols: Symbols,
}

impl Session {
    /// The next symbols to seal and send, if pacing and the hosts' credit allow any now.
    pub fn poll_transmit(&mut self, now: Duration) -> Option<Transmit> {
        if self.cancelled || self.started_at.is_none() || !self.pacer.is_ready(now) {
            return None;
        }
        let next = self.next_burst(now);
        self.stalled = next.is_none();
        if next.is_none() {
            self.ask_hosts(now, true);
        }
        let burst = next?;
        let Burst { channel, block, symbols } = self.cut(burst);
        let count = symbols.count();
        let bytes = u64::from(count) * self.symbol_wire_bytes(block.0);
        self.pacer.spend(now, bytes);
        self.channels[channel].sent += u64::from(count);
        for host in self.channels[channel].spec.hosts.clone() {
            if self.hosts[host].is_member(channel, now) {
                self.hosts[host].sent_bytes += bytes;
            }
        }
        let counter = match &symbols {
            Symbols::Source(_) => &mut self.stats.source_datagrams,
            Symbols::SourceAgain(_) => &mut self.stats.again_datagrams,
            Symbols::Repair(Scheme::Cauchy, _) => &mut self.stats.cauchy_datagrams,
            Symbols::Repair(Scheme::RaptorQ, _) => &mut self.stats.raptorq_datagrams,
        };
        *counter += u64::from(count);
        self.burst_done(block.0);
        Some(Transmit { channel, block, symbols })
    }

    /// Whether source symbols are waiting for pacing, credit or a channel.
    pub(super) fn has_source(&self) -> bool {
        self.segments.iter().any(|segment| !segment.waiting.is_empty())
    }

    /// The first burst whose channel has credit; else the next block of the first segment that has.
    fn next_burst(&mut self, now: Duration) -> Option<Burst> {
        for at in 0..self.bursts.len() {
            let (channel, id) = (self.bursts[at].channel, self.bursts[at].block.0);
            if !self.in_flight.contains_key(&id) {
                // Everybody got it meanwhile, or left.
                self.bursts.remove(at);
                return self.next_burst(now);
            }
            if self.has_credit(channel, now) {
                return self.bursts.remove(at);
            }
        }
        for segment in 0..self.segments.len() {
            let channel = self.segments[segment].channel;
            if self.segments[segment].waiting.is_empty() || !self.channels[channel].is_ready(now) {
                continue;
            }
            while let Some(id) = self.segments[segment].waiting.front().copied() {
                if !self.has_credit(channel, now) {
                    break;
                }
                self.segments[segment].waiting.pop_front();
                self.start_segment(segment);
                self.start_block(segment, id, now);
                if let Some(burst) = self.bursts.pop_front() {
                    return Some(burst);
                }
            }
        }
        None
    }

    /// Whether every member of the channel can take another burst. Who cannot is charged for holding it up.
    fn has_credit(&mut self, channel: usize, now: Duration) -> bool {
        let burst = self.config.burst_bytes as u64;
        let members = self.channels[channel].spec.hosts.iter().copied();
        let members: Vec<usize> = members.filter(|host| self.hosts[*host].is_member(channel, now)).collect();
        let full = |host: &usize| self.hosts[*host].under_way() + burst > self.hosts[*host].credit.max(burst);
        let blockers: Vec<usize> = members.iter().copied().filter(full).collect();
        if blockers.is_empty() {
            return true;
        }
        self.charge(&blockers, members.len(), now);
        false
    }

    /// Puts a block into flight: for the members of its channel the symbols, for the others a debt.
    fn start_block(&mut self, segment: usize, id: u64, now: Duration) {
        let channel = self.segments[segment].channel;
        let block = &mut self.blocks[index(BlockId(id))];
        block.sent = true;
        let digest = block.digest;
        self.segments[segment].sent_bytes += u64::from(block.len);
        let mut flight = InFlight::new(channel, self.shape(id).symbols());
        let (mut all_held, mut owed) = (true, false);
        for host in self.channels[channel].spec.hosts.clone() {
            let entry = &mut self.hosts[host];
            if entry.is_over() || entry.done.contains(BlockId(id)) {
                continue;
            }
            let held = entry.held.contains(&digest);
            if entry.is_member(channel, now) {
                all_held &= held;
                flight.hosts.insert(host, At::Sending);
            } else if held && entry.connected {
                entry.to_ask.push(id);
            } else {
                entry.owed.insert(id);
                owed = true;
            }
        }
        if flight.hosts.is_empty() {
            self.stats.blocks_skipped += u64::from(!owed);
            self.release(id);
            return;
        }
        let skip = all_held;
        let parity = if skip { 0 } else { self.proactive_parity(&flight, id) };
        let shape = self.shape(id);
        self.in_flight.insert(id, flight);
        if skip {
            self.stats.blocks_skipped += 1;
            self.queue_questions(id);
            return;
        }
        self.push_bursts(id, &[Symbols::Source(0..shape.symbols())]);
        if parity > 0 {
            let scheme = if parity <= CAUCHY_PARITY_MAX { Scheme::Cauchy } else { Scheme::RaptorQ };
            self.push_fresh(id, scheme, parity);
        }
    }

    fn proactive_parity(&self, flight: &InFlight, id: u64) -> u32 {
        let losses = flight.hosts.keys().map(|host| self.hosts[*host].loss);
        let loss = losses.fold(f64::INFINITY, f64::min);
        if loss < PROACTIVE_LOSS {
            return 0;
        }
        let symbols = f64::from(self.shape(id).symbols());
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "below 128 / (1 - loss), positive"
        )]
        let parity = (symbols * loss / (1.0 - loss.min(0.5))).ceil() as u32;
        parity
    }

    /// Queues fresh repair symbols of a scheme.
    pub(super) fn push_fresh(&mut self, id: u64, scheme: Scheme, count: u32) {
        let Some(flight) = self.in_flight.get_mut(&id) else { return };
        let next = match scheme {
            Scheme::Cauchy => &mut flight.next_cauchy,
            Scheme::RaptorQ => &mut flight.next_raptorq,
        };
        let first = *next;
        *next += count;
        self.push_bursts(id, &[Symbols::Repair(scheme, first..first + count)]);
    }

    pub(super) fn push_bursts(&mut self, id: u64, symbols: &[Symbols]) {
        let Some(flight) = self.in_flight.get_mut(&id) else { return };
        for symbols in symbols {
            flight.bursts += 1;
            self.stalled = false;
            let symbols = symbols.clone();
            self.bursts.push_back(Burst { channel: flight.channel, block: BlockId(id), symbols });
        }
    }

    /// Cuts a burst to the size of one batch and puts the rest back to the front.
    fn cut(&mut self, burst: Burst) -> Burst {
        let datagram = usize::from(self.shape(burst.block.0).symbol_size) + OVERHEAD_BYTES;
        let most = u32::try_from((self.config.burst_bytes / datagram).max(1)).unwrap_or(u32::MAX);
        if burst.symbols.count() <= most {
            return burst;
        }
        let (head, tail) = match burst.symbols {
            Symbols::Source(range) => {
                let middle = range.start + most;
                (Symbols::Source(range.start..middle), Symbols::Source(middle..range.end))
            }
            Symbols::Repair(scheme, range) => {
                let middle = range.start + most;
                (Symbols::Repair(scheme, range.start..middle), Symbols::Repair(scheme, middle..range.end))
            }
            Symbols::SourceAgain(mut list) => {
                let tail = list.split_off(most as usize);
                (Symbols::SourceAgain(list), Symbols::SourceAgain(tail))
            }
        };
        if let Some(flight) = self.in_flight.get_mut(&burst.block.0) {
            flight.bursts += 1;
        }
        self.bursts.push_front(Burst { symbols: tail, ..burst });
        Burst { symbols: head, ..burst }
    }

    fn burst_done(&mut self, id: u64) {
        let Some(flight) = self.in_flight.get_mut(&id) else { return };
        flight.bursts -= 1;
        if flight.bursts == 0 {
            self.queue_questions(id);
        }
    }

    /// All symbols are out: ask the hosts that are waiting for them.
    fn queue_questions(&mut self, id: u64) {
        let Some(flight) = self.in_flight.get(&id) else { return };
        for (host, at) in &flight.hosts {
            if *at == At::Sending {
                self.hosts[*host].to_ask.push(id);
            }
        }
    }

    /// The host has the block.
    pub(super) fn mark_done(&mut self, host: usize, id: u64, now: Duration) {
        let Some(block) = self.blocks.get(index(BlockId(id))) else { return };
        if !self.needs(host, id) {
            return;
        }
        let len = u64::from(block.len);
        let entry = &mut self.hosts[host];
        if !entry.done.insert(BlockId(id)) {
            return;
        }
        entry.done_bytes += len;
        entry.last_progress = now;
        entry.owed.remove(&id);
        entry.catching_up.remove(&id);
        self.take_off_flight(host, id);
    }

    /// The host is no longer served by the group for this block, but over its control channel.
    pub(super) fn owe(&mut self, host: usize, id: u64) {
        self.hosts[host].owed.insert(id);
        self.take_off_flight(host, id);
    }

    fn take_off_flight(&mut self, host: usize, id: u64) {
        let Some(flight) = self.in_flight.get_mut(&id) else { return };
        flight.hosts.remove(&host);
        if flight.hosts.is_empty() {
            self.in_flight.remove(&id);
            self.dirty.remove(&id);
            self.release(id);
        }
    }

    fn release(&mut self, id: u64) {
        self.window_used -= u64::from(self.blocks[index(BlockId(id))].len);
        self.releases.push_back(BlockId(id));
    }

    /// Nothing can be encoded because the window is full: the hosts on its oldest block hold it up.
    pub(super) fn charge_full_window(&mut self, now: Duration) {
        if self.encoding_done || self.has_source() || self.wants_blocks(0) {
            return;
        }
        let Some(oldest) = self.in_flight.values().next() else { return };
        let blockers: Vec<usize> = oldest.hosts.keys().copied().collect();
        let members = self.channels[oldest.channel].spec.hosts.iter();
        let of = members.filter(|host| self.hosts[**host].phase == Phase::Active).count();
        self.charge(&blockers, of, now);
    }
}

impl InFlight {
    fn new(channel: usize, symbols: u32) -> Self {
        Self {
            channel,
            hosts: BTreeMap::new(),
            first_deficit: None,
            next_cauchy: symbols,
            next_raptorq: symbols,
            rounds: 0,
            bursts: 0,
        }
    }
}
