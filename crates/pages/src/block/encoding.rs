//! The open set of encodings.

use super::BlockError;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// How a block's bytes are written. On the wire a byte names the scheme (0 is invalid) and one the level,
/// which decoding does not need.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Encoding {
    /// As they are.
    Raw,
    /// LZ4 block format.
    Lz4,
    /// One zstd frame.
    Zstd {
        /// zstd's compression level, −128 to 22; what lies outside zstd's own range is taken as the nearest.
        level: i8,
    },
}

impl Encoding {
    pub(super) const RAW: u8 = 1;
    pub(super) const LZ4: u8 = 2;
    pub(super) const ZSTD: u8 = 3;

    /// The scheme's byte on the wire.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Raw => Self::RAW,
            Self::Lz4 => Self::LZ4,
            Self::Zstd { .. } => Self::ZSTD,
        }
    }

    pub(super) fn level(self) -> i8 {
        match self {
            Self::Raw | Self::Lz4 => 0,
            Self::Zstd { level } => level,
        }
    }

    pub(super) fn from_wire(code: u8, level: i8) -> Result<Self, BlockError> {
        match (code, level) {
            (Self::RAW, 0) => Ok(Self::Raw),
            (Self::LZ4, 0) => Ok(Self::Lz4),
            (Self::ZSTD, level) => Ok(Self::Zstd { level }),
            (Self::RAW | Self::LZ4, level) => Err(BlockError::StrayLevel { code, level }),
            _ => Err(BlockError::UnknownEncoding { code }),
        }
    }
}

/// As the command line has it: `raw`, `lz4`, `zstd:LEVEL`.
impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Raw => f.write_str("raw"),
            Self::Lz4 => f.write_str("lz4"),
            Self::Zstd { level } => write!(f, "zstd:{level}"),
        }
    }
}

/// Not the name of an encoding.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown encoding {0:?}: one of raw, lz4, zstd, zstd:LEVEL (LEVEL from -128 to 22)")]
pub struct ParseEncodingError(pub String);

impl FromStr for Encoding {
    type Err = ParseEncodingError;

    /// `raw`, `lz4`, `zstd` (level 1) or `zstd:LEVEL`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = || ParseEncodingError(text.to_owned());
        match text.split_once(':') {
            None => match text {
                "raw" => Ok(Self::Raw),
                "lz4" => Ok(Self::Lz4),
                "zstd" => Ok(Self::Zstd { level: 1 }),
                _ => Err(unknown()),
            },
            Some(("zstd", level)) => match level.parse() {
                Ok(level) if level <= 22 => Ok(Self::Zstd { level }),
                _ => Err(unknown()),
            },
            Some(_) => Err(unknown()),
        }
    }
}

impl TryFrom<String> for Encoding {
    type Error = ParseEncodingError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Encoding> for String {
    fn from(encoding: Encoding) -> Self {
        encoding.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for encoding in
            [Encoding::Raw, Encoding::Lz4, Encoding::Zstd { level: -5 }, Encoding::Zstd { level: 22 }]
        {
            assert_eq!(encoding.to_string().parse(), Ok(encoding));
            assert_eq!(Encoding::from_wire(encoding.code(), encoding.level()), Ok(encoding));
        }
        assert_eq!("zstd".parse(), Ok(Encoding::Zstd { level: 1 }));
        for bad in ["", "zst", "zstd:", "zstd:23", "zstd:200", "lz4:1", "RAW"] {
            assert_eq!(bad.parse::<Encoding>(), Err(ParseEncodingError(bad.to_owned())));
        }
    }

    #[test]
    fn unknown_codes_and_stray_levels_are_named() {
        assert_eq!(Encoding::from_wire(0, 0), Err(BlockError::UnknownEncoding { code: 0 }));
        assert_eq!(Encoding::from_wire(4, 3), Err(BlockError::UnknownEncoding { code: 4 }));
        assert_eq!(Encoding::from_wire(2, 3), Err(BlockError::StrayLevel { code: 2, level: 3 }));
    }
}
