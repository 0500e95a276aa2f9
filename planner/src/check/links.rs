//! The links of the plan's network, and what is foreseen for each.
//!
//! A host's way is found from names alone: the racks around it, up to the core, against those around the source. What
//! the two have in common is not crossed.

use std::collections::{BTreeMap, BTreeSet};

use super::{Names, Violation};
use crate::network::LinkKind;
use crate::plan::{LinkLoad, Plan, Predicted};

/// A link by its sort and its end.
type Key<'a> = (LinkKind, &'a str);

/// Bytes needed behind a link, and bytes on it.
#[derive(Clone, Copy, Default)]
struct Load {
    needed: u128,
    /// Of these, bytes that only name contents: no placement saves them.
    named: u128,
    all: u128,
}

pub(super) fn check_links(plan: &Plan, names: &Names, found: &mut Vec<Violation>) {
    let racks = Racks::of(plan, found);
    let Some(predicted) = &plan.predicted else { return };
    let ways: Vec<Vec<Key>> =
        plan.hosts.iter().map(|host| racks.way(plan, &host.name, host.rack.as_deref())).collect();
    let members: BTreeMap<u32, Vec<usize>> =
        plan.groups.iter().map(|group| (group.id, positions(names, &group.hosts))).collect();
    let mut loads: BTreeMap<Key, Load> = BTreeMap::new();
    for segment in &plan.schedule {
        let bytes = u128::from(segment.predicted_bytes);
        let hosts = positions(names, &segment.hosts);
        let crossed = |hosts: &[usize]| -> BTreeSet<Key> {
            hosts.iter().flat_map(|&host| ways[host].clone()).collect()
        };
        for link in crossed(&hosts) {
            let load = loads.entry(link).or_default();
            load.needed += bytes;
            load.named += u128::from(segment.named_bytes);
        }
        match segment.group.map(|id| members.get(&id)) {
            Some(Some(members)) => {
                crossed(members).into_iter().for_each(|link| loads.entry(link).or_default().all += bytes);
            }
            // An unknown group was found elsewhere.
            Some(None) => {}
            None => {
                let ways = hosts.iter().flat_map(|&host| ways[host].iter().copied());
                ways.for_each(|link| loads.entry(link).or_default().all += bytes);
            }
        }
    }
    compare(plan, predicted, &loads, found);
}

fn positions(names: &Names, hosts: &[String]) -> Vec<usize> {
    hosts.iter().filter_map(|host| names.hosts.get(host.as_str()).copied()).collect()
}

/// The racks around each rack.
struct Racks<'a> {
    around: BTreeMap<&'a str, Option<&'a str>>,
    /// Rate and cost of each rack's link.
    links: BTreeMap<&'a str, (u64, u64)>,
}

impl<'a> Racks<'a> {
    fn of(plan: &'a Plan, found: &mut Vec<Violation>) -> Self {
        let racks = plan.topology.as_ref().map_or(&[][..], |topology| &topology.racks);
        let mut around = BTreeMap::new();
        for rack in racks {
            if around.insert(rack.name.as_str(), rack.within.as_deref()).is_some() {
                found.push(Violation::Duplicate { kind: "rack", name: rack.name.clone() });
            }
        }
        let named = (plan.hosts.iter().map(|host| (format!("host `{}`", host.name), host.rack.as_ref())))
            .chain([(format!("source `{}`", plan.source.name), plan.source.rack.as_ref())])
            .chain(racks.iter().map(|rack| (format!("rack `{}`", rack.name), rack.within.as_ref())));
        for (thing, rack) in named {
            if let Some(rack) = rack.filter(|rack| !around.contains_key(rack.as_str())) {
                found.push(Violation::Rack { thing, rack: rack.clone(), why: "is not in the topology" });
            }
        }
        let links = racks
            .iter()
            .map(|rack| (rack.name.as_str(), (rack.uplink_mbps.into(), rack.uplink_cost.into())))
            .collect();
        let racks = Self { around, links };
        for &rack in racks.around.keys() {
            if racks.chain(Some(rack)).len() > racks.around.len() {
                let thing = "the topology".to_owned();
                found.push(Violation::Rack { thing, rack: rack.to_owned(), why: "is within itself" });
            }
        }
        racks
    }

