//! Blocks in flight: from the first symbol handed out until every host on the group has the block.

use super::host::Phase;
use super::{Block, Session, Symbols, Transmit, index};
use fec::Scheme;
use std::collections::BTreeMap;
use std::time::Duration;
use wire::BlockId;
use wire::control::{BlockRange, Deficit};
use wire::datagram::OVERHEAD_BYTES;

/// Loss from which on parity goes out with the source symbols instead of waiting for deficits.
const PROACTIVE_LOSS: f64 = 0.03;

/// More parity than this leaves Cauchy too few symbols for the deficits that follow.
const CAUCHY_PARITY_MAX: u32 = 64;

pub(super) struct InFlight {
    pub(super) channel: usize,
    pub(super) hosts: BTreeMap<usize, At>,
    pub(super) first_deficit: Option<Duration>,
    /// Next unused ESIs.
    pub(super) next: NextEsis,
    /// Repairs so far.
    pub(super) rounds: u32,
    /// Bursts not handed out yet.
    pub(super) bursts: u32,
    /// Its bytes are not at hand yet (see `catch_up`).
    pub(super) recalling: bool,
}

/// Next unused ESI of each scheme. A block that comes into flight again goes on where it stopped, since hosts may
/// hold what was sent before.
#[derive(Clone, Copy, Debug)]
pub(super) struct NextEsis {
    pub(super) cauchy: u32,
    pub(super) raptorq: u32,
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
    /// Answers deficits, or carries a block again.
    is_repair: bool,
}

