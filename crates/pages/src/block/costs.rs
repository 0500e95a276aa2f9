//! What the encodings cost on these pages and this machine.

use super::compress::Scratch;
use super::decode::{BlockLimits, decode_block};
use super::encode::encode_block;
use super::encoding::Encoding;
use super::{BlockParts, ContentRun};
use crate::page::{PAGE_SIZE, Page, Pfn, VmId};
use std::time::Duration;

/// Contents of a sampled block: 1 MiB, from where on larger blocks hardly compress better.
const BLOCK_CONTENTS: usize = 256;

/// The encodings that are measured.
const CANDIDATES: [Encoding; 3] = [Encoding::Raw, Encoding::Lz4, Encoding::Zstd { level: 1 }];

/// What an encoding costs.
#[derive(Copy, Clone, PartialEq, Debug)]
pub struct EncodingCost {
    /// The encoding.
    pub encoding: Encoding,
    /// Bytes of block bodies for each byte of contents; slightly above 1 for [`Encoding::Raw`].
    pub ratio: f64,
    /// Nanoseconds of one thread to encode a byte of contents.
    pub encode_ns_per_byte: f64,
    /// Nanoseconds of one thread to decode a byte of contents.
    pub decode_ns_per_byte: f64,
}

/// Encodes the sample with [`Encoding::Raw`], [`Encoding::Lz4`] and [`Encoding::Zstd`] level 1, in this
/// order, and decodes it again. `now` is a clock that never goes back; take some hundred pages that are
/// neither uniform nor each other's repetitions, from all over the images. Takes about 10 ms a MiB.
///
/// Without pages, all ratios are 1 and all times 0.
#[must_use]
pub fn sample_costs(pages: &[&Page], now: &dyn Fn() -> Duration) -> [EncodingCost; 3] {
    let mut scratch = Scratch::new();
    CANDIDATES.map(|encoding| cost(encoding, pages, now, &mut scratch))
}

fn cost(
    encoding: Encoding,
    pages: &[&Page],
    now: &dyn Fn() -> Duration,
    scratch: &mut Scratch,
) -> EncodingCost {
    if pages.is_empty() {
        return EncodingCost { encoding, ratio: 1.0, encode_ns_per_byte: 0.0, decode_ns_per_byte: 0.0 };
    }
    let limits = BlockLimits { body_bytes_max: usize::MAX, ..BlockLimits::default() };
    let (mut bytes, mut encode, mut decode) = (0, Duration::ZERO, Duration::ZERO);
    for block in pages.chunks(BLOCK_CONTENTS) {
        // The shorter of two: the first makes contexts and buffers, and either may be interrupted.
        let (len, encode_first, decode_first) = round_trip(block, encoding, &limits, now, scratch);
        let (_, encode_again, decode_again) = round_trip(block, encoding, &limits, now, scratch);
        bytes += len;
        encode += encode_first.min(encode_again);
        decode += decode_first.min(decode_again);
    }
    let plain = (pages.len() * PAGE_SIZE) as f64;
    EncodingCost {
        encoding,
        ratio: bytes as f64 / plain,
        encode_ns_per_byte: encode.as_secs_f64() * 1e9 / plain,
        decode_ns_per_byte: decode.as_secs_f64() * 1e9 / plain,
    }
}

/// Length of the body, time to encode, time to decode.
fn round_trip(
    contents: &[&Page],
    encoding: Encoding,
    limits: &BlockLimits,
    now: &dyn Fn() -> Duration,
    scratch: &mut Scratch,
) -> (usize, Duration, Duration) {
    let count = u32::try_from(contents.len()).expect("a block's contents");
    let runs = [ContentRun { vm: VmId(0), pfn: Pfn(0), content: 0, count }];
    let start = now();
    let body = encode_block(&BlockParts { runs: &runs, uniform: &[], contents }, encoding, scratch);
    let encoded = now();
    let block = decode_block(&body, limits, scratch).expect("a block that was just encoded");
    let decoded = now();
    block.recycle(scratch);
    (body.len(), encoded.saturating_sub(start), decoded.saturating_sub(encoded))
}

/// The encoding that carries contents fastest, where encoding runs beside sending: the least of the larger
/// of both times. Of equal ones the first. `link_ns_per_byte` is the time that the link takes for a byte;
/// `threads` encode side by side.
///
/// `None` if there are no costs.
#[must_use]
pub fn choose_encoding(costs: &[EncodingCost], link_ns_per_byte: f64, threads: usize) -> Option<Encoding> {
    let time = |cost: &EncodingCost| {
        (cost.encode_ns_per_byte / threads.max(1) as f64).max(cost.ratio * link_ns_per_byte)
    };
    costs.iter().min_by(|a, b| time(a).total_cmp(&time(b))).map(|cost| cost.encoding)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn text_costs_less_bytes_and_more_time_is_told() {
        let text = b"the quick brown fox jumps over the lazy dog. ";
        let mut page = [0; PAGE_SIZE];
        page.iter_mut().zip(text.iter().cycle()).for_each(|(to, from)| *to = *from);
        let pages = vec![&page; 300];
        // A clock that ticks a microsecond each time it is read.
        let ticks = Cell::new(0);
        let costs = sample_costs(&pages, &|| {
            ticks.set(ticks.get() + 1);
            Duration::from_micros(ticks.get())
        });
        assert_eq!(costs.map(|cost| cost.encoding), CANDIDATES);
        assert!(costs[0].ratio > 1.0 && costs[0].ratio < 1.001);
        assert!(costs[1].ratio < 0.1 && costs[2].ratio < 0.1);
        // Two blocks, a tick each.
        let expected = 2_000.0 / (300 * PAGE_SIZE) as f64;
        for cost in costs {
            assert!((cost.encode_ns_per_byte - expected).abs() < expected / 1e6);
            assert!((cost.decode_ns_per_byte - expected).abs() < expected / 1e6);
        }
    }

    #[test]
    fn the_slower_of_link_and_processor_decides() {
        let cost = |encoding, ratio, encode_ns_per_byte| EncodingCost {
            encoding,
            ratio,
            encode_ns_per_byte,
            decode_ns_per_byte: 0.0,
        };
        let zstd = Encoding::Zstd { level: 1 };
        let costs = [cost(Encoding::Raw, 1.0, 0.1), cost(Encoding::Lz4, 0.5, 0.6), cost(zstd, 0.3, 1.8)];
        // 1 Gb/s: 8 ns a byte; 10 Gb/s; 100 Gb/s.
        assert_eq!(choose_encoding(&costs, 8.0, 1), Some(zstd));
        assert_eq!(choose_encoding(&costs, 0.8, 1), Some(Encoding::Lz4));
        assert_eq!(choose_encoding(&costs, 0.08, 1), Some(Encoding::Raw));
        assert_eq!(choose_encoding(&costs, 0.8, 16), Some(zstd));
        assert_eq!(choose_encoding(&[], 1.0, 1), None);
        let empty = sample_costs(&[], &|| Duration::ZERO);
        assert_eq!(choose_encoding(&empty, 8.0, 1), Some(Encoding::Raw));
    }
}
