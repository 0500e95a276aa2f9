//! Reading a block body. Whatever the bytes: no panic, and no more memory than the limits allow.

use super::compress::Scratch;
use super::encoding::Encoding;
use super::header::Header;
use super::placements::{self, Expected, RUN_LEN, UNIFORM_LEN};
use super::{ContentRun, UniformPlacement};
use crate::page::{PAGE_SIZE, Page, VmId};
use std::borrow::Cow;

/// The most that a block may hold. Decoding takes at most `contents_max` pages, 16 bytes for each run and 24
/// for each uniform run beyond the body, and as much again as the placements' varints.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct BlockLimits {
    /// Bytes of the body.
    pub body_bytes_max: usize,
    /// Contents.
    pub contents_max: u32,
    /// Content runs.
    pub runs_max: u32,
    /// Pages that the content runs cover together.
    pub placements_max: u64,
    /// Uniform runs.
    pub uniform_max: u32,
}

impl Default for BlockLimits {
    /// A body of 1 MiB; 4,096 contents (16 MiB); 262,144 content runs over 4 Mi pages; 65,536 uniform runs.
    fn default() -> Self {
        Self {
            body_bytes_max: 1 << 20,
            contents_max: 1 << 12,
            runs_max: 1 << 18,
            placements_max: 1 << 22,
            uniform_max: 1 << 16,
        }
    }
}

/// A part of a block body.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum BlockPart {
    /// The placement section.
    Placements,
    /// The contents.
    Contents,
}

impl std::fmt::Display for BlockPart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Placements => "placements",
            Self::Contents => "contents",
        })
    }
}

/// Why bytes are not a block body within the limits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BlockError {
    /// The body is longer than allowed.
    #[error("a block of {found} bytes, at most {max} are allowed")]
    TooLong {
        /// Bytes found.
        found: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// The body ends before what its header announces.
    #[error("a block of {found} bytes needs {needed}")]
    Truncated {
        /// Bytes that header and sections take.
        needed: u64,
        /// Bytes found.
        found: usize,
    },
    /// Bytes follow the last section.
    #[error("{count} bytes follow a block's end")]
    TrailingBytes {
        /// Number of them.
        count: u64,
    },
    /// Not a block body at all.
    #[error("no block: the magic is missing")]
    Magic,
    /// A version that is not known here.
    #[error("block version {found} is unknown; this is 1")]
    Version {
        /// The version found.
        found: u8,
    },
    /// An encoding that is not known here.
    #[error("block encoding {code} is unknown")]
    UnknownEncoding {
        /// The scheme's byte.
        code: u8,
    },
    /// A level with an encoding that has none.
    #[error("block encoding {code} has no level, found {level}")]
    StrayLevel {
        /// The scheme's byte.
        code: u8,
        /// The level found.
        level: i8,
    },
    /// More contents than allowed.
    #[error("{found} contents in a block, at most {max} are allowed")]
    TooManyContents {
        /// Contents announced.
        found: u32,
        /// Contents allowed.
        max: u32,
    },
    /// More content runs than allowed.
    #[error("{found} content runs in a block, at most {max} are allowed")]
    TooManyRuns {
        /// Runs announced.
        found: u32,
        /// Runs allowed.
        max: u32,
    },
    /// More uniform runs than allowed.
    #[error("{found} uniform runs in a block, at most {max} are allowed")]
    TooManyUniform {
        /// Runs announced.
        found: u32,
        /// Runs allowed.
        max: u32,
    },
    /// The content runs cover more pages than allowed.
    #[error("{found} placements in a block, at most {max} are allowed")]
    TooManyPlacements {
        /// Pages covered.
        found: u64,
        /// Pages allowed.
        max: u64,
    },
    /// A section's length cannot be that of what it is to hold.
    #[error("{part}: {found} bytes cannot be what the block announces")]
    SectionLength {
        /// The section.
        part: BlockPart,
        /// The length found.
        found: u32,
    },
    /// A section does not decompress to exactly what is announced.
    #[error("{part} do not decompress")]
    Decompress {
        /// The section.
        part: BlockPart,
    },
    /// The placement section is not made of the announced runs.
    #[error("the placements are malformed")]
    PlacementSyntax,
    /// A run names contents that are not in the block.
    #[error("content run {run} leaves the block's {contents} contents")]
    RunOutsideContents {
        /// The run's index.
        run: usize,
        /// Contents in the block.
        contents: u32,
    },
    /// A run leaves the range of page numbers.
    #[error("content run {run} leaves the pages of VM {}", vm.0)]
    RunOutsidePages {
        /// The run's index.
        run: usize,
        /// Its VM.
        vm: VmId,
    },
    /// A uniform run leaves the range of page numbers.
    #[error("uniform run {run} leaves the pages of VM {}", vm.0)]
    UniformOutsidePages {
        /// The run's index.
        run: usize,
        /// Its VM.
        vm: VmId,
    },
}

