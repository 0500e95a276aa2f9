//! A partial placement.

use super::problem::{Load, Problem};
use super::shares::{Shares, Sharing};
use crate::HostSet;
use crate::host_set::host_index;
use crate::inventory::Apart;

/// The hosts of each VM's copies, ascending; one entry a copy.
pub(super) type Placed = Vec<Vec<u16>>;

pub(super) struct State<'a> {
    pub(super) problem: &'a Problem,
    /// Room left on each host.
    pub(super) free: Vec<Load>,
    /// VMs on each host, one entry a copy, in no order.
    pub(super) on: Vec<Vec<u16>>,
    pub(super) placed: Placed,
    pub(super) shares: Option<Shares<'a>>,
}

impl<'a> State<'a> {
    pub(super) fn new(problem: &'a Problem, sharing: Option<&'a Sharing>) -> Self {
        Self {
            problem,
            free: problem.hosts.clone(),
            on: vec![Vec::new(); problem.hosts.len()],
            placed: vec![Vec::new(); problem.vms.len()],
            shares: sharing.map(|sharing| Shares::new(problem, sharing)),
        }
    }

    /// A whole placement.
    pub(super) fn of(problem: &'a Problem, sharing: &'a Sharing, placed: &Placed) -> Self {
        let mut state = Self::new(problem, Some(sharing));
        state.put_all(placed);
        state
    }

    /// To another whole placement.
    pub(super) fn reset(&mut self, placed: &Placed) {
        let mut state = Self::new(self.problem, self.shares.as_ref().map(Shares::sharing));
        state.put_all(placed);
        *self = state;
    }

    fn put_all(&mut self, placed: &Placed) {
        for (vm, hosts) in placed.iter().enumerate() {
            hosts.iter().for_each(|&host| self.put(vm, host.into()));
        }
    }

    pub(super) fn put(&mut self, vm: usize, host: usize) {
        self.free[host] = self.free[host].minus(self.problem.vms[vm].load);
        self.on[host].push(host_index(vm));
        let hosts = &mut self.placed[vm];
        let slot = hosts.partition_point(|&h| usize::from(h) < host);
        let is_first = hosts.get(slot).is_none_or(|&h| usize::from(h) != host);
        hosts.insert(slot, host_index(host));
        if let Some(shares) = &mut self.shares {
            shares.add(vm, host, is_first);
        }
    }

    pub(super) fn take(&mut self, vm: usize, host: usize) {
        self.free[host] = self.free[host].plus(self.problem.vms[vm].load);
        let slot = self.on[host].iter().rposition(|&v| usize::from(v) == vm).expect("it is there");
        self.on[host].swap_remove(slot);
        let hosts = &mut self.placed[vm];
        let slot = hosts.partition_point(|&h| usize::from(h) < host);
        hosts.remove(slot);
        let is_last = hosts.get(slot).is_none_or(|&h| usize::from(h) != host);
        if let Some(shares) = &mut self.shares {
            shares.remove(vm, host, is_last);
        }
    }

    pub(super) fn has(&self, vm: usize, host: usize) -> bool {
        self.placed[vm].binary_search(&host_index(host)).is_ok()
    }

    /// Whether all copies of a VM are placed.
    pub(super) fn is_complete(&self, vm: usize) -> bool {
        self.placed[vm].len() == self.problem.vms[vm].copies
    }

    /// Whether a VM has room on a host, and is not kept from it by a pin, another VM or its own copies.
    pub(super) fn admits(&self, vm: usize, host: usize) -> bool {
        self.problem.vms[vm].load.fits(self.free[host]) && self.tolerates(vm, host)
    }

    /// The same, room aside.
    pub(super) fn tolerates(&self, vm: usize, host: usize) -> bool {
        let item = &self.problem.vms[vm];
        item.pins.as_ref().is_none_or(|pins| pins.contains(host_index(host)))
            && self.may_have_more(vm, host)
            && !item.apart.iter().any(|&(other, scope)| self.shares_zone(other, scope, host))
    }

    /// Whether the VM's own copies let another one go to a host.
    fn may_have_more(&self, vm: usize, host: usize) -> bool {
        let item = &self.problem.vms[vm];
        let hosts = &self.placed[vm];
        if hosts.is_empty() {
            return true;
        }
        let first = hosts.partition_point(|&h| usize::from(h) < host);
        let here = hosts[first..].iter().take_while(|&&h| usize::from(h) == host).count();
        let most = if item.pins.is_some() { 1 } else { item.per_host };
        here < most && (item.spread == Apart::Host || here > 0 || !self.shares_zone(vm, item.spread, host))
    }

    /// Whether a VM is in the same zone as a host.
    fn shares_zone(&self, vm: usize, scope: Apart, host: usize) -> bool {
        match scope {
            Apart::Host => self.has(vm, host),
            Apart::Rack | Apart::Domain => {
                let zone = self.problem.zone(scope, host);
                self.placed[vm].iter().any(|&h| self.problem.zone(scope, h.into()) == zone)
            }
        }
    }

    /// Whether every VM that a VM is to be with is on a host.
    pub(super) fn has_company(&self, vm: usize, host: usize) -> bool {
        self.problem.vms[vm].with.iter().all(|&other| self.has(other, host))
    }

    /// The same, of those whose copies are all placed.
    pub(super) fn may_have_company(&self, vm: usize, host: usize) -> bool {
        let with = &self.problem.vms[vm].with;
        with.iter().all(|&other| !self.is_complete(other) || self.has(other, host))
    }

    /// The hosts where a VM is not, but wanted.
    pub(super) fn missed(&self, vm: usize) -> Vec<u16> {
        let wanted = self.problem.vms[vm].wanted_by.iter().flat_map(|&other| &self.placed[other]);
        wanted.copied().filter(|&host| !self.has(vm, host.into())).collect()
    }

    /// Whether a VM that is not on a host (any more) is missed by none there.
    pub(super) fn is_not_missed(&self, vm: usize, host: usize) -> bool {
        self.has(vm, host) || !self.problem.vms[vm].wanted_by.iter().any(|&other| self.has(other, host))
    }

    /// What it costs to send a VM to a host; 0 if nothing is known.
    pub(super) fn delta(&self, vm: usize, host: usize) -> u64 {
        if self.has(vm, host) {
            return 0;
        }
        self.shares.as_ref().map_or(0, |shares| shares.delta(vm, host))
    }

    /// What the placement costs, at least if it is partial.
    pub(super) fn cost(&self) -> u64 {
        self.shares.as_ref().map_or(0, Shares::cost)
    }
}

/// The hosts of each VM, whatever the number of copies.
pub(super) fn host_sets(placed: &Placed) -> Vec<HostSet> {
    placed.iter().map(|hosts| hosts.iter().copied().collect()).collect()
}
