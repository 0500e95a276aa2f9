//! The placement problem by indexes.

use std::collections::BTreeMap;

use crate::HostSet;
use crate::host_set::host_index;
use crate::inventory::{Inventory, Target};
use crate::signatures::Weight;

/// What a VM takes of a host, or what a host has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Load {
    /// MiB.
    pub(super) memory: u64,
    pub(super) vcpus: u64,
}

impl Load {
    pub(super) const UNLIMITED: u64 = 1 << 62;

    pub(super) fn fits(self, room: Self) -> bool {
        self.memory <= room.memory && self.vcpus <= room.vcpus
    }

    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            memory: self.memory.saturating_add(other.memory),
            vcpus: self.vcpus.saturating_add(other.vcpus),
        }
    }

    /// What is left of `self`; `other` must fit.
    pub(super) fn minus(self, other: Self) -> Self {
        Self { memory: self.memory - other.memory, vcpus: self.vcpus - other.vcpus }
    }

    pub(super) fn times(self, count: usize) -> Self {
        let count = count as u64;
        Self { memory: self.memory.saturating_mul(count), vcpus: self.vcpus.saturating_mul(count) }
    }
}

/// A VM.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) load: Load,
    /// Number of hosts that get a copy.
    pub(super) copies: usize,
    /// These hosts exactly.
    pub(super) pins: Option<HostSet>,
    /// VMs that must be wherever this one is.
    pub(super) with: Vec<usize>,
    /// VMs wherever which this one must be.
    pub(super) wanted_by: Vec<usize>,
    /// VMs that must not be where this one is; symmetric.
    pub(super) apart: Vec<usize>,
}

impl Item {
    /// Whether only its load tells it from other VMs.
    pub(super) fn is_plain(&self) -> bool {
        self.copies == 1
            && self.pins.is_none()
            && self.with.is_empty()
            && self.wanted_by.is_empty()
            && self.apart.is_empty()
    }
}

#[derive(Clone, Debug)]
pub(super) struct Problem {
    /// What each host has.
    pub(super) hosts: Vec<Load>,
    pub(super) vms: Vec<Item>,
}

impl Problem {
    /// Of a valid inventory.
    pub(super) fn new(inventory: &Inventory) -> Self {
        let hosts: BTreeMap<&str, u16> =
            inventory.hosts.iter().enumerate().map(|(i, h)| (h.name.as_str(), host_index(i))).collect();
        let vms: BTreeMap<&str, usize> =
            inventory.vms.iter().enumerate().map(|(i, v)| (v.name.as_str(), i)).collect();
        let indexes = |names: &[String]| names.iter().map(|name| vms[name.as_str()]).collect::<Vec<_>>();
        let items = inventory.vms.iter().map(|vm| Item {
            load: Load { memory: vm.memory_mib, vcpus: vm.vcpus.into() },
            copies: vm.copies(),
            pins: match &vm.to {
                Target::Clones(_) => None,
                Target::Hosts(names) => Some(names.iter().map(|name| hosts[name.as_str()]).collect()),
            },
            with: indexes(&vm.affinity),
            wanted_by: Vec::new(),
            apart: indexes(&vm.anti_affinity),
        });
        let mut problem = Self {
            hosts: inventory
                .hosts
                .iter()
                .map(|h| Load { memory: h.memory_mib, vcpus: h.vcpus.into() })
                .collect(),
            vms: items.collect(),
        };
        problem.link();
        problem
    }

    /// Fills `wanted_by` and makes `apart` symmetric.
    fn link(&mut self) {
        for vm in 0..self.vms.len() {
            for other in self.vms[vm].with.clone() {
                self.vms[other].wanted_by.push(vm);
            }
            for other in self.vms[vm].apart.clone() {
                self.vms[other].apart.push(vm);
            }
        }
        for item in &mut self.vms {
            item.apart.sort_unstable();
            item.apart.dedup();
        }
    }

    /// Everything that the VMs take, all copies counted.
    pub(super) fn demand(&self) -> Load {
        self.vms.iter().fold(Load::default(), |sum, item| sum.plus(item.load.times(item.copies)))
    }

    pub(super) fn capacity(&self) -> Load {
        self.hosts.iter().fold(Load::default(), |sum, &host| sum.plus(host))
    }

    /// A lower bound of [`cost`]: each signature goes at least to as many hosts as its VMs have copies, are pinned
    /// to, or need for their memory and vCPUs if they got the largest hosts.
    pub(super) fn cost_min(&self, weights: &[Weight]) -> u64 {
        let sorted = |part: fn(&Load) -> u64| {
            let mut room: Vec<u64> = self.hosts.iter().map(part).collect();
            room.sort_unstable_by_key(|&r| std::cmp::Reverse(r));
            room
        };
        let (memory, vcpus) = (sorted(|l| l.memory), sorted(|l| l.vcpus));
        let bound = |vms: &[u16]| {
            let items = || vms.iter().map(|&vm| &self.vms[usize::from(vm)]);
            let load = items().fold(Load::default(), |sum, item| sum.plus(item.load));
            let mut pinned = HostSet::new();
            items().filter_map(|item| item.pins.as_ref()).for_each(|pins| pinned.union_with(pins));
            let copies = items().map(|item| item.copies).max().unwrap_or(0);
            copies.max(pinned.len()).max(fewest(&memory, load.memory)).max(fewest(&vcpus, load.vcpus)) as u64
        };
        weights.iter().map(|weight| weight.bytes * bound(&weight.vms)).sum()
    }
}

/// How many of the largest rooms hold `need`.
fn fewest(descending: &[u64], need: u64) -> usize {
    let mut left = need;
    let used = descending.iter().take_while(|&&room| {
        let is_used = left > 0;
        left = left.saturating_sub(room);
        is_used
    });
    used.count()
}

/// Bytes that hosts need, summed over the hosts: each signature's once on every host that has one of its VMs.
pub(super) fn cost(weights: &[Weight], hosts_of_vm: &[HostSet]) -> u64 {
    weights.iter().map(|weight| weight.bytes * weight.hosts(hosts_of_vm).len() as u64).sum()
}
