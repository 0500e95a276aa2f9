//! What the types of an inventory cannot say.

mod names;
mod problem;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use super::{Host, Inventory, Multicast, Rack, Target, Vm};
use crate::pool::Pool;

use names::{check_name, nearest};
pub use problem::{Problem, Problems};

/// Most hosts, and most VMs, of an inventory: their indexes are 16 bits on the network.
const COUNT_MAX: usize = 65_535;
/// Longest name of a host (RFC 1035, 2.3.4) and of a VM (leaves room for suffixes in 255 bytes of file name).
const HOST_NAME_MAX: usize = 253;
const VM_NAME_MAX: usize = 200;
/// Most that a byte on a link may count: sums over all links stay within 64 bits.
const COST_MAX: u64 = 1_000_000;

/// All problems of an inventory, in its order.
pub(super) fn problems(inventory: &Inventory) -> Vec<Problem> {
    let mut found = Vec::new();
    check_name("transfer", &inventory.name, HOST_NAME_MAX, &mut found);
    check_source(inventory, &mut found);
    for (list, count) in [("hosts", inventory.hosts.len()), ("vms", inventory.vms.len())] {
        match count {
            0 => found.push(Problem::Empty { list }),
            1..=COUNT_MAX => {}
            _ => found.push(Problem::TooMany { list, count }),
        }
    }
    let all_racks = inventory.topology.as_ref().map_or(&[][..], |topology| &topology.racks);
    let racks: BTreeSet<&str> = all_racks.iter().map(|rack| rack.name.as_str()).collect();
    check_racks(all_racks, &racks, &mut found);
    let source = &inventory.source;
    check_rack_of(|| format!("source `{}`", source.name), source.rack.as_ref(), &racks, &mut found);
    check_unique("host", inventory.hosts.iter().map(|h| h.name.as_str()), &mut found);
    let mut addresses = BTreeMap::new();
    for host in &inventory.hosts {
        check_host(host, &racks, &mut addresses, &mut found);
    }
    check_unique("VM", inventory.vms.iter().map(|v| v.name.as_str()), &mut found);
    let hosts: BTreeSet<&str> = inventory.hosts.iter().map(|h| h.name.as_str()).collect();
    let vms: BTreeMap<&str, &Vm> = inventory.vms.iter().map(|v| (v.name.as_str(), v)).collect();
    for vm in &inventory.vms {
        check_vm(vm, &hosts, &vms, &mut found);
    }
    check_multicast(&inventory.multicast, &mut found);
    found
}

fn check_source(inventory: &Inventory, found: &mut Vec<Problem>) {
    let source = &inventory.source;
    check_name("source", &source.name, HOST_NAME_MAX, found);
    check_zero(|| format!("source `{}`", source.name), "rate_mbps", source.rate_mbps.into(), found);
    if let Some(address) = &source.address
        && !address.parse::<IpAddr>().is_ok_and(|ip| !ip.is_multicast() && !ip.is_unspecified())
    {
        found.push(Problem::SourceAddress { source_name: source.name.clone(), address: address.clone() });
    }
}

fn check_host<'a>(
    host: &'a Host,
    racks: &BTreeSet<&str>,
    addresses: &mut BTreeMap<SocketAddr, &'a str>,
    found: &mut Vec<Problem>,
) {
    check_name("host", &host.name, HOST_NAME_MAX, found);
    let address = |why| Problem::Address { host: host.name.clone(), address: host.address.clone(), why };
    match host.address.parse::<SocketAddr>() {
        Err(_) => found.push(address("is no ip:port")),
        Ok(a) if a.port() == 0 => found.push(address("has port 0")),
        Ok(a) if a.ip().is_multicast() => found.push(address("is a multicast address")),
        Ok(a) if a.ip().is_unspecified() => found.push(address("names every host and none")),
        Ok(a) => {
            if let Some(first) = addresses.insert(a, &host.name) {
                found.push(Problem::SameAddress {
                    first: first.to_owned(),
                    second: host.name.clone(),
                    address: host.address.clone(),
                });
            }
        }
    }
    let thing = || format!("host `{}`", host.name);
    check_zero(thing, "memory_mib", host.memory_mib, found);
    check_zero(thing, "vcpus", host.vcpus.into(), found);
    check_zero(thing, "rate_mbps", host.rate_mbps.into(), found);
    check_range(thing, "link_cost", host.link_cost.into(), 0, COST_MAX, found);
    check_rack_of(thing, host.rack.as_ref(), racks, found);
    if let Some(domain) = &host.domain {
        check_name("failure domain", domain, HOST_NAME_MAX, found);
    }
}

fn check_racks(all: &[Rack], names: &BTreeSet<&str>, found: &mut Vec<Problem>) {
    check_unique("rack", all.iter().map(|rack| rack.name.as_str()), found);
    let within: BTreeMap<&str, &str> =
        all.iter().filter_map(|rack| Some((rack.name.as_str(), rack.within.as_deref()?))).collect();
    for rack in all {
        check_name("rack", &rack.name, HOST_NAME_MAX, found);
        let thing = || format!("rack `{}`", rack.name);
        check_zero(thing, "uplink_mbps", rack.uplink_mbps.into(), found);
        check_range(thing, "uplink_cost", rack.uplink_cost.into(), 0, COST_MAX, found);
        check_rack_of(thing, rack.within.as_ref(), names, found);
        let mut around = within.get(rack.name.as_str());
        for _ in 0..all.len() {
            if around.is_none_or(|&name| name == rack.name) {
                break;
            }
            around = around.and_then(|name| within.get(name));
        }
        if around.is_some_and(|&name| name == rack.name) {
            found.push(Problem::RackCycle { rack: rack.name.clone() });
        }
    }
}

