//! Batches to the network: a socket for each address family, a destination for each channel.

use super::TransferError;
use crate::window::Batch;
use net::interface::Interface;
use net::udp::{Family, SenderOptions, SenderStats, UdpSender};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;

/// Sockets and destinations.
pub(super) struct Transmitter {
    interface: Interface,
    options: SenderOptions,
    sockets: HashMap<Family, UdpSender>,
    /// Per channel; unknown for a unicast channel until its host has accepted.
    dests: Vec<Option<SocketAddr>>,
}

impl Transmitter {
    pub(super) fn new(interface: Interface, options: SenderOptions, dests: Vec<Option<SocketAddr>>) -> Self {
        Self { interface, options, sockets: HashMap::new(), dests }
    }

    pub(super) fn set_dest(&mut self, channel: usize, dest: SocketAddr) {
        self.dests[channel] = Some(dest);
    }

    /// What the sockets have sent.
    pub(super) fn stats(&self) -> SenderStats {
        self.sockets.values().fold(SenderStats::default(), |sum, socket| {
            let stats = socket.stats();
            SenderStats {
                datagrams: sum.datagrams + stats.datagrams,
                bytes: sum.bytes + stats.bytes,
                syscalls: sum.syscalls + stats.syscalls,
                refused: sum.refused + stats.refused,
                waits: sum.waits + stats.waits,
                icmp_errors: sum.icmp_errors + stats.icmp_errors,
            }
        })
    }

    pub(super) fn send(&mut self, channel: usize, batch: Batch<'_>) -> Result<(), TransferError> {
        let Some(dest) = self.dests[channel] else { return Ok(()) };
        let family = Family::of(dest.ip());
        let socket = match self.sockets.entry(family) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry
                .insert(UdpSender::bind(&self.interface, family, self.options).map_err(TransferError::Udp)?),
        };
        socket
            .send_batch(dest, batch.bytes, batch.datagram)
            .map_err(|source| TransferError::Send { dest, source })
    }
}
