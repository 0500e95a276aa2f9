//! Catch-up: blocks that hosts owe, since they were off the group or not on it in time.
//!
//! Who alone owes a block gets it whole over its control channel. What several members of a group owe, such as hosts
//! that came late or were frozen together, the group carries once more, from the window or encoded again (*recalled*).
//! Of a block that a member has the most of, the group carries what is missing.

use super::channels::State;
use super::flight::{At, InFlight};
use super::host::Membership;
use super::{Session, Symbols, index};
use std::time::Duration;
use wire::BlockId;
use wire::control::Deficit;

/// The group carries a block again for hosts that owe it at most so often.
const RECALLS_MAX: u8 = 2;
/// A channel that is needed for recalled blocks stays open for so long after the last of them.
const RECALL_HOLD: Duration = Duration::from_millis(500);

/// What a block's contents may take that were only named.
const SUPPLY_BYTES: u32 = wire::limits::BLOCK_BYTES_MAX;

/// How a host gets a block that it owes.
enum Way {
    Whole,
    /// With others, over the group.
    Recalled,
    /// Perhaps over the group: others, or it, are about to be members.
    Later,
}

impl Session {
    /// The next block to send whole to a host. The caller gets its bytes (from the window, or by encoding its contents
    /// once more) and sends `BlockData`, or `Supply` if [`Session::lacks_contents`]. The bytes under way are shared among the hosts that owe blocks, each of which
    /// has at least one, so that nobody waits for a host that does not take its own.
    pub fn poll_catch_up(&mut self, now: Duration) -> Option<(usize, BlockId)> {
        if self.cancelled {
            return None;
        }
        let mut claimants: Vec<usize> = (0..self.hosts.len())
            .filter(|host| {
                let entry = &self.hosts[*host];
                entry.is_reachable() && (!entry.owed.is_empty() || !entry.catching_up.is_empty())
            })
            .collect();
        let share = self.config.catch_up_bytes / claimants.len().max(1) as u64;
        while let Some(host) = self.neediest(&claimants, share) {
            let id = *self.hosts[host].owed.first()?;
            match self.way(host, id, now) {
                Way::Recalled => {}
                Way::Later => claimants.retain(|other| *other != host),
                Way::Whole => {
                    let entry = &mut self.hosts[host];
                    entry.owed.remove(&id);
                    let supplied = entry.lacking.contains(&id);
                    let len = if supplied { SUPPLY_BYTES } else { self.blocks[index(BlockId(id))].len };
                    entry.catching_up.insert(id, len);
                    self.flush_announcements(host);
                    self.stats.catch_up_blocks += 1;
                    self.stats.catch_up_bytes += u64::from(len);
                    return Some((host, BlockId(id)));
                }
            }
        }
        None
    }

    /// A host lacks contents of a block that only names them, which the caller has made sure of: they are sent whole.
    pub fn handle_lacks(&mut self, host: usize, block: BlockId, now: Duration) {
        let entry = &mut self.hosts[host];
        if entry.is_over() || !entry.announced.contains(block) || entry.done.contains(block) {
            return;
        }
        entry.last_heard = now;
        entry.last_progress = now;
        let again = !entry.lacking.insert(block.0);
        if entry.catching_up.remove(&block.0).is_some() && again {
            return self.whole_and_lacking(host, block.0, now);
        }
        self.owe(host, block.0);
    }

    /// Whether a host is to be sent the contents of a block that only names them.
    #[must_use]
    pub fn lacks_contents(&self, host: usize, block: BlockId) -> bool {
        self.hosts[host].lacking.contains(&block.0)
    }

    /// Of the hosts that may get another block, the one with the fewest bytes under way.
    fn neediest(&self, claimants: &[usize], share: u64) -> Option<usize> {
        let may = claimants.iter().copied().filter(|host| {
            let entry = &self.hosts[*host];
            // Busy hosts that are on their groups are not given more to do than that.
            let most = if entry.is_active() { share.min(self.config.catch_up_bytes / 8) } else { share };
            !entry.owed.is_empty() && (entry.catching_up.is_empty() || entry.catching_up_bytes() < most)
        });
        may.min_by_key(|host| (self.hosts[*host].catching_up_bytes(), *host))
    }

