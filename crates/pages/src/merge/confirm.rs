//! Equal hashes are candidates only; equal bytes decide.

use super::Hashes;
use super::entry::{Entry, entry, is_settled, order, page, same_key, settle, settled_first, unsettle};
use super::layout::Layout;
use rayon::prelude::*;
use std::sync::OnceLock;

/// From here on the entries of one bucket are compared by several threads: the pages of a thousand clones
/// are one bucket.
const PARALLEL_MIN: usize = 256;

/// Settles each of the sorted entries: afterwards entries share `lowest` exactly if their pages are equal in
/// domain and bytes.
pub(crate) fn confirm(layout: &Layout<'_>, hashes: &Hashes, entries: &mut [Entry]) {
    let confirm = Confirm { layout, hashes, key: OnceLock::new() };
    entries.par_chunk_by_mut(same_key).for_each(|bucket| confirm.bucket(bucket));
}

struct Confirm<'a> {
    layout: &'a Layout<'a>,
    hashes: &'a Hashes,
    /// Drawn at the first collision.
    key: OnceLock<[u8; 32]>,
}

impl Confirm<'_> {
    /// Entries of equal XXH3 hash, by ascending page.
    fn bucket(&self, bucket: &mut [Entry]) {
        let rest = self.settle_equal(bucket);
        if rest.is_empty() {
            return;
        }
        // Different pages under one hash: by chance once in 2^64 transfers, so somebody made them. Comparing
        // each with each would be what they want; under a random key they cannot collide again.
        let key = self.key.get_or_init(|| {
            let mut key = [0; 32];
            getrandom::fill(&mut key).expect("the system gives randomness");
            key
        });
        rest.par_iter_mut().with_min_len(16).for_each(|e| {
            let (domain, bytes) = self.layout.page(page(e));
            let digest = u128::from_le_bytes((self.hashes.keyed)(key, bytes));
            *e = entry(digest ^ (self.hashes.spread)(domain), page(e));
        });
        rest.par_sort_unstable_by(order);
        rest.par_chunk_by_mut(same_key).for_each(|bucket| {
            // One turn settles all unless BLAKE3 is broken; even then the result stays exact.
            let mut rest = bucket;
            while !rest.is_empty() {
                rest = self.settle_equal(rest);
            }
        });
    }

    /// Settles the entries that equal the first, moves them to the front and returns the others; both by
    /// ascending page, as the entries have to be.
    fn settle_equal<'e>(&self, bucket: &'e mut [Entry]) -> &'e mut [Entry] {
        let Some((first, others)) = bucket.split_first_mut() else {
            return &mut [];
        };
        let lowest = page(first);
        settle(first, lowest);
        if others.is_empty() {
            return others;
        }
        let (domain, bytes) = self.layout.page(lowest);
        let compare = |e: &mut Entry| {
            let (other_domain, other_bytes) = self.layout.page(page(e));
            let equal = domain == other_domain && bytes == other_bytes;
            if equal {
                settle(e, lowest);
            } else {
                unsettle(e);
            }
        };
        if others.len() >= PARALLEL_MIN {
            others.par_iter_mut().with_min_len(16).for_each(compare);
        } else {
            others.iter_mut().for_each(compare);
        }
        if others.iter().all(is_settled) {
            return &mut [];
        }
        others.sort_unstable_by(settled_first);
        let settled = others.partition_point(is_settled);
        &mut others[settled..]
    }
}
