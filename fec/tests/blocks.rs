//! Blocks through encoder and collector: losses, mixtures, damage, interoperation with the library.

#![expect(clippy::unwrap_used, reason = "a test")]

use fec::{BlockShape, CAUCHY_REPAIR_SYMBOLS, Collector, Decode, Encoder, FecError, RAPTORQ_ESI_MAX, Scheme};
use proptest::prelude::*;
use rand::rngs::SmallRng;
use rand::seq::{IteratorRandom, SliceRandom};
use rand::{Rng, SeedableRng};

fn random_block(rng: &mut SmallRng, len: u32) -> Vec<u8> {
    (0..len).map(|_| rng.random()).collect()
}

/// Puts the encoder's source symbols into the collector, but for those in `lost`.
fn receive_sources(encoder: &Encoder, collector: &mut Collector, lost: u128) {
    for esi in (0..encoder.shape().symbols()).filter(|esi| lost >> esi & 1 == 0) {
        collector.slot(esi).unwrap().copy_from_slice(encoder.source(esi).unwrap());
        assert!(collector.mark(esi));
    }
}

fn receive_repair(encoder: &mut Encoder, collector: &mut Collector, scheme: Scheme, esi: u32) -> bool {
    let mut symbol = vec![0; encoder.shape().symbol_len()];
    encoder.repair(scheme, esi, &mut symbol).unwrap();
    collector.add_repair(scheme, esi, &symbol).unwrap()
}

/// A bitmap of `count` of the `symbols` lowest bits.
fn random_loss(rng: &mut SmallRng, symbols: u32, count: u32) -> u128 {
    (0..symbols).choose_multiple(rng, count as usize).into_iter().fold(0, |lost, esi| lost | 1 << esi)
}

/// Every K of K + 8 symbols, for small K.
#[test]
fn cauchy_decodes_from_any_symbols_exhaustively() {
    let mut rng = SmallRng::seed_from_u64(1);
    for symbols in 1..=7u32 {
        let shape = BlockShape::new(symbols * 8 - 3, 8).unwrap();
        let block = random_block(&mut rng, shape.len);
        let mut encoder = Encoder::new(shape, &block).unwrap();
        let mut collector = Collector::new(shape);
        for held in (0u32..1 << (symbols + 8)).filter(|held| held.count_ones() == symbols) {
            collector.reset(shape);
            receive_sources(&encoder, &mut collector, u128::from(!held) & shape.all_symbols());
            for esi in (symbols..symbols + 8).filter(|esi| held >> esi & 1 == 1) {
                assert!(receive_repair(&mut encoder, &mut collector, Scheme::Cauchy, esi));
            }
            assert_eq!(collector.try_decode(), Decode::Ready, "K = {symbols}, held {held:b}");
            assert_eq!(collector.block(), block);
        }
    }
}

/// Any K of all the symbols there are, at random, for all K.
#[test]
fn cauchy_decodes_from_any_symbols_at_random() {
    let mut rng = SmallRng::seed_from_u64(2);
    for symbols in 1..=128u32 {
        let shape = BlockShape::new(symbols * 16, 16).unwrap();
        let block = random_block(&mut rng, shape.len);
        let mut encoder = Encoder::new(shape, &block).unwrap();
        let mut collector = Collector::new(shape);
        for _ in 0..8 {
            collector.reset(shape);
            let missing = rng.random_range(1..=symbols);
            let lost = random_loss(&mut rng, symbols, missing);
            receive_sources(&encoder, &mut collector, lost);
            let repairs = shape.repair_esis(Scheme::Cauchy).choose_multiple(&mut rng, missing as usize);
            for (held, esi) in (0..).zip(repairs) {
                assert_eq!(collector.try_decode(), Decode::NeedMore { symbols: missing - held });
                assert!(receive_repair(&mut encoder, &mut collector, Scheme::Cauchy, esi));
            }
            assert_eq!(collector.missing_bitmap(), lost);
            assert_eq!(collector.try_decode(), Decode::Ready);
            assert_eq!(collector.block(), block);
            assert_eq!(collector.missing_bitmap(), 0);
            assert!(!collector.is_complete_sources());
        }
    }
}

