//! Schedules of random segments under random limits, replayed position by position.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use planner::inventory::{Host, Source};
use planner::plan::Mode;
use planner::{
    Channel, GroupLimits, HostSet, Isolation, Network, Schedule, SegmentWeight, best_mode, group_curve,
    groups_needed, schedule, schedule_by,
};
use proptest::prelude::*;

fn segment() -> impl Strategy<Value = SegmentWeight> {
    let bytes = prop_oneof![0u64..5_000, 0u64..5_000_000, 1_000_000u64..200_000_000];
    (prop::collection::vec(0u16..9, 1..7), bytes)
        .prop_map(|(hosts, bytes)| SegmentWeight { hosts: hosts.into_iter().collect(), bytes })
}

fn limits() -> impl Strategy<Value = GroupLimits> {
    let rate = prop_oneof![Just(0u64), 1_000_000u64..100_000_000_000];
    let counts = (0u32..8, prop_oneof![0u32..5, Just(1024)], 0u32..5);
    (counts, 0u64..40, 0u64..3000, rate, 0u64..200_000, any::<bool>(), any::<u64>()).prop_map(
        |(
            (pool_size, max_groups, memberships_max),
            join,
            tail,
            rate_bps,
            unicast_below_bytes,
            strict,
            seed,
        )| {
            GroupLimits {
                pool_size,
                max_groups,
                memberships_max,
                join_latency: Duration::from_millis(join),
                leave_tail: Duration::from_millis(tail),
                rate_bps,
                unicast_below_bytes,
                isolation: if strict { Isolation::Strict } else { Isolation::Normal },
                seed,
                ..GroupLimits::default()
            }
        },
    )
}

/// Each segment once, to all who need it, in a channel that the limits allow.
fn check_channels(
    segments: &[SegmentWeight],
    limits: &GroupLimits,
    found: &Schedule,
) -> Result<(), TestCaseError> {
    let sent: BTreeSet<usize> = found.segments.iter().map(|s| s.segment).collect();
    prop_assert_eq!(sent, (0..segments.len()).collect());
    prop_assert_eq!(found.segments.len(), segments.len());
    let (mut unicast_extra, mut all, mut source) = (0, 0, 0);
    let mut need: BTreeMap<u16, (u64, u64)> = BTreeMap::new();
    for placed in &found.segments {
        let segment = &segments[placed.segment];
        let size = segment.hosts.len() as u64;
        all += segment.bytes;
        for host in segment.hosts.iter() {
            need.entry(host).or_default().0 += segment.bytes;
        }
        match placed.channel {
            Channel::Unicast => {
                unicast_extra += segment.bytes * (size - 1);
                source += segment.bytes * size;
            }
            Channel::Group(group) => {
                let members = &found.groups[group].hosts;
                source += segment.bytes;
                prop_assert!(segment.hosts.is_subset(members) && size > 1);
                prop_assert!(limits.isolation == Isolation::Normal || segment.hosts == *members);
                for host in members.difference(&segment.hosts).iter() {
                    need.entry(host).or_default().1 += segment.bytes;
                }
            }
        }
    }
    prop_assert_eq!(source, found.source_bytes);
    let may_group = limits.pool_size.min(limits.max_groups).min(limits.memberships_max) > 0;
    prop_assert!(!may_group || unicast_extra * 1000 <= all * limits.unicast_extra_permille);
    prop_assert!(may_group || found.groups.is_empty());
    for (host, (needed, wasted)) in need {
        prop_assert!(
            wasted * 1000 <= needed * limits.superset_extra_permille,
            "host {} gets {}",
            host,
            wasted
        );
    }
    Ok(())
}

/// Addresses joined by each host at each position; nobody gets what he is not in, nobody is in too many.
fn check_memberships(limits: &GroupLimits, found: &Schedule) -> Result<(), TestCaseError> {
    let mut members: BTreeMap<usize, BTreeSet<u16>> = BTreeMap::new();
    for m in &found.memberships {
        let group = &found.groups[m.group];
        prop_assert!(
            m.join_before <= group.first
                && m.leave_after >= group.last
                && m.leave_after < found.segments.len()
        );
        prop_assert!(members.entry(m.group).or_default().insert(m.host), "twice in one group");
    }
    for (index, group) in found.groups.iter().enumerate() {
        prop_assert!(group.address < limits.pool_size.min(limits.max_groups));
        prop_assert_eq!(members.remove(&index).unwrap_or_default(), group.hosts.iter().collect());
    }
    prop_assert!(members.is_empty());
    for (position, placed) in found.segments.iter().enumerate() {
        let mut joined: BTreeMap<u16, BTreeSet<u32>> = BTreeMap::new();
        for m in found.memberships.iter().filter(|m| (m.join_before..=m.leave_after).contains(&position)) {
            joined.entry(m.host).or_default().insert(found.groups[m.group].address);
        }
        for (host, addresses) in &joined {
            prop_assert!(
                addresses.len() <= limits.memberships_max as usize,
                "host {}: {:?}",
                host,
                addresses
            );
        }
        if let Channel::Group(group) = placed.channel {
            let group = &found.groups[group];
            prop_assert!((group.first..=group.last).contains(&position));
            let on: HostSet =
                joined.iter().filter(|(_, at)| at.contains(&group.address)).map(|(&host, _)| host).collect();
            prop_assert_eq!(&on, &group.hosts, "hosts on the address at {}", position);
        }
    }
    Ok(())
}

