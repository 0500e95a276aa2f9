//! Blocks that guests wait for: answered once for all by the group, where several of its hosts lack them.

use super::flight::{At, Burst};
use super::{Session, index};
use std::time::Duration;
use wire::BlockId;

/// A block goes out for a page that a guest waits for only if it is on the wire within this time, those hastened before it counted:
/// an answer of one page takes a fraction of a millisecond.
const SHARED_WAIT_MAX: Duration = Duration::from_millis(10);

impl Session {
    /// A guest on a host waits for a page of this block. Whether the group brings it soon: the block is in flight to the host, or
    /// several hosts on the group lack it and it is sent next. Else the page has to be answered by itself.
    pub fn hasten(&mut self, host: usize, block: BlockId, now: Duration) -> bool {
        let BlockId(id) = block;
        let Some(known) = self.blocks.get(index(block)) else { return false };
        let (len, channel) = (u64::from(known.len), self.segments[known.segment].channel);
        if let Some(flight) = self.in_flight.get(&id) {
            return match flight.hosts.get(&host) {
                Some(At::Asked | At::Pending(_)) => true,
                // On a slow link it takes long to be through.
                Some(At::Sending) => len <= self.pacer.bytes_in(SHARED_WAIT_MAX),
                _ => false,
            };
        }
        let is_group = self.channels[channel].spec.group.is_some();
        if known.sent
            || !is_group
            || !self.channels[channel].is_ready(now)
            || !self.hosts[host].is_member(channel, now)
        {
            return false;
        }
        if let Some(at) = self.hastened.iter().position(|(_, other)| *other == id) {
            let (wanted, _) = self.hastened.remove(at);
            self.put_hastened(wanted + 1, id);
            return true;
        }
        let members = self.channels[channel].spec.hosts.iter();
        let lacking = members.filter(|other| self.hosts[**other].is_member(channel, now));
        let lacking = lacking.filter(|other| !self.hosts[**other].done.contains(block)).count();
        let before: u64 =
            self.hastened.iter().map(|(_, id)| u64::from(self.blocks[index(BlockId(*id))].len)).sum();
        let soon = before + len <= self.pacer.bytes_in(SHARED_WAIT_MAX);
        if lacking < 2 || !soon {
            return false;
        }
        self.put_hastened(1, id);
        self.stats.hastened_blocks += 1;
        self.stalled = false;
        true
    }

    /// Whether a host has said that it has this block.
    #[must_use]
    pub fn has_block(&self, host: usize, block: BlockId) -> bool {
        self.hosts[host].done.contains(block)
    }

    /// Behind those that as many wait for.
    fn put_hastened(&mut self, wanted: u32, id: u64) {
        let at = self.hastened.partition_point(|(other, _)| *other >= wanted);
        self.hastened.insert(at, (wanted, id));
    }

    /// The first symbols of the most wanted block whose channel has credit.
    pub(super) fn next_hastened(&mut self, now: Duration) -> Option<Burst> {
        let mut at = 0;
        while let Some((_, id)) = self.hastened.get(at).copied() {
            let segment = self.blocks[index(BlockId(id))].segment;
            let channel = self.segments[segment].channel;
            let Some(place) = self.segments[segment].waiting.iter().position(|waiting| *waiting == id) else {
                // Begun in its turn.
                self.hastened.remove(at);
                continue;
            };
            if !self.channels[channel].is_ready(now) || !self.has_credit(channel, now) {
                at += 1;
                continue;
            }
            self.hastened.remove(at);
            self.segments[segment].waiting.remove(place);
            self.start_segment(segment);
            self.start_block(segment, id, now);
            if let Some(at) = self.bursts.iter().position(|burst| burst.block.0 == id) {
                return self.bursts.remove(at);
            }
        }
        None
    }
}
