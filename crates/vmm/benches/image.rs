//! Reading image files through their mappings: dense, sparse, and the headers alone. The limit beside them
//! is reading the same bytes from a vector.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pages::{PAGE_SIZE, Page, PageSource, Pfn};
use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use vmm::MappedImage;

const LEN: usize = 64 << 20;

/// 64 MiB with data in one of each `every` stretches of 64 KiB; the rest are holes.
fn image_file(dir: &tempfile::TempDir, every: usize) -> std::path::PathBuf {
    let path = dir.path().join(format!("image-{every}"));
    let file = File::create(&path).expect("a temporary file");
    file.set_len(LEN as u64).expect("a temporary file grows");
    let data: Vec<u8> = (0..64 << 10).map(|i: usize| u8::try_from(i % 251).expect("below 251")).collect();
    for offset in (0..LEN).step_by(data.len() * every) {
        file.write_all_at(&data, offset as u64).expect("room for 64 MiB");
    }
    file.sync_all().expect("a temporary file is written");
    path
}

/// Touches each byte of each page once.
fn read_all(source: &dyn PageSource) -> u64 {
    let words = |page: &Page| page.as_chunks::<8>().0.iter().fold(0, |x, word| x ^ u64::from_le_bytes(*word));
    (0..source.page_count()).fold(0, |x, pfn| x ^ words(source.page(Pfn(pfn))))
}

fn image(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut group = criterion.benchmark_group("read");
    group.throughput(Throughput::Bytes(LEN as u64)).sample_size(20);
    let vector: Vec<Page> =
        vec![std::array::from_fn(|i| u8::try_from(i % 251).expect("below 251")); LEN / PAGE_SIZE];
    group.bench_function("vector", |bencher| bencher.iter(|| black_box(read_all(&vector))));
    for every in [1, 4] {
        let path = image_file(&dir, every);
        // A new mapping each time: its page faults belong to the cost of reading an image.
        group.bench_function(BenchmarkId::new("new mapping, data in one of", every), |bencher| {
            bencher.iter(|| read_all(&MappedImage::open(&path, None).expect("an image")));
        });
        let open = MappedImage::open(&path, None).expect("an image");
        group.bench_function(BenchmarkId::new("again, data in one of", every), |bencher| {
            bencher.iter(|| black_box(read_all(&open)));
        });
    }
    group.finish();
    let path = image_file(&dir, 1);
    criterion
        .bench_function("open", |bencher| bencher.iter(|| MappedImage::open(&path, None).expect("an image")));
}

criterion_group!(benches, image);
criterion_main!(benches);
