//! Numbers of seven bits a byte, least significant first; the highest bit says that more follow (LEB128).

/// Bytes of the longest 32-bit number, and of the longest zigzag difference of two.
pub(super) const LEN_MAX: usize = 5;

/// Appends a number below 2^35.
#[expect(clippy::cast_possible_truncation, reason = "seven bits are cut off at a time")]
pub(super) fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Small differences of either sign as small numbers: 0, −1, 1, −2, … become 0, 1, 2, 3, ….
#[expect(clippy::cast_sign_loss, reason = "the sign is moved into the lowest bit")]
pub(super) fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

/// The inverse of [`zigzag`], for numbers below 2^63.
#[expect(clippy::cast_possible_wrap, reason = "halved, the number fits; the lowest bit is the sign")]
pub(super) fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

/// Reads numbers off a slice.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.rest.is_empty()
    }

    pub(super) fn byte(&mut self) -> Option<u8> {
        let (byte, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*byte)
    }

    pub(super) fn chunk<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (chunk, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(*chunk)
    }

    /// The next number; `None` if it is cut off, longer than [`LEN_MAX`] bytes or written longer than needed.
    pub(super) fn number(&mut self) -> Option<u64> {
        let mut value = 0;
        for at in 0..LEN_MAX {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << (7 * at);
            if byte < 0x80 {
                return (byte != 0 || at == 0).then_some(value);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_round_trip(value in 0u64..1 << 35) {
            let mut bytes = Vec::new();
            put(&mut bytes, value);
            let mut reader = Reader::new(&bytes);
            prop_assert_eq!(reader.number(), Some(value));
            prop_assert!(reader.is_at_end());
        }

        #[test]
        fn differences_round_trip(a: u32, b: u32) {
            let difference = i64::from(a) - i64::from(b);
            prop_assert!(zigzag(difference) < 1 << 35);
            prop_assert_eq!(unzigzag(zigzag(difference)), difference);
        }
    }

    #[test]
    fn other_spellings_are_refused() {
        for bytes in [&[0x80, 0][..], &[0x80], &[], &[0xff, 0xff, 0xff, 0xff, 0xff, 1], &[0xff; 5]] {
            assert_eq!(Reader::new(bytes).number(), None, "{bytes:?}");
        }
    }
}
