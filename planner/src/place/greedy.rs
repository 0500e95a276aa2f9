//! VMScatter's greedy: host by host.

use std::cmp::Reverse;

use super::problem::{Load, Problem};
use super::shares::Sharing;
use super::state::State;
use crate::HostSet;

/// Fills the largest host first, adding the VM that has most bytes in common with those already there, then the next
/// host (VMScatter, VEE 2013). `None` if that dead-ends under the constraints.
///
/// O(N^2 + M S) for N VMs, M hosts and S the sum of the signatures' sizes.
pub(super) fn greedy(problem: &Problem, sharing: &Sharing) -> Option<Vec<HostSet>> {
    let mut state = State::new(problem, None);
    for (vm, item) in problem.vms.iter().enumerate() {
        for host in item.pins.iter().flat_map(HostSet::iter).map(usize::from) {
            if !state.admits(vm, host) {
                return None;
            }
            state.put(vm, host);
        }
    }
    let mut hosts: Vec<usize> = (0..problem.hosts.len()).collect();
    hosts.sort_by_key(|&host| (Reverse(problem.hosts[host]), host));
    for host in hosts {
        Filling::new(&mut state, sharing, host).fill();
    }
    let is_whole = (0..problem.vms.len()).all(|vm| {
        state.is_complete(vm) && state.hosts_of_vm[vm].iter().all(|host| state.has_company(vm, host.into()))
    });
    is_whole.then_some(state.hosts_of_vm)
}

/// One host being filled.
struct Filling<'a, 'b> {
    state: &'a mut State<'b>,
    sharing: &'a Sharing,
    host: usize,
    /// Bytes that each VM has in common with the host's VMs.
    common: Vec<u64>,
    /// Whether the host needs each signature.
    needed: Vec<bool>,
}

impl<'a, 'b> Filling<'a, 'b> {
    fn new(state: &'a mut State<'b>, sharing: &'a Sharing, host: usize) -> Self {
        let (common, needed) = (vec![0; state.problem.vms.len()], vec![false; sharing.bytes.len()]);
        let mut filling = Self { state, sharing, host, common, needed };
        for vm in 0..filling.state.problem.vms.len() {
            if filling.state.has(vm, host) {
                filling.count(vm);
            }
        }
        filling
    }

    fn fill(&mut self) {
        while let Some(vms) = self.best() {
            for vm in vms {
                self.state.put(vm, self.host);
                self.count(vm);
            }
        }
    }

    /// Notes what the host needs for a VM.
    fn count(&mut self, vm: usize) {
        for &signature in &self.sharing.of_vm[vm] {
            if !std::mem::replace(&mut self.needed[signature], true) {
                for &other in &self.sharing.vms[signature] {
                    self.common[usize::from(other)] += self.sharing.bytes[signature];
                }
            }
        }
    }

    /// The VM to add, with those it must have beside it.
    fn best(&self) -> Option<Vec<usize>> {
        let is_empty = self.state.count[self.host] == 0;
        let mut open: Vec<usize> = (0..self.state.problem.vms.len())
            .filter(|&vm| !self.state.is_complete(vm) && self.state.admits(vm, self.host))
            .collect();
        open.sort_by_cached_key(|&vm| {
            let common = if is_empty { self.with_others(vm) } else { self.common[vm] };
            (Reverse((common, self.state.problem.vms[vm].load)), vm)
        });
        open.into_iter().find_map(|vm| self.company(vm))
    }

    /// Bytes that a VM has in common with any VM that is not placed; the first VM on a host is the best companion.
    fn with_others(&self, vm: usize) -> u64 {
        let has_other = |&&signature: &&usize| {
            let others = self.sharing.vms[signature].iter().map(|&other| usize::from(other));
            others.filter(|&other| !self.state.is_complete(other)).count() > 1
        };
        self.sharing.of_vm[vm].iter().filter(has_other).map(|&signature| self.sharing.bytes[signature]).sum()
    }

    /// A VM and all that must be with it and are not on the host, if they fit together.
    fn company(&self, vm: usize) -> Option<Vec<usize>> {
        let vms = &self.state.problem.vms;
        let mut all = vec![vm];
        let mut load = Load::default();
        let mut next = 0;
        while let Some(&vm) = all.get(next) {
            next += 1;
            load = load.plus(vms[vm].load);
            let is_kept_apart = vms[vm].apart.iter().any(|other| all.contains(other));
            if self.state.is_complete(vm) || !self.state.admits(vm, self.host) || is_kept_apart {
                return None;
            }
            for &other in &vms[vm].with {
                if !self.state.has(other, self.host) && !all.contains(&other) {
                    all.push(other);
                }
            }
        }
        load.fits(self.state.free[self.host]).then_some(all)
    }
}
