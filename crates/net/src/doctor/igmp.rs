//! IGMP queries (RFC 2236 §2, RFC 3376 §4.1). `pnet` has types for the layers around them, none for IGMP.

use pnet::packet::Packet;
use pnet::packet::ethernet::{EtherTypes, EthernetPacket};
use pnet::packet::ip::IpNextHeaderProtocols;
use pnet::packet::ipv4::Ipv4Packet;
use pnet::util::checksum;
use std::net::Ipv4Addr;
use std::time::Duration;

const MEMBERSHIP_QUERY: u8 = 0x11;
const V2_BYTES: usize = 8;
const V3_BYTES: usize = 12;

/// A membership query.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IgmpQuery {
    /// The querier's address; unspecified if it is a bridge without one.
    pub source: Ipv4Addr,
    /// 1, 2 or 3.
    pub version: u8,
    /// The group asked about; `None` in a general query.
    pub group: Option<Ipv4Addr>,
    /// Time between general queries, if the querier says (version 3).
    pub interval: Option<Duration>,
}

/// Why bytes are not a membership query.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IgmpError {
    /// Not IGMP over IPv4 over Ethernet, or another IGMP message.
    #[error("not a membership query")]
    Other,
    /// Shorter than its kind.
    #[error("cut short")]
    Short,
    /// The checksum is wrong.
    #[error("wrong checksum")]
    Checksum,
}

impl IgmpQuery {
    /// Reads an Ethernet frame.
    ///
    /// # Errors
    /// [`IgmpError`]; any bytes may be given.
    pub fn from_frame(frame: &[u8]) -> Result<Self, IgmpError> {
        let ethernet = EthernetPacket::new(frame).ok_or(IgmpError::Short)?;
        if ethernet.get_ethertype() != EtherTypes::Ipv4 {
            return Err(IgmpError::Other);
        }
        Self::from_ipv4(ethernet.payload())
    }

    /// Reads an IPv4 packet, perhaps with padding behind it.
    ///
    /// # Errors
    /// [`IgmpError`]; any bytes may be given.
    pub fn from_ipv4(bytes: &[u8]) -> Result<Self, IgmpError> {
        let packet = Ipv4Packet::new(bytes).ok_or(IgmpError::Short)?;
        if packet.get_version() != 4 || packet.get_next_level_protocol() != IpNextHeaderProtocols::Igmp {
            return Err(IgmpError::Other);
        }
        // The library's own payload trusts the lengths in the packet.
        let header = usize::from(packet.get_header_length()) * 4;
        let total = usize::from(packet.get_total_length());
        let message =
            bytes.get(header.max(Ipv4Packet::minimum_packet_size())..total).ok_or(IgmpError::Short)?;
        Self::from_message(packet.get_source(), message)
    }

    fn from_message(source: Ipv4Addr, message: &[u8]) -> Result<Self, IgmpError> {
        let (head, rest) = message.split_first_chunk::<V2_BYTES>().ok_or(IgmpError::Short)?;
        let &[kind, max_response, _, _, a, b, c, d] = head;
        if kind != MEMBERSHIP_QUERY {
            return Err(IgmpError::Other);
        }
        if checksum(message, 1) != u16::from_be_bytes([head[2], head[3]]) {
            return Err(IgmpError::Checksum);
        }
        let (version, interval) = match (rest.get(..V3_BYTES - V2_BYTES), max_response) {
            (Some(&[_, qqic, _, _]), _) => (3, Some(interval(qqic))),
            (Some(_), _) => return Err(IgmpError::Short),
            (None, 0) => (1, None),
            (None, _) => (2, None),
        };
        let group = Ipv4Addr::new(a, b, c, d);
        Ok(Self { source, version, group: (!group.is_unspecified()).then_some(group), interval })
    }
}

/// Querier's Query Interval Code (RFC 3376 §4.1.7): seconds, from 128 up as a small float.
fn interval(code: u8) -> Duration {
    let code = u64::from(code);
    let seconds = if code < 128 { code } else { (code & 0xf | 0x10) << ((code >> 4 & 7) + 3) };
    Duration::from_secs(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(message: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([8, 0]);
        let total = u16::try_from(24 + message.len()).expect("small").to_be_bytes();
        frame.extend([0x46, 0xc0, total[0], total[1], 0, 0, 0x40, 0, 1, 2, 0, 0, 10, 77, 0, 9, 224, 0, 0, 1]);
        frame.extend([0x94, 4, 0, 0]);
        frame.extend(message);
        frame.resize(frame.len().max(60), 0);
        frame
    }

    fn summed(message: &[u8]) -> Vec<u8> {
        let mut message = message.to_vec();
        let sum = checksum(&message, 1).to_be_bytes();
        message[2..4].copy_from_slice(&sum);
        message
    }

    #[test]
    fn queries_of_each_version() {
        let source = Ipv4Addr::new(10, 77, 0, 9);
        let query = |bytes: &[u8]| IgmpQuery::from_frame(&frame(&summed(bytes))).expect("a query");
        let general = IgmpQuery { source, version: 2, group: None, interval: None };
        assert_eq!(query(&[0x11, 100, 0, 0, 0, 0, 0, 0]), general);
        assert_eq!(query(&[0x11, 0, 0, 0, 0, 0, 0, 0]), IgmpQuery { version: 1, ..general });
        let group = Some(Ipv4Addr::new(239, 1, 2, 3));
        let interval = Some(Duration::from_secs(125));
        let v3 = query(&[0x11, 10, 0, 0, 239, 1, 2, 3, 2, 125, 0, 0]);
        assert_eq!(v3, IgmpQuery { version: 3, group, interval, ..general });
        // 1 | exponent 0 | mantissa 0: 16 << 3.
        let long = query(&[0x11, 10, 0, 0, 0, 0, 0, 0, 2, 0x80, 0, 0]);
        assert_eq!(long.interval, Some(Duration::from_secs(128)));
    }

    #[test]
    fn damage_is_named_and_never_a_panic() {
        let good = frame(&summed(&[0x11, 100, 0, 0, 0, 0, 0, 0]));
        for length in 0..46 {
            assert!(IgmpQuery::from_frame(&good[..length]).is_err(), "{length}");
        }
        let mut seed = 1_u64;
        for _ in 0..200_000 {
            let mut bytes = good.clone();
            for _ in 0..3 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let [.., place, value] = (seed >> 40).to_be_bytes();
                let place = usize::from(place) % bytes.len();
                bytes[place] = value;
            }
            let _ = IgmpQuery::from_frame(&bytes);
        }
        let mut wrong = good;
        wrong[41] ^= 1;
        assert_eq!(IgmpQuery::from_frame(&wrong), Err(IgmpError::Checksum));
        let report = frame(&summed(&[0x16, 0, 0, 0, 239, 0, 0, 1]));
        assert_eq!(IgmpQuery::from_frame(&report), Err(IgmpError::Other));
    }
}
