//! Random small instances, and the truth about them by enumeration.

use planner::inventory::{Apart, Host, Inventory, Isolation, Multicast, Rack, Source, Target, Topology, Vm};
use planner::{SignatureWeight, Signatures};
use proptest::prelude::*;

/// A VM of a small instance; masks are over hosts or VMs.
#[derive(Clone, Debug)]
pub(crate) struct SmallVm {
    memory: u64,
    vcpus: u32,
    copies: u32,
    per_host: u32,
    pins: u32,
    with: u32,
    apart: u32,
    scope: u8,
    tenant: u8,
}

/// A host of a small instance. Rack and domain 0: none.
#[derive(Clone, Debug)]
pub(crate) struct SmallHost {
    memory: u64,
    vcpus: u32,
    rate: u32,
    cost: u32,
    rack: u8,
    domain: u8,
}

#[derive(Clone, Debug)]
pub(crate) struct Small {
    hosts: Vec<SmallHost>,
    /// Cost of each rack's uplink; without racks, no host is in one.
    racks: Vec<u32>,
    source_rack: u8,
    vms: Vec<SmallVm>,
    /// VM mask, bytes, mask of hosts that have it.
    weights: Vec<(u32, u64, u32)>,
    strict: bool,
}

/// A mask that is mostly empty.
fn sparse() -> impl Strategy<Value = u32> {
    prop_oneof![16 => Just(0u32), 3 => (0u32..6).prop_map(|bit| 1 << bit), 1 => any::<u32>().prop_map(|m| m & 0x15)]
}

fn small_vm() -> impl Strategy<Value = SmallVm> {
    let load = (1u64..6, 1u32..4);
    let copies = (prop_oneof![6 => Just(1u32), 1 => 2u32..4], prop_oneof![3 => Just(1u32), 1 => 2u32..4]);
    let scope = prop_oneof![4 => Just(0u8), 1 => Just(1u8), 1 => Just(2u8)];
    (load, copies, sparse(), sparse(), sparse(), scope, 0u8..3).prop_map(
        |((memory, vcpus), (copies, per_host), pins, with, apart, scope, tenant)| SmallVm {
            memory,
            vcpus,
            copies,
            per_host,
            pins,
            with,
            apart,
            scope,
            tenant,
        },
    )
}

fn small_host() -> impl Strategy<Value = SmallHost> {
    let cost = prop_oneof![3 => Just(1u32), 1 => 0u32..5];
    (2u64..16, 2u32..12, prop_oneof![Just(1000u32), 1u32..5], cost, 0u8..3, 0u8..3).prop_map(
        |(memory, vcpus, rate, cost, rack, domain)| SmallHost { memory, vcpus, rate, cost, rack, domain },
    )
}

pub(crate) fn small() -> impl Strategy<Value = Small> {
    let hosts = prop::collection::vec(small_host(), 1..5);
    let equal_hosts = (1usize..5, small_host()).prop_map(|(n, host)| vec![host; n]);
    let vms = prop::collection::vec(small_vm(), 1..7);
    let resident = prop_oneof![9 => Just(0u32), 1 => 1u32..16];
    let weights = prop::collection::vec((1u32..64, 1u64..1000, resident), 0..10);
    let racks = prop_oneof![2 => Just(Vec::new()), 3 => prop::collection::vec(0u32..6, 2)];
    (prop_oneof![hosts, equal_hosts], racks, 0u8..3, vms, weights, any::<bool>()).prop_map(
        |(hosts, racks, source_rack, vms, weights, strict)| Small {
            hosts,
            racks,
            source_rack,
            vms,
            weights,
            strict,
        },
    )
}