    fn way(&mut self, host: usize, id: u64, now: Duration) -> Way {
        let block = &self.blocks[index(BlockId(id))];
        let channel = self.segments[block.segment].channel;
        if !self.hosts[host].is_active() || !self.may_recall(id) {
            return Way::Whole;
        }
        let sharers: Vec<usize> = (self.channels[channel].spec.hosts.iter().copied())
            .filter(|other| self.hosts[*other].is_active() && self.hosts[*other].owed.contains(&id))
            .filter(|other| !self.hosts[*other].joins_late)
            .collect();
        if sharers.len() < 2 {
            return Way::Whole;
        }
        match self.channels[channel].state {
            State::Closed => return Way::Whole,
            State::Opening(_) => return Way::Later,
            State::Left => return if self.reopen(channel, &sharers, now) { Way::Later } else { Way::Whole },
            State::Open(_) => {}
        }
        self.channels[channel].hold_until = now + RECALL_HOLD;
        for other in &sharers {
            if self.hosts[*other].membership[channel] == Membership::No && self.may_join(*other, channel) {
                self.ask_to_join(*other, channel);
            }
        }
        let is_coming = |other: &usize| self.hosts[*other].membership[channel] != Membership::No;
        let coming: Vec<usize> = sharers.into_iter().filter(is_coming).collect();
        if coming.len() < 2 || !coming.contains(&host) {
            return Way::Whole;
        }
        if coming.iter().any(|other| !self.hosts[*other].is_member(channel, now)) {
            return Way::Later;
        }
        let coming: Vec<(usize, At)> = coming.into_iter().map(|host| (host, At::Sending)).collect();
        self.recall(id, channel, &coming);
        Way::Recalled
    }

    fn may_recall(&self, id: u64) -> bool {
        let block = &self.blocks[index(BlockId(id))];
        self.channels[self.segments[block.segment].channel].spec.group.is_some()
            && block.recalls < RECALLS_MAX
            // Others on the group are still getting it: their flight is theirs.
            && !self.in_flight.contains_key(&id)
            && self.window_used + u64::from(block.len) <= self.config.window_bytes
    }

    /// A member lacks a little of a block that is no longer in flight: the group carries that, not the whole block, if it may.
    pub(super) fn recall_part(&mut self, host: usize, deficit: Deficit, now: Duration) -> bool {
        let id = deficit.block;
        let (missing, symbols) = (deficit.missing & self.shape(id).all_symbols(), self.shape(id).symbols());
        let channel = self.segments[self.blocks[index(BlockId(id))].segment].channel;
        let is_open = matches!(self.channels[channel].state, State::Open(_));
        let is_little = missing != 0 && missing.count_ones() * 2 <= symbols;
        if !is_little || !is_open || !self.hosts[host].is_member(channel, now) || !self.may_recall(id) {
            return false;
        }
        self.channels[channel].hold_until = now + RECALL_HOLD;
        self.recall(id, channel, &[(host, At::Deficit(deficit))]);
        if let Some(flight) = self.in_flight.get_mut(&id) {
            flight.first_deficit = Some(now);
            self.dirty.insert(id);
        }
        true
    }

    /// Puts a block back into flight for members that owe it or a part of it.
    fn recall(&mut self, id: u64, channel: usize, members: &[(usize, At)]) {
        let block = &mut self.blocks[index(BlockId(id))];
        block.recalls += 1;
        let len = u64::from(block.len);
        let mut flight = InFlight::new(channel, block.next_esis);
        flight.recalling = true;
        for (host, at) in members {
            flight.hosts.insert(*host, *at);
            self.hosts[*host].owed.remove(&id);
            self.hosts[*host].flights += 1;
        }
        self.window_used += len;
        self.channels[channel].window_used += len;
        self.stats.window_peak_bytes = self.stats.window_peak_bytes.max(self.window_used);
        self.stats.recalled_blocks += 1;
        self.in_flight.insert(id, flight);
        // Its bytes may be there still: then they stay.
        self.releases.retain(|released| released.0 != id);
        self.recalls.push_back(BlockId(id));
    }

    /// The next block whose bytes are needed in the window once more; then call [`Session::handle_recalled`].
    pub fn poll_recall(&mut self) -> Option<BlockId> {
        self.recalls.pop_front()
    }

    /// The bytes of a recalled block are at hand. `false` if nobody needs them any more: they can go at once.
    pub fn handle_recalled(&mut self, block: BlockId) -> bool {
        let BlockId(id) = block;
        let Some(flight) = self.in_flight.get_mut(&id) else { return false };
        if std::mem::take(&mut flight.recalling) {
            // Who lacks a part of it has told which.
            if flight.hosts.values().any(|at| matches!(at, At::Deficit(_))) {
                self.queue_questions(id);
            } else {
                let symbols = self.shape(id).symbols();
                self.push_burst(id, Symbols::Source(0..symbols), true);
            }
        }
        true
    }
}
