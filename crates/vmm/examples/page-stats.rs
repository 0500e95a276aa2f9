//! What the pages of some image files have in common, and how small their contents become.
//!
//! `cargo run --release -p vmm --example page-stats -- IMAGE…`: each image is a VM. "unique" is a page whose
//! bytes stand once in its VM; "elsewhere" is the share of those that stand in another VM too.

use pages::block::{BlockParts, ContentRun, Encoding, Scratch, UniformPlacement, encode_block};
use pages::{ContentId, IdSet, MergeIndex, MergeInput, PAGE_SIZE, PageSource, VmId, merge};
use std::process::ExitCode;
use std::time::Instant;
use vmm::MappedImage;

/// Contents in a block of 1 MiB.
const BLOCK_CONTENTS: usize = (1 << 20) / PAGE_SIZE;

fn main() -> ExitCode {
    let mut images = Vec::new();
    for path in std::env::args_os().skip(1) {
        match MappedImage::open(&path, None) {
            Ok(image) => images.push(image),
            Err(error) => {
                let cause =
                    std::error::Error::source(&error).map_or(String::new(), |cause| format!(": {cause}"));
                eprintln!("{error}{cause}");
                return ExitCode::FAILURE;
            }
        }
    }
    let sources: Vec<&dyn PageSource> = images.iter().map(|image| image as &dyn PageSource).collect();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let start = Instant::now();
    let index = merge(&MergeInput { sources: &sources, domains: &vec![0; sources.len()], threads });
    let merged = start.elapsed();
    let per_vm = count_each_vm(&index);
    println!(
        "{:<24} {:>8} {:>7} {:>9} {:>10} {:>8} {:>10}",
        "VM", "pages", "zero %", "uniform %", "repeated %", "unique %", "elsewhere %"
    );
    for (image, vm) in images.iter().zip(&per_vm) {
        let name = image.path().file_name().unwrap_or_default().to_string_lossy();
        vm.print(&name);
    }
    let all = per_vm.iter().fold(VmCounts::default(), |sum, vm| sum.plus(vm));
    all.print("all");
    let page_count = all.pages;
    println!(
        "merge of {page_count} pages: {merged:.2?}, {threads} threads, index {} bytes a page",
        index.memory_bytes() as u64 / page_count.max(1)
    );
    let one_host_each: Vec<IdSet> =
        (0..per_vm.len()).map(|vm| u16::try_from(vm).into_iter().collect()).collect();
    println!("classes, each VM going to a host of its own:");
    for (class, count) in index.class_counts(&one_host_each).by_name() {
        println!("  {class:<26} {:>9} pages {:>9} contents", count.pages, count.contents);
    }
    print_sizes(&index, &sources, &all);
    match images.iter().try_for_each(MappedImage::check_unchanged) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Numbers of pages, but `contents`.
#[derive(Clone, Default)]
struct VmCounts {
    pages: u64,
    zero: u64,
    uniform: u64,
    repeated: u64,
    unique: u64,
    elsewhere: u64,
    /// Different contents, without the uniform ones.
    contents: u64,
}

impl VmCounts {
    fn plus(&self, other: &Self) -> Self {
        Self {
            pages: self.pages + other.pages,
            zero: self.zero + other.zero,
            uniform: self.uniform + other.uniform,
            repeated: self.repeated + other.repeated,
            unique: self.unique + other.unique,
            elsewhere: self.elsewhere + other.elsewhere,
            contents: self.contents + other.contents,
        }
    }

    fn print(&self, name: &str) {
        let of_pages = |count| percent(count, self.pages);
        println!(
            "{name:<24} {:>8} {:>7.1} {:>9.1} {:>10.1} {:>8.1} {:>10.1}",
            self.pages,
            of_pages(self.zero),
            of_pages(self.uniform),
            of_pages(self.repeated),
            of_pages(self.unique),
            percent(self.elsewhere, self.unique)
        );
    }
}

#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
fn percent(part: u64, whole: u64) -> f64 {
    100.0 * part as f64 / whole.max(1) as f64
}

#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn count_each_vm(index: &MergeIndex) -> Vec<VmCounts> {
    let vm_ids = || (0..index.vm_count()).filter_map(|vm| u16::try_from(vm).ok()).map(VmId);
    let mut counts: Vec<VmCounts> = vm_ids()
        .map(|vm| VmCounts { pages: u64::from(index.page_count(vm)), ..VmCounts::default() })
        .collect();
    for vm in vm_ids() {
        for run in index.uniform_runs(vm) {
            let count = &mut counts[usize::from(vm.0)];
            *(if run.word == 0 { &mut count.zero } else { &mut count.uniform }) += u64::from(run.count);
        }
    }
    for content in index.contents() {
        let shared = index.signature(index.signature_of(content)).len() > 1;
        let mut placements = index.placements(content).map(|(vm, _)| vm).peekable();
        while let Some(vm) = placements.next() {
            let mut here = 1;
            while placements.next_if_eq(&vm).is_some() {
                here += 1;
            }
            let count = &mut counts[usize::from(vm.0)];
            count.contents += 1;
            if here == 1 {
                count.unique += 1;
                count.elsewhere += u64::from(shared);
            } else {
                count.repeated += here;
            }
        }
    }
    counts
}

