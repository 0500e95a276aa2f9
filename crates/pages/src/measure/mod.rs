//! What VMs on several hosts have in common, without their pages going anywhere.
//!
//! Each host measures its own VMs ([`measure`]): every page is read once, and hashed with BLAKE3 under a key that is
//! drawn afresh for each measurement and that all its hosts share. A guest does not know the key while it runs, so it
//! can neither make two of its pages look equal nor hide from the sample; that is why XXH3, which finds candidates where
//! bytes can be compared, has no part here.
//!
//! Contents that hosts share are found in two turns, so that few bytes travel (see [`Fingerprints`]):
//!
//! 1. each host tells the short fingerprints of its contents, a little over a byte for each;
//! 2. of those that more than one host told (a superset of what they share), each host tells the whole 128 bits, and
//!    which of its VMs hold the content ([`Measured::summary`]).
//!
//! [`join`] then knows the exact set of VMs of each content. Two contents are taken for one if 128 bits of keyed BLAKE3
//! are equal: by chance once in 2^64 contents.
//!
//! For very large fleets [`Sampling`] keeps a fraction of the *contents*, chosen by their hash: all hosts keep the same
//! ones, so a content that is shared is seen as shared. What is counted is scaled up; [`JoinedWeight::standard_error`]
//! says how far that may be off.

mod fingerprints;
mod join;
mod sizes;
#[cfg(test)]
mod tests;

pub use fingerprints::{Fingerprints, FingerprintsError, fingerprint_bits, in_common};
pub use join::{Candidate, HostSummary, Joined, JoinedClasses, JoinedWeight, Own, join};

use crate::block::Encoding;
use crate::ids::IdSet;
use crate::names::domain_key;
use crate::page::{PAGE_SIZE, Page, PageSource, Pfn, VmId};
use crate::uniform::uniform_word;
use rayon::prelude::*;
use std::collections::HashMap;

/// Pages that a thread takes at once: 4 MiB.
const TASK_PAGES: u32 = 1024;

/// Most different VM sets of one host. Guests decide which pages they have in common, so this has to end somewhere.
pub const SETS_MAX: usize = 1 << 20;

/// Which fraction of the contents is kept.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Sampling {
    /// A content is kept if 64 bits of its hash are below this; `None` keeps all.
    keep_below: Option<u64>,
}

impl Sampling {
    /// Keeps every content.
    pub const ALL: Self = Self { keep_below: None };

    /// Keeps one content in `n`, on average. 0 and 1 keep all.
    #[must_use]
    pub fn one_in(n: u32) -> Self {
        Self { keep_below: (n > 1).then(|| u64::MAX / u64::from(n.max(1))) }
    }

    /// The threshold, as it travels; 0 stands for all.
    #[must_use]
    pub fn threshold(self) -> u64 {
        self.keep_below.unwrap_or(0)
    }

    /// From a [`threshold`](Self::threshold).
    #[must_use]
    pub fn from_threshold(threshold: u64) -> Self {
        Self { keep_below: (threshold > 0).then_some(threshold) }
    }

    /// The fraction kept, above 0 and at most 1.
    #[must_use]
    pub fn fraction(self) -> f64 {
        self.keep_below.map_or(1.0, |below| (below as f64 / u64::MAX as f64).max(f64::MIN_POSITIVE))
    }

    fn keeps(self, bits: u64) -> bool {
        self.keep_below.is_none_or(|below| bits < below)
    }
}

/// What to measure.
pub struct MeasureInput<'a> {
    /// The images; a VM's index here is its number.
    pub sources: &'a [&'a dyn PageSource],
    /// One for each source: pages are only ever found equal within a domain, also across hosts. A tenant's number
    /// where tenants must not learn of each other's pages, the same for all otherwise.
    pub domains: &'a [u32],
    /// Drawn afresh for this measurement, the same at all its hosts, unknown to guests.
    pub key: &'a [u8; 32],
    /// Which contents are kept.
    pub sampling: Sampling,
    /// Threads that read and hash; 0 counts as 1. The result does not depend on it.
    pub threads: usize,
}

/// Why images cannot be measured.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MeasureError {
    /// More VM sets than [`SETS_MAX`].
    #[error(
        "the VMs have pages in common in more than {SETS_MAX} different ways; measure fewer VMs at once, or a sample of \
         their contents"
    )]
    TooManySets,
}

/// Pages of one VM, counted. All of them, sampled or not.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct VmPages {
    /// Pages of the image.
    pub pages: u64,
    /// Pages of zeroes.
    pub zero: u64,
    /// Pages of one repeated word that is not 0.
    pub uniform_nonzero: u64,
}

