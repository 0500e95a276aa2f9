//! Coefficients of repair symbols over the source symbols.

use crate::gf256::{inv, mul};
use crate::raptor;
use crate::shape::{BlockShape, SYMBOLS_MAX, Scheme};

/// A row of coefficients for every possible source symbol.
pub(crate) type Row = [u8; SYMBOLS_MAX as usize];

/// The coefficients of repair symbol `esi`, which the shape allows; zeros from K on.
pub(crate) fn row(shape: &BlockShape, scheme: Scheme, esi: u32) -> Row {
    let mut row = [0; SYMBOLS_MAX as usize];
    let used = &mut row[..shape.count()];
    match scheme {
        Scheme::RaptorQ => raptor::coefficients(shape, esi, used),
        Scheme::Cauchy => {
            let index = u8::try_from(esi - shape.symbols()).expect("the shape allows 128 Cauchy symbols");
            for (column, coefficient) in (0..).zip(used) {
                *coefficient = cauchy(index, column);
            }
        }
    }
    row
}

/// The coefficient of Cauchy repair symbol K + `index` for source symbol `column`, both below 128.
///
/// A Cauchy matrix 1 / (x + y) has x = 128 + index and y = column, so that all of the field is used and no K
/// matters. Each column is scaled so that the first row is all ones: it is a plain parity, the cheapest
/// repair of one loss. Scaling a column by a non-zero element keeps every square submatrix regular.
fn cauchy(index: u8, column: u8) -> u8 {
    mul(128 ^ column, inv((128 + index) ^ column))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_row_is_parity_and_no_coefficient_is_zero() {
        for column in 0..128 {
            assert_eq!(cauchy(0, column), 1);
            for index in 0..128 {
                assert_ne!(cauchy(index, column), 0);
            }
        }
    }

    /// With no zero element, all 1 × 1 submatrices are regular; here all 2 × 2.
    #[test]
    fn every_two_losses_can_be_repaired_by_every_two_rows() {
        for (low, high) in (0..128).flat_map(|high| (0..high).map(move |low| (low, high))) {
            for (left, right) in (0..128).flat_map(|right| (0..right).map(move |left| (left, right))) {
                let one = mul(cauchy(low, left), cauchy(high, right));
                assert_ne!(one, mul(cauchy(low, right), cauchy(high, left)));
            }
        }
    }
}
