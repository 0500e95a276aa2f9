//! Measuring the cost model on the machine at hand.

use crate::combine::combine;
use crate::cost::{CostModel, Linear};
use crate::raptor::{self, Intermediate};
use crate::rows::row;
use crate::shape::{BlockShape, Scheme};
use std::hint::black_box;
use std::time::Duration;

/// K of the blocks measured.
const SYMBOLS: u32 = 64;
/// Their symbol sizes: a path MTU of 1,500 and a large one.
const SIZES: [u16; 2] = [1424, 8192];
/// Each measurement is the least of this many.
const REPEATS: usize = 5;
/// Rows of the two tabled measurements.
const FEW_ROWS: usize = 4;
const MANY_ROWS: usize = 20;

impl CostModel {
    /// Measures this machine with `clock`, which tells the time since any fixed instant. Takes some 15 ms.
    ///
    /// A measurement that makes no sense, as with a clock that stands still, leaves the default in its place.
    #[must_use]
    pub fn measure(mut clock: impl FnMut() -> Duration) -> Self {
        let default = Self::REFERENCE;
        let small = Sample::new(SIZES[0]);
        let large = Sample::new(SIZES[1]);
        let mut least = |work: &mut dyn FnMut()| {
            (0..REPEATS).fold(f64::INFINITY, |least, _| {
                let start = clock();
                work();
                least.min(clock().saturating_sub(start).as_secs_f64() * 1e9)
            })
        };
        let parity = least(&mut || small.dense(0, 1));
        let direct = least(&mut || small.dense(1, 1));
        let few = least(&mut || small.dense(1, FEW_ROWS));
        let many = least(&mut || small.dense(1, MANY_ROWS));
        // Plans are made once for each K, outside of what is measured.
        drop(small.intermediate());
        let encode = [&small, &large].map(|sample| least(&mut || drop(black_box(sample.intermediate()))));
        let decode = [&small, &large].map(|sample| least(&mut || drop(black_box(sample.solve()))));
        let intermediate = large.intermediate();
        let mut symbol = vec![0; large.shape.symbol_len()];
        let symbols = least(&mut || {
            for esi in 200..200 + SYMBOLS {
                intermediate.repair(&large.shape, esi, black_box(&mut symbol));
            }
        });

        let bytes = small.bytes();
        let table_row = (many - few) / (MANY_ROWS - FEW_ROWS) as f64 / bytes;
        Self {
            parity: sensible(parity / bytes, default.parity),
            direct_row: sensible(direct / bytes, default.direct_row),
            table: sensible(few / bytes - FEW_ROWS as f64 * table_row, default.table),
            table_row: sensible(table_row, default.table_row),
            raptorq_encode: linear(&small, &large, encode, default.raptorq_encode),
            raptorq_decode: linear(&small, &large, decode, default.raptorq_decode),
            raptorq_symbol: sensible(symbols / large.bytes(), default.raptorq_symbol),
        }
    }
}

/// `measured` if it can be true.
fn sensible(measured: f64, default: f64) -> f64 {
    if measured.is_finite() && measured > 0.0 { measured } else { default }
}

fn linear(small: &Sample, large: &Sample, ns: [f64; 2], default: Linear) -> Linear {
    let ns_per_byte = sensible((ns[1] - ns[0]) / (large.bytes() - small.bytes()), default.ns_per_byte);
    let ns_per_symbol =
        sensible((ns[0] - small.bytes() * ns_per_byte) / f64::from(SYMBOLS), default.ns_per_symbol);
    Linear { ns_per_symbol, ns_per_byte }
}

/// A block to measure with; its bytes do not matter.
struct Sample {
    shape: BlockShape,
    block: Vec<u8>,
    /// A fifth of the block's symbols, RaptorQ.
    repair: Vec<(u32, Vec<u8>)>,
}

impl Sample {
    fn new(size: u16) -> Self {
        let shape = BlockShape::new(SYMBOLS * u32::from(size), size).expect("a valid shape");
        let block = vec![0x5a; shape.padded_len()];
        // ESIs of full rank with the source symbols from 13 on (tested).
        let repair = (SYMBOLS..SYMBOLS + 13).map(|esi| (esi, vec![0x33; shape.symbol_len()])).collect();
        Self { shape, block, repair }
    }

    fn bytes(&self) -> f64 {
        f64::from(SYMBOLS) * f64::from(self.shape.symbol_size)
    }

    /// Computes Cauchy repair symbols from number `first` on.
    fn dense(&self, first: u32, rows: usize) {
        let inputs: Vec<&[u8]> = self.block.chunks_exact(self.shape.symbol_len()).collect();
        let rows: Vec<_> =
            (SYMBOLS + first..).take(rows).map(|esi| row(&self.shape, Scheme::Cauchy, esi)).collect();
        let rows: Vec<&[u8]> = rows.iter().map(|row| &row[..inputs.len()]).collect();
        let mut out = vec![0; rows.len() * self.shape.symbol_len()];
        let mut outputs: Vec<&mut [u8]> = out.chunks_exact_mut(self.shape.symbol_len()).collect();
        combine(&inputs, &rows, black_box(&mut outputs));
    }

    fn intermediate(&self) -> Intermediate {
        Intermediate::new(&self.shape, &self.block)
    }

    fn solve(&self) -> Option<Vec<u8>> {
        let sources = (0..).zip(self.block.chunks_exact(self.shape.symbol_len())).skip(self.repair.len());
        let repairs = self.repair.iter().map(|(esi, symbol)| (*esi, symbol.as_slice()));
        raptor::decode(&self.shape, sources.chain(repairs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn a_clock_that_stands_still_leaves_the_default() {
        assert_eq!(CostModel::measure(|| Duration::ZERO), CostModel::default());
        assert!(Sample::new(8).solve().is_some());
    }

    #[test]
    fn measures_in_the_order_of_the_reference() {
        let start = Instant::now();
        let model = CostModel::measure(|| start.elapsed());
        let reference = CostModel::default();
        for (measured, expected) in [
            (model.parity, reference.parity),
            (model.table_row, reference.table_row),
            (model.raptorq_decode.ns_per_byte, reference.raptorq_decode.ns_per_byte),
        ] {
            // A loaded or slow machine may be far off; nonsense is further.
            assert!(measured > expected / 50.0 && measured < expected * 1000.0, "{model:?}");
        }
    }
}