/// A content of one host.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct LocalContent {
    /// 128 bits of the keyed BLAKE3.
    hash: u128,
    /// Index of its VM set.
    set: u32,
    /// Pages that hold it, at least 1.
    pages: u32,
    /// Its lowest placement.
    pfn: u32,
    vm: u16,
}

/// What one host knows of its VMs. Holds 32 bytes for each content kept, and no page's bytes.
#[derive(Clone, PartialEq, Debug)]
pub struct Measured {
    /// Each VM's pages.
    vms: Vec<VmPages>,
    /// The VM sets that occur.
    sets: Vec<IdSet>,
    /// Ascending by hash.
    contents: Vec<LocalContent>,
    sampling: Sampling,
}

/// A page that is not uniform: hash, VM and page number, so that sorting brings equal contents together with the
/// lowest placement first.
type Entry = (u128, u16, u32);

/// Reads all pages once and keeps what joining needs.
///
/// # Errors
/// [`MeasureError::TooManySets`].
///
/// # Panics
/// If `domains` is not as long as `sources`, there are more than 2^16 sources, or the system refuses threads.
pub fn measure(input: &MeasureInput<'_>) -> Result<Measured, MeasureError> {
    assert_eq!(input.sources.len(), input.domains.len(), "a domain for each source");
    assert!(input.sources.len() <= 1 << 16, "VM ids have 16 bits");
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(input.threads.max(1))
        .thread_name(|i| format!("measure-{i}"))
        .build()
        .expect("the system gives threads");
    pool.install(|| {
        let (vms, mut entries) = scan(input);
        entries.par_sort_unstable();
        let (contents, sets) = contents(&entries)?;
        Ok(Measured { vms, sets, contents, sampling: input.sampling })
    })
}

/// Counts uniform pages, hashes the others.
fn scan(input: &MeasureInput<'_>) -> (Vec<VmPages>, Vec<Entry>) {
    let keys: HashMap<u32, [u8; 32]> =
        input.domains.iter().map(|domain| (*domain, domain_key(input.key, *domain))).collect();
    let mut tasks = Vec::new();
    for (vm, source) in (0..=u16::MAX).zip(input.sources) {
        for first in (0..source.page_count()).step_by(TASK_PAGES as usize) {
            tasks.push((vm, first..source.page_count().min(first.saturating_add(TASK_PAGES))));
        }
    }
    let done: Vec<(u16, VmPages, Vec<Entry>)> = tasks
        .into_par_iter()
        .map(|(vm, range)| {
            let source = input.sources[usize::from(vm)];
            let key = &keys[&input.domains[usize::from(vm)]];
            let mut counts = VmPages { pages: range.len() as u64, ..VmPages::default() };
            let mut entries = Vec::new();
            for pfn in range {
                let page = source.page(Pfn(pfn));
                match uniform_word(page) {
                    Some(0) => counts.zero += 1,
                    Some(_) => counts.uniform_nonzero += 1,
                    None => entries.extend(hashed(key, page, input.sampling).map(|hash| (hash, vm, pfn))),
                }
            }
            (vm, counts, entries)
        })
        .collect();
    let mut vms = vec![VmPages::default(); input.sources.len()];
    let mut all = Vec::with_capacity(done.iter().map(|(_, _, entries)| entries.len()).sum());
    for (vm, counts, entries) in done {
        let sum = &mut vms[usize::from(vm)];
        sum.pages += counts.pages;
        sum.zero += counts.zero;
        sum.uniform_nonzero += counts.uniform_nonzero;
        all.extend(entries);
    }
    (vms, all)
}

/// A page's 128 bits, if it is kept. Whether it is depends on other bits, so the sample's fingerprints are spread evenly.
fn hashed(key: &[u8; 32], page: &Page, sampling: Sampling) -> Option<u128> {
    let digest = blake3::keyed_hash(key, page);
    let (hash, rest) = digest.as_bytes().split_first_chunk::<16>().expect("32 bytes");
    let bits = rest.first_chunk::<8>().expect("16 bytes");
    sampling.keeps(u64::from_le_bytes(*bits)).then(|| u128::from_le_bytes(*hash))
}

