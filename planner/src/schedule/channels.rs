//! Which segments get a group, which ride in another's, which go unicast.

use std::collections::BTreeMap;

use super::{Channel, GroupLimits, ScheduledSegment, SegmentWeight};
use crate::HostSet;
use crate::inventory::Isolation;

/// Segments of one group, as indexes of the segments given.
#[derive(Clone)]
pub(super) struct GroupSegments {
    /// The group.
    pub(super) hosts: HostSet,
    /// Those that the group is for, in the order given; at least one.
    pub(super) own: Vec<usize>,
    /// Slivers for a part of the group.
    pub(super) riders: Vec<usize>,
}

/// Every segment's channel; groups not yet in order.
#[derive(Clone)]
pub(super) struct Assignment {
    pub(super) groups: Vec<GroupSegments>,
    pub(super) unicast: Vec<usize>,
}

/// A distinct host set.
struct Set<'a> {
    hosts: &'a HostSet,
    size: u64,
    bytes: u64,
    segments: Vec<usize>,
}

impl Set<'_> {
    /// Bytes that the source sends more if this goes unicast.
    fn unicast_extra(&self) -> u64 {
        self.bytes.saturating_mul(self.size - 1)
    }
}

pub(super) fn assign(segments: &[SegmentWeight], limits: &GroupLimits) -> Assignment {
    let mut by_hosts: BTreeMap<&HostSet, Vec<usize>> = BTreeMap::new();
    for (index, segment) in segments.iter().enumerate() {
        by_hosts.entry(&segment.hosts).or_default().push(index);
    }
    let no_groups = limits.addresses() == 0 || limits.memberships_max == 0;
    let join_cost = limits.join_cost_bytes();
    let (mut unicast, mut slivers, mut carriers) = (Vec::new(), Vec::new(), Vec::new());
    for (hosts, indexes) in by_hosts {
        let bytes = total(indexes.iter().map(|&i| segments[i].bytes));
        let set = Set { hosts, size: hosts.len() as u64, bytes, segments: indexes };
        if set.size <= 1 || bytes == 0 || no_groups {
            unicast.extend(set.segments);
        } else if bytes < limits.unicast_below_bytes || set.unicast_extra() < join_cost {
            slivers.push(set);
        } else {
            carriers.push(set);
        }
    }
    let mut sharing = Sharing::new(segments, limits, carriers);
    slivers.sort_by_key(|set| (set.unicast_extra(), set.size));
    for sliver in slivers {
        sharing.settle(sliver, &mut unicast);
    }
    Assignment { groups: sharing.into_groups(), unicast }
}

fn total(bytes: impl Iterator<Item = u64>) -> u64 {
    bytes.fold(0, u64::saturating_add)
}

/// Where slivers may go, and how much of each budget is left.
struct Sharing<'a> {
    /// Sets that are worth a group, fewest hosts first.
    carriers: Vec<Set<'a>>,
    riders: Vec<Vec<usize>>,
    /// Slivers that no budget bears; each gets a group after all.
    own: Vec<Set<'a>>,
    unicast_left: u64,
    /// Bytes that each host may still get without needing them; empty where superset groups are not allowed.
    superset_left: Vec<u64>,
}

impl<'a> Sharing<'a> {
    fn new(segments: &[SegmentWeight], limits: &GroupLimits, mut carriers: Vec<Set<'a>>) -> Self {
        let all = total(segments.iter().map(|s| s.bytes));
        let mut need: Vec<u64> = Vec::new();
        if limits.isolation == Isolation::Normal {
            for segment in segments {
                for host in segment.hosts.iter().map(usize::from) {
                    if host >= need.len() {
                        need.resize(host + 1, 0);
                    }
                    need[host] = need[host].saturating_add(segment.bytes);
                }
            }
        }
        let permille = |bytes: u64, share: u64| {
            u64::try_from(u128::from(bytes) * u128::from(share) / 1000).unwrap_or(u64::MAX)
        };
        carriers.sort_by_key(|set| set.size);
        Self {
            riders: vec![Vec::new(); carriers.len()],
            carriers,
            own: Vec::new(),
            unicast_left: permille(all, limits.unicast_extra_permille),
            superset_left: need.into_iter().map(|n| permille(n, limits.superset_extra_permille)).collect(),
        }
    }

