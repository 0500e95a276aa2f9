//! Symbols lost on the way to hosts, block by block.

use crate::predict::power;
use crate::rng::Rng;

/// Blocks of a unit whose losses are drawn; the unit's other blocks are taken to fare like these.
pub(super) const SAMPLED_BLOCKS: u64 = 4;

/// Symbols that a host still lacks of each sampled block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Deficit {
    pub(super) host: u16,
    pub(super) lacking: Vec<u64>,
}

/// So many of `symbols` are lost, each with a chance of `ppm` millionths: inversion of the binomial distribution, with
/// no function that differs between machines.
pub(super) fn lost(rng: &mut Rng, symbols: u64, ppm: u32) -> u64 {
    if ppm == 0 || symbols == 0 {
        return 0;
    }
    let chance = f64::from(ppm) / 1e6;
    let odds = chance / (1.0 - chance);
    let mut left = uniform(rng);
    // Blocks have at most 128 symbols and chances are at most a half: this does not underflow.
    let mut probability = power(1.0 - chance, symbols);
    let mut count = 0;
    while left >= probability && count < symbols {
        left -= probability;
        probability *= odds * (symbols - count) as f64 / (count + 1) as f64;
        count += 1;
    }
    count
}

/// From 0 to below 1.
fn uniform(rng: &mut Rng) -> f64 {
    (rng.next() >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_binomial() {
        let mut rng = Rng::new(1);
        for (symbols, ppm) in [(128u64, 10_000u32), (128, 500_000), (7, 200_000), (128, 100)] {
            const DRAWS: u32 = 20_000;
            let draws: Vec<f64> = (0..DRAWS).map(|_| lost(&mut rng, symbols, ppm) as f64).collect();
            let mean = draws.iter().sum::<f64>() / f64::from(DRAWS);
            let variance = draws.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / f64::from(DRAWS);
            let chance = f64::from(ppm) / 1e6;
            let expected = symbols as f64 * chance;
            assert!((mean - expected).abs() < 0.05 * expected + 0.01, "{symbols} {ppm}: mean {mean}");
            let spread = expected * (1.0 - chance);
            assert!((variance - spread).abs() < 0.1 * spread + 0.01, "{symbols} {ppm}: variance {variance}");
        }
        assert_eq!(lost(&mut rng, 0, 1), 0);
    }
}
