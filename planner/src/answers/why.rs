//! Why a VM goes where it goes.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use super::{difference, listed, size};
use crate::inventory::{Apart, Inventory, Target, Vm};
use crate::signatures::{SignatureError, Signatures, Weight, weights};
use crate::{HostSet, Network, Plan};

/// Alternatives in words; the others are counted.
const SHOWN_MAX: usize = 6;

/// Why one copy of a VM is on its host. Displays itself in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// The VM.
    pub vm: String,
    /// Its host.
    pub host: String,
    /// Bytes that the VM needs there.
    pub needed_bytes: u64,
    /// Of these, bytes that its host has already.
    pub resident_bytes: u64,
    /// Of these, bytes that other VMs need there, too.
    pub shared_bytes: u64,
    /// With which VMs there it has how much in common, most first.
    pub shared_with: Vec<(String, u64)>,
    /// Whether it may be nowhere else (`to.hosts`).
    pub pinned: bool,
    /// The other hosts: those that could take it first, the cheapest first.
    pub alternatives: Vec<Alternative>,
}

/// Another host for a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alternative {
    /// The host.
    pub host: String,
    /// What the placement's cost would change by: bytes on links behind the source's, times the links' costs.
    pub cost_change: i128,
    /// What stands against it, as everything else is placed now.
    pub obstacles: Vec<Obstacle>,
}

impl Alternative {
    fn has_copy(&self) -> bool {
        self.obstacles.contains(&Obstacle::Copy)
    }
}

/// What keeps a copy from a host.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Obstacle {
    /// Memory that is missing, in MiB.
    Memory(u64),
    /// vCPUs that are missing.
    Vcpus(u64),
    /// It has as many copies of this VM as it may.
    Copy,
    /// A VM there, or in its rack or failure domain, that this one must be apart from.
    Apart(String),
    /// A VM that must be where this one is, and is not there.
    Needs(String),
    /// A VM on the host now that must not be without this one.
    NeededBy(String),
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory(mib) => write!(f, "no room: {mib} MiB of memory short"),
            Self::Vcpus(count) => write!(f, "no room: {count} vCPUs short"),
            Self::Copy => f.write_str("it has a copy already"),
            Self::Apart(vm) => write!(f, "must be apart from {vm}"),
            Self::Needs(vm) => write!(f, "must be with {vm}, which is not there"),
            Self::NeededBy(vm) => write!(f, "{vm} must not be without it"),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} → {}: ", self.vm, self.host)?;
        if self.pinned {
            f.write_str("pinned there; ")?;
        }
        let need = size(self.needed_bytes);
        if self.shared_with.is_empty() {
            write!(f, "has nothing in common with VMs there; its {need} are sent for it alone")?;
        } else {
            let names = listed(self.shared_with.iter().map(|(vm, _)| vm.as_str()));
            write!(f, "shares {} of its {need} with {names} there", size(self.shared_bytes))?;
        }
        if self.resident_bytes > 0 {
            write!(f, "; {} are there already", size(self.resident_bytes))?;
        }
        if self.pinned {
            return writeln!(f);
        }
        let possible = self.alternatives.iter().filter(|other| other.obstacles.is_empty()).count();
        writeln!(
            f,
            "{}",
            if possible == 0 { "; as the others are placed, no other host can take it" } else { "" }
        )?;
        let with_copy: Vec<&str> = self
            .alternatives
            .iter()
            .filter(|other| other.has_copy())
            .map(|other| other.host.as_str())
            .collect();
        if !with_copy.is_empty() {
            writeln!(f, "    its other copies: {}", listed(with_copy.iter().copied()))?;
        }
        let others: Vec<&Alternative> = self.alternatives.iter().filter(|other| !other.has_copy()).collect();
        for other in others.iter().take(SHOWN_MAX) {
            let cost = difference(other.cost_change);
            if other.obstacles.is_empty() {
                writeln!(f, "    on {} it would cost {cost}", other.host)?;
            } else {
                let obstacles: Vec<String> = other.obstacles.iter().map(ToString::to_string).collect();
                writeln!(f, "    on {}: {} (it would cost {cost})", other.host, obstacles.join("; "))?;
            }
        }
        match others.len().saturating_sub(SHOWN_MAX) {
            0 => Ok(()),
            more => writeln!(f, "    and {more} hosts more, none cheaper that could take it"),
        }
    }
}

