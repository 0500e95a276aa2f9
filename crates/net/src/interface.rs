//! Network interfaces: named by the user, or found.

use crate::sys;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::{InterfaceFlags, if_nametoindex};
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};

/// IPv4 and UDP headers.
pub const HEADERS_V4_BYTES: u32 = 20 + 8;
/// IPv6 and UDP headers.
pub const HEADERS_V6_BYTES: u32 = 40 + 8;

/// A network interface as it was when asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Interface {
    /// Name, at most 15 bytes.
    pub name: String,
    /// Index, never 0.
    pub index: u32,
    /// IPv4 addresses, the primary one first.
    pub v4: Vec<Ipv4Addr>,
    /// IPv6 addresses, global ones before link-local ones.
    pub v6: Vec<Ipv6Addr>,
    /// Largest IP packet in bytes.
    pub mtu: u32,
    /// Link speed in bit/s, if the driver knows it. Virtual links answer what they like.
    pub speed_bps: Option<u64>,
    /// Is up.
    pub up: bool,
    /// Carries multicast.
    pub multicast: bool,
    /// Is a loopback interface.
    pub loopback: bool,
}

/// Why no interface was found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InterfaceError {
    /// The system would not list its interfaces.
    #[error("cannot list the network interfaces")]
    List(#[source] io::Error),
    /// No interface of that name or address.
    #[error("no network interface `{wanted}`; there are: {}", known.join(", "))]
    Unknown {
        /// What was asked for.
        wanted: String,
        /// Names with addresses.
        known: Vec<String>,
    },
    /// No route to a peer.
    #[error("no route to {peer}; name the interface to use")]
    NoRoute {
        /// The peer.
        peer: IpAddr,
        /// The system's word.
        #[source]
        source: io::Error,
    },
    /// No interface is up, multicast-capable and has an address.
    #[error("no network interface is up, has an address and carries multicast; there are: {}", known.join(", "))]
    NoMulticast {
        /// Names with addresses.
        known: Vec<String>,
    },
    /// Several interfaces would do, and no route prefers one.
    #[error("several network interfaces carry multicast; name one of: {}", candidates.join(", "))]
    Ambiguous {
        /// Names with addresses.
        candidates: Vec<String>,
    },
}

impl Interface {
    /// All interfaces, by index.
    ///
    /// # Errors
    /// [`InterfaceError::List`].
    pub fn all() -> Result<Vec<Self>, InterfaceError> {
        let list = |error: nix::Error| InterfaceError::List(error.into());
        let mut found: BTreeMap<String, Self> = BTreeMap::new();
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))
            .or_else(|_| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)))
            .map_err(InterfaceError::List)?;
        for entry in getifaddrs().map_err(list)? {
            // An interface can vanish between the calls; then it is not there.
            let Ok(index) = if_nametoindex(entry.interface_name.as_str()) else { continue };
            let name = &entry.interface_name;
            let interface = found.entry(name.clone()).or_insert_with(|| Self {
                name: name.clone(),
                index,
                v4: Vec::new(),
                v6: Vec::new(),
                mtu: 0,
                speed_bps: None,
                up: entry.flags.contains(InterfaceFlags::IFF_UP | InterfaceFlags::IFF_RUNNING),
                multicast: entry.flags.contains(InterfaceFlags::IFF_MULTICAST),
                loopback: entry.flags.contains(InterfaceFlags::IFF_LOOPBACK),
            });
            let Some(address) = entry.address else { continue };
            if let Some(v4) = address.as_sockaddr_in() {
                interface.v4.push(v4.ip());
            } else if let Some(v6) = address.as_sockaddr_in6() {
                interface.v6.push(v6.ip());
            }
        }
        let mut all: Vec<Self> = found.into_values().collect();
        for interface in &mut all {
            let fd = socket.as_fd().as_raw_fd();
            interface.mtu = sys::interface_mtu(fd, &interface.name).unwrap_or(0);
            interface.speed_bps =
                sys::interface_speed_mbps(fd, &interface.name).map(|mbps| u64::from(mbps) * 1_000_000);
            interface.v6.sort_by_key(|address| address.is_unicast_link_local());
        }
        all.sort_by_key(|interface| interface.index);
        Ok(all)
    }

    /// The interface of that name.
    ///
    /// # Errors
    /// [`InterfaceError::Unknown`] lists those that exist.
    pub fn by_name(name: &str) -> Result<Self, InterfaceError> {
        Self::matching(name, |interface| interface.name == name)
    }

    /// The interface with that address.
    ///
    /// # Errors
    /// [`InterfaceError::Unknown`] lists those that exist.
    pub fn by_address(address: IpAddr) -> Result<Self, InterfaceError> {
        Self::matching(&address.to_string(), |interface| interface.has(address))
    }

    /// The interface with that name or address: what `--interface` takes.
    ///
    /// # Errors
    /// [`InterfaceError::Unknown`] lists those that exist.
    pub fn find(wanted: &str) -> Result<Self, InterfaceError> {
        let address: Option<IpAddr> = wanted.parse().ok();
        Self::matching(wanted, |interface| {
            interface.name == wanted || address.is_some_and(|address| interface.has(address))
        })
    }

    /// The interface by which this host reaches `peer` (or, for one of its own addresses, which holds that).
    ///
    /// # Errors
    /// [`InterfaceError::NoRoute`], or that the interfaces cannot be listed.
    pub fn for_peer(peer: IpAddr) -> Result<Self, InterfaceError> {
        let local = local_address_towards(SocketAddr::new(peer, 9))
            .map_err(|source| InterfaceError::NoRoute { peer, source })?;
        Self::by_address(local)
    }

    /// The interface for multicast if the user names none: that of the multicast or default route; else the only
    /// one that is up, has an address (more than a link-local one, if any has) and carries multicast.
    ///
    /// # Errors
    /// [`InterfaceError::NoMulticast`], or [`InterfaceError::Ambiguous`] with the candidates: guessing wrong would
    /// fail in silence.
    pub fn default_multicast() -> Result<Self, InterfaceError> {
        let all = Self::all()?;
        let usable = |interface: &&Self| interface.up && interface.multicast && !interface.loopback;
        let routed = local_address_towards(SocketAddr::from(([239, 255, 0, 1], 9))).ok();
        if let Some(interface) =
            all.iter().filter(usable).find(|interface| routed.is_some_and(|local| interface.has(local)))
        {
            return Ok(interface.clone());
        }
        // A bridge's ports and the like have a link-local address only.
        let addressed = |interface: &&Self| {
            !interface.v4.is_empty() || interface.v6.iter().any(|v6| !v6.is_unicast_link_local())
        };
        let mut candidates: Vec<&Self> = all.iter().filter(usable).filter(addressed).collect();
        if candidates.is_empty() {
            candidates = all.iter().filter(usable).filter(|interface| !interface.v6.is_empty()).collect();
        }
        match candidates.as_slice() {
            [] => Err(InterfaceError::NoMulticast { known: all.iter().map(Self::label).collect() }),
            [only] => Ok((*only).clone()),
            several => Err(InterfaceError::Ambiguous {
                candidates: several.iter().map(|interface| interface.label()).collect(),
            }),
        }
    }

    /// Whether the address is one of the interface's.
    #[must_use]
    pub fn has(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => self.v4.contains(&v4),
            IpAddr::V6(v6) => self.v6.contains(&v6),
        }
    }

    /// The largest UDP payload, in bytes, that leaves this interface unfragmented.
    #[must_use]
    pub fn datagram_bytes_max(&self, family: crate::udp::Family) -> u32 {
        self.mtu.saturating_sub(match family {
            crate::udp::Family::V4 => HEADERS_V4_BYTES,
            crate::udp::Family::V6 => HEADERS_V6_BYTES,
        })
    }

    /// `eth0 (10.0.0.1)`.
    fn label(&self) -> String {
        let address = self.v4.first().map(ToString::to_string);
        match address.or_else(|| self.v6.first().map(ToString::to_string)) {
            Some(address) => format!("{} ({address})", self.name),
            None => self.name.clone(),
        }
    }

    fn matching(wanted: &str, test: impl Fn(&Self) -> bool) -> Result<Self, InterfaceError> {
        let all = Self::all()?;
        let found = all.iter().find(|interface| test(interface)).cloned();
        found.ok_or_else(|| InterfaceError::Unknown {
            wanted: wanted.to_owned(),
            known: all.iter().map(Self::label).collect(),
        })
    }
}

