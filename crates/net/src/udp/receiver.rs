//! Receiving: many packets a call, from as many sockets as the groups need.

use super::batch::{Batch, PACKETS};
use super::{Family, UdpError, Waker};
use crate::interface::Interface;
use crate::sys;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{InterfaceIndexOrAddress, Socket};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

/// Groups that one receiver may be a member of at once.
pub const GROUPS_MAX: usize = 4096;

/// What came in since the receiver was made.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct ReceiverStats {
    /// Datagrams handed over.
    pub datagrams: u64,
    /// Their payload bytes.
    pub bytes: u64,
    /// Packets in which they came: GRO joins up to 64 datagrams to one.
    pub packets: u64,
    /// `recvmmsg` and `ppoll` calls.
    pub syscalls: u64,
    /// Datagrams that the kernel dropped because a socket's buffer was full, as far as later datagrams told.
    /// [`UdpReceiver::refresh_drops`] asks.
    pub dropped: u64,
}

/// What one [`UdpReceiver::recv_batch`] did.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Received {
    /// Datagrams handed over.
    pub datagrams: u64,
    /// Someone called [`Waker::wake`].
    pub woken: bool,
}

struct Member {
    socket: Socket,
    groups: Vec<IpAddr>,
    /// The kernel's drop counter when last seen.
    drops: u32,
    /// May hold packets: not emptied since the last poll.
    ready: bool,
}

impl Member {
    /// The drops since the counter was last seen. A datagram carries the counter's value of when it came, which a
    /// question of ours may have overtaken since; then there are none.
    fn count_drops(&mut self, counter: u32) -> u64 {
        let new = counter.wrapping_sub(self.drops);
        if new > u32::MAX / 2 {
            return 0;
        }
        self.drops = counter;
        new.into()
    }
}

/// Receives the datagrams of the groups joined, all on one port and interface, and those sent to a unicast port of
/// its own, so that several receivers can share a host.
///
/// A socket can join only so many groups (`igmp_max_memberships`, 20 by default), so there are as many sockets as
/// the groups need. All are bound to the same port; `IP_MULTICAST_ALL=0` (`IPV6_MULTICAST_ALL=0`) keeps a socket
/// from getting what only others, here or in other processes, have joined.
pub struct UdpReceiver {
    family: Family,
    interface: Interface,
    port: u16,
    unicast_port: u16,
    rcvbuf_wanted: usize,
    rcvbuf_bytes: usize,
    /// The first is the unicast socket; there is always a second.
    members: Vec<Member>,
    /// One for each member, then the waker.
    polled: Vec<libc::pollfd>,
    batch: Batch,
    stats: ReceiverStats,
}

impl UdpReceiver {
    /// Makes the sockets: multicast on `port` (0 for any, see [`Self::port`]), unicast on a port of the system's
    /// choice, each with a buffer of `rcvbuf_bytes`, forced over `rmem_max` where allowed.
    ///
    /// # Errors
    /// [`UdpError::Socket`].
    pub fn bind(
        port: u16,
        family: Family,
        interface: &Interface,
        rcvbuf_bytes: usize,
    ) -> Result<Self, UdpError> {
        let mut receiver = Self {
            family,
            interface: interface.clone(),
            port,
            unicast_port: 0,
            rcvbuf_wanted: rcvbuf_bytes,
            rcvbuf_bytes: 0,
            members: Vec::new(),
            polled: Vec::new(),
            batch: Batch::new(),
            stats: ReceiverStats::default(),
        };
        receiver.unicast_port = receiver.add_socket(0, false)?;
        receiver.port = receiver.add_socket(port, true)?;
        Ok(receiver)
    }

    /// Becomes a member of a group; nothing happens if it is one. The first datagram can take 20 ms and more to
    /// come, as switches learn of it.
    ///
    /// # Errors
    /// [`UdpError`] except `Leave`.
    pub fn join(&mut self, group: IpAddr) -> Result<(), UdpError> {
        if !group.is_multicast() || Family::of(group) != self.family {
            return Err(UdpError::NotAGroup { group });
        }
        if self.member_of(group).is_some() {
            return Ok(());
        }
        if self.groups().count() >= GROUPS_MAX {
            return Err(UdpError::TooManyGroups { group });
        }
        for index in 1..self.members.len() {
            match self.membership(index, group, true) {
                Ok(()) => return Ok(()),
                // This socket's memberships are used up.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(source) => return Err(self.join_failed(group, source)),
            }
        }
        self.add_socket(self.port, true)?;
        self.membership(self.members.len() - 1, group, true).map_err(|source| self.join_failed(group, source))
    }