#[test]
fn without_loss_nothing_is_computed() {
    let shape = BlockShape::for_len(1000, 64).unwrap();
    let block = random_block(&mut SmallRng::seed_from_u64(3), shape.len);
    let encoder = Encoder::new(shape, &block).unwrap();
    let mut collector = Collector::new(shape);
    receive_sources(&encoder, &mut collector, 0);
    assert!(collector.is_complete_sources());
    assert_eq!(collector.try_decode(), Decode::Ready);
    assert_eq!(collector.block(), block);
    assert_eq!(encoder.block(), block);
    assert_eq!(collector.into_vec(), block);
}

/// Our RaptorQ symbols are those of the library's plain interface, however few or many are asked for.
#[test]
fn raptorq_symbols_are_the_librarys() {
    let mut rng = SmallRng::seed_from_u64(4);
    for (symbols, size) in [(1, 8), (2, 64), (13, 8), (32, 1424), (64, 1344), (127, 24), (128, 64)] {
        let shape = BlockShape::new(symbols * u32::from(size), size).unwrap();
        let block = random_block(&mut rng, shape.len);
        let information = raptorq::ObjectTransmissionInformation::new(u64::from(shape.len), size, 1, 1, 8);
        let theirs = raptorq::Encoder::new(&block, information).get_encoded_packets(200);
        let theirs: Vec<&[u8]> = theirs.iter().map(|packet| packet.data()).collect();
        for count in [1, 3, 200] {
            let mut encoder = Encoder::new(shape, &block).unwrap();
            let mut ours = Vec::new();
            encoder.repair_range(Scheme::RaptorQ, symbols..symbols + count, &mut ours).unwrap();
            for (at, symbol) in (symbols as usize..).zip(ours.chunks_exact(usize::from(size))) {
                assert_eq!(symbol, theirs[at], "K = {symbols}, ESI {at}");
            }
        }
        for (esi, symbol) in (0..symbols).zip(&theirs) {
            assert_eq!(Encoder::new(shape, &block).unwrap().source(esi).unwrap(), *symbol);
        }
    }
}

/// The library's plain decoder understands our symbols, and we decode with few and with very many missing.
#[test]
fn raptorq_decodes_here_and_in_the_library() {
    let mut rng = SmallRng::seed_from_u64(5);
    let mut more = 0;
    for (symbols, size) in [(1u32, 8u16), (10, 72), (32, 8920), (64, 1424), (100, 8), (128, 128)] {
        let shape = BlockShape::new(symbols * u32::from(size) - 5, size).unwrap();
        let block = random_block(&mut rng, shape.len);
        let mut encoder = Encoder::new(shape, &block).unwrap();
        let mut collector = Collector::new(shape);
        for missing in [1, symbols.div_ceil(10), symbols / 2 + 1, symbols] {
            collector.reset(shape);
            let lost = random_loss(&mut rng, symbols, missing);
            receive_sources(&encoder, &mut collector, lost);
            let information =
                raptorq::ObjectTransmissionInformation::new(u64::from(shape.len), size, 1, 1, 8);
            let mut library = raptorq::Decoder::new(information);
            let mut decoded = None;
            for esi in (0..symbols).filter(|esi| lost >> esi & 1 == 0) {
                decoded = library.decode(packet(esi, encoder.source(esi).unwrap()));
            }
            let mut esi = rng.random_range(symbols..1 << 20);
            let mut state = collector.try_decode();
            while let Decode::NeedMore { symbols: count } = state {
                more += u32::from(collector.repair_counts().0 > missing);
                let mut out = Vec::new();
                encoder.repair_range(Scheme::RaptorQ, esi..esi + count, &mut out).unwrap();
                for symbol in out.chunks_exact(shape.symbol_len()) {
                    assert!(collector.add_repair(Scheme::RaptorQ, esi, symbol).unwrap());
                    decoded = decoded.or_else(|| library.decode(packet(esi, symbol)));
                    esi += 1;
                }
                state = collector.try_decode();
            }
            assert_eq!(collector.block(), block);
            assert_eq!(decoded.as_deref(), Some(block.as_slice()));
        }
    }
    assert!(more < 5, "two symbols more than missing are needed once in 65,536 decodes");
}

