//! The fixed header of a block body.
//!
//! ```text
//!  0  magic "VSBK"              8  content runs    u32     20  placement bytes, decoded   u32
//!  4  version, 1               12  uniform runs    u32     24  placement bytes, as stored u32
//!  5  encoding of the contents 16  contents        u32     28  content bytes, as stored   u32
//!  6  its level                                            32  end
//!  7  encoding of the placements
//! ```

use super::BlockError;
use super::encoding::Encoding;

const MAGIC: [u8; 4] = *b"VSBK";
const VERSION: u8 = 1;
/// Where the encoding of the contents stands.
pub(super) const ENCODING_AT: usize = 5;

/// Bytes of the header.
pub const HEADER_LEN: usize = 32;

const _: () = assert!(
    HEADER_LEN == size_of_val(&MAGIC) + size_of_val(&VERSION) + 3 * size_of::<u8>() + 6 * size_of::<u32>()
);

/// The header's fields, not checked against limits yet.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Of the contents.
    pub(super) encoding: Encoding,
    /// Of the placements; its level is not written.
    pub(super) placement_code: u8,
    pub(super) runs: u32,
    pub(super) uniform: u32,
    pub(super) contents: u32,
    pub(super) placement_len: u32,
    pub(super) placement_stored: u32,
    pub(super) contents_stored: u32,
}

impl Header {
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[VERSION, self.encoding.code()]);
        out.extend_from_slice(&self.encoding.level().to_le_bytes());
        out.push(self.placement_code);
        let words = [
            self.runs,
            self.uniform,
            self.contents,
            self.placement_len,
            self.placement_stored,
            self.contents_stored,
        ];
        for word in words {
            out.extend_from_slice(&word.to_le_bytes());
        }
    }

    /// The header and what follows it.
    pub(super) fn read(body: &[u8]) -> Result<(Self, &[u8]), BlockError> {
        Self::read_with(body, Encoding::from_wire)
    }

    /// As `read`; `encoding` says what the contents' code and level stand for.
    pub(super) fn read_with(
        body: &[u8],
        encoding: impl Fn(u8, i8) -> Result<Encoding, BlockError>,
    ) -> Result<(Self, &[u8]), BlockError> {
        let short = || BlockError::Truncated { needed: HEADER_LEN as u64, found: body.len() };
        let (bytes, rest) = body.split_first_chunk::<HEADER_LEN>().ok_or_else(short)?;
        if bytes[..4] != MAGIC {
            return Err(BlockError::Magic);
        }
        if bytes[4] != VERSION {
            return Err(BlockError::Version { found: bytes[4] });
        }
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let header = Self {
            encoding: encoding(bytes[5], i8::from_le_bytes([bytes[6]]))?,
            placement_code: Encoding::from_wire(bytes[7], 0)?.code(),
            runs: word(8),
            uniform: word(12),
            contents: word(16),
            placement_len: word(20),
            placement_stored: word(24),
            contents_stored: word(28),
        };
        Ok((header, rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_as_documented() {
        let header = Header {
            encoding: Encoding::Zstd { level: -2 },
            placement_code: Encoding::LZ4,
            runs: 1,
            uniform: 2,
            contents: 3,
            placement_len: 4,
            placement_stored: 5,
            contents_stored: 0x0102_0304,
        };
        let mut bytes = Vec::new();
        header.write(&mut bytes);
        assert_eq!(
            bytes,
            [
                b'V', b'S', b'B', b'K', 1, 3, 254, 2, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0, 5, 0,
                0, 0, 4, 3, 2, 1
            ]
        );
        bytes.push(9);
        assert_eq!(Header::read(&bytes), Ok((header, &[9][..])));
        assert_eq!(Header::read(&bytes[..31]), Err(BlockError::Truncated { needed: 32, found: 31 }));
    }
}
