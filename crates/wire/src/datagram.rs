//! The data datagram: a fixed 32-byte header, one sealed symbol, a 16-byte tag.
//!
//! ```text
//!  0      2     3       4         8           16        20           24          32        32+T  48+T
//!  | "VS" | ver | scheme | channel | block u64 | ESI u32 | length u32 | counter u64 | symbol | tag |
//! ```
//!
//! All integers are little-endian. The header is the seal's associated data: not secret, not alterable.
//! The symbol size T is what the datagram's length leaves; with the block's length it gives K.

use crate::{BlockId, ChannelId, VERSION, limits};

/// Bytes of the header.
pub const HEADER_BYTES: usize = 32;
/// Bytes of the AES-256-GCM tag.
pub const TAG_BYTES: usize = 16;
/// What a datagram adds to its symbol.
pub const OVERHEAD_BYTES: usize = HEADER_BYTES + TAG_BYTES;

const MAGIC: [u8; 2] = *b"VS";
const _: () = assert!(HEADER_BYTES == 2 + 1 + 1 + 4 + 8 + 4 + 4 + 8);
const _: () = assert!(HEADER_BYTES.is_multiple_of(8));

/// Symbols are numbered in 24 bits (RFC 6330 §3.2).
pub const ESI_MAX: u32 = (1 << 24) - 1;

/// A datagram's header, checked field by field.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// FEC scheme of a repair symbol (a code of the `fec` crate); 0 for a source symbol, which is the same in
    /// every scheme.
    pub scheme: u8,
    /// Channel, whose key seals the symbol.
    pub channel: ChannelId,
    /// Block that the symbol belongs to.
    pub block: BlockId,
    /// Encoding symbol id: below K a source symbol. At most [`ESI_MAX`].
    pub esi: u32,
    /// The block's length in bytes, 1 to [`limits::BLOCK_BYTES_MAX`].
    pub block_len: u32,
    /// Counts the channel's datagrams from 0 and never repeats under one key: the nonce's variable part.
    pub counter: u64,
}

/// A datagram taken apart, not yet opened.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The checked header.
    pub header: Header,
    /// The header's bytes as received: the associated data.
    pub associated: &'a [u8; HEADER_BYTES],
    /// The sealed symbol; its length is the symbol size T.
    pub symbol: &'a [u8],
    /// The seal.
    pub tag: &'a [u8; TAG_BYTES],
}

/// Why a datagram is not one of ours. Counted, never fatal.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DatagramError {
    /// Shorter than header, one aligned symbol and tag, or longer than the largest symbol allows.
    #[error("datagram of {0} bytes")]
    Length(usize),
    /// Not `VS`.
    #[error("not a VMScatter datagram")]
    Magic,
    /// A version that this build does not speak.
    #[error("datagram version {0}")]
    Version(u8),
    /// ESI over 24 bits, or a block length of zero or over the limit.
    #[error("field out of range")]
    Range,
}

impl Header {
    /// Writes the header.
    pub fn write(&self, out: &mut [u8; HEADER_BYTES]) {
        out[0..2].copy_from_slice(&MAGIC);
        out[2] = VERSION;
        out[3] = self.scheme;
        out[4..8].copy_from_slice(&self.channel.0.to_le_bytes());
        out[8..16].copy_from_slice(&self.block.0.to_le_bytes());
        out[16..20].copy_from_slice(&self.esi.to_le_bytes());
        out[20..24].copy_from_slice(&self.block_len.to_le_bytes());
        out[24..32].copy_from_slice(&self.counter.to_le_bytes());
    }

    fn read(bytes: &[u8; HEADER_BYTES]) -> Result<Self, DatagramError> {
        if bytes[0..2] != MAGIC {
            return Err(DatagramError::Magic);
        }
        if bytes[2] != VERSION {
            return Err(DatagramError::Version(bytes[2]));
        }
        let header = Self {
            scheme: bytes[3],
            channel: ChannelId(u32_at(bytes, 4)),
            block: BlockId(u64_at(bytes, 8)),
            esi: u32_at(bytes, 16),
            block_len: u32_at(bytes, 20),
            counter: u64_at(bytes, 24),
        };
        if header.esi > ESI_MAX || header.block_len == 0 || header.block_len > limits::BLOCK_BYTES_MAX {
            return Err(DatagramError::Range);
        }
        Ok(header)
    }
}

/// Takes a datagram apart without opening it.
///
/// # Errors
/// [`DatagramError`] names the first check that failed.
pub fn parse(datagram: &[u8]) -> Result<View<'_>, DatagramError> {
    let length = DatagramError::Length(datagram.len());
    let (associated, rest) = datagram.split_first_chunk::<HEADER_BYTES>().ok_or(length)?;
    let (symbol, tag) = rest.split_last_chunk::<TAG_BYTES>().ok_or(length)?;
    let aligned = !symbol.is_empty() && symbol.len().is_multiple_of(8);
    if !aligned || symbol.len() > usize::from(limits::SYMBOL_BYTES_MAX) {
        return Err(length);
    }
    Ok(View { header: Header::read(associated)?, associated, symbol, tag })
}

fn u32_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u32 {
    let mut field = [0; 4];
    field.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(field)
}

fn u64_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u64 {
    let mut field = [0; 8];
    field.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(field)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> Header {
        Header { scheme: 2, channel: ChannelId(7), block: BlockId(9), esi: 11, block_len: 1000, counter: 13 }
    }

    #[test]
    fn golden_bytes() {
        let mut bytes = [0; HEADER_BYTES];
        header().write(&mut bytes);
        let expected = [
            b'V', b'S', 3, 2, 7, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 11, 0, 0, 0, 0xe8, 3, 0, 0, 13, 0, 0, 0, 0,
            0, 0, 0,
        ];
        assert_eq!(bytes, expected);
    }

    #[test]
    fn each_damaged_field_is_named() {
        let mut datagram = vec![0; OVERHEAD_BYTES + 64];
        let mut bytes = [0; HEADER_BYTES];
        header().write(&mut bytes);
        datagram[..HEADER_BYTES].copy_from_slice(&bytes);
        assert_eq!(parse(&datagram).map(|v| v.header), Ok(header()));
        let damaged = |at: usize, value: u8| {
            let mut copy = datagram.clone();
            copy[at] = value;
            parse(&copy).map(|v| v.header).expect_err("damaged")
        };
        assert_eq!(damaged(0, 0), DatagramError::Magic);
        assert_eq!(damaged(2, 0), DatagramError::Version(0));
        assert_eq!(damaged(19, 1), DatagramError::Range);
        assert_eq!(damaged(23, 0xff), DatagramError::Range);
        for cut in [0, 31, 48, 55, 57] {
            assert_eq!(parse(&datagram[..cut]).map(|v| v.header), Err(DatagramError::Length(cut)));
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(view) = parse(&bytes) {
                let mut again = [0; HEADER_BYTES];
                view.header.write(&mut again);
                prop_assert_eq!(&again, view.associated);
            }
        }
    }
}
