//! Sets of small ids: the VMs that hold a content, the hosts that need it.

use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::hash::{Hash, Hasher};

/// Ids that fit without an allocation; chosen so that an [`IdSet`] is as large as a `Vec`.
const INLINE_MAX: usize = 7;

/// An ordered set of small ids (VMs or hosts), comparable, hashable and compact: up to seven ids need no
/// allocation, more take two bytes each.
///
/// Two sets are ordered as their ascending ids are, lexicographically.
#[derive(Clone)]
pub struct IdSet(Repr);

#[derive(Clone)]
enum Repr {
    Inline { len: u8, ids: [u16; INLINE_MAX] },
    Heap(Vec<u16>),
}

const _: () = assert!(size_of::<IdSet>() == size_of::<Vec<u16>>());

impl IdSet {
    /// The empty set.
    #[must_use]
    pub const fn new() -> Self {
        Self(Repr::Inline { len: 0, ids: [0; INLINE_MAX] })
    }

    /// The set of the given ids, which must be strictly ascending.
    ///
    /// # Panics
    ///
    /// If they are not.
    #[must_use]
    pub fn from_ascending(ids: &[u16]) -> Self {
        assert!(ids.is_sorted_by(|a, b| a < b), "ids must be strictly ascending");
        Self::from_sorted(ids)
    }

    fn from_sorted(sorted: &[u16]) -> Self {
        if sorted.len() > INLINE_MAX {
            return Self(Repr::Heap(sorted.to_vec()));
        }
        let mut ids = [0; INLINE_MAX];
        ids[..sorted.len()].copy_from_slice(sorted);
        Self(Repr::Inline { len: inline_len(sorted.len()), ids })
    }

    /// The ids, ascending.
    #[must_use]
    pub fn as_slice(&self) -> &[u16] {
        match &self.0 {
            Repr::Inline { len, ids } => &ids[..usize::from(*len)],
            Repr::Heap(ids) => ids,
        }
    }

    /// Adds an id; `true` if it was not there before.
    pub fn insert(&mut self, id: u16) -> bool {
        let Err(at) = self.as_slice().binary_search(&id) else {
            return false;
        };
        match &mut self.0 {
            Repr::Heap(ids) => ids.insert(at, id),
            Repr::Inline { len, ids } if usize::from(*len) < INLINE_MAX => {
                let used = usize::from(*len);
                ids.copy_within(at..used, at + 1);
                ids[at] = id;
                *len += 1;
            }
            Repr::Inline { ids, .. } => {
                let mut heap = Vec::with_capacity(2 * INLINE_MAX);
                heap.extend_from_slice(&ids[..at]);
                heap.push(id);
                heap.extend_from_slice(&ids[at..]);
                self.0 = Repr::Heap(heap);
            }
        }
        true
    }

    /// Whether the id is in the set.
    #[must_use]
    pub fn contains(&self, id: u16) -> bool {
        self.as_slice().binary_search(&id).is_ok()
    }

    /// Number of ids.
    #[must_use]
    pub fn len(&self) -> usize {
        self.as_slice().len()
    }

    /// Whether there is no id in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The ids, ascending.
    pub fn iter(&self) -> std::iter::Copied<std::slice::Iter<'_, u16>> {
        self.as_slice().iter().copied()
    }

    /// Adds each id of `other`.
    pub fn union_with(&mut self, other: &Self) {
        if other.is_subset(self) {
            return;
        }
        let mut merged = Vec::with_capacity(self.len() + other.len());
        let (mut a, mut b) = (self.as_slice(), other.as_slice());
        while let (Some((&x, a_rest)), Some((&y, b_rest))) = (a.split_first(), b.split_first()) {
            merged.push(x.min(y));
            if x <= y {
                a = a_rest;
            }
            if y <= x {
                b = b_rest;
            }
        }
        merged.extend_from_slice(a);
        merged.extend_from_slice(b);
        *self = Self::from_sorted(&merged);
    }

    /// Whether each id of this set is in `other` too.
    #[must_use]
    pub fn is_subset(&self, other: &Self) -> bool {
        let mut rest = other.as_slice();
        self.len() <= other.len()
            && self.iter().all(|id| {
                let at = rest.partition_point(|o| *o < id);
                rest = &rest[at..];
                rest.first() == Some(&id)
            })
    }

    /// Whether no id is in both sets.
    #[must_use]
    pub fn is_disjoint(&self, other: &Self) -> bool {
        let (small, large) = if self.len() <= other.len() { (self, other) } else { (other, self) };
        small.iter().all(|id| !large.contains(id))
    }

    /// Bytes on the heap, beyond the value itself.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        match &self.0 {
            Repr::Inline { .. } => 0,
            Repr::Heap(ids) => ids.capacity() * size_of::<u16>(),
        }
    }
}

