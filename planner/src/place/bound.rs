//! What no placement can cost less than.

use std::collections::BTreeMap;

use super::problem::{Load, Problem};
use super::shares::Sharing;
use super::state::Placed;
use crate::signatures::Weight;

/// Signatures of more VMs than this are taken to be shared by whatever is on a host, which keeps the bound's time
/// within the sum of squares of the small ones.
const MEMBERS_MAX: usize = 256;

/// Bins of one level of the tree: hosts, or racks.
struct Level {
    /// Memory and vCPUs of the bins, the largest first.
    memory: Vec<u64>,
    vcpus: Vec<u64>,
    /// Sums of the costs of the cheapest bins: of none, of one, of two...
    costs: Vec<u64>,
    /// Whether copies of one VM are in different bins.
    splits_copies: bool,
}

impl Level {
    fn new(bins: impl Iterator<Item = (Load, u64)>, splits_copies: bool) -> Self {
        let bins: Vec<(Load, u64)> = bins.collect();
        let sorted = |part: fn(&Load) -> u64| {
            let mut room: Vec<u64> = bins.iter().map(|(load, _)| part(load)).collect();
            room.sort_unstable_by_key(|&r| std::cmp::Reverse(r));
            room
        };
        let mut costs: Vec<u64> = bins.iter().map(|&(_, cost)| cost).collect();
        costs.sort_unstable();
        let mut sum = 0;
        let sums = std::iter::once(0).chain(costs.into_iter().map(|cost| {
            sum += cost;
            sum
        }));
        Self {
            memory: sorted(|l| l.memory),
            vcpus: sorted(|l| l.vcpus),
            costs: sums.collect(),
            splits_copies,
        }
    }

    /// How many of the largest bins hold a load.
    fn fewest(&self, load: Load) -> usize {
        fewest(&self.memory, load.memory).max(fewest(&self.vcpus, load.vcpus))
    }

    /// What so many bins cost, if they are the cheapest.
    fn cost(&self, bins: usize) -> u64 {
        self.costs[bins.min(self.costs.len() - 1)]
    }

    fn largest(&self) -> Load {
        let first = |list: &[u64]| list.first().copied().unwrap_or(0);
        Load { memory: first(&self.memory), vcpus: first(&self.vcpus) }
    }
}

/// How many of the largest rooms hold `need`.
fn fewest(descending: &[u64], need: u64) -> usize {
    let mut left = need;
    let used = descending.iter().take_while(|&&room| {
        let is_used = left > 0;
        left = left.saturating_sub(room);
        is_used
    });
    used.count()
}

/// Hosts, and the links that they hang on.
fn levels(problem: &Problem) -> [Level; 2] {
    let hosts =
        (0..problem.hosts.len()).map(|host| (problem.hosts[host], problem.nodes[problem.leaf(host)].cost));
    let mut racks: BTreeMap<Option<usize>, Load> = BTreeMap::new();
    for host in 0..problem.hosts.len() {
        let sum = racks.entry(problem.nodes[problem.leaf(host)].parent).or_default();
        *sum = sum.plus(problem.hosts[host]);
    }
    let rack_cost = |node: Option<usize>| node.map_or(0, |node| problem.nodes[node].cost);
    [Level::new(hosts, true), Level::new(racks.iter().map(|(&node, &load)| (load, rack_cost(node))), false)]
}

/// What a byte of each signature costs at least.
pub(super) struct Least {
    levels: [Level; 2],
}

impl Least {
    pub(super) fn new(problem: &Problem) -> Self {
        Self { levels: levels(problem) }
    }

    /// Each signature goes at least to as many hosts as its VMs have copies, or need for their memory and vCPUs if
    /// they got the largest hosts (and racks), and these were the cheapest; and to where its VMs are pinned.
    pub(super) fn of(&self, problem: &Problem, weight: &Weight) -> u64 {
        let items = || weight.vms.iter().map(|&vm| &problem.vms[usize::from(vm)]);
        let load = items().fold(Load::default(), |sum, item| sum.plus(item.load.times(item.copies)));
        let copies = items().map(super::problem::Item::hosts_min).max().unwrap_or(0);
        let resident = weight.resident.len();
        let hosts = self.levels[0].fewest(load).max(copies).saturating_sub(resident);
        let racks = if resident == 0 { self.levels[1].fewest(load).max(1) } else { usize::from(hosts > 0) };
        let by_room = self.levels[0].cost(hosts) + self.levels[1].cost(racks);
        let mut pinned: Vec<usize> = items()
            .filter_map(|item| item.pins.as_ref())
            .flat_map(|pins| pins.difference(&weight.resident).iter().map(usize::from).collect::<Vec<_>>())
            .flat_map(|host| problem.way(host))
            .collect();
        pinned.sort_unstable();
        pinned.dedup();
        by_room.max(pinned.into_iter().map(|node| problem.nodes[node].cost).sum())
    }
}