/// Up to 12 VMs on up to 4 hosts, with every constraint that the dynamic program takes: not failure domains, nor pages
/// resident at hosts in racks. Capacity is scarce: about a third cannot be placed.
pub(crate) fn twelve() -> impl Strategy<Value = Small> {
    let host = (small_host(), 8u64..26).prop_map(|(host, memory)| SmallHost { memory, vcpus: 30, ..host });
    let hosts = prop::collection::vec(host, 2..5);
    let vm = small_vm().prop_map(|vm| SmallVm { copies: 1, per_host: 1, scope: 0, with: vm.with & 3, ..vm });
    let vms = prop::collection::vec(vm, 7..13);
    let bytes = prop_oneof![1u64..1000, 1u64..20_000];
    let weights =
        prop::collection::vec((1u32..4096, bytes, prop_oneof![9 => Just(0u32), 1 => 1u32..16]), 6..40);
    let racks = prop_oneof![Just(Vec::new()), prop::collection::vec(0u32..6, 2)];
    (hosts, racks, 0u8..3, vms, weights).prop_map(|(hosts, racks, source_rack, vms, mut weights)| {
        if !racks.is_empty() {
            weights.iter_mut().for_each(|(_, _, resident)| *resident = 0);
        }
        Small { hosts, racks, source_rack, vms, weights, strict: false }
    })
}

impl Small {
    /// The same as an inventory; masks are cut to what exists, and contradictions dropped.
    pub(crate) fn inventory(&self) -> Inventory {
        let rack = |rack: u8| (rack > 0 && !self.racks.is_empty()).then(|| format!("r{rack}"));
        let hosts = self.hosts.iter().enumerate().map(|(h, host)| Host {
            name: format!("h{h}"),
            address: format!("10.0.0.{}:47077", h + 1),
            memory_mib: host.memory,
            vcpus: host.vcpus,
            rate_mbps: host.rate,
            link_cost: host.cost,
            rack: rack(host.rack),
            domain: (host.domain > 0).then(|| format!("d{}", host.domain)),
        });
        let racks = self.racks.iter().zip(1..).map(|(&cost, number)| Rack {
            name: format!("r{number}"),
            uplink_mbps: 10,
            uplink_cost: cost,
            within: None,
        });
        Inventory {
            version: 1,
            name: "small".to_owned(),
            source: Source {
                name: "s".to_owned(),
                address: None,
                rate_mbps: 1000,
                rack: rack(self.source_rack),
            },
            hosts: hosts.collect(),
            vms: (0..self.vms.len()).map(|v| self.vm(v)).collect(),
            multicast: multicast(),
            isolation: if self.strict { Isolation::Strict } else { Isolation::Normal },
            topology: (!self.racks.is_empty()).then(|| Topology { racks: racks.collect() }),
        }
    }

    fn vm(&self, v: usize) -> Vm {
        let vm = &self.vms[v];
        let of_mask = |mask: u32, count: usize| (0..count).filter(move |&bit| mask >> bit & 1 == 1);
        let others = |mask| of_mask(mask, self.vms.len()).filter(move |&o| o != v);
        let pins: Vec<String> = of_mask(vm.pins, self.hosts.len()).map(|h| format!("h{h}")).collect();
        let is_apart = |o: usize| vm.apart >> o & 1 == 1 || self.vms[o].apart >> v & 1 == 1;
        Vm {
            name: format!("v{v}"),
            image: format!("v{v}.ram"),
            format: None,
            memory_mib: vm.memory,
            vcpus: vm.vcpus,
            tenant: (vm.tenant > 0).then(|| format!("t{}", vm.tenant)),
            launch: None,
            to: if pins.is_empty() { Target::Clones(vm.copies) } else { Target::Hosts(pins) },
            clones_per_host: vm.per_host,
            affinity: others(vm.with).filter(|&o| !is_apart(o)).map(|o| format!("v{o}")).collect(),
            anti_affinity: others(vm.apart).map(|o| format!("v{o}")).collect(),
            apart: [Apart::Host, Apart::Rack, Apart::Domain][usize::from(vm.scope)],
        }
    }

