//! Which channel carries each segment, in which order, and when each host joins and leaves.

mod bounds;
mod channels;
mod exact;
mod local;
mod memberships;
mod merging;
mod modes;
mod order;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::HostSet;
use crate::inventory::{Isolation, Multicast};
use crate::pool::Pool;

pub use bounds::Bounds;
pub use modes::{CurvePoint, ModeSchedule, best_mode, group_curve, groups_needed, schedule_by};

/// A segment's host set and its bytes (payload, as encoded, without headers and repair).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentWeight {
    /// The hosts that need its contents. An empty set is scheduled last, and costs nothing.
    pub hosts: HostSet,
    /// Bytes of its contents, each counted once.
    pub bytes: u64,
}

/// What groups cost and how many there may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupLimits {
    /// Number of addresses in the pool.
    pub pool_size: u32,
    /// Most group addresses in use, whatever the pool holds; switches hold a limited number. With 0, here or
    /// above, everything goes unicast.
    pub max_groups: u32,
    /// Most group addresses that one host has joined at once. With 0, everything goes unicast.
    pub memberships_max: u32,
    /// From a host's join to the first datagram.
    pub join_latency: Duration,
    /// For how long datagrams still come after a leave.
    pub leave_tail: Duration,
    /// Rate at which the source sends, in bit/s. With 0, times are taken as 0.
    pub rate_bps: u64,
    /// A set with fewer bytes than this is not worth a group, whatever a join costs.
    pub unicast_below_bytes: u64,
    /// Most bytes that the source may send again to spare slivers a group, in thousandths of all bytes.
    pub unicast_extra_permille: u64,
    /// Most bytes that a host may get in groups that hold more than it needs, in thousandths of its need.
    pub superset_extra_permille: u64,
    /// With [`Isolation::Strict`] no host is in a group whose bytes it does not need.
    pub isolation: Isolation,
    /// Seed of the search for an order.
    pub seed: u64,
}

impl Default for GroupLimits {
    /// The values of LAB.md's bridge and Linux's defaults, at 1 Gbit/s.
    fn default() -> Self {
        Self {
            pool_size: 65_536,
            max_groups: 1024,
            memberships_max: 20,
            join_latency: Duration::from_millis(20),
            leave_tail: Duration::from_secs(2),
            rate_bps: 1_000_000_000,
            unicast_below_bytes: 64 << 10,
            unicast_extra_permille: 3,
            superset_extra_permille: 20,
            isolation: Isolation::Normal,
            seed: 0,
        }
    }
}

impl GroupLimits {
    /// The limits of a plan's or inventory's multicast section, for a source sending at `rate_bps`; the rest as in
    /// [`GroupLimits::default`].
    #[must_use]
    pub fn new(multicast: &Multicast, pool: &Pool, isolation: Isolation, rate_bps: u64) -> Self {
        Self {
            pool_size: pool.size(),
            max_groups: multicast.max_groups,
            memberships_max: multicast.memberships_max,
            join_latency: Duration::from_millis(multicast.join_latency_ms.into()),
            leave_tail: Duration::from_millis(multicast.leave_tail_ms.into()),
            rate_bps,
            superset_extra_permille: multicast.superset_permille.into(),
            isolation,
            ..Self::default()
        }
    }

    /// What one join may cost at worst: the bytes that the source could send while it waits for it.
    #[must_use]
    pub fn join_cost_bytes(&self) -> u64 {
        self.bytes_in(self.join_latency)
    }

    /// Number of group addresses that may be in use.
    fn addresses(&self) -> u32 {
        self.pool_size.min(self.max_groups)
    }

    fn bytes_in(&self, time: Duration) -> u64 {
        let bytes = u128::from(self.rate_bps) * time.as_nanos() / 8_000_000_000;
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }

    fn time_of(&self, bytes: u64) -> Duration {
        if self.rate_bps == 0 {
            return Duration::ZERO;
        }
        let nanos = u128::from(bytes) * 8_000_000_000 / u128::from(self.rate_bps);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// How a segment travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Channel {
    /// Once, to the group with this index in [`Schedule::groups`].
    Group(usize),
    /// To each of its hosts by itself.
    Unicast,
}

/// A segment in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScheduledSegment {
    /// Its index in the segments given.
    pub segment: usize,
    /// How it travels.
    pub channel: Channel,
}

