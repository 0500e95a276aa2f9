//! Depth-first search over VMs, largest first; complete up to its number of steps.

use std::cmp::Reverse;

use super::problem::{Load, Problem};
use super::shares::Sharing;
use super::state::{Placed, State};
use crate::HostSet;
use crate::host_set::host_index;

/// Steps before a search begins anew, at first.
const STEPS_FIRST: u64 = 5_000;

pub(super) enum Outcome {
    Found(Placed),
    /// Proved: there is none.
    Infeasible,
    /// The steps were used up.
    GaveUp,
}

/// One copy of one VM.
struct Frame {
    /// Position in the order of VMs.
    depth: usize,
    /// Which copy.
    copy: usize,
    /// The next candidate to try.
    next: usize,
    /// The host that it is on now.
    on: Option<usize>,
}

/// The hosts that a VM may go to, best first.
struct Candidates {
    hosts: Vec<u16>,
    /// So many of them, the first ones, it must have.
    musts: usize,
    /// Hosts left out because an equal VM before failed there.
    failed: Vec<u16>,
}

struct Search<'a> {
    state: State<'a>,
    order: Vec<usize>,
    /// What the VMs from each position of the order on take; and the least that one of them takes.
    rest: Vec<(Load, Load)>,
    /// Number of the first host with the same capacity.
    class: Vec<usize>,
    frames: Vec<Frame>,
    /// One for each VM begun.
    candidates: Vec<Candidates>,
    /// Only placements that cost less are wanted.
    below: Option<u64>,
    /// Whether the host with most room comes first, not that with least.
    evenly: bool,
    /// How often each VM had nowhere to go.
    failures: Vec<u32>,
}

/// Searches for a placement; with `sharing`, prefers hosts that need much of the VM's contents anyway, else those
/// with least room. Returns the steps taken, too.
///
/// Sound prunings, each by a symmetry under which every solution cut has an equal one that is searched:
/// - among untouched hosts of equal capacity only the first is tried (pinned VMs come before all others);
/// - the copies of a VM take its candidates in order;
/// - where a VM failed on a host, an equal VM after it is not tried there.
///
/// Where the first steps lead nowhere, it begins anew with the VMs first that had nowhere to go, and has twice the
/// steps (restarts by failures: Boussemart et al., ECAI 2004).
pub(super) fn search(problem: &Problem, sharing: Option<&Sharing>, steps_max: u64) -> (Outcome, u64) {
    let mut failures = vec![0u32; problem.vms.len()];
    let mut steps = 0;
    let mut limit = STEPS_FIRST.max(4 * problem.demand_copies());
    for round in 0.. {
        // Best fit leaves large gaps, but wastes what memory leaves of vCPUs; filling evenly is the other way round.
        let evenly = round % 2 == 1;
        let (outcome, taken) = run(problem, sharing, evenly, &mut failures, limit.min(steps_max - steps));
        steps += taken;
        if !matches!(outcome, Outcome::GaveUp) || steps >= steps_max {
            return (outcome, steps);
        }
        if evenly {
            limit *= 2;
        }
    }
    (Outcome::GaveUp, steps)
}

/// One search; counts for each VM how often it had nowhere to go.
fn run(
    problem: &Problem,
    sharing: Option<&Sharing>,
    evenly: bool,
    failures: &mut [u32],
    steps_max: u64,
) -> (Outcome, u64) {
    let mut search = Search::new(problem, sharing, failures);
    search.evenly = evenly;
    let mut steps = 0;
    if !search.begin(0) {
        return (Outcome::Infeasible, steps);
    }
    while let Some(frame) = search.frames.last() {
        if frame.depth == search.order.len() {
            return (Outcome::Found(search.state.placed), steps);
        }
        if steps == steps_max {
            failures.iter_mut().zip(&search.failures).for_each(|(sum, more)| *sum += more);
            return (Outcome::GaveUp, steps);
        }
        steps += 1;
        search.step();
    }
    (Outcome::Infeasible, steps)
}

/// Searches for the cheapest placement by branch and bound: the last one found that costs less than `below` (by
/// [`super::shares::Shares::cost`]), and whether it is proved that none costs less than that one, or than `below`.
pub(super) fn cheapest(
    problem: &Problem,
    sharing: &Sharing,
    below: u64,
    steps_max: u64,
) -> (Option<Placed>, bool) {
    let mut search = Search::new(problem, Some(sharing), &vec![0; problem.vms.len()]);
    search.below = Some(below);
    let mut best = None;
    if search.begin(0) {
        for _ in 0..steps_max {
            match search.frames.last() {
                None => return (best, true),
                Some(frame) if frame.depth == search.order.len() => {
                    search.frames.pop();
                    search.below = Some(search.state.cost());
                    best = Some(search.state.placed.clone());
                }
                Some(_) => search.step(),
            }
        }
        return (best, search.frames.is_empty());
    }
    (best, true)
}

