//! The placement problem by indexes.

use std::collections::BTreeMap;

use crate::HostSet;
use crate::host_set::host_index;
use crate::inventory::{Apart, Inventory, Target};
use crate::network::Network;

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

    /// Share of all memory or of all vCPUs, whichever is more, in 2^-32.
    pub(super) fn share_of(self, whole: Self) -> u128 {
        let share = |part: u64, whole: u64| (u128::from(part) << 32) / u128::from(whole.max(1));
        share(self.memory, whole.memory).max(share(self.vcpus, whole.vcpus))
    }
}

/// A VM.
#[derive(Clone, Debug)]
pub(super) struct Item {
    /// Of one copy.
    pub(super) load: Load,
    /// Number of copies.
    pub(super) copies: usize,
    /// Most copies on one host.
    pub(super) per_host: usize,
    /// These hosts exactly.
    pub(super) pins: Option<HostSet>,
    /// VMs that must be wherever this one is.
    pub(super) with: Vec<usize>,
    /// VMs wherever which this one must be.
    pub(super) wanted_by: Vec<usize>,
    /// VMs that must share nothing of a scope with this one; symmetric.
    pub(super) apart: Vec<(usize, Apart)>,
    /// What its own copies on different hosts must not share.
    pub(super) spread: Apart,
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

    /// So many hosts get a copy, at least.
    pub(super) fn hosts_min(&self) -> usize {
        self.copies.div_ceil(self.per_host.max(1))
    }
}

/// A link behind the source's, as a node of a tree: hosts are its leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Node {
    /// The node that it hangs on; none for those that hang on the source's link.
    pub(super) parent: Option<usize>,
    /// What a byte counts on its link.
    pub(super) cost: u64,
    /// Rate of its link.
    pub(super) rate_bps: u64,
}

#[derive(Clone, Debug)]
pub(super) struct Problem {
    /// What each host has.
    pub(super) hosts: Vec<Load>,
    pub(super) vms: Vec<Item>,
    /// Number of each host's rack, and of its failure domain.
    racks: Vec<u32>,
    domains: Vec<u32>,
    /// Whether each host names a rack.
    in_rack: Vec<bool>,
    /// Links of racks, then those of hosts; parents first.
    pub(super) nodes: Vec<Node>,
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
            per_host: usize::try_from(vm.clones_per_host).unwrap_or(usize::MAX),
            pins: match &vm.to {
                Target::Clones(_) => None,
                Target::Hosts(names) => Some(names.iter().map(|name| hosts[name.as_str()]).collect()),
            },
            with: indexes(&vm.affinity),
            wanted_by: Vec::new(),
            apart: indexes(&vm.anti_affinity).into_iter().map(|other| (other, vm.apart)).collect(),
            spread: vm.apart,
        });
        let network = Network::new(&inventory.source, &inventory.hosts, inventory.topology.as_ref());
        let nodes = network.links()[1..].iter().map(|link| Node {
            parent: link.towards.and_then(|towards| towards.checked_sub(1)),
            cost: link.cost,
            rate_bps: link.rate_bps,
        });
        let mut problem = Self {
            hosts: inventory
                .hosts
                .iter()
                .map(|h| Load { memory: h.memory_mib, vcpus: h.vcpus.into() })
                .collect(),
            vms: items.collect(),
            racks: zones(inventory.hosts.iter().map(|host| host.rack.as_deref())),
            in_rack: inventory.hosts.iter().map(|host| host.rack.is_some()).collect(),
            domains: zones(inventory.hosts.iter().map(|host| host.domain.as_deref())),
            nodes: nodes.collect(),
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
            for (other, scope) in self.vms[vm].apart.clone() {
                self.vms[other].apart.push((vm, scope));
            }
        }
        for item in &mut self.vms {
            item.apart.sort_unstable();
            item.apart.dedup();
        }
    }

    /// The host's zone of a scope; no two of one scope have the same number.
    pub(super) fn zone(&self, scope: Apart, host: usize) -> u32 {
        match scope {
            Apart::Host => u32::from(host_index(host)),
            Apart::Rack => self.racks[host],
            Apart::Domain => self.domains[host],
        }
    }

    /// Adds a host in a rack and a domain of its own.
    pub(super) fn add_host(&mut self, load: Load) {
        let fresh = |zones: &[u32]| zones.iter().max().map_or(0, |&most| most + 1);
        self.racks.push(fresh(&self.racks));
        self.domains.push(fresh(&self.domains));
        self.in_rack.push(false);
        self.hosts.push(load);
        self.nodes.push(Node { parent: None, cost: 1, rate_bps: 0 });
    }

    /// Whether a host names a rack.
    pub(super) fn names_rack(&self, host: usize) -> bool {
        self.in_rack[host]
    }

    /// The node of a host's link.
    pub(super) fn leaf(&self, host: usize) -> usize {
        self.nodes.len() - self.hosts.len() + host
    }

    /// Nodes from a host's up to the one below the source's link.
    pub(super) fn way(&self, host: usize) -> impl Iterator<Item = usize> + '_ {
        std::iter::successors(Some(self.leaf(host)), |&node| self.nodes[node].parent)
    }

    /// What a byte to a host costs that no other host needs.
    pub(super) fn way_cost(&self, host: usize) -> u64 {
        self.way(host).map(|node| self.nodes[node].cost).sum()
    }

    /// Number of the first host that each host equals in all but its number, given what is resident where. Racks and
    /// domains of a single host are alike.
    pub(super) fn first_alike(&self) -> Vec<usize> {
        let zone = |zones: &[u32]| {
            let mut sizes: BTreeMap<u32, usize> = BTreeMap::new();
            zones.iter().for_each(|&zone| *sizes.entry(zone).or_default() += 1);
            zones.iter().map(|zone| (sizes[zone] > 1).then_some(*zone)).collect::<Vec<_>>()
        };
        let (racks, domains) = (zone(&self.racks), zone(&self.domains));
        let mut firsts = BTreeMap::new();
        let first = |host: usize| {
            let node = self.nodes[self.leaf(host)];
            let key = (self.hosts[host], node.parent, node.cost, node.rate_bps, racks[host], domains[host]);
            *firsts.entry(key).or_insert(host)
        };
        (0..self.hosts.len()).map(first).collect()
    }

    /// Everything that the VMs take, all copies counted.
    pub(super) fn demand(&self) -> Load {
        self.vms.iter().fold(Load::default(), |sum, item| sum.plus(item.load.times(item.copies)))
    }

    /// Number of copies of all VMs.
    pub(super) fn demand_copies(&self) -> u64 {
        self.vms.iter().fold(0, |sum, item| sum.saturating_add(item.copies as u64))
    }

    pub(super) fn capacity(&self) -> Load {
        self.hosts.iter().fold(Load::default(), |sum, &host| sum.plus(host))
    }
}

/// A number for each name, and one of its own for each that has none.
fn zones<'a>(names: impl Iterator<Item = Option<&'a str>>) -> Vec<u32> {
    let mut numbers: BTreeMap<&str, u32> = BTreeMap::new();
    let mut next = 0;
    let mut fresh = || {
        next += 1;
        next - 1
    };
    names
        .map(|name| match name {
            Some(name) => *numbers.entry(name).or_insert_with(&mut fresh),
            None => fresh(),
        })
        .collect()
}