/// A lower bound of the cost of all placements: the better of what each signature costs at least by itself, and what
/// each VM's part of a host's bytes is at least.
///
/// The second: let every host's bytes be paid by the VMs there, each content by those that hold it in equal parts. A
/// VM's part is least with the best company that fits beside it; with `c` companions that hold a content, its part is
/// `1/(c + 1)`, a convex function that any of its chords bounds from below at whole numbers, so the best company for a
/// choice of chords is a knapsack, whose fractional solution bounds it. `guide`, a good placement, chooses the chords.
pub(super) fn bound(problem: &Problem, sharing: &Sharing, guide: &Placed, floor: u64) -> u64 {
    let parts = Parts::new(problem, sharing, guide);
    let [hosts, racks] = levels(problem);
    let of = |level: &Level, zone: &dyn Fn(usize) -> usize| {
        let least = (0..problem.vms.len()).map(|vm| parts.of(vm, level, zone)).sum::<f64>();
        // Rounding errors stay far below a billionth.
        least * (1.0 - 1e-9)
    };
    let leaf = |host: usize| host;
    let rack = |host: usize| {
        let count = problem.hosts.len();
        problem.nodes[problem.leaf(host)].parent.map_or(count + host, |node| count * 2 + node)
    };
    let by_hosts = of(&hosts, &leaf) * hosts.cost(1) as f64;
    let by_racks = if racks.cost(1) == 0 { 0.0 } else { of(&racks, &rack) * racks.cost(1) as f64 };
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "costs are within 64 bits, and rounded down"
    )]
    let together = (by_hosts + by_racks).max(0.0) as u64;
    floor.max(together)
}

struct Parts<'a> {
    problem: &'a Problem,
    sharing: &'a Sharing,
    guide: &'a Placed,
    /// Of all VMs, ascending.
    memory: Vec<u64>,
    vcpus: Vec<u64>,
}

impl<'a> Parts<'a> {
    fn new(problem: &'a Problem, sharing: &'a Sharing, guide: &'a Placed) -> Self {
        let sorted = |part: fn(&Load) -> u64| {
            let mut sizes: Vec<u64> = problem.vms.iter().map(|item| part(&item.load)).collect();
            sizes.sort_unstable();
            sizes
        };
        Self { problem, sharing, guide, memory: sorted(|l| l.memory), vcpus: sorted(|l| l.vcpus) }
    }

    /// The least part of bytes that all presences of a VM pay in bins of a level.
    fn of(&self, vm: usize, level: &Level, zone: &dyn Fn(usize) -> usize) -> f64 {
        let item = &self.problem.vms[vm];
        let own = self.sharing.own[vm] as f64;
        let room = level.largest();
        if !item.load.fits(room) {
            return 0.0;
        }
        let room = room.minus(item.load);
        let companions = most(&self.memory, room.memory).min(most(&self.vcpus, room.vcpus));
        let paid = [0usize, 1]
            .map(|below| self.company(vm, companions, room, below, zone))
            .into_iter()
            .fold(0.0f64, f64::max);
        let presences = if level.splits_copies { item.hosts_min() } else { 1 };
        (own + paid) * presences as f64
    }

    /// A bound of what a VM pays of its shared contents; `below` chooses the chords.
    fn company(
        &self,
        vm: usize,
        companions: usize,
        room: Load,
        below: usize,
        zone: &dyn Fn(usize) -> usize,
    ) -> f64 {
        let here = self.guide[vm].first().map(|&host| zone(host.into()));
        let (mut paid, mut gains): (f64, BTreeMap<u16, f64>) = (0.0, BTreeMap::new());
        let mut gain_of_all = 0.0;
        for &number in &self.sharing.of_vm[vm] {
            let signature = &self.sharing.signatures[number as usize];
            if !signature.resident.is_empty() {
                continue;
            }
            let bytes = signature.bytes as f64;
            let most = signature.vms.len().min(companions + 1);
            if signature.vms.len() > MEMBERS_MAX {
                paid += bytes / most as f64;
                continue;
            }
            let with = |&&other: &&u16| {
                self.guide[usize::from(other)].iter().any(|&host| Some(zone(host.into())) == here)
            };
            let now = signature.vms.iter().filter(with).count();
            let chord = now.saturating_sub(below).clamp(1, most) as f64;
            paid += bytes * (1.0 - (chord - 1.0) / (chord + 1.0));
            let gain = bytes / (chord * (chord + 1.0));
            if signature.vms.len() == self.problem.vms.len() {
                gain_of_all += gain;
                continue;
            }
            for &other in signature.vms.iter().filter(|&&other| usize::from(other) != vm) {
                *gains.entry(other).or_default() += gain;
            }
        }
        let paid = paid - gain_of_all * companions as f64;
        (paid - self.best(&gains, companions, room.memory)).max(0.0)
    }

    /// The most that companions can gain: so many of them, and (a fraction of the last) within the memory.
    fn best(&self, gains: &BTreeMap<u16, f64>, companions: usize, memory: u64) -> f64 {
        let mut by_gain: Vec<f64> = gains.values().copied().collect();
        by_gain.sort_by(|a, b| b.total_cmp(a));
        let by_count: f64 = by_gain.iter().take(companions).sum();
        let size = |vm: &u16| self.problem.vms[usize::from(*vm)].load.memory.max(1) as f64;
        let mut by_memory: Vec<(f64, f64)> = gains.iter().map(|(vm, &gain)| (gain, size(vm))).collect();
        by_memory.sort_by(|a, b| (b.0 / b.1).total_cmp(&(a.0 / a.1)));
        let mut left = memory as f64;
        let mut sum = 0.0;
        for (gain, size) in by_memory {
            let part = (left / size).min(1.0);
            sum += gain * part;
            left -= size * part;
            if left <= 0.0 {
                break;
            }
        }
        by_count.min(sum)
    }
}

/// How many of the smallest sizes fit a room.
fn most(ascending: &[u64], room: u64) -> usize {
    let mut left = room;
    let fit = ascending.iter().take_while(|&&size| {
        let fits = size <= left;
        left = left.saturating_sub(size);
        fits
    });
    fit.count()
}
