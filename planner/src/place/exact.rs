//! The optimal placement of few copies, by dynamic programming over sets of them.

use std::collections::BTreeMap;

use super::problem::{Load, Problem};
use super::score::time_ns;
use super::shares::Sharing;
use super::state::Placed;
use crate::host_set::host_index;
use crate::inventory::Apart;

/// Most copies, of all VMs together.
pub(super) const COPIES_MAX: usize = 14;
/// Most steps: about a second.
const STEPS_MAX: u64 = 400_000_000;

/// Cost, then time of the busiest link in ns. Costs add up and times do not, but both can only be least in whole if
/// they are least in parts.
type Value = (u64, u64);
const NONE: Value = (u64::MAX, u64::MAX);

/// What the problem turns out to be.
pub(super) enum Exact {
    /// No placement costs less; of those that cost as little, none is faster.
    Found(Placed),
    /// Proved: there is none.
    Infeasible,
    /// Too large, or with constraints that this method does not know.
    Beyond,
}

/// Finds the best placement of up to 14 copies in up to 4·10^8 steps.
///
/// `best[S]` for a part of the tree of links is what it costs at least to hold exactly the copies `S` there: a host's
/// follows from what it can hold, a rack's from those of its parts by trying all splits. O((hosts + racks) · 3^N) time
/// (ALGORITHMS.md 2 (b)); of hosts that are alike at most N count. Failure domains need not follow the tree, and racks
/// with resident pages are not a matter of sets alone: both are left to branch and bound.
pub(super) fn exact(problem: &Problem, sharing: &Sharing) -> Exact {
    let Some(dp) = Dp::new(problem, sharing) else { return Exact::Beyond };
    let Some(plan) = dp.plan() else { return Exact::Beyond };
    let built = dp.part(&plan, None);
    let all = dp.full();
    if built.best[all] == NONE {
        return Exact::Infeasible;
    }
    let mut placed: Placed = vec![Vec::new(); problem.vms.len()];
    dp.trace(&built, all, &mut placed);
    placed.iter_mut().for_each(|hosts| hosts.sort_unstable());
    Exact::Found(placed)
}

/// What a host can hold.
struct HostSets {
    host: usize,
    /// Copies, and what they cost there; the empty set left out.
    sets: Vec<(usize, Value)>,
}

/// Hosts and racks below a node.
type Parts = BTreeMap<Option<usize>, (Vec<HostSets>, Vec<usize>)>;

/// A part of the tree, solved.
struct Built {
    best: Vec<Value>,
    /// What was added, and for each set which part of it went there.
    steps: Vec<(Child, Vec<u16>)>,
}

enum Child {
    Host(usize),
    Rack(Box<Built>),
}

struct Dp<'a> {
    problem: &'a Problem,
    /// The VM of each copy.
    vm_of: Vec<usize>,
    /// Copies of each VM.
    mask_of: Vec<usize>,
    /// Copies that hold each signature, its bytes and number; VMs' own bytes have none.
    weights: Vec<(usize, u64, Option<usize>)>,
    sharing: &'a Sharing,
    /// Bytes of each set of copies, where nothing is resident.
    bytes: Vec<u64>,
}

impl<'a> Dp<'a> {
    fn new(problem: &'a Problem, sharing: &'a Sharing) -> Option<Self> {
        let copies: usize = problem.vms.iter().fold(0, |sum, item| item.copies.saturating_add(sum));
        let uses_domains = |(_, scope): &(usize, Apart)| *scope == Apart::Domain;
        let by_domain = problem.vms.iter().any(|item| {
            item.apart.iter().any(uses_domains) || (item.spread == Apart::Domain && item.copies > 1)
        });
        // Sets do not tell whether two clones in a rack are on one host.
        let on_one = problem.vms.iter().any(|i| i.spread == Apart::Rack && i.copies > 1 && i.per_host > 1);
        let has_racks = problem.nodes.iter().any(|node| node.parent.is_some());
        let has_resident = sharing.signatures.iter().any(|signature| !signature.resident.is_empty());
        if copies > COPIES_MAX || by_domain || on_one || (has_racks && has_resident) {
            return None;
        }
        let mut vm_of = Vec::new();
        let mut mask_of = Vec::new();
        for (vm, item) in problem.vms.iter().enumerate() {
            mask_of.push(((1usize << item.copies) - 1) << vm_of.len());
            vm_of.extend(std::iter::repeat_n(vm, item.copies));
        }
        let mut weights: Vec<(usize, u64, Option<usize>)> =
            sharing.own.iter().zip(&mask_of).map(|(&bytes, &mask)| (mask, bytes, None)).collect();
        weights.extend(sharing.signatures.iter().enumerate().map(|(number, signature)| {
            let mask = signature.vms.iter().fold(0, |mask, &vm| mask | mask_of[usize::from(vm)]);
            (mask, signature.bytes, Some(number))
        }));
        let mut dp = Self { problem, vm_of, mask_of, weights, sharing, bytes: Vec::new() };
        dp.bytes = dp.bytes_of(|_| true);
        Some(dp)
    }

