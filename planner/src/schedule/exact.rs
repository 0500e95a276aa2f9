//! The optimal order of few sets.

use super::order::Distances;

/// Most sets for which the exact method is used: 12 · 2^12 states, about a millisecond.
pub(super) const SETS_MAX: usize = 12;

/// Held and Karp's dynamic program (J. SIAM 10(1), 1962) over the cheapest way to finish, O(2^K K^2). Among optimal
/// orders, returns the one that is smallest by `rank` at the first place where they differ.
pub(super) fn held_karp(distances: &Distances, rank: &[usize]) -> Vec<usize> {
    let count = distances.nodes() - 1;
    let empty = count;
    let full = (1usize << count) - 1;
    // finish[visited * count + last]: cheapest way from `last` through all that is not visited, back to the empty set.
    let mut finish = vec![u32::MAX; (full + 1) * count];
    for last in 0..count {
        finish[full * count + last] = distances.get(last, empty).into();
    }
    for visited in (1..full).rev() {
        for last in (0..count).filter(|last| visited >> last & 1 == 1) {
            let rest = (0..count).filter(|next| visited >> next & 1 == 0);
            let cost = rest.map(|next| {
                u32::from(distances.get(last, next)) + finish[(visited | 1 << next) * count + next]
            });
            finish[visited * count + last] = cost.min().expect("not all are visited");
        }
    }
    let (mut visited, mut last, mut tour) = (0, empty, Vec::with_capacity(count));
    while visited != full {
        let next = (0..count)
            .filter(|next| visited >> next & 1 == 0)
            .min_by_key(|&next| {
                let ahead = finish[(visited | 1 << next) * count + next];
                (u32::from(distances.get(last, next)) + ahead, rank[next])
            })
            .expect("not all are visited");
        tour.push(next);
        visited |= 1 << next;
        last = next;
    }
    tour
}
