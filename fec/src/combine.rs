//! Linear combinations of symbols over GF(2^8), by XOR alone: encoding and decoding are both this.
//!
//! A row of coefficients is taken apart into its eight bit planes (Blömer et al. 1995 turn each coefficient
//! into a bit matrix; the number of XORs is the same, but symbols stay contiguous bytes, as RFC 6330 has
//! them). From the highest plane down, the result so far is doubled and the inputs whose coefficient has the
//! bit are added. For several rows, inputs are taken in groups of four whose 16 sums are computed once and
//! looked up for each row and plane (the "four Russians"), in columns of 64 bytes so that all of it stays in
//! the first-level cache.

use crate::lane::{LANE, Lane, Sums, subset_sums};

/// Inputs whose sums share a table.
const GROUP: usize = 4;

/// Writes `rows[r] · inputs` to `outputs[r]` for each r. Inputs and outputs are all of one length, a
/// multiple of 8; each row has a coefficient for each input.
pub(crate) fn combine(inputs: &[&[u8]], rows: &[&[u8]], outputs: &mut [&mut [u8]]) {
    let len = outputs.first().map_or(0, |output| output.len());
    debug_assert!(inputs.iter().all(|input| input.len() == len), "symbols have one length");
    debug_assert!(rows.iter().all(|row| row.len() == inputs.len()), "a coefficient for each input");
    debug_assert_eq!(rows.len(), outputs.len(), "a row for each output");
    if direct_is_cheaper(inputs.len(), rows) {
        for (row, output) in rows.iter().zip(outputs) {
            combine_direct(inputs, row, output);
        }
    } else {
        combine_tabled(inputs, rows, outputs);
    }
}

/// Whether adding the inputs one by one beats tables. The weights are measured: a direct addition (the
/// input's lines are not aligned) costs 10 units, a table look-up 6.5, a table of four inputs 270.
fn direct_is_cheaper(inputs: usize, rows: &[&[u8]]) -> bool {
    let groups = inputs.div_ceil(GROUP);
    let additions: usize =
        rows.iter().flat_map(|row| row.iter()).map(|coefficient| coefficient.count_ones() as usize).sum();
    additions * 10 <= groups * (270 + 52 * rows.len())
}

fn combine_direct(inputs: &[&[u8]], row: &[u8], output: &mut [u8]) {
    let planes: [Vec<&[u8]>; 8] = std::array::from_fn(|plane| {
        let bit = 0x80 >> plane;
        inputs
            .iter()
            .zip(row)
            .filter(|&(_, coefficient)| coefficient & bit != 0)
            .map(|(input, _)| *input)
            .collect()
    });
    let planes = planes.split_at(planes.iter().take_while(|plane| plane.is_empty()).count()).1;
    let full = output.len() - output.len() % LANE;
    for start in (0..full).step_by(LANE) {
        direct_column(planes, start, &mut output[start..start + LANE]);
    }
    if full < output.len() {
        direct_column(planes, full, &mut output[full..]);
    }
}

#[inline(always)]
fn direct_column(planes: &[Vec<&[u8]>], start: usize, output: &mut [u8]) {
    let mut sum = Lane::ZERO;
    for plane in planes {
        sum.double();
        for input in plane {
            sum.add(&Lane::load(&input[start..start + output.len()]));
        }
    }
    sum.store(output);
}

fn combine_tabled(inputs: &[&[u8]], rows: &[&[u8]], outputs: &mut [&mut [u8]]) {
    let mut tables = vec![[Lane::ZERO; 16]; inputs.len().div_ceil(GROUP)];
    let lookups = plan_lookups(rows, tables.len());
    let len = outputs.first().map_or(0, |output| output.len());
    let full = len - len % LANE;
    for start in (0..full).step_by(LANE) {
        tabled_column(inputs, &lookups, &mut tables, outputs, start, LANE);
    }
    if full < len {
        tabled_column(inputs, &lookups, &mut tables, outputs, full, len - full);
    }
}

