//! Hosts, what is on them, and whether the inventory is the plan's.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use serde::Serialize;
use serde_json::Value;

use super::{Names, Violation};
use crate::inventory::{Apart, Host, Inventory, Target, Vm};
use crate::plan::{Plan, PlannedVm};

pub(super) fn check_hosts(plan: &Plan, names: &Names, found: &mut Vec<Violation>) {
    check_figures(plan, found);
    let mut addresses = BTreeSet::new();
    let mut load = vec![(0u128, 0u128); plan.hosts.len()];
    for (vm, hosts) in plan.vms.iter().zip(&names.vm_hosts) {
        check_instances(vm, found);
        let here = |host: usize| {
            let at = vm.hosts.iter().position(|name| *name == plan.hosts[host].name);
            u128::from(at.map_or(1, |at| instances(vm, at)))
        };
        for &host in hosts {
            load[host].0 += u128::from(vm.memory_mib) * here(host);
            load[host].1 += u128::from(vm.vcpus) * here(host);
        }
    }
    for (host, (memory, vcpus)) in plan.hosts.iter().zip(load) {
        let address =
            |why| Violation::HostAddress { host: host.name.clone(), address: host.address.clone(), why };
        match host.address.parse::<SocketAddr>() {
            Ok(a) if a.ip().is_multicast() || a.ip().is_unspecified() || a.port() == 0 => {
                found.push(address("cannot be connected to"));
            }
            Ok(a) if !addresses.insert(a) => found.push(address("is another host's, too")),
            Ok(_) => {}
            Err(_) => found.push(address("is no ip:port")),
        }
        let parts =
            [("MiB of memory", memory, host.memory_mib.into()), ("vCPUs", vcpus, u128::from(host.vcpus))];
        for (what, need, has) in parts.into_iter().filter(|(_, need, has)| need > has) {
            found.push(Violation::Overload { host: host.name.clone(), what, need, has });
        }
    }
}

/// Clones that a VM starts on the host at a position of its list.
fn instances(vm: &PlannedVm, position: usize) -> u32 {
    vm.instances.get(position).copied().unwrap_or(1)
}

fn check_instances(vm: &PlannedVm, found: &mut Vec<Violation>) {
    let mut wrong = |why| found.push(Violation::Instances { vm: vm.name.clone(), why });
    if !vm.instances.is_empty() && vm.instances.len() != vm.hosts.len() {
        wrong("is not as long as `hosts`");
    }
    if vm.instances.contains(&0) {
        wrong("has a 0");
    }
}

fn check_figures(plan: &Plan, found: &mut Vec<Violation>) {
    let mut nonzero = |thing: String, field, figure: u64| {
        if figure == 0 {
            found.push(Violation::Zero { thing, field });
        }
    };
    nonzero(format!("source `{}`", plan.source.name), "rate_mbps", plan.source.rate_mbps.into());
    nonzero("multicast".to_owned(), "port", plan.multicast.port.into());
    nonzero("multicast".to_owned(), "ttl", plan.multicast.ttl.into());
    for host in &plan.hosts {
        nonzero(format!("host `{}`", host.name), "rate_mbps", host.rate_mbps.into());
    }
    for vm in &plan.vms {
        nonzero(format!("VM `{}`", vm.name), "memory_mib", vm.memory_mib);
    }
}

/// What changed since the plan was made, in words; `None` if nothing did.
fn changed<T: PartialEq + Serialize>(planned: &T, now: &T) -> Option<String> {
    if planned == now {
        return None;
    }
    let shown = |value: &Value| if value.is_null() { "not given".to_owned() } else { value.to_string() };
    let (Ok(planned), Ok(now)) = (serde_json::to_value(planned), serde_json::to_value(now)) else {
        return Some("differs".to_owned());
    };
    let (Value::Object(before), Value::Object(after)) = (&planned, &now) else {
        return Some(format!("was {}, and is {}", shown(&planned), shown(&now)));
    };
    let keys: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let fields = keys.into_iter().filter_map(|key| {
        let (was, is) = (before.get(key).unwrap_or(&Value::Null), after.get(key).unwrap_or(&Value::Null));
        (was != is).then(|| format!("`{key}` was {}, and is {}", shown(was), shown(is)))
    });
    Some(format!("changed: {}", fields.collect::<Vec<_>>().join("; ")))
}

pub(super) fn check_inventory(plan: &Plan, inventory: &Inventory, found: &mut Vec<Violation>) {
    let stale = |thing: &str, why: &str| Violation::Stale { thing: thing.to_owned(), why: why.to_owned() };
    let changes = [
        ("its name", changed(&plan.name, &inventory.name)),
        ("the source", changed(&plan.source, &inventory.source)),
        ("`multicast`", changed(&plan.multicast, &inventory.multicast)),
        ("`isolation`", changed(&plan.isolation, &inventory.isolation)),
        ("`topology`", changed(&plan.topology, &inventory.topology)),
    ];
    found.extend(changes.into_iter().filter_map(|(thing, change)| Some(stale(thing, &change?))));
    let planned: BTreeMap<&str, _> = plan.hosts.iter().map(|host| (host.name.as_str(), host)).collect();
    let there: BTreeMap<&str, _> = inventory.hosts.iter().map(|host| (host.name.as_str(), host)).collect();
    for (name, host) in &planned {
        match there.get(name) {
            None => found.push(stale(&format!("host `{name}`"), "is not in the inventory")),
            Some(other) => {
                found.extend(changed(*host, *other).map(|change| stale(&format!("host `{name}`"), &change)));
            }
        }
    }
    for name in there.keys().filter(|name| !planned.contains_key(*name)) {
        found.push(stale(&format!("host `{name}`"), "is in the inventory only"));
    }
    check_vms(plan, inventory, found);
}

