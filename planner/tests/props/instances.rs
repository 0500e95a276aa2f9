//! Random small instances, and the truth about them by enumeration.

use planner::inventory::{Apart, Host, Inventory, Isolation, Multicast, Source, Target, Vm};
use planner::{SignatureWeight, Signatures};
use proptest::prelude::*;

/// A VM of a small instance; masks are over hosts or VMs.
#[derive(Clone, Debug)]
pub(crate) struct SmallVm {
    memory: u64,
    vcpus: u32,
    copies: u32,
    pins: u32,
    with: u32,
    apart: u32,
    tenant: u8,
}

#[derive(Clone, Debug)]
pub(crate) struct Small {
    hosts: Vec<(u64, u32)>,
    vms: Vec<SmallVm>,
    /// VM mask, bytes.
    weights: Vec<(u32, u64)>,
    strict: bool,
}

/// A mask that is mostly empty.
fn sparse() -> impl Strategy<Value = u32> {
    prop_oneof![16 => Just(0u32), 3 => (0u32..6).prop_map(|bit| 1 << bit), 1 => any::<u32>().prop_map(|m| m & 0x15)]
}

fn small_vm() -> impl Strategy<Value = SmallVm> {
    (1u64..6, 1u32..4, prop_oneof![6 => Just(1u32), 1 => 2u32..4], sparse(), sparse(), sparse(), 0u8..3)
        .prop_map(|(memory, vcpus, copies, pins, with, apart, tenant)| SmallVm {
            memory,
            vcpus,
            copies,
            pins,
            with,
            apart,
            tenant,
        })
}

pub(crate) fn small() -> impl Strategy<Value = Small> {
    let hosts = prop::collection::vec((2u64..16, 2u32..12), 1..5);
    let equal_hosts = (1usize..5, 2u64..16, 2u32..12).prop_map(|(n, memory, vcpus)| vec![(memory, vcpus); n]);
    let vms = prop::collection::vec(small_vm(), 1..7);
    let weights = prop::collection::vec((1u32..64, 1u64..1000), 0..10);
    (prop_oneof![hosts, equal_hosts], vms, weights, any::<bool>())
        .prop_map(|(hosts, vms, weights, strict)| Small { hosts, vms, weights, strict })
}

impl Small {
    /// The same as an inventory; masks are cut to what exists, and contradictions dropped.
    pub(crate) fn inventory(&self) -> Inventory {
        let hosts = (0..self.hosts.len()).map(|h| Host {
            name: format!("h{h}"),
            address: format!("10.0.0.{}:47077", h + 1),
            memory_mib: self.hosts[h].0,
            vcpus: self.hosts[h].1,
            rate_mbps: 1000,
            link_cost: 1,
            rack: None,
            domain: None,
        });
        let count = self.vms.len();
        let of_mask = |mask: u32, count: usize| (0..count).filter(move |&bit| mask >> bit & 1 == 1);
        let vms = self.vms.iter().enumerate().map(|(v, vm)| {
            let others = |mask| of_mask(mask, count).filter(move |&o| o != v);
            let pins: Vec<String> = of_mask(vm.pins, self.hosts.len()).map(|h| format!("h{h}")).collect();
            let is_apart = |o: usize| vm.apart >> o & 1 == 1 || self.vms[o].apart >> v & 1 == 1;
            Vm {
                name: format!("v{v}"),
                image: format!("v{v}.ram"),
                format: None,
                memory_mib: vm.memory,
                vcpus: vm.vcpus,
                tenant: (vm.tenant > 0).then(|| format!("t{}", vm.tenant)),
                to: if pins.is_empty() { Target::Clones(vm.copies) } else { Target::Hosts(pins) },
                affinity: others(vm.with).filter(|&o| !is_apart(o)).map(|o| format!("v{o}")).collect(),
                anti_affinity: others(vm.apart).map(|o| format!("v{o}")).collect(),
                clones_per_host: 1,
                apart: Apart::Host,
            }
        });
        Inventory {
            version: 1,
            name: "small".to_owned(),
            source: Source { name: "s".to_owned(), address: None, rate_mbps: 1000, rack: None },
            hosts: hosts.collect(),
            vms: vms.collect(),
            multicast: multicast(),
            isolation: if self.strict { Isolation::Strict } else { Isolation::Normal },
            topology: None,
        }
    }

