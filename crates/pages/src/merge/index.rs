//! The merge's result, and what can be asked of it.

use super::assemble::Contents;
use super::classes::{self, ClassCounts};
use super::layout::{Layout, Starts};
use super::scan::Runs;
use super::signatures::Signatures;
use super::{ContentId, Peak, SignatureId};
use crate::ids::IdSet;
use crate::page::{Pfn, UniformRun, VmId};

/// Contents, placements and signatures of all pages; see [`merge`](super::merge). Holds numbers only, never
/// a page's bytes.
pub struct MergeIndex {
    starts: Starts,
    runs: Runs,
    contents: Contents,
    signatures: Signatures,
    peak_bytes: usize,
}

/// What a page is.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum PageIdentity {
    /// One 64-bit word (little-endian), repeated; 0 is a zero page.
    Uniform(u64),
    /// A placement of a content.
    Content(ContentId),
}

impl MergeIndex {
    pub(super) fn new(
        layout: &Layout<'_>,
        runs: Runs,
        contents: Contents,
        signatures: Signatures,
        peak: Peak,
    ) -> Self {
        let starts = layout.starts.clone();
        Self { starts, runs, contents, signatures, peak_bytes: peak.bytes() }
    }

    /// Number of VMs that were merged.
    #[must_use]
    pub fn vm_count(&self) -> usize {
        self.starts.vms()
    }

    /// Number of pages of a VM.
    ///
    /// # Panics
    ///
    /// If there is no such VM.
    #[must_use]
    pub fn page_count(&self, vm: VmId) -> u32 {
        self.starts.page_count(vm)
    }

    /// Number of different contents; uniform pages are none.
    #[must_use]
    pub fn content_count(&self) -> u32 {
        self.contents.count()
    }

    /// All contents, ascending by their representative.
    pub fn contents(&self) -> impl Iterator<Item = ContentId> + use<> {
        (0..self.content_count()).map(ContentId)
    }

    /// Where to read a content's bytes: its lowest placement.
    ///
    /// # Panics
    ///
    /// As all that take a [`ContentId`] or [`SignatureId`]: if it is not of this index.
    #[must_use]
    pub fn representative(&self, id: ContentId) -> (VmId, Pfn) {
        self.starts.split(self.contents.placements(id)[0])
    }

    /// All placements of a content, ascending.
    pub fn placements(&self, id: ContentId) -> impl Iterator<Item = (VmId, Pfn)> + '_ {
        self.contents.placements(id).iter().map(|g| self.starts.split(*g))
    }

    /// Number of placements of a content, at least 1.
    #[must_use]
    pub fn placement_count(&self, id: ContentId) -> u32 {
        self.contents.placement_count(id)
    }

    /// What stands at a page; `None` past the image's end.
    ///
    /// # Panics
    ///
    /// If there is no such VM.
    #[must_use]
    pub fn identity(&self, vm: VmId, pfn: Pfn) -> Option<PageIdentity> {
        if pfn.0 >= self.page_count(vm) {
            return None;
        }
        if let Some(id) = self.contents.of_page(self.starts.join(vm, pfn)) {
            return Some(PageIdentity::Content(id));
        }
        let runs = self.uniform_runs(vm);
        let at = runs.partition_point(|run| run.first <= pfn);
        Some(PageIdentity::Uniform(runs[..at].last().expect("a page without content is uniform").word))
    }

    /// The set of VMs that hold a content.
    #[must_use]
    pub fn signature_of(&self, id: ContentId) -> SignatureId {
        SignatureId(self.signatures.of_content[id.0 as usize])
    }

    /// All different VM sets, by [`SignatureId`].
    #[must_use]
    pub fn signatures(&self) -> &[IdSet] {
        &self.signatures.sets
    }

    /// The VMs of a signature.
    #[must_use]
    pub fn signature(&self, id: SignatureId) -> &IdSet {
        &self.signatures.sets[id.0 as usize]
    }

    /// Number of contents by [`SignatureId`].
    #[must_use]
    pub fn signature_weights(&self) -> Vec<u64> {
        let mut weights = vec![0; self.signatures.sets.len()];
        for signature in &self.signatures.of_content {
            weights[*signature as usize] += 1;
        }
        weights
    }

    /// A VM's uniform pages as runs, ascending, each as long as possible.
    ///
    /// # Panics
    ///
    /// If there is no such VM.
    #[must_use]
    pub fn uniform_runs(&self, vm: VmId) -> &[UniformRun] {
        self.runs.of(vm)
    }

    /// Number of uniform runs of all VMs.
    #[must_use]
    pub fn uniform_run_count(&self) -> usize {
        self.runs.all().len()
    }

    /// Pages and contents by class, given the hosts that each VM (by [`VmId`]) goes to. A VM that is
    /// missing there goes to none.
    #[must_use]
    pub fn class_counts(&self, hosts_of_vm: &[IdSet]) -> ClassCounts {
        classes::count(self, hosts_of_vm)
    }

    /// As [`class_counts`](Self::class_counts), for each VM: its own pages, and the different contents among them.
    #[must_use]
    pub fn class_counts_by_vm(&self, hosts_of_vm: &[IdSet]) -> Vec<ClassCounts> {
        classes::count_by_vm(self, hosts_of_vm)
    }

    /// Bytes that the index holds now.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.starts.bytes() + self.runs.bytes() + self.contents.bytes() + self.signatures.bytes()
    }

    /// Bytes that were held at most while the index was built: at most 40 for each page, and a small amount
    /// for each VM.
    #[must_use]
    pub fn peak_bytes(&self) -> usize {
        self.peak_bytes.max(self.memory_bytes())
    }
}
