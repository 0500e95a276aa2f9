//! Ways of using groups, what each costs, and which is best.

use std::collections::BTreeMap;
use std::time::Duration;

use super::merging::merged;
use super::{Channel, GroupLimits, Schedule, SegmentWeight, channels, schedule, scheduled};
use crate::HostSet;
use crate::inventory::Isolation;
use crate::network::Network;
use crate::plan::{Mode, ModeCost};
use crate::predict::{Overhead, predict};

/// A way of using groups, with its schedule.
#[derive(Clone, Debug)]
pub struct ModeSchedule {
    /// What it costs.
    pub cost: ModeCost,
    /// The schedule.
    pub schedule: Schedule,
}

/// Schedules segments in one way, within the limits' numbers of addresses; [`Mode::ExactSets`] and
/// [`Mode::ChurningGroups`] are both [`schedule`].
#[must_use]
pub fn schedule_by(mode: Mode, segments: &[SegmentWeight], limits: &GroupLimits) -> Schedule {
    match mode {
        Mode::ExactSets | Mode::ChurningGroups => schedule(segments, limits),
        Mode::OneChurningGroup => {
            schedule(segments, &GroupLimits { max_groups: limits.addresses().min(1), ..limits.clone() })
        }
        Mode::Unicast => schedule(segments, &GroupLimits { max_groups: 0, ..limits.clone() }),
        Mode::StaticGroups => {
            let exact = channels::assign(segments, limits);
            let count = static_groups(&exact, limits);
            match merged(segments, &exact, count) {
                Some(few) => scheduled(segments, limits, &few),
                None => scheduled(segments, limits, &exact),
            }
        }
    }
}

/// So many groups are joined once: as many as there are addresses if those are too few, else as many as a host may
/// join at once.
fn static_groups(exact: &channels::Assignment, limits: &GroupLimits) -> usize {
    let whole = |figure: u32| usize::try_from(figure).unwrap_or(usize::MAX);
    let addresses = whole(limits.addresses());
    if exact.groups.len() > addresses {
        addresses
    } else {
        whole(limits.memberships_max).min(exact.groups.len())
    }
}

/// Schedules segments in every way: the cheapest that the limits allow first, then the others by cost.
///
/// Compared are bytes: those on every link times its cost, those that come after leaves while an address is used again,
/// and those that the source could have sent while it waits for joins.
///
/// # Panics
/// If a segment names a host that the network lacks.
#[must_use]
pub fn best_mode(segments: &[SegmentWeight], limits: &GroupLimits, network: &Network) -> Vec<ModeSchedule> {
    let plain = schedule(segments, limits);
    let enough = plain.groups.len() <= usize::try_from(limits.addresses()).unwrap_or(usize::MAX);
    let fewer = |max: u32| schedule(segments, &GroupLimits { max_groups: max, ..limits.clone() });
    let mut ways = if enough {
        let churning = fewer(limits.addresses().min(2));
        vec![(Mode::ExactSets, plain), (Mode::ChurningGroups, churning)]
    } else {
        let boundless = GroupLimits { max_groups: u32::MAX, pool_size: u32::MAX, ..limits.clone() };
        vec![(Mode::ExactSets, schedule(segments, &boundless)), (Mode::ChurningGroups, plain)]
    };
    for mode in [Mode::OneChurningGroup, Mode::StaticGroups, Mode::Unicast] {
        ways.push((mode, schedule_by(mode, segments, limits)));
    }
    let mut found: Vec<ModeSchedule> = ways
        .into_iter()
        .map(|(mode, schedule)| ModeSchedule {
            cost: cost(mode, segments, limits, network, &schedule),
            schedule,
        })
        .collect();
    found.sort_by_key(|way| (way.cost.refused.is_some(), way.cost.cost, way.cost.mode));
    found
}

