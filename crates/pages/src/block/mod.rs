//! The block body: contents, where they belong, and uniform pages, as one self-contained run of bytes. It is
//! what FEC protects and what the digest covers.
//!
//! ```text
//! header     32 bytes, little-endian (see `header`)
//! placements columns of varints, as they are or compressed:
//!            content runs: vm…, count…, content…, pfn…    uniform runs: vm…, count…, word…, pfn…
//! contents   4096 bytes each, as they are or compressed as one stream
//! ```
//!
//! Equal parts under an equal encoding give equal bytes, on every machine and in every run, as long as the
//! compressors' versions are the same: digests of equal blocks are equal.

mod compress;
mod costs;
mod decode;
mod encode;
mod encoding;
mod header;
mod named;
mod placements;
mod rebuild;
#[cfg(test)]
mod tests;
mod varint;

pub use compress::Scratch;
pub use costs::{EncodingCost, choose_encoding, sample_costs};
pub use decode::{BlockError, BlockLimits, BlockPart, DecodedBlock, decode_block};
pub use encode::{body_len_max, encode_block};
pub use encoding::{Encoding, ParseEncodingError};
pub use header::HEADER_LEN;
pub use named::{NamedBlock, decode_named, encode_named, is_named};
pub use rebuild::{body_head, rebuild_body};

use crate::page::{Page, Pfn, UniformRun, VmId};

/// `count` consecutive contents of a block, from `content` on, placed at as many consecutive pages of a VM.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct ContentRun {
    /// The VM.
    pub vm: VmId,
    /// The first page.
    pub pfn: Pfn,
    /// The first content's index in the block.
    pub content: u32,
    /// Number of pages, at least 1.
    pub count: u32,
}

/// A run of uniform pages of a VM.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct UniformPlacement {
    /// The VM.
    pub vm: VmId,
    /// The run.
    pub run: UniformRun,
}

/// What a block is made of. Small when runs of one VM ascend, and follow the contents' order.
#[derive(Copy, Clone, Debug)]
pub struct BlockParts<'a> {
    /// Where the contents stand; several runs may name the same content.
    pub runs: &'a [ContentRun],
    /// Uniform pages, which need no content.
    pub uniform: &'a [UniformPlacement],
    /// The contents' bytes, by index.
    pub contents: &'a [&'a Page],
}
