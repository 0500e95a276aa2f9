//! Groups, schedule and predicted totals.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{Names, Violation};
use crate::inventory::Isolation;
use crate::plan::{Group, Plan, Segment};
use crate::pool::Pool;

/// What the schedule makes of a group.
struct Use<'a> {
    group: &'a Group,
    members: Vec<usize>,
    /// First and last segment.
    span: Option<(usize, usize)>,
}

pub(super) fn check_sending(plan: &Plan, names: &Names, found: &mut Vec<Violation>) {
    let mut uses: BTreeMap<u32, Use> = BTreeMap::new();
    for group in &plan.groups {
        let members = names.positions(&format!("group {}", group.id), &group.hosts, found);
        if uses.insert(group.id, Use { group, members, span: None }).is_some() {
            found.push(Violation::Duplicate { kind: "group", name: group.id.to_string() });
        }
    }
    // A plan without such hosts has no list to be wrong with.
    let resident = match plan.resident.as_slice() {
        [] => Vec::new(),
        listed => names.positions("the list of hosts with resident pages", listed, found),
    };
    let mut totals = Totals::new(plan.hosts.len());
    let mut seen: BTreeMap<Vec<usize>, usize> = BTreeMap::new();
    for (index, segment) in plan.schedule.iter().enumerate() {
        let hosts = names.positions(&format!("segment {index}"), &segment.hosts, found);
        if let Some(first) = seen.insert(hosts.clone(), index) {
            found.push(Violation::SegmentTwice { first, second: index });
        }
        let has_it: Vec<usize> =
            segment.resident.iter().filter_map(|host| names.hosts.get(host.as_str()).copied()).collect();
        let named = check_named(index, segment, &hosts, &resident, names, found);
        if !named && !is_union_of_vms(&hosts, &has_it, names) {
            found.push(Violation::NoSuchVms { segment: index });
        }
        let receivers = match segment.group {
            None => None,
            Some(id) => match uses.get_mut(&id) {
                None => {
                    found.push(Violation::UnknownGroup { segment: index, group: id });
                    None
                }
                Some(used) => {
                    used.span = Some((used.span.map_or(index, |(first, _)| first), index));
                    check_members(plan, index, &hosts, used, found);
                    Some(used.members.as_slice())
                }
            },
        };
        totals.count(&hosts, receivers, segment.predicted_bytes.into());
    }
    check_addresses(plan, &uses, found);
    check_memberships(plan, &uses, found);
    totals.compare(plan, found);
}

/// Whether a segment names contents to its one host; that must be one that is asked what it holds, and have a VM.
fn check_named(
    index: usize,
    segment: &Segment,
    hosts: &[usize],
    resident: &[usize],
    names: &Names,
    found: &mut Vec<Violation>,
) -> bool {
    if segment.named_bytes == 0 {
        return false;
    }
    let one = match hosts {
        [host] => resident.contains(host) && !names.vms_on[*host].is_empty(),
        _ => false,
    };
    if !one || segment.named_bytes > segment.predicted_bytes {
        found.push(Violation::Named { segment: index, bytes: segment.named_bytes });
    }
    one
}

/// Whether the hosts are exactly those of some VMs together, but for some that have the contents already: each belongs
/// to a VM with no other hosts than these.
fn is_union_of_vms(hosts: &[usize], has_it: &[usize], names: &Names) -> bool {
    let mut left: BTreeSet<usize> = hosts.iter().copied().collect();
    let wanted: BTreeSet<usize> = hosts.iter().chain(has_it).copied().collect();
    for &vm in hosts.iter().flat_map(|&host| &names.vms_on[host]) {
        if left.is_empty() {
            break;
        }
        let on = &names.vm_hosts[vm];
        if on.iter().all(|host| wanted.contains(host)) {
            for host in on {
                left.remove(host);
            }
        }
    }
    left.is_empty()
}

fn check_members(plan: &Plan, segment: usize, hosts: &[usize], used: &Use, found: &mut Vec<Violation>) {
    let group = used.group.id;
    if let Some(&host) = hosts.iter().find(|host| used.members.binary_search(host).is_err()) {
        found.push(Violation::NotInGroup { segment, group, host: plan.hosts[host].name.clone() });
    } else if plan.isolation == Isolation::Strict && hosts != used.members {
        found.push(Violation::NotExact { segment, group });
    }
}