fn cost(
    mode: Mode,
    segments: &[SegmentWeight],
    limits: &GroupLimits,
    network: &Network,
    schedule: &Schedule,
) -> ModeCost {
    let predicted = predict(segments, schedule, network, &Overhead::none());
    let late = late_bytes(limits, segments, schedule);
    let got: u64 = (0..network.hosts())
        .map(|host| predicted.links[network.links().len() - network.hosts() + host].bytes)
        .fold(0, u64::saturating_add);
    let needed = predicted.needed_bytes.iter().fold(0, |sum: u64, &bytes| sum.saturating_add(bytes));
    let mut addresses: Vec<u32> = schedule.groups.iter().map(|group| group.address).collect();
    addresses.sort_unstable();
    addresses.dedup();
    let waited = limits.bytes_in(schedule.stall);
    ModeCost {
        mode,
        refused: refusal(mode, segments, limits, schedule, addresses.len()),
        addresses: addresses.len() as u64,
        groups: schedule.groups.len() as u64,
        joins: schedule.joins,
        source_bytes: schedule.source_bytes,
        traffic_bytes: predicted.traffic_bytes,
        unwanted_bytes: (got - needed).saturating_add(late),
        stall_ms: ms(schedule.stall),
        duration_ms: ms(predicted.duration),
        cost: predicted.traffic_cost.saturating_add(late).saturating_add(waited),
    }
}

/// Why the limits do not allow a schedule.
fn refusal(
    mode: Mode,
    segments: &[SegmentWeight],
    limits: &GroupLimits,
    schedule: &Schedule,
    addresses: usize,
) -> Option<String> {
    let allowed = limits.addresses();
    if addresses > usize::try_from(allowed).unwrap_or(usize::MAX) {
        return Some(format!("needs {addresses} group addresses; there may be {allowed}"));
    }
    let mut hosts: BTreeMap<u16, (u64, u64)> = BTreeMap::new();
    let (mut all, mut again) = (0u64, 0u64);
    for placed in &schedule.segments {
        let segment = &segments[placed.segment];
        let sent = super::source_cost(segment, placed.channel);
        all = all.saturating_add(segment.bytes);
        again = again.saturating_add(sent.saturating_sub(segment.bytes));
        for host in segment.hosts.iter() {
            let need = &mut hosts.entry(host).or_default().0;
            *need = need.saturating_add(segment.bytes);
        }
        if let Channel::Group(group) = placed.channel {
            for host in schedule.groups[group].hosts.difference(&segment.hosts).iter() {
                let unwanted = &mut hosts.entry(host).or_default().1;
                *unwanted = unwanted.saturating_add(segment.bytes);
            }
        }
    }
    let extra = limits.unicast_extra_permille;
    let may_group = allowed > 0 && limits.memberships_max > 0;
    if may_group && u128::from(again) * 1000 > u128::from(all) * u128::from(extra) {
        return Some(format!("the source would send more than {extra} thousandths of all bytes again"));
    }
    let unwanted = hosts.values().any(|&(_, unwanted)| unwanted > 0);
    if unwanted && limits.isolation == Isolation::Strict {
        return Some("strict isolation lets no host get bytes that it does not need".to_owned());
    }
    let is_too_much = |&(need, unwanted): &(u64, u64)| {
        u128::from(unwanted) * 1000 > u128::from(need) * u128::from(limits.superset_extra_permille)
    };
    if hosts.values().any(is_too_much) {
        let permille = limits.superset_extra_permille;
        return Some(format!(
            "some host would get more than {permille} thousandths of its need without needing it (`superset_permille`)"
        ));
    }
    let is_same = mode == Mode::StaticGroups && schedule.groups.len() > static_max(limits);
    is_same.then(|| "there are too many host sets to merge".to_owned())
}

fn static_max(limits: &GroupLimits) -> usize {
    usize::try_from(limits.addresses().max(limits.memberships_max)).unwrap_or(usize::MAX)
}

