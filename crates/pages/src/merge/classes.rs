//! Pages and contents counted by class.

use super::ContentId;
use super::index::MergeIndex;
use crate::ids::IdSet;
use crate::page::VmId;
use serde::{Deserialize, Serialize};

/// A class's share.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ClassCount {
    /// Pages of this class, in all VMs.
    pub pages: u64,
    /// Different contents among them; for uniform pages, different words.
    pub contents: u64,
}

/// Pages and contents by class; each page counts in exactly one.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ClassCounts {
    /// Pages of zeroes.
    pub zero: ClassCount,
    /// Pages of one repeated 64-bit word that is not 0.
    pub uniform_nonzero: ClassCount,
    /// Contents with a single placement.
    pub unique: ClassCount,
    /// Contents with several placements, all in one VM.
    pub repeated_in_one_vm: ClassCount,
    /// Contents of several VMs that all go to the same single host (or to none).
    pub shared_by_vms_of_one_host: ClassCount,
    /// Contents of several VMs that go to more than one host between them.
    pub shared_across_hosts: ClassCount,
}

impl ClassCounts {
    /// Each class with its name as written in reports.
    #[must_use]
    pub fn by_name(&self) -> [(&'static str, ClassCount); 6] {
        [
            ("zero", self.zero),
            ("uniform_nonzero", self.uniform_nonzero),
            ("unique", self.unique),
            ("repeated_in_one_vm", self.repeated_in_one_vm),
            ("shared_by_vms_of_one_host", self.shared_by_vms_of_one_host),
            ("shared_across_hosts", self.shared_across_hosts),
        ]
    }

    /// All pages of all classes.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.by_name().iter().map(|(_, count)| count.pages).sum()
    }
}

pub(super) fn count(index: &MergeIndex, hosts_of_vm: &[IdSet]) -> ClassCounts {
    let mut counts = ClassCounts::default();
    count_uniform(index, &mut counts);
    let spans_hosts = spans_hosts(index, hosts_of_vm);
    for id in index.contents() {
        let class = class_of(index, id, &spans_hosts)(&mut counts);
        class.contents += 1;
        class.pages += u64::from(index.placement_count(id));
    }
    counts
}

/// As [`count`], for each VM: its own pages, and the different contents among them.
pub(super) fn count_by_vm(index: &MergeIndex, hosts_of_vm: &[IdSet]) -> Vec<ClassCounts> {
    let mut counts = vec![ClassCounts::default(); index.vm_count()];
    for (vm, counts) in (0..=u16::MAX).map(VmId).zip(&mut counts) {
        count_uniform_of(index, [vm].into_iter(), counts);
    }
    let spans_hosts = spans_hosts(index, hosts_of_vm);
    for id in index.contents() {
        let class = class_of(index, id, &spans_hosts);
        let mut before = None;
        // In the order of their VMs.
        for (vm, _) in index.placements(id) {
            let class = class(&mut counts[usize::from(vm.0)]);
            class.contents += u64::from(before != Some(vm));
            class.pages += 1;
            before = Some(vm);
        }
    }
    counts
}

/// By signature: whether its VMs go to more than one host between them.
fn spans_hosts(index: &MergeIndex, hosts_of_vm: &[IdSet]) -> Vec<bool> {
    let spans = |vms: &IdSet| {
        let mut hosts = IdSet::new();
        for vm in vms {
            if let Some(more) = hosts_of_vm.get(usize::from(vm)) {
                hosts.union_with(more);
            }
        }
        hosts.len() > 1
    };
    index.signatures().iter().map(spans).collect()
}

/// Where a content's class stands among the counts.
fn class_of(
    index: &MergeIndex,
    id: ContentId,
    spans_hosts: &[bool],
) -> fn(&mut ClassCounts) -> &mut ClassCount {
    let signature = index.signature_of(id).0 as usize;
    let several_vms = index.signatures()[signature].len() > 1;
    match (several_vms, spans_hosts[signature]) {
        (true, true) => |counts| &mut counts.shared_across_hosts,
        (true, false) => |counts| &mut counts.shared_by_vms_of_one_host,
        (false, _) if index.placement_count(id) > 1 => |counts| &mut counts.repeated_in_one_vm,
        (false, _) => |counts| &mut counts.unique,
    }
}

fn count_uniform(index: &MergeIndex, counts: &mut ClassCounts) {
    count_uniform_of(index, (0..=u16::MAX).take(index.vm_count()).map(VmId), counts);
}

fn count_uniform_of(index: &MergeIndex, vms: impl Iterator<Item = VmId>, counts: &mut ClassCounts) {
    let mut words = Vec::new();
    for vm in vms {
        for run in index.uniform_runs(vm) {
            let class = if run.word == 0 { &mut counts.zero } else { &mut counts.uniform_nonzero };
            class.pages += u64::from(run.count);
            if run.word != 0 {
                words.push(run.word);
            }
        }
    }
    words.sort_unstable();
    words.dedup();
    counts.zero.contents = u64::from(counts.zero.pages > 0);
    counts.uniform_nonzero.contents = words.len() as u64;
}
