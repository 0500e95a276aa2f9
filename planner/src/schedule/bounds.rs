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
    /// Held and Karp's bound, rounded up to even: one-trees under node prices. At most 1 % below the best order where
    /// tried. 0 if the order was proved optimal without it, or there were too many sets (above 400).
    pub held_karp: u64,
    /// Whether the order found is proved optimal: by the exact method, or by meeting a bound.
    pub optimal: bool,
}

impl Bounds {
    /// The best of the bounds.
    #[must_use]
    pub fn best(&self) -> u64 {
        self.sets_plus_one.max(self.twice_hosts).max(self.spanning_tree).max(self.held_karp)
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

/// Most sets for which Held and Karp's bound is computed: a tenth of a second.
pub(super) const HELD_KARP_MAX: usize = 400;
const ROUNDS: usize = 150;

/// Held and Karp's bound by subgradient ascent (Math. Programming 1, 1971), O(K^2) a round. `upper` is the cost of some
/// order; the empty set is the special node. Only basic operations on floats, so it is the same on every machine.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "costs are below 2^48, and not negative"
)]
pub(super) fn held_karp_bound(distances: &Distances, upper: u64) -> u64 {
    let count = distances.nodes();
    if count < 4 {
        return 0;
    }
    let mut price = vec![0.0f64; count];
    let (mut best, mut scale) = (0.0f64, 2.0);
    for round in 0..ROUNDS {
        let (weight, degree) = one_tree(distances, &price);
        let bound = weight - 2.0 * price.iter().sum::<f64>();
        best = best.max(bound);
        let slack: i64 = degree.iter().map(|d| (d - 2) * (d - 2)).sum();
        if slack == 0 || best > upper as f64 - 2.0 + 1e-6 {
            break;
        }
        if round % 12 == 11 {
            scale *= 0.75;
        }
        let step = scale * (upper as f64 - bound).max(0.1) / slack as f64;
        for (price, degree) in price.iter_mut().zip(degree) {
            *price += step * (degree - 2) as f64;
        }
    }
    // Every closed tour is even; what rounding errors may add is far below a millionth.
    ((best - 1e-6).ceil().max(0.0) as u64).next_multiple_of(2)
}

/// The cheapest spanning tree of all nodes but the last, with two edges to that: its weight, and each node's degree.
fn one_tree(distances: &Distances, price: &[f64]) -> (f64, Vec<i64>) {
    let last = distances.nodes() - 1;
    let cost = |a: usize, b: usize| f64::from(distances.get(a, b)) + price[a] + price[b];
    let mut degree = vec![0i64; last + 1];
    let mut near = vec![(f64::MAX, 0usize); last];
    let mut outside: Vec<usize> = (1..last).collect();
    let (mut weight, mut newest) = (0.0, 0);
    while !outside.is_empty() {
        let mut best = (f64::MAX, 0);
        for (slot, &node) in outside.iter().enumerate() {
            let edge = cost(newest, node);
            if edge < near[node].0 {
                near[node] = (edge, newest);
            }
            if near[node].0 < best.0 {
                best = (near[node].0, slot);
            }
        }
        newest = outside.swap_remove(best.1);
        weight += near[newest].0;
        degree[newest] += 1;
        degree[near[newest].1] += 1;
    }
    let mut ends: Vec<usize> = (0..last).collect();
    ends.sort_by(|&a, &b| cost(a, last).total_cmp(&cost(b, last)));
    for &end in &ends[..2] {
        weight += cost(end, last);
        degree[end] += 1;
        degree[last] += 1;
    }
    (weight, degree)
}
