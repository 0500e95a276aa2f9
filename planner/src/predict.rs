//! Bytes on every link and the time they take, before a page moves.

mod overhead;

use std::time::Duration;

use crate::HostSet;
use crate::network::{Crossed, Network};
use crate::schedule::{Channel, Schedule, SegmentWeight};

pub use overhead::Overhead;
pub(crate) use overhead::power;

/// Predicted bytes and times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prediction {
    /// Bytes of all segments, each once: what the source sends at least.
    pub unique_bytes: u64,
    /// Each link, by its index in the network.
    pub links: Vec<LinkPrediction>,
    /// Bytes that each host needs.
    pub needed_bytes: Vec<u64>,
    /// Bytes on all links.
    pub traffic_bytes: u64,
    /// Bytes on all links, each times its link's cost.
    pub traffic_cost: u64,
    /// What no schedule of this placement can go below: the time of the busiest link if each carried what is needed
    /// behind it, once.
    pub lower_bound: Duration,
    /// Predicted time: each segment at the rate of the slowest link that it crosses, and the waits for joins.
    pub duration: Duration,
    /// When each host has everything.
    pub done: Vec<Duration>,
}

/// What a link carries. Bytes are payload unless named otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkPrediction {
    /// Bytes needed behind it, each content once.
    pub needed_bytes: u64,
    /// Bytes on it.
    pub bytes: u64,
    /// The same with headers and expected repair.
    pub network_bytes: u64,
}

/// Predicts a schedule of `segments` on a network.
///
/// # Panics
/// If a segment names a host that the network lacks, or the schedule is not one of these segments.
#[must_use]
pub fn predict(
    segments: &[SegmentWeight],
    schedule: &Schedule,
    network: &Network,
    overhead: &Overhead,
) -> Prediction {
    let mut adding = Adding::new(network, overhead);
    let mut waits = schedule.waits.iter().peekable();
    for (position, placed) in schedule.segments.iter().enumerate() {
        while let Some((_, wait)) = waits.next_if(|(at, _)| *at <= position) {
            adding.clock += *wait;
        }
        let segment = &segments[placed.segment];
        let time = match placed.channel {
            Channel::Group(group) => adding.group(segment, &schedule.groups[group].hosts),
            Channel::Unicast => adding.unicast(segment),
        };
        adding.clock += time;
        segment.hosts.iter().for_each(|host| adding.done[usize::from(host)] = adding.clock);
    }
    adding.finish()
}

/// Sums along a schedule.
struct Adding<'a> {
    network: &'a Network,
    overhead: &'a Overhead,
    crossed: Crossed,
    links: Vec<LinkPrediction>,
    /// Network bytes that each link would carry at least.
    least: Vec<u64>,
    unique_bytes: u64,
    clock: Duration,
    done: Vec<Duration>,
}

impl<'a> Adding<'a> {
    fn new(network: &'a Network, overhead: &'a Overhead) -> Self {
        let count = network.links().len();
        Self {
            network,
            overhead,
            crossed: Crossed::new(network),
            links: vec![LinkPrediction::default(); count],
            least: vec![0; count],
            unique_bytes: 0,
            clock: Duration::ZERO,
            done: vec![Duration::ZERO; network.hosts()],
        }
    }

    /// What the segment's own hosts need.
    fn need(&mut self, segment: &SegmentWeight) {
        self.unique_bytes += segment.bytes;
        let least = self.overhead.bytes(segment.bytes, 1);
        for &link in self.crossed.by(self.network, &segment.hosts) {
            self.links[link].needed_bytes += segment.bytes;
            self.least[link] += least;
        }
    }

    /// Multicast to `members`: the time of the slowest link.
    fn group(&mut self, segment: &SegmentWeight, members: &HostSet) -> Duration {
        self.need(segment);
        let bytes = self.overhead.bytes(segment.bytes, members.len());
        let mut slowest = Duration::ZERO;
        for &link in self.crossed.by(self.network, members) {
            self.links[link].bytes += segment.bytes;
            self.links[link].network_bytes += bytes;
            slowest = slowest.max(time(bytes, self.network.links()[link].rate_bps));
        }
        slowest
    }

    /// A copy for each host: the time of the slowest link, or of the source's with all copies.
    fn unicast(&mut self, segment: &SegmentWeight) -> Duration {
        self.need(segment);
        let bytes = self.overhead.bytes(segment.bytes, 1);
        let mut slowest = Duration::ZERO;
        let mut copies = 0u64;
        for host in segment.hosts.iter() {
            copies += 1;
            for link in self.network.way(host) {
                self.links[link].bytes += segment.bytes;
                self.links[link].network_bytes += bytes;
                slowest = slowest.max(time(bytes, self.network.links()[link].rate_bps));
            }
        }
        slowest.max(time(bytes.saturating_mul(copies), self.network.links()[0].rate_bps))
    }

    fn finish(self) -> Prediction {
        let links = self.network.links();
        let bound = self.least.iter().zip(links).map(|(&bytes, link)| time(bytes, link.rate_bps));
        let sum = |of: fn(&LinkPrediction, u64) -> u64| {
            let parts = self.links.iter().zip(links).map(|(load, link)| of(load, link.cost));
            parts.fold(0, u64::saturating_add)
        };
        Prediction {
            unique_bytes: self.unique_bytes,
            needed_bytes: self.links[links.len() - self.network.hosts()..]
                .iter()
                .map(|load| load.needed_bytes)
                .collect(),
            traffic_bytes: sum(|load, _| load.bytes),
            traffic_cost: sum(|load, cost| load.bytes.saturating_mul(cost)),
            lower_bound: bound.fold(Duration::ZERO, Duration::max),
            duration: self.clock,
            done: self.done,
            links: self.links,
        }
    }
}

/// Time that bytes take on a link; a rate of 0 counts as unlimited.
pub(crate) fn time(bytes: u64, rate_bps: u64) -> Duration {
    let nanos = (u128::from(bytes) * 8_000_000_000).checked_div(u128::from(rate_bps)).unwrap_or(0);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}