fn packet(esi: u32, symbol: &[u8]) -> raptorq::EncodingPacket {
    raptorq::EncodingPacket::new(raptorq::PayloadId::new(0, esi), symbol.to_vec())
}

/// RFC 6330 codes fail with 1/256 of all sets of exactly K symbols; the collector then asks for one more and
/// keeps what is independent.
#[test]
fn dependent_symbols_are_dropped_and_one_more_suffices() {
    let shape = BlockShape::new(8 * 20, 8).unwrap();
    let block = random_block(&mut SmallRng::seed_from_u64(6), shape.len);
    let mut encoder = Encoder::new(shape, &block).unwrap();
    let mut collector = Collector::new(shape);
    let mut failures = 0;
    for first in (20..40_020).step_by(4) {
        collector.reset(shape);
        receive_sources(&encoder, &mut collector, 0b1111);
        for esi in first..first + 4 {
            assert!(receive_repair(&mut encoder, &mut collector, Scheme::RaptorQ, esi));
        }
        if let Decode::NeedMore { symbols } = collector.try_decode() {
            failures += 1;
            assert_eq!(collector.repair_counts(), (4 - symbols, 0));
            // The same again is no help, a symbol of the other scheme is.
            assert_eq!(collector.try_decode(), Decode::NeedMore { symbols });
            for esi in 20..20 + symbols {
                assert!(receive_repair(&mut encoder, &mut collector, Scheme::Cauchy, esi));
            }
            assert_eq!(collector.try_decode(), Decode::Ready);
        }
        assert_eq!(collector.block(), block);
    }
    assert!((10..=80).contains(&failures), "{failures} of 10,000, some 39 expected");
}

#[test]
fn refuses_what_is_no_symbol_of_the_block() {
    let shape = BlockShape::new(100, 8).unwrap();
    let mut encoder = Encoder::new(shape, &[1; 100]).unwrap();
    let mut collector = Collector::new(shape);
    let length = |got, expected| FecError::Length { got, expected };
    assert_eq!(Encoder::new(shape, &[1; 99]).err(), Some(length(99, 100)));
    assert_eq!(encoder.repair(Scheme::Cauchy, 13, &mut [0; 7]), Err(length(7, 8)));
    assert_eq!(collector.add_repair(Scheme::RaptorQ, 13, &[0; 16]), Err(length(16, 8)));
    let mut out = vec![1];
    for (scheme, last) in [(Scheme::Cauchy, 12 + CAUCHY_REPAIR_SYMBOLS), (Scheme::RaptorQ, RAPTORQ_ESI_MAX)] {
        for esi in [0, 12, last + 1, u32::MAX] {
            let error = FecError::Esi { esi, first: 13, last };
            assert_eq!(encoder.repair(scheme, esi, &mut [0; 8]), Err(error));
            assert_eq!(collector.add_repair(scheme, esi, &[0; 8]), Err(error));
            assert_eq!(
                encoder.repair_range(scheme, esi..esi.saturating_add(1), &mut out).is_err(),
                esi < u32::MAX
            );
        }
        assert!(encoder.repair_range(scheme, last..last + 2, &mut out).is_err());
        assert_eq!(out, []);
        encoder.repair(scheme, last, &mut [0; 8]).unwrap();
        assert_eq!(collector.add_repair(scheme, last, &[0; 8]), Ok(true));
        assert_eq!(collector.add_repair(scheme, last, &[0; 8]), Ok(false), "held already");
    }
    assert!(encoder.source(13).is_err());
    assert!(collector.slot(13).is_none() && collector.slot(u32::MAX).is_none());
    assert!(!collector.mark(13) && !collector.mark(u32::MAX));
    assert_eq!(collector.block(), []);
}