fn check_rack_of(
    thing: impl Fn() -> String,
    rack: Option<&String>,
    racks: &BTreeSet<&str>,
    found: &mut Vec<Problem>,
) {
    if let Some(rack) = rack.filter(|rack| !racks.contains(rack.as_str())) {
        let near = nearest(rack, racks.iter().copied());
        found.push(Problem::UnknownRack { thing: thing(), rack: rack.clone(), near });
    }
}

fn check_vm(vm: &Vm, hosts: &BTreeSet<&str>, vms: &BTreeMap<&str, &Vm>, found: &mut Vec<Problem>) {
    check_name("VM", &vm.name, VM_NAME_MAX, found);
    let thing = || format!("VM `{}`", vm.name);
    check_zero(thing, "memory_mib", vm.memory_mib, found);
    check_zero(thing, "vcpus", vm.vcpus.into(), found);
    check_zero(thing, "clones_per_host", vm.clones_per_host.into(), found);
    if vm.image.is_empty() {
        found.push(Problem::Image { vm: vm.name.clone(), why: "is empty" });
    } else if vm.image.contains('\0') {
        found.push(Problem::Image { vm: vm.name.clone(), why: "holds a NUL byte" });
    }
    match &vm.to {
        Target::Clones(copies) => check_zero(thing, "to.clones", (*copies).into(), found),
        Target::Hosts(names) => {
            check_zero(
                || format!("VM `{}`: number of hosts", vm.name),
                "to.hosts",
                names.len() as u64,
                found,
            );
            for name in names.iter().filter(|name| !hosts.contains(name.as_str())) {
                let near = nearest(name, hosts.iter().copied());
                found.push(Problem::UnknownHost { vm: vm.name.clone(), host: name.clone(), near });
            }
            check_repeated(vm, "to.hosts", names, found);
        }
    }
    for (field, names) in [("affinity", &vm.affinity), ("anti_affinity", &vm.anti_affinity)] {
        for name in names.iter().filter(|name| !vms.contains_key(name.as_str())) {
            let near = nearest(name, vms.keys().copied());
            found.push(Problem::UnknownVm { vm: vm.name.clone(), field, other: name.clone(), near });
        }
        check_repeated(vm, field, names, found);
        if names.contains(&vm.name) {
            let why = ", the VM itself";
            found.push(Problem::Repeated { vm: vm.name.clone(), field, name: vm.name.clone(), why });
        }
    }
    for other in &vm.affinity {
        let apart = vm.anti_affinity.contains(other)
            || vms.get(other.as_str()).is_some_and(|o| o.anti_affinity.contains(&vm.name));
        if apart && *other != vm.name {
            found.push(Problem::Contradiction { vm: vm.name.clone(), other: other.clone() });
        }
    }
}

fn check_multicast(multicast: &Multicast, found: &mut Vec<Problem>) {
    if let Err(error) = multicast.pool.parse::<Pool>() {
        found.push(Problem::Pool(error));
    }
    let thing = || "multicast".to_owned();
    check_zero(thing, "port", multicast.port.into(), found);
    check_zero(thing, "ttl", multicast.ttl.into(), found);
    check_range(thing, "superset_permille", multicast.superset_permille.into(), 0, 1000, found);
    check_range(thing, "mtu", multicast.mtu.into(), 576, 65_535, found);
    check_range(thing, "loss_ppm", multicast.loss_ppm.into(), 0, 500_000, found);
}

fn check_range(
    thing: impl Fn() -> String,
    field: &'static str,
    figure: u64,
    min: u64,
    max: u64,
    found: &mut Vec<Problem>,
) {
    if !(min..=max).contains(&figure) {
        found.push(Problem::Range { thing: thing(), field, found: figure, min, max });
    }
}

fn check_repeated(vm: &Vm, field: &'static str, names: &[String], found: &mut Vec<Problem>) {
    let mut seen = BTreeSet::new();
    for name in names.iter().filter(|name| !seen.insert(name.as_str())) {
        found.push(Problem::Repeated { vm: vm.name.clone(), field, name: name.clone(), why: "twice" });
    }
}

fn check_unique<'a>(kind: &'static str, names: impl Iterator<Item = &'a str>, found: &mut Vec<Problem>) {
    let mut seen = BTreeSet::new();
    let repeated: BTreeSet<&str> = names.filter(|name| !seen.insert(*name)).collect();
    found.extend(repeated.into_iter().map(|name| Problem::Duplicate { kind, name: name.to_owned() }));
}

fn check_zero(thing: impl Fn() -> String, field: &'static str, figure: u64, found: &mut Vec<Problem>) {
    if figure == 0 {
        found.push(Problem::Zero { thing: thing(), field });
    }
}