impl Session {
    /// The next symbols to seal and send, if pacing and the hosts' credit allow any now.
    pub fn poll_transmit(&mut self, now: Duration) -> Option<Transmit> {
        if self.cancelled || self.started_at.is_none() || !self.pacer.is_ready(now) {
            return None;
        }
        let Some(burst) = self.next_burst(now) else {
            self.stalled = true;
            self.ask_hosts(now, true);
            return None;
        };
        // Whatever is asked for again, new blocks have half of the rate.
        self.repair_turn = !burst.is_repair;
        let Burst { channel, block, symbols, .. } = self.cut(burst);
        let count = symbols.count();
        let bytes = u64::from(count) * self.symbol_wire_bytes(block.0);
        if self.channels[channel].sent == 0 {
            self.count_from_here(channel, now);
        }
        self.pacer.spend(now, bytes);
        self.channels[channel].sent += u64::from(count);
        for host in self.channels[channel].spec.hosts.clone() {
            if self.hosts[host].is_member(channel, now) {
                self.hosts[host].sent_bytes += bytes;
                self.hosts[host].offered += u64::from(count);
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

    /// Whether symbols are waiting for pacing, credit or a channel.
    pub(super) fn has_bursts(&self) -> bool {
        !self.bursts.is_empty() || !self.repairs.is_empty() || self.has_source()
    }

    /// Whether blocks are waiting to be begun.
    pub(super) fn has_source(&self) -> bool {
        self.segments.iter().any(|segment| !segment.waiting.is_empty())
    }

    /// The next burst: repair and new blocks take turns.
    fn next_burst(&mut self, now: Duration) -> Option<Burst> {
        if self.repair_turn {
            self.next_waiting(true, now).or_else(|| self.next_source(now))
        } else {
            self.next_source(now).or_else(|| self.next_waiting(true, now))
        }
    }

    /// The first waiting burst whose channel has credit.
    fn next_waiting(&mut self, repair: bool, now: Duration) -> Option<Burst> {
        let mut at = 0;
        loop {
            let queue = if repair { &mut self.repairs } else { &mut self.bursts };
            let (channel, id) = queue.get(at).map(|burst| (burst.channel, burst.block.0))?;
            if !self.in_flight.contains_key(&id) {
                // Everybody got it meanwhile, or left.
                queue.remove(at);
            } else if self.has_credit(channel, now) {
                return if repair { self.repairs.remove(at) } else { self.bursts.remove(at) };
            } else {
                at += 1;
            }
        }
    }

    /// The rest of a block that was begun; else one that guests wait for; else the next block of the first segment whose channel has credit.
    fn next_source(&mut self, now: Duration) -> Option<Burst> {
        if let Some(burst) = self.next_waiting(false, now) {
            return Some(burst);
        }
        if let Some(burst) = self.next_hastened(now) {
            return Some(burst);
        }
        for segment in 0..self.segments.len() {
            let channel = self.segments[segment].channel;
            if self.segments[segment].waiting.is_empty() || !self.channels[channel].is_ready(now) {
                continue;
            }
            while self.has_credit(channel, now) {
                let Some(id) = self.segments[segment].waiting.pop_front() else { break };
                self.start_segment(segment);
                self.start_block(segment, id, now);
                if let Some(at) = self.bursts.iter().position(|burst| burst.block.0 == id) {
                    return self.bursts.remove(at);
                }
            }
        }
        None
    }

    /// Whether every member of the channel can take another burst. Who cannot is charged for holding it up.
    pub(super) fn has_credit(&mut self, channel: usize, now: Duration) -> bool {
        let burst = self.config.burst_bytes as u64;
        let members = self.channels[channel].spec.hosts.iter().copied();
        let members: Vec<usize> = members.filter(|host| self.hosts[*host].is_member(channel, now)).collect();
        let full = |host: &usize| self.hosts[*host].under_way() + burst > self.hosts[*host].credit.max(burst);
        let blockers: Vec<usize> = members.iter().copied().filter(full).collect();
        self.channels[channel].blocked = !blockers.is_empty();
        self.charge(&blockers, members.len(), now);
        blockers.is_empty()
    }

    /// Puts a block into flight: for the members of its channel the symbols, for the others a debt.
    pub(super) fn start_block(&mut self, segment: usize, id: u64, now: Duration) {
        let channel = self.segments[segment].channel;
        let block = &mut self.blocks[index(BlockId(id))];
        block.sent = true;
        let digest = block.digest;
        self.segments[segment].sent_bytes += u64::from(block.len);
        let mut flight = InFlight::new(channel, self.blocks[index(BlockId(id))].next_esis);
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
                entry.flights += 1;
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
        self.push_burst(id, Symbols::Source(0..shape.symbols()), false);
        if parity > 0 {
            let scheme = if parity <= CAUCHY_PARITY_MAX { Scheme::Cauchy } else { Scheme::RaptorQ };
            self.push_fresh(id, scheme, parity, false);
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
    pub(super) fn push_fresh(&mut self, id: u64, scheme: Scheme, count: u32, is_repair: bool) {
        let Some(flight) = self.in_flight.get_mut(&id) else { return };
        let next = match scheme {
            Scheme::Cauchy => &mut flight.next.cauchy,
            Scheme::RaptorQ => &mut flight.next.raptorq,
        };
        let first = *next;
        *next += count;
        self.blocks[index(BlockId(id))].next_esis = flight.next;
        self.push_burst(id, Symbols::Repair(scheme, first..first + count), is_repair);
    }

    pub(super) fn push_burst(&mut self, id: u64, symbols: Symbols, is_repair: bool) {
        let Some(flight) = self.in_flight.get_mut(&id) else { return };
        flight.bursts += 1;
        self.stalled = false;
        let burst = Burst { channel: flight.channel, block: BlockId(id), symbols, is_repair };
        let queue = if is_repair { &mut self.repairs } else { &mut self.bursts };
        queue.push_back(burst);
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
        let queue = if burst.is_repair { &mut self.repairs } else { &mut self.bursts };
        queue.push_front(Burst { symbols: tail, ..burst });
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
    pub(super) fn queue_questions(&mut self, id: u64) {
        let Some(flight) = self.in_flight.get(&id) else { return };
        for (host, at) in &flight.hosts {
            if *at == At::Sending {
                self.hosts[*host].to_ask.push(id);
            }
        }
    }

    /// The host has these blocks. Costs what is new to it, whatever it claims.
    pub(super) fn mark_all_done(&mut self, host: usize, ranges: &[BlockRange], now: Duration) {
        for range in ranges {
            let entry = &self.hosts[host];
            let end = range.first.saturating_add(u64::from(range.count));
            let new: Vec<BlockId> = entry.announced.without(&entry.done, range.first..end).collect();
            for BlockId(id) in new {
                self.mark_done(host, id, now);
            }
            // Sent whole although it was done: said again, so that nobody waits for it.
            let entry = &mut self.hosts[host];
            let (done, whole) = (&entry.done, &mut entry.catching_up);
            whole.retain(|id, _| !((range.first..end).contains(id) && done.contains(BlockId(*id))));
        }
    }

    fn mark_done(&mut self, host: usize, id: u64, now: Duration) {
        let len = u64::from(self.blocks[index(BlockId(id))].len);
        let entry = &mut self.hosts[host];
        entry.done.insert(BlockId(id));
        entry.done_bytes += len;
        entry.last_progress = now;
        if entry.done_bytes > entry.done_bytes_max {
            entry.done_bytes_max = entry.done_bytes;
            entry.connections = 0;
        }
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
        if flight.hosts.remove(&host).is_some() {
            self.hosts[host].flights -= 1;
        }
        if flight.hosts.is_empty() {
            self.in_flight.remove(&id);
            self.dirty.remove(&id);
            self.release(id);
        }
    }

    fn release(&mut self, id: u64) {
        let Block { len, segment, .. } = self.blocks[index(BlockId(id))];
        self.window_used -= u64::from(len);
        self.channels[self.segments[segment].channel].window_used -= u64::from(len);
        self.releases.push_back(BlockId(id));
    }

    /// Nothing of a channel can be encoded because its share of the window is full: the hosts on its oldest block hold
    /// it up.
    pub(super) fn charge_full_window(&mut self, now: Duration) {
        for channel in 0..self.channels.len() {
            if self.encoding_done || !self.is_held_up(channel) {
                continue;
            }
            let Some(oldest) = self.in_flight.values().find(|flight| flight.channel == channel) else {
                continue;
            };
            let blockers: Vec<usize> = oldest.hosts.keys().copied().collect();
            let members = self.channels[channel].spec.hosts.iter();
            let of = members.filter(|host| self.hosts[**host].phase == Phase::Active).count();
            self.charge(&blockers, of, now);
        }
    }

    /// All of a channel's share of the window is in flight, and there is more to encode for it.
    fn is_held_up(&self, channel: usize) -> bool {
        let mut segments = self.segments.iter().filter(|segment| segment.channel == channel);
        self.channels[channel].window_used > 0
            && !self.has_room(channel, 0, 0)
            && segments.clone().all(|segment| segment.waiting.is_empty())
            && segments.any(|segment| !segment.encoded)
    }
}

impl InFlight {
    pub(super) fn new(channel: usize, next: NextEsis) -> Self {
        Self {
            channel,
            hosts: BTreeMap::new(),
            first_deficit: None,
            next,
            rounds: 0,
            bursts: 0,
            recalling: false,
        }
    }
}
