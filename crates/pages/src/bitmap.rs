//! A fixed number of bits, one for each page of an image: which pages are there, which are missing.

use std::ops::Range;

const BITS: u32 = u64::BITS;

/// Why bytes are not a bitmap of the expected length.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BitmapError {
    /// The number of bytes does not belong to the number of bits.
    #[error("a bitmap of {bits} bits takes {expected} bytes, found {found}")]
    Length {
        /// Bits the bitmap should have.
        bits: u32,
        /// Bytes that such a bitmap takes.
        expected: usize,
        /// Bytes that were found.
        found: usize,
    },
    /// A bit past the end is set.
    #[error("a bit past the end of a bitmap of {bits} bits is set")]
    StrayBit {
        /// Bits the bitmap should have.
        bits: u32,
    },
}

/// A bitmap of fixed length. Setting, clearing and counting take constant time; ranges and searches go a
/// 64-bit word at a time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bitmap {
    words: Vec<u64>,
    len: u32,
    ones: u32,
}

impl Bitmap {
    /// `len` bits, all unset.
    #[must_use]
    pub fn new(len: u32) -> Self {
        Self { words: vec![0; len.div_ceil(BITS) as usize], len, ones: 0 }
    }

    /// Number of bits, set or not.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether the bitmap has no bits at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of bits that are set.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.ones
    }

    /// Number of bits that are not set.
    #[must_use]
    pub fn count_unset(&self) -> u32 {
        self.len - self.ones
    }

    /// Whether each bit is set.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.ones == self.len
    }

    /// Whether bit `index` is set.
    ///
    /// # Panics
    ///
    /// If `index` is not below the length.
    #[must_use]
    pub fn get(&self, index: u32) -> bool {
        assert!(index < self.len, "bit {index} of {}", self.len);
        self.words[(index / BITS) as usize] >> (index % BITS) & 1 == 1
    }

    /// Sets bit `index`; `true` if it was unset before.
    ///
    /// # Panics
    ///
    /// If `index` is not below the length.
    pub fn set(&mut self, index: u32) -> bool {
        let was = self.get(index);
        self.words[(index / BITS) as usize] |= 1 << (index % BITS);
        self.ones += u32::from(!was);
        !was
    }

    /// Unsets bit `index`; `true` if it was set before.
    ///
    /// # Panics
    ///
    /// If `index` is not below the length.
    pub fn unset(&mut self, index: u32) -> bool {
        let was = self.get(index);
        self.words[(index / BITS) as usize] &= !(1 << (index % BITS));
        self.ones -= u32::from(was);
        was
    }

    /// Sets each bit of a range; returns how many of them were unset before.
    ///
    /// # Panics
    ///
    /// If the range ends past the length. An empty or reversed range within the length sets nothing.
    pub fn set_range(&mut self, range: Range<u32>) -> u32 {
        assert!(range.end <= self.len, "range {range:?} of {} bits", self.len);
        let before = self.ones;
        let mut at = range.start;
        while at < range.end {
            let (word, shift) = (&mut self.words[(at / BITS) as usize], at % BITS);
            let bits = (BITS - shift).min(range.end - at);
            let mask = (u64::MAX >> (BITS - bits)) << shift;
            self.ones += (mask & !*word).count_ones();
            *word |= mask;
            at += bits;
        }
        self.ones - before
    }

    /// Sets each bit that is set in `other`.
    ///
    /// # Panics
    ///
    /// If the lengths differ.
    pub fn union_with(&mut self, other: &Self) {
        assert_eq!(self.len, other.len, "bitmaps of different lengths");
        self.ones = 0;
        for (word, more) in self.words.iter_mut().zip(&other.words) {
            *word |= more;
            self.ones += word.count_ones();
        }
    }

    /// The lowest unset bit.
    #[must_use]
    pub fn first_unset(&self) -> Option<u32> {
        self.next(0, false)
    }

    /// The lowest unset bit at or above `from`.
    #[must_use]
    pub fn first_unset_from(&self, from: u32) -> Option<u32> {
        self.next(from, false)
    }

    /// The runs of unset bits, ascending, each as long as possible.
    pub fn iter_unset_ranges(&self) -> impl Iterator<Item = Range<u32>> + '_ {
        self.ranges(false)
    }

    /// The runs of set bits, ascending, each as long as possible.
    pub fn iter_set_ranges(&self) -> impl Iterator<Item = Range<u32>> + '_ {
        self.ranges(true)
    }

    fn ranges(&self, value: bool) -> impl Iterator<Item = Range<u32>> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            let start = self.next(at, value)?;
            at = self.next(start, !value).unwrap_or(self.len);
            Some(start..at)
        })
    }

    /// The lowest bit at or above `from` that has the given value.
    fn next(&self, from: u32, value: bool) -> Option<u32> {
        if from >= self.len {
            return None;
        }
        let invert = if value { 0 } else { u64::MAX };
        let mut base = from - from % BITS;
        let mut word = (self.words[(base / BITS) as usize] ^ invert) & (u64::MAX << (from % BITS));
        while word == 0 {
            if self.len - base <= BITS {
                return None;
            }
            base += BITS;
            word = self.words[(base / BITS) as usize] ^ invert;
        }
        // The bits past the end are unset: a search for unset bits may end among them.
        let offset = word.trailing_zeros();
        (offset < self.len - base).then(|| base + offset)
    }

    /// The bits as bytes, `ceil(len / 8)` of them: bit i is bit `i % 8` of byte `i / 8`; the bits past the
    /// end are 0.
    #[must_use]
    pub fn to_le_bytes(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.truncate(byte_len(self.len));
        bytes
    }

    /// The inverse of [`to_le_bytes`](Self::to_le_bytes).
    ///
    /// # Errors
    ///
    /// If the bytes are not as many as `len` bits take, or a bit past the end is set.
    pub fn from_le_bytes(len: u32, bytes: &[u8]) -> Result<Self, BitmapError> {
        let expected = byte_len(len);
        if bytes.len() != expected {
            return Err(BitmapError::Length { bits: len, expected, found: bytes.len() });
        }
        let words: Vec<u64> = bytes
            .chunks(8)
            .map(|chunk| {
                let mut word = [0; 8];
                word[..chunk.len()].copy_from_slice(chunk);
                u64::from_le_bytes(word)
            })
            .collect();
        let used = len % BITS;
        if used != 0 && words.last().is_some_and(|last| last >> used != 0) {
            return Err(BitmapError::StrayBit { bits: len });
        }
        let ones = words.iter().map(|word| word.count_ones()).sum();
        Ok(Self { words, len, ones })
    }
}

