//! Why nothing can be placed, and what would help.

mod trial;

use std::collections::BTreeSet;
use std::fmt;

use super::problem::{Item, Load, Problem};
use crate::host_set::host_index;
use crate::inventory::{Apart, Inventory};

/// What a host runs out of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Memory, in MiB.
    Memory,
    /// Virtual CPUs.
    Vcpus,
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memory => "MiB of memory",
            Self::Vcpus => "vCPUs",
        })
    }
}

/// A constraint that cannot be met.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Constraint {
    /// A VM is larger than every host.
    #[error("VM `{vm}` needs {need} {resource}; the largest host, `{host}`, has {has}")]
    TooLarge {
        /// The VM.
        vm: String,
        /// What it needs too much of.
        resource: Resource,
        /// How much.
        need: u64,
        /// The host with most of it.
        host: String,
        /// How much that one has.
        has: u64,
    },
    /// More copies than hosts that can hold one.
    #[error("VM `{vm}` is to have {copies} copies, at most {per_host} on a host; the hosts can hold {fit}")]
    TooFewHosts {
        /// The VM.
        vm: String,
        /// Copies wanted.
        copies: usize,
        /// Most copies on one host.
        per_host: usize,
        /// Copies that hosts have memory and vCPUs for, if empty.
        fit: usize,
    },
    /// More copies in racks or failure domains of their own than there are such that can hold one.
    #[error(
        "VM `{vm}` is to have {copies} copies, each host with any in a {scope} of its own; {fit} such can hold one"
    )]
    TooFewZones {
        /// The VM.
        vm: String,
        /// Copies wanted.
        copies: usize,
        /// `rack` or `failure domain`.
        scope: &'static str,
        /// Racks or domains with a host that has enough memory and vCPUs, if empty.
        fit: usize,
    },
    /// The VMs pinned to a host do not fit it.
    #[error("the VMs pinned to host `{host}` need {need} {resource}; it has {has}")]
    PinsOverload {
        /// The host.
        host: String,
        /// What is short.
        resource: Resource,
        /// What they need.
        need: u64,
        /// What it has.
        has: u64,
    },
    /// Two VMs to be apart are pinned to one host.
    #[error("VMs `{vm}` and `{other}` are to be apart, but both are pinned to host `{host}`")]
    PinsTogether {
        /// One VM.
        vm: String,
        /// The other.
        other: String,
        /// The host.
        host: String,
    },
    /// A VM has more copies than one that must be wherever it is.
    #[error("VM `{vm}` has {copies} copies and is to be with `{other}`, which has {other_copies} only")]
    AffinityCopies {
        /// The VM.
        vm: String,
        /// Its copies.
        copies: usize,
        /// The VM to be with.
        other: String,
        /// That one's copies.
        other_copies: usize,
    },
    /// All VMs together need more than all hosts have.
    #[error("all VMs, each copy counted, need {need} {resource}; all hosts have {has}")]
    Total {
        /// What is short.
        resource: Resource,
        /// What they need.
        need: u64,
        /// What there is.
        has: u64,
    },
    /// No constraint is impossible by itself. Without any one of these kinds there would be a placement; if the list
    /// is empty, lifting one kind is not enough.
    #[error("the constraints cannot all be met at once{}", if .0.is_empty() { String::new() } else { format!("; without {} they could", .0.join(", or without ")) })]
    Together(Vec<&'static str>),
}

