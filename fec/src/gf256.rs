//! The field GF(2^8) of RFC 6330 §5.7: polynomial x^8 + x^4 + x^3 + x^2 + 1, generator 2.

const EXP: [u8; 510] = tables().0;
const LOG: [u8; 256] = tables().1;

#[expect(
    clippy::cast_possible_truncation,
    reason = "a logarithm is below 255, and a reduced element below 256"
)]
const fn tables() -> ([u8; 510], [u8; 256]) {
    let (mut exp, mut log) = ([0; 510], [0; 256]);
    let mut element = 1u16;
    let mut power = 0;
    while power < 255 {
        exp[power] = element as u8;
        exp[power + 255] = element as u8;
        log[element as usize] = power as u8;
        element <<= 1;
        if element >= 256 {
            element ^= 0x11d;
        }
        power += 1;
    }
    (exp, log)
}

/// Product.
pub(crate) fn mul(a: u8, b: u8) -> u8 {
    if a == 0 || b == 0 {
        return 0;
    }
    EXP[usize::from(LOG[usize::from(a)]) + usize::from(LOG[usize::from(b)])]
}

/// Inverse; that of 0 is 0.
pub(crate) fn inv(a: u8) -> u8 {
    if a == 0 {
        return 0;
    }
    EXP[255 - usize::from(LOG[usize::from(a)])]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Multiplication as polynomials, bit by bit.
    fn slow_mul(mut a: u8, mut b: u8) -> u8 {
        let mut product = 0;
        while b != 0 {
            if b & 1 == 1 {
                product ^= a;
            }
            a = (a << 1) ^ if a & 0x80 == 0 { 0 } else { 0x1d };
            b >>= 1;
        }
        product
    }

    #[test]
    fn tables_agree_with_the_definition() {
        for a in 0..=255 {
            assert_eq!(mul(a, inv(a)), u8::from(a != 0));
            for b in 0..=255 {
                assert_eq!(mul(a, b), slow_mul(a, b));
            }
        }
    }

    /// RFC 6330 §5.7.3 lists OCT_EXP, §5.7.4 OCT_LOG: their first, middle and last entries.
    #[test]
    fn tables_agree_with_rfc_6330() {
        assert_eq!(EXP[..16], [1, 2, 4, 8, 16, 32, 64, 128, 29, 58, 116, 232, 205, 135, 19, 38]);
        assert_eq!(EXP[254..258], [142, 1, 2, 4]);
        assert_eq!(LOG[1..12], [0, 1, 25, 2, 50, 26, 198, 3, 223, 51, 238]);
        assert_eq!(LOG[255], 175);
    }
}