/// Joins, waits and duration, from the memberships alone.
fn check_times(
    segments: &[SegmentWeight],
    limits: &GroupLimits,
    found: &Schedule,
) -> Result<(), TestCaseError> {
    let joins: Vec<_> = found
        .memberships
        .iter()
        .filter(|m| {
            let address = |group: usize| found.groups[group].address;
            // A host that is still on the address from an earlier group does not join again.
            !found.memberships.iter().any(|before| {
                before.host == m.host
                    && before.group < m.group
                    && address(before.group) == address(m.group)
                    && before.leave_after >= m.join_before
            })
        })
        .collect();
    prop_assert_eq!(joins.len() as u64, found.joins);
    if limits.rate_bps == 0 {
        return Ok(());
    }
    let (mut clock, mut stall) = (Duration::ZERO, Duration::ZERO);
    let mut begins: Vec<Duration> = Vec::new();
    for (position, placed) in found.segments.iter().enumerate() {
        if let Channel::Group(group) = placed.channel
            && found.groups[group].first == position
        {
            let joined = joins.iter().filter(|m| m.group == group);
            let ready = joined.map(|m| *begins.get(m.join_before).unwrap_or(&clock) + limits.join_latency);
            let begin = ready.fold(clock, Duration::max);
            stall += begin - clock;
            clock = begin;
        }
        begins.push(clock);
        let segment = &segments[placed.segment];
        let copies = if placed.channel == Channel::Unicast { segment.hosts.len() as u64 } else { 1 };
        let nanos = u128::from(segment.bytes * copies) * 8_000_000_000 / u128::from(limits.rate_bps);
        clock += Duration::from_nanos(u64::try_from(nanos).expect("short"));
    }
    prop_assert_eq!(stall, found.stall);
    prop_assert_eq!(clock, found.duration);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn holds_what_it_promises(segments in prop::collection::vec(segment(), 0..40), limits in limits()) {
        let found = schedule(&segments, &limits);
        check_channels(&segments, &limits, &found)?;
        check_memberships(&limits, &found)?;
        check_times(&segments, &limits, &found)?;
        let sets: BTreeSet<&HostSet> = found.groups.iter().map(|group| &group.hosts).collect();
        prop_assert_eq!(sets.len(), found.groups.len(), "each set has one group");
        prop_assert_eq!(&found, &schedule(&segments, &limits));
    }
}

fn set(hosts: &[u16]) -> HostSet {
    hosts.iter().copied().collect()
}

fn weights(list: &[(&[u16], u64)]) -> Vec<SegmentWeight> {
    list.iter().map(|&(hosts, bytes)| SegmentWeight { hosts: set(hosts), bytes }).collect()
}

/// With time enough ahead, no group after the first waits, and hosts join no earlier than needed.
#[test]
fn joins_ahead_just_in_time() {
    let second = 125_000_000;
    let segments = weights(&[(&[0, 1], second), (&[2, 3], second), (&[4, 5], second), (&[6], second)]);
    let found = schedule(&segments, &GroupLimits::default());
    assert_eq!(found.stall, Duration::ZERO, "the unicast segment fills the time of the first joins");
    assert_eq!(found.segments[0].channel, Channel::Unicast);
    assert!(found.memberships.iter().all(|m| m.join_before + 1 == found.groups[m.group].first));
    let alone = schedule(&segments[..3], &GroupLimits::default());
    assert_eq!(alone.stall, Duration::from_millis(20), "only the first joins are waited for");
}

/// With one address, hosts in successive groups stay joined, and others change over.
#[test]
fn one_address_churns() {
    let limits = GroupLimits { pool_size: 1, ..GroupLimits::default() };
    let segments = weights(&[(&[0, 1, 2], 50 << 20), (&[0, 1], 50 << 20), (&[3, 4], 50 << 20)]);
    let found = schedule(&segments, &limits);
    assert_eq!(found.groups.iter().map(|g| g.address).collect::<Vec<_>>(), [0, 0, 0]);
    assert_eq!((found.changes, found.joins), (10, 5));
    assert!(found.bounds.optimal && found.bounds.twice_hosts == 10);
}

