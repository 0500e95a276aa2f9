//! Encoding and decoding speed of both schemes: MB/s of the block, by symbol size, K and number of symbols.
//!
//! `cargo bench -p fec` takes long; a filter such as `decode/cauchy/1424` keeps it short.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use fec::{BlockShape, Collector, Decode, Encoder, Scheme};
use std::hint::black_box;
use std::time::Duration;

const SIZES: [u16; 2] = [1424, 8920];
const SYMBOLS: [u32; 4] = [32, 64, 96, 128];
const DEFICITS: [u32; 7] = [1, 2, 4, 8, 13, 26, 48];
const SCHEMES: [(Scheme, &str); 2] = [(Scheme::Cauchy, "cauchy"), (Scheme::RaptorQ, "raptorq")];

fn shapes() -> impl Iterator<Item = BlockShape> {
    SIZES.into_iter().flat_map(|size| {
        SYMBOLS.map(|symbols| BlockShape::new(symbols * u32::from(size), size).expect("a valid shape"))
    })
}

fn block(shape: &BlockShape) -> Vec<u8> {
    (0..shape.len).map(|at| at.wrapping_mul(2_654_435_761).to_be_bytes()[1]).collect()
}

fn each_case(
    c: &mut Criterion,
    what: &str,
    mut case: impl FnMut(&mut criterion::Bencher<'_>, BlockShape, Scheme, u32),
) {
    for shape in shapes() {
        for (scheme, name) in SCHEMES {
            let mut group =
                c.benchmark_group(format!("{what}/{name}/{}/{}", shape.symbol_size, shape.symbols()));
            group.throughput(Throughput::BytesDecimal(shape.len.into()));
            for deficit in DEFICITS.into_iter().filter(|&deficit| deficit <= shape.symbols()) {
                group.bench_function(BenchmarkId::from_parameter(deficit), |bencher| {
                    case(bencher, shape, scheme, deficit);
                });
            }
        }
    }
}

/// A new encoder (the block is handed over, not copied) and `deficit` repair symbols.
fn encode(c: &mut Criterion) {
    each_case(c, "encode", |bencher, shape, scheme, deficit| {
        let mut held = block(&shape);
        let mut out = Vec::new();
        bencher.iter_batched_ref(
            || {
                Encoder::from_vec(shape, std::mem::take(&mut held))
                    .or_else(|_| Encoder::new(shape, &block(&shape)))
            },
            |encoder| {
                let encoder = encoder.as_mut().expect("the block has its length");
                let first = shape.symbols();
                encoder.repair_range(scheme, first..first + deficit, &mut out).expect("ESIs exist");
                black_box(&out);
            },
            criterion::BatchSize::PerIteration,
        );
    });
}

/// From the last symbol's arrival to the block; sources and repair symbols are there.
fn decode(c: &mut Criterion) {
    each_case(c, "decode", |bencher, shape, scheme, deficit| {
        let mut encoder = Encoder::new(shape, &block(&shape)).expect("the block has its length");
        let mut collector = Collector::new(shape);
        let first = shape.symbols();
        let spread = first / deficit;
        let lost = |esi: u32| esi.is_multiple_of(spread) && esi / spread < deficit;
        for esi in (0..first).filter(|&esi| !lost(esi)) {
            collector.slot(esi).expect("new").copy_from_slice(encoder.source(esi).expect("a source symbol"));
            collector.mark(esi);
        }
        let mut repairs = Vec::new();
        encoder.repair_range(scheme, first..first + deficit + 1, &mut repairs).expect("ESIs exist");
        bencher.iter_custom(|iterations| {
            let mut total = Duration::ZERO;
            for _ in 0..iterations {
                collector.discard_repair();
                for (esi, symbol) in
                    (first..).zip(repairs.chunks_exact(shape.symbol_len())).take(deficit as usize)
                {
                    collector.add_repair(scheme, esi, symbol).expect("a valid symbol");
                }
                let start = std::time::Instant::now();
                let decoded = collector.try_decode();
                total += start.elapsed();
                assert_eq!(decoded, Decode::Ready, "ESIs of full rank");
            }
            total
        });
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(50))
        .measurement_time(Duration::from_millis(150));
    targets = encode, decode
}
criterion_main!(benches);
