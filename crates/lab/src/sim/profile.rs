//! What a link of the simulated network does to datagrams.

use std::time::Duration;

/// Bytes that a datagram has on a link beside its payload: Ethernet, IPv4 and UDP headers (14 + 20 + 8), as
/// a Linux interface counts them.
pub const WIRE_OVERHEAD: u32 = 42;

/// Bytes of [`WIRE_OVERHEAD`] that count against [`LinkProfile::mtu`]: IPv4 and UDP headers.
pub const IP_OVERHEAD: u32 = 28;

/// How a link loses datagrams. Chances are in parts per million (`10_000` = 1 %).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum LossModel {
    /// Nothing is lost.
    #[default]
    None,
    /// Each datagram is lost with the same chance, independently.
    Random {
        /// Chance of loss, ppm.
        ppm: u32,
    },
    /// Two states, each with its own chance of loss (Gilbert 1960, Elliott 1963). The state may change
    /// before each datagram; a link starts in the good state.
    GilbertElliott {
        /// Chance to go from good to bad, ppm a datagram.
        to_bad_ppm: u32,
        /// Chance to go from bad to good, ppm a datagram. The mean burst is its inverse.
        to_good_ppm: u32,
        /// Chance of loss in the good state, ppm.
        loss_good_ppm: u32,
        /// Chance of loss in the bad state, ppm.
        loss_bad_ppm: u32,
    },
    /// The first `length` of each `every` datagrams are lost.
    Burst {
        /// Datagrams lost in a row.
        length: u32,
        /// Datagrams from one burst's start to the next one's; at least 1.
        every: u32,
    },
}

/// One direction of a host's link to the switch. Copied, changed and set at any time
/// ([`SimNet::set_profile`](super::SimNet::set_profile)); the change applies to datagrams sent from then on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkProfile {
    /// Bits a second of the link, [`WIRE_OVERHEAD`] counted; `None`: any number at once.
    pub rate_bps: Option<u64>,
    /// Bytes that wait for the link at most; a datagram that finds no room is dropped. Without a rate nothing waits.
    pub queue_bytes: u32,
    /// Time on the way, after the last bit has left.
    pub delay: Duration,
    /// Further time, uniform in `0..=jitter`, drawn for each datagram: more than the gap between two datagrams reorders them.
    pub jitter: Duration,
    /// Datagrams lost on the way. They use the link's rate up to there.
    pub loss: LossModel,
    /// Chance that a datagram arrives twice, ppm; the second with a jitter of its own.
    pub duplicate_ppm: u32,
    /// Chance that 1 to 3 bits of a datagram arrive flipped, ppm (as if its checksum had matched by accident).
    pub corrupt_ppm: u32,
    /// Largest IP packet in bytes: payloads above `mtu` − [`IP_OVERHEAD`] are dropped.
    pub mtu: u32,
}

impl Default for LinkProfile {
    /// A perfect link: no rate, 25 µs, no faults, MTU 1,500, a queue of 1 MiB for when a rate is set.
    fn default() -> Self {
        Self {
            rate_bps: None,
            queue_bytes: 1 << 20,
            delay: Duration::from_micros(25),
            jitter: Duration::ZERO,
            loss: LossModel::None,
            duplicate_ppm: 0,
            corrupt_ppm: 0,
            mtu: 1_500,
        }
    }
}

/// How fast the switch learns of memberships.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MulticastTiming {
    /// From a join to the first datagram forwarded.
    pub join_latency: Duration,
    /// From a leave to the last datagram forwarded: this traffic uses the host's link and is not delivered.
    pub leave_tail: Duration,
}

impl Default for MulticastTiming {
    /// As measured on a Linux bridge without fast-leave: 12 ms to join, 2 s to leave.
    fn default() -> Self {
        Self { join_latency: Duration::from_millis(12), leave_tail: Duration::from_secs(2) }
    }
}