impl<'a> Search<'a> {
    fn new(problem: &'a Problem, sharing: Option<&'a Sharing>, failures: &[u32]) -> Self {
        let order = order(problem, failures);
        let mut rest = vec![(Load::default(), Load { memory: u64::MAX, vcpus: u64::MAX }); order.len() + 1];
        for (depth, &vm) in order.iter().enumerate().rev() {
            let item = &problem.vms[vm];
            let (sum, least) = rest[depth + 1];
            let least =
                Load { memory: least.memory.min(item.load.memory), vcpus: least.vcpus.min(item.load.vcpus) };
            rest[depth] = (sum.plus(item.load.times(item.copies)), least);
        }
        let class = classes(problem, sharing);
        Self {
            state: State::new(problem, sharing),
            order,
            rest,
            class,
            frames: Vec::new(),
            candidates: Vec::new(),
            below: None,
            evenly: false,
            failures: vec![0; problem.vms.len()],
        }
    }

    /// Opens the VM at a position of the order; false if it can be seen that the rest does not fit, or costs too much.
    fn begin(&mut self, depth: usize) -> bool {
        if self.below.is_some_and(|below| self.state.cost() >= below) {
            return false;
        }
        if depth < self.order.len() {
            if !self.rest_fits(depth) {
                return false;
            }
            let Some(candidates) = self.candidates(depth) else {
                self.failures[self.order[depth]] += 1;
                return false;
            };
            self.candidates.push(candidates);
        }
        self.frames.push(Frame { depth, copy: 0, next: 0, on: None });
        true
    }

    /// Whether the room on hosts that can take any VM at all suffices in sum.
    fn rest_fits(&self, depth: usize) -> bool {
        let (sum, least) = self.rest[depth];
        let usable = self.state.free.iter().filter(|&&free| least.fits(free));
        sum.fits(usable.fold(Load::default(), |room, &free| room.plus(free)))
    }

    /// Moves the last frame on: to its next host, or back.
    fn step(&mut self) {
        let frame = self.frames.last_mut().expect("there is a frame to step");
        let (depth, copy) = (frame.depth, frame.copy);
        let vm = self.order[depth];
        if let Some(host) = frame.on.take() {
            self.state.take(vm, host);
        }
        let Some((index, host)) = self.next_host(vm) else {
            self.frames.pop();
            if copy == 0 {
                self.candidates.pop();
            }
            return;
        };
        self.state.put(vm, host);
        let frame = self.frames.last_mut().expect("it was there");
        (frame.next, frame.on) = (index + 1, Some(host));
        if copy + 1 < self.state.problem.vms[vm].copies {
            let next = match self.state.problem.vms[vm].per_host {
                0 | 1 => index + 1,
                // Further copies may go where one is.
                _ if copy + 1 == self.candidates.last().map_or(0, |c| c.musts) => 0,
                _ if copy + 1 < self.candidates.last().map_or(0, |c| c.musts) => index + 1,
                _ => index,
            };
            self.frames.push(Frame { depth, copy: copy + 1, next, on: None });
        } else {
            // If the rest does not fit, the next step takes this copy back.
            self.begin(depth + 1);
        }
    }

    /// The next host for the last frame: its index among the candidates, and the host.
    fn next_host(&self, vm: usize) -> Option<(usize, usize)> {
        let frame = self.frames.last()?;
        let candidates = self.candidates.last()?;
        let item = &self.state.problem.vms[vm];
        // Copies go to hosts in order, the first ones one each to where they must be.
        let left = (item.copies - frame.copy).div_ceil(item.per_host.max(1));
        let end = if frame.copy < candidates.musts {
            frame.copy + 1
        } else {
            (candidates.hosts.len() + 1).saturating_sub(left)
        };
        let range = frame.next..end.max(frame.next);
        range
            .map(|index| (index, usize::from(candidates.hosts[index])))
            .find(|&(_, host)| !self.has_twin(vm, host) && self.state.admits(vm, host))
    }

    /// Whether an untouched host has an untouched equal before it.
    fn has_twin(&self, vm: usize, host: usize) -> bool {
        self.state.problem.vms[vm].pins.is_none()
            && self.state.on[host].is_empty()
            && (self.class[host]..host)
                .any(|h| self.class[h] == self.class[host] && self.state.on[h].is_empty())
    }

