//! Which pages hold the same bytes: an exact, sort-based, multi-threaded merge.
//!
//! 1. `scan`: each page is read once, in order, by several threads. Uniform pages become runs; each other
//!    page becomes an entry of 20 bytes: 128 bits of XXH3 and the page's number over all VMs.
//! 2. The entries are sorted in place, so that pages of equal hash stand side by side.
//! 3. `confirm`: within equal hashes bytes are compared. XXH3 resists nobody: a guest can make pages that
//!    differ under one hash. Such a bucket is split by BLAKE3 under a random key, and compared again.
//! 4. `assemble`: contents are numbered by their lowest placement, placements are listed per content.
//! 5. `signatures`: the exact VM set of each content, each set held once.
//!
//! Cost: O(P) reads and hashes and O(R log R) entry comparisons for P pages of which R are not uniform, one
//! further read for each page whose hash occurs more than once. Memory: at its peak at most 40 bytes a page.

mod assemble;
mod classes;
mod confirm;
mod entry;
mod index;
mod layout;
mod scan;
mod signatures;
#[cfg(test)]
mod tests;

pub use classes::{ClassCount, ClassCounts};
pub use index::{MergeIndex, PageIdentity};

use crate::page::{Page, PageSource};
use layout::Layout;
use rayon::slice::ParallelSliceMut;

/// A page's bytes, once; numbered by ascending (VM, PFN) of the lowest placement.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ContentId(pub u32);

/// The exact set of VMs that hold a content; numbered by the lowest [`ContentId`] that has it.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SignatureId(pub u32);

/// What to merge.
pub struct MergeInput<'a> {
    /// The images; a VM's index here is its [`VmId`](crate::VmId). At most 2^16, with fewer than 2^32 pages
    /// in all (16 TiB).
    pub sources: &'a [&'a dyn PageSource],
    /// One for each source: pages merge only with pages of the same domain. A tenant's number where tenants
    /// must not learn of each other's pages, the same for all otherwise.
    pub domains: &'a [u32],
    /// Threads that read, hash, sort and compare; 0 counts as 1. The result does not depend on it.
    pub threads: usize,
}

/// The functions that find candidates. Tests put weak ones here, to make collisions happen.
pub(crate) struct Hashes {
    /// Fast, resists nobody.
    pub(crate) candidate: fn(&Page) -> u128,
    /// Keyed; decides among pages that collide under `candidate`.
    pub(crate) keyed: fn(&[u8; 32], &Page) -> [u8; 16],
    /// Added to either, keeps equal pages of different domains apart, so that they are not even compared;
    /// that they are never merged does not rest on it. 0 for domain 0.
    pub(crate) spread: fn(u32) -> u128,
}

pub(crate) const HASHES: Hashes = Hashes {
    candidate: |page| xxhash_rust::xxh3::xxh3_128(page),
    keyed: |key, page| {
        let digest = blake3::keyed_hash(key, page);
        *digest.as_bytes().first_chunk().expect("a digest has 32 bytes")
    },
    spread: |domain| u128::from(domain).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835),
};

/// Merges all pages of all sources: two placements share a [`ContentId`] exactly if their domains and their
/// bytes are equal.
///
/// # Panics
///
/// If `domains` is not as long as `sources`, there are more than 2^16 sources or 2^32 or more pages, or the
/// system refuses threads or randomness. A panic of a source is passed on.
#[must_use]
pub fn merge(input: &MergeInput<'_>) -> MergeIndex {
    merge_with(input, &HASHES)
}

pub(crate) fn merge_with(input: &MergeInput<'_>, hashes: &Hashes) -> MergeIndex {
    let layout = Layout::new(input.sources, input.domains);
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(input.threads.max(1))
        .thread_name(|i| format!("merge-{i}"))
        .build()
        .expect("the system gives threads");
    pool.install(|| {
        let mut peak = Peak::default();
        let scan::Scanned { mut entries, runs } = scan::scan(&layout, hashes, &mut peak);
        entries.par_sort_unstable_by(entry::order);
        confirm::confirm(&layout, hashes, &mut entries);
        let contents = assemble::assemble(&layout, entries, runs.bytes(), &mut peak);
        let signatures = signatures::intern(&layout, &contents, runs.bytes(), &mut peak);
        MergeIndex::new(&layout, runs, contents, signatures, peak)
    })
}

/// The largest number of bytes that was held at once.
#[derive(Default)]
pub(crate) struct Peak(usize);

impl Peak {
    /// Notes that `bytes` are held now.
    pub(crate) fn note(&mut self, bytes: usize) {
        self.0 = self.0.max(bytes);
    }

    pub(crate) fn bytes(&self) -> usize {
        self.0
    }
}

/// Bytes that a vector holds on the heap.
pub(crate) fn heap_bytes<T>(vec: &Vec<T>) -> usize {
    vec.capacity() * size_of::<T>()
}
