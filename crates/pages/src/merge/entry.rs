//! What the merge keeps of a page while it looks for equal ones: 20 bytes.

use std::cmp::Ordering;

/// Four words of key, most significant first, then the page's number in the row.
///
/// A plain array, because the allocator hands out zeroed arrays without touching them: room for an entry
/// for each page costs nothing where pages turn out to be uniform.
pub(crate) type Entry = [u32; 5];

const PAGE: usize = 4;

/// An entry of the given key.
#[expect(clippy::cast_possible_truncation, reason = "the key is cut into words")]
pub(crate) fn entry(key: u128, page: u32) -> Entry {
    [(key >> 96) as u32, (key >> 64) as u32, (key >> 32) as u32, key as u32, page]
}

/// The page's number in the row.
pub(crate) fn page(e: &Entry) -> u32 {
    e[PAGE]
}

fn high(e: &Entry) -> u64 {
    u64::from(e[0]) << 32 | u64::from(e[1])
}

fn low(e: &Entry) -> u64 {
    u64::from(e[2]) << 32 | u64::from(e[3])
}

/// By key, then by page: the order that does not depend on how many threads sort.
pub(crate) fn order(a: &Entry, b: &Entry) -> Ordering {
    high(a).cmp(&high(b)).then_with(|| (low(a), a[PAGE]).cmp(&(low(b), b[PAGE])))
}

/// Whether the keys are equal.
pub(crate) fn same_key(a: &Entry, b: &Entry) -> bool {
    high(a) == high(b) && low(a) == low(b)
}

/// Once a page's content is known its key is no longer needed: the first word then holds the content's
/// lowest page, the second whether that is settled.
pub(crate) fn settle(e: &mut Entry, lowest: u32) {
    e[0] = lowest;
    e[1] = 0;
}

/// Marks an entry as not settled, and keeps such entries behind settled ones under [`settled_first`].
pub(crate) fn unsettle(e: &mut Entry) {
    e[0] = 0;
    e[1] = 1;
}

/// Order that puts settled entries first; by page among each.
pub(crate) fn settled_first(a: &Entry, b: &Entry) -> Ordering {
    (a[1], a[PAGE]).cmp(&(b[1], b[PAGE]))
}

/// Whether [`settle`] rather than [`unsettle`] was the last to be called.
pub(crate) fn is_settled(e: &Entry) -> bool {
    e[1] == 0
}

/// The lowest page of a settled entry's content.
pub(crate) fn lowest(e: &Entry) -> u32 {
    e[0]
}