fn byte_len(bits: u32) -> usize {
    bits.div_ceil(8) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn oracle_ranges(bits: &[bool], value: bool) -> Vec<Range<u32>> {
        let mut ranges: Vec<Range<u32>> = Vec::new();
        for (i, _) in (0u32..).zip(bits).filter(|(_, bit)| **bit == value) {
            match ranges.last_mut() {
                Some(last) if last.end == i => last.end += 1,
                _ => ranges.push(i..i + 1),
            }
        }
        ranges
    }

    proptest! {
        #[test]
        fn behaves_like_a_vector_of_bool(
            len in 0u32..300,
            steps in vec((0u32..300, 0u32..300, 0u8..3), 0..40),
            from in 0u32..310,
        ) {
            let mut map = Bitmap::new(len);
            let mut bits = vec![false; len as usize];
            for (a, b, what) in steps {
                let (a, b) = (a.min(b).min(len), a.max(b).min(len));
                match what {
                    0 if a < len => prop_assert_eq!(
                        map.set(a), !std::mem::replace(&mut bits[a as usize], true)),
                    1 if a < len => prop_assert_eq!(
                        map.unset(a), std::mem::replace(&mut bits[a as usize], false)),
                    _ => {
                        let slice = &mut bits[a as usize..b as usize];
                        let fresh = slice.iter().filter(|bit| !**bit).count();
                        slice.fill(true);
                        prop_assert_eq!(map.set_range(a..b) as usize, fresh);
                    }
                }
            }
            let ones = bits.iter().filter(|bit| **bit).count();
            prop_assert_eq!(map.count() as usize, ones);
            prop_assert_eq!(map.count_unset() as usize, bits.len() - ones);
            prop_assert_eq!(map.is_full(), ones == bits.len());
            prop_assert!((0..len).all(|i| map.get(i) == bits[i as usize]));
            prop_assert_eq!(map.iter_unset_ranges().collect::<Vec<_>>(), oracle_ranges(&bits, false));
            prop_assert_eq!(map.iter_set_ranges().collect::<Vec<_>>(), oracle_ranges(&bits, true));
            prop_assert_eq!(map.first_unset(), (0..len).find(|i| !bits[*i as usize]));
            prop_assert_eq!(map.first_unset_from(from), (from..len).find(|i| !bits[*i as usize]));
            let bytes = map.to_le_bytes();
            prop_assert!((0..len as usize).all(|i| (bytes[i / 8] >> (i % 8) & 1 == 1) == bits[i]));
            prop_assert_eq!(Bitmap::from_le_bytes(len, &bytes), Ok(map.clone()));
            let mut union = Bitmap::new(len);
            union.union_with(&map);
            prop_assert_eq!(union, map);
        }

        #[test]
        fn any_bytes_are_refused_or_round_trip(len in 0u32..200, bytes in vec(any::<u8>(), 0..30)) {
            if let Ok(map) = Bitmap::from_le_bytes(len, &bytes) {
                prop_assert_eq!(map.to_le_bytes(), bytes);
            }
        }
    }

    #[test]
    fn bad_bytes_are_named() {
        assert_eq!(
            Bitmap::from_le_bytes(9, &[0]),
            Err(BitmapError::Length { bits: 9, expected: 2, found: 1 })
        );
        assert_eq!(Bitmap::from_le_bytes(9, &[0, 2]), Err(BitmapError::StrayBit { bits: 9 }));
    }

    #[test]
    #[should_panic(expected = "bit 64 of 64")]
    fn bits_past_the_end_are_refused() {
        let _ = Bitmap::new(64).get(64);
    }
}