/// Bytes that still come to hosts that left an address which another group uses before the leave is heeded.
fn late_bytes(limits: &GroupLimits, segments: &[SegmentWeight], schedule: &Schedule) -> u64 {
    if limits.rate_bps == 0 || schedule.groups.is_empty() {
        return 0;
    }
    let begins = begins(limits, segments, schedule);
    let mut by_address: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for (number, group) in schedule.groups.iter().enumerate() {
        by_address.entry(group.address).or_default().push(number);
    }
    let mut late = 0u64;
    for groups in by_address.values() {
        for (at, &group) in groups.iter().enumerate() {
            let ended = begins[schedule.groups[group].last + 1];
            let mut gone: HostSet = schedule.groups[group].hosts.clone();
            for &next in &groups[at + 1..] {
                let next = &schedule.groups[next];
                let begin = begins[next.first];
                let heeded = ended.saturating_add(limits.leave_tail);
                gone = gone.difference(&next.hosts);
                if begin >= heeded || gone.is_empty() {
                    break;
                }
                let time = begins[next.last + 1].min(heeded) - begin;
                late = late.saturating_add(limits.bytes_in(time).saturating_mul(gone.len() as u64));
            }
        }
    }
    late
}

/// When each position begins, and when the last ends, at the rate given.
fn begins(limits: &GroupLimits, segments: &[SegmentWeight], schedule: &Schedule) -> Vec<Duration> {
    let mut waits = schedule.waits.iter().peekable();
    let mut clock = Duration::ZERO;
    let mut begins = Vec::with_capacity(schedule.segments.len() + 1);
    for (position, placed) in schedule.segments.iter().enumerate() {
        while let Some((_, wait)) = waits.next_if(|(at, _)| *at <= position) {
            clock = clock.saturating_add(*wait);
        }
        begins.push(clock);
        let cost = super::source_cost(&segments[placed.segment], placed.channel);
        clock = clock.saturating_add(limits.time_of(cost));
    }
    begins.push(clock);
    begins
}

/// What so many group addresses would cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CurvePoint {
    /// Addresses.
    pub addresses: u32,
    /// Groups that take turns on them.
    pub churning: ModeCost,
    /// As many groups, each joined once.
    pub fixed: ModeCost,
}

/// What more groups would buy: costs for 0, 1, 2, 4, ... addresses, up to one for each host set that is worth a group.
/// The limits' number of addresses is not heeded, nor is what hosts may get without need.
///
/// # Panics
/// If a segment names a host that the network lacks.
#[must_use]
pub fn group_curve(segments: &[SegmentWeight], limits: &GroupLimits, network: &Network) -> Vec<CurvePoint> {
    let boundless = GroupLimits {
        max_groups: u32::MAX,
        pool_size: u32::MAX,
        superset_extra_permille: limits.superset_extra_permille,
        ..limits.clone()
    };
    let exact = channels::assign(segments, &boundless);
    let most = u32::try_from(exact.groups.len()).unwrap_or(u32::MAX);
    let doubling = std::iter::successors(Some(1u32), |count| count.checked_mul(2));
    let counts = std::iter::once(0).chain(doubling.take_while(|&count| count < most)).chain([most]);
    let mut counts: Vec<u32> = counts.collect();
    counts.dedup();
    let point = |addresses: u32| {
        let few = GroupLimits { max_groups: addresses, ..boundless.clone() };
        let churning = schedule(segments, &few);
        let count = usize::try_from(addresses).unwrap_or(usize::MAX);
        let fixed = match merged(segments, &exact, count) {
            Some(few_groups) => scheduled(segments, &few, &few_groups),
            None => churning.clone(),
        };
        // With an address for each set none takes turns.
        let churning_mode = if addresses >= most { Mode::ExactSets } else { Mode::ChurningGroups };
        CurvePoint {
            addresses,
            churning: cost(churning_mode, segments, &few, network, &churning),
            fixed: cost(Mode::StaticGroups, segments, &few, network, &fixed),
        }
    };
    counts.into_iter().map(point).collect()
}

/// The fewest addresses of a curve that cost at most a hundredth more than the cheapest, in the cheaper way.
#[must_use]
pub fn groups_needed(curve: &[CurvePoint]) -> Option<u32> {
    let cost = |point: &CurvePoint| point.churning.cost.min(point.fixed.cost);
    let least = curve.iter().map(cost).min()?;
    let near = |point: &&CurvePoint| u128::from(cost(point)) * 100 <= u128::from(least) * 101;
    curve.iter().filter(near).map(|point| point.addresses).min()
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}