/// The reasons for each copy of these VMs, or of all if none is named, in the plan's order.
///
/// # Errors
/// [`SignatureError`] if the signatures do not fit the inventory.
///
/// # Panics
/// If the plan is not one of this inventory.
pub fn why(
    inventory: &Inventory,
    signatures: Option<&Signatures>,
    plan: &Plan,
    vms: &[String],
) -> Result<Vec<Reason>, SignatureError> {
    assert_eq!(inventory.vms.len(), plan.vms.len(), "a plan of this inventory");
    let weights = weights(inventory, signatures)?;
    let mut weights_of: Vec<Vec<&Weight>> = vec![Vec::new(); inventory.vms.len()];
    for weight in &weights {
        weight.vms.iter().for_each(|vm| weights_of[usize::from(*vm)].push(weight));
    }
    let view = View {
        inventory,
        hosts_of_vm: plan.hosts_of_vms(),
        instances: plan.instances_of_vms(),
        network: plan.network(),
        used: used(inventory, plan),
    };
    let mut reasons = Vec::new();
    for (vm, of_vm) in weights_of.iter().enumerate() {
        if !vms.is_empty() && !vms.contains(&inventory.vms[vm].name) {
            continue;
        }
        for host in view.hosts_of_vm[vm].iter() {
            reasons.push(view.reason(vm, host, of_vm));
        }
    }
    Ok(reasons)
}

/// Memory and vCPUs in use on each host.
fn used(inventory: &Inventory, plan: &Plan) -> Vec<(u64, u64)> {
    let mut used = vec![(0, 0); inventory.hosts.len()];
    for (vm, instances) in inventory.vms.iter().zip(plan.instances_of_vms()) {
        for (host, count) in instances {
            let of_host = &mut used[usize::from(host)];
            of_host.0 += vm.memory_mib * u64::from(count);
            of_host.1 += u64::from(vm.vcpus) * u64::from(count);
        }
    }
    used
}

struct View<'a> {
    inventory: &'a Inventory,
    hosts_of_vm: Vec<HostSet>,
    instances: Vec<Vec<(u16, u32)>>,
    network: Network,
    used: Vec<(u64, u64)>,
}