/// For each row, bit plane from the highest down, and group of inputs: which of the group's sums to add.
fn plan_lookups(rows: &[&[u8]], groups: usize) -> Vec<u8> {
    let mut lookups = vec![0; rows.len() * 8 * groups];
    for (row, planes) in rows.iter().zip(lookups.chunks_exact_mut(8 * groups)) {
        let mut words = vec![0u32; groups];
        for (word, group) in words.iter_mut().zip(row.chunks(GROUP)) {
            *word = group.iter().rev().fold(0, |word, &coefficient| word << 8 | u32::from(coefficient));
        }
        for (plane, subsets) in planes.chunks_exact_mut(groups).enumerate() {
            for (subset, word) in subsets.iter_mut().zip(&words) {
                // The plane's bits, at 0, 8, 16 and 24, meet at 24 to 27.
                let bits = (word >> (7 - plane)) & 0x0101_0101;
                let gathered = bits.wrapping_mul(1 << 24 | 1 << 17 | 1 << 10 | 1 << 3);
                *subset = gathered.to_le_bytes()[3] & 0x0f;
            }
        }
    }
    lookups
}

#[inline(always)]
fn tabled_column(
    inputs: &[&[u8]],
    lookups: &[u8],
    tables: &mut [Sums],
    outputs: &mut [&mut [u8]],
    start: usize,
    len: usize,
) {
    for (table, group) in tables.iter_mut().zip(inputs.chunks(GROUP)) {
        let mut lanes = [Lane::ZERO; GROUP];
        for (lane, input) in lanes.iter_mut().zip(group) {
            *lane = Lane::load(&input[start..start + len]);
        }
        subset_sums(lanes, table);
    }
    for (output, planes) in outputs.iter_mut().zip(lookups.chunks_exact(8 * tables.len())) {
        let mut sum = Lane::ZERO;
        for plane in planes.chunks_exact(tables.len()) {
            sum.double();
            for (table, &subset) in tables.iter().zip(plane) {
                sum.add(&table[usize::from(subset % 16)]);
            }
        }
        sum.store(&mut output[start..start + len]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gf256::mul;
    use proptest::prelude::*;

    fn reference(inputs: &[&[u8]], row: &[u8], len: usize) -> Vec<u8> {
        (0..len)
            .map(|at| inputs.iter().zip(row).fold(0, |sum, (input, &c)| sum ^ mul(c, input[at])))
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn both_ways_agree_with_the_definition(
            (inputs, rows) in (1usize..=128, 1usize..6, 1usize..30).prop_flat_map(|(inputs, rows, words)| (
                prop::collection::vec(prop::collection::vec(any::<u8>(), words * 8), inputs),
                prop::collection::vec(prop::collection::vec(any::<u8>(), inputs), rows),
            ))
        ) {
            let inputs: Vec<&[u8]> = inputs.iter().map(Vec::as_slice).collect();
            let rows: Vec<&[u8]> = rows.iter().map(Vec::as_slice).collect();
            let len = inputs[0].len();
            let expected: Vec<Vec<u8>> = rows.iter().map(|row| reference(&inputs, row, len)).collect();
            let mut out = vec![vec![1; len]; rows.len()];
            let mut outputs: Vec<&mut [u8]> = out.iter_mut().map(Vec::as_mut_slice).collect();
            combine_tabled(&inputs, &rows, &mut outputs);
            prop_assert_eq!(&out, &expected);
            let mut out = vec![vec![2; len]; rows.len()];
            for (row, output) in rows.iter().zip(&mut out) {
                combine_direct(&inputs, row, output);
            }
            prop_assert_eq!(&out, &expected);
        }
    }

    #[test]
    fn nothing_to_do_is_no_harm() {
        combine(&[], &[], &mut []);
        let mut out = [5; 8];
        combine(&[], &[&[]], &mut [&mut out]);
        assert_eq!(out, [0; 8]);
    }
}
