//! 64 bytes of one or more symbols: what the inner loops add and double at once.
//!
//! Plain `u64` arithmetic without branches, which the compiler turns into vector instructions of whatever
//! width the build allows.

/// Bytes of a lane: a cache line.
pub(crate) const LANE: usize = 64;
const WORDS: usize = LANE / 8;

/// 64 elements of GF(2^8), aligned to a cache line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C, align(64))]
pub(crate) struct Lane([u64; WORDS]);

impl Lane {
    pub(crate) const ZERO: Self = Self([0; WORDS]);

    /// Reads up to 64 bytes; a shorter slice, whose length is a multiple of 8, is followed by zeros.
    #[inline(always)]
    pub(crate) fn load(bytes: &[u8]) -> Self {
        let mut lane = Self::ZERO;
        for (word, chunk) in lane.0.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*chunk);
        }
        lane
    }

    /// Writes the first `bytes.len()` bytes, a multiple of 8 and at most 64.
    #[inline(always)]
    pub(crate) fn store(&self, bytes: &mut [u8]) {
        for (word, chunk) in self.0.iter().zip(bytes.as_chunks_mut::<8>().0) {
            *chunk = word.to_le_bytes();
        }
    }

    /// Adds `other`: XOR.
    #[inline(always)]
    pub(crate) fn add(&mut self, other: &Self) {
        for (word, other) in self.0.iter_mut().zip(&other.0) {
            *word ^= other;
        }
    }

    /// The sum.
    #[inline(always)]
    pub(crate) fn plus(mut self, other: &Self) -> Self {
        self.add(other);
        self
    }

    /// Multiplies each element by 2.
    #[inline(always)]
    pub(crate) fn double(&mut self) {
        const LOW_BITS: u64 = 0x0101_0101_0101_0101;
        for word in &mut self.0 {
            let carry = (*word >> 7) & LOW_BITS;
            let shifted = (*word & !(LOW_BITS << 7)) << 1;
            // The carry comes back as 0x1d = 0b11101.
            *word = shifted ^ carry ^ (carry << 2) ^ (carry << 3) ^ (carry << 4);
        }
    }

    /// The element at `index % 64`.
    pub(crate) fn get(&self, index: usize) -> u8 {
        self.0[index / 8 % WORDS].to_le_bytes()[index % 8]
    }
}

/// All sums of a subset of four lanes: entry n adds those whose bit is set in n.
pub(crate) type Sums = [Lane; 16];

/// Fills in all sums of `lanes`.
#[inline(always)]
pub(crate) fn subset_sums([a, b, c, d]: [Lane; 4], sums: &mut Sums) {
    let (ab, cd) = (a.plus(&b), c.plus(&d));
    *sums = [
        Lane::ZERO,
        a,
        b,
        ab,
        c,
        a.plus(&c),
        b.plus(&c),
        ab.plus(&c),
        d,
        a.plus(&d),
        b.plus(&d),
        ab.plus(&d),
        cd,
        a.plus(&cd),
        b.plus(&cd),
        ab.plus(&cd),
    ];
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gf256::mul;

    #[test]
    fn doubles_every_element() {
        for first in [0u8, 64, 128, 192] {
            let bytes: Vec<u8> = (first..=first + 63).collect();
            let mut lane = Lane::load(&bytes);
            lane.double();
            let mut out = [0; LANE];
            lane.store(&mut out);
            for (index, byte) in out.into_iter().enumerate() {
                assert_eq!(byte, mul(2, bytes[index]));
                assert_eq!(byte, lane.get(index));
            }
        }
    }

    #[test]
    fn a_short_slice_is_followed_by_zeros() {
        let lane = Lane::load(&[3; 24]);
        assert_eq!((lane.get(23), lane.get(24), lane.get(63)), (3, 0, 0));
        let mut out = [9; 16];
        lane.store(&mut out[..8]);
        assert_eq!(out, [3, 3, 3, 3, 3, 3, 3, 3, 9, 9, 9, 9, 9, 9, 9, 9]);
    }

    #[test]
    fn sums_of_every_subset() {
        let lanes = [1u8, 2, 4, 8].map(|byte| Lane::load(&[byte; LANE]));
        let mut sums = [Lane::ZERO; 16];
        subset_sums(lanes, &mut sums);
        for (subset, sum) in sums.iter().enumerate() {
            assert_eq!(usize::from(sum.get(17)), subset);
        }
    }
}
