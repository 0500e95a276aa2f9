//! The merge against a map from bytes to places; crafted collisions; memory is in tests/memory.rs.

use super::*;
use crate::ids::IdSet;
use crate::page::{PAGE_SIZE, Pfn, UniformRun, VmId};
use crate::uniform::uniform_word;
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

type Image = Vec<Page>;
/// (VM, page number), ascending.
type Places = Vec<(u16, u32)>;

/// Small numbers become pages that are zero, uniform, or differ in a single byte somewhere.
fn page_of(kind: u8) -> Page {
    let mut page = [0; PAGE_SIZE];
    match kind {
        0..=2 => {}
        3 | 4 => page.fill(kind),
        _ => page[usize::from(kind) * 131 % PAGE_SIZE] = 1,
    }
    page
}

fn image_of(kinds: &[u8]) -> Image {
    kinds.iter().map(|kind| page_of(*kind)).collect()
}

fn index_of(images: &[Image], domains: &[u32], threads: usize, hashes: &Hashes) -> MergeIndex {
    let sources: Vec<&dyn PageSource> = images.iter().map(|image| image as &dyn PageSource).collect();
    merge_with(&MergeInput { sources: &sources, domains, threads }, hashes)
}

/// Keeps two bits of the hash, so that most buckets hold different pages.
const WEAK: Hashes = Hashes { candidate: |page| xxhash_rust::xxh3::xxh3_128(page) & 3, ..HASHES };
/// All pages collide; only the key tells them apart.
const CRAFTED: Hashes = Hashes { candidate: |_| 0, ..HASHES };
/// All pages of all domains collide, and again under the key.
const BROKEN: Hashes = Hashes { candidate: |_| 7, keyed: |_, _| [7; 16], spread: |_| 0 };
/// Only domains collide: equal pages of different ones stand in one bucket, under the key too.
const MIXED: Hashes = Hashes { spread: |_| 0, ..HASHES };

/// Everything that an index says, in comparable form.
#[derive(Debug, PartialEq)]
struct Said {
    contents: Vec<(Places, Vec<u16>)>,
    runs: Vec<Vec<UniformRun>>,
    signatures: Vec<IdSet>,
    weights: Vec<u64>,
}

fn said(index: &MergeIndex) -> Said {
    Said {
        contents: index
            .contents()
            .map(|id| {
                let placements: Places = index.placements(id).map(|(v, p)| (v.0, p.0)).collect();
                let (vm, pfn) = index.representative(id);
                assert_eq!((vm.0, pfn.0), placements[0]);
                assert_eq!(index.placement_count(id) as usize, placements.len());
                for (vm, pfn) in &placements {
                    assert_eq!(index.identity(VmId(*vm), Pfn(*pfn)), Some(PageIdentity::Content(id)));
                }
                (placements, index.signature(index.signature_of(id)).iter().collect())
            })
            .collect(),
        runs: (0..).take(index.vm_count()).map(|vm| index.uniform_runs(VmId(vm)).to_vec()).collect(),
        signatures: index.signatures().to_vec(),
        weights: index.signature_weights(),
    }
}