impl View<'_> {
    fn name(&self, vm: usize) -> &str {
        &self.inventory.vms[vm].name
    }

    fn reason(&self, vm: usize, host: u16, weights: &[&Weight]) -> Reason {
        let (mut needed, mut resident, mut shared) = (0u64, 0u64, 0u64);
        let mut with: BTreeMap<usize, u64> = BTreeMap::new();
        for weight in weights {
            needed += weight.bytes;
            if weight.resident.contains(host) {
                resident += weight.bytes;
                continue;
            }
            let mut alone = true;
            for other in weight.vms.iter().map(|other| usize::from(*other)) {
                if other != vm && self.hosts_of_vm[other].contains(host) {
                    *with.entry(other).or_default() += weight.bytes;
                    alone = false;
                }
            }
            shared += if alone { 0 } else { weight.bytes };
        }
        let mut shared_with: Vec<(String, u64)> =
            with.into_iter().map(|(other, bytes)| (self.name(other).to_owned(), bytes)).collect();
        shared_with.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        let pinned = matches!(self.inventory.vms[vm].to, Target::Hosts(_));
        let alternatives = if pinned { Vec::new() } else { self.alternatives(vm, host, weights) };
        Reason {
            vm: self.name(vm).to_owned(),
            host: self.inventory.hosts[usize::from(host)].name.clone(),
            needed_bytes: needed,
            resident_bytes: resident,
            shared_bytes: shared,
            shared_with,
            pinned,
            alternatives,
        }
    }

    fn alternatives(&self, vm: usize, from: u16, weights: &[&Weight]) -> Vec<Alternative> {
        let mut trees = HashMap::new();
        let others = (0u16..).zip(&self.inventory.hosts).filter(|(to, _)| *to != from);
        let mut alternatives: Vec<Alternative> = others
            .map(|(to, host)| Alternative {
                host: host.name.clone(),
                cost_change: self.cost_change(vm, from, to, weights, &mut trees),
                obstacles: self.obstacles(vm, from, to),
            })
            .collect();
        alternatives.sort_by(|a, b| {
            let key = |other: &Alternative| {
                // A host with a copy is no alternative at all, and would cost less only as one copy was less.
                (other.obstacles.contains(&Obstacle::Copy), !other.obstacles.is_empty(), other.cost_change)
            };
            key(a).cmp(&key(b)).then_with(|| a.host.cmp(&b.host))
        });
        alternatives
    }

    /// Of moving one copy; each content that the VM holds goes to other links, or not.
    fn cost_change(
        &self,
        vm: usize,
        from: u16,
        to: u16,
        weights: &[&Weight],
        trees: &mut HashMap<HostSet, i128>,
    ) -> i128 {
        let mut moved = self.hosts_of_vm.clone();
        moved[vm].remove(from);
        moved[vm].insert(to);
        let mut cost = |hosts: HostSet| {
            *trees.entry(hosts.clone()).or_insert_with(|| {
                let links = self.network.tree(&hosts).into_iter().filter(|link| *link > 0);
                links.map(|link| i128::from(self.network.links()[link].cost)).sum()
            })
        };
        let change = |weight: &&Weight| {
            i128::from(weight.bytes) * (cost(weight.hosts(&moved)) - cost(weight.hosts(&self.hosts_of_vm)))
        };
        weights.iter().map(change).sum()
    }

    fn obstacles(&self, vm: usize, from: u16, to: u16) -> Vec<Obstacle> {
        let mut obstacles = Vec::new();
        let (wanted, host) = (&self.inventory.vms[vm], &self.inventory.hosts[usize::from(to)]);
        let copies = self.instances[vm].iter().find(|(host, _)| *host == to).map_or(0, |(_, count)| *count);
        if copies >= wanted.clones_per_host {
            obstacles.push(Obstacle::Copy);
        }
        let (memory, vcpus) = self.used[usize::from(to)];
        let short = |used: u64, more: u64, has: u64| (used + more).saturating_sub(has);
        match short(memory, wanted.memory_mib, host.memory_mib) {
            0 => {}
            mib => obstacles.push(Obstacle::Memory(mib)),
        }
        match short(vcpus, wanted.vcpus.into(), host.vcpus.into()) {
            0 => {}
            count => obstacles.push(Obstacle::Vcpus(count)),
        }
        for (other, vm_there) in self.inventory.vms.iter().enumerate() {
            if self.kept_apart(wanted, vm_there)
                && self.hosts_of_vm[other].iter().any(|h| self.near(h, to, scope(wanted, vm_there)))
            {
                obstacles.push(Obstacle::Apart(vm_there.name.clone()));
            }
            if wanted.affinity.contains(&vm_there.name) && !self.hosts_of_vm[other].contains(to) {
                obstacles.push(Obstacle::Needs(vm_there.name.clone()));
            }
            if vm_there.affinity.contains(&wanted.name) && self.hosts_of_vm[other].contains(from) {
                obstacles.push(Obstacle::NeededBy(vm_there.name.clone()));
            }
        }
        obstacles
    }

    fn kept_apart(&self, a: &Vm, b: &Vm) -> bool {
        a.anti_affinity.contains(&b.name) || b.anti_affinity.contains(&a.name)
    }

    /// Whether two hosts share what VMs must not share.
    fn near(&self, a: u16, b: u16, scope: Apart) -> bool {
        let (one, other) = (&self.inventory.hosts[usize::from(a)], &self.inventory.hosts[usize::from(b)]);
        a == b
            || match scope {
                Apart::Host => false,
                Apart::Rack => one.rack.is_some() && one.rack == other.rack,
                Apart::Domain => one.domain.is_some() && one.domain == other.domain,
            }
    }
}

/// The wider of what either asks for.
fn scope(a: &Vm, b: &Vm) -> Apart {
    let of =
        |vm: &Vm, other: &Vm| if vm.anti_affinity.contains(&other.name) { vm.apart } else { Apart::Host };
    of(a, b).max(of(b, a))
}
