//! Local search for a short tour: 2-opt and Or-opt over near neighbours, then small perturbations of the best.

use super::order::Distances;
use crate::rng::Rng;

/// Neighbours looked at for each node. Sets have many equally near ones, so fewer would miss moves.
const NEIGHBOURS: usize = 12;
/// Longest run of sets that Or-opt moves.
const RUN_MAX: usize = 3;
/// Longest of the two runs that a perturbation swaps.
const SWAP_MAX: usize = 30;
/// Perturbations tried; each costs some microseconds.
const PERTURBATIONS: usize = 6_000;

/// A step that can be undone.
#[derive(Clone, Copy)]
enum Step {
    /// Reverse the sets at these positions, both included.
    Reverse(usize, usize),
    /// Rotate the sets at the first two positions, both included, to the left by the third.
    Rotate(usize, usize, usize),
}

/// An improving move.
struct Move {
    steps: [Option<Step>; 2],
    /// Nodes whose neighbours in the tour change.
    touched: [usize; 6],
    gain: i64,
}

/// A tour under improvement. The empty set stands at both ends: positions 0 and n + 1.
pub(super) struct Search<'a> {
    distances: &'a Distances,
    /// The nearest nodes of each node, nearest first.
    near: Vec<u16>,
    near_each: usize,
    tour: Vec<u16>,
    position: Vec<u16>,
    /// Nodes to look at again.
    queue: Vec<usize>,
    queued: Vec<bool>,
    /// What was done since the last accepted tour.
    done: Vec<Step>,
}

impl<'a> Search<'a> {
    pub(super) fn new(distances: &'a Distances) -> Self {
        let nodes = distances.nodes();
        let near_each = NEIGHBOURS.min(nodes - 1);
        let mut near = Vec::with_capacity(nodes * near_each);
        let mut nearest: Vec<(u16, u16)> = Vec::with_capacity(near_each + 1);
        for node in 0..nodes {
            nearest.clear();
            // Among equally near ones each node prefers those after it, lest all share the same few.
            let (before, after) = distances.row(node).split_at(node);
            let others = (0u16..).skip(node + 1).zip(&after[1..]).chain((0u16..).zip(before));
            for (other, &distance) in others {
                if nearest.len() == near_each {
                    if nearest.last().is_some_and(|last| last.0 <= distance) {
                        continue;
                    }
                    nearest.pop();
                }
                nearest.insert(nearest.partition_point(|n| n.0 <= distance), (distance, other));
            }
            near.extend(nearest.iter().map(|&(_, other)| other));
        }
        Self {
            distances,
            near,
            near_each,
            tour: vec![0; nodes + 1],
            position: vec![0; nodes],
            queue: Vec::new(),
            queued: vec![false; nodes],
            done: Vec::new(),
        }
    }

    /// Improves a tour until no move helps: its cost, and the tour.
    pub(super) fn run(&mut self, tour: &[usize]) -> (u64, Vec<usize>) {
        self.load(tour);
        for node in (0..self.distances.nodes()).rev() {
            self.enqueue(node);
        }
        self.improve();
        (self.cost(), self.unload())
    }

    /// Swaps short neighbouring runs of the tour and repairs it, keeping what is no worse (iterated local search:
    /// Johnson and McGeoch 1997, section 5), until `bound` is met or the tries are used up.
    pub(super) fn perturb(&mut self, tour: &[usize], bound: u64, rng: &mut Rng) -> Vec<usize> {
        self.load(tour);
        let count = tour.len();
        let swap_max = SWAP_MAX.min(count / 2);
        let mut cost = i64::try_from(self.cost()).expect("far below 2^63");
        let bound = i64::try_from(bound).expect("far below 2^63");
        for _ in 0..PERTURBATIONS {
            if cost <= bound {
                break;
            }
            self.done.clear();
            let (left, right) = (1 + rng.below(swap_max), 1 + rng.below(swap_max));
            let first = 1 + rng.below(count + 1 - left - right);
            let last = first + left + right - 1;
            let ends = [first - 1, first, first + left - 1, first + left, last, last + 1];
            let before = self.edges(&[(ends[0], ends[1]), (ends[2], ends[3]), (ends[4], ends[5])]);
            let nodes = ends.map(|p| usize::from(self.tour[p]));
            self.apply(Step::Rotate(first, last, left));
            let middle = first + right;
            let after = self.edges(&[(first - 1, first), (middle - 1, middle), (last, last + 1)]);
            for node in nodes {
                self.enqueue(node);
            }
            let change = after - before - self.improve();
            if change > 0 {
                self.undo();
            } else {
                cost += change;
            }
        }
        self.unload()
    }

    fn load(&mut self, tour: &[usize]) {
        let empty = self.distances.nodes() - 1;
        let nodes = std::iter::once(&empty).chain(tour).chain(std::iter::once(&empty));
        for (slot, &node) in self.tour.iter_mut().zip(nodes) {
            *slot = u16::try_from(node).expect("few nodes");
        }
        self.number(0, tour.len());
        self.done.clear();
    }

    fn unload(&self) -> Vec<usize> {
        self.tour[1..self.tour.len() - 1].iter().map(|&node| node.into()).collect()
    }

    fn cost(&self) -> u64 {
        self.tour.windows(2).map(|pair| u64::from(self.distances.get(pair[0].into(), pair[1].into()))).sum()
    }

    fn edges(&self, positions: &[(usize, usize)]) -> i64 {
        positions.iter().map(|&(p, q)| self.between(self.tour[p].into(), self.tour[q].into())).sum()
    }

