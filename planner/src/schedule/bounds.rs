//! Lower bounds of [`super::Schedule::changes`].

use super::order::Distances;

/// What no order of the groups can go below, in joins plus leaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// K + 1: successive distinct sets differ by at least one host, and so do the first and last from none.
    pub sets_plus_one: u64,
    /// 2 M: each of the M hosts in any group joins and leaves at least once.
    pub twice_hosts: u64,
    /// Weight of a minimum spanning tree over the sets and the empty set, rounded up to even, as every closed tour
    /// is even. 0 if there were too many sets to compute it (above 6,000).
    pub spanning_tree: u64,
    /// Whether the order found is proved optimal: by the exact method, or by meeting a bound.
    pub optimal: bool,
}

impl Bounds {
    /// The best of the bounds.
    #[must_use]
    pub fn best(&self) -> u64 {
        self.sets_plus_one.max(self.twice_hosts).max(self.spanning_tree)
    }
}

/// Prim's algorithm on the dense matrix, O(K^2).
pub(super) fn spanning_tree(distances: &Distances) -> u64 {
    let count = distances.nodes();
    let mut nearest = vec![u16::MAX; count];
    let mut outside: Vec<usize> = (0..count - 1).collect();
    let mut last = count - 1;
    let mut weight = 0u64;
    while !outside.is_empty() {
        let row = distances.row(last);
        let mut best = (u16::MAX, 0);
        for (slot, &node) in outside.iter().enumerate() {
            nearest[node] = nearest[node].min(row[node]);
            if nearest[node] < best.0 || slot == 0 {
                best = (nearest[node], slot);
            }
        }
        weight += u64::from(best.0);
        last = outside.swap_remove(best.1);
    }
    weight.next_multiple_of(2)
}
