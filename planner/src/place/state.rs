//! A partial placement.

use super::problem::{Load, Problem};
use super::shares::{Shares, Sharing};
use crate::HostSet;
use crate::host_set::host_index;

pub(super) struct State<'a> {
    pub(super) problem: &'a Problem,
    /// Room left on each host.
    pub(super) free: Vec<Load>,
    /// Number of VMs on each host.
    pub(super) count: Vec<usize>,
    pub(super) hosts_of_vm: Vec<HostSet>,
    pub(super) shares: Option<Shares<'a>>,
}

impl<'a> State<'a> {
    pub(super) fn new(problem: &'a Problem, sharing: Option<&'a Sharing>) -> Self {
        Self {
            problem,
            free: problem.hosts.clone(),
            count: vec![0; problem.hosts.len()],
            hosts_of_vm: vec![HostSet::new(); problem.vms.len()],
            shares: sharing.map(Shares::new),
        }
    }

    pub(super) fn put(&mut self, vm: usize, host: usize) {
        self.free[host] = self.free[host].minus(self.problem.vms[vm].load);
        self.count[host] += 1;
        self.hosts_of_vm[vm].insert(host_index(host));
        if let Some(shares) = &mut self.shares {
            shares.add(vm, host);
        }
    }

    pub(super) fn take(&mut self, vm: usize, host: usize) {
        self.free[host] = self.free[host].plus(self.problem.vms[vm].load);
        self.count[host] -= 1;
        self.hosts_of_vm[vm].remove(host_index(host));
        if let Some(shares) = &mut self.shares {
            shares.remove(vm, host);
        }
    }

    pub(super) fn has(&self, vm: usize, host: usize) -> bool {
        self.hosts_of_vm[vm].contains(host_index(host))
    }

    /// Whether all copies of a VM are placed.
    pub(super) fn is_complete(&self, vm: usize) -> bool {
        self.hosts_of_vm[vm].len() == self.problem.vms[vm].copies
    }

    /// Whether a VM has room on a host, is not kept from it by a pin or another VM there, and is not there yet.
    pub(super) fn admits(&self, vm: usize, host: usize) -> bool {
        let item = &self.problem.vms[vm];
        item.load.fits(self.free[host])
            && !self.has(vm, host)
            && item.pins.as_ref().is_none_or(|pins| pins.contains(host_index(host)))
            && !item.apart.iter().any(|&other| self.has(other, host))
    }

    /// Whether every VM that a VM is to be with is on a host.
    pub(super) fn has_company(&self, vm: usize, host: usize) -> bool {
        self.problem.vms[vm].with.iter().all(|&other| self.has(other, host))
    }

    /// Bytes of a VM's shared contents that a host needs for other VMs; 0 if nothing is known.
    pub(super) fn shared(&self, vm: usize, host: usize) -> u64 {
        self.shares.as_ref().map_or(0, |shares| shares.shared(vm, host, self.has(vm, host)))
    }
}
