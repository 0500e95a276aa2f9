//! Blocks that name their contents, for a host that has them already: the names of [`crate::names`] stand where the
//! contents' bytes would, everything else is as in any block. Their encoding has the code 4.

use super::compress::Scratch;
use super::decode::{self, BlockError, BlockLimits, BlockPart};
use super::encode::{PADDING_ROOM, len_u32, pack_placements};
use super::encoding::Encoding;
use super::header::{ENCODING_AT, HEADER_LEN, Header};
use super::{ContentRun, UniformPlacement};
use crate::names::NAME_BYTES;

/// Code of the encoding.
const NAMED: u8 = 4;

/// A body that names its contents, read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NamedBlock {
    /// Where the contents belong.
    pub runs: Vec<ContentRun>,
    /// Uniform pages.
    pub uniform: Vec<UniformPlacement>,
    /// The contents' names, by index.
    pub names: Vec<u128>,
}

/// Writes a body. The result depends on the arguments only.
///
/// # Panics
/// As [`super::encode_block`].
#[must_use]
pub fn encode_named(runs: &[ContentRun], names: &[u128], scratch: &mut Scratch) -> Vec<u8> {
    let packed = pack_placements(runs, &[], names.len(), Encoding::Zstd { level: 1 }, scratch);
    let header = Header {
        // Replaced below: what an encoding of contents may be does not depend on this one.
        encoding: Encoding::Raw,
        placement_code: packed.code,
        runs: len_u32(runs.len()),
        uniform: 0,
        contents: len_u32(names.len()),
        placement_len: packed.plain_len,
        placement_stored: len_u32(packed.stored.len()),
        contents_stored: len_u32(names.len() * NAME_BYTES),
    };
    let len = HEADER_LEN + packed.stored.len() + names.len() * NAME_BYTES;
    let mut body = Vec::with_capacity(len + PADDING_ROOM);
    header.write(&mut body);
    body[ENCODING_AT] = NAMED;
    body.extend_from_slice(&packed.stored);
    names.iter().for_each(|name| body.extend_from_slice(&name.to_le_bytes()));
    scratch.give_back(packed.stored);
    body
}

/// Whether a body says that it names its contents. It may be malformed all the same.
#[must_use]
pub fn is_named(body: &[u8]) -> bool {
    body.get(ENCODING_AT) == Some(&NAMED)
}

/// Reads a body that names its contents, as bounded and as deterministic as [`super::decode_block`].
///
/// # Errors
/// A [`BlockError`] that names the first thing that is wrong.
pub fn decode_named(
    body: &[u8],
    limits: &BlockLimits,
    scratch: &mut Scratch,
) -> Result<NamedBlock, BlockError> {
    if body.len() > limits.body_bytes_max {
        return Err(BlockError::TooLong { found: body.len(), max: limits.body_bytes_max });
    }
    let (header, rest) = Header::read_with(body, |code, level| match (code, level) {
        (NAMED, 0) => Ok(Encoding::Raw),
        (NAMED, level) => Err(BlockError::StrayLevel { code, level }),
        (code, _) => Err(BlockError::UnknownEncoding { code }),
    })?;
    decode::check_counts(&header, limits)?;
    let (placements, names) = decode::sections(&header, body.len(), rest)?;
    let (names, over) = names.as_chunks::<NAME_BYTES>();
    if names.len() != header.contents as usize || !over.is_empty() {
        let found = header.contents_stored;
        return Err(BlockError::SectionLength { part: BlockPart::Contents, found });
    }
    let (runs, uniform) = decode::decode_placements(&header, placements, limits, scratch)?;
    Ok(NamedBlock { runs, uniform, names: names.iter().copied().map(u128::from_le_bytes).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::{BlockParts, decode_block, encode_block};
    use crate::{Pfn, VmId};

    fn body() -> (Vec<ContentRun>, Vec<u128>, Vec<u8>) {
        let run = |vm, pfn, content, count| ContentRun { vm: VmId(vm), pfn: Pfn(pfn), content, count };
        let runs = vec![run(0, 7, 0, 3), run(2, 1, 1, 1)];
        let names = vec![1, u128::MAX, 1 << 100];
        let body = encode_named(&runs, &names, &mut Scratch::new());
        (runs, names, body)
    }

    #[test]
    fn what_was_written_is_read_and_takes_little_more_than_its_names() {
        let (runs, names, body) = body();
        assert!(is_named(&body));
        let read = decode_named(&body, &BlockLimits::default(), &mut Scratch::new());
        assert_eq!(read, Ok(NamedBlock { runs, uniform: Vec::new(), names }));
        assert!(body.len() < HEADER_LEN + 3 * NAME_BYTES + 16, "{}", body.len());
    }

    #[test]
    fn neither_kind_of_body_passes_for_the_other() {
        let (limits, mut scratch) = (BlockLimits::default(), Scratch::new());
        let (_, _, named) = body();
        let unknown = Err(BlockError::UnknownEncoding { code: NAMED });
        assert_eq!(decode_block(&named, &limits, &mut scratch).map(|_| ()), unknown);
        let parts = BlockParts { runs: &[], uniform: &[], contents: &[&[7; 4096]] };
        let plain = encode_block(&parts, Encoding::Raw, &mut scratch);
        assert!(!is_named(&plain));
        let unknown = Err(BlockError::UnknownEncoding { code: Encoding::RAW });
        assert_eq!(decode_named(&plain, &limits, &mut scratch).map(|_| ()), unknown);
    }

    #[test]
    fn damaged_bodies_are_refused_without_a_panic() {
        let (_, _, body) = body();
        let limits = BlockLimits { contents_max: 3, ..BlockLimits::default() };
        let mut scratch = Scratch::new();
        for cut in 0..body.len() {
            assert!(decode_named(&body[..cut], &limits, &mut scratch).is_err(), "cut at {cut}");
        }
        for at in 0..HEADER_LEN {
            for bit in 0..8 {
                let mut damaged = body.clone();
                damaged[at] ^= 1 << bit;
                assert!(decode_named(&damaged, &limits, &mut scratch).is_err(), "bit {bit} of byte {at}");
            }
        }
    }
}
