//! How a block divides into symbols, and what their numbers may be.

use std::ops::RangeInclusive;

/// Most source symbols in a block: the largest K.
pub const SYMBOLS_MAX: u32 = 128;
/// Number of Cauchy repair symbols: their ESIs are K to K + 127.
pub const CAUCHY_REPAIR_SYMBOLS: u32 = 128;
/// Largest ESI of a RaptorQ symbol: ESIs have 24 bits (RFC 6330 §3.2).
pub const RAPTORQ_ESI_MAX: u32 = (1 << 24) - 1;
/// Symbol sizes are multiples of this many bytes.
const ALIGNMENT: u16 = 8;

/// The code that a repair symbol belongs to. Source symbols are the same in every scheme.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Scheme {
    /// RFC 6330: rateless.
    RaptorQ = 1,
    /// Cauchy Reed–Solomon over GF(2^8): any K symbols decode.
    Cauchy = 2,
}

impl Scheme {
    /// The scheme's number on the wire; never 0.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The scheme with this number on the wire.
    #[must_use]
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::RaptorQ),
            2 => Some(Self::Cauchy),
            _ => None,
        }
    }
}

impl TryFrom<u8> for Scheme {
    type Error = FecError;

    fn try_from(code: u8) -> Result<Self, FecError> {
        Self::from_code(code).ok_or(FecError::Scheme(code))
    }
}

/// Why a block cannot be divided so.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ShapeError {
    /// A block has at least one byte.
    #[error("block is empty")]
    Empty,
    /// The symbol size is zero or no multiple of 8.
    #[error("symbol size of {0} bytes is not a positive multiple of 8")]
    SymbolSize(u16),
    /// More than [`SYMBOLS_MAX`] source symbols.
    #[error("block of {len} bytes needs more than {SYMBOLS_MAX} symbols of {symbol_size} bytes")]
    TooManySymbols {
        /// The block's length in bytes.
        len: u32,
        /// The symbol size in bytes.
        symbol_size: u16,
    },
}

/// Why a symbol or block is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FecError {
    /// No scheme has this number.
    #[error("unknown FEC scheme {0}")]
    Scheme(u8),
    /// The bytes are not as many as the shape says.
    #[error("{got} bytes where the block's shape has {expected}")]
    Length {
        /// Bytes given.
        got: usize,
        /// Bytes of a symbol, or of the block.
        expected: usize,
    },
    /// The symbol's number is not one of the scheme's for this block.
    #[error("ESI {esi} is outside {first}..={last}")]
    Esi {
        /// The number given.
        esi: u32,
        /// First allowed.
        first: u32,
        /// Last allowed.
        last: u32,
    },
}

/// A block's length and symbol size, checked. `K = ceil(len / symbol_size)` is in 1..=[`SYMBOLS_MAX`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub struct BlockShape {
    /// Bytes of the block, at least 1.
    pub len: u32,
    /// Bytes of a symbol (T), a positive multiple of 8. The last source symbol is padded with zeros.
    pub symbol_size: u16,
}

impl BlockShape {
    /// The shape of a block of `len` bytes in symbols of `symbol_size` bytes.
    ///
    /// # Errors
    /// [`ShapeError`] names the condition that does not hold.
    pub const fn new(len: u32, symbol_size: u16) -> Result<Self, ShapeError> {
        if len == 0 {
            return Err(ShapeError::Empty);
        }
        if symbol_size == 0 || !symbol_size.is_multiple_of(ALIGNMENT) {
            return Err(ShapeError::SymbolSize(symbol_size));
        }
        if len.div_ceil(symbol_size as u32) > SYMBOLS_MAX {
            return Err(ShapeError::TooManySymbols { len, symbol_size });
        }
        Ok(Self { len, symbol_size })
    }

    /// The shape with the fewest symbols of at most `symbol_size_max` bytes, all as small as the alignment
    /// allows: the last symbol's padding is least.
    ///
    /// # Errors
    /// [`ShapeError::SymbolSize`] if not even 8 bytes are allowed; otherwise as [`BlockShape::new`].
    pub fn for_len(len: u32, symbol_size_max: u16) -> Result<Self, ShapeError> {
        let max = symbol_size_max - symbol_size_max % ALIGNMENT;
        if max == 0 {
            return Err(ShapeError::SymbolSize(symbol_size_max));
        }
        let symbols = len.div_ceil(u32::from(max)).max(1);
        let size = len.div_ceil(symbols).next_multiple_of(u32::from(ALIGNMENT));
        // Not above `max`, a multiple of the alignment that is no less than len / symbols.
        Self::new(len, u16::try_from(size).unwrap_or(max))
    }