/// A sliver rides with its smallest superset while that costs its other hosts little, and never under isolation.
#[test]
fn slivers_ride_in_supersets() {
    let segments = weights(&[(&[0, 1, 2, 3], 80 << 20), (&[0, 1, 2], 90 << 20), (&[0, 1], 40 << 10)]);
    let limits = GroupLimits { unicast_extra_permille: 0, ..GroupLimits::default() };
    let found = schedule(&segments, &limits);
    assert_eq!(found.groups.len(), 2);
    let sliver = found.segments.iter().find(|s| s.segment == 2).unwrap();
    let carrier = found.groups.iter().position(|g| g.hosts == set(&[0, 1, 2])).unwrap();
    assert_eq!(sliver.channel, Channel::Group(carrier));
    let strict = schedule(&segments, &GroupLimits { isolation: Isolation::Strict, ..limits });
    assert_eq!(strict.groups.len(), 3);
    // A second copy on the source's link costs no more than one on host 2's, and tells host 2 nothing.
    let unicast = schedule(&segments, &GroupLimits::default());
    assert_eq!(unicast.segments.iter().find(|s| s.segment == 2).unwrap().channel, Channel::Unicast);
}

fn flat(hosts: usize) -> Network {
    let host = |h: usize| Host {
        name: format!("h{h}"),
        address: format!("10.0.0.{}:1", h + 1),
        memory_mib: 1,
        vcpus: 1,
        rate_mbps: 1000,
        link_cost: 1,
        rack: None,
        domain: None,
    };
    let source = Source { name: "s".to_owned(), address: None, rate_mbps: 1000, rack: None };
    Network::new(&source, &(0..hosts).map(host).collect::<Vec<_>>(), None)
}

/// With enough addresses exact sets win; with too few they are refused by number, and what is allowed is chosen.
#[test]
fn the_cheapest_way_that_is_allowed_is_chosen() {
    let sets = weights(&[
        (&[0, 1, 2], 300 << 20),
        (&[0, 1], 200 << 20),
        (&[2, 3], 200 << 20),
        (&[1, 3], 200 << 20),
        (&[0], 10 << 20),
    ]);
    let network = flat(4);
    let free = best_mode(&sets, &GroupLimits::default(), &network);
    assert_eq!(free[0].cost.mode, Mode::ExactSets);
    assert_eq!((free[0].cost.addresses, free[0].cost.unwanted_bytes), (4, 0));
    let unicast = free.iter().find(|way| way.cost.mode == Mode::Unicast).expect("it is compared");
    assert_eq!(unicast.cost.source_bytes, (900 + 400 * 3 + 10) << 20);
    assert!(unicast.cost.refused.as_ref().is_some_and(|why| why.contains("again")), "{:?}", unicast.cost);
    let few = GroupLimits { max_groups: 2, ..GroupLimits::default() };
    let ways = best_mode(&sets, &few, &network);
    assert_eq!(ways[0].cost.mode, Mode::ChurningGroups);
    assert!(ways[0].cost.refused.is_none() && ways[0].cost.addresses <= 2);
    let exact = ways.iter().find(|way| way.cost.mode == Mode::ExactSets).expect("it is compared");
    assert!(exact.cost.refused.as_ref().is_some_and(|why| why.contains("needs 4 group addresses")));
    // Two groups joined once bring bytes that nobody needs; allowed or not is a matter of the limit.
    let fixed = schedule_by(Mode::StaticGroups, &sets, &few);
    assert_eq!(fixed.groups.len(), 2);
    let fixed = ways.iter().find(|way| way.cost.mode == Mode::StaticGroups).expect("it is compared");
    assert!(fixed.cost.unwanted_bytes > 0 && fixed.cost.refused.is_some());
    let loose = GroupLimits { superset_extra_permille: 1000, ..few.clone() };
    let ways = best_mode(&sets, &loose, &network);
    let fixed = ways.iter().find(|way| way.cost.mode == Mode::StaticGroups).expect("it is compared");
    assert!(fixed.cost.refused.is_none(), "{:?}", fixed.cost);
    let strict = GroupLimits { isolation: Isolation::Strict, ..loose };
    let ways = best_mode(&sets, &strict, &network);
    let fixed = ways.iter().find(|way| way.cost.mode == Mode::StaticGroups).expect("it is compared");
    assert!(fixed.cost.refused.as_ref().is_some_and(|why| why.contains("strict")));
}

/// More addresses bring fewer unwanted bytes, until every set has one.
#[test]
fn more_groups_buy_less_waste() {
    let sets = weights(&[
        (&[0, 1, 2], 300 << 20),
        (&[0, 1], 200 << 20),
        (&[2, 3], 200 << 20),
        (&[1, 3], 200 << 20),
        (&[0, 3], 90 << 20),
    ]);
    let curve = group_curve(&sets, &GroupLimits::default(), &flat(4));
    assert_eq!(curve.iter().map(|point| point.addresses).collect::<Vec<_>>(), [0, 1, 2, 4, 5]);
    let waste: Vec<u64> = curve[1..].iter().map(|point| point.fixed.unwanted_bytes).collect();
    assert!(waste.windows(2).all(|pair| pair[0] >= pair[1]) && waste.last() == Some(&0), "{waste:?}");
    let churn: Vec<u64> = curve[1..].iter().map(|point| point.churning.cost).collect();
    assert!(churn.windows(2).all(|pair| pair[0] >= pair[1]), "{churn:?}");
    assert!(groups_needed(&curve).is_some_and(|count| count > 1));
}
