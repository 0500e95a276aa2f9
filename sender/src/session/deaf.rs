//! Hosts that datagrams do not reach any more: a filter, a switch, a port that changed. They are served over their control
//! connections, however many they are.

use super::Session;
use super::host::{Phase, TIMES_APART_MAX};
use std::time::Duration;

/// Of what is sent, so much must be lost …
const DEAF_LOSS: f64 = 0.9;
/// … for so long. No code repairs such a loss at a cost that catching up does not beat.
const DEAF_AFTER: Duration = Duration::from_millis(500);

impl Session {
    /// Takes hosts off their groups that hear next to nothing there.
    pub(super) fn judge_deafness(&mut self, now: Duration) {
        for host in 0..self.hosts.len() {
            let entry = &mut self.hosts[host];
            if entry.phase != Phase::Active || entry.loss < DEAF_LOSS {
                entry.deaf_since = None;
                continue;
            }
            let since = *entry.deaf_since.get_or_insert(now);
            if now >= since + DEAF_AFTER {
                // Tried once more when it has caught up, and then left apart: each trial costs as long.
                entry.times_apart = entry.times_apart.max(TIMES_APART_MAX - 2);
                self.serve_apart(host, now);
            }
        }
    }
}