/// What would have to be sent, beside all pages that are not zero (what QEMU's own migration sends).
fn print_sizes(index: &MergeIndex, sources: &[&dyn PageSource], all: &VmCounts) {
    let plain = (all.pages - all.zero) * PAGE_SIZE as u64;
    let report = |what: &str, bytes: u64, note: &str| {
        println!("{what:<44} {:>9.1} MiB {:>6.1} % {note}", mib(bytes), percent(bytes, plain));
    };
    report("pages that are not zero", plain, "");
    report("merged in each VM", all.contents * PAGE_SIZE as u64, "");
    report("merged across VMs", u64::from(index.content_count()) * PAGE_SIZE as u64, "");
    let mut order: Vec<ContentId> = index.contents().collect();
    // Contents of one host set travel together.
    order.sort_by_key(|content| (index.signature_of(*content), *content));
    for (name, encoding) in [
        ("lz4", Encoding::Lz4),
        ("zstd-1", Encoding::Zstd { level: 1 }),
        ("zstd-3", Encoding::Zstd { level: 3 }),
    ] {
        let start = Instant::now();
        let bytes = encoded(index, sources, &order, encoding);
        let speed = mib(order.len() as u64 * PAGE_SIZE as u64) / start.elapsed().as_secs_f64();
        report(
            &format!("merged + {name} in 1 MiB blocks, placements too"),
            bytes,
            &format!("{speed:.0} MiB/s, one thread"),
        );
    }
}

/// Bytes of all block bodies.
fn encoded(index: &MergeIndex, sources: &[&dyn PageSource], order: &[ContentId], encoding: Encoding) -> u64 {
    let mut scratch = Scratch::new();
    let mut bytes = 0;
    let mut send = |runs: &[ContentRun], uniform: &[UniformPlacement], contents: &[&pages::Page]| {
        bytes += encode_block(&BlockParts { runs, uniform, contents }, encoding, &mut scratch).len() as u64;
    };
    for block in order.chunks(BLOCK_CONTENTS) {
        let mut contents = Vec::with_capacity(block.len());
        let mut runs: Vec<ContentRun> = Vec::new();
        for (at, content) in (0..).zip(block) {
            let (vm, pfn) = index.representative(*content);
            contents.push(sources[usize::from(vm.0)].page(pfn));
            runs.extend(index.placements(*content).map(|(vm, pfn)| ContentRun::single(vm, pfn, at)));
        }
        runs.sort_by_key(|run| (run.vm, run.pfn));
        runs.dedup_by(|next, run| {
            let follows = next.vm == run.vm
                && next.pfn.0 == run.pfn.0 + run.count
                && next.content == run.content + run.count;
            run.count += u32::from(follows);
            follows
        });
        send(&runs, &[], &contents);
    }
    for vm in (0..index.vm_count()).filter_map(|vm| u16::try_from(vm).ok()).map(VmId) {
        let uniform: Vec<_> =
            index.uniform_runs(vm).iter().map(|run| UniformPlacement { vm, run: *run }).collect();
        send(&[], &uniform, &[]);
    }
    bytes
}
