//! VMScatter's greedy: host by host.

use std::cmp::Reverse;

use super::problem::{Load, Problem};
use super::shares::Sharing;
use super::state::{Placed, State};
use crate::HostSet;

/// Fills the largest host first, adding the VM that has most bytes in common with those already there, then the next
/// host (VMScatter, VEE 2013). `None` if that dead-ends under the constraints.
///
/// O(N^2 + M S) for N VMs, M hosts and S the sum of the signatures' sizes.
pub(super) fn greedy(problem: &Problem, sharing: &Sharing) -> Option<Placed> {
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
        state.is_complete(vm) && state.placed[vm].iter().all(|&host| state.has_company(vm, host.into()))
    });
    is_whole.then_some(state.placed)
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
        let (common, needed) = (vec![0; state.problem.vms.len()], vec![false; sharing.signatures.len()]);
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
        for &number in &self.sharing.of_vm[vm] {
            if !std::mem::replace(&mut self.needed[number as usize], true) {
                let signature = &self.sharing.signatures[number as usize];
                for &other in &signature.vms {
                    self.common[usize::from(other)] += signature.bytes;
                }
            }
        }
    }

    /// The VM to add, with those it must have beside it.
    fn best(&self) -> Option<Vec<usize>> {
        let is_empty = self.state.on[self.host].is_empty();
        let open = |vm: &usize| !self.state.is_complete(*vm) && self.state.admits(*vm, self.host);
        let rank = |vm: usize| {
            let common = if is_empty { self.with_others(vm) } else { self.common[vm] };
            (Reverse((common, self.state.problem.vms[vm].load)), vm)
        };
        let mut ranked: Vec<_> = (0..self.state.problem.vms.len()).filter(open).map(rank).collect();
        // Mostly the first will do, so sorting all would be in vain.
        while let Some(first) = (0..ranked.len()).min_by_key(|&slot| ranked[slot]) {
            let (_, vm) = ranked.swap_remove(first);
            if let Some(company) = self.company(vm) {
                return Some(company);
            }
        }
        None
    }

    /// Bytes that a VM has in common with any VM that is not placed; the first VM on a host is the best companion.
    fn with_others(&self, vm: usize) -> u64 {
        let shared = self.sharing.of_vm[vm].iter().map(|&number| &self.sharing.signatures[number as usize]);
        let has_other = |vms: &[u16]| {
            vms.iter().filter(|&&other| !self.state.is_complete(other.into())).take(2).count() > 1
        };
        shared.filter(|signature| has_other(&signature.vms)).map(|signature| signature.bytes).sum()
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
            let is_kept_apart = vms[vm].apart.iter().any(|(other, _)| all.contains(other));
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
