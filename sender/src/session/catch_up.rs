//! Catch-up: blocks sent whole over the control channel to hosts that are off the group, or were not on it in time.

use super::host::{Host, Phase};
use super::{Session, index};
use wire::BlockId;

impl Session {
    /// The next block to send whole to a host. The caller gets its bytes (from the window, or by encoding its contents
    /// once more) and sends `BlockData`.
    pub fn poll_catch_up(&mut self) -> Option<(usize, BlockId)> {
        if self.cancelled {
            return None;
        }
        let all_under_way: u64 = self.hosts.iter().map(Host::catching_up_bytes).sum();
        if all_under_way >= self.config.catch_up_bytes {
            return None;
        }
        for host in 0..self.hosts.len() {
            let entry = &self.hosts[host];
            let reachable = entry.connected && matches!(entry.phase, Phase::Active | Phase::Unicast);
            // Busy hosts that are on their groups are not given more to do than that.
            let most =
                if entry.is_active() { self.config.catch_up_bytes / 8 } else { self.config.catch_up_bytes };
            if !reachable || entry.catching_up_bytes() >= most {
                continue;
            }
            let Some(id) = self.hosts[host].owed.pop_first() else { continue };
            let len = self.blocks[index(BlockId(id))].len;
            self.hosts[host].catching_up.insert(id, len);
            self.flush_announcements(host);
            self.stats.catch_up_blocks += 1;
            self.stats.catch_up_bytes += u64::from(len);
            return Some((host, BlockId(id)));
        }
        None
    }
}
