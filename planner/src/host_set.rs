//! Sets of target hosts.

use std::cmp::Ordering;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A set of host indexes (positions in the plan's list of hosts), as a bitmap.
///
/// Iterates in ascending order; sets are ordered like the sorted lists of their members. Serialised as
/// that list. Takes `max index / 8` bytes.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct HostSet {
    /// Bit `i % 64` of word `i / 64` is host `i`. The last word is never 0, so equal sets are equal words.
    words: Vec<u64>,
}

impl HostSet {
    /// The empty set.
    #[must_use]
    pub const fn new() -> Self {
        Self { words: Vec::new() }
    }

    /// Adds `host`; false if it was there already.
    pub fn insert(&mut self, host: u16) -> bool {
        let (word, bit) = split(host);
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        let new = self.words[word] & bit == 0;
        self.words[word] |= bit;
        new
    }

    /// Takes `host` out; false if it was not there.
    pub fn remove(&mut self, host: u16) -> bool {
        let (word, bit) = split(host);
        let there = self.contains(host);
        if there {
            self.words[word] &= !bit;
            while self.words.last() == Some(&0) {
                self.words.pop();
            }
        }
        there
    }

    /// Whether `host` is a member.
    #[must_use]
    pub fn contains(&self, host: u16) -> bool {
        let (word, bit) = split(host);
        self.words.get(word).is_some_and(|w| w & bit != 0)
    }

    /// Number of members.
    #[must_use]
    pub fn len(&self) -> usize {
        self.words.iter().map(|&w| ones(w)).sum()
    }

    /// Whether there is no member.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// Members, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        (0u16..).zip(&self.words).flat_map(|(index, &word)| Bits(word).map(move |bit| index * 64 + bit))
    }

    /// Whether every member is in `other` too.
    #[must_use]
    pub fn is_subset(&self, other: &Self) -> bool {
        self.words.len() <= other.words.len() && self.words.iter().zip(&other.words).all(|(a, b)| a & !b == 0)
    }

    /// Whether the two have a member in common.
    #[must_use]
    pub fn intersects(&self, other: &Self) -> bool {
        self.words.iter().zip(&other.words).any(|(a, b)| a & b != 0)
    }

    /// Adds every member of `other`.
    pub fn union_with(&mut self, other: &Self) {
        if self.words.len() < other.words.len() {
            self.words.resize(other.words.len(), 0);
        }
        for (a, b) in self.words.iter_mut().zip(&other.words) {
            *a |= b;
        }
    }

    /// Members that are not in `other`.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        let mut words: Vec<u64> =
            self.words.iter().enumerate().map(|(i, w)| w & !other.words.get(i).unwrap_or(&0)).collect();
        while words.last() == Some(&0) {
            words.pop();
        }
        Self { words }
    }

    /// The Hamming distance: number of hosts in exactly one of the two.
    #[must_use]
    pub fn distance(&self, other: &Self) -> usize {
        let (long, short) = if self.words.len() >= other.words.len() { (self, other) } else { (other, self) };
        let (common, rest) = long.words.split_at(short.words.len());
        common.iter().zip(&short.words).map(|(a, b)| ones(a ^ b)).sum::<usize>()
            + rest.iter().map(|&w| ones(w)).sum::<usize>()
    }

    /// The bitmap's words, low hosts first.
    pub(crate) fn words(&self) -> &[u64] {
        &self.words
    }
}

/// Bit positions of a word, ascending.
struct Bits(u64);

impl Iterator for Bits {
    type Item = u16;

    fn next(&mut self) -> Option<u16> {
        if self.0 == 0 {
            return None;
        }
        let bit = u16::try_from(self.0.trailing_zeros()).expect("below 64");
        self.0 &= self.0 - 1;
        Some(bit)
    }
}

fn split(host: u16) -> (usize, u64) {
    (usize::from(host / 64), 1 << (host % 64))
}

fn ones(word: u64) -> usize {
    usize::try_from(word.count_ones()).expect("at most 64")
}

/// A host's position as an index of [`HostSet`].
///
/// # Panics
/// If there are more than 65,535 hosts, which inventory and checker refuse.
pub(crate) fn host_index(position: usize) -> u16 {
    u16::try_from(position).expect("an inventory has at most 65,535 hosts")
}

impl FromIterator<u16> for HostSet {
    fn from_iter<I: IntoIterator<Item = u16>>(hosts: I) -> Self {
        let mut set = Self::new();
        for host in hosts {
            set.insert(host);
        }
        set
    }
}

impl Ord for HostSet {
    fn cmp(&self, other: &Self) -> Ordering {
        self.iter().cmp(other.iter())
    }
}

impl PartialOrd for HostSet {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Debug for HostSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

impl Serialize for HostSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

impl<'de> Deserialize<'de> for HostSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Vec::<u16>::deserialize(deserializer)?.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::HostSet;

    proptest! {
        #[test]
        fn behaves_like_a_btree_set(a in prop::collection::btree_set(0u16..200, 0..40), b in prop::collection::btree_set(0u16..200, 0..40), x in 0u16..200) {
            let (sa, sb): (HostSet, HostSet) = (a.iter().copied().collect(), b.iter().copied().collect());
            prop_assert_eq!(sa.iter().collect::<BTreeSet<_>>(), a.clone());
            prop_assert_eq!(sa.len(), a.len());
            prop_assert_eq!(sa.is_empty(), a.is_empty());
            prop_assert_eq!(sa.contains(x), a.contains(&x));
            prop_assert_eq!(sa.is_subset(&sb), a.is_subset(&b));
            prop_assert_eq!(sa.intersects(&sb), !a.is_disjoint(&b));
            prop_assert_eq!(sa.distance(&sb), a.symmetric_difference(&b).count());
            prop_assert_eq!(sa.difference(&sb), a.difference(&b).copied().collect::<HostSet>());
            prop_assert_eq!(sa.cmp(&sb), a.cmp(&b));
            let mut union = sa.clone();
            union.union_with(&sb);
            prop_assert_eq!(union, a.union(&b).copied().collect::<HostSet>());
            let mut less = sa.clone();
            prop_assert_eq!(less.remove(x), a.contains(&x));
            let mut without = a.clone();
            without.remove(&x);
            prop_assert_eq!(&less, &without.into_iter().collect::<HostSet>());
            prop_assert_eq!(serde_json::from_str::<HostSet>(&serde_json::to_string(&less).unwrap()).unwrap(), less);
        }
    }
}