    /// A rack and those around it, at most one more than there are racks.
    fn chain(&self, rack: Option<&'a str>) -> Vec<&'a str> {
        let next = |rack: &&'a str| self.around.get(rack).copied().flatten();
        std::iter::successors(rack, next).take(self.around.len() + 1).collect()
    }

    /// The links between the source and a host.
    fn way(&self, plan: &'a Plan, host: &'a str, rack: Option<&'a str>) -> Vec<Key<'a>> {
        let (from, to) = (self.chain(plan.source.rack.as_deref()), self.chain(rack));
        let up = from.iter().filter(|rack| !to.contains(rack)).map(|&rack| (LinkKind::RackUp, rack));
        let down = to.iter().filter(|rack| !from.contains(rack)).map(|&rack| (LinkKind::RackDown, rack));
        let ends = [(LinkKind::Source, plan.source.name.as_str()), (LinkKind::Host, host)];
        ends.into_iter().chain(up).chain(down).collect()
    }
}

fn compare(plan: &Plan, predicted: &Predicted, loads: &BTreeMap<Key, Load>, found: &mut Vec<Violation>) {
    let mut wrong = |field: &'static str, says: String, right: String| {
        found.push(Violation::Prediction { field, found: says, right });
    };
    let racks = Racks::of(plan, &mut Vec::new());
    let hosts: BTreeMap<&str, (u64, u64)> = plan
        .hosts
        .iter()
        .map(|host| (host.name.as_str(), (host.rate_mbps.into(), host.link_cost.into())))
        .collect();
    let mut cost = 0u128;
    let mut seen = BTreeSet::new();
    for link in &predicted.links {
        let (key, name) = ((link.kind, link.name.as_str()), format!("{} {}", link.kind, link.name));
        let real = match link.kind {
            LinkKind::Source => Some((plan.source.rate_mbps.into(), 0)),
            LinkKind::Host => hosts.get(link.name.as_str()).copied(),
            LinkKind::RackUp | LinkKind::RackDown => racks.links.get(link.name.as_str()).copied(),
        };
        let Some((rate_mbps, byte_cost)) = real else {
            wrong("links", name, "no such link".to_owned());
            continue;
        };
        if !seen.insert(key) {
            wrong("links", name.clone(), "once".to_owned());
        }
        let load = loads.get(&key).copied().unwrap_or_default();
        cost += load.needed.saturating_sub(load.named) * u128::from(byte_cost);
        let says = (u128::from(link.bytes), u128::from(link.classes.total()), u128::from(link.extra_bytes));
        let right = (load.all, load.needed, load.all.saturating_sub(load.needed));
        if says != right || link.rate_mbps != rate_mbps {
            let words = |(all, needed, extra): (u128, u128, u128), rate_mbps| {
                format!("{all} bytes, {needed} of them needed and {extra} not, at {rate_mbps} Mbit/s")
            };
            wrong("links", format!("{name}: {}", words(says, link.rate_mbps)), words(right, rate_mbps));
        }
        check_times(link, &name, &mut wrong);
    }
    let hosts = plan.hosts.iter().map(|host| (LinkKind::Host, host.name.as_str()));
    let all: BTreeSet<Key> =
        loads.keys().copied().chain(hosts).chain([(LinkKind::Source, plan.source.name.as_str())]).collect();
    for (kind, name) in all.difference(&seen) {
        wrong("links", "missing".to_owned(), format!("{kind} {name}"));
    }
    if cost != u128::from(predicted.placement_cost) {
        wrong("placement_cost", predicted.placement_cost.to_string(), cost.to_string());
    }
    if predicted.host_done_ms.len() != plan.hosts.len()
        || predicted.host_done_ms.iter().any(|&done| done > predicted.duration_ms)
    {
        wrong(
            "host_done_ms",
            format!("{:?}", predicted.host_done_ms),
            format!("at most {}", predicted.duration_ms),
        );
    }
}

fn check_times(link: &LinkLoad, name: &str, wrong: &mut impl FnMut(&'static str, String, String)) {
    if link.network_bytes < link.bytes {
        wrong(
            "links",
            format!("{name}: {} bytes with headers", link.network_bytes),
            format!("at least {}", link.bytes),
        );
    }
    let busy_ms = (u128::from(link.network_bytes) * 8).div_ceil(u128::from(link.rate_mbps.max(1)) * 1000);
    if u128::from(link.busy_ms) != busy_ms {
        wrong("links", format!("{name}: busy for {} ms", link.busy_ms), format!("{busy_ms} ms"));
    }
}
