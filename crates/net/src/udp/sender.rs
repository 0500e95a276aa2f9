//! Sending: many equal datagrams a call.

use super::call::{drain_errors, send_gso_once, send_many_once};
use super::{Family, UdpError};
use crate::interface::Interface;
use crate::sys;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{SockAddr, Socket};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// Datagrams in one GSO packet, and messages in one `sendmmsg` (udp(7), `UDP_MAX_SEGMENTS` of older kernels).
pub(super) const SEGMENTS_MAX: usize = 64;
/// Payload of one GSO packet: what an IPv4 packet holds.
const GSO_BYTES_MAX: usize = 65_507;
/// How long one call may wait for a full socket buffer or device queue before it gives up.
const STALL_MAX: Duration = Duration::from_secs(10);
/// The kernel wakes a blocked send after this time, so that [`STALL_MAX`] is kept.
const SEND_TIMEOUT: Duration = Duration::from_millis(100);
/// Pending ICMP errors of earlier unicast datagrams that one call steps over.
const ICMP_ERRORS_MAX: u32 = 8;

/// How to send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SenderOptions {
    /// Routers that a multicast datagram may pass, 0 to 255; 1, the default, stays on the link.
    pub ttl: u8,
    /// Members on this very host get the datagrams too. Default true.
    pub loopback: bool,
    /// Socket buffer in bytes (forced over `wmem_max` where allowed). Default 2 MiB: it bounds the burst that a
    /// stalled link lets go.
    pub sndbuf_bytes: usize,
    /// Use GSO where it works. Default true.
    pub gso: bool,
}

impl Default for SenderOptions {
    fn default() -> Self {
        Self { ttl: 1, loopback: true, sndbuf_bytes: 2 << 20, gso: true }
    }
}

/// What was sent since the socket was made.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct SenderStats {
    /// Datagrams that the kernel took.
    pub datagrams: u64,
    /// Their payload bytes.
    pub bytes: u64,
    /// `sendmsg` and `sendmmsg` calls.
    pub syscalls: u64,
    /// Datagrams that this host refused to send (EPERM: a firewall's drop): lost, like on the way.
    pub refused: u64,
    /// Times that the socket buffer or the device queue was full and sending waited.
    pub waits: u64,
    /// Errors reported for earlier unicast datagrams (port unreachable and the like).
    pub icmp_errors: u64,
}

/// A socket that sends to multicast groups through one interface, and to any unicast address.
#[derive(Debug)]
pub struct UdpSender {
    socket: Socket,
    family: Family,
    ttl: u8,
    gso: bool,
    sndbuf_bytes: usize,
    stats: SenderStats,
}

/// What to do about a failed call.
enum Failure {
    Retry,
    Refused,
    Gso(io::Error),
    Fatal(io::Error),
}

impl UdpSender {
    /// Makes a socket whose multicast leaves by `interface`, from one of its addresses, with the Don't Fragment
    /// bit: a datagram longer than the interface's MTU is an error, never fragments. GSO is probed
    /// ([`Self::probe_gso`]).
    ///
    /// # Errors
    /// [`UdpError::Socket`].
    pub fn bind(interface: &Interface, family: Family, options: SenderOptions) -> Result<Self, UdpError> {
        let failed = |step| {
            let interface = interface.name.clone();
            move |source| UdpError::Socket { step, interface, port: 0, source }
        };
        let socket = family.socket().map_err(failed("open"))?;
        let local = match family {
            Family::V4 => interface.v4.first().map(|v4| SocketAddr::new(IpAddr::V4(*v4), 0)),
            // A link-local address must not be the source of datagrams that routers pass on.
            Family::V6 => interface
                .v6
                .iter()
                .find(|v6| !v6.is_unicast_link_local())
                .map(|v6| SocketAddr::new(IpAddr::V6(*v6), 0)),
        };
        socket.bind(&local.unwrap_or_else(|| family.unspecified(0)).into()).map_err(failed("bind"))?;
        Self::configure(&socket, interface, family, options).map_err(failed("configure"))?;
        let sndbuf_bytes = socket.send_buffer_size().map_err(failed("configure"))? / 2;
        let stats = SenderStats::default();
        let mut sender = Self { socket, family, ttl: options.ttl, gso: options.gso, sndbuf_bytes, stats };
        if options.gso {
            sender.probe_gso().map_err(failed("probe GSO on"))?;
        }
        Ok(sender)
    }