/// The address from which this host sends to `peer`: a connected UDP socket sends nothing.
fn local_address_towards(peer: SocketAddr) -> io::Result<IpAddr> {
    Ok(connected(peer)?.local_addr()?.ip())
}

/// The MTU towards `peer` in bytes, as far as the kernel knows it: the interface's, or less if a router said so.
///
/// # Errors
/// No route.
pub fn path_mtu(peer: IpAddr) -> io::Result<u32> {
    let socket = connected(SocketAddr::new(peer, 9))?;
    let mtu: libc::c_int = match peer {
        IpAddr::V4(_) => sys::get_option(socket.as_fd(), libc::IPPROTO_IP, libc::IP_MTU)?,
        IpAddr::V6(_) => sys::get_option(socket.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_MTU)?,
    };
    u32::try_from(mtu).map_err(io::Error::other)
}

fn connected(peer: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = match peer {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(peer)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_by_name_address_and_peer() {
        let lo = Interface::by_name("lo").expect("every host has lo");
        assert!(lo.loopback && lo.has(Ipv4Addr::LOCALHOST.into()) && lo.index > 0 && lo.mtu >= 1500);
        assert_eq!(Interface::by_address(Ipv4Addr::LOCALHOST.into()).expect("lo"), lo);
        assert_eq!(Interface::find("127.0.0.1").expect("lo"), lo);
        assert_eq!(Interface::find("lo").expect("lo"), lo);
        assert_eq!(Interface::for_peer(Ipv4Addr::LOCALHOST.into()).expect("lo"), lo);
        assert_eq!(path_mtu(Ipv4Addr::LOCALHOST.into()).expect("route"), lo.mtu.min(65_535));
        assert_eq!(lo.datagram_bytes_max(crate::udp::Family::V4), lo.mtu - 28);
    }

    #[test]
    fn unknown_names_list_the_known() {
        let error = Interface::by_name("no-such-if").expect_err("unknown");
        let text = error.to_string();
        assert!(text.contains("no-such-if") && text.contains("lo (127.0.0.1)"), "{text}");
        assert!(Interface::by_name("a-name-longer-than-any-interface").is_err());
    }

    #[test]
    fn default_is_never_loopback() {
        if let Ok(interface) = Interface::default_multicast() {
            assert!(interface.multicast && interface.up && !interface.loopback);
        }
    }
}
