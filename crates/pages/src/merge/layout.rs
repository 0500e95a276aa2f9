//! All VMs' pages in one row: page g of the row is page `g - start` of the VM whose range holds g.

use crate::page::{Page, PageSource, Pfn, VmId};

/// Stands where a page of the row has no content.
pub(crate) const NONE: u32 = u32::MAX;

/// The row's division into VMs.
#[derive(Debug, Clone)]
pub(crate) struct Starts(Vec<u32>);

impl Starts {
    /// Number of pages of all VMs.
    pub(crate) fn total(&self) -> u32 {
        *self.0.last().expect("starts end with the total")
    }

    /// Number of VMs.
    pub(crate) fn vms(&self) -> usize {
        self.0.len() - 1
    }

    /// Number of pages of a VM.
    pub(crate) fn page_count(&self, vm: VmId) -> u32 {
        let at = usize::from(vm.0);
        self.0[at + 1] - self.0[at]
    }

    /// The VM and page number of page g of the row.
    pub(crate) fn split(&self, g: u32) -> (VmId, Pfn) {
        // The last VM that starts at or before g; VMs without pages start where their successor starts.
        let at = self.0.partition_point(|start| *start <= g) - 1;
        let vm = u16::try_from(at).expect("at most 2^16 VMs");
        (VmId(vm), Pfn(g - self.0[at]))
    }

    /// The place in the row of a VM's page.
    pub(crate) fn join(&self, vm: VmId, pfn: Pfn) -> u32 {
        self.0[usize::from(vm.0)] + pfn.0
    }

    /// Whether page g of the row belongs to `vm`.
    pub(crate) fn is_in(&self, g: u32, vm: VmId) -> bool {
        let at = usize::from(vm.0);
        (self.0[at]..self.0[at + 1]).contains(&g)
    }

    /// The VMs of ascending pages of the row, each once, ascending.
    pub(crate) fn vms_of<'a>(&'a self, pages: &'a [u32]) -> impl Iterator<Item = u16> + 'a {
        let mut last = None;
        pages.iter().filter_map(move |g| {
            if last.is_some_and(|vm| self.is_in(*g, vm)) {
                return None;
            }
            let (vm, _) = self.split(*g);
            last = Some(vm);
            Some(vm.0)
        })
    }

    pub(crate) fn bytes(&self) -> usize {
        super::heap_bytes(&self.0)
    }
}

/// The row with its sources.
pub(crate) struct Layout<'a> {
    pub(crate) sources: &'a [&'a dyn PageSource],
    pub(crate) domains: &'a [u32],
    pub(crate) starts: Starts,
}

impl<'a> Layout<'a> {
    pub(crate) fn new(sources: &'a [&'a dyn PageSource], domains: &'a [u32]) -> Self {
        assert_eq!(sources.len(), domains.len(), "one domain for each source");
        assert!(sources.len() <= 1 << 16, "at most 2^16 VMs");
        let mut starts = Vec::with_capacity(sources.len() + 1);
        let mut total = 0u32;
        starts.push(total);
        for source in sources {
            total = total.checked_add(source.page_count()).expect("fewer than 2^32 pages in all");
            starts.push(total);
        }
        assert!(total != NONE, "fewer than 2^32 - 1 pages in all");
        Self { sources, domains, starts: Starts(starts) }
    }

    /// Domain and bytes of page g of the row.
    pub(crate) fn page(&self, g: u32) -> (u32, &'a Page) {
        let (vm, pfn) = self.starts.split(g);
        let at = usize::from(vm.0);
        (self.domains[at], self.sources[at].page(pfn))
    }
}