fn check_addresses(plan: &Plan, uses: &BTreeMap<u32, Use>, found: &mut Vec<Violation>) {
    let pool = plan.multicast.pool.parse::<Pool>();
    if let Err(error) = &pool {
        found.push(Violation::Pool { pool: plan.multicast.pool.clone(), why: error.to_string() });
    }
    let mut by_address: BTreeMap<IpAddr, Vec<&Use>> = BTreeMap::new();
    for used in uses.values() {
        match used.group.address.parse::<IpAddr>() {
            Ok(address) if pool.as_ref().map_or(address.is_multicast(), |pool| pool.contains(address)) => {
                by_address.entry(address).or_default().push(used);
            }
            _ => found.push(Violation::GroupAddress {
                group: used.group.id,
                address: used.group.address.clone(),
                pool: plan.multicast.pool.clone(),
            }),
        }
    }
    for (address, mut sharing) in
        by_address.iter().map(|(address, uses)| (address, uses.iter().collect::<Vec<_>>()))
    {
        sharing.retain(|used| used.span.is_some());
        sharing.sort_by_key(|used| used.span);
        for pair in sharing.windows(2) {
            if pair[0].span.map(|span| span.1) >= pair[1].span.map(|span| span.0) {
                found.push(Violation::AddressShared {
                    first: pair[0].group.id,
                    second: pair[1].group.id,
                    address: address.to_string(),
                });
            }
        }
    }
    if by_address.len() as u64 > u64::from(plan.multicast.max_groups) {
        found.push(Violation::TooManyGroups { count: by_address.len(), max: plan.multicast.max_groups });
    }
}

/// A host is in a group from its first segment to its last, at least.
fn check_memberships(plan: &Plan, uses: &BTreeMap<u32, Use>, found: &mut Vec<Violation>) {
    // Each host's first and last need of a group: position, whether it begins (an end counts after its segment).
    let mut events: Vec<Vec<(usize, bool)>> = vec![Vec::new(); plan.hosts.len()];
    for used in uses.values() {
        if let Some((first, last)) = used.span {
            for &host in &used.members {
                events[host].push((first, true));
                events[host].push((last + 1, false));
            }
        }
    }
    for (host, mut events) in plan.hosts.iter().zip(events) {
        // Ends sort before begins at the same position.
        events.sort_unstable();
        let mut count = 0usize;
        for (segment, begins) in events {
            count = if begins { count + 1 } else { count - 1 };
            if begins && count as u64 > u64::from(plan.multicast.memberships_max) {
                found.push(Violation::TooManyMemberships {
                    host: host.name.clone(),
                    segment,
                    count,
                    max: plan.multicast.memberships_max,
                });
                break;
            }
        }
    }
}

/// Bytes added up along the schedule.
struct Totals {
    unique: u128,
    source: u128,
    /// Each host's need, and what its link carries.
    hosts: Vec<(u128, u128)>,
}

impl Totals {
    fn new(hosts: usize) -> Self {
        Self { unique: 0, source: 0, hosts: vec![(0, 0); hosts] }
    }

    /// A segment for `hosts`; by multicast to `receivers`, or by unicast.
    fn count(&mut self, hosts: &[usize], receivers: Option<&[usize]>, bytes: u128) {
        self.unique += bytes;
        self.source += if receivers.is_some() { bytes } else { bytes * hosts.len() as u128 };
        for &host in hosts {
            self.hosts[host].0 += bytes;
        }
        for &host in receivers.unwrap_or(hosts) {
            self.hosts[host].1 += bytes;
        }
    }

    fn compare(&self, plan: &Plan, found: &mut Vec<Violation>) {
        for (host, &(need, got)) in plan.hosts.iter().zip(&self.hosts) {
            let bytes = got.saturating_sub(need);
            if bytes * 1000 > need * u128::from(plan.multicast.superset_permille) {
                let permille = plan.multicast.superset_permille;
                found.push(Violation::Waste { host: host.name.clone(), bytes, need, permille });
            }
        }
        let Some(predicted) = &plan.predicted else { return };
        let wide = |list: &[u64]| list.iter().map(|&b| u128::from(b)).collect::<Vec<_>>();
        let (need, got): (Vec<u128>, Vec<u128>) = self.hosts.iter().copied().unzip();
        let all = need.iter().sum();
        let figures = [
            ("unique_bytes", vec![predicted.unique_bytes.into()], vec![self.unique]),
            ("source_bytes", vec![predicted.source_bytes.into()], vec![self.source]),
            ("host_bytes", wide(&predicted.host_bytes), got),
            ("host_needed_bytes", wide(&predicted.host_needed_bytes), need),
            ("placement_bytes", vec![predicted.placement_bytes.into()], vec![all]),
        ];
        for (field, says, right) in figures {
            if says != right {
                found.push(Violation::Prediction {
                    field,
                    found: format!("{says:?}"),
                    right: format!("{right:?}"),
                });
            }
        }
        let at_least = [
            ("placement_cost_min", predicted.placement_cost_min, predicted.placement_cost),
            ("membership_changes_min", predicted.membership_changes_min, predicted.membership_changes),
            ("duration_ms_min", predicted.duration_ms_min, predicted.duration_ms),
        ];
        for (field, min, figure) in at_least {
            if min > figure {
                found.push(Violation::Prediction {
                    field,
                    found: min.to_string(),
                    right: format!("at most {figure}"),
                });
            }
        }
    }
}