/// A block body, decoded. Each run lies within the contents and within the range of page numbers; whether
/// there is such a VM, and such a page in it, is for the receiver to check.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DecodedBlock<'a> {
    /// Where the contents belong.
    pub runs: Vec<ContentRun>,
    /// Uniform pages.
    pub uniform: Vec<UniformPlacement>,
    /// The contents, [`PAGE_SIZE`] bytes each; borrowed from the body if they are stored as they are.
    pub contents: Cow<'a, [u8]>,
    /// How the contents were stored.
    pub encoding: Encoding,
}

impl DecodedBlock<'_> {
    /// The contents, page by page; a run's are `pages()[run.content..][..run.count]`.
    #[must_use]
    pub fn pages(&self) -> &[Page] {
        self.contents.as_chunks().0
    }

    /// Gives the buffers back for the next block.
    pub fn recycle(self, scratch: &mut Scratch) {
        if let Cow::Owned(buffer) = self.contents {
            scratch.give_back(buffer);
        }
    }
}

/// Reads a block body. Deterministic, and as bounded in memory as `limits` says: lengths are checked before
/// anything is allocated, and a section that decompresses to another length is refused.
///
/// # Errors
///
/// A [`BlockError`] that names the first thing that is wrong.
pub fn decode_block<'a>(
    body: &'a [u8],
    limits: &BlockLimits,
    scratch: &mut Scratch,
) -> Result<DecodedBlock<'a>, BlockError> {
    if body.len() > limits.body_bytes_max {
        return Err(BlockError::TooLong { found: body.len(), max: limits.body_bytes_max });
    }
    let (header, rest) = Header::read(body)?;
    check_counts(&header, limits)?;
    let (placements, contents) = sections(&header, body.len(), rest)?;

    let (runs, uniform) = decode_placements(&header, placements, limits, scratch)?;

    let contents_len = header.contents as usize * PAGE_SIZE;
    let contents = if header.encoding == Encoding::Raw {
        if contents.len() != contents_len {
            let found = header.contents_stored;
            return Err(BlockError::SectionLength { part: BlockPart::Contents, found });
        }
        Cow::Borrowed(contents)
    } else {
        let mut buffer = scratch.take();
        if !scratch.decompress(header.encoding.code(), contents, contents_len, &mut buffer) {
            scratch.give_back(buffer);
            return Err(BlockError::Decompress { part: BlockPart::Contents });
        }
        Cow::Owned(buffer)
    };
    Ok(DecodedBlock { runs, uniform, contents, encoding: header.encoding })
}

pub(super) fn check_counts(header: &Header, limits: &BlockLimits) -> Result<(), BlockError> {
    if header.contents > limits.contents_max {
        return Err(BlockError::TooManyContents { found: header.contents, max: limits.contents_max });
    }
    if header.runs > limits.runs_max {
        return Err(BlockError::TooManyRuns { found: header.runs, max: limits.runs_max });
    }
    if header.uniform > limits.uniform_max {
        return Err(BlockError::TooManyUniform { found: header.uniform, max: limits.uniform_max });
    }
    let bound = |run: usize, uniform: usize| {
        u64::from(header.runs) * run as u64 + u64::from(header.uniform) * uniform as u64
    };
    let possible = bound(RUN_LEN.0, UNIFORM_LEN.0)..=bound(RUN_LEN.1, UNIFORM_LEN.1);
    if !possible.contains(&u64::from(header.placement_len)) {
        let found = header.placement_len;
        return Err(BlockError::SectionLength { part: BlockPart::Placements, found });
    }
    Ok(())
}

/// The two sections as stored; together with the header they must make up the whole body.
pub(super) fn sections<'a>(
    header: &Header,
    body_len: usize,
    rest: &'a [u8],
) -> Result<(&'a [u8], &'a [u8]), BlockError> {
    let header_len = (body_len - rest.len()) as u64;
    let needed = header_len + u64::from(header.placement_stored) + u64::from(header.contents_stored);
    match needed.cmp(&(body_len as u64)) {
        std::cmp::Ordering::Greater => Err(BlockError::Truncated { needed, found: body_len }),
        std::cmp::Ordering::Less => Err(BlockError::TrailingBytes { count: body_len as u64 - needed }),
        std::cmp::Ordering::Equal => Ok(rest.split_at(header.placement_stored as usize)),
    }
}

pub(super) fn decode_placements(
    header: &Header,
    stored: &[u8],
    limits: &BlockLimits,
    scratch: &mut Scratch,
) -> Result<(Vec<ContentRun>, Vec<UniformPlacement>), BlockError> {
    let part = BlockPart::Placements;
    let expected = Expected { runs: header.runs, uniform: header.uniform, contents: header.contents };
    let mut ends = std::mem::take(&mut scratch.ends);
    let result = if header.placement_code == Encoding::RAW {
        if header.placement_len == header.placement_stored {
            placements::read(stored, &expected, limits, &mut ends)
        } else {
            Err(BlockError::SectionLength { part, found: header.placement_stored })
        }
    } else {
        let mut plain = scratch.take();
        let len = header.placement_len as usize;
        let result = if scratch.decompress(header.placement_code, stored, len, &mut plain) {
            placements::read(&plain, &expected, limits, &mut ends)
        } else {
            Err(BlockError::Decompress { part })
        };
        scratch.give_back(plain);
        result
    };
    scratch.ends = ends;
    result
}