    /// Ends a membership; nothing happens if there is none. Datagrams that wait already are still handed over.
    ///
    /// # Errors
    /// [`UdpError::Leave`], if the interface is gone.
    pub fn leave(&mut self, group: IpAddr) -> Result<(), UdpError> {
        let Some(index) = self.member_of(group) else { return Ok(()) };
        self.membership(index, group, false).map_err(|source| UdpError::Leave {
            group,
            interface: self.interface.name.clone(),
            source,
        })
    }

    /// Waits up to `timeout` for datagrams or a wake-up, takes at most one batch from each socket, and calls `f`
    /// with each datagram and its sender's address. The slice is valid during the call only.
    ///
    /// A wake-up ends the wait, but not the batch; it is reported once. A signal ends the wait too.
    ///
    /// # Errors
    /// The system's; none is expected of a network's state.
    pub fn recv_batch(
        &mut self,
        timeout: Duration,
        wake: &Waker,
        mut f: impl FnMut(SocketAddr, &[u8]),
    ) -> io::Result<Received> {
        let mut waker_polled = false;
        if !self.members.iter().any(|member| member.ready) {
            waker_polled = self.poll(timeout, wake)?;
        }
        let before = self.stats.datagrams;
        let Self { members, batch, stats, .. } = self;
        for member in members.iter_mut().filter(|member| member.ready) {
            let packets = batch.receive(member.socket.as_fd())?;
            stats.syscalls += 1;
            stats.packets += packets as u64;
            member.ready = packets == PACKETS;
            for index in 0..packets {
                let packet = batch.packet(index);
                stats.dropped += packet.drops.map_or(0, |drops| member.count_drops(drops));
                if packet.cut {
                    stats.dropped += 1;
                    continue;
                }
                stats.bytes += packet.payload.len() as u64;
                match packet.segment {
                    Some(segment) => {
                        stats.datagrams += packet.payload.len().div_ceil(segment) as u64;
                        packet.payload.chunks(segment).for_each(|datagram| f(packet.source, datagram));
                    }
                    None => {
                        stats.datagrams += 1;
                        f(packet.source, packet.payload);
                    }
                }
            }
        }
        let datagrams = self.stats.datagrams - before;
        Ok(Received { datagrams, woken: wake.take(waker_polled) })
    }

    /// Counters.
    #[must_use]
    pub fn stats(&self) -> ReceiverStats {
        self.stats
    }

    /// Asks the kernel for each socket's drops, so that drops after the last datagram are counted too. A system
    /// call for each socket: now and then, not for each batch.
    ///
    /// # Errors
    /// The system's.
    pub fn refresh_drops(&mut self) -> io::Result<u64> {
        for member in &mut self.members {
            let info: [u32; 9] = sys::get_option(member.socket.as_fd(), libc::SOL_SOCKET, libc::SO_MEMINFO)?;
            let drops = info[libc::SK_MEMINFO_DROPS as usize];
            self.stats.dropped += member.count_drops(drops);
        }
        Ok(self.stats.dropped)
    }

    /// The groups joined, in no order.
    pub fn groups(&self) -> impl Iterator<Item = IpAddr> {
        self.members.iter().flat_map(|member| member.groups.iter().copied())
    }

    /// The multicast port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The unicast port, on any of the host's addresses.
    #[must_use]
    pub fn unicast_port(&self) -> u16 {
        self.unicast_port
    }

    /// The smallest buffer that a socket got, in the unit asked for (the kernel doubles it for its own use).
    #[must_use]
    pub fn rcvbuf_bytes(&self) -> usize {
        self.rcvbuf_bytes
    }

