//! From the planner's schedule to the driver's: addresses for groups, a channel for each host that gets unicast.

use pages::IdSet;
use planner::plan::Mode;
use planner::{Channel, GroupLimits, HostSet, Plan, Pool, SegmentWeight};
use sender::driver::{Schedule, ScheduledChannel, ScheduledSegment};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Schedules the measured segments under the plan's limits. Host sets that the plan foresaw a group for keep its
/// address; others take addresses of the same pool.
pub(super) fn schedule(plan: &Plan, pool: &Pool, segments: &[SegmentWeight], rate_bps: u64) -> Schedule {
    let limits = GroupLimits::new(&plan.multicast, pool, plan.isolation, rate_bps);
    // A plan without predictions, written by hand, leaves the way of using groups to the planner's first choice.
    let mode = plan.predicted.as_ref().map_or(Mode::ExactSets, |predicted| predicted.mode);
    let planned = planner::schedule_by(mode, segments, &limits);
    let addresses = addresses(plan, pool, &planned);
    convert(segments, &planned, &addresses)
}

/// An address for each group.
fn addresses(plan: &Plan, pool: &Pool, planned: &planner::Schedule) -> Vec<IpAddr> {
    let scheduled = |address: u32| pool.nth(address).expect("schedules stay within the pool's size");
    let plain = || planned.groups.iter().map(|group| scheduled(group.address)).collect();
    let foreseen = foreseen(plan);
    let mut taken = BTreeSet::new();
    let kept: Vec<Option<IpAddr>> = (planned.groups.iter())
        .map(|group| foreseen.get(&group.hosts).copied().filter(|address| taken.insert(*address)))
        .collect();
    // Groups that share an address of the schedule go on sharing one.
    let mut free = (0..pool.size()).map(scheduled).filter(|address| !taken.contains(address));
    let mut moved: BTreeMap<u32, IpAddr> = BTreeMap::new();
    for group in planned.groups.iter().zip(&kept).filter(|(_, kept)| kept.is_none()).map(|(group, _)| group) {
        if let Entry::Vacant(place) = moved.entry(group.address) {
            let Some(address) = free.next() else { return plain() };
            place.insert(address);
        }
    }
    let in_use = taken.len() + moved.len();
    if u32::try_from(in_use).is_ok_and(|count| count > plan.multicast.max_groups) {
        return plain();
    }
    planned
        .groups
        .iter()
        .zip(kept)
        .map(|(group, kept)| kept.unwrap_or_else(|| moved[&group.address]))
        .collect()
}

/// The plan's groups, by host set.
fn foreseen(plan: &Plan) -> BTreeMap<HostSet, IpAddr> {
    let index: BTreeMap<&str, u16> = plan.hosts.iter().map(|host| host.name.as_str()).zip(0..).collect();
    let group = |group: &planner::plan::Group| -> Option<(HostSet, IpAddr)> {
        let hosts: Option<HostSet> =
            group.hosts.iter().map(|name| index.get(name.as_str()).copied()).collect();
        Some((hosts?, group.address.parse().ok()?))
    };
    plan.groups.iter().filter_map(group).collect()
}

/// Channels of groups come first, then those of single hosts.
fn convert(segments: &[SegmentWeight], planned: &planner::Schedule, addresses: &[IpAddr]) -> Schedule {
    let members = |hosts: &HostSet| hosts.iter().map(usize::from).collect();
    let mut channels: Vec<ScheduledChannel> = (planned.groups.iter().zip(addresses))
        .map(|(group, address)| ScheduledChannel { group: Some(*address), hosts: members(&group.hosts) })
        .collect();
    let mut unicast: BTreeMap<u16, usize> = BTreeMap::new();
    let mut order = Vec::new();
    for placed in &planned.segments {
        let segment = placed.segment;
        match placed.channel {
            Channel::Group(channel) => order.push(ScheduledSegment { segment, channel }),
            Channel::Unicast => {
                for host in segments[segment].hosts.iter() {
                    let channel = *unicast.entry(host).or_insert_with(|| {
                        channels.push(ScheduledChannel { group: None, hosts: vec![usize::from(host)] });
                        channels.len() - 1
                    });
                    order.push(ScheduledSegment { segment, channel });
                }
            }
        }
    }
    Schedule { channels, segments: order, first: 0 }
}

/// A host set in the planner's form.
pub(super) fn host_set(hosts: &IdSet) -> HostSet {
    hosts.iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        let host = |n: u8| {
            serde_json::json!({"name": format!("h{n}"), "address": format!("10.0.0.{n}:47078"),
                "memory_mib": 1024, "vcpus": 4, "rate_mbps": 1000})
        };
        let plan = serde_json::json!({
            "version": 1, "name": "t", "source": {"name": "s", "rate_mbps": 1000},
            "hosts": [host(1), host(2), host(3)],
            "vms": [{"name": "a", "image": "a", "memory_mib": 64, "vcpus": 1, "hosts": ["h1", "h2", "h3"]}],
            "multicast": {"pool": "239.77.0.0/16"},
            "groups": [{"id": 0, "address": "239.77.0.9", "hosts": ["h1", "h2", "h3"]}],
            "schedule": [{"hosts": ["h1", "h2", "h3"], "group": 0, "predicted_bytes": 1}],
        });
        Plan::from_json(&plan.to_string()).expect("a plan that holds")
    }

    fn weight(hosts: &[u16], bytes: u64) -> SegmentWeight {
        SegmentWeight { hosts: hosts.iter().copied().collect(), bytes }
    }

    #[test]
    fn foreseen_groups_keep_their_addresses_and_unicast_has_a_channel_per_host() {
        let plan = plan();
        let pool = plan.pool().expect("checked");
        const MUCH: u64 = 100 << 20;
        let segments =
            [weight(&[0, 1, 2], MUCH), weight(&[0, 1], MUCH), weight(&[0], MUCH), weight(&[0, 2], 100)];
        let schedule = schedule(&plan, &pool, &segments, 1_000_000_000);
        let channel = |address: &str| {
            let address = Some(address.parse().expect("an address"));
            schedule.channels.iter().position(|channel| channel.group == address).expect("a channel")
        };
        assert_eq!(schedule.channels[channel("239.77.0.9")].hosts, [0, 1, 2]);
        assert_eq!(schedule.channels[channel("239.77.0.0")].hosts, [0, 1]);
        let of = |segment| -> Vec<&ScheduledChannel> {
            let placed = schedule.segments.iter().filter(|placed| placed.segment == segment);
            placed.map(|placed| &schedule.channels[placed.channel]).collect()
        };
        assert_eq!(of(2), [&ScheduledChannel { group: None, hosts: vec![0] }]);
        let hosts: Vec<usize> = of(3).iter().flat_map(|channel| channel.hosts.clone()).collect();
        assert_eq!(hosts, [0, 2], "a sliver is sent to each host by itself");
        let unicast: BTreeSet<_> = schedule
            .channels
            .iter()
            .filter(|channel| channel.group.is_none())
            .map(|channel| &channel.hosts)
            .collect();
        assert_eq!(unicast.len(), schedule.channels.iter().filter(|channel| channel.group.is_none()).count());
    }
}
