//! Datagrams whose every byte is known, to find out what a path does to them.

use super::Finding;
use crate::interface::Interface;
use crate::udp::{Family, SenderOptions, UdpError, UdpReceiver, UdpSender, Waker};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

/// Bytes of a [`probe_payload`]: fits every path that carries IPv6.
pub const PROBE_BYTES: usize = 1200;
/// Magic, number, length. The third byte tells probes from data, where the version stands.
const HEAD_BYTES: usize = 12;
const MAGIC: [u8; 4] = *b"VSPB";

/// What is wrong with a datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProbeError {
    /// Not one of ours.
    #[error("not a probe")]
    NotAProbe,
    /// One of ours, with another length than it was sent with.
    #[error("probe {number}: {got} bytes of {sent}")]
    Length {
        /// Its number, as received.
        number: u32,
        /// Length received.
        got: usize,
        /// Length sent, as received.
        sent: usize,
    },
    /// One of ours, altered on the way.
    #[error("probe {number} is altered at byte {at}")]
    Altered {
        /// Its number, as received.
        number: u32,
        /// First byte that differs.
        at: usize,
    },
}

/// Probe `number`, [`PROBE_BYTES`] long.
#[must_use]
pub fn probe_payload(number: u32) -> Vec<u8> {
    probe_payload_sized(number, PROBE_BYTES)
}

/// Probe `number` in `bytes` bytes, at least 12.
#[must_use]
pub fn probe_payload_sized(number: u32, bytes: usize) -> Vec<u8> {
    let bytes = bytes.max(HEAD_BYTES);
    let mut payload = Vec::with_capacity(bytes);
    payload.extend(MAGIC);
    payload.extend(number.to_le_bytes());
    payload.extend(u32::try_from(bytes).unwrap_or(u32::MAX).to_le_bytes());
    payload.extend(pattern(number).take(bytes - HEAD_BYTES));
    payload
}

/// The number of a whole, unaltered probe.
///
/// # Errors
/// [`ProbeError`]; any bytes may be given.
pub fn check_probe(datagram: &[u8]) -> Result<u32, ProbeError> {
    let (head, body) = datagram.split_first_chunk::<HEAD_BYTES>().ok_or(ProbeError::NotAProbe)?;
    let [a, b, c, d, n0, n1, n2, n3, l0, l1, l2, l3] = *head;
    if [a, b, c, d] != MAGIC {
        return Err(ProbeError::NotAProbe);
    }
    let number = u32::from_le_bytes([n0, n1, n2, n3]);
    let sent = usize::try_from(u32::from_le_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
    if sent != datagram.len() {
        return Err(ProbeError::Length { number, got: datagram.len(), sent });
    }
    match body.iter().zip(pattern(number)).position(|(&got, want)| got != want) {
        Some(at) => Err(ProbeError::Altered { number, at: HEAD_BYTES + at }),
        None => Ok(number),
    }
}

/// Bytes that differ from probe to probe (SplitMix64), so that swapped pieces show.
fn pattern(number: u32) -> impl Iterator<Item = u8> {
    (u64::from(number) << 32..).flat_map(|state| {
        let mut word = state.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ word >> 31).to_le_bytes()
    })
}

/// Sends probes `0..count` of `bytes` each to `dest`, as one batch for each GSO packet that fits.
///
/// # Errors
/// As [`UdpSender::send_batch`].
pub fn send_probes(sender: &mut UdpSender, dest: SocketAddr, count: u32, bytes: usize) -> io::Result<()> {
    let bytes = bytes.max(HEAD_BYTES);
    let batch: Vec<u8> = (0..count).flat_map(|number| probe_payload_sized(number, bytes)).collect();
    sender.send_batch(dest, &batch, bytes)
}

/// What arrived of a number of probes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProbeTally {
    /// Whether probe `i` came whole.
    arrived: Vec<bool>,
    /// Whole probes that came more than once.
    pub repeated: u32,
    /// Probes that came altered or cut.
    pub altered: u32,
    /// The first of these.
    pub first_error: Option<ProbeError>,
}

impl ProbeTally {
    /// For probes `0..count`; at most 65,536 are told apart.
    #[must_use]
    pub fn new(count: u16) -> Self {
        Self { arrived: vec![false; count.into()], repeated: 0, altered: 0, first_error: None }
    }

    /// Counts a datagram; what is no probe at all is left out.
    pub fn count(&mut self, datagram: &[u8]) {
        match check_probe(datagram) {
            Ok(number) => {
                let place = usize::try_from(number).ok().and_then(|index| self.arrived.get_mut(index));
                if place.is_some_and(|arrived| std::mem::replace(arrived, true)) {
                    self.repeated += 1;
                }
            }
            Err(ProbeError::NotAProbe) => {}
            Err(error) => {
                self.altered += 1;
                self.first_error.get_or_insert(error);
            }
        }
    }

    /// Probes that came whole, each counted once.
    #[must_use]
    pub fn whole(&self) -> usize {
        self.arrived.iter().filter(|&&arrived| arrived).count()
    }

