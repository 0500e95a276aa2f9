//! RaptorQ (RFC 6330) by the `raptorq` library, whose types and panics stay in here.
//!
//! The library panics on source block numbers that it does not expect, ESIs of more than 24 bits, symbols of
//! another length than T, and plans of another K. None of this can come from a peer: there is one source
//! block, its number is 0, [`BlockShape`] bounds K, and `Collector` and `Encoder` check ESIs and lengths
//! before they keep a symbol. Beyond this, the control flow of library and solver depends on ESIs alone, not
//! on symbols' bytes; its solver sees only sets of ESIs that were found to have full rank (`solve`). In
//! builds that check overflow, its `rand` would overflow for one y in 2^31: no K' up to 138 has an ESI that
//! gives such a y (tested below).

use crate::shape::{BlockShape, SYMBOLS_MAX};
use raptorq::{
    EncodingPacket, ObjectTransmissionInformation, PayloadId, SourceBlockDecoder, SourceBlockEncoder,
    SourceBlockEncodingPlan,
};
use std::sync::OnceLock;

/// Our blocks are the library's source block 0.
const SOURCE_BLOCK: u8 = 0;

/// What depends on K alone, computed at its first use and kept: at most some 100 KiB for each K in use.
struct Code {
    plan: SourceBlockEncodingPlan,
    /// Encodes the K × K unit matrix, so that a repair symbol of it is a row of coefficients.
    unit: SourceBlockEncoder,
}

static CODES: [OnceLock<Code>; SYMBOLS_MAX as usize + 1] =
    [const { OnceLock::new() }; SYMBOLS_MAX as usize + 1];

/// `symbols` is a K: 1 to [`SYMBOLS_MAX`].
fn code(symbols: u16) -> &'static Code {
    CODES[usize::from(symbols)].get_or_init(|| {
        let size = usize::from(symbols);
        let mut unit = vec![0; size * size];
        unit.iter_mut().step_by(size + 1).for_each(|diagonal| *diagonal = 1);
        let plan = SourceBlockEncodingPlan::generate(symbols);
        let unit = SourceBlockEncoder::with_encoding_plan(
            SOURCE_BLOCK,
            &information(symbols, symbols),
            &unit,
            &plan,
        );
        Code { plan, unit }
    })
}

/// One source block of `symbols` symbols of `size` bytes, not divided into sub-blocks.
fn information(symbols: u16, size: u16) -> ObjectTransmissionInformation {
    ObjectTransmissionInformation::new(u64::from(symbols) * u64::from(size), size, 1, 1, 1)
}

fn symbols(shape: &BlockShape) -> u16 {
    u16::try_from(shape.symbols()).expect("a shape has at most 128 symbols")
}

/// Writes the coefficients of repair symbol `esi`, K to 2^24 − 1: the symbol is their product with the
/// source symbols. `row` has K elements.
pub(crate) fn coefficients(shape: &BlockShape, esi: u32, row: &mut [u8]) {
    write_repair(&code(symbols(shape)).unit, esi - shape.symbols(), row);
}

fn write_repair(encoder: &SourceBlockEncoder, index: u32, out: &mut [u8]) {
    for packet in encoder.repair_packets(index, 1) {
        out.copy_from_slice(packet.data());
    }
}

/// A block's intermediate symbols (RFC 6330 §5.3.3), from which each repair symbol is a few additions.
#[derive(Debug)]
pub(crate) struct Intermediate(SourceBlockEncoder);

impl Intermediate {
    /// `block` has K × T bytes.
    pub(crate) fn new(shape: &BlockShape, block: &[u8]) -> Self {
        let symbols = symbols(shape);
        Self(SourceBlockEncoder::with_encoding_plan(
            SOURCE_BLOCK,
            &information(symbols, shape.symbol_size),
            block,
            &code(symbols).plan,
        ))
    }

    /// Writes repair symbol `esi`, K to 2^24 − 1, to the T bytes of `out`.
    pub(crate) fn repair(&self, shape: &BlockShape, esi: u32, out: &mut [u8]) {
        write_repair(&self.0, esi - shape.symbols(), out);
    }
}

