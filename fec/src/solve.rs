//! Which linear combinations of what is held give the missing source symbols.
//!
//! Gauss–Jordan elimination over GF(2^8). Rows are stored in lanes, and for each pivot the sums of its
//! multiples by 1, 2, 4, … are tabled, so that eliminating a row is two look-ups a lane.

use crate::gf256::{inv, mul};
use crate::lane::{LANE, Lane, Sums, subset_sums};
use crate::rows::Row;

/// How to compute the missing symbols.
pub(crate) struct Solution {
    /// The repair symbols used, as many as are missing: positions in the list given, ascending.
    pub(crate) used: Vec<usize>,
    /// For each missing symbol, in order: coefficients for the source symbols held, in order, then for
    /// `used`.
    pub(crate) coefficients: Vec<Vec<u8>>,
}

/// Solves for the source symbols whose bit is set in `missing`; the `symbols` source symbols are given by the
/// others and by repair symbols with these `rows`.
///
/// If the rows do not suffice: the positions of as many rows as are independent, ascending.
pub(crate) fn solve(symbols: usize, missing: u128, rows: &[Row]) -> Result<Solution, Vec<usize>> {
    let mut matrix = Matrix::new(symbols, rows);
    let missing_symbols = || (0..symbols).filter(|&symbol| missing >> symbol & 1 == 1);
    let mut pivots = Vec::with_capacity(rows.len());
    for column in missing_symbols() {
        let pivot = (0..rows.len()).find(|row| !pivots.contains(row) && matrix.get(*row, column) != 0);
        if let Some(pivot) = pivot {
            matrix.eliminate(pivot, column);
            pivots.push(pivot);
        }
    }
    let mut used = pivots.clone();
    used.sort_unstable();
    if pivots.len() < missing_symbols().count() {
        return Err(used);
    }
    let held: Vec<usize> = (0..symbols).filter(|&symbol| missing >> symbol & 1 == 0).collect();
    let coefficients = missing_symbols().zip(&pivots).map(|(column, &pivot)| {
        let scale = inv(matrix.get(pivot, column));
        let sources = held.iter().map(|&symbol| matrix.get(pivot, symbol));
        let repairs = used.iter().map(|&row| matrix.get(pivot, matrix.identity + row));
        sources.chain(repairs).map(|element| mul(scale, element)).collect()
    });
    Ok(Solution { coefficients: coefficients.collect(), used })
}

/// Rows of coefficients, beside the unit matrix.
struct Matrix {
    lanes: Vec<Lane>,
    /// Lanes in a row.
    stride: usize,
    /// Column where the unit matrix begins.
    identity: usize,
}

impl Matrix {
    fn new(symbols: usize, rows: &[Row]) -> Self {
        let coefficient_lanes = symbols.div_ceil(LANE);
        let stride = coefficient_lanes + rows.len().div_ceil(LANE);
        let mut lanes = vec![Lane::ZERO; stride * rows.len()];
        for (index, (row, out)) in rows.iter().zip(lanes.chunks_exact_mut(stride)).enumerate() {
            for (lane, bytes) in out.iter_mut().zip(row.chunks_exact(LANE)).take(coefficient_lanes) {
                *lane = Lane::load(bytes);
            }
            let mut unit = [0; LANE];
            unit[index % LANE] = 1;
            out[coefficient_lanes + index / LANE] = Lane::load(&unit);
        }
        Self { lanes, stride, identity: coefficient_lanes * LANE }
    }

    fn get(&self, row: usize, column: usize) -> u8 {
        self.lanes[row * self.stride + column / LANE].get(column % LANE)
    }

    /// Makes the column zero in all rows but the pivot's, which is not zero there.
    fn eliminate(&mut self, pivot: usize, column: usize) {
        let start = pivot * self.stride;
        let tables: Vec<[Sums; 2]> = self.lanes[start..start + self.stride].iter().map(multiples).collect();
        let scale = inv(self.get(pivot, column));
        for (index, row) in self.lanes.chunks_exact_mut(self.stride).enumerate() {
            let factor = usize::from(mul(scale, row[column / LANE].get(column % LANE)));
            if index == pivot || factor == 0 {
                continue;
            }
            for (lane, [low, high]) in row.iter_mut().zip(&tables) {
                lane.add(&low[factor % 16]);
                lane.add(&high[factor / 16]);
            }
        }
    }
}

/// The lane's multiples by n and by 16 n, for n below 16.
fn multiples(lane: &Lane) -> [Sums; 2] {
    let mut next = *lane;
    std::array::from_fn(|_| {
        let powers = std::array::from_fn(|_| {
            let power = next;
            next.double();
            power
        });
        let mut sums = [Lane::ZERO; 16];
        subset_sums(powers, &mut sums);
        sums
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(symbols: usize, missing: u128, rows: &[Row]) {
        match solve(symbols, missing, rows) {
            Ok(solution) => {
                // The combination of held unit vectors and used rows must be the missing unit vector.
                let held: Vec<usize> = (0..symbols).filter(|&symbol| missing >> symbol & 1 == 0).collect();
                let columns = (0..symbols).filter(|&symbol| missing >> symbol & 1 == 1);
                for (column, coefficients) in columns.zip(&solution.coefficients) {
                    let (sources, repairs) = coefficients.split_at(held.len());
                    let sums = (0..symbols).map(|at| {
                        let source =
                            held.iter().position(|&symbol| symbol == at).map_or(0, |index| sources[index]);
                        let used = solution.used.iter().zip(repairs);
                        used.fold(source, |sum, (&row, &c)| sum ^ mul(c, rows[row][at]))
                    });
                    let unit = (0..symbols).map(|at| u8::from(at == column));
                    assert!(sums.eq(unit));
                }
            }
            Err(independent) => {
                // Kept rows alone have the same rank, which is too low.
                let kept: Vec<Row> = independent.iter().map(|&row| rows[row]).collect();
                assert_eq!(solve(symbols, missing, &kept).err().map(|rows| rows.len()), Some(kept.len()));
                assert!(kept.len() < missing.count_ones() as usize);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn solves_or_names_independent_rows(
            symbols in 1usize..=128,
            missing: u128,
            seed in prop::collection::vec(any::<u8>(), 1..300),
            count in 0usize..12,
            copies in any::<bool>(),
        ) {
            let missing = missing & (u128::MAX >> (128 - symbols));
            let missing = if missing.count_ones() > 14 { missing & 0x1111 } else { missing };
            let rows: Vec<Row> = (0..count)
                .map(|row| std::array::from_fn(|at| {
                    let row = if copies { row / 2 } else { row };
                    if at < symbols { seed[(row * 131 + at * 7) % seed.len()].wrapping_mul(row as u8 + 3) } else { 0 }
                }))
                .collect();
            check(symbols, missing, &rows);
        }
    }
}
