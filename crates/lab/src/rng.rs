//! A small generator whose stream is part of this crate's contract.
//!
//! Failing seeds are written down and replayed, and generated images are compared between versions, so the
//! stream must not change with a dependency's version: hence SplitMix64 (Steele, Lea and Flood, "Fast splittable
//! pseudorandom number generators", OOPSLA 2014) rather than `rand`'s generators, which promise no stability.

/// SplitMix64. Not for secrets.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

const GOLDEN_GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finaliser of SplitMix64: a bijection that mixes every input bit into every output bit.
pub(crate) const fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

impl Rng {
    /// The stream that belongs to `parts` under `seed`; different parts give unrelated streams.
    pub(crate) fn of(seed: u64, parts: &[u64]) -> Self {
        Self(parts.iter().fold(mix(seed ^ GOLDEN_GAMMA), |state, part| {
            mix(state.wrapping_add(GOLDEN_GAMMA) ^ mix(part.wrapping_add(GOLDEN_GAMMA)))
        }))
    }

    pub(crate) const fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN_GAMMA);
        mix(self.0)
    }

    /// A generator of its own; advances this one by one step whatever the other is used for.
    pub(crate) const fn fork(&mut self) -> Self {
        Self(self.next_u64())
    }

    /// Uniform in `0..bound`, by multiplication (bias below 2⁻³²  for bounds below 2³²); 0 if `bound` is 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        let wide = u128::from(self.next_u64()) * u128::from(bound);
        u64::try_from(wide >> 64).expect("the upper half of a 128-bit product fits 64 bits")
    }

    /// As [`Self::below`], for indices.
    pub(crate) fn index(&mut self, bound: usize) -> usize {
        usize::try_from(self.below(bound as u64)).expect("below a usize")
    }

    /// True with the chance `ppm` / 1,000,000.
    pub(crate) fn chance_ppm(&mut self, ppm: u32) -> bool {
        self.below(1_000_000) < u64::from(ppm)
    }

    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.index(last + 1));
        }
    }

    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let word = self.next_u64().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The reference implementation's first outputs for seed 1234567 (prng.di.unimi.it, splitmix64.c).
    #[test]
    fn the_stream_is_splitmix64() {
        let mut rng = Rng(1_234_567);
        let first: Vec<u64> = (0..3).map(|_| rng.next_u64()).collect();
        assert_eq!(first, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn chances_and_bounds_hold() {
        let mut rng = Rng::of(7, &[1, 2]);
        let hits = (0..100_000).filter(|_| rng.chance_ppm(50_000)).count();
        assert!((4_700..5_300).contains(&hits), "5 % of 100,000 gave {hits}");
        assert!((0..1_000).all(|_| rng.below(3) < 3));
        assert!(!rng.chance_ppm(0) && rng.chance_ppm(1_000_000));
        assert_eq!(rng.below(0), 0);
    }

    #[test]
    fn streams_of_different_parts_differ() {
        assert_ne!(Rng::of(1, &[2, 3]).next_u64(), Rng::of(1, &[3, 2]).next_u64());
        assert_ne!(Rng::of(1, &[2]).next_u64(), Rng::of(2, &[2]).next_u64());
    }
}