/// A multicast group: an exact set of members with a key of its own. Its segments follow each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScheduledGroup {
    /// Its members.
    pub hosts: HostSet,
    /// Its address's position in the pool. Two groups have one address only if the earlier one's segments are all
    /// before the later one's, and before any host joins for the later one.
    pub address: u32,
    /// Position of its first segment in [`Schedule::segments`].
    pub first: usize,
    /// Position of its last segment.
    pub last: usize,
}

/// One host's time in one group.
///
/// Where a group takes over an earlier one's address and a host is in both, the earlier membership may last until
/// the later begins (`leave_after` at or after the later one's `join_before`): the host stays joined to the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The host.
    pub host: u16,
    /// The group's index in [`Schedule::groups`].
    pub group: usize,
    /// The host joins before the segment at this position is sent; at or before the group's first segment.
    pub join_before: usize,
    /// The host leaves after the segment at this position is complete; at or after the group's last segment.
    pub leave_after: usize,
}

/// The order of segments, the group each uses, and when each host joins and leaves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Every segment given, once, in the order of sending.
    pub segments: Vec<ScheduledSegment>,
    /// The groups, in the order of their first segments.
    pub groups: Vec<ScheduledGroup>,
    /// Every host's time in every group it is in, by group, then host.
    pub memberships: Vec<Membership>,
    /// Cost of the order: hosts that change between successive groups, from none at all and back to none. It is
    /// the number of joins and leaves that one group address would see if all groups shared it.
    pub changes: u64,
    /// What no order can go below.
    pub bounds: Bounds,
    /// Joins of group addresses over all hosts; leaves are as many.
    pub joins: u64,
    /// Bytes that the source sends: a group's once, unicast once for each host.
    pub source_bytes: u64,
    /// Time that the source waits for joins, at the rate given, if it does not fill it otherwise.
    pub stall: Duration,
    /// Where it waits: positions in [`Schedule::segments`], ascending, and for how long before each.
    pub waits: Vec<(usize, Duration)>,
    /// Time to send everything at the rate given, stalls included.
    pub duration: Duration,
}

/// Schedules segments: every exact host set gets a group of its own and the cheapest order; single hosts and
/// slivers go unicast or, where that adds little, in a superset's group.
///
/// Deterministic in its arguments. Time about O(K^2 (M/64 + log K)) for K distinct sets over M hosts (K up to
/// 6,000; beyond it K log K and a weaker order), memory 2 K^2 bytes: `docs/planner.md` has figures.
#[must_use]
pub fn schedule(segments: &[SegmentWeight], limits: &GroupLimits) -> Schedule {
    scheduled(segments, limits, &channels::assign(segments, limits))
}

/// A schedule of segments whose channels are known.
fn scheduled(
    segments: &[SegmentWeight],
    limits: &GroupLimits,
    assignment: &channels::Assignment,
) -> Schedule {
    let nodes: Vec<&HostSet> = assignment.groups.iter().map(|group| &group.hosts).collect();
    let weights: Vec<u64> =
        assignment.groups.iter().map(|group| group.own.iter().map(|&s| segments[s].bytes).sum()).collect();
    let found = order::order(&nodes, &weights, limits.seed);
    let timeline = channels::timeline(segments, limits, assignment, &found.tour);
    let costs: Vec<u64> =
        timeline.iter().map(|placed| source_cost(&segments[placed.segment], placed.channel)).collect();
    let members: Vec<HostSet> = found.tour.iter().map(|&node| nodes[node].clone()).collect();
    let joined = memberships::memberships(&members, &timeline, &costs, limits);
    Schedule {
        segments: timeline,
        groups: joined.groups,
        memberships: joined.memberships,
        changes: found.changes,
        bounds: found.bounds,
        joins: joined.joins,
        source_bytes: costs.iter().fold(0, |sum: u64, &cost| sum.saturating_add(cost)),
        stall: joined.stall,
        waits: joined.waits,
        duration: joined.duration,
    }
}

/// Bytes that a segment takes on the source's link.
pub(crate) fn source_cost(segment: &SegmentWeight, channel: Channel) -> u64 {
    match channel {
        Channel::Group(_) => segment.bytes,
        Channel::Unicast => segment.bytes.saturating_mul(segment.hosts.len() as u64),
    }
}
