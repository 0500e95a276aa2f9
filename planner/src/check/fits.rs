//! Hosts, what is on them, and whether the inventory is the plan's.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use super::{Names, Violation};
use crate::inventory::{Inventory, Target, Vm};
use crate::plan::{Plan, PlannedVm};

pub(super) fn check_hosts(plan: &Plan, names: &Names, found: &mut Vec<Violation>) {
    check_figures(plan, found);
    let mut addresses = BTreeSet::new();
    let mut load = vec![(0u128, 0u128); plan.hosts.len()];
    for (vm, hosts) in plan.vms.iter().zip(&names.vm_hosts) {
        for &host in hosts {
            load[host].0 += u128::from(vm.memory_mib);
            load[host].1 += u128::from(vm.vcpus);
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

pub(super) fn check_inventory(plan: &Plan, inventory: &Inventory, found: &mut Vec<Violation>) {
    let stale = |thing: &str, why: &str| Violation::Stale { thing: thing.to_owned(), why: why.to_owned() };
    let same = [
        ("its name", plan.name == inventory.name),
        ("the source", plan.source == inventory.source),
        ("`multicast`", plan.multicast == inventory.multicast),
        ("`isolation`", plan.isolation == inventory.isolation),
        ("`topology`", plan.topology == inventory.topology),
    ];
    found.extend(same.iter().filter(|(_, is_same)| !is_same).map(|(thing, _)| stale(thing, "differs")));
    let planned: BTreeMap<&str, _> = plan.hosts.iter().map(|host| (host.name.as_str(), host)).collect();
    let there: BTreeMap<&str, _> = inventory.hosts.iter().map(|host| (host.name.as_str(), host)).collect();
    for (name, host) in &planned {
        match there.get(name) {
            None => found.push(stale(&format!("host `{name}`"), "is not in the inventory")),
            Some(other) if other != host => found.push(stale(&format!("host `{name}`"), "differs")),
            Some(_) => {}
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
        let is_same = planned_vm.image == vm.image
            && planned_vm.format == vm.format
            && planned_vm.memory_mib == vm.memory_mib
            && planned_vm.vcpus == vm.vcpus
            && planned_vm.tenant == vm.tenant;
        if !is_same {
            found.push(stale(name, "differs"));
        }
        check_place(vm, planned_vm, &planned, found);
    }
}

/// Whether the copies of a VM are where they should be.
fn check_place(vm: &Vm, planned: &PlannedVm, all: &BTreeMap<&str, &PlannedVm>, found: &mut Vec<Violation>) {
    let mut wrong = |why: String| found.push(Violation::Placement { vm: vm.name.clone(), why });
    let on: BTreeSet<&str> = planned.hosts.iter().map(String::as_str).collect();
    let on_of = |name: &String| -> BTreeSet<&str> {
        all.get(name.as_str()).map(|vm| vm.hosts.iter().map(String::as_str).collect()).unwrap_or_default()
    };
    match &vm.to {
        Target::Clones(copies) if on.len() as u64 != u64::from(*copies) => {
            wrong(format!("has {} copies instead of {copies}", on.len()));
        }
        Target::Hosts(hosts) if on != hosts.iter().map(String::as_str).collect() => {
            wrong(format!("is on {on:?} instead of {hosts:?}"));
        }
        Target::Clones(_) | Target::Hosts(_) => {}
    }
    for other in &vm.affinity {
        if let Some(host) = on.difference(&on_of(other)).next() {
            wrong(format!("is on host `{host}` without `{other}`"));
        }
    }
    for other in &vm.anti_affinity {
        if let Some(host) = on.intersection(&on_of(other)).next() {
            wrong(format!("is on host `{host}` together with `{other}`"));
        }
    }
}