    /// The descriptors of all sockets, for a poll of one's own. Joining can add to them.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.members.iter().map(|member| member.socket.as_fd())
    }

    fn member_of(&self, group: IpAddr) -> Option<usize> {
        self.members.iter().position(|member| member.groups.contains(&group))
    }

    fn join_failed(&self, group: IpAddr, source: io::Error) -> UdpError {
        UdpError::Join { group, interface: self.interface.name.clone(), source }
    }

    fn membership(&mut self, index: usize, group: IpAddr, join: bool) -> io::Result<()> {
        let member = &mut self.members[index];
        let by_index = InterfaceIndexOrAddress::Index(self.interface.index);
        match (group, join) {
            (IpAddr::V4(v4), true) => member.socket.join_multicast_v4_n(&v4, &by_index),
            (IpAddr::V4(v4), false) => member.socket.leave_multicast_v4_n(&v4, &by_index),
            (IpAddr::V6(v6), true) => member.socket.join_multicast_v6(&v6, self.interface.index),
            (IpAddr::V6(v6), false) => member.socket.leave_multicast_v6(&v6, self.interface.index),
        }?;
        if join {
            member.groups.push(group);
        } else {
            member.groups.retain(|&other| other != group);
        }
        Ok(())
    }

    /// Opens one more socket and returns its port.
    fn add_socket(&mut self, port: u16, multicast: bool) -> Result<u16, UdpError> {
        let failed = |step| {
            let interface = self.interface.name.clone();
            move |source| UdpError::Socket { step, interface, port, source }
        };
        let socket = self.family.socket().map_err(failed("open"))?;
        self.configure(&socket, multicast).map_err(failed("configure"))?;
        socket.bind(&self.family.unspecified(port).into()).map_err(failed("bind"))?;
        let rcvbuf = self.enlarge(&socket).map_err(failed("size the buffer of"))?;
        let local = socket.local_addr().map_err(failed("read the address of"))?;
        self.rcvbuf_bytes = if self.members.is_empty() { rcvbuf } else { self.rcvbuf_bytes.min(rcvbuf) };
        self.members.push(Member { socket, groups: Vec::new(), drops: 0, ready: false });
        self.polled.clear();
        Ok(local.as_socket().map_or(0, |address| address.port()))
    }

    fn configure(&self, socket: &Socket, multicast: bool) -> io::Result<()> {
        match self.family {
            Family::V4 => socket.set_multicast_all_v4(false)?,
            Family::V6 => socket.set_multicast_all_v6(false)?,
        }
        if multicast {
            socket.set_reuse_address(true)?;
            // A membership names the interface, but IPv6 does not compare it on delivery. Where binding is not
            // allowed (kernels before 5.7), the seal still refuses what is not ours.
            if self.family == Family::V6 {
                let _ = socket.bind_device(Some(self.interface.name.as_bytes()));
            }
        }
        setsockopt(socket, sockopt::RxqOvfl, &1)?;
        // Without GRO (kernels before 5.0) packets come one by one.
        let _ = setsockopt(socket, sockopt::UdpGroSegment, &true);
        Ok(())
    }

    fn enlarge(&self, socket: &Socket) -> io::Result<usize> {
        if setsockopt(socket, sockopt::RcvBufForce, &self.rcvbuf_wanted).is_err() {
            socket.set_recv_buffer_size(self.rcvbuf_wanted)?;
        }
        Ok(socket.recv_buffer_size()? / 2)
    }

    /// Waits, and marks the sockets that have something. Returns whether the waker's descriptor is readable.
    fn poll(&mut self, timeout: Duration, wake: &Waker) -> io::Result<bool> {
        let waker = wake.as_fd().as_raw_fd();
        if self.polled.last().is_none_or(|last| last.fd != waker) {
            let fds = self.members.iter().map(|member| member.socket.as_raw_fd()).chain([waker]);
            self.polled = fds.map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 }).collect();
        }
        let limit = libc::timespec {
            tv_sec: timeout.as_secs().try_into().unwrap_or(libc::time_t::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        };
        self.stats.syscalls += 1;
        let count = self.polled.len() as libc::nfds_t;
        // SAFETY: `polled` holds `count` entries; the time limit outlives the call; no signal mask is given.
        let ready =
            unsafe { libc::ppoll(self.polled.as_mut_ptr(), count, &raw const limit, std::ptr::null()) };
        if ready < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(false) } else { Err(error) };
        }
        for (member, polled) in self.members.iter_mut().zip(&self.polled) {
            member.ready = polled.revents != 0;
        }
        Ok(self.polled.last().is_some_and(|last| last.revents != 0))
    }
}

impl std::fmt::Debug for UdpReceiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UdpReceiver")
            .field("interface", &self.interface.name)
            .field("port", &self.port)
            .field("unicast_port", &self.unicast_port)
            .field("sockets", &self.members.len())
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}
