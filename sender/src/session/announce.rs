//! Announcements: a host is told of a block before its bytes.

use super::Session;
use wire::control::{self, Announce, ToHost};
use wire::{BlockId, BlockSet, limits};

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
        entry.announced.insert(BlockId(id));
        entry.announced_bytes += u64::from(len);
        if entry.connected {
            entry.unannounced.push(id);
        }
    }

    /// Tells each host of its blocks now, not with the next message: when the sender is gone, a host takes from others only blocks
    /// that it was told of.
    pub fn announce_now(&mut self) {
        for host in 0..self.hosts.len() {
            if self.hosts[host].connected && !self.hosts[host].unannounced.is_empty() {
                self.flush_announcements(host);
            }
        }
    }

    pub(super) fn flush_announcements(&mut self, host: usize) {
        let ids = std::mem::take(&mut self.hosts[host].unannounced);
        for range in control::ranges(ids.into_iter().map(BlockId)) {
            let ids: Vec<BlockId> = range.ids().collect();
            let mut rest = &ids[..];
            while let Some(first) = rest.first() {
                let circle = self.circle(*first);
                let alike =
                    rest.iter().take(limits::ANNOUNCED_MAX).take_while(|id| self.circle(**id) == circle);
                let (chunk, others) = rest.split_at(alike.count());
                rest = others;
                let blocks = chunk.iter().map(|id| {
                    let block = &self.blocks[super::index(*id)];
                    (block.len, block.digest)
                });
                let announce = Announce { first_block: first.0, circle, blocks: blocks.collect() };
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
        entry.announced = BlockSet::default();
        entry.announced_bytes = 0;
        entry.undecided.clear();
        entry.retold.clear();
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

    fn circle(&self, id: BlockId) -> u32 {
        self.segments[self.blocks[super::index(id)].segment].circle
    }

    fn needs(&self, host: usize, id: u64) -> bool {
        let segment = self.blocks[super::index(BlockId(id))].segment;
        self.channels[self.segments[segment].channel].spec.hosts.contains(&host)
    }
}
