//! Changes that would help, each tried on a copy of the problem.

use super::super::problem::{Load, Problem};
use super::super::search::{Outcome, search};
use super::{Change, Resource};
use crate::HostSet;
use crate::inventory::{Apart, Inventory};
use std::collections::BTreeSet;

/// Steps of one search, and of all together.
const STEPS_EACH: u64 = 20_000;
const STEPS_ALL: u64 = 600_000;
/// Most hosts for which more memory or vCPUs are tried, the largest first.
const HOSTS_TRIED: usize = 64;

/// Tries changed problems.
pub(super) struct Trial<'a> {
    inventory: &'a Inventory,
    problem: &'a Problem,
    steps_left: u64,
}

impl<'a> Trial<'a> {
    pub(super) fn new(inventory: &'a Inventory, problem: &'a Problem) -> Self {
        Self { inventory, problem, steps_left: STEPS_ALL }
    }

    fn vm(&self, vm: usize) -> String {
        self.inventory.vms[vm].name.clone()
    }

    /// Whether a changed problem has a placement; false, too, if that is not found out within the steps.
    fn helps(&mut self, change: impl FnOnce(&mut Problem)) -> bool {
        let mut problem = self.problem.clone();
        change(&mut problem);
        let (outcome, steps) = search(&problem, None, STEPS_EACH.min(self.steps_left));
        // Setting a search up costs about as much as a step for each VM.
        self.steps_left = self.steps_left.saturating_sub(steps + self.problem.vms.len() as u64);
        matches!(outcome, Outcome::Found(_))
    }

