//! The range of multicast addresses that a transfer may use.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A range of multicast addresses, `prefix/length`.
///
/// Every address of a pool has an Ethernet address of its own, and none that switches always flood:
/// - IPv4 maps its low 23 bits to Ethernet (RFC 1112, section 6.4), so the length is 10–32, and addresses that
///   share the Ethernet addresses of 224.0.0.0/24 are refused (snooping switches flood these, RFC 4541, 2.1.2);
/// - IPv6 maps its low 32 bits (RFC 2464, section 7), so the length is 96–128.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    first: IpAddr,
    length: u8,
}

/// Why a text is no usable [`Pool`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// Not `address/length`.
    #[error("`{0}` is no address range; write it like 239.77.0.0/16 or ff15::4d00:0/112")]
    Syntax(String),
    /// Bits below the prefix are set.
    #[error("`{given}` sets bits below its prefix; write {right}")]
    HostBits {
        /// The text.
        given: String,
        /// The range with these bits cleared.
        right: String,
    },
    /// Not a multicast range.
    #[error(
        "`{0}` is not multicast; take a range of 239.0.0.0/8 (RFC 2365) or ff15::/16, such as 239.77.0.0/16"
    )]
    NotMulticast(String),
    /// So wide that two addresses share one Ethernet address.
    #[error(
        "`{given}` is too wide: its addresses share Ethernet addresses; the shortest prefix is /{shortest}"
    )]
    TooWide {
        /// The text.
        given: String,
        /// Shortest usable prefix length of the family.
        shortest: u8,
    },
    /// Switches flood the range, or it never leaves the host.
    #[error(
        "`{given}` cannot reach chosen hosts only: {why}; take a range such as 239.77.0.0/16 or ff15::4d00:0/112"
    )]
    Unusable {
        /// The text.
        given: String,
        /// What is wrong with the range.
        why: &'static str,
    },
}

impl Pool {
    /// Number of addresses, at most 2^32 - 1 (a /96 is cut by one).
    #[must_use]
    pub fn size(&self) -> u32 {
        let bits = if self.first.is_ipv4() { 32 } else { 128 };
        u32::try_from(1u64 << (bits - u32::from(self.length))).unwrap_or(u32::MAX)
    }

    /// Address number `index`, or `None` from [`Pool::size`] on.
    #[must_use]
    pub fn nth(&self, index: u32) -> Option<IpAddr> {
        (index < self.size()).then(|| match self.first {
            IpAddr::V4(first) => IpAddr::V4(Ipv4Addr::from_bits(first.to_bits() | index)),
            IpAddr::V6(first) => IpAddr::V6(Ipv6Addr::from_bits(first.to_bits() | u128::from(index))),
        })
    }

    /// Whether `address` is in the range.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.first, address) {
            (IpAddr::V4(first), IpAddr::V4(a)) => (first.to_bits() ^ a.to_bits()) & v4_mask(self.length) == 0,
            (IpAddr::V6(first), IpAddr::V6(a)) => (first.to_bits() ^ a.to_bits()) & v6_mask(self.length) == 0,
            _ => false,
        }
    }
}

fn v4_mask(length: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0)
}

fn v6_mask(length: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)
}

impl FromStr for Pool {
    type Err = PoolError;

    fn from_str(text: &str) -> Result<Self, PoolError> {
        let syntax = || PoolError::Syntax(text.to_owned());
        let (address, length) = text.split_once('/').ok_or_else(syntax)?;
        let first: IpAddr = address.parse().map_err(|_| syntax())?;
        let length: u8 = length.parse().map_err(|_| syntax())?;
        let (longest, shortest) = if first.is_ipv4() { (32, 10) } else { (128, 96) };
        if length > longest {
            return Err(syntax());
        }
        let base: IpAddr = match first {
            IpAddr::V4(a) => Ipv4Addr::from_bits(a.to_bits() & v4_mask(length)).into(),
            IpAddr::V6(a) => Ipv6Addr::from_bits(a.to_bits() & v6_mask(length)).into(),
        };
        if base != first {
            return Err(PoolError::HostBits { given: text.to_owned(), right: format!("{base}/{length}") });
        }
        if !first.is_multicast() {
            return Err(PoolError::NotMulticast(text.to_owned()));
        }
        if length < shortest {
            return Err(PoolError::TooWide { given: text.to_owned(), shortest });
        }
        if let Some(why) = unusable(first) {
            return Err(PoolError::Unusable { given: text.to_owned(), why });
        }
        Ok(Self { first, length })
    }
}

/// Why no host set can be addressed by the range, if that is so.
fn unusable(first: IpAddr) -> Option<&'static str> {
    match first {
        // Ranges are aligned, so one that meets the flooded block begins in it.
        IpAddr::V4(a) => (a.to_bits() & 0x007F_FFFF < 256)
            .then_some("switches flood the Ethernet addresses of 224.0.0.0/24, which it shares"),
        IpAddr::V6(a) => match a.segments()[0] & 0xF {
            0 | 0xF => Some("its scope is reserved (RFC 4291, 2.7)"),
            1 => Some("its scope is one interface"),
            _ => None,
        },
    }
}

impl fmt::Display for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::{Pool, PoolError};

    #[test]
    fn addresses_of_both_families() {
        let pool: Pool = "239.77.0.0/16".parse().unwrap();
        assert_eq!(pool.size(), 65_536);
        assert_eq!(pool.nth(258).unwrap().to_string(), "239.77.1.2");
        assert_eq!(pool.nth(65_536), None);
        assert!(pool.contains("239.77.255.255".parse().unwrap()));
        assert!(!pool.contains("239.78.0.0".parse().unwrap()));
        let pool: Pool = "ff15::4d00:0/112".parse().unwrap();
        assert_eq!(pool.nth(3).unwrap().to_string(), "ff15::4d00:3");
        assert!(!pool.contains("239.77.0.0".parse().unwrap()));
        assert_eq!("239.77.1.1/32".parse::<Pool>().unwrap().size(), 1);
        assert_eq!("ff15::/96".parse::<Pool>().unwrap().size(), u32::MAX);
    }

    #[test]
    fn refusals_say_why() {
        let error = |text: &str| text.parse::<Pool>().unwrap_err();
        assert!(matches!(error("239.77.0.0"), PoolError::Syntax(_)));
        assert!(matches!(error("239.77.0.0/33"), PoolError::Syntax(_)));
        assert!(matches!(error("10.0.0.0/16"), PoolError::NotMulticast(_)));
        assert!(matches!(error("239.77.0.1/16"), PoolError::HostBits { .. }));
        assert!(matches!(error("224.0.0.0/4"), PoolError::TooWide { .. }));
        assert!(matches!(error("224.0.0.0/24"), PoolError::Unusable { .. }));
        assert!(matches!(error("239.128.0.0/16"), PoolError::Unusable { .. }));
        assert!(matches!(error("ff11::/112"), PoolError::Unusable { .. }));
        assert!(error("239.77.0.1/16").to_string().ends_with("write 239.77.0.0/16"));
    }
}