fn oracle(images: &[Image], domains: &[u32]) -> Said {
    let mut places: BTreeMap<(u32, &Page), Places> = BTreeMap::new();
    let mut runs = vec![Vec::<UniformRun>::new(); images.len()];
    for (vm, image) in (0u16..).zip(images) {
        for (pfn, page) in (0u32..).zip(image) {
            let Some(word) = uniform_word(page) else {
                places.entry((domains[usize::from(vm)], page)).or_default().push((vm, pfn));
                continue;
            };
            let of_vm = &mut runs[usize::from(vm)];
            match of_vm.last_mut() {
                Some(run) if run.word == word && run.first.0 + run.count == pfn => run.count += 1,
                _ => of_vm.push(UniformRun { first: Pfn(pfn), count: 1, word }),
            }
        }
    }
    let mut contents: Vec<(Places, Vec<u16>)> = places
        .into_values()
        .map(|placements| {
            let vms: BTreeSet<u16> = placements.iter().map(|(vm, _)| *vm).collect();
            (placements, vms.into_iter().collect())
        })
        .collect();
    contents.sort();
    let mut signatures: Vec<IdSet> = Vec::new();
    let mut weights = Vec::new();
    for (_, vms) in &contents {
        let set: IdSet = vms.iter().copied().collect();
        match signatures.iter().position(|known| *known == set) {
            Some(at) => weights[at] += 1,
            None => {
                signatures.push(set);
                weights.push(1);
            }
        }
    }
    Said { contents, runs, signatures, weights }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn merges_exactly_whatever_the_threads_and_the_hash(
        kinds in vec(vec(0u8..24, 0..40), 0..9),
        tenants in vec(0u32..3, 9),
        strict: bool,
    ) {
        let images: Vec<Image> = kinds.iter().map(|kinds| image_of(kinds)).collect();
        let domains: Vec<u32> =
            (0..images.len()).map(|vm| if strict { tenants[vm] } else { 0 }).collect();
        let expected = oracle(&images, &domains);
        for (threads, hashes) in [(1, &HASHES), (2, &HASHES), (0, &WEAK), (3, &WEAK), (2, &CRAFTED), (2, &BROKEN), (2, &MIXED)] {
            let index = index_of(&images, &domains, threads, hashes);
            prop_assert_eq!(&said(&index), &expected);
            for (vm, image) in (0u16..).zip(&images) {
                for (pfn, page) in (0u32..).zip(image) {
                    if let Some(word) = uniform_word(page) {
                        let identity = index.identity(VmId(vm), Pfn(pfn));
                        prop_assert_eq!(identity, Some(PageIdentity::Uniform(word)));
                    }
                }
                let end = u32::try_from(image.len()).expect("small");
                prop_assert_eq!(index.page_count(VmId(vm)), end);
                prop_assert_eq!(index.identity(VmId(vm), Pfn(end)), None);
            }
        }
    }

    #[test]
    fn classes_are_counted_as_defined(
        kinds in vec(vec(0u8..24, 0..30), 1..6),
        hosts in vec(vec(0u16..3, 0..3), 6),
    ) {
        let images: Vec<Image> = kinds.iter().map(|kinds| image_of(kinds)).collect();
        let hosts: Vec<IdSet> = hosts.into_iter().map(IdSet::from_iter).collect();
        let index = index_of(&images, &vec![0; images.len()], 2, &HASHES);
        let counts = index.class_counts(&hosts);
        let mut by_page: BTreeMap<&Page, Vec<usize>> = BTreeMap::new();
        for (vm, image) in images.iter().enumerate() {
            image.iter().for_each(|page| by_page.entry(page).or_default().push(vm));
        }
        let mut expected = ClassCounts::default();
        let mut expected_of_vm = vec![ClassCounts::default(); images.len()];
        for (page, vms) in &by_page {
            let to: BTreeSet<u16> = vms.iter().flat_map(|vm| hosts[*vm].iter()).collect();
            let different: BTreeSet<usize> = vms.iter().copied().collect();
            let class: fn(&mut ClassCounts) -> &mut ClassCount = match uniform_word(page) {
                Some(0) => |counts| &mut counts.zero,
                Some(_) => |counts| &mut counts.uniform_nonzero,
                None if vms.len() == 1 => |counts| &mut counts.unique,
                None if different.len() == 1 => |counts| &mut counts.repeated_in_one_vm,
                None if to.len() <= 1 => |counts| &mut counts.shared_by_vms_of_one_host,
                None => |counts| &mut counts.shared_across_hosts,
            };
            class(&mut expected).contents += 1;
            class(&mut expected).pages += vms.len() as u64;
            different.iter().for_each(|vm| class(&mut expected_of_vm[*vm]).contents += 1);
            vms.iter().for_each(|vm| class(&mut expected_of_vm[*vm]).pages += 1);
        }
        prop_assert_eq!(counts, expected);
        prop_assert_eq!(index.class_counts_by_vm(&hosts), expected_of_vm);
        prop_assert_eq!(counts.pages(), images.iter().map(Vec::len).sum::<usize>() as u64);
    }
}

/// Pages that overlap in one buffer: page n begins at byte n * 8, so that large images cost little.
struct Sliding {
    bytes: Vec<u8>,
    order: Vec<u32>,
    reads: AtomicUsize,
}

impl Sliding {
    fn new(order: Vec<u32>) -> Self {
        let last = *order.iter().max().expect("a page") as usize;
        let mut bytes = vec![0; last * 8 + PAGE_SIZE];
        let mut state = 1u64;
        for chunk in bytes.chunks_exact_mut(8) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            chunk.copy_from_slice(&state.to_le_bytes());
        }
        Self { bytes, order, reads: AtomicUsize::new(0) }
    }
}

impl PageSource for Sliding {
    fn page_count(&self) -> u32 {
        u32::try_from(self.order.len()).expect("small")
    }

    fn page(&self, pfn: Pfn) -> &Page {
        self.reads.fetch_add(1, Relaxed);
        let at = self.order[pfn.0 as usize] as usize * 8;
        self.bytes[at..].first_chunk().expect("a page's bytes")
    }
}

#[test]
fn crafted_collisions_cost_a_few_reads_a_page() {
    // 20,000 pages, half of them repeated once, all under one hash.
    let count = 20_000;
    let order: Vec<u32> = (0..count / 2).chain((0..count / 4).flat_map(|n| [n + count, n])).collect();
    let source = Sliding::new(order.clone());
    let index = merge_with(&MergeInput { sources: &[&source], domains: &[0], threads: 2 }, &CRAFTED);

    let mut expected: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for (pfn, n) in (0u32..).zip(&order) {
        expected.entry(*n).or_default().push(pfn);
    }
    let mut expected: Vec<Vec<u32>> = expected.into_values().collect();
    expected.sort();
    let found: Vec<Vec<u32>> =
        index.contents().map(|id| index.placements(id).map(|(_, pfn)| pfn.0).collect()).collect();
    assert_eq!(found, expected);

    // One read to hash, one to compare in the bucket, one for BLAKE3, one or two to compare again.
    let reads = source.reads.load(Relaxed);
    assert!(reads <= 5 * order.len(), "{reads} reads of {} pages", order.len());
}