    /// Weights of sets of VMs that exist, each set once.
    pub(crate) fn signatures(&self) -> Signatures {
        let mut weights: Vec<SignatureWeight> = Vec::new();
        for &(mask, pages) in &self.weights {
            let vms: Vec<String> =
                (0..self.vms.len()).filter(|bit| mask >> bit & 1 == 1).map(|v| format!("v{v}")).collect();
            if !vms.is_empty() && weights.iter().all(|w| w.vms != vms) {
                weights.push(SignatureWeight {
                    vms,
                    pages,
                    bytes: pages * 4096,
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

/// Host masks by VM of every placement that keeps all constraints, by trying all.
pub(crate) fn all_placements(inventory: &Inventory) -> Vec<Vec<u32>> {
    let mut found = Vec::new();
    let mut masks = Vec::new();
    extend(inventory, &mut masks, &mut found);
    found
}

fn extend(inventory: &Inventory, masks: &mut Vec<u32>, found: &mut Vec<Vec<u32>>) {
    if !is_within_capacity(inventory, masks) {
        return;
    }
    if masks.len() == inventory.vms.len() {
        if keeps_ties(inventory, masks) {
            found.push(masks.clone());
        }
        return;
    }
    for mask in 1u32..1 << inventory.hosts.len() {
        let is_wanted = match &inventory.vms[masks.len()].to {
            Target::Clones(copies) => mask.count_ones() == *copies,
            Target::Hosts(hosts) => inventory
                .hosts
                .iter()
                .enumerate()
                .all(|(h, host)| (mask >> h & 1 == 1) == hosts.contains(&host.name)),
        };
        if is_wanted {
            masks.push(mask);
            extend(inventory, masks, found);
            masks.pop();
        }
    }
}

pub(crate) fn is_within_capacity(inventory: &Inventory, masks: &[u32]) -> bool {
    inventory.hosts.iter().enumerate().all(|(h, host)| {
        let here =
            || inventory.vms.iter().zip(masks).filter(|(_, mask)| *mask >> h & 1 == 1).map(|(vm, _)| vm);
        here().map(|vm| vm.memory_mib).sum::<u64>() <= host.memory_mib
            && here().map(|vm| vm.vcpus).sum::<u32>() <= host.vcpus
    })
}

pub(crate) fn keeps_ties(inventory: &Inventory, masks: &[u32]) -> bool {
    let mask_of = |name: &String| {
        masks[inventory.vms.iter().position(|vm| vm.name == *name).expect("the instance names its own VMs")]
    };
    inventory.vms.iter().zip(masks).all(|(vm, mask)| {
        vm.affinity.iter().all(|other| mask & !mask_of(other) == 0)
            && vm.anti_affinity.iter().all(|other| mask & mask_of(other) == 0)
    })
}

/// Sum over hosts of the bytes needed, from the definition.
pub(crate) fn traffic(inventory: &Inventory, signatures: &Signatures, masks: &[u32]) -> u64 {
    let mut sum = 0;
    let mut measured = vec![false; inventory.vms.len()];
    for weight in &signatures.weights {
        let vms: Vec<usize> = weight
            .vms
            .iter()
            .map(|name| inventory.vms.iter().position(|vm| vm.name == *name).expect("known"))
            .collect();
        let mut tenants: Vec<Option<&String>> =
            vms.iter().map(|&v| inventory.vms[v].tenant.as_ref()).collect();
        tenants.sort();
        tenants.dedup();
        if inventory.isolation == Isolation::Normal {
            tenants.truncate(1);
        }
        for tenant in tenants {
            let is_one = |v: &&usize| {
                inventory.isolation == Isolation::Normal || inventory.vms[**v].tenant.as_ref() == tenant
            };
            let union = vms.iter().filter(is_one).fold(0, |union, &v| union | masks[v]);
            sum += weight.bytes * u64::from(union.count_ones());
        }
        vms.iter().for_each(|&v| measured[v] = true);
    }
    for (v, vm) in inventory.vms.iter().enumerate().filter(|(v, _)| !measured[*v]) {
        sum += (vm.memory_mib << 20) * u64::from(masks[v].count_ones());
    }
    sum
}