/// A change after which a placement exists. Each was tried.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Change {
    /// More of a resource on one host; the least that suffices there, on the host where it is least.
    #[error("give host `{host}` {more} more {resource}")]
    Grow {
        /// The host.
        host: String,
        /// Of what.
        resource: Resource,
        /// How much.
        more: u64,
    },
    /// One more host.
    #[error("add a host with {memory_mib} MiB of memory and {vcpus} vCPUs")]
    AddHost {
        /// As much as the largest host has, in MiB.
        memory_mib: u64,
        /// As many as the largest host has.
        vcpus: u64,
    },
    /// Fewer copies of a VM; as many as possible.
    #[error("make {copies} {} of VM `{vm}`", if *.copies == 1 { "copy" } else { "copies" })]
    FewerCopies {
        /// The VM.
        vm: String,
        /// Copies that fit.
        copies: usize,
    },
    /// Let clones of a VM share a rack or failure domain.
    #[error("let clones of VM `{vm}` be apart by host only")]
    ApartByHost {
        /// The VM.
        vm: String,
    },
    /// More clones on one host; the least that suffices.
    #[error("allow {clones} clones of VM `{vm}` on one host (`clones_per_host`)")]
    MorePerHost {
        /// The VM.
        vm: String,
        /// Clones on one host.
        clones: usize,
    },
    /// Let a VM go to any host.
    #[error("unpin VM `{vm}`")]
    Unpin {
        /// The VM.
        vm: String,
    },
    /// Drop an affinity.
    #[error("drop the affinity of VM `{vm}` to `{other}`")]
    DropAffinity {
        /// The VM that lists it.
        vm: String,
        /// The VM listed.
        other: String,
    },
    /// Drop an anti-affinity.
    #[error("let VMs `{vm}` and `{other}` share a host")]
    DropAntiAffinity {
        /// One VM.
        vm: String,
        /// The other.
        other: String,
    },
    /// Leave a VM out; the smallest with which that helps.
    #[error("leave VM `{vm}` out")]
    LeaveOut {
        /// The VM.
        vm: String,
    },
}

/// A proof in words that no placement exists.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no placement exists: {constraint}{}", advice(.changes))]
pub struct Infeasible {
    /// What cannot be met.
    pub constraint: Constraint,
    /// What would help, each by itself; the smallest of each kind. Empty if no single change was found.
    pub changes: Vec<Change>,
}

fn advice(changes: &[Change]) -> String {
    match changes {
        [] => "; no single change was found that would help".to_owned(),
        [only] => format!("; what would help: {only}"),
        several => format!(
            "; what would help, each by itself: {}",
            several.iter().map(ToString::to_string).collect::<Vec<_>>().join("; or ")
        ),
    }
}

/// A constraint that is impossible by itself, if there is one.
pub(super) fn plain_reason(inventory: &Inventory, problem: &Problem) -> Option<Constraint> {
    let vms = || problem.vms.iter().zip(&inventory.vms);
    let alone = vms().filter(|(item, _)| item.pins.is_none()).find_map(|(item, vm)| {
        let held = |host: Load| {
            let part = |need: u64, has: u64| has.checked_div(need).unwrap_or(u64::MAX);
            let most = part(item.load.memory, host.memory).min(part(item.load.vcpus, host.vcpus));
            usize::try_from(most).unwrap_or(usize::MAX).min(item.per_host)
        };
        let fit = problem.hosts.iter().map(|&host| held(host)).fold(0, usize::saturating_add);
        if fit >= item.copies {
            return too_few_zones(problem, item, &vm.name);
        }
        let few = Constraint::TooFewHosts {
            vm: vm.name.clone(),
            copies: item.copies,
            per_host: item.per_host,
            fit,
        };
        Some(if fit > 0 { few } else { too_large(inventory, problem, &vm.name, item.load).unwrap_or(few) })
    });
    let copies = || {
        vms().find_map(|(item, vm)| {
            let has_fewer = |&other: &usize| problem.vms[other].copies < item.hosts_min();
            let other = item.with.iter().copied().find(has_fewer)?;
            Some(Constraint::AffinityCopies {
                vm: vm.name.clone(),
                copies: item.copies,
                other: inventory.vms[other].name.clone(),
                other_copies: problem.vms[other].copies,
            })
        })
    };
    let total = || {
        let (need, has) = (problem.demand(), problem.capacity());
        short(need, has).map(|(resource, need, has)| Constraint::Total { resource, need, has })
    };
    alone.or_else(copies).or_else(|| pins(inventory, problem)).or_else(total)
}

