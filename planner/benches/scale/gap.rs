//! Where the distance to the bound comes from: a plan that could be better, or a bound that is too low.
//!
//! Three sorts of fleets tell it apart: small ones, whose optimum the dynamic program finds; large ones whose optimum is known,
//! since they were made from it; and large ones like those of the scale table, searched again and again.

use crate::fleet::{Random, fleet};
use planner::inventory::{Apart, Inventory, Target};
use planner::{Method, SignatureWeight, Signatures, place_by};

/// Small fleets of each size.
const SMALL: u64 = 40;
/// Searches of one large fleet.
const SEEDS: u64 = 8;

pub(crate) fn run() {
    small();
    known();
    again();
}

fn percent(figure: u64, least: u64) -> f64 {
    (figure as f64 / least as f64 - 1.0) * 100.0
}

/// Cost by local search, and the bound.
fn searched(inventory: &Inventory, signatures: &Signatures, seed: u64) -> (u64, u64) {
    let found = place_by(Method::LocalSearch, inventory, Some(signatures), seed).expect("there is room");
    found.map(|placement| (placement.cost, placement.cost_min)).expect("local search finds what there is")
}

/// Fleets that the dynamic program can place: no domains, few copies.
fn small() {
    for (vms, hosts) in [(10, 3), (13, 4), (14, 5)] {
        let (mut plan, mut bound, mut count) = (0.0, 0.0, 0);
        for seed in 0..SMALL {
            let (mut inventory, signatures) = fleet(vms, hosts, seed);
            inventory.hosts.iter_mut().for_each(|host| host.domain = None);
            let exact = place_by(Method::Exact, &inventory, Some(&signatures), seed).expect("sound");
            let Some(exact) = exact else { continue };
            let (cost, least) = searched(&inventory, &signatures, seed);
            plan += percent(cost, exact.cost);
            bound += percent(exact.cost, least);
            count += 1;
        }
        let n = f64::from(count);
        println!(
            "{vms} x {hosts}, {count} fleets: optimum known; plan {:.2} % above it, bound {:.2} % below",
            plan / n,
            bound / n
        );
    }
}

/// Fleets made from a placement: whatever VMs have in common is within a host, a few hosts, or a rack of 20, and hosts
/// are full, so that no set of VMs can be on fewer hosts than there.
fn planted(hosts: usize, seed: u64) -> (Inventory, Signatures, u64) {
    /// VMs on a host, and its vCPUs.
    const EACH: u32 = 10;
    let each = EACH as usize;
    let (mut inventory, _) = fleet(hosts * each, hosts, seed);
    let mut random = Random::new(seed);
    let mut order: Vec<(u64, usize)> = (0..hosts * each).map(|vm| (random.below(1 << 40), vm)).collect();
    order.sort_unstable();
    for vm in &mut inventory.vms {
        (vm.memory_mib, vm.vcpus, vm.to, vm.apart) = (1024, 1, Target::Clones(1), Apart::Host);
        vm.affinity.clear();
        vm.anti_affinity.clear();
    }
    for host in &mut inventory.hosts {
        (host.memory_mib, host.vcpus, host.domain) = (1024 * u64::from(EACH), EACH, None);
    }
    let mut weights = Vec::new();
    let mut optimum = 0;
    for (span, mib) in [(1, 120u64), (4, 90), (20, 60), (hosts, 40)] {
        for group in order.chunks(span * each) {
            let (on_hosts, bytes) = (group.len().div_ceil(each), mib << 20);
            let mut vms: Vec<String> = group.iter().map(|&(_, vm)| inventory.vms[vm].name.clone()).collect();
            vms.sort();
            weights.push(SignatureWeight { vms, pages: bytes / 4096, bytes, ..SignatureWeight::default() });
            // A host's link costs 1 and a rack's 2.
            optimum += bytes * (on_hosts as u64 + 2 * on_hosts.div_ceil(20) as u64);
        }
    }
    for vm in &inventory.vms {
        let bytes = 1 << 30;
        let vms = vec![vm.name.clone()];
        weights.push(SignatureWeight { vms, pages: bytes / 4096, bytes, ..SignatureWeight::default() });
        optimum += bytes * 3;
    }
    let mut merged: std::collections::BTreeMap<Vec<String>, SignatureWeight> =
        std::collections::BTreeMap::new();
    for weight in weights {
        let entry = merged.entry(weight.vms.clone()).or_default();
        (entry.vms, entry.pages) = (weight.vms, entry.pages + weight.pages);
        entry.bytes += weight.bytes;
    }
    let signatures = Signatures { version: 1, weights: merged.into_values().collect(), ..Default::default() };
    (inventory, signatures, optimum)
}

fn known() {
    for hosts in [20, 40, 100] {
        let (inventory, signatures, optimum) = planted(hosts, 1);
        let (cost, least) = searched(&inventory, &signatures, 1);
        let own: u64 = inventory.vms.len() as u64 * (3 << 30);
        println!(
            "{} x {hosts}, made from its optimum: plan {:.2} % above it ({:.2} % of what is in common), bound {:.2} % below",
            inventory.vms.len(),
            percent(cost, optimum),
            percent(cost - own, optimum - own),
            percent(optimum, least)
        );
    }
}

fn again() {
    for (vms, hosts) in [(100, 20), (300, 40), (1_000, 100)] {
        let (inventory, signatures) = fleet(vms, hosts, 1);
        let costs: Vec<u64> = (0..SEEDS).map(|seed| searched(&inventory, &signatures, seed).0).collect();
        let (least, most) = (costs.iter().min().expect("some"), costs.iter().max().expect("some"));
        println!(
            "{vms} x {hosts}: {SEEDS} searches: the best is {:.2} % below the first, the worst {:.2} % above the best",
            percent(costs[0], *least),
            percent(*most, *least)
        );
    }
}