    /// Weights of sets of VMs that exist, each set once.
    pub(crate) fn signatures(&self) -> Signatures {
        let mut weights: Vec<SignatureWeight> = Vec::new();
        for &(mask, pages, resident) in &self.weights {
            let has = |h: &usize| resident >> h & 1 == 1;
            let resident: Vec<String> = (0..self.hosts.len()).filter(has).map(|h| format!("h{h}")).collect();
            let vms: Vec<String> =
                (0..self.vms.len()).filter(|bit| mask >> bit & 1 == 1).map(|v| format!("v{v}")).collect();
            if !vms.is_empty() && weights.iter().all(|w| w.vms != vms || w.resident != resident) {
                weights.push(SignatureWeight {
                    vms,
                    pages,
                    bytes: pages * 4096,
                    repeated_pages: pages / 3,
                    resident,
                    ..SignatureWeight::default()
                });
            }
        }
        Signatures { version: 1, weights, ..Default::default() }
    }
}

pub(crate) fn multicast() -> Multicast {
    Multicast {
        pool: "239.77.0.0/16".to_owned(),
        port: 47077,
        max_groups: 1024,
        memberships_max: 20,
        ttl: 1,
        join_latency_ms: 20,
        leave_tail_ms: 2000,
        superset_permille: 20,
        mtu: 1500,
        loss_ppm: 0,
    }
}

/// Copies of each VM on each host.
pub(crate) type Counts = Vec<Vec<u32>>;

/// Every placement that keeps all constraints, by trying all.
pub(crate) fn all_placements(inventory: &Inventory) -> Vec<Counts> {
    let mut found = Vec::new();
    extend(inventory, &mut Vec::new(), &mut found);
    found
}

fn extend(inventory: &Inventory, counts: &mut Counts, found: &mut Vec<Counts>) {
    if !is_within_capacity(inventory, counts) {
        return;
    }
    let Some(vm) = inventory.vms.get(counts.len()) else {
        if keeps_ties(inventory, counts) {
            found.push(counts.clone());
        }
        return;
    };
    for on in vectors(inventory.hosts.len(), u32::try_from(vm.copies()).expect("few")) {
        let is_wanted = match &vm.to {
            Target::Clones(_) => on.iter().all(|&count| count <= vm.clones_per_host),
            Target::Hosts(hosts) => {
                inventory.hosts.iter().zip(&on).all(|(h, &count)| count == u32::from(hosts.contains(&h.name)))
            }
        };
        if is_wanted {
            counts.push(on);
            extend(inventory, counts, found);
            counts.pop();
        }
    }
}

/// All ways to put so many copies on hosts.
fn vectors(hosts: usize, copies: u32) -> Vec<Vec<u32>> {
    if hosts == 0 {
        return if copies == 0 { vec![Vec::new()] } else { Vec::new() };
    }
    let first = |count: u32| {
        vectors(hosts - 1, copies - count).into_iter().map(move |mut rest| {
            rest.insert(0, count);
            rest
        })
    };
    (0..=copies).flat_map(first).collect()
}

pub(crate) fn is_within_capacity(inventory: &Inventory, counts: &Counts) -> bool {
    inventory.hosts.iter().enumerate().all(|(h, host)| {
        let here = || inventory.vms.iter().zip(counts).map(|(vm, on)| (vm, on[h]));
        here().map(|(vm, count)| vm.memory_mib * u64::from(count)).sum::<u64>() <= host.memory_mib
            && here().map(|(vm, count)| vm.vcpus * count).sum::<u32>() <= host.vcpus
    })
}