    pub(super) fn kinds(&mut self) -> Vec<&'static str> {
        let unlimited = |resource| {
            move |p: &mut Problem| p.hosts.iter_mut().for_each(|host| *part(host, resource) = Load::UNLIMITED)
        };
        let mut kinds = Vec::new();
        if self.helps(unlimited(Resource::Memory)) {
            kinds.push("the memory limits");
        }
        if self.helps(unlimited(Resource::Vcpus)) {
            kinds.push("the vCPU limits");
        }
        let no_apart = |p: &mut Problem| {
            for vm in &mut p.vms {
                vm.apart.clear();
                vm.spread = Apart::Host;
            }
        };
        if self.helps(no_apart) {
            kinds.push("anti-affinity");
        }
        let no_affinity = |p: &mut Problem| {
            for vm in &mut p.vms {
                vm.with.clear();
                vm.wanted_by.clear();
            }
        };
        if self.helps(no_affinity) {
            kinds.push("affinity");
        }
        if self.helps(|p| p.vms.iter_mut().for_each(|vm| vm.pins = None)) {
            kinds.push("pins");
        }
        kinds
    }

    /// The host that needs least more of a resource, by bisection on each.
    pub(super) fn grow(&mut self, resource: Resource) -> Option<Change> {
        let need = self.problem.demand().part(resource);
        let mut hosts: Vec<usize> = (0..self.problem.hosts.len()).collect();
        hosts.sort_by_key(|&host| (std::cmp::Reverse(self.problem.hosts[host]), host));
        let mut best: Option<(u64, usize)> = None;
        for host in hosts.into_iter().take(HOSTS_TRIED) {
            // Only less than the best so far is of interest; this host never needs more than what all VMs need.
            let most = best.map_or(need, |(more, _)| more - 1);
            let mut enough = |more: u64| {
                self.helps(|p| {
                    let has = part(&mut p.hosts[host], resource);
                    *has = has.saturating_add(more);
                })
            };
            if most == 0 || !enough(most) {
                continue;
            }
            let (mut low, mut high) = (1, most);
            while low < high {
                let middle = low + (high - low) / 2;
                if enough(middle) { high = middle } else { low = middle + 1 }
            }
            best = Some((high, host));
        }
        let (more, host) = best?;
        Some(Change::Grow { host: self.inventory.hosts[host].name.clone(), resource, more })
    }

    pub(super) fn drop_pair(&mut self) -> Option<Change> {
        for vm in 0..self.problem.vms.len() {
            for other in self.problem.vms[vm].apart.iter().map(|&(other, _)| other).collect::<BTreeSet<_>>() {
                let drop = |p: &mut Problem| {
                    p.vms[vm].apart.retain(|&(o, _)| o != other);
                    p.vms[other].apart.retain(|&(o, _)| o != vm);
                };
                if vm < other && self.may_try() && self.helps(drop) {
                    return Some(Change::DropAntiAffinity { vm: self.vm(vm), other: self.vm(other) });
                }
            }
            for other in self.problem.vms[vm].with.clone() {
                let drop = |p: &mut Problem| {
                    p.vms[vm].with.retain(|&o| o != other);
                    p.vms[other].wanted_by.retain(|&o| o != vm);
                };
                if self.may_try() && self.helps(drop) {
                    return Some(Change::DropAffinity { vm: self.vm(vm), other: self.vm(other) });
                }
            }
        }
        None
    }

    pub(super) fn unpin(&mut self) -> Option<Change> {
        let pinned = (0..self.problem.vms.len()).filter(|&vm| self.problem.vms[vm].pins.is_some());
        let found = pinned
            .collect::<Vec<_>>()
            .into_iter()
            .find(|&vm| self.may_try() && self.helps(|p| p.vms[vm].pins = None))?;
        Some(Change::Unpin { vm: self.vm(found) })
    }

    /// The VM that has to give up fewest copies.
    pub(super) fn fewer_copies(&mut self) -> Option<Change> {
        let hosts = self.problem.hosts.len();
        let copied =
            self.problem.vms.iter().enumerate().filter(|(_, item)| item.copies > 1 && item.pins.is_none());
        let mut fewer: Vec<(usize, usize, usize)> = copied
            .flat_map(|(vm, item)| {
                // No VM can have more copies than hosts take.
                (1..=hosts.saturating_mul(item.per_host).min(item.copies - 1))
                    .map(move |left| (item.copies - left, vm, left))
            })
            .collect();
        fewer.sort_unstable();
        let (_, vm, copies) = fewer
            .into_iter()
            .find(|&(_, vm, left)| self.may_try() && self.helps(|p| p.vms[vm].copies = left))?;
        Some(Change::FewerCopies { vm: self.vm(vm), copies })
    }

    /// Clones that are to be apart by rack or domain, by host only; or more of them on one host.
    pub(super) fn loosen_clones(&mut self) -> Vec<Change> {
        let mut found = Vec::new();
        for vm in 0..self.problem.vms.len() {
            let item = &self.problem.vms[vm];
            if item.copies < 2 || item.pins.is_some() {
                continue;
            }
            if item.spread != Apart::Host && self.may_try() && self.helps(|p| p.vms[vm].spread = Apart::Host)
            {
                found.push(Change::ApartByHost { vm: self.vm(vm) });
            } else if item.spread == Apart::Host {
                let (per_host, copies) = (item.per_host, item.copies);
                let more = (per_host + 1..=copies.min(per_host + 8))
                    .find(|&more| self.may_try() && self.helps(|p| p.vms[vm].per_host = more));
                found.extend(more.map(|clones| Change::MorePerHost { vm: self.vm(vm), clones }));
            }
            if !found.is_empty() {
                break;
            }
        }
        found
    }

    pub(super) fn add_host(&mut self) -> Option<Change> {
        let largest = *self.problem.hosts.iter().max()?;
        let is_possible = self.problem.hosts.len() < usize::from(u16::MAX);
        (is_possible && self.helps(|p| p.add_host(largest)))
            .then_some(Change::AddHost { memory_mib: largest.memory, vcpus: largest.vcpus })
    }

    pub(super) fn leave_out(&mut self) -> Option<Change> {
        let mut vms: Vec<usize> = (0..self.problem.vms.len()).collect();
        vms.sort_by_key(|&vm| self.problem.vms[vm].load.times(self.problem.vms[vm].copies));
        let found = vms.into_iter().find(|&vm| self.may_try() && self.helps(|p| p.leave_out(vm)))?;
        Some(Change::LeaveOut { vm: self.vm(found) })
    }

    fn may_try(&self) -> bool {
        self.steps_left > 0
    }
}

impl Problem {
    /// Makes a VM nothing that could be in the way: without load, copies or ties.
    pub(super) fn leave_out(&mut self, vm: usize) {
        for item in &mut self.vms {
            item.with.retain(|&other| other != vm);
            item.wanted_by.retain(|&other| other != vm);
            item.apart.retain(|&(other, _)| other != vm);
        }
        let item = &mut self.vms[vm];
        item.load = Load::default();
        item.copies = 1;
        item.pins = None::<HostSet>;
        item.with.clear();
        item.wanted_by.clear();
        item.apart.clear();
    }
}

fn part(load: &mut Load, resource: Resource) -> &mut u64 {
    match resource {
        Resource::Memory => &mut load.memory,
        Resource::Vcpus => &mut load.vcpus,
    }
}