    fn full(&self) -> usize {
        (1 << self.vm_of.len()) - 1
    }

    /// Bytes of every set: all, without those that only others hold, which a zeta transform sums up.
    fn bytes_of(&self, counts: impl Fn(usize) -> bool) -> Vec<u64> {
        let full = self.full();
        let mut within = vec![0u64; full + 1];
        for &(mask, bytes, number) in &self.weights {
            if number.is_none_or(&counts) {
                within[mask] += bytes;
            }
        }
        for bit in 0..self.vm_of.len() {
            for mask in 0..=full {
                if mask >> bit & 1 == 1 {
                    within[mask] += within[mask ^ 1 << bit];
                }
            }
        }
        (0..=full).map(|mask| within[full] - within[full ^ mask]).collect()
    }

    /// Every host's sets, by the node it hangs on; `None` if that would take too many steps.
    fn plan(&self) -> Option<Parts> {
        let problem = self.problem;
        let mut parts: Parts = BTreeMap::new();
        let mut steps = 0u64;
        let racks = problem.nodes.len() - problem.hosts.len();
        for node in 0..racks {
            parts.entry(problem.nodes[node].parent).or_default().1.push(node);
            parts.entry(Some(node)).or_default();
            steps += 3u64.pow(u32::try_from(self.vm_of.len()).expect("few copies"));
        }
        parts.entry(None).or_default();
        let mut pinned = crate::HostSet::new();
        problem.vms.iter().filter_map(|item| item.pins.as_ref()).for_each(|pins| pinned.union_with(pins));
        let mut resident = crate::HostSet::new();
        self.sharing.signatures.iter().for_each(|signature| resident.union_with(&signature.resident));
        let mut alike: BTreeMap<usize, usize> = BTreeMap::new();
        for (host, first) in problem.first_alike().into_iter().enumerate() {
            let is_special =
                |host: usize| pinned.contains(host_index(host)) || resident.contains(host_index(host));
            if !is_special(host) && !is_special(first) {
                let count = alike.entry(first).or_default();
                *count += 1;
                if *count > self.vm_of.len() {
                    continue;
                }
            }
            let sets = self.sets(host, resident.contains(host_index(host)));
            let rest = |set: usize| 1u64 << (self.vm_of.len() - set.count_ones() as usize);
            steps += sets.iter().map(|&(set, _)| rest(set)).sum::<u64>() + self.bytes.len() as u64;
            if steps > STEPS_MAX {
                return None;
            }
            parts
                .entry(problem.nodes[problem.leaf(host)].parent)
                .or_default()
                .0
                .push(HostSets { host, sets });
        }
        (steps <= STEPS_MAX).then_some(parts)
    }

    /// What a host can hold, and what that costs on its link.
    fn sets(&self, host: usize, has_resident: bool) -> Vec<(usize, Value)> {
        let own;
        let bytes = if has_resident {
            let is_sent =
                |number: usize| !self.sharing.signatures[number].resident.contains(host_index(host));
            own = self.bytes_of(is_sent);
            &own
        } else {
            &self.bytes
        };
        let node = self.problem.nodes[self.problem.leaf(host)];
        let value = |set: usize| (bytes[set] * node.cost, time_ns(bytes[set], node.rate_bps));
        let mut load = vec![Load::default(); self.bytes.len()];
        let mut sets = Vec::new();
        for set in 1..self.bytes.len() {
            let low = set.trailing_zeros() as usize;
            load[set] = load[set & (set - 1)].plus(self.problem.vms[self.vm_of[low]].load);
            if load[set].fits(self.problem.hosts[host]) && self.may_hold(set, host) {
                sets.push((set, value(set)));
            }
        }
        sets
    }