/// Copies that are to be in racks or domains of their own, of which there are too few.
fn too_few_zones(problem: &Problem, item: &Item, vm: &str) -> Option<Constraint> {
    let scope = match item.spread {
        Apart::Host => return None,
        Apart::Rack => "rack",
        Apart::Domain => "failure domain",
    };
    let roomy = (0..problem.hosts.len()).filter(|&host| item.load.fits(problem.hosts[host]));
    let zones: BTreeSet<u32> = roomy.map(|host| problem.zone(item.spread, host)).collect();
    (zones.len().saturating_mul(item.per_host) < item.copies).then(|| Constraint::TooFewZones {
        vm: vm.to_owned(),
        copies: item.copies,
        scope,
        fit: zones.len(),
    })
}

fn pins(inventory: &Inventory, problem: &Problem) -> Option<Constraint> {
    for (index, &host) in problem.hosts.iter().enumerate() {
        let index = host_index(index);
        let name = || inventory.hosts[usize::from(index)].name.clone();
        let is_here = |vm: usize| problem.vms[vm].pins.as_ref().is_some_and(|pins| pins.contains(index));
        let here: Vec<usize> = (0..problem.vms.len()).filter(|&vm| is_here(vm)).collect();
        let need = here.iter().fold(Load::default(), |sum, &vm| sum.plus(problem.vms[vm].load));
        if let Some((resource, need, has)) = short(need, host) {
            return Some(Constraint::PinsOverload { host: name(), resource, need, has });
        }
        for &vm in &here {
            if let Some(&(other, _)) = problem.vms[vm].apart.iter().find(|(other, _)| is_here(*other)) {
                let called = |vm: usize| inventory.vms[vm].name.clone();
                return Some(Constraint::PinsTogether { vm: called(vm), other: called(other), host: name() });
            }
        }
    }
    None
}

fn short(need: Load, has: Load) -> Option<(Resource, u64, u64)> {
    if need.memory > has.memory {
        Some((Resource::Memory, need.memory, has.memory))
    } else {
        (need.vcpus > has.vcpus).then_some((Resource::Vcpus, need.vcpus, has.vcpus))
    }
}

fn too_large(inventory: &Inventory, problem: &Problem, vm: &str, load: Load) -> Option<Constraint> {
    [Resource::Memory, Resource::Vcpus].into_iter().find_map(|resource| {
        let need = load.part(resource);
        let room = problem.hosts.iter().map(|host| host.part(resource)).zip(&inventory.hosts);
        let (has, host) = room.max_by_key(|&(has, _)| has)?;
        (need > has).then(|| Constraint::TooLarge {
            vm: vm.to_owned(),
            resource,
            need,
            host: host.name.clone(),
            has,
        })
    })
}

impl Load {
    fn part(self, resource: Resource) -> u64 {
        match resource {
            Resource::Memory => self.memory,
            Resource::Vcpus => self.vcpus,
        }
    }
}

/// Completes the proof: without a plain reason, names the kinds of constraint that cannot be met together; in any
/// case looks for the smallest change of each kind that helps.
pub(super) fn explain(inventory: &Inventory, problem: &Problem, plain: Option<Constraint>) -> Infeasible {
    let mut trial = trial::Trial::new(inventory, problem);
    let constraint = plain.unwrap_or_else(|| Constraint::Together(trial.kinds()));
    let mut changes = Vec::new();
    changes.extend(trial.grow(Resource::Memory));
    changes.extend(trial.grow(Resource::Vcpus));
    changes.extend(trial.drop_pair());
    changes.extend(trial.unpin());
    changes.extend(trial.loosen_clones());
    changes.extend(trial.fewer_copies());
    changes.extend(trial.add_host());
    if changes.is_empty() {
        changes.extend(trial.leave_out());
    }
    Infeasible { constraint, changes }
}
