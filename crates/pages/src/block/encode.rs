//! Writing a block body.

use super::compress::Scratch;
use super::encoding::Encoding;
use super::header::{HEADER_LEN, Header};
use super::placements::{self, RUN_LEN, UNIFORM_LEN};
use super::{BlockParts, ContentRun, UniformPlacement};
use crate::page::PAGE_SIZE;

/// Spare capacity of a body, in bytes: who cuts it into symbols of equal length (`fec`) pads it without a copy.
pub(super) const PADDING_ROOM: usize = 2048;

/// The longest body that so many contents, content runs and uniform runs can take, in bytes. Most take far
/// less, see [`encode_block`].
#[must_use]
pub const fn body_len_max(contents: usize, runs: usize, uniform: usize) -> usize {
    HEADER_LEN + contents * PAGE_SIZE + runs * RUN_LEN.1 + uniform * UNIFORM_LEN.1
}

/// Writes a block body. The contents are compressed as one stream; they, and the placements (about four
/// bytes for an isolated one, before compression), stay as they are where compression does not make them
/// smaller. The result depends on `parts` and `encoding` only.
///
/// # Panics
///
/// If a run is empty, names a content that is not there or leaves the range of pages, or the body would not
/// be far below 4 GiB.
#[must_use]
pub fn encode_block(parts: &BlockParts<'_>, encoding: Encoding, scratch: &mut Scratch) -> Vec<u8> {
    let len_max = body_len_max(parts.contents.len(), parts.runs.len(), parts.uniform.len());
    assert!(u32::try_from(len_max).is_ok(), "a block is far below 4 GiB");

    let packed = pack_placements(parts.runs, parts.uniform, parts.contents.len(), encoding, scratch);

    let plain_len = parts.contents.len() * PAGE_SIZE;
    let mut packed_contents = scratch.take();
    let contents_packed = encoding != Encoding::Raw && {
        let mut plain = scratch.take();
        plain.clear();
        plain.reserve_exact(plain_len);
        parts.contents.iter().for_each(|page| plain.extend_from_slice(*page));
        let packed = scratch.compress(encoding, &plain, &mut packed_contents);
        scratch.give_back(plain);
        packed
    };
    let contents_stored = if contents_packed { packed_contents.len() } else { plain_len };

    let header = Header {
        encoding: if contents_packed { encoding } else { Encoding::Raw },
        placement_code: packed.code,
        runs: len_u32(parts.runs.len()),
        uniform: len_u32(parts.uniform.len()),
        contents: len_u32(parts.contents.len()),
        placement_len: packed.plain_len,
        placement_stored: len_u32(packed.stored.len()),
        contents_stored: len_u32(contents_stored),
    };
    let mut body = Vec::with_capacity(HEADER_LEN + packed.stored.len() + contents_stored + PADDING_ROOM);
    header.write(&mut body);
    body.extend_from_slice(&packed.stored);
    if contents_packed {
        body.extend_from_slice(&packed_contents);
    } else {
        parts.contents.iter().for_each(|page| body.extend_from_slice(*page));
    }
    for buffer in [packed.stored, packed_contents] {
        scratch.give_back(buffer);
    }
    body
}

/// The placement section as it is stored.
pub(super) struct PackedPlacements {
    pub(super) code: u8,
    pub(super) plain_len: u32,
    /// One of the scratch's buffers.
    pub(super) stored: Vec<u8>,
}

/// Writes the placement section, compressed where that makes it smaller.
pub(super) fn pack_placements(
    runs: &[ContentRun],
    uniform: &[UniformPlacement],
    contents: usize,
    encoding: Encoding,
    scratch: &mut Scratch,
) -> PackedPlacements {
    let mut plain = scratch.take();
    plain.clear();
    let mut ends = std::mem::take(&mut scratch.ends);
    placements::write(runs, uniform, contents, &mut ends, &mut plain);
    scratch.ends = ends;
    // Columns of small numbers compress well even where pages are to stay as they are; LZ4 costs next to
    // nothing on so few bytes.
    let encoding = if encoding == Encoding::Raw { Encoding::Lz4 } else { encoding };
    let mut packed = scratch.take();
    let plain_len = len_u32(plain.len());
    let (code, stored, other) = if scratch.compress(encoding, &plain, &mut packed) {
        (encoding.code(), packed, plain)
    } else {
        (Encoding::RAW, plain, packed)
    };
    scratch.give_back(other);
    PackedPlacements { code, plain_len, stored }
}

pub(super) fn len_u32(len: usize) -> u32 {
    u32::try_from(len).expect("bounded by the body's length")
}

impl ContentRun {
    /// The run of a single page.
    #[must_use]
    pub const fn single(vm: crate::VmId, pfn: crate::Pfn, content: u32) -> Self {
        Self { vm, pfn, content, count: 1 }
    }
}