fn check_vms(plan: &Plan, inventory: &Inventory, found: &mut Vec<Violation>) {
    let stale = |vm: &str, why: &str| Violation::Stale { thing: format!("VM `{vm}`"), why: why.to_owned() };
    let planned: BTreeMap<&str, &PlannedVm> = plan.vms.iter().map(|vm| (vm.name.as_str(), vm)).collect();
    let wanted: BTreeMap<&str, &Vm> = inventory.vms.iter().map(|vm| (vm.name.as_str(), vm)).collect();
    for name in planned.keys().filter(|name| !wanted.contains_key(*name)) {
        found.push(stale(name, "is not in the inventory"));
    }
    for (name, vm) in wanted {
        let Some(planned_vm) = planned.get(name) else {
            found.push(stale(name, "is in the inventory only"));
            continue;
        };
        let changes = [
            ("image", changed(&planned_vm.image, &vm.image)),
            ("format", changed(&planned_vm.format, &vm.format)),
            ("memory_mib", changed(&planned_vm.memory_mib, &vm.memory_mib)),
            ("vcpus", changed(&planned_vm.vcpus, &vm.vcpus)),
            ("tenant", changed(&planned_vm.tenant, &vm.tenant)),
        ];
        let changes = changes.into_iter().filter_map(|(field, change)| Some((field, change?)));
        found.extend(changes.map(|(field, change)| stale(name, &format!("changed: `{field}` {change}"))));
        check_place(vm, planned_vm, plan, &planned, found);
    }
}

/// Whether the copies of a VM are where they should be.
fn check_place(
    vm: &Vm,
    planned: &PlannedVm,
    plan: &Plan,
    all: &BTreeMap<&str, &PlannedVm>,
    found: &mut Vec<Violation>,
) {
    let mut wrong = |why: String| found.push(Violation::Placement { vm: vm.name.clone(), why });
    let on: BTreeSet<&str> = planned.hosts.iter().map(String::as_str).collect();
    let on_of = |name: &String| -> BTreeSet<&str> {
        all.get(name.as_str()).map(|vm| vm.hosts.iter().map(String::as_str).collect()).unwrap_or_default()
    };
    let clones: Vec<u32> = (0..planned.hosts.len()).map(|position| instances(planned, position)).collect();
    let total: u64 = clones.iter().map(|&count| u64::from(count)).sum();
    match &vm.to {
        Target::Clones(copies) => {
            if total != u64::from(*copies) {
                wrong(format!("has {total} copies instead of {copies}"));
            }
            if let Some((host, count)) =
                planned.hosts.iter().zip(&clones).find(|(_, count)| **count > vm.clones_per_host)
            {
                wrong(format!("has {count} clones on host `{host}`; {} may be there", vm.clones_per_host));
            }
        }
        Target::Hosts(hosts) => {
            if on != hosts.iter().map(String::as_str).collect() || total != hosts.len() as u64 {
                wrong(format!("is on {on:?} instead of one copy each on {hosts:?}"));
            }
        }
    }
    for other in &vm.affinity {
        if let Some(host) = on.difference(&on_of(other)).next() {
            wrong(format!("is on host `{host}` without `{other}`"));
        }
    }
    let zones = Zones::of(plan, vm.apart);
    for other in &vm.anti_affinity {
        let theirs = on_of(other);
        let theirs: BTreeSet<(bool, &str)> = theirs.iter().map(|host| zones.name(host)).collect();
        if let Some(host) = on.iter().find(|host| theirs.contains(&zones.name(host))) {
            wrong(format!("is in {} `{}` together with `{other}`", zones.kind, zones.name(host).1));
        }
    }
    let mut used = BTreeSet::new();
    for zone in on.iter().map(|host| zones.name(host)) {
        if !used.insert(zone) {
            wrong(format!("has clones on two hosts of {} `{}`", zones.kind, zone.1));
        }
    }
}

/// What hosts may share that VMs must not.
struct Zones<'a> {
    kind: &'static str,
    of_host: BTreeMap<&'a str, &'a str>,
}

impl<'a> Zones<'a> {
    fn of(plan: &'a Plan, apart: Apart) -> Self {
        let named = |host: &'a Host| match apart {
            Apart::Host => None,
            Apart::Rack => host.rack.as_deref(),
            Apart::Domain => host.domain.as_deref(),
        };
        let kind = match apart {
            Apart::Host => "host",
            Apart::Rack => "rack",
            Apart::Domain => "failure domain",
        };
        let zone = |host: &'a Host| Some((host.name.as_str(), named(host)?));
        Self { kind, of_host: plan.hosts.iter().filter_map(zone).collect() }
    }

    /// A host without a rack or domain is one of its own, even if it is called like one.
    fn name<'b>(&'b self, host: &'b str) -> (bool, &'b str) {
        self.of_host.get(host).map_or((false, host), |zone| (true, zone))
    }
}
