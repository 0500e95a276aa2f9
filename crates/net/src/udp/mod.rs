//! Batched datagram I/O: one system call for tens of datagrams, blocking or polled, without a runtime.
//!
//! ```text
//! one buffer of equal datagrams ─ send_batch ─▶ sendmsg + UDP_SEGMENT (≤ 64 datagrams a call; else sendmmsg)
//! recvmmsg + UDP_GRO into one reused buffer ─ recv_batch ─▶ closure, a datagram at a time
//! ```
//!
//! Lost datagrams are the caller's business; here they are counted where the kernel tells.

mod batch;
mod call;
mod receiver;
mod sender;
mod waker;

pub use receiver::{GROUPS_MAX, Received, ReceiverStats, UdpReceiver};
pub use sender::{SenderOptions, SenderStats, UdpSender};
pub use waker::Waker;

use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// IPv4 or IPv6.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    fn unspecified(self, port: u16) -> SocketAddr {
        match self {
            Self::V4 => SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)),
            Self::V6 => SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)),
        }
    }

    fn socket(self) -> io::Result<Socket> {
        let domain = match self {
            Self::V4 => Domain::IPV4,
            Self::V6 => Domain::IPV6,
        };
        let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
        if self == Self::V6 {
            socket.set_only_v6(true)?;
        }
        Ok(socket)
    }
}

/// Why a socket was not made, or a group not joined or left.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UdpError {
    /// The system refused a socket or one of its options.
    #[error("cannot {step} a UDP socket on interface {interface}, port {port}")]
    Socket {
        /// What was tried.
        step: &'static str,
        /// The interface.
        interface: String,
        /// The port asked for; 0 for any.
        port: u16,
        /// The system's word.
        #[source]
        source: io::Error,
    },
    /// Not a multicast address, or of the other family.
    #[error("{group} is not a multicast group of this socket's address family")]
    NotAGroup {
        /// The address given.
        group: IpAddr,
    },
    /// More than [`GROUPS_MAX`] groups at once.
    #[error("cannot join {group}: already a member of {GROUPS_MAX} groups")]
    TooManyGroups {
        /// The group refused.
        group: IpAddr,
    },
    /// The system refused to join.
    #[error("cannot join {group} on interface {interface}; is the interface up, with an address?")]
    Join {
        /// The group.
        group: IpAddr,
        /// The interface.
        interface: String,
        /// The system's word.
        #[source]
        source: io::Error,
    },
    /// The system refused to leave.
    #[error("cannot leave {group} on interface {interface}")]
    Leave {
        /// The group.
        group: IpAddr,
        /// The interface.
        interface: String,
        /// The system's word.
        #[source]
        source: io::Error,
    },
}
