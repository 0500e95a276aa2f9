//! A host of the simulated network, as the network sees it.

use std::sync::Arc;
use std::time::Duration;

use super::event::EventKind;
use super::link::{Link, LinkStats};
use super::membership::Memberships;
use super::profile::WIRE_OVERHEAD;
use super::{DeliveryKind, Dest};
use crate::rng::Rng;

/// Bytes of datagrams that a frozen host keeps at first, payloads counted: what Linux allows a socket by default.
pub const RECEIVE_BUFFER_BYTES: u64 = 212_992;

/// A host's counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostStats {
    /// From the host to the switch.
    pub up: LinkStats,
    /// From the switch to the host.
    pub down: LinkStats,
    /// Datagrams returned by [`SimNet::poll`](super::SimNet::poll).
    pub delivered: u64,
    /// Datagrams that used the downlink for a group that the host had left.
    pub unwanted: u64,
    /// Bytes of those, [`WIRE_OVERHEAD`] counted.
    pub unwanted_bytes: u64,
    /// Datagrams dropped because a frozen host's receive buffer was full.
    pub overflowed: u64,
    /// Datagrams dropped because the host was down.
    pub to_crashed: u64,
}

/// One host: its links, its memberships, and whether it runs.
pub(super) struct Host {
    pub(super) up: Link,
    pub(super) down: Link,
    pub(super) stats: HostStats,
    pub(super) memberships: Memberships,
    pub(super) crashed: bool,
    /// Grows with each crash; what was under way to an earlier life is not delivered.
    pub(super) life: u32,
    pub(super) frozen_until: Duration,
    pub(super) receive_buffer_bytes: u64,
    pub(super) held_bytes: u64,
}

impl Host {
    pub(super) fn new(seed: u64, index: u16) -> Self {
        Self {
            up: Link::new(Rng::of(seed, &[u64::from(index), 0])),
            down: Link::new(Rng::of(seed, &[u64::from(index), 1])),
            stats: HostStats::default(),
            memberships: Memberships::default(),
            crashed: false,
            life: 0,
            frozen_until: Duration::ZERO,
            receive_buffer_bytes: RECEIVE_BUFFER_BYTES,
            held_bytes: 0,
        }
    }

    /// Keeps what arrives while the host is frozen, or drops it.
    pub(super) fn hold(&mut self, kind: EventKind) -> Option<EventKind> {
        let EventKind::AtHost { to, life, held, from, dest, bytes } = kind else { return Some(kind) };
        if !held {
            let len = bytes.len() as u64;
            if self.held_bytes + len > self.receive_buffer_bytes {
                self.stats.overflowed += 1;
                return None;
            }
            self.held_bytes += len;
        }
        Some(EventKind::AtHost { to, life, held: true, from, dest, bytes })
    }

    pub(super) fn accept(
        &mut self,
        held: bool,
        from: u16,
        dest: Dest,
        bytes: Arc<[u8]>,
    ) -> Option<DeliveryKind> {
        if held {
            self.held_bytes -= bytes.len() as u64;
        }
        if let Dest::Group(group) = dest
            && !self.memberships.is_member(group)
        {
            self.stats.unwanted += 1;
            self.stats.unwanted_bytes += bytes.len() as u64 + u64::from(WIRE_OVERHEAD);
            return None;
        }
        self.stats.delivered += 1;
        Some(DeliveryKind::Datagram { from, dest, bytes })
    }
}