    fn configure(
        socket: &Socket,
        interface: &Interface,
        family: Family,
        options: SenderOptions,
    ) -> io::Result<()> {
        // Errors of the queue (ENOBUFS) are reported only to sockets that ask for errors.
        match family {
            Family::V4 => {
                let request = libc::ip_mreqn {
                    imr_multiaddr: libc::in_addr { s_addr: 0 },
                    imr_address: libc::in_addr { s_addr: 0 },
                    imr_ifindex: interface.index.try_into().map_err(io::Error::other)?,
                };
                sys::set_option(socket.as_fd(), libc::IPPROTO_IP, libc::IP_MULTICAST_IF, &request)?;
                let probe = libc::IP_PMTUDISC_PROBE;
                sys::set_option(socket.as_fd(), libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, &probe)?;
                sys::set_option(socket.as_fd(), libc::IPPROTO_IP, libc::IP_RECVERR, &1)?;
                socket.set_multicast_ttl_v4(options.ttl.into())?;
                socket.set_multicast_loop_v4(options.loopback)?;
            }
            Family::V6 => {
                socket.set_multicast_if_v6(interface.index)?;
                let probe = libc::IPV6_PMTUDISC_PROBE;
                sys::set_option(socket.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, &probe)?;
                sys::set_option(socket.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_RECVERR, &1)?;
                socket.set_multicast_hops_v6(options.ttl.into())?;
                socket.set_multicast_loop_v6(options.loopback)?;
            }
        }
        if setsockopt(socket, sockopt::SndBufForce, &options.sndbuf_bytes).is_err() {
            socket.set_send_buffer_size(options.sndbuf_bytes)?;
        }
        socket.set_write_timeout(Some(SEND_TIMEOUT))
    }