    /// Takes the cheaper of unicast and a superset's group that its budget bears, else a group of its own.
    fn settle(&mut self, sliver: Set<'a>, unicast: &mut Vec<usize>) {
        let extra = sliver.unicast_extra();
        let by_unicast = (extra <= self.unicast_left).then_some(extra);
        let carrier = self.carrier(&sliver);
        match (by_unicast, carrier) {
            (Some(extra), Some((wasted, carrier))) if wasted < extra => self.ride(&sliver, carrier),
            (None, Some((_, carrier))) => self.ride(&sliver, carrier),
            (Some(extra), _) => {
                self.unicast_left -= extra;
                unicast.extend(sliver.segments);
            }
            (None, None) => self.own.push(sliver),
        }
    }

    /// The superset group that wastes least on hosts outside the sliver and stays within their budgets: bytes
    /// wasted, index.
    fn carrier(&self, sliver: &Set) -> Option<(u64, usize)> {
        if self.superset_left.is_empty() {
            return None;
        }
        let (index, set) = self.carriers.iter().enumerate().find(|(_, set)| {
            sliver.hosts.is_subset(set.hosts)
                && set
                    .hosts
                    .difference(sliver.hosts)
                    .iter()
                    .all(|h| self.superset_left[usize::from(h)] >= sliver.bytes)
        })?;
        Some(((set.size - sliver.size).saturating_mul(sliver.bytes), index))
    }

    fn ride(&mut self, sliver: &Set, carrier: usize) {
        for host in self.carriers[carrier].hosts.difference(sliver.hosts).iter() {
            self.superset_left[usize::from(host)] -= sliver.bytes;
        }
        self.riders[carrier].extend(&sliver.segments);
    }

    fn into_groups(self) -> Vec<GroupSegments> {
        let carriers = self.carriers.into_iter().zip(self.riders);
        let own = self.own.into_iter().map(|set| (set, Vec::new()));
        carriers
            .chain(own)
            .map(|(set, riders)| GroupSegments { hosts: set.hosts.clone(), own: set.segments, riders })
            .collect()
    }
}

/// All segments in the order of sending: unicast that fills the time of the first joins, groups in the order of
/// `tour`, the rest of unicast.
pub(super) fn timeline(
    segments: &[SegmentWeight],
    limits: &GroupLimits,
    assignment: &Assignment,
    tour: &[usize],
) -> Vec<ScheduledSegment> {
    let mut unicast: Vec<(u64, usize)> = assignment
        .unicast
        .iter()
        .map(|&index| (super::source_cost(&segments[index], Channel::Unicast), index))
        .collect();
    unicast.sort_by_key(|&(cost, index)| (std::cmp::Reverse(cost), index));
    let ahead = if tour.is_empty() { 0 } else { fill(&mut unicast, limits.join_cost_bytes()) };
    let by_unicast = |&(_, segment): &(u64, usize)| ScheduledSegment { segment, channel: Channel::Unicast };
    let mut order: Vec<ScheduledSegment> = unicast[..ahead].iter().map(by_unicast).collect();
    for (group, &node) in tour.iter().enumerate() {
        let GroupSegments { own, riders, .. } = &assignment.groups[node];
        let channel = Channel::Group(group);
        order.extend(own.iter().chain(riders).map(|&segment| ScheduledSegment { segment, channel }));
    }
    order.extend(unicast[ahead..].iter().map(by_unicast));
    order
}

/// Moves to the front of `unicast` (descending by cost) what fills `bytes`: the smallest that does alone, else the
/// largest together. Returns how many.
fn fill(unicast: &mut [(u64, usize)], bytes: u64) -> usize {
    if bytes == 0 {
        return 0;
    }
    let enough = unicast.partition_point(|&(cost, _)| cost >= bytes);
    if enough > 0 {
        unicast[..enough].rotate_right(1);
        return 1;
    }
    let mut sum = 0u64;
    for (index, &(cost, _)) in unicast.iter().enumerate() {
        if sum >= bytes || cost == 0 {
            return index;
        }
        sum = sum.saturating_add(cost);
    }
    unicast.len()
}
