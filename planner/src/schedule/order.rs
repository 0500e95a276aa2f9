//! The order of the groups: a shortest closed tour through the host sets and the empty set, by Hamming distance.
//!
//! With one group address for all, the distance of successive sets is the number of hosts that join or leave between
//! them (consecutive block minimisation, Garey and Johnson SR17; NP-hard).

use super::bounds::{Bounds, HELD_KARP_MAX, held_karp_bound, spanning_tree};
use super::exact::{SETS_MAX, held_karp};
use super::local::Search;
use crate::HostSet;
use crate::rng::Rng;

/// Most sets for which distances are kept in memory (72 MB) and tours are searched.
const SEARCHED_MAX: usize = 6_000;

/// An order of the sets given.
pub(super) struct Order {
    /// Indexes of the sets.
    pub(super) tour: Vec<usize>,
    /// Its cost.
    pub(super) changes: u64,
    pub(super) bounds: Bounds,
}

/// Hamming distances between sets; the last node is the empty set.
pub(super) struct Distances {
    nodes: usize,
    matrix: Vec<u16>,
}

impl Distances {
    fn new(sets: &[&HostSet]) -> Self {
        let nodes = sets.len() + 1;
        let width = sets.iter().map(|set| set.words().len()).max().unwrap_or(0).max(1);
        let mut words = vec![0u64; nodes * width];
        for (row, set) in words.chunks_exact_mut(width).zip(sets) {
            row[..set.words().len()].copy_from_slice(set.words());
        }
        let mut matrix = vec![0; nodes * nodes];
        for (index, (a, row)) in words.chunks_exact(width).zip(matrix.chunks_exact_mut(nodes)).enumerate() {
            for (b, distance) in words.chunks_exact(width).zip(&mut row[..index]) {
                let ones: u32 = a.iter().zip(b).map(|(a, b)| (a ^ b).count_ones()).sum();
                *distance = u16::try_from(ones).expect("at most 65,535 hosts");
            }
        }
        mirror(&mut matrix, nodes);
        Self { nodes, matrix }
    }

    /// Number of nodes: the sets and the empty set.
    pub(super) fn nodes(&self) -> usize {
        self.nodes
    }

    pub(super) fn get(&self, a: usize, b: usize) -> u16 {
        self.matrix[a * self.nodes + b]
    }

    /// Distances from `a` to all nodes.
    pub(super) fn row(&self, a: usize) -> &[u16] {
        &self.matrix[a * self.nodes..][..self.nodes]
    }
}

/// Copies the lower triangle of a square matrix to the upper one, in tiles that stay in the cache.
fn mirror(matrix: &mut [u16], nodes: usize) {
    const TILE: usize = 64;
    for top in (0..nodes).step_by(TILE) {
        for left in (0..=top).step_by(TILE) {
            for row in top..nodes.min(top + TILE) {
                for column in left..row.min(left + TILE) {
                    matrix[column * nodes + row] = matrix[row * nodes + column];
                }
            }
        }
    }
}

/// Orders distinct, non-empty sets. Exact for up to 12; else nearest neighbour from several starts and Gray-code
/// order, improved by 2-opt and Or-opt, then by perturbing the best; above 6,000 sets Gray-code order alone.
/// Among equals, sets of more hosts, then of more bytes, come first.
pub(super) fn order(sets: &[&HostSet], weights: &[u64], seed: u64) -> Order {
    let mut by_size: Vec<usize> = (0..sets.len()).collect();
    by_size.sort_by_key(|&i| (std::cmp::Reverse((sets[i].len(), weights[i])), i));
    let mut rank = vec![0; sets.len()];
    for (position, &i) in by_size.iter().enumerate() {
        rank[i] = position;
    }
    let mut bounds = trivial_bounds(sets);
    let mut tour = gray_order(sets);
    if sets.len() <= SEARCHED_MAX && sets.len() > 1 {
        let distances = Distances::new(sets);
        bounds.spanning_tree = spanning_tree(&distances);
        if sets.len() <= SETS_MAX {
            tour = held_karp(&distances, &rank);
            bounds.optimal = true;
        } else {
            tour = searched(&distances, tour, &by_size, bounds.best(), seed);
            let changes = cost(sets, &tour);
            if sets.len() <= HELD_KARP_MAX && changes > bounds.best() {
                bounds.held_karp = held_karp_bound(&distances, changes);
            }
        }
    } else if let [only] = sets {
        bounds.spanning_tree = 2 * (only.len() as u64);
    }
    let changes = cost(sets, &tour);
    bounds.optimal |= changes == bounds.best();
    // A tour costs the same both ways.
    if tour.iter().rev().map(|&i| rank[i]).lt(tour.iter().map(|&i| rank[i])) {
        tour.reverse();
    }
    Order { tour, changes, bounds }
}

fn trivial_bounds(sets: &[&HostSet]) -> Bounds {
    let mut all = HostSet::new();
    for set in sets {
        all.union_with(set);
    }
    let sets_plus_one = if sets.is_empty() { 0 } else { sets.len() as u64 + 1 };
    Bounds { sets_plus_one, twice_hosts: 2 * all.len() as u64, ..Bounds::default() }
}

