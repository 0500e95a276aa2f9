//! A network in memory, with virtual time, for pairing sans-IO sessions.
//!
//! ```text
//! host ──uplink──▶ switch ──downlink──▶ host      datagrams: rate, delay, jitter, loss, duplication, corruption, MTU
//! host ◀════════ control channel ═════▶ host      reliable and ordered: delay, can be cut
//! ```
//!
//! It never reads a clock and never sleeps: time is a [`Duration`] since the network's beginning, handed in by the
//! caller, who maps it to what the sessions use (`epoch + at`). Under the same seed and the same calls it does the
//! same, on every machine. Each link has a generator of its own, so that traffic on one does not change another's luck.
//!
//! The order of calls: any of the acting methods with a time that does not go back; then [`SimNet::poll`] with the
//! same time until it returns `None`; then [`SimNet::next_event_time`] (and the sessions' own timeouts) say which
//! time comes next.
//!
//! Datagrams that a host sends to a group do not come back to it. Not modelled: fragmentation, ARP, switch buffers
//! shared by ports, several switches; the control channel uses none of the links' rate.

mod control;
mod event;
mod host;
mod link;
mod membership;
mod profile;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::Duration;

use control::Control;
pub use control::ControlDown;
use event::{Event, EventKind};
use host::Host;
pub use host::{HostStats, RECEIVE_BUFFER_BYTES};
use link::Arrival;
pub use link::LinkStats;
pub use profile::{IP_OVERHEAD, LinkProfile, LossModel, MulticastTiming, WIRE_OVERHEAD};

/// Where a datagram goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dest {
    /// One host, by number.
    Unicast(u16),
    /// The members of a multicast group.
    Group(u32),
}

/// One direction of a host's link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LinkId {
    /// From the host to the switch.
    Up(u16),
    /// From the switch to the host.
    Down(u16),
}

/// Something that reaches a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// When; never after the time given to [`SimNet::poll`].
    pub at: Duration,
    /// Whom it reaches.
    pub to: u16,
    /// What.
    pub kind: DeliveryKind,
}

/// What reaches a host.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeliveryKind {
    /// A datagram, whole but possibly damaged, doubled or out of order.
    Datagram {
        /// Its sender.
        from: u16,
        /// The address that it was sent to.
        dest: Dest,
        /// Its payload.
        bytes: Arc<[u8]>,
    },
    /// A message on the control channel with `from`.
    Control {
        /// Its sender.
        from: u16,
        /// The message.
        bytes: Arc<[u8]>,
    },
    /// The control channel with `peer` is closed: it was cut, or the peer crashed.
    ControlClosed {
        /// The other end.
        peer: u16,
    },
}

/// The simulated network; see the module's page for the order of calls.
///
/// Every method that takes a host's number panics if there is no such host.
pub struct SimNet {
    n_hosts: u16,
    hosts: Vec<Host>,
    control: Control,
    timing: MulticastTiming,
    events: BinaryHeap<Reverse<Event>>,
    sequence: u64,
    now: Duration,
}

impl SimNet {
    /// A network of hosts `0..n_hosts`, with perfect links, all control channels open and no memberships.
    #[must_use]
    pub fn new(seed: u64, n_hosts: u16) -> Self {
        Self {
            n_hosts,
            hosts: (0..n_hosts).map(|index| Host::new(seed, index)).collect(),
            control: Control::default(),
            timing: MulticastTiming::default(),
            events: BinaryHeap::new(),
            sequence: 0,
            now: Duration::ZERO,
        }
    }

    /// Number of hosts.
    #[must_use]
    pub const fn host_count(&self) -> u16 {
        self.n_hosts
    }

    /// A link's present profile.
    #[must_use]
    pub fn profile(&self, link: LinkId) -> LinkProfile {
        match link {
            LinkId::Up(host) => self.hosts[usize::from(host)].up.profile,
            LinkId::Down(host) => self.hosts[usize::from(host)].down.profile,
        }
    }

    /// Changes a link for all datagrams sent from now on.
    pub fn set_profile(&mut self, link: LinkId, profile: LinkProfile) {
        match link {
            LinkId::Up(host) => self.hosts[usize::from(host)].up.profile = profile,
            LinkId::Down(host) => self.hosts[usize::from(host)].down.profile = profile,
        }
    }