fn inline_len(len: usize) -> u8 {
    u8::try_from(len).expect("at most INLINE_MAX")
}

impl Default for IdSet {
    fn default() -> Self {
        Self::new()
    }
}

impl PartialEq for IdSet {
    fn eq(&self, other: &Self) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl Eq for IdSet {}

impl PartialOrd for IdSet {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for IdSet {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_slice().cmp(other.as_slice())
    }
}

impl Hash for IdSet {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_slice().hash(state);
    }
}

impl std::fmt::Debug for IdSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

impl FromIterator<u16> for IdSet {
    fn from_iter<I: IntoIterator<Item = u16>>(iter: I) -> Self {
        let mut ids: Vec<u16> = iter.into_iter().collect();
        ids.sort_unstable();
        ids.dedup();
        Self::from_sorted(&ids)
    }
}

impl Extend<u16> for IdSet {
    fn extend<I: IntoIterator<Item = u16>>(&mut self, iter: I) {
        self.union_with(&iter.into_iter().collect());
    }
}

impl<'a> IntoIterator for &'a IdSet {
    type Item = u16;
    type IntoIter = std::iter::Copied<std::slice::Iter<'a, u16>>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl Serialize for IdSet {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.as_slice().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for IdSet {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::<u16>::deserialize(deserializer).map(Self::from_iter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::collections::hash_map::DefaultHasher;

    fn hash_of(set: &IdSet) -> u64 {
        let mut hasher = DefaultHasher::new();
        set.hash(&mut hasher);
        hasher.finish()
    }

    #[test]
    #[should_panic(expected = "strictly ascending")]
    fn from_ascending_refuses_repeats() {
        let _ = IdSet::from_ascending(&[1, 1]);
    }

    proptest! {
        #[test]
        fn behaves_like_a_btree_set(a in vec(0u16..24, 0..20), b in vec(0u16..24, 0..20), probe in 0u16..24) {
            let (oracle_a, oracle_b): (BTreeSet<u16>, BTreeSet<u16>) =
                (a.iter().copied().collect(), b.iter().copied().collect());
            let mut set = IdSet::new();
            for (i, id) in a.iter().enumerate() {
                prop_assert_eq!(set.insert(*id), !a[..i].contains(id));
            }
            let other: IdSet = b.iter().copied().collect();
            prop_assert!(set.iter().eq(oracle_a.iter().copied()));
            prop_assert_eq!(set.len(), oracle_a.len());
            prop_assert_eq!(set.is_empty(), oracle_a.is_empty());
            prop_assert_eq!(set.contains(probe), oracle_a.contains(&probe));
            prop_assert_eq!(set.is_subset(&other), oracle_a.is_subset(&oracle_b));
            prop_assert_eq!(set.is_disjoint(&other), oracle_a.is_disjoint(&oracle_b));
            prop_assert_eq!(set.cmp(&other), oracle_a.cmp(&oracle_b));
            let mut union = set.clone();
            union.union_with(&other);
            prop_assert!(union.iter().eq(oracle_a.union(&oracle_b).copied()));
            // Equal sets are equal and hash alike, however they were built.
            let rebuilt: IdSet = set.iter().collect();
            prop_assert_eq!(&rebuilt, &set);
            prop_assert_eq!(hash_of(&rebuilt), hash_of(&set));
            prop_assert_eq!(&IdSet::from_ascending(set.as_slice()), &set);
        }
    }
}