/// Joins and leaves of one address along `tour`.
fn cost(sets: &[&HostSet], tour: &[usize]) -> u64 {
    let (Some(&first), Some(&last)) = (tour.first(), tour.last()) else { return 0 };
    let between: usize = tour.windows(2).map(|pair| sets[pair[0]].distance(sets[pair[1]])).sum();
    (sets[first].len() + between + sets[last].len()) as u64
}

/// Sets by the rank of their bitmaps in the reflected Gray code: optimal if all non-empty sets occur.
fn gray_order(sets: &[&HostSet]) -> Vec<usize> {
    let width = sets.iter().map(|set| set.words().len()).max().unwrap_or(0);
    let mut keyed: Vec<(Vec<u64>, usize)> =
        sets.iter().enumerate().map(|(index, set)| (gray_rank(set, width), index)).collect();
    keyed.sort_unstable();
    keyed.into_iter().map(|(_, index)| index).collect()
}

/// Bit i of the rank is the parity of the members up to host i, host 0 being the highest bit. `width` words of it,
/// as the parity goes on behind the last member.
fn gray_rank(set: &HostSet, width: usize) -> Vec<u64> {
    let mut odd = false;
    let rank = set.words().iter().chain(std::iter::repeat(&0)).take(width).map(|word| {
        let mut parity = word.reverse_bits();
        for shift in [1, 2, 4, 8, 16, 32] {
            parity ^= parity >> shift;
        }
        let word_rank = if odd { !parity } else { parity };
        odd = word_rank & 1 == 1;
        word_rank
    });
    rank.collect()
}

fn searched(distances: &Distances, gray: Vec<usize>, by_size: &[usize], bound: u64, seed: u64) -> Vec<usize> {
    let count = by_size.len();
    // Starts beyond the first few gain less than perturbing the best tour for as long.
    let starts = (4_000 / count).clamp(2, 24).min(count);
    let mut rng = Rng::new(seed);
    let mut search = Search::new(distances);
    let mut best = search.run(&gray);
    for start in 0..starts {
        if best.0 <= bound {
            return best.1;
        }
        // The largest set, then any.
        let first = if start == 0 { by_size[0] } else { rng.below(count) };
        let found = search.run(&nearest_neighbour(distances, by_size, first));
        if found.0 < best.0 {
            best = found;
        }
    }
    search.perturb(&best.1, bound, &mut rng)
}

/// From `first` always on to the nearest set left; of equally near ones the first in `by_size`. O(K^2).
fn nearest_neighbour(distances: &Distances, by_size: &[usize], first: usize) -> Vec<usize> {
    let mut left: Vec<usize> = by_size.iter().copied().filter(|&node| node != first).collect();
    let mut tour = vec![first];
    let mut last = first;
    while !left.is_empty() {
        let row = distances.row(last);
        let nearest = (0..left.len()).min_by_key(|&slot| row[left[slot]]).expect("some are left");
        last = left.remove(nearest);
        tour.push(last);
    }
    tour
}

#[cfg(test)]
mod tests {
    use super::{Distances, SETS_MAX, cost, gray_order, held_karp, searched, spanning_tree};
    use crate::HostSet;
    use crate::rng::Rng;

    #[test]
    fn gray_order_of_all_sets_changes_one_host_at_a_time() {
        let sets: Vec<HostSet> =
            (1u32..256).map(|mask| (0..8).filter(|h| mask >> h & 1 == 1).collect()).collect();
        let sets: Vec<&HostSet> = sets.iter().collect();
        assert_eq!(cost(&sets, &gray_order(&sets)), 256);
    }

    #[test]
    fn gray_rank_crosses_words() {
        let members =
            |mask: u32| [3u16, 70, 140].into_iter().zip(0..).filter(move |(_, bit)| mask >> bit & 1 == 1);
        let sets: Vec<HostSet> = (1..8).map(|mask| members(mask).map(|(host, _)| host).collect()).collect();
        let sets: Vec<&HostSet> = sets.iter().collect();
        assert_eq!(cost(&sets, &gray_order(&sets)), 8);
    }

    /// The search used for many sets, against the exact method on few.
    #[test]
    fn search_is_near_the_optimum() {
        let mut rng = Rng::new(5);
        let (mut found_sum, mut best_sum, mut worst) = (0, 0, 0.0f64);
        for _ in 0..100 {
            let mut sets: Vec<HostSet> = (0..SETS_MAX)
                .map(|_| (0..10).filter(|_| rng.below(2) == 1).chain([10, 11]).collect())
                .collect();
            sets.sort();
            sets.dedup();
            let sets: Vec<&HostSet> = sets.iter().collect();
            let distances = Distances::new(&sets);
            let by_size: Vec<usize> = (0..sets.len()).collect();
            let best = cost(&sets, &held_karp(&distances, &by_size));
            let tour = searched(&distances, gray_order(&sets), &by_size, 0, 1);
            let found = cost(&sets, &tour);
            assert!(found >= best && spanning_tree(&distances) <= best);
            found_sum += found;
            best_sum += best;
            worst = worst.max(found as f64 / best as f64 - 1.0);
        }
        let mean = found_sum as f64 / best_sum as f64 - 1.0;
        println!(
            "12 sets: search {:.2} % above the optimum on average, {:.1} % at worst",
            mean * 100.0,
            worst * 100.0
        );
        assert!(mean < 0.01, "{mean}");
    }
}