    /// Sends `buf` to `dest` as datagrams of `segment` bytes, the last one perhaps shorter. Waits while the socket
    /// buffer or the device queue is full. Datagrams that a local firewall refuses count as lost.
    ///
    /// # Errors
    /// `TimedOut` if the link took nothing for ten seconds; EMSGSIZE if `segment` exceeds the interface's MTU;
    /// `InvalidInput` for `segment` 0; whatever else the kernel says (network down, no route). Part of `buf` may
    /// have been sent.
    pub fn send_batch(&mut self, dest: SocketAddr, buf: &[u8], segment: usize) -> io::Result<()> {
        if segment == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "segments of 0 bytes"));
        }
        let dest = SockAddr::from(dest);
        let segments = SEGMENTS_MAX.min(GSO_BYTES_MAX / segment).max(1);
        let mut rest = buf;
        while !rest.is_empty() {
            let (chunk, after) = rest.split_at(rest.len().min(segments * segment));
            if self.gso && chunk.len() > segment {
                self.send_gso(&dest, chunk, segment)?;
            } else {
                self.send_each(&dest, chunk, segment)?;
            }
            rest = after;
        }
        Ok(())
    }

    /// Tries GSO towards the interface that this socket sends through, without putting anything on the wire (a
    /// multicast datagram with a TTL of 0 passes every check of the kernel's and then ends), and switches it off
    /// if the kernel refuses. Later refusals (EIO, EINVAL) switch it off as well. A device that takes GSO and
    /// corrupts it can only be found with a second host: [`crate::doctor`].
    ///
    /// # Errors
    /// The TTL could not be set. An unusable interface is no error here; sending will tell.
    pub fn probe_gso(&mut self) -> io::Result<bool> {
        const PROBE: [u8; 64] = [0; 64];
        let dest = match self.family {
            Family::V4 => SocketAddr::from(([239, 255, 255, 255], 9)),
            Family::V6 => SocketAddr::from(([0xff32, 0, 0, 0, 0, 0, 0, 0xffff], 9)),
        };
        self.set_ttl(0)?;
        let before = self.stats;
        let sent = send_gso_once(&self.socket, &dest.into(), &PROBE, 16);
        self.stats = before;
        self.set_ttl(self.ttl)?;
        let refused = sent.is_err_and(|error| refuses_gso(&error));
        self.gso = !refused;
        Ok(self.gso)
    }

    /// Whether GSO is in use.
    #[must_use]
    pub fn gso(&self) -> bool {
        self.gso
    }

    /// Uses GSO or not from now on.
    pub fn set_gso(&mut self, on: bool) {
        self.gso = on;
    }

    /// Counters.
    #[must_use]
    pub fn stats(&self) -> SenderStats {
        self.stats
    }

    /// The socket buffer that was got, in the unit of [`SenderOptions::sndbuf_bytes`].
    #[must_use]
    pub fn sndbuf_bytes(&self) -> usize {
        self.sndbuf_bytes
    }

    /// Address and port that datagrams come from; the address may be unspecified.
    ///
    /// # Errors
    /// The system's.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()?.as_socket().ok_or_else(|| io::Error::other("not an internet address"))
    }

    fn set_ttl(&self, ttl: u8) -> io::Result<()> {
        match self.family {
            Family::V4 => self.socket.set_multicast_ttl_v4(ttl.into()),
            Family::V6 => self.socket.set_multicast_hops_v6(ttl.into()),
        }
    }

    fn count(&mut self, chunk: &[u8], segment: usize) {
        self.stats.datagrams += chunk.len().div_ceil(segment) as u64;
        self.stats.bytes += chunk.len() as u64;
    }

    /// One GSO packet. If the kernel or device refuses GSO, the chunk goes out without, and if that works, so do
    /// all later ones.
    fn send_gso(&mut self, dest: &SockAddr, chunk: &[u8], segment: usize) -> io::Result<()> {
        let mut stall = Stall::default();
        loop {
            self.stats.syscalls += 1;
            let Err(error) = send_gso_once(&self.socket, dest, chunk, segment) else {
                self.count(chunk, segment);
                return Ok(());
            };
            match self.classify(error, &mut stall, true) {
                Failure::Retry => {}
                Failure::Refused => {
                    self.stats.refused += chunk.len().div_ceil(segment) as u64;
                    return Ok(());
                }
                Failure::Gso(error) => {
                    self.send_each(dest, chunk, segment)?;
                    tracing::warn!(%error, "GSO refused; sending without from now on");
                    self.gso = false;
                    return Ok(());
                }
                Failure::Fatal(error) => return Err(error),
            }
        }
    }

    /// At most [`SEGMENTS_MAX`] datagrams by `sendmmsg`.
    fn send_each(&mut self, dest: &SockAddr, chunk: &[u8], segment: usize) -> io::Result<()> {
        let mut stall = Stall::default();
        let mut rest = chunk;
        while !rest.is_empty() {
            self.stats.syscalls += 1;
            match send_many_once(&self.socket, dest, rest, segment) {
                Ok(messages) => {
                    let (sent, after) = rest.split_at(rest.len().min(messages * segment));
                    self.count(sent, segment);
                    rest = after;
                    stall = Stall::default();
                }
                Err(error) => match self.classify(error, &mut stall, false) {
                    Failure::Retry => {}
                    Failure::Refused => {
                        self.stats.refused += 1;
                        rest = &rest[rest.len().min(segment)..];
                    }
                    Failure::Gso(error) | Failure::Fatal(error) => return Err(error),
                },
            }
        }
        Ok(())
    }

    fn classify(&mut self, error: io::Error, stall: &mut Stall, gso: bool) -> Failure {
        match error.raw_os_error() {
            Some(libc::EINTR) => Failure::Retry,
            // The kernel's time-out on a full socket buffer.
            Some(libc::EAGAIN) => {
                self.stats.waits += 1;
                stall.passed()
            }
            // The device's queue is full, or memory is short: nothing tells when that ends.
            Some(libc::ENOBUFS | libc::ENOMEM) => {
                self.stats.waits += 1;
                std::thread::sleep(stall.pause());
                stall.passed()
            }
            Some(libc::EPERM) => Failure::Refused,
            // Word of an earlier unicast datagram; without any pending, it is the present one's.
            Some(
                libc::ECONNREFUSED | libc::EHOSTUNREACH | libc::ENETUNREACH | libc::EPROTO | libc::EACCES,
            ) if stall.icmp_errors < ICMP_ERRORS_MAX => {
                stall.icmp_errors += 1;
                self.stats.icmp_errors += u64::from(drain_errors(&self.socket));
                Failure::Retry
            }
            _ if gso && refuses_gso(&error) => Failure::Gso(error),
            _ => Failure::Fatal(error),
        }
    }
}

/// How long one call has waited already.
#[derive(Default)]
struct Stall {
    since: Option<Instant>,
    pauses: u32,
    icmp_errors: u32,
}

impl Stall {
    fn passed(&mut self) -> Failure {
        if self.since.get_or_insert_with(Instant::now).elapsed() < STALL_MAX {
            return Failure::Retry;
        }
        Failure::Fatal(io::Error::new(io::ErrorKind::TimedOut, "the link took no datagram for ten seconds"))
    }

    /// 50 µs, doubling to 6.4 ms.
    fn pause(&mut self) -> Duration {
        self.since.get_or_insert_with(Instant::now);
        let pause = Duration::from_micros(50 << self.pauses.min(7));
        self.pauses += 1;
        pause
    }
}

/// EMSGSIZE too: kernels from 6.13 say it for a segment over the MTU, older ones EINVAL; sending without GSO
/// tells which it is.
fn refuses_gso(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE | libc::EOPNOTSUPP | libc::ENOPROTOOPT)
    )
}
