//! What is under way in the simulated network.

use std::cmp::Ordering;
use std::sync::Arc;
use std::time::Duration;

use super::Dest;

/// What is under way.
pub(super) enum EventKind {
    AtSwitch { from: u16, dest: Dest, bytes: Arc<[u8]> },
    AtHost { to: u16, life: u32, held: bool, from: u16, dest: Dest, bytes: Arc<[u8]> },
    Control { to: u16, life: u32, from: u16, epoch: u32, bytes: Arc<[u8]> },
    ControlClosed { to: u16, life: u32, peer: u16 },
}

/// Something under way, in order of time.
pub(super) struct Event {
    pub(super) at: Duration,
    /// When it reached a frozen host's buffer first; else `at`. What waited comes before what arrives as the host thaws.
    pub(super) arrived: Duration,
    pub(super) sequence: u64,
    pub(super) kind: EventKind,
}

impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Event {}
impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Event {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.arrived, self.sequence).cmp(&(other.at, other.arrived, other.sequence))
    }
}
