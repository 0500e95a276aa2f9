//! Reliable, ordered channels between pairs of hosts.

use std::collections::BTreeMap;
use std::time::Duration;

/// The control channel is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the control channel from host {from} to host {to} is closed")]
pub struct ControlDown {
    /// The sending host.
    pub from: u16,
    /// The host that would have received.
    pub to: u16,
}

pub(super) struct Pair {
    pub(super) delay: Duration,
    open: bool,
    /// Grows with each cut: messages of an earlier channel are not delivered.
    epoch: u32,
    /// Latest arrival in each direction (towards the lower, towards the higher number): a shorter delay
    /// must not let a message overtake.
    last_arrival: [Duration; 2],
}

#[derive(Default)]
pub(super) struct Control(BTreeMap<(u16, u16), Pair>);

impl Control {
    pub(super) fn pair(&mut self, a: u16, b: u16) -> &mut Pair {
        self.0.entry((a.min(b), a.max(b))).or_insert(Pair {
            delay: Duration::from_micros(100),
            open: true,
            epoch: 0,
            last_arrival: [Duration::ZERO; 2],
        })
    }

    /// When a message sent now arrives, and on which channel; `None` if the channel is closed.
    pub(super) fn send(&mut self, now: Duration, from: u16, to: u16) -> Option<(Duration, u32)> {
        let pair = self.pair(from, to);
        if !pair.open {
            return None;
        }
        let last = &mut pair.last_arrival[usize::from(to > from)];
        *last = (now + pair.delay).max(*last);
        Some((*last, pair.epoch))
    }

    /// Closes a channel; says when its ends learn of it, or `None` if it was closed already.
    pub(super) fn cut(&mut self, now: Duration, a: u16, b: u16) -> Option<Duration> {
        let pair = self.pair(a, b);
        if !pair.open {
            return None;
        }
        pair.open = false;
        pair.epoch += 1;
        let at = (now + pair.delay).max(pair.last_arrival[0]).max(pair.last_arrival[1]);
        // Messages of the next channel come after the notice of this one's end.
        pair.last_arrival = [at; 2];
        Some(at)
    }

    pub(super) fn open(&mut self, a: u16, b: u16) {
        self.pair(a, b).open = true;
    }

    pub(super) fn is_current(&mut self, from: u16, to: u16, epoch: u32) -> bool {
        let pair = self.pair(from, to);
        pair.open && pair.epoch == epoch
    }
}
