//! Consecutive block ids.

use crate::BlockId;
use serde::{Deserialize, Serialize};

/// `count` blocks from `first` on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BlockRange {
    /// First block's id.
    pub first: u64,
    /// Number of blocks, at least 1.
    pub count: u32,
}

impl BlockRange {
    /// The ids in the range.
    pub fn ids(self) -> impl Iterator<Item = BlockId> {
        (self.first..self.first.saturating_add(u64::from(self.count))).map(BlockId)
    }
}

/// Puts single ids into the fewest ranges; `ids` must ascend.
#[must_use]
pub fn ranges(ids: impl IntoIterator<Item = BlockId>) -> Vec<BlockRange> {
    let mut out: Vec<BlockRange> = Vec::new();
    for BlockId(id) in ids {
        match out.last_mut() {
            Some(last) if last.first + u64::from(last.count) == id => last.count += 1,
            _ => out.push(BlockRange { first: id, count: 1 }),
        }
    }
    out
}
