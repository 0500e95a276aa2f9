//! Throughput of merging and of the block codec, on synthetic memory.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use pages::block::{
    BlockLimits, BlockParts, ContentRun, Encoding, Scratch, decode_block, encode_block, sample_costs,
};
use pages::{MergeInput, PAGE_SIZE, Page, PageSource, Pfn, VmId, merge, uniform_word};
use std::hint::black_box;
use std::time::Instant;

const VMS: usize = 4;
/// 256 MiB in all.
const PAGES_OF_VM: usize = (256 << 20) / PAGE_SIZE / VMS;

fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// A page that compresses about as a guest's does (three to one): lines of 64 bytes that are zero, common to
/// many pages, made of near pointers, or random.
fn guest_page(seed: u64) -> Page {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let base = random(&mut state) & 0xffff_8000_0000;
    let mut page = [0; PAGE_SIZE];
    for line in page.chunks_exact_mut(64) {
        let kind = random(&mut state) % 100;
        let mut common = 1 + random(&mut state) % 256;
        for word in line.chunks_exact_mut(8) {
            let value = match kind {
                0..45 => 0,
                45..75 => random(&mut common),
                75..85 => base | (random(&mut state) >> 48),
                _ => random(&mut state),
            };
            word.copy_from_slice(&value.to_le_bytes());
        }
    }
    page
}

/// 40 % zero pages, 5 % repeated within the VM, 25 % shared with the other VMs, the rest unique.
fn images() -> Vec<Vec<Page>> {
    (0..VMS as u64)
        .map(|vm| {
            let mut state = vm + 1;
            (0..PAGES_OF_VM as u64)
                .map(|n| match random(&mut state) % 100 {
                    0..40 => [0; PAGE_SIZE],
                    40..45 => guest_page(((vm + 1) << 32) | (n % 500)),
                    45..70 => guest_page(n),
                    _ => guest_page(((vm + 1) << 40) | n),
                })
                .collect()
        })
        .collect()
}

fn merging(c: &mut Criterion) {
    let images = images();
    let sources: Vec<&dyn PageSource> = images.iter().map(|image| image as &dyn PageSource).collect();
    let mut group = c.benchmark_group("merge 256 MiB");
    group.throughput(Throughput::Bytes((VMS * PAGES_OF_VM * PAGE_SIZE) as u64)).sample_size(20);
    for threads in [1, 2] {
        group.bench_function(format!("{threads} threads"), |b| {
            b.iter(|| merge(&MergeInput { sources: &sources, domains: &[0; VMS], threads }));
        });
    }
    // The limit: every byte read and hashed once, by one thread, and nothing else done.
    group.bench_function("xxh3-128 of each page alone, 1 thread", |b| {
        b.iter(|| images.iter().flatten().fold(0, |sum, page| sum ^ xxhash_rust::xxh3::xxh3_128(page)));
    });
    group.finish();

    let zero = vec![[0u8; PAGE_SIZE]; PAGES_OF_VM];
    let mut group = c.benchmark_group("uniform check of zero pages");
    for (name, pages) in [("64 KiB, cached", &zero[..16]), ("64 MiB", &zero[..])] {
        group.throughput(Throughput::Bytes((pages.len() * PAGE_SIZE) as u64));
        group.bench_function(name, |b| {
            b.iter(|| black_box(pages).iter().filter(|page| uniform_word(page) == Some(0)).count());
        });
    }
    group.finish();
}

fn blocks(c: &mut Criterion) {
    const CONTENTS: u32 = 256;
    let pages: Vec<Page> = (0..u64::from(CONTENTS)).map(guest_page).collect();
    let contents: Vec<&Page> = pages.iter().collect();
    let runs: Vec<ContentRun> =
        (0..CONTENTS).flat_map(|i| [0, 1].map(|vm| ContentRun::single(VmId(vm), Pfn(i * 3), i))).collect();
    let parts = BlockParts { runs: &runs, uniform: &[], contents: &contents };
    let limits = BlockLimits { body_bytes_max: 2 << 20, ..BlockLimits::default() };
    let mut scratch = Scratch::new();
    let mut group = c.benchmark_group("block of 1 MiB");
    group.throughput(Throughput::Bytes(u64::from(CONTENTS) * PAGE_SIZE as u64)).sample_size(50);
    for encoding in [Encoding::Raw, Encoding::Lz4, Encoding::Zstd { level: 1 }, Encoding::Zstd { level: 3 }] {
        let body = encode_block(&parts, encoding, &mut scratch);
        let name = format!("{encoding} to {:.3}", body.len() as f64 / (contents.len() * PAGE_SIZE) as f64);
        group.bench_function(format!("encode {name}"), |b| {
            b.iter(|| encode_block(black_box(&parts), encoding, &mut scratch));
        });
        group.bench_function(format!("decode {name}"), |b| {
            b.iter(|| {
                drop(black_box(decode_block(black_box(&body), &limits, &mut scratch).expect("good")));
            });
        });
        group.bench_function(format!("decode and recycle {name}"), |b| {
            let mut scratch = Scratch::new();
            b.iter(|| {
                let block = decode_block(black_box(&body), &limits, &mut scratch).expect("good");
                black_box(&block);
                block.recycle(&mut scratch);
            });
        });
    }
    group.finish();

    let start = Instant::now();
    c.bench_function("sample_costs of 1 MiB", |b| {
        b.iter_batched(|| (), |()| sample_costs(&contents, &|| start.elapsed()), BatchSize::PerIteration);
    });
}

criterion_group!(benches, merging, blocks);
criterion_main!(benches);
