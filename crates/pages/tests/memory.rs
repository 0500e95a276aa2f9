//! Peak memory of the merge, measured at the allocator: at most 40 bytes a page.
//!
//! One test in a binary of its own, so that nothing else allocates meanwhile.

use pages::{MergeInput, PAGE_SIZE, Page, PageSource, Pfn, merge};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn grown(by: usize) {
    PEAK.fetch_max(HELD.fetch_add(by, Relaxed) + by, Relaxed);
}

// SAFETY: each call is passed on to the system's allocator unchanged; counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: the caller keeps `alloc`'s contract, which is the same here.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: the caller keeps `alloc_zeroed`'s contract, which is the same here.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller keeps `dealloc`'s contract, which is the same here.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // Large blocks are moved by remapping or trimmed in place: old and new never exist together.
        if new_size > layout.size() {
            grown(new_size - layout.size());
        } else {
            HELD.fetch_sub(layout.size() - new_size, Relaxed);
        }
        // SAFETY: the caller keeps `realloc`'s contract, which is the same here.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// An image whose pages overlap in one buffer: page k shows the bytes from `8 * order[k]` on.
struct Sliding<'a> {
    bytes: &'a [u8],
    order: Vec<u32>,
}

impl PageSource for Sliding<'_> {
    fn page_count(&self) -> u32 {
        u32::try_from(self.order.len()).expect("fewer than 2^32 pages")
    }

    fn page(&self, pfn: Pfn) -> &Page {
        self.bytes[self.order[pfn.0 as usize] as usize * 8..].first_chunk().expect("a page's bytes")
    }
}

const PAGES: u32 = 1 << 18;
const UNIFORM_WORDS: u32 = 16;
/// Words of eight bytes in a page.
const WORDS: u32 = 512;
const _: () = assert!(WORDS as usize * 8 == PAGE_SIZE);

/// `PAGES` different pages, then `UNIFORM_WORDS` uniform ones.
fn bytes() -> Vec<u8> {
    let mut state = 1u64;
    let mut bytes = Vec::new();
    for _ in 0..PAGES as usize + PAGE_SIZE / 8 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    for word in 0..u64::from(UNIFORM_WORDS) {
        for _ in 0..PAGE_SIZE / 8 {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
    }
    bytes
}

fn different(n: u32) -> u32 {
    n % PAGES
}

fn uniform(n: u32) -> u32 {
    PAGES + WORDS * (1 + n % UNIFORM_WORDS)
}

/// Peak and rest, in bytes a page.
fn measure(name: &str, vms: usize, page: impl Fn(u32) -> u32) -> (f64, f64) {
    let bytes = bytes();
    let per_vm = PAGES.div_ceil(u32::try_from(vms).expect("few VMs"));
    let images: Vec<Sliding> = (0..PAGES)
        .collect::<Vec<u32>>()
        .chunks(per_vm as usize)
        .map(|chunk| Sliding { bytes: &bytes, order: chunk.iter().map(|n| page(*n)).collect() })
        .collect();
    let sources: Vec<&dyn PageSource> = images.iter().map(|image| image as &dyn PageSource).collect();
    let domains = vec![0; sources.len()];

    let before = HELD.load(Relaxed);
    PEAK.store(before, Relaxed);
    let index = merge(&MergeInput { sources: &sources, domains: &domains, threads: 2 });
    let peak = (PEAK.load(Relaxed) - before) as f64;
    let rest = (HELD.load(Relaxed) - before) as f64;

    let per_page = |bytes: f64| bytes / f64::from(PAGES);
    println!(
        "{name}: peak {:.2} (own count {:.2}), rest {:.2} (own count {:.2}) bytes a page, {} signatures",
        per_page(peak),
        per_page(index.peak_bytes() as f64),
        per_page(rest),
        per_page(index.memory_bytes() as f64),
        index.signatures().len(),
    );
    // The index's own figures are what the report shows: they must not flatter.
    assert!((index.memory_bytes() as f64 - rest).abs() < rest * 0.02 + 65_536.0, "{name}: own rest");
    assert!((index.peak_bytes() as f64 - peak).abs() < peak * 0.05 + 65_536.0, "{name}: own peak");
    (per_page(peak), per_page(rest))
}

#[test]
fn at_most_forty_bytes_a_page_at_the_peak() {
    let pairs: Vec<(u32, u32)> = (0..724).flat_map(|a| (a + 1..724).map(move |b| (a, b))).collect();
    // VM v holds, at place k, a page for the pair of v and another VM: nearly all signatures differ.
    let number = |a: u32, b: u32| {
        let (a, b) = (a.min(b), a.max(b));
        (a * (2 * 724 - a - 1)) / 2 + b - a - 1
    };
    assert!(pairs.iter().zip(0..).all(|((a, b), n)| number(*a, *b) == n));
    let per_vm = PAGES.div_ceil(724);
    let peaks = [
        measure("all different", 4, different),
        measure("all equal", 4, |_| 5),
        measure("zero", 4, |_| uniform(0)),
        measure("uniform, each another word", 4, uniform),
        measure("every other uniform", 4, |n| if n % 2 == 0 { uniform(n / 2) } else { different(n) }),
        measure("real guests' shares", 16, |n| match n % 100 {
            0..60 => uniform(0),
            60..75 => different(n % 16_384),
            _ => different(n),
        }),
        measure("clones", 1024, |n| different(n % (PAGES / 1024))),
        measure("a signature for each pair of VMs", 724, |n| {
            let (vm, k) = (n / per_vm, n % per_vm);
            // The pairs (vm, vm + 1 + k) modulo the VMs: each pair at both of its VMs for half of the ks.
            let step = k / 2 + 1;
            let other = if k % 2 == 0 { (vm + step) % 724 } else { (vm + 724 - step) % 724 };
            different(number(vm, other))
        }),
    ];
    // A few hundred KiB stand for the threads' own needs, whatever the number of pages.
    let slack = 262_144.0 / f64::from(PAGES);
    for (peak, _) in peaks {
        assert!(peak <= 40.0 + slack, "{peak} bytes a page");
    }
}