    /// Whether pins, clones on one host, affinity and anti-affinity allow a set on a host.
    fn may_hold(&self, set: usize, host: usize) -> bool {
        self.problem.vms.iter().zip(&self.mask_of).all(|(item, &mask)| {
            let here = (set & mask).count_ones() as usize;
            if here == 0 {
                return true;
            }
            let most = if item.pins.is_some() { 1 } else { item.per_host };
            here <= most
                && item.pins.as_ref().is_none_or(|pins| pins.contains(host_index(host)))
                && item.with.iter().all(|&other| set & self.mask_of[other] != 0)
                && item.apart.iter().all(|&(other, _)| set & self.mask_of[other] == 0)
        })
    }

    /// Whether VMs and clones that are to be apart by rack allow a set in one rack.
    fn may_hold_in_rack(&self, set: usize) -> bool {
        self.problem.vms.iter().zip(&self.mask_of).all(|(item, &mask)| {
            let here = (set & mask).count_ones();
            let apart =
                |&(other, scope): &(usize, Apart)| scope != Apart::Rack || set & self.mask_of[other] == 0;
            here == 0 || ((item.spread != Apart::Rack || here == 1) && item.apart.iter().all(apart))
        })
    }

    /// Solves what is below a node; `None`: below the source's link.
    fn part(&self, parts: &Parts, node: Option<usize>) -> Built {
        let (hosts, racks) = &parts[&node];
        let mut built = Built { best: vec![NONE; self.bytes.len()], steps: Vec::new() };
        built.best[0] = (0, 0);
        for HostSets { host, sets } in hosts {
            let choice = add(&mut built.best, sets);
            built.steps.push((Child::Host(*host), choice));
        }
        // Hosts on one switch are of one rack, or of none at all.
        if let Some(first) = hosts.first()
            && self.is_rack(first.host)
        {
            for set in 1..built.best.len() {
                if !self.may_hold_in_rack(set) {
                    built.best[set] = NONE;
                }
            }
        }
        for &rack in racks {
            let below = self.part(parts, Some(rack));
            let sets: Vec<(usize, Value)> =
                (1..below.best.len()).map(|set| (set, below.best[set])).filter(|&(_, v)| v != NONE).collect();
            let choice = add(&mut built.best, &sets);
            built.steps.push((Child::Rack(Box::new(below)), choice));
        }
        if let Some(node) = node {
            let node = self.problem.nodes[node];
            for (set, best) in built.best.iter_mut().enumerate().filter(|(_, best)| **best != NONE) {
                best.0 += self.bytes[set] * node.cost;
                best.1 = best.1.max(time_ns(self.bytes[set], node.rate_bps));
            }
        }
        built
    }

    /// Whether a host names a rack: hosts that name none are racks of their own, which hold what hosts hold.
    fn is_rack(&self, host: usize) -> bool {
        self.problem.names_rack(host)
    }

    /// Follows the choices back.
    fn trace(&self, built: &Built, set: usize, placed: &mut Placed) {
        let mut left = set;
        for (child, choice) in built.steps.iter().rev() {
            let part = usize::from(choice[left]);
            left ^= part;
            match child {
                Child::Rack(below) => self.trace(below, part, placed),
                Child::Host(host) => {
                    for copy in (0..self.vm_of.len()).filter(|copy| part >> copy & 1 == 1) {
                        placed[self.vm_of[copy]].push(host_index(*host));
                    }
                }
            }
        }
    }
}

/// Lets one more part hold one of `sets`, or nothing; which one, for each set in all.
fn add(best: &mut [Value], sets: &[(usize, Value)]) -> Vec<u16> {
    let full = best.len() - 1;
    let before = best.to_vec();
    let mut choice = vec![0u16; best.len()];
    for &(set, value) in sets {
        let number = u16::try_from(set).expect("at most 14 copies");
        let others = full ^ set;
        // All subsets of the others, the empty one last.
        let mut rest = others;
        loop {
            if before[rest] != NONE {
                let sum = (before[rest].0 + value.0, before[rest].1.max(value.1));
                if sum < best[rest | set] {
                    best[rest | set] = sum;
                    choice[rest | set] = number;
                }
            }
            if rest == 0 {
                break;
            }
            rest = (rest - 1) & others;
        }
    }
    choice
}