#[test]
fn equal_pages_of_many_domains_cost_a_few_reads_a_page_too() {
    let images: Vec<Sliding> = (0..300).map(|_| Sliding::new((0..20).collect())).collect();
    let sources: Vec<&dyn PageSource> = images.iter().map(|image| image as &dyn PageSource).collect();
    let domains: Vec<u32> = (0..300).collect();
    for hashes in [&HASHES, &CRAFTED] {
        let index = merge_with(&MergeInput { sources: &sources, domains: &domains, threads: 2 }, hashes);
        assert_eq!(index.content_count(), 300 * 20);
    }
    let reads: usize = images.iter().map(|image| image.reads.load(Relaxed)).sum();
    assert!(reads <= 2 * 5 * 300 * 20, "{reads} reads");
}

#[test]
fn buckets_large_enough_for_several_threads_are_exact() {
    // Three contents, interleaved, in two VMs, under one hash.
    let order: Vec<u32> = (0..3_000).map(|i| i % 3 * 1000).collect();
    let (a, b) = (Sliding::new(order.clone()), Sliding::new(order));
    for hashes in [&HASHES, &BROKEN, &CRAFTED] {
        let index = merge_with(&MergeInput { sources: &[&a, &b], domains: &[0, 0], threads: 2 }, hashes);
        assert_eq!(index.content_count(), 3);
        assert_eq!(index.signatures(), [IdSet::from_iter([0, 1])]);
        assert!(index.contents().all(|id| index.placement_count(id) == 2_000));
        assert!(index.contents().all(|id| index.placements(id).all(|(_, pfn)| pfn.0 % 3 == id.0)));
    }
}

#[test]
fn runs_are_joined_across_tasks_but_not_across_vms() {
    let image: Image = vec![[0; PAGE_SIZE]; 2500];
    let tail: Image = {
        let mut tail = vec![[0; PAGE_SIZE]; 2500];
        tail[..2490].iter_mut().for_each(|page| page[9] = 9);
        tail
    };
    let images = [image, Image::new(), tail, Image::new(), vec![[0; PAGE_SIZE]; 3]];
    let index = index_of(&images, &[0; 5], 2, &HASHES);
    let run = |first, count| vec![UniformRun { first: Pfn(first), count, word: 0 }];
    let runs: Vec<Vec<UniformRun>> = (0..5).map(|vm| index.uniform_runs(VmId(vm)).to_vec()).collect();
    assert_eq!(runs, [run(0, 2500), vec![], run(2490, 10), vec![], run(0, 3)]);
    assert_eq!(index.uniform_run_count(), 3);
    assert_eq!(index.content_count(), 1);
}

#[test]
fn a_run_is_not_joined_with_the_previous_vms() {
    // VM 0 ends with zeroes at 1020..1024; VM 1's first task has none, its second begins with one at 1024.
    let mut first = vec![page_of(9); 1024];
    first[1020..].fill([0; PAGE_SIZE]);
    let mut second = vec![page_of(9); 1025];
    second[1024] = [0; PAGE_SIZE];
    let index = index_of(&[first, second], &[0, 0], 1, &HASHES);
    let run = |first, count| UniformRun { first: Pfn(first), count, word: 0 };
    assert_eq!(index.uniform_runs(VmId(0)), [run(1020, 4)]);
    assert_eq!(index.uniform_runs(VmId(1)), [run(1024, 1)]);
}

#[test]
fn many_signatures_are_told_apart() {
    // Each pair of 40 VMs shares a page of its own: 780 signatures, more than the table begins with.
    let pairs: Vec<(u32, u32)> = (0..40).flat_map(|a| (a + 1..40).map(move |b| (a, b))).collect();
    let vms: Vec<Sliding> = (0..40)
        .map(|vm| {
            let own = (0u32..).zip(&pairs).filter(|(_, (a, b))| *a == vm || *b == vm);
            Sliding::new(own.map(|(n, _)| n).collect())
        })
        .collect();
    let sources: Vec<&dyn PageSource> = vms.iter().map(|vm| vm as &dyn PageSource).collect();
    let index = merge(&MergeInput { sources: &sources, domains: &[0; 40], threads: 2 });
    let found: BTreeSet<Vec<u16>> = index.signatures().iter().map(|set| set.iter().collect()).collect();
    assert_eq!(found.len(), pairs.len());
    assert_eq!(index.signatures().len(), pairs.len());
    assert!(index.signature_weights().iter().all(|weight| *weight == 1));
}

#[test]
#[should_panic(expected = "one domain for each source")]
fn domains_must_match_sources() {
    let image = Image::new();
    let _ = merge(&MergeInput { sources: &[&image], domains: &[], threads: 1 });
}
