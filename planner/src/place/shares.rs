//! Bytes that a VM has in common with what a host gets anyway.

use super::problem::Problem;
use crate::signatures::Weight;

/// Most counters kept: 100 MB.
const COUNTERS_MAX: usize = 50_000_000;

/// The signatures that guide placement: those of several VMs, heaviest first as far as counters allow.
pub(super) struct Sharing {
    hosts: usize,
    /// Bytes of each signature.
    pub(super) bytes: Vec<u64>,
    /// So many hosts need each signature in any case: the most copies of one of its VMs.
    least: Vec<u16>,
    /// Whether every signature of several VMs is here.
    pub(super) is_all: bool,
    /// VMs of each signature.
    pub(super) vms: Vec<Vec<u16>>,
    /// Signatures of each VM.
    pub(super) of_vm: Vec<Vec<usize>>,
}

impl Sharing {
    pub(super) fn new(problem: &Problem, weights: &[Weight]) -> Self {
        let mut several: Vec<&Weight> = weights.iter().filter(|weight| weight.vms.len() > 1).collect();
        several.sort_by_key(|weight| std::cmp::Reverse(weight.bytes));
        let count = several.len();
        several.truncate(COUNTERS_MAX / problem.hosts.len().max(1));
        let mut of_vm = vec![Vec::new(); problem.vms.len()];
        for (signature, weight) in several.iter().enumerate() {
            for &vm in &weight.vms {
                of_vm[usize::from(vm)].push(signature);
            }
        }
        let copies =
            |vms: &[u16]| vms.iter().map(|&vm| problem.vms[usize::from(vm)].copies).max().unwrap_or(0);
        Self {
            hosts: problem.hosts.len(),
            least: several
                .iter()
                .map(|weight| u16::try_from(copies(&weight.vms)).unwrap_or(u16::MAX))
                .collect(),
            is_all: several.len() == count,
            bytes: several.iter().map(|weight| weight.bytes).collect(),
            vms: several.iter().map(|weight| weight.vms.clone()).collect(),
            of_vm,
        }
    }

    pub(super) fn is_any(&self) -> bool {
        !self.bytes.is_empty()
    }
}

/// How many VMs of each signature each host has.
pub(super) struct Shares<'a> {
    sharing: &'a Sharing,
    count: Vec<u16>,
    /// How many hosts need each signature.
    hosts_with: Vec<u16>,
    cost: u64,
}

impl<'a> Shares<'a> {
    pub(super) fn new(sharing: &'a Sharing) -> Self {
        Self {
            sharing,
            count: vec![0; sharing.hosts * sharing.bytes.len()],
            hosts_with: vec![0; sharing.bytes.len()],
            cost: sharing
                .bytes
                .iter()
                .zip(&sharing.least)
                .map(|(bytes, &least)| bytes * u64::from(least))
                .sum(),
        }
    }

    /// Bytes that hosts need of these signatures, summed over the hosts; of a partial placement, at least.
    pub(super) fn cost(&self) -> u64 {
        self.cost
    }

    /// Bytes of `vm`'s shared contents that `host` needs for other VMs.
    pub(super) fn shared(&self, vm: usize, host: usize, vm_is_there: bool) -> u64 {
        let counts = self.row(host);
        let others = |&&signature: &&usize| counts[signature] > u16::from(vm_is_there);
        self.sharing.of_vm[vm].iter().filter(others).map(|&signature| self.sharing.bytes[signature]).sum()
    }

    pub(super) fn add(&mut self, vm: usize, host: usize) {
        let base = host * self.sharing.bytes.len();
        for &signature in &self.sharing.of_vm[vm] {
            if self.count[base + signature] == 0 {
                if self.hosts_with[signature] >= self.sharing.least[signature] {
                    self.cost += self.sharing.bytes[signature];
                }
                self.hosts_with[signature] += 1;
            }
            self.count[base + signature] += 1;
        }
    }

    pub(super) fn remove(&mut self, vm: usize, host: usize) {
        let base = host * self.sharing.bytes.len();
        for &signature in &self.sharing.of_vm[vm] {
            self.count[base + signature] -= 1;
            if self.count[base + signature] == 0 {
                self.hosts_with[signature] -= 1;
                if self.hosts_with[signature] >= self.sharing.least[signature] {
                    self.cost -= self.sharing.bytes[signature];
                }
            }
        }
    }

    fn row(&self, host: usize) -> &[u16] {
        &self.count[host * self.sharing.bytes.len()..][..self.sharing.bytes.len()]
    }
}