#[test]
fn what_is_there_is_not_written_again() {
    let shape = BlockShape::new(24, 8).unwrap();
    let block = [7; 24];
    let mut encoder = Encoder::new(shape, &block).unwrap();
    let mut collector = Collector::new(shape);
    receive_sources(&encoder, &mut collector, 0b10);
    assert!(collector.slot(0).is_none() && !collector.mark(0));
    assert!(receive_repair(&mut encoder, &mut collector, Scheme::Cauchy, 3));
    assert_eq!(collector.try_decode(), Decode::Ready);
    assert!(collector.slot(1).is_none() && !collector.mark(1));
    assert_eq!(collector.add_repair(Scheme::Cauchy, 4, &[0; 8]), Ok(false));
    assert_eq!(collector.block(), block);
}

#[test]
fn a_wrong_repair_symbol_can_be_thrown_away() {
    let shape = BlockShape::new(30, 8).unwrap();
    let block = [7; 30];
    let mut encoder = Encoder::new(shape, &block).unwrap();
    let mut collector = Collector::new(shape);
    receive_sources(&encoder, &mut collector, 0b100);
    collector.add_repair(Scheme::Cauchy, 9, &[0x55; 8]).unwrap();
    assert_eq!(collector.try_decode(), Decode::Ready);
    assert_ne!(collector.block(), block);
    assert!(collector.discard_repair());
    assert_eq!((collector.missing_bitmap(), collector.block()), (0b100, [].as_slice()));
    assert!(receive_repair(&mut encoder, &mut collector, Scheme::RaptorQ, 99));
    assert_eq!(collector.try_decode(), Decode::Ready);
    assert_eq!(collector.block(), block);

    // A wrong source symbol takes a fresh start: at once if nothing was computed …
    collector.reset(shape);
    receive_sources(&encoder, &mut collector, 0b1);
    collector.slot(0).unwrap().fill(1);
    collector.mark(0);
    assert_eq!(collector.try_decode(), Decode::Ready);
    assert_ne!(collector.block(), block);
    assert!(!collector.discard_repair());
    collector.reset(shape);
    assert_eq!(collector.missing_bitmap(), 0b1111);

    // … and after the second attempt if repair symbols came to its aid again and again.
    receive_sources(&encoder, &mut collector, 0b11);
    collector.slot(0).unwrap().fill(1);
    collector.mark(0);
    for attempt in 0..2 {
        assert!(receive_repair(&mut encoder, &mut collector, Scheme::Cauchy, 4 + attempt));
        assert_eq!(collector.try_decode(), Decode::Ready);
        assert_ne!(collector.block(), block);
        assert_eq!(collector.discard_repair(), attempt == 0);
    }
}

/// The last symbol's padding is no part of the block; garbage there must not spoil other symbols.
#[test]
fn padding_is_zero_whatever_came() {
    let shape = BlockShape::new(17, 8).unwrap();
    let block = [9; 17];
    let mut encoder = Encoder::new(shape, &block).unwrap();
    let mut collector = Collector::new(shape);
    receive_sources(&encoder, &mut collector, 0b101);
    collector.slot(2).unwrap().fill(9);
    collector.mark(2);
    receive_repair(&mut encoder, &mut collector, Scheme::Cauchy, 5);
    assert_eq!(collector.try_decode(), Decode::Ready);
    assert_eq!(collector.block(), block);
}

