//! The compressors, and what they keep between blocks.

use super::encoding::Encoding;
use super::placements::Ends;
use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe;

/// LZ4 writes at most 255 bytes for one that it reads (a length is a sum of bytes).
const LZ4_EXPANSION_MAX: usize = 255;
/// Buffers kept for reuse.
const SPARE_MAX: usize = 4;

/// Contexts and buffers that are reused from block to block; one for each thread.
#[derive(Default)]
pub struct Scratch {
    compressor: Option<(i8, Compressor<'static>)>,
    decompressor: Option<Decompressor<'static>>,
    spare: Vec<Vec<u8>>,
    pub(super) ends: Ends,
}

impl std::fmt::Debug for Scratch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scratch").finish_non_exhaustive()
    }
}

impl Scratch {
    /// Empty; contexts are made when they are first needed.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Keeps a buffer for reuse: spares the next block's decoding an allocation and the zeroing of it. Give
    /// back what [`decode_block`](super::decode_block) returned, once it has been placed.
    pub fn give_back(&mut self, buffer: Vec<u8>) {
        if self.spare.len() < SPARE_MAX && buffer.capacity() > 0 {
            self.spare.push(buffer);
        }
    }

    /// Bytes of the buffers that are kept, without the compressors' contexts.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.spare.iter().map(Vec::capacity).sum::<usize>() + self.ends.bytes()
    }

    /// A buffer, most often used before, whose length and bytes mean nothing.
    pub(super) fn take(&mut self) -> Vec<u8> {
        self.spare.pop().unwrap_or_default()
    }

    /// Compresses `input` into `out`, whose former bytes are lost; `false`, and nothing useful in `out`, if
    /// that is not smaller.
    pub(super) fn compress(&mut self, encoding: Encoding, input: &[u8], out: &mut Vec<u8>) -> bool {
        if input.is_empty() {
            return false;
        }
        let len = match encoding {
            Encoding::Raw => None,
            Encoding::Lz4 => {
                out.resize(lz4_flex::block::get_maximum_output_size(input.len()), 0);
                lz4_flex::block::compress_into(input, out).ok()
            }
            Encoding::Zstd { level } => {
                out.clear();
                out.reserve(zstd_safe::compress_bound(input.len()));
                self.compressor(level).and_then(|context| context.compress_to_buffer(input, out).ok())
            }
        };
        match len {
            Some(len) if len < input.len() => {
                out.truncate(len);
                true
            }
            _ => false,
        }
    }

    /// `None` if the system has no memory for a context; the block then stays as it is.
    fn compressor(&mut self, level: i8) -> Option<&mut Compressor<'static>> {
        match &mut self.compressor {
            Some((current, _)) if *current == level => {}
            Some((current, context)) => {
                context.set_compression_level(i32::from(level)).ok()?;
                *current = level;
            }
            None => self.compressor = Some((level, Compressor::new(i32::from(level)).ok()?)),
        }
        self.compressor.as_mut().map(|(_, context)| context)
    }

    /// Decompresses `input` to exactly `len` bytes, which the caller has checked against a limit, into `out`,
    /// whose former bytes are lost. `false` if the input is not exactly that.
    pub(super) fn decompress(&mut self, code: u8, input: &[u8], len: usize, out: &mut Vec<u8>) -> bool {
        // What is not smaller is never compressed; that also rules out streams of nothing.
        if input.len() >= len {
            return false;
        }
        match code {
            Encoding::LZ4 => {
                if input.len().checked_mul(LZ4_EXPANSION_MAX).is_some_and(|max| len > max) {
                    return false;
                }
                out.resize(len, 0);
                lz4_flex::block::decompress_into(input, out).is_ok_and(|written| written == len)
            }
            Encoding::ZSTD => {
                // One frame with nothing behind it, that says itself how long it is.
                let whole = zstd_safe::find_frame_compressed_size(input) == Ok(input.len());
                let says = zstd_safe::get_frame_content_size(input).ok().flatten();
                if !whole || says != u64::try_from(len).ok() {
                    return false;
                }
                if self.decompressor.is_none() {
                    self.decompressor = Decompressor::new().ok();
                }
                // Written in one step into room that is there: no window is allocated beside it.
                out.clear();
                out.reserve_exact(len);
                self.decompressor.as_mut().is_some_and(|context| {
                    context.decompress_to_buffer(input, out).is_ok_and(|written| written == len)
                })
            }
            _ => false,
        }
    }
}
