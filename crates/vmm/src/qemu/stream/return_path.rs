//! What a destination says to its source, on the same socket (`enum mig_rp_message_type` of `migration/migration.h`).

use super::command::counted;
use super::cursor::{Cursor, name};
use super::error::StreamError;

/// Bytes in front of each message: type and length.
pub const RETURN_HEADER_BYTES: usize = 4;
/// Most bytes of a received bitmap that are taken: a block of 1 TiB.
pub const BITMAP_BYTES_MAX: u64 = 32 << 20;
/// Ends a received bitmap.
pub const BITMAP_END_MARK: u64 = 0x0123_4567_89ab_cdef;
/// Most bytes of a message's data in this protocol: a name, two numbers.
const DATA_BYTES_MAX: usize = 512;

/// A message of the return path.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ReturnMessage {
    /// The destination is done; 0 is success.
    Shut(u32),
    /// The answer to a ping.
    Pong(u32),
    /// A guest waits for these pages.
    RequestPages {
        /// Bytes from the start of the block.
        start: u64,
        /// In bytes.
        len: u32,
        /// `None`: the block of the request before.
        block: Option<String>,
    },
    /// The bitmap of this block follows, outside of the message: see [`received_bitmap`].
    ReceivedBitmap(String),
    /// The destination goes on after a recovered link; 1 is success.
    ResumeAck(u32),
    /// The destination agrees that the source's vCPUs stop.
    SwitchoverAck,
}

impl ReturnMessage {
    /// The message's bytes, header included.
    ///
    /// # Panics
    ///
    /// If a block's name has more than 255 bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let (kind, data): (u16, Vec<u8>) = match self {
            Self::Shut(value) => (1, value.to_be_bytes().to_vec()),
            Self::Pong(value) => (2, value.to_be_bytes().to_vec()),
            Self::RequestPages { start, len, block } => {
                let mut data = start.to_be_bytes().to_vec();
                data.extend(len.to_be_bytes());
                let kind = if block.is_some() { 3 } else { 4 };
                data.extend(block.iter().flat_map(|block| counted(block)));
                (kind, data)
            }
            Self::ReceivedBitmap(block) => (5, counted(block)),
            Self::ResumeAck(value) => (6, value.to_be_bytes().to_vec()),
            Self::SwitchoverAck => (7, Vec::new()),
        };
        let len = u16::try_from(data.len()).expect("at most 268 bytes");
        [&kind.to_be_bytes()[..], &len.to_be_bytes(), &data].concat()
    }

    /// Takes a message off the front of `bytes`: it and how many bytes it was, or `None` if it is not whole yet.
    ///
    /// # Errors
    ///
    /// [`StreamError::Damaged`] for messages that are not known or not well formed; `at` counts from `bytes`' start.
    pub fn decode(bytes: &[u8]) -> Result<Option<(Self, usize)>, StreamError> {
        let mut cursor = Cursor::new(bytes);
        let (Some(kind), Some(len)) = (cursor.u16(), cursor.u16()) else { return Ok(None) };
        let damaged = StreamError::Damaged { what: "return path", at: 0 };
        if usize::from(len) > DATA_BYTES_MAX {
            return Err(damaged);
        }
        let Some(data) = cursor.take(len.into()) else { return Ok(None) };
        let message = Self::body(kind, data).ok_or(damaged)?;
        Ok(Some((message, cursor.at())))
    }

    fn body(kind: u16, data: &[u8]) -> Option<Self> {
        let mut cursor = Cursor::new(data);
        let message = match kind {
            1 => Self::Shut(cursor.u32()?),
            2 => Self::Pong(cursor.u32()?),
            3 | 4 => {
                let (start, len) = (cursor.u64()?, cursor.u32()?);
                start.checked_add(len.into())?;
                let block = if kind == 3 { Some(name(cursor.counted()?)?.to_owned()) } else { None };
                Self::RequestPages { start, len, block }
            }
            5 => Self::ReceivedBitmap(name(cursor.counted()?)?.to_owned()),
            6 => Self::ResumeAck(cursor.u32()?),
            7 => Self::SwitchoverAck,
            _ => return None,
        };
        cursor.rest().is_empty().then_some(message)
    }
}

/// Takes what follows a [`ReturnMessage::ReceivedBitmap`] off the front of `bytes`: a bit for each page of a block of
/// `pages`, lowest first, set for those that the destination has; and how many bytes it was. `None`: not whole yet.
///
/// # Errors
///
/// [`StreamError::Damaged`] for a length or end mark that does not fit.
pub fn received_bitmap(bytes: &[u8], pages: u64) -> Result<Option<(Vec<u64>, usize)>, StreamError> {
    let damaged = StreamError::Damaged { what: "received bitmap", at: 0 };
    let mut cursor = Cursor::new(bytes);
    let Some(len) = cursor.u64() else { return Ok(None) };
    if len > BITMAP_BYTES_MAX || len != pages.div_ceil(64) * 8 {
        return Err(damaged);
    }
    let Some(bitmap) = usize::try_from(len).ok().and_then(|len| cursor.take(len)) else { return Ok(None) };
    match cursor.u64() {
        None => Ok(None),
        Some(BITMAP_END_MARK) => {
            let (words, _) = bitmap.as_chunks();
            Ok(Some((words.iter().map(|word| u64::from_le_bytes(*word)).collect(), cursor.at())))
        }
        Some(_) => Err(damaged),
    }
}