/// Hundreds of thousands of random calls, with sizes, ESIs and contents right and wrong: nothing panics,
/// memory stays bounded, and a block whose symbols were all right comes out right.
#[test]
fn a_storm_of_calls() {
    let mut rng = SmallRng::seed_from_u64(7);
    let (mut right, mut wrong) = (0, 0);
    let mut collector = Collector::new(BlockShape::new(1, 8).unwrap());
    for _ in 0..6_000 {
        let size = 8 * rng.random_range(1..=9);
        let shape = BlockShape::new(rng.random_range(1..=u32::from(size) * 128), size).unwrap();
        let symbols = shape.symbols();
        let block = random_block(&mut rng, shape.len);
        let mut encoder = Encoder::new(shape, &block).unwrap();
        collector.reset(shape);
        let damage = if rng.random() { 0.05 } else { 0.0 };
        let mut damaged = false;
        for _ in 0..rng.random_range(1..200) {
            let scheme = if rng.random() { Scheme::RaptorQ } else { Scheme::Cauchy };
            let esi = match rng.random_range(0..8) {
                0 => rng.random(),
                1 => RAPTORQ_ESI_MAX - rng.random_range(0..300),
                _ => rng.random_range(0..symbols + 140),
            };
            let mut symbol = vec![0; shape.symbol_len()];
            let valid = encoder.repair(scheme, esi, &mut symbol).is_ok();
            if rng.random_bool(damage) {
                symbol[0] ^= 1;
                symbol.resize(rng.random_range(0..3 * symbol.len()), 1);
            }
            if rng.random_bool(0.5) {
                let source = encoder.source(esi).map(<[u8]>::to_vec);
                if let (Some(slot), Ok(source)) = (collector.slot(esi), source) {
                    slot.copy_from_slice(&source);
                    assert!(collector.mark(esi));
                }
            } else if let Ok(new) = collector.add_repair(scheme, esi, &symbol) {
                assert!(valid);
                let mut original = vec![0; shape.symbol_len()];
                encoder.repair(scheme, esi, &mut original).unwrap();
                damaged |= new && original != symbol;
            } else {
                assert!(!valid || symbol.len() != shape.symbol_len());
            }
            let (raptorq, cauchy) = collector.repair_counts();
            assert!(raptorq + cauchy <= symbols + 2);
            if rng.random_bool(0.1) && collector.try_decode() == Decode::Ready && damaged {
                wrong += 1;
                collector.discard_repair();
                damaged = false;
            }
        }
        if collector.try_decode() == Decode::Ready && !damaged {
            right += 1;
            assert_eq!(collector.block(), block);
        }
    }
    assert!(right > 1_000 && wrong > 10, "{right} right, {wrong} wrong");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Any loss, any mixture of schemes, any order: as many symbols as `NeedMore` asks for suffice.
    #[test]
    fn any_mixture_decodes(
        len in 1u32..20_000,
        max in 8u16..600,
        lost: u128,
        schemes in prop::collection::vec(any::<bool>(), 1..8),
        seed: u64,
    ) {
        let Ok(shape) = BlockShape::for_len(len, max) else { return Ok(()) };
        let mut rng = SmallRng::seed_from_u64(seed);
        let block = random_block(&mut rng, len);
        let mut encoder = Encoder::new(shape, &block).unwrap();
        let mut collector = Collector::new(shape);
        let mut cauchy: Vec<u32> = shape.repair_esis(Scheme::Cauchy).collect();
        cauchy.shuffle(&mut rng);
        receive_sources(&encoder, &mut collector, lost & shape.all_symbols());
        let mut schemes = schemes.into_iter().cycle();
        while let Decode::NeedMore { symbols } = collector.try_decode() {
            prop_assert!(symbols >= 1 && symbols <= collector.missing_bitmap().count_ones());
            for _ in 0..symbols {
                let (scheme, esi) = match (schemes.next(), cauchy.pop()) {
                    (Some(true), Some(esi)) => (Scheme::Cauchy, esi),
                    _ => (Scheme::RaptorQ, rng.random_range(shape.repair_esis(Scheme::RaptorQ))),
                };
                receive_repair(&mut encoder, &mut collector, scheme, esi);
            }
        }
        prop_assert_eq!(collector.into_vec(), block);
    }
}