/// Contents and their VM sets.
fn contents(entries: &[Entry]) -> Result<(Vec<LocalContent>, Vec<IdSet>), MeasureError> {
    let mut sets: Vec<IdSet> = Vec::new();
    // The standard library's hasher is keyed at random: guests decide which sets there are.
    let mut numbers: HashMap<IdSet, u32> = HashMap::new();
    let mut contents = Vec::new();
    let mut vms: Vec<u16> = Vec::new();
    for equal in entries.chunk_by(|a, b| a.0 == b.0) {
        vms.clear();
        vms.extend(equal.iter().map(|entry| entry.1));
        vms.dedup();
        let set = IdSet::from_ascending(&vms);
        let number = match numbers.get(&set) {
            Some(number) => *number,
            None if sets.len() == SETS_MAX => return Err(MeasureError::TooManySets),
            None => {
                let number = u32::try_from(sets.len()).expect("at most SETS_MAX");
                sets.push(set.clone());
                numbers.insert(set, number);
                number
            }
        };
        let pages = u32::try_from(equal.len()).expect("a host has fewer than 2^32 pages");
        let (hash, vm, pfn) = equal[0];
        contents.push(LocalContent { hash, set: number, pages, pfn, vm });
    }
    Ok((contents, sets))
}

impl Measured {
    /// Each VM's pages, by its number.
    #[must_use]
    pub fn vms(&self) -> &[VmPages] {
        &self.vms
    }

    /// Contents kept, each once.
    #[must_use]
    pub fn content_count(&self) -> u64 {
        self.contents.len() as u64
    }

    /// The short fingerprints of all contents, `bits` each; see [`fingerprint_bits`].
    ///
    /// # Panics
    /// If `bits` is not of 8 to 56.
    #[must_use]
    pub fn fingerprints(&self, bits: u8) -> Fingerprints {
        // Contents ascend by hash; so do the upper bits.
        Fingerprints::of(bits, self.contents.iter().map(|content| short(content.hash, bits)))
    }

    /// The name and the lowest placement of each content that `chosen` says, ascending by name. `chosen` goes by the order of
    /// [`fingerprints`](Self::fingerprints), and what it does not reach is not chosen.
    pub fn named(&self, chosen: impl Iterator<Item = bool>) -> impl Iterator<Item = (u128, VmId, Pfn)> {
        let chosen = self.contents.iter().zip(chosen).filter(|(_, chosen)| *chosen);
        chosen.map(|(content, _)| (content.hash, VmId(content.vm), Pfn(content.pfn)))
    }

    /// What [`join`] needs of this host. `candidates[i]` says whether other hosts told the fingerprint of the `i`th content,
    /// in the order of [`fingerprints`](Self::fingerprints). `sources` are those that were measured; some of their
    /// contents are read again, and encoded, to tell how many bytes they take.
    ///
    /// # Panics
    /// If there are not as many candidates as contents, or other sources than those measured.
    #[must_use]
    pub fn summary(
        &self,
        sources: &[&dyn PageSource],
        encoding: Encoding,
        candidates: impl Iterator<Item = bool>,
    ) -> HostSummary {
        assert_eq!(sources.len(), self.vms.len(), "the sources that were measured");
        let flags: Vec<bool> = candidates.collect();
        assert_eq!(flags.len(), self.contents.len(), "an answer for each content");
        let (mut own, mut shared) = (Vec::new(), Vec::new());
        for (content, candidate) in self.contents.iter().zip(flags) {
            if candidate { &mut shared } else { &mut own }.push(content);
        }
        let set_bytes = sizes::of_sets(sources, encoding, &own, self.sets.len());
        let bytes = sizes::of_each(sources, encoding, &shared);
        let mut summary = HostSummary {
            sampling: self.sampling,
            vms: self.vms.clone(),
            sets: self.sets.iter().map(|set| set.iter().collect()).collect(),
            set_bytes,
            own: vec![join::Own::default(); self.sets.len()],
            candidates: Vec::with_capacity(shared.len()),
        };
        for content in own {
            let vms = self.sets[content.set as usize].len();
            summary.own[content.set as usize].add(content.pages, vms);
        }
        for (LocalContent { hash, set, pages, .. }, bytes) in shared.into_iter().zip(bytes) {
            summary.candidates.push(Candidate { hash: *hash, set: *set, pages: *pages, bytes });
        }
        summary
    }

    /// As [`summary`](Self::summary), for a host that is alone.
    #[must_use]
    pub fn summary_alone(&self, sources: &[&dyn PageSource], encoding: Encoding) -> HostSummary {
        self.summary(sources, encoding, std::iter::repeat_n(false, self.contents.len()))
    }
}

/// The upper bits of a content's name: its fingerprint.
///
/// # Panics
/// If `bits` is more than 64.
#[must_use]
pub fn short(hash: u128, bits: u8) -> u64 {
    u64::try_from(hash >> (128 - u32::from(bits))).expect("at most 64 bits")
}

/// Bytes of contents as they lie in memory.
const PLAIN_BYTES: u64 = PAGE_SIZE as u64;