    /// Where the VM at a position of the order may go, or `None` if it cannot have all its copies.
    fn candidates(&self, depth: usize) -> Option<Candidates> {
        let (state, vm) = (&self.state, self.order[depth]);
        let item = &state.problem.vms[vm];
        let mut musts = HostSet::new();
        for &other in &item.wanted_by {
            state.placed[other].iter().for_each(|&host| {
                musts.insert(host);
            });
        }
        let failed = self.failed(depth);
        let in_company = |host: u16| {
            item.with.iter().all(|&other| !state.is_complete(other) || state.has(other, host.into()))
        };
        let all = 0..host_index(state.problem.hosts.len());
        let mut hosts: Vec<u16> =
            all.filter(|&h| state.admits(vm, h.into()) && in_company(h) && !failed.contains(&h)).collect();
        let found = hosts.iter().filter(|&&h| musts.contains(h)).count();
        let most = hosts.len().saturating_mul(item.per_host.max(1));
        if most < item.copies || found < musts.len() || musts.len() > item.copies {
            return None;
        }
        hosts.sort_by_cached_key(|&h| {
            let host = usize::from(h);
            let (free, whole) = (state.free[host], state.problem.hosts[host]);
            let room = if self.evenly {
                whole.minus(free).share_of(whole)
            } else {
                u128::from(free.memory) << 64 | u128::from(free.vcpus)
            };
            (!musts.contains(h), state.delta(vm, host), room, h)
        });
        Some(Candidates { hosts, musts: musts.len(), failed })
    }

    /// Hosts on which an equal VM failed that is placed just before this one.
    fn failed(&self, depth: usize) -> Vec<u16> {
        if self.below.is_some() {
            // VMs that are equal in what they take differ in what they cost.
            return Vec::new();
        }
        let vms = &self.state.problem.vms;
        let Some((&before, frame)) =
            depth.checked_sub(1).and_then(|d| self.order.get(d)).zip(self.frames.last())
        else {
            return Vec::new();
        };
        let (item, equal) = (&vms[self.order[depth]], &vms[before]);
        if !(item.is_plain() && equal.is_plain() && item.load == equal.load) {
            return Vec::new();
        }
        let candidates = self.candidates.last().expect("each VM placed has its candidates");
        let tried = &candidates.hosts[..frame.next - 1];
        candidates.failed.iter().chain(tried).copied().collect()
    }
}

/// Number of the first host that is like each host, whatever goes there.
fn classes(problem: &Problem, sharing: Option<&Sharing>) -> Vec<usize> {
    let mut resident = HostSet::new();
    sharing.iter().flat_map(|s| &s.signatures).for_each(|s| resident.union_with(&s.resident));
    let is_resident = |host: usize| resident.contains(host_index(host));
    let firsts = problem.first_alike().into_iter().enumerate();
    // Where contents are resident, a host is like no other.
    firsts.map(|(host, first)| if is_resident(host) || is_resident(first) { host } else { first }).collect()
}

/// Pinned VMs first; then those that failed most; then VMs tied by affinity together, the largest such cluster first, in it the largest VM first.
fn order(problem: &Problem, failures: &[u32]) -> Vec<usize> {
    let cluster = clusters(problem);
    let total = problem.capacity();
    let size = |load: Load| load.share_of(total);
    let mut failed = vec![0u32; problem.vms.len()];
    for (&cluster, &count) in cluster.iter().zip(failures) {
        failed[cluster] += count;
    }
    let mut sum = vec![Load::default(); problem.vms.len()];
    for (vm, item) in problem.vms.iter().enumerate() {
        sum[cluster[vm]] = sum[cluster[vm]].plus(item.load);
    }
    let mut order: Vec<usize> = (0..problem.vms.len()).collect();
    order.sort_by_cached_key(|&vm| {
        let item = &problem.vms[vm];
        let single = problem.vms[vm].with.is_empty() && problem.vms[vm].wanted_by.is_empty();
        // VMs of their own are kept in order of size and load, so that equal ones follow each other.
        let own =
            if single { (Reverse(item.load), usize::MAX) } else { (Reverse(sum[cluster[vm]]), cluster[vm]) };
        (
            item.pins.is_none(),
            Reverse(failed[cluster[vm]]),
            Reverse(size(sum[cluster[vm]])),
            own,
            Reverse((size(item.load), item.copies, item.apart.len())),
            vm,
        )
    });
    order
}

/// The lowest VM that each VM is tied to by affinity, through others too.
fn clusters(problem: &Problem) -> Vec<usize> {
    let mut cluster: Vec<usize> = (0..problem.vms.len()).collect();
    for start in 0..problem.vms.len() {
        if cluster[start] != start {
            continue;
        }
        let mut open = vec![start];
        while let Some(vm) = open.pop() {
            for &other in problem.vms[vm].with.iter().chain(&problem.vms[vm].wanted_by) {
                if cluster[other] != start {
                    cluster[other] = start;
                    open.push(other);
                }
            }
        }
    }
    cluster
}
