//! A set of block ids, such as those that a host has: ids count up from 0, so bits serve best.

use crate::BlockId;
use crate::limits::BLOCKS_MAX;

/// A growing set of block ids below [`BLOCKS_MAX`]; larger ids are never members.
#[derive(Clone, Debug, Default)]
pub struct BlockSet {
    words: Vec<u64>,
}

impl BlockSet {
    /// Puts `id` in; tells whether it is new. Ids of [`BLOCKS_MAX`] and more are not taken.
    pub fn insert(&mut self, BlockId(id): BlockId) -> bool {
        let Some((word, bit)) = place(id) else { return false };
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        let new = self.words[word] & bit == 0;
        self.words[word] |= bit;
        new
    }

    /// Whether `id` is in.
    #[must_use]
    pub fn contains(&self, BlockId(id): BlockId) -> bool {
        place(id).is_some_and(|(word, bit)| self.words.get(word).is_some_and(|w| w & bit != 0))
    }
}

fn place(id: u64) -> Option<(usize, u64)> {
    (id < BLOCKS_MAX).then(|| (usize::try_from(id / 64).expect("below 2^24"), 1 << (id % 64)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_what_was_put_in_and_stays_bounded() {
        let mut set = BlockSet::default();
        for id in [0, 63, 64, 1000].map(BlockId) {
            assert!(!set.contains(id));
            assert!(set.insert(id) && !set.insert(id));
            assert!(set.contains(id));
        }
        assert!(!set.insert(BlockId(u64::MAX)));
        assert!(!set.contains(BlockId(u64::MAX)) && !set.contains(BlockId(1)));
    }
}
