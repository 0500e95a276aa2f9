//! Quality of the order of groups.

use std::collections::BTreeSet;

use planner::{GroupLimits, HostSet, SegmentWeight, schedule};

/// Xorshift64*, of the tests' own.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
}

/// `count` distinct uniformly random sets of at least two of `hosts` hosts.
fn random_sets(hosts: u32, count: usize, random: &mut Random) -> Vec<u64> {
    let mut masks = BTreeSet::new();
    while masks.len() < count {
        let mask = random.next() >> (64 - hosts);
        if mask.count_ones() > 1 {
            masks.insert(mask);
        }
    }
    masks.into_iter().collect()
}

fn segments(masks: &[u64]) -> Vec<SegmentWeight> {
    let hosts = |mask: u64| (0u16..64).filter(|bit| mask >> bit & 1 == 1).collect::<HostSet>();
    masks.iter().map(|&mask| SegmentWeight { hosts: hosts(mask), bytes: 100 << 20 }).collect()
}

fn distance(a: u64, b: u64) -> f64 {
    f64::from((a ^ b).count_ones())
}

/// Held and Karp's bound: one-trees under node prices, by subgradient ascent (Held and Karp 1971). The special node
/// is the last.
fn held_karp_bound(masks: &[u64], upper: f64) -> f64 {
    let nodes: Vec<u64> = masks.iter().copied().chain([0]).collect();
    let count = nodes.len();
    let mut price = vec![0.0; count];
    let (mut best, mut scale) = (0.0f64, 2.0);
    for round in 0..600 {
        let cost = |a: usize, b: usize| distance(nodes[a], nodes[b]) + price[a] + price[b];
        let mut degree = vec![0i32; count];
        let (mut weight, mut near) = (0.0, vec![(f64::MAX, 0); count - 1]);
        let mut outside: Vec<usize> = (1..count - 1).collect();
        let mut last = 0;
        while !outside.is_empty() {
            for &node in &outside {
                if cost(last, node) < near[node].0 {
                    near[node] = (cost(last, node), last);
                }
            }
            let slot = (0..outside.len())
                .min_by(|&a, &b| near[outside[a]].0.total_cmp(&near[outside[b]].0))
                .unwrap();
            last = outside.swap_remove(slot);
            weight += near[last].0;
            degree[last] += 1;
            degree[near[last].1] += 1;
        }
        let mut ends: Vec<usize> = (0..count - 1).collect();
        ends.sort_by(|&a, &b| cost(a, count - 1).total_cmp(&cost(b, count - 1)));
        for &end in &ends[..2] {
            weight += cost(end, count - 1);
            degree[end] += 1;
            degree[count - 1] += 1;
        }
        let bound = weight - 2.0 * price.iter().sum::<f64>();
        best = best.max(bound);
        let slack: i32 = degree.iter().map(|d| (d - 2) * (d - 2)).sum();
        if slack == 0 {
            break;
        }
        if round % 30 == 29 {
            scale *= 0.7;
        }
        let step = scale * (upper - bound).max(0.1) / f64::from(slack);
        for (price, degree) in price.iter_mut().zip(degree) {
            *price += step * f64::from(degree - 2);
        }
    }
    best
}

fn gray(masks: &[u64]) -> f64 {
    let mut order = masks.to_vec();
    order.sort_by_key(|&mask| {
        let mut rank = mask;
        for shift in [1, 2, 4, 8, 16, 32] {
            rank ^= rank >> shift;
        }
        rank
    });
    let ends = distance(0, order[0]) + distance(0, order[order.len() - 1]);
    ends + order.windows(2).map(|pair| distance(pair[0], pair[1])).sum::<f64>()
}

/// Within 7 % of Held and Karp's bound, and better than Gray-code order, at the sizes of ALGORITHMS.md 2 (c).
#[test]
fn is_near_held_karp() {
    let mut random = Random(0x5EED);
    for (hosts, count) in [(8, 40), (10, 100), (16, 60)] {
        let (mut ours, mut bounds, mut grays, mut trees) = (0.0, 0.0, 0.0, 0.0);
        let instances = 8;
        for _ in 0..instances {
            let masks = random_sets(hosts, count, &mut random);
            let found = schedule(&segments(&masks), &GroupLimits::default());
            let changes = found.changes as f64;
            let bound = held_karp_bound(&masks, changes);
            assert!(bound <= changes + 1e-6, "a lower bound");
            assert!(found.bounds.best() as f64 <= changes);
            assert!(changes <= gray(&masks));
            ours += changes;
            bounds += bound;
            grays += gray(&masks);
            trees += found.bounds.best() as f64;
        }
        let n = f64::from(instances);
        println!(
            "M={hosts} K={count}: Gray {:.1}, ours {:.1}, Held-Karp bound {:.1}, reported bound {:.1}: {:.1} % above HK",
            grays / n,
            ours / n,
            bounds / n,
            trees / n,
            (ours / bounds - 1.0) * 100.0
        );
        assert!(ours <= 1.07 * bounds, "M={hosts} K={count}: {ours} against {bounds}");
    }
}

/// With few sets the order is optimal: no permutation is cheaper.
#[test]
fn is_exact_for_few_sets() {
    let mut random = Random(77);
    for round in 0..60 {
        let masks = random_sets(6, 1 + round % 7, &mut random);
        let found = schedule(&segments(&masks), &GroupLimits::default());
        let mut left = masks.clone();
        let best = cheapest(0, &mut left);
        assert_eq!(found.changes as f64, best, "{masks:?}");
        assert!(found.bounds.optimal && found.bounds.best() <= found.changes);
    }
}

fn cheapest(last: u64, left: &mut Vec<u64>) -> f64 {
    if left.is_empty() {
        return distance(last, 0);
    }
    let mut best = f64::MAX;
    for index in 0..left.len() {
        let next = left.swap_remove(index);
        best = best.min(distance(last, next) + cheapest(next, left));
        left.push(next);
        let end = left.len() - 1;
        left.swap(index, end);
    }
    best
}

/// Thousands of sets, above and below the size up to which tours are searched.
#[test]
fn many_sets_still_have_an_order() {
    let mut random = Random(99);
    for count in [1_000, 6_500] {
        let masks = random_sets(16, count, &mut random);
        let found = schedule(&segments(&masks), &GroupLimits { max_groups: 9000, ..GroupLimits::default() });
        assert_eq!(found.groups.len(), count);
        assert!(found.changes as f64 <= gray(&masks) && found.bounds.best() <= found.changes);
    }
}
