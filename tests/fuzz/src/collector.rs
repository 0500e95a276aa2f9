//! The receiver's side of FEC, fed with genuine and with wrong symbols in any order.

use fec::{BlockShape, Collector, Decode, Encoder, Scheme};

/// One step takes this many bytes.
const STEP_BYTES: usize = 4;

/// Bytes 0 and 1: the block's length; 2: the symbol size in units of 8 bytes; then steps of four bytes: what, and an
/// ESI of 24 bits. A block of genuine symbols alone is never wrong.
pub fn collector(bytes: &[u8]) {
    let Some((&[len_low, len_high, units], steps)) = bytes.split_first_chunk() else { return };
    let len = u32::from(u16::from_le_bytes([len_low, len_high]));
    let Ok(shape) = BlockShape::for_len(len, u16::from(units) * 8) else { return };
    let block: Vec<u8> = (0..len).map(|at| (at * 167 + (at >> 8)).to_le_bytes()[0]).collect();
    let mut encoder = Encoder::new(shape, &block).expect("the shape has this length");
    let mut collector = Collector::new(shape);
    let mut genuine = true;
    let mut symbol = vec![0; shape.symbol_len()];
    for step in steps.chunks_exact(STEP_BYTES) {
        let esi = u32::from_le_bytes([step[1], step[2], step[3], 0]);
        let wrong = step[0] & 0x80 != 0;
        match step[0] & 7 {
            0..=2 => genuine &= source(&mut collector, &encoder, esi % 160, wrong),
            kind @ (3 | 4) => {
                let scheme = if kind == 3 { Scheme::Cauchy } else { Scheme::RaptorQ };
                let esi = if scheme == Scheme::Cauchy { esi % 300 } else { esi };
                if encoder.repair(scheme, esi, &mut symbol).is_ok() {
                    symbol[0] ^= u8::from(wrong);
                    genuine &=
                        !(collector.add_repair(scheme, esi, &symbol).expect("an ESI of the code") && wrong);
                } else {
                    assert!(collector.add_repair(scheme, esi, &symbol).is_err());
                }
            }
            5 => genuine |= decode(&mut collector, &block, genuine),
            6 => assert!(collector.add_repair(Scheme::Cauchy, esi, &symbol[1..]).is_err()),
            _ => {
                collector.reset(shape);
                genuine = true;
            }
        }
        let (raptorq, cauchy) = collector.repair_counts();
        let missing = collector.missing_bitmap();
        assert!(missing & !shape.all_symbols() == 0 && raptorq + cauchy <= shape.symbols() + 2);
        assert_eq!(collector.is_ready(), missing == 0);
    }
    decode(&mut collector, &block, genuine);
}

/// Writes a source symbol in place. Whether all is genuine after.
fn source(collector: &mut Collector, encoder: &Encoder, esi: u32, wrong: bool) -> bool {
    let Some(slot) = collector.slot(esi) else { return true };
    slot.copy_from_slice(encoder.source(esi).expect("a slot is for a source symbol"));
    // What a datagram whose seal does not open leaves behind.
    if wrong && esi & 1 == 0 {
        slot.fill(0xee);
        return true;
    }
    // The first byte is never padding.
    slot[0] ^= u8::from(wrong);
    assert!(collector.mark(esi));
    !wrong
}

/// Decodes, and doubts what came out wrong as the receiver does. Whether the collector is sound by that.
fn decode(collector: &mut Collector, block: &[u8], genuine: bool) -> bool {
    if collector.try_decode() != Decode::Ready {
        assert!(collector.block().is_empty());
        return false;
    }
    if collector.block() == block {
        return false;
    }
    assert!(!genuine, "genuine symbols gave a wrong block");
    if collector.discard_repair() {
        return false;
    }
    let shape = collector.shape();
    collector.reset(shape);
    true
}