    fn between(&self, a: usize, b: usize) -> i64 {
        self.distances.get(a, b).into()
    }

    fn enqueue(&mut self, node: usize) {
        if !self.queued[node] {
            self.queued[node] = true;
            self.queue.push(node);
        }
    }

    /// Makes improving moves until the queue is empty; returns what they gained.
    fn improve(&mut self) -> i64 {
        let mut gain = 0;
        while let Some(node) = self.queue.pop() {
            self.queued[node] = false;
            while let Some(found) = self.two_opt(node).or_else(|| self.or_opt(node)) {
                gain += found.gain;
                for step in found.steps.into_iter().flatten() {
                    self.apply(step);
                }
                for touched in found.touched {
                    self.enqueue(touched);
                }
            }
        }
        gain
    }

    /// Position of a node in a direction; the empty set is before the first and after the last.
    fn position(&self, node: usize, forward: bool) -> usize {
        let is_end = node == self.distances.nodes() - 1;
        if is_end && !forward { self.tour.len() - 1 } else { self.position[node].into() }
    }

    fn near(&self, node: usize) -> &[u16] {
        &self.near[node * self.near_each..][..self.near_each]
    }

    /// Replaces the edge from `a` to its next (or previous) node by one to a nearer node.
    fn two_opt(&self, a: usize) -> Option<Move> {
        for forward in [true, false] {
            let beside = |p: usize| usize::from(if forward { self.tour[p + 1] } else { self.tour[p - 1] });
            let p = self.position(a, forward);
            let b = beside(p);
            let old = self.between(a, b);
            for c in self.near(a).iter().map(|&c| usize::from(c)) {
                let new = self.between(a, c);
                if new >= old {
                    break;
                }
                let q = self.position(c, forward);
                let d = beside(q);
                let gain = old + self.between(c, d) - new - self.between(b, d);
                if gain > 0 {
                    let (low, high) = (p.min(q), p.max(q));
                    let step =
                        if forward { Step::Reverse(low + 1, high) } else { Step::Reverse(low, high - 1) };
                    return Some(Move { steps: [Some(step), None], touched: [a, b, c, d, a, b], gain });
                }
            }
        }
        None
    }

    /// Moves a run of up to three sets that begins or ends with `a` to where `a` has a nearer neighbour.
    fn or_opt(&self, a: usize) -> Option<Move> {
        let count = self.tour.len() - 2;
        if a == count {
            return None;
        }
        let p = usize::from(self.position[a]);
        for length in 1..=RUN_MAX {
            for a_first in [true, false] {
                let fits = if a_first { p + length <= count + 1 } else { length > 1 && p >= length };
                if !fits {
                    continue;
                }
                let first = if a_first { p } else { p + 1 - length };
                let found = self.or_opt_run(a, first, first + length - 1, a_first);
                if found.is_some() {
                    return found;
                }
            }
        }
        None
    }

    fn or_opt_run(&self, a: usize, first: usize, last: usize, a_first: bool) -> Option<Move> {
        let node = |p: usize| usize::from(self.tour[p]);
        let z = if a_first { node(last) } else { node(first) };
        let (before, after) = (node(first - 1), node(last + 1));
        let freed =
            self.between(before, node(first)) + self.between(node(last), after) - self.between(before, after);
        for c in self.near(a).iter().map(|&c| usize::from(c)) {
            let new = self.between(a, c);
            if new >= freed {
                break;
            }
            for follow in [true, false] {
                let q = self.position(c, follow);
                // The run goes between positions k and k + 1.
                let k = if follow { q } else { q - 1 };
                if (first - 1..=last).contains(&k) || (first..=last).contains(&q) {
                    continue;
                }
                let w = node(if follow { k + 1 } else { k });
                let gain = freed + self.between(c, w) - new - self.between(z, w);
                if gain > 0 {
                    let steps = move_run(first, last, k, follow != a_first);
                    return Some(Move { steps, touched: [a, z, before, after, c, w], gain });
                }
            }
        }
        None
    }

    fn apply(&mut self, step: Step) {
        let (first, last) = match step {
            Step::Reverse(first, last) => {
                self.tour[first..=last].reverse();
                (first, last)
            }
            Step::Rotate(first, last, left) => {
                self.tour[first..=last].rotate_left(left);
                (first, last)
            }
        };
        self.number(first, last);
        self.done.push(step);
    }

    fn undo(&mut self) {
        while let Some(step) = self.done.pop() {
            match step {
                Step::Reverse(first, last) => {
                    self.tour[first..=last].reverse();
                    self.number(first, last);
                }
                Step::Rotate(first, last, left) => {
                    self.tour[first..=last].rotate_right(left);
                    self.number(first, last);
                }
            }
        }
    }

    /// Notes the positions of the nodes that stand at `first..=last`.
    fn number(&mut self, first: usize, last: usize) {
        let from = u16::try_from(first).expect("few nodes");
        for (at, &node) in (from..).zip(&self.tour[first..=last]) {
            self.position[usize::from(node)] = at;
        }
    }
}

/// Steps that move the run at `first..=last` between positions `k` and `k + 1`, both outside it.
fn move_run(first: usize, last: usize, k: usize, reversed: bool) -> [Option<Step>; 2] {
    let length = last + 1 - first;
    let (step, start) = if k > last {
        (Step::Rotate(first, k, length), k + 1 - length)
    } else {
        (Step::Rotate(k + 1, last, last - k - length), k + 1)
    };
    let turn = (reversed && length > 1).then_some(Step::Reverse(start, start + length - 1));
    [Some(step), turn]
}
