//! Bytes on every link and the time they take, before a page moves.

use std::time::Duration;

use crate::schedule::{Channel, Schedule, SegmentWeight, source_cost};

/// Rates of the links, in bit/s; a rate of 0 counts as unlimited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkRates {
    /// The source's link.
    pub source_bps: u64,
    /// Each host's link, by host index.
    pub host_bps: Vec<u64>,
}

/// Predicted bytes (payload, without headers and repair) and times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prediction {
    /// Bytes of all segments, each once: what the source sends at least.
    pub unique_bytes: u64,
    /// Bytes on the source's link.
    pub source_bytes: u64,
    /// Each host's link, by host index.
    pub hosts: Vec<HostPrediction>,
    /// Bytes on all links: the source's and every host's.
    pub traffic_bytes: u64,
    /// What no schedule of this placement can go below: the time of the unique bytes on the source's link, or of a
    /// host's need on its own, whichever is longest.
    pub lower_bound: Duration,
    /// Predicted time: each segment at the rate of the slowest link that it crosses, and the waits for joins.
    pub duration: Duration,
}

/// A host's link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostPrediction {
    /// Bytes that the host needs.
    pub needed_bytes: u64,
    /// Bytes that its link carries: what it needs, and what comes in groups larger than a segment's host set.
    pub received_bytes: u64,
}

/// Predicts a schedule of `segments`.
///
/// # Panics
/// If a segment names a host beyond `rates.host_bps`, or the schedule is not one of these segments.
#[must_use]
pub fn predict(segments: &[SegmentWeight], schedule: &Schedule, rates: &LinkRates) -> Prediction {
    let mut hosts = vec![HostPrediction::default(); rates.host_bps.len()];
    let (mut source_bytes, mut unique_bytes) = (0u64, 0u64);
    let mut duration = schedule.stall;
    for placed in &schedule.segments {
        let segment = &segments[placed.segment];
        unique_bytes += segment.bytes;
        let cost = source_cost(segment, placed.channel);
        source_bytes += cost;
        for host in segment.hosts.iter() {
            hosts[usize::from(host)].needed_bytes += segment.bytes;
        }
        let receivers = match placed.channel {
            Channel::Group(group) => &schedule.groups[group].hosts,
            Channel::Unicast => &segment.hosts,
        };
        let mut slowest = time(cost, rates.source_bps);
        for host in receivers.iter().map(usize::from) {
            hosts[host].received_bytes += segment.bytes;
            slowest = slowest.max(time(segment.bytes, rates.host_bps[host]));
        }
        duration += slowest;
    }
    let needs = hosts.iter().zip(&rates.host_bps).map(|(host, &bps)| time(host.needed_bytes, bps));
    let lower_bound = needs.fold(time(unique_bytes, rates.source_bps), Duration::max);
    let traffic_bytes = source_bytes + hosts.iter().map(|host| host.received_bytes).sum::<u64>();
    Prediction { unique_bytes, source_bytes, hosts, traffic_bytes, lower_bound, duration }
}

fn time(bytes: u64, rate_bps: u64) -> Duration {
    let nanos = (u128::from(bytes) * 8_000_000_000).checked_div(u128::from(rate_bps)).unwrap_or(0);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}