pub(crate) fn keeps_ties(inventory: &Inventory, counts: &Counts) -> bool {
    let hosts_of = |name: &String| -> Vec<usize> {
        let vm =
            inventory.vms.iter().position(|vm| vm.name == *name).expect("the instance names its own VMs");
        (0..inventory.hosts.len()).filter(|&h| counts[vm][h] > 0).collect()
    };
    let zone = |vm: &Vm, h: usize| {
        let host = &inventory.hosts[h];
        let named = match vm.apart {
            Apart::Host => None,
            Apart::Rack => host.rack.clone(),
            Apart::Domain => host.domain.clone(),
        };
        named.unwrap_or_else(|| format!("only {h}"))
    };
    inventory.vms.iter().all(|vm| {
        let on = hosts_of(&vm.name);
        let zones: Vec<String> = on.iter().map(|&h| zone(vm, h)).collect();
        let company = |other: &String| on.iter().all(|h| hosts_of(other).contains(h));
        let distance = |other: &String| hosts_of(other).iter().all(|&h| !zones.contains(&zone(vm, h)));
        vm.affinity.iter().all(company)
            && vm.anti_affinity.iter().all(distance)
            && (1..zones.len()).all(|i| !zones[..i].contains(&zones[i]))
    })
}

/// Bytes on every link times its cost, and the time of the busiest but the source's in ns, from the definition.
pub(crate) fn traffic(inventory: &Inventory, signatures: &Signatures, counts: &Counts) -> (u64, u64) {
    let hosts = inventory.hosts.len();
    let racks = inventory.topology.iter().flat_map(|t| &t.racks).collect::<Vec<_>>();
    let mut load = vec![0u64; hosts + racks.len()];
    let mut send = |vms: &[usize], bytes: u64, resident: &[String]| {
        let needs = |h: &usize| {
            vms.iter().any(|&v| counts[v][*h] > 0) && !resident.contains(&inventory.hosts[*h].name)
        };
        let to: Vec<usize> = (0..hosts).filter(needs).collect();
        to.iter().for_each(|&h| load[h] += bytes);
        for (r, rack) in racks.iter().enumerate() {
            let inside = |h: &&usize| inventory.hosts[**h].rack.as_ref() == Some(&rack.name);
            let within = to.iter().filter(inside).count();
            let is_source = inventory.source.rack.as_ref() == Some(&rack.name);
            let crosses = if is_source { to.len() > within } else { within > 0 };
            load[hosts + r] += if crosses { bytes } else { 0 };
        }
    };
    let mut measured = vec![false; inventory.vms.len()];
    for weight in &signatures.weights {
        let position = |name: &String| inventory.vms.iter().position(|vm| vm.name == *name).expect("known");
        let vms: Vec<usize> = weight.vms.iter().map(position).collect();
        let mut tenants: Vec<Option<&String>> =
            vms.iter().map(|&v| inventory.vms[v].tenant.as_ref()).collect();
        tenants.sort();
        tenants.dedup();
        if inventory.isolation == Isolation::Normal {
            tenants.truncate(1);
        }
        for tenant in tenants {
            let is_one = |v: &usize| {
                inventory.isolation == Isolation::Normal || inventory.vms[*v].tenant.as_ref() == tenant
            };
            send(&vms.iter().copied().filter(is_one).collect::<Vec<_>>(), weight.bytes, &weight.resident);
        }
        vms.iter().for_each(|&v| measured[v] = true);
    }
    for (v, vm) in inventory.vms.iter().enumerate().filter(|(v, _)| !measured[*v]) {
        send(&[v], vm.memory_mib << 20, &[]);
    }
    let rate = |link: usize| match link.checked_sub(hosts) {
        None => inventory.hosts[link].rate_mbps,
        Some(rack) => racks[rack].uplink_mbps,
    };
    let cost = |link: usize| match link.checked_sub(hosts) {
        None => inventory.hosts[link].link_cost,
        Some(rack) => racks[rack].uplink_cost,
    };
    let times = (0..load.len()).map(|link| load[link] * 8_000 / u64::from(rate(link)));
    ((0..load.len()).map(|link| load[link] * u64::from(cost(link))).sum(), times.max().unwrap_or(0))
}