    /// Whether every probe has come whole.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.arrived.iter().all(|&arrived| arrived)
    }

    /// What this says of the path: altered datagrams are a problem, nothing at all is one, loss is a warning.
    /// `path` is named in the text: `eth0 → host web1, group 239.1.2.3`.
    #[must_use]
    pub fn finding(&self, check: &'static str, path: &str, gso: bool) -> Finding {
        let (whole, count) = (self.whole(), self.arrived.len());
        if self.altered > 0 {
            let first = self.first_error.map_or_else(String::new, |error| format!("; {error}"));
            let remedy = if gso {
                "the device or its driver corrupts GSO: send without, or `ethtool -K INTERFACE tx-udp-segmentation off`"
            } else {
                "something on the path alters datagrams: check its checksum offloads (`ethtool -k`) and middleboxes"
            };
            return Finding::problem(
                check,
                format!("{path}: {} probes altered{first}", self.altered),
                remedy,
            );
        }
        if whole == 0 {
            return Finding::problem(
                check,
                format!("{path}: none of {count} probes arrived"),
                "check the receiving interface, firewalls on both hosts (`nft list ruleset`), and that the switches \
                 between pass multicast (snooping with a querier)",
            );
        }
        if whole < count {
            let what = format!("{path}: {whole} of {count} probes arrived");
            return Finding::warning(
                check,
                what,
                "loss is repaired, but costs time: look for overload or errors",
            );
        }
        Finding::ok(check, format!("{path}: all {count} probes arrived whole"))
    }
}

/// Sends GSO packets out by `interface` to a group that this host is a member of, and checks what the kernel hands
/// back: finds a kernel that gets GSO, GRO or multicast loopback wrong, in at most `wait`. The device itself comes
/// into it only with a second host: [`send_probes`] there and [`ProbeTally`] here.
#[must_use]
pub fn gso_local(interface: &Interface, family: Family, wait: Duration) -> Finding {
    const CHECK: &str = "gso";
    const COUNT: u16 = 100;
    let (mut receiver, mut sender, dest) = match prepare(interface, family) {
        Ok(prepared) => prepared,
        Err(error) => {
            let what = format!("{}: {error}", interface.name);
            return Finding::problem(CHECK, what, "is the interface up, with an address of this family?");
        }
    };
    if !sender.gso() {
        return Finding::warning(
            CHECK,
            format!("{} takes no GSO; sending costs about three times the CPU time", interface.name),
            "use a kernel from 4.18 on, and `ethtool -K INTERFACE tx-checksum-ip-generic on` where there is such",
        );
    }
    let mut tally = ProbeTally::new(COUNT);
    let bytes = PROBE_BYTES.min(usize::try_from(interface.datagram_bytes_max(family)).unwrap_or(PROBE_BYTES));
    let waker = Waker::new();
    let received = waker.and_then(|waker| {
        send_probes(&mut sender, dest, COUNT.into(), bytes)?;
        let start = Instant::now();
        while !tally.is_complete() && start.elapsed() < wait {
            let rest = wait.saturating_sub(start.elapsed());
            receiver.recv_batch(rest, &waker, |_, datagram| tally.count(datagram))?;
        }
        Ok(())
    });
    if let Err(error) = received {
        let what = format!("{}: sending to {dest} failed: {error}", interface.name);
        return Finding::problem(
            CHECK,
            what,
            "is there a route for multicast, and does a firewall allow it?",
        );
    }
    tally.finding(CHECK, &format!("GSO through {} and back", interface.name), true)
}

fn prepare(interface: &Interface, family: Family) -> Result<(UdpReceiver, UdpSender, SocketAddr), UdpError> {
    let group = match family {
        Family::V4 => Ipv4Addr::new(239, 255, 118, 116).into(),
        Family::V6 => Ipv6Addr::new(0xff12, 0, 0, 0, 0, 0, 0x7673, 0x7074).into(),
    };
    let mut receiver = UdpReceiver::bind(0, family, interface, 1 << 20)?;
    receiver.join(group)?;
    // TTL 0: nothing leaves the host.
    let options = SenderOptions { ttl: 0, loopback: true, ..SenderOptions::default() };
    let sender = UdpSender::bind(interface, family, options)?;
    let dest = SocketAddr::new(group, receiver.port());
    Ok((receiver, sender, dest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_altered_byte_and_length_shows() {
        let probe = probe_payload_sized(7, 100);
        assert_eq!(check_probe(&probe), Ok(7));
        assert_eq!(probe_payload(8).len(), PROBE_BYTES);
        for at in 0..probe.len() {
            let mut altered = probe.clone();
            altered[at] ^= 0x10;
            assert!(check_probe(&altered).is_err(), "{at}");
            assert!(check_probe(&probe[..at]).is_err(), "{at}");
        }
        let mut swapped = probe_payload_sized(7, 100);
        swapped[50..].copy_from_slice(&probe_payload_sized(8, 100)[50..]);
        assert_eq!(check_probe(&swapped), Err(ProbeError::Altered { number: 7, at: 50 }));
    }

    #[test]
    fn tallies_tell_loss_from_damage() {
        use super::super::Severity;
        let severity = |tally: &ProbeTally| tally.finding("probe", "a → b", true).severity;
        let mut tally = ProbeTally::new(3);
        tally.count(b"something else");
        assert_eq!(severity(&tally), Severity::Problem);
        tally.count(&probe_payload(0));
        tally.count(&probe_payload(0));
        tally.count(&probe_payload(99));
        assert_eq!((tally.whole(), tally.repeated, severity(&tally)), (1, 1, Severity::Warning));
        tally.count(&probe_payload(1));
        tally.count(&probe_payload(2));
        assert!(tally.is_complete());
        assert_eq!(severity(&tally), Severity::Ok);
        tally.count(&probe_payload(1)[..20]);
        assert_eq!((tally.altered, severity(&tally)), (1, Severity::Problem));
    }
}