    /// Changes every link, both directions.
    pub fn set_all_profiles(&mut self, profile: LinkProfile) {
        for host in &mut self.hosts {
            host.up.profile = profile;
            host.down.profile = profile;
        }
    }

    /// Changes how fast the switch learns of memberships, for joins and leaves from now on.
    pub fn set_multicast_timing(&mut self, timing: MulticastTiming) {
        self.timing = timing;
    }

    /// Changes how many bytes of datagrams `host` keeps while frozen.
    pub fn set_receive_buffer(&mut self, host: u16, bytes: u64) {
        self.hosts[usize::from(host)].receive_buffer_bytes = bytes;
    }

    /// A host's counters.
    #[must_use]
    pub fn stats(&self, host: u16) -> HostStats {
        let host = &self.hosts[usize::from(host)];
        HostStats { up: host.up.stats, down: host.down.stats, ..host.stats }
    }

    /// Sends a datagram. A crashed host sends nothing. To itself, a host sends without delay or loss.
    pub fn send(&mut self, now: Duration, from: u16, dest: Dest, bytes: impl Into<Arc<[u8]>>) {
        self.advance(now);
        let bytes = bytes.into();
        let sender = &mut self.hosts[usize::from(from)];
        if sender.crashed {
            return;
        }
        if dest == Dest::Unicast(from) {
            let life = sender.life;
            self.push(now, EventKind::AtHost { to: from, life, held: false, from, dest, bytes });
            return;
        }
        for Arrival { at, bytes } in sender.up.transmit(now, &bytes).into_iter().flatten() {
            self.push(at, EventKind::AtSwitch { from, dest, bytes });
        }
    }

    /// Makes `host` a member of `group`; the switch forwards to it after the join latency.
    pub fn join(&mut self, now: Duration, host: u16, group: u32) {
        self.advance(now);
        let latency = self.timing.join_latency;
        let host = &mut self.hosts[usize::from(host)];
        if !host.crashed {
            host.memberships.join(group, now, latency);
        }
    }

    /// Ends a membership: nothing more is delivered, and the switch forwards on for the leave tail.
    pub fn leave(&mut self, now: Duration, host: u16, group: u32) {
        self.advance(now);
        let tail = self.timing.leave_tail;
        self.hosts[usize::from(host)].memberships.leave(group, now, tail);
    }

    /// Sends a message on the control channel between two hosts.
    ///
    /// # Errors
    /// [`ControlDown`] if the channel is cut or either host has crashed; the message is not sent.
    pub fn send_control(
        &mut self,
        now: Duration,
        from: u16,
        to: u16,
        bytes: impl Into<Arc<[u8]>>,
    ) -> Result<(), ControlDown> {
        self.advance(now);
        let receiver = &self.hosts[usize::from(to)];
        if self.hosts[usize::from(from)].crashed || receiver.crashed {
            return Err(ControlDown { from, to });
        }
        let life = receiver.life;
        let (at, epoch) = self.control.send(now, from, to).ok_or(ControlDown { from, to })?;
        self.push(at, EventKind::Control { to, life, from, epoch, bytes: bytes.into() });
        Ok(())
    }

    /// Sets the one-way delay of a control channel (both directions; 100 µs at first). Order is kept.
    pub fn set_control_delay(&mut self, a: u16, b: u16, delay: Duration) {
        self.control.pair(a, b).delay = delay;
    }

    /// Cuts a control channel: what is under way is lost, and both ends learn of it after the channel's delay.
    pub fn cut_control(&mut self, now: Duration, a: u16, b: u16) {
        self.advance(now);
        self.close_control(now, a, b);
    }

    /// Opens a control channel that was cut or whose end had crashed; it is a new one, empty.
    pub fn open_control(&mut self, now: Duration, a: u16, b: u16) {
        self.advance(now);
        self.control.open(a, b);
    }

    /// Ends a host's life: nothing under way reaches it, its memberships and control channels end, their other
    /// ends learn of it. What it has sent stays under way.
    pub fn crash(&mut self, now: Duration, host: u16) {
        self.advance(now);
        let tail = self.timing.leave_tail;
        let it = &mut self.hosts[usize::from(host)];
        if it.crashed {
            return;
        }
        it.crashed = true;
        it.life += 1;
        it.held_bytes = 0;
        it.frozen_until = Duration::ZERO;
        it.memberships.leave_all(now, tail);
        for peer in 0..self.host_count() {
            if peer != host {
                self.close_control(now, host, peer);
            }
        }
    }