/// Decodes a block of K × T bytes with the library's solver: all symbols have T bytes, no ESI comes twice,
/// and together they have rank K. `None` only if the last is not so.
pub(crate) fn decode<'a>(
    shape: &BlockShape,
    symbols_held: impl Iterator<Item = (u32, &'a [u8])>,
) -> Option<Vec<u8>> {
    let information = information(symbols(shape), shape.symbol_size);
    let mut decoder = SourceBlockDecoder::new(SOURCE_BLOCK, &information, shape.padded_len() as u64);
    let packets = symbols_held
        .map(|(esi, symbol)| EncodingPacket::new(PayloadId::new(SOURCE_BLOCK, esi), symbol.to_vec()));
    decoder.decode(packets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::row;
    use crate::shape::Scheme;
    use crate::solve::solve;
    use rand::rngs::SmallRng;
    use rand::seq::{IteratorRandom, index};
    use rand::{Rng, SeedableRng};

    /// K' and J(K') of RFC 6330 §5.6, table 2, as far as K' is used for K up to 128.
    const SYSTEMATIC_INDICES: [(u32, u32); 27] = [
        (10, 254),
        (12, 630),
        (18, 682),
        (20, 293),
        (26, 80),
        (30, 566),
        (32, 860),
        (36, 267),
        (42, 822),
        (46, 506),
        (48, 589),
        (49, 87),
        (55, 520),
        (60, 159),
        (62, 235),
        (69, 157),
        (75, 502),
        (84, 334),
        (88, 583),
        (91, 66),
        (95, 352),
        (97, 365),
        (101, 562),
        (114, 5),
        (119, 603),
        (125, 721),
        (138, 660),
    ];

    /// RFC 6330 §5.3.5.4: y = (B + X·A) mod 2^32, then `rand(y, i, m)` with i up to 2 adds i to y.
    #[test]
    fn no_esi_overflows_the_librarys_rand() {
        for (extended, index) in SYSTEMATIC_INDICES.into_iter().chain([(127, 28)]) {
            assert_eq!(raptorq::extended_source_block_symbols(extended), extended);
            let a = (53591 + index * 997) | 1;
            let mut y = 10267 * (index + 1);
            // The ESI is at most 2^24 − 1, the internal symbol id at most K' − 1 more.
            for id in 0..(1u32 << 24) + extended {
                assert!(y <= u32::MAX - 2, "K' = {extended}, internal symbol {id}");
                y = y.wrapping_add(a);
            }
        }
    }

    #[test]
    fn coefficients_give_the_librarys_symbols() {
        for symbols in [1, 2, 10, 11, 64, 127, 128] {
            let shape = BlockShape::new(symbols * 16, 16).unwrap();
            let block: Vec<u8> = (0..shape.padded_len()).map(|at| (at * 31 % 251) as u8).collect();
            let intermediate = Intermediate::new(&shape, &block);
            let inputs: Vec<&[u8]> = block.chunks_exact(16).collect();
            for esi in [symbols, symbols + 1, symbols + 77, (1 << 24) - 1] {
                let mut row = vec![0; shape.count()];
                coefficients(&shape, esi, &mut row);
                let (mut dense, mut solved) = ([0; 16], [0; 16]);
                crate::combine::combine(&inputs, &[&row], &mut [&mut dense]);
                intermediate.repair(&shape, esi, &mut solved);
                assert_eq!(dense, solved, "K = {symbols}, ESI {esi}");
            }
        }
    }

    /// The library's solver must neither panic nor fail on any set of ESIs that `solve` lets through, and
    /// both must agree.
    #[test]
    fn the_solver_decodes_every_set_of_full_rank() {
        let mut rng = SmallRng::seed_from_u64(8);
        let mut ranks = [0, 0];
        for round in 0..3000 {
            let symbols = rng.random_range(1..=128u32);
            let shape = BlockShape::new(symbols * 8, 8).unwrap();
            let block: Vec<u8> = (0..shape.padded_len()).map(|_| rng.random()).collect();
            let intermediate = Intermediate::new(&shape, &block);
            let lost = rng.random_range(1..=symbols);
            let missing = (0..symbols)
                .choose_multiple(&mut rng, lost as usize)
                .into_iter()
                .fold(0u128, |missing, esi| missing | 1 << esi);
            let (first, count) = match round % 3 {
                0 => (symbols, 3 * lost),
                1 => ((1 << 24) - 2 * lost, 2 * lost),
                _ => (symbols, (1 << 24) - symbols),
            };
            let esis = index::sample(&mut rng, count as usize, lost as usize);
            let esis: Vec<u32> = esis.iter().map(|at| first + at as u32).collect();
            let rows: Vec<_> = esis.iter().map(|&esi| row(&shape, Scheme::RaptorQ, esi)).collect();
            let regular = solve(shape.count(), missing, &rows).is_ok();
            ranks[usize::from(regular)] += 1;
            if regular {
                let repairs = esis.iter().map(|&esi| {
                    let mut symbol = [0; 8];
                    intermediate.repair(&shape, esi, &mut symbol);
                    (esi, symbol)
                });
                let repairs: Vec<(u32, [u8; 8])> = repairs.collect();
                let sources = (0..).zip(block.chunks_exact(8)).filter(|(esi, _)| missing >> esi & 1 == 0);
                let repairs = repairs.iter().map(|(esi, symbol)| (*esi, symbol.as_slice()));
                assert_eq!(
                    decode(&shape, sources.chain(repairs)).as_ref(),
                    Some(&block),
                    "{symbols} {esis:?}"
                );
            }
        }
        assert!(ranks[0] > 0 && ranks[1] > 2900, "{ranks:?}");
    }
}