    /// K: the number of source symbols, 1 to [`SYMBOLS_MAX`].
    #[must_use]
    pub const fn symbols(&self) -> u32 {
        self.len.div_ceil(self.symbol_size as u32)
    }

    /// T as a length.
    #[must_use]
    pub const fn symbol_len(&self) -> usize {
        self.symbol_size as usize
    }

    /// K × T: the block's length with its padding.
    #[must_use]
    pub const fn padded_len(&self) -> usize {
        self.count() * self.symbol_len()
    }

    /// One bit for each source symbol.
    #[must_use]
    pub const fn all_symbols(&self) -> u128 {
        u128::MAX >> (SYMBOLS_MAX - self.symbols())
    }

    pub(crate) const fn count(&self) -> usize {
        self.symbols() as usize
    }

    /// ESIs of the scheme's repair symbols.
    #[must_use]
    pub const fn repair_esis(&self, scheme: Scheme) -> RangeInclusive<u32> {
        let first = self.symbols();
        match scheme {
            Scheme::RaptorQ => first..=RAPTORQ_ESI_MAX,
            Scheme::Cauchy => first..=first + CAUCHY_REPAIR_SYMBOLS - 1,
        }
    }

    pub(crate) fn check_repair_esi(&self, scheme: Scheme, esi: u32) -> Result<(), FecError> {
        let esis = self.repair_esis(scheme);
        if esis.contains(&esi) {
            return Ok(());
        }
        Err(FecError::Esi { esi, first: *esis.start(), last: *esis.end() })
    }

    pub(crate) fn check_symbol_len(&self, got: usize) -> Result<(), FecError> {
        if got == self.symbol_len() {
            return Ok(());
        }
        Err(FecError::Length { got, expected: self.symbol_len() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn refuses_what_cannot_be() {
        assert_eq!(BlockShape::new(0, 8), Err(ShapeError::Empty));
        assert_eq!(BlockShape::new(1, 0), Err(ShapeError::SymbolSize(0)));
        assert_eq!(BlockShape::new(1, 12), Err(ShapeError::SymbolSize(12)));
        assert_eq!(BlockShape::new(1025, 8), Err(ShapeError::TooManySymbols { len: 1025, symbol_size: 8 }));
        assert_eq!(BlockShape::for_len(9, 7), Err(ShapeError::SymbolSize(7)));
        assert_eq!(BlockShape::for_len(0, 64), Err(ShapeError::Empty));
        assert!(BlockShape::for_len(u32::MAX, u16::MAX).is_err());
        assert_eq!(Scheme::from_code(0), None);
        assert_eq!(Scheme::try_from(3), Err(FecError::Scheme(3)));
        for scheme in [Scheme::RaptorQ, Scheme::Cauchy] {
            assert_eq!(Scheme::from_code(scheme.code()), Some(scheme));
        }
    }

    #[test]
    fn bits_match_symbols() {
        assert_eq!(BlockShape::new(1024, 8).unwrap().all_symbols(), u128::MAX);
        assert_eq!(BlockShape::new(17, 8).unwrap().all_symbols(), 0b111);
    }

    proptest! {
        #[test]
        fn equal_symbols_with_least_padding(len in 1u32..=1 << 20, max in 8u16..=9000) {
            let Ok(shape) = BlockShape::for_len(len, max) else {
                let largest = u32::from(max - max % 8) * SYMBOLS_MAX;
                prop_assert!(len > largest);
                return Ok(());
            };
            prop_assert!(shape.symbol_size <= max);
            prop_assert_eq!(shape, BlockShape::new(len, shape.symbol_size).unwrap());
            // Less than one alignment step of padding in each symbol on average.
            prop_assert!(shape.padded_len() - len as usize <= 8 * shape.count());
        }
    }
}