    /// Starts a crashed host again, without memberships and with its control channels still closed.
    pub fn restart(&mut self, now: Duration, host: u16) {
        self.advance(now);
        self.hosts[usize::from(host)].crashed = false;
    }

    /// Stops a host until a time (SIGSTOP): datagrams wait in its receive buffer as far as that goes, control
    /// messages wait all. The caller does not run the host's session meanwhile. A second call can prolong it only.
    pub fn freeze(&mut self, now: Duration, host: u16, until: Duration) {
        self.advance(now);
        let host = &mut self.hosts[usize::from(host)];
        // Never shorter: what waits for the old time would be overtaken by what arrives before it.
        host.frozen_until = host.frozen_until.max(until);
    }

    /// When something will happen next; not always a delivery.
    #[must_use]
    pub fn next_event_time(&self) -> Option<Duration> {
        self.events.peek().map(|Reverse(event)| event.at)
    }

    /// The next delivery that is due at `now`, in order of time; `None` when nothing is due.
    pub fn poll(&mut self, now: Duration) -> Option<Delivery> {
        while self.next_event_time().is_some_and(|at| at <= now)
            && let Some(Reverse(event)) = self.events.pop()
        {
            self.now = self.now.max(event.at);
            if let Some(delivery) = self.process(event) {
                return Some(delivery);
            }
        }
        self.now = self.now.max(now);
        None
    }

    fn advance(&mut self, now: Duration) {
        assert!(now >= self.now, "time went back from {:?} to {now:?}", self.now);
        self.now = now;
    }

    fn push(&mut self, at: Duration, kind: EventKind) {
        self.sequence += 1;
        self.events.push(Reverse(Event { at, arrived: at, sequence: self.sequence, kind }));
    }

    fn close_control(&mut self, now: Duration, a: u16, b: u16) {
        let Some(at) = self.control.cut(now, a, b) else { return };
        for (to, peer) in [(a, b), (b, a)] {
            let end = &self.hosts[usize::from(to)];
            if !end.crashed {
                let life = end.life;
                self.push(at, EventKind::ControlClosed { to, life, peer });
            }
        }
    }

    fn process(&mut self, event: Event) -> Option<Delivery> {
        let Event { at, arrived, sequence, kind } = event;
        let (to, life) = match &kind {
            EventKind::AtSwitch { from, dest, bytes } => {
                self.forward(at, *from, *dest, bytes);
                return None;
            }
            EventKind::AtHost { to, life, .. }
            | EventKind::Control { to, life, .. }
            | EventKind::ControlClosed { to, life, .. } => (*to, *life),
        };
        let host = &mut self.hosts[usize::from(to)];
        if host.life != life || host.crashed {
            host.stats.to_crashed += u64::from(matches!(kind, EventKind::AtHost { .. }));
            return None;
        }
        if host.frozen_until > at {
            let until = host.frozen_until;
            if let Some(kind) = host.hold(kind) {
                self.events.push(Reverse(Event { at: until, arrived, sequence, kind }));
            }
            return None;
        }
        let kind = match kind {
            EventKind::AtHost { held, from, dest, bytes, .. } => host.accept(held, from, dest, bytes)?,
            EventKind::Control { from, epoch, bytes, .. } => {
                if !self.control.is_current(from, to, epoch) {
                    return None;
                }
                DeliveryKind::Control { from, bytes }
            }
            EventKind::ControlClosed { peer, .. } => DeliveryKind::ControlClosed { peer },
            EventKind::AtSwitch { .. } => unreachable!("forwarded above"),
        };
        Some(Delivery { at, to, kind })
    }

    /// The switch: copies a datagram to the downlink of each host that it is forwarded to.
    fn forward(&mut self, at: Duration, from: u16, dest: Dest, bytes: &Arc<[u8]>) {
        for to in 0..self.host_count() {
            let host = &mut self.hosts[usize::from(to)];
            let wanted = match dest {
                Dest::Unicast(target) => target == to,
                Dest::Group(group) => to != from && host.memberships.is_forwarded(group, at),
            };
            if !wanted {
                continue;
            }
            let life = host.life;
            let arrivals = host.down.transmit(at, bytes);
            for Arrival { at, bytes } in arrivals.into_iter().flatten() {
                self.push(at, EventKind::AtHost { to, life, held: false, from, dest, bytes });
            }
        }
    }
}
