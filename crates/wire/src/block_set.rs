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

    /// The ids of `range` that are in, but not in `other`, ascending: a machine word of them at a time, so that a range
    /// as long as a peer likes costs little.
    pub fn without<'a>(
        &'a self,
        other: &'a Self,
        range: std::ops::Range<u64>,
    ) -> impl Iterator<Item = BlockId> + 'a {
        let end = range.end.min(self.words.len() as u64 * 64);
        let first = usize::try_from(range.start.min(end) / 64).unwrap_or(usize::MAX);
        let last = usize::try_from(end.div_ceil(64)).unwrap_or(usize::MAX);
        (first..last).flat_map(move |at| {
            let mut word = self.words[at] & !other.words.get(at).copied().unwrap_or(0);
            std::iter::from_fn(move || {
                let bit = (word != 0).then(|| u64::from(word.trailing_zeros()))?;
                word &= word - 1;
                Some(at as u64 * 64 + bit)
            })
            .filter(move |id| (range.start..end).contains(id))
            .map(BlockId)
        })
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

    #[test]
    fn lists_what_another_lacks_within_a_range() {
        let (mut set, mut other) = (BlockSet::default(), BlockSet::default());
        for id in [0, 1, 63, 64, 65, 200, 1000] {
            set.insert(BlockId(id));
        }
        for id in [1, 64, 5000] {
            other.insert(BlockId(id));
        }
        let list = |range| set.without(&other, range).map(|id| id.0).collect::<Vec<_>>();
        assert_eq!(list(0..u64::MAX), [0, 63, 65, 200, 1000]);
        assert_eq!(list(1..65), [63]);
        assert_eq!(list(65..201), [65, 200]);
        assert!(
            list(1001..2000).is_empty() && list(7..7).is_empty() && list(u64::MAX - 1..u64::MAX).is_empty()
        );
    }
}
