//! A position in the file, from which big-endian fields are read.

use super::error::MappedRamError as Error;

pub(super) struct Cursor<'a> {
    file: &'a [u8],
    /// At most `file.len()`.
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(file: &'a [u8]) -> Self {
        Self { file, at: 0 }
    }

    pub(super) fn at(&self) -> u64 {
        self.at as u64
    }

    /// Bytes in the file.
    pub(super) fn len(&self) -> u64 {
        self.file.len() as u64
    }

    /// What is not read yet.
    pub(super) fn rest(&self) -> &'a [u8] {
        &self.file[self.at..]
    }

    pub(super) fn peek(&self) -> Option<u8> {
        self.file.get(self.at).copied()
    }

    /// Goes on at `offset`, which the caller has checked to be within the file or at its end.
    pub(super) fn seek(&mut self, offset: u64) {
        let offset = usize::try_from(offset).expect("an offset within the file");
        assert!(offset <= self.file.len(), "an offset within the file");
        self.at = offset;
    }

    /// The next `len` bytes.
    pub(super) fn take(&mut self, len: u64, what: &'static str) -> Result<&'a [u8], Error> {
        let rest = self.rest();
        match usize::try_from(len).ok().and_then(|len| rest.get(..len)) {
            Some(bytes) => {
                self.at += bytes.len();
                Ok(bytes)
            }
            None => Err(Error::Truncated { what, at: self.at() }),
        }
    }

    pub(super) fn skip(&mut self, len: u64, what: &'static str) -> Result<(), Error> {
        self.take(len, what).map(|_| ())
    }

    /// One byte of length, then so many bytes.
    pub(super) fn counted(&mut self, what: &'static str) -> Result<&'a [u8], Error> {
        let len = self.u8(what)?;
        self.take(u64::from(len), what)
    }

    pub(super) fn u8(&mut self, what: &'static str) -> Result<u8, Error> {
        self.array(what).map(|[byte]| byte)
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, Error> {
        self.array(what).map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self, what: &'static str) -> Result<u64, Error> {
        self.array(what).map(u64::from_be_bytes)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Error> {
        let truncated = Error::Truncated { what, at: self.at() };
        let (bytes, _) = self.rest().split_first_chunk().ok_or(truncated)?;
        self.at += N;
        Ok(*bytes)
    }
}
