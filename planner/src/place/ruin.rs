//! Large neighbourhood search: empties a few related hosts and fills them again (ruin and recreate: Schrimpf et al.,
//! J. Comp. Physics 159, 2000), keeping what is no worse.

use std::cmp::Reverse;

use super::score::Evenness;
use super::state::State;
use crate::host_set::host_index;
use crate::rng::Rng;

/// Most copies taken away at once.
const TAKEN_MAX: usize = 28;
/// Rounds for each VM, and at most.
const ROUNDS_EACH: usize = 100;
const ROUNDS_MIN: usize = 3_000;
const ROUNDS_MAX: usize = 600_000;
/// Up to so many VMs there is much slack, deep rounds, or some slack. With more, they take more time than they are worth.
const FEW_VMS_MAX: usize = 20;
const DEEP_VMS_MAX: usize = 60;
const SLACK_VMS_MAX: usize = 1_000;
/// The rounds are done in so many parts, each begun with much slack and ended with none (threshold accepting, as there).
const PARTS: usize = 6;
/// One round in so many is deep, where any are, with so many steps; the others have so many for each copy.
const DEEP_EVERY: usize = 16;
const STEPS_DEEP: usize = 1_000;
const STEPS_EACH: usize = 2;
/// Slack at the beginning of a part, much and some: this part of what a copy costs on average.
const SLACK_PARTS: (u64, u64) = (2, 8);

/// Improves a whole placement that keeps all constraints. Stops early where the cost meets `bound`.
pub(super) fn improve(state: &mut State, bound: u64, rng: &mut Rng) {
    let movable: Vec<usize> =
        (0..state.problem.vms.len()).filter(|&vm| state.problem.vms[vm].pins.is_none()).collect();
    if movable.is_empty() || state.problem.hosts.len() < 2 {
        return;
    }
    let rounds = (movable.len() * ROUNDS_EACH).clamp(ROUNDS_MIN, ROUNDS_MAX);
    let part = rounds / PARTS;
    let copies: usize = state.placed.iter().map(Vec::len).sum();
    let per_copy = state.cost() / copies as u64;
    let slack_max = if movable.len() <= FEW_VMS_MAX {
        per_copy / SLACK_PARTS.0
    } else if movable.len() <= SLACK_VMS_MAX {
        per_copy / SLACK_PARTS.1
    } else {
        0
    };
    let mut best = (state.cost(), state.placed.clone());
    for round in 0..rounds {
        let left = part - 1 - round % part;
        // The last third of a part takes no more losses.
        let slack = slack_max * (left * 3).saturating_sub(part) as u64 / (part * 2) as u64;
        let hosts = related(state, movable[rng.below(movable.len())], rng);
        let is_deep = movable.len() <= DEEP_VMS_MAX && rng.below(DEEP_EVERY) == 0;
        rebuild(state, &hosts, if is_deep { Pace::Deep } else { Pace::Quick { slack } }, rng);
        if left == 0 {
            if state.cost() > best.0 {
                state.reset(&best.1);
            }
            best = (state.cost(), state.placed.clone());
            // Where traffic cannot fall any more, some rounds still make loads even.
            if state.cost() <= bound && round >= ROUNDS_MIN {
                break;
            }
        }
    }
}

/// The host of a VM, and hosts of VMs that have contents in common with those there, or any.
fn related(state: &State, vm: usize, rng: &mut Rng) -> Vec<usize> {
    let problem = state.problem;
    let most = 2 + rng.below(3);
    let any_of = |hosts: &[u16], rng: &mut Rng| usize::from(hosts[rng.below(hosts.len())]);
    let mut hosts = vec![any_of(&state.placed[vm], rng)];
    let signatures = state.shares.as_ref().map(super::shares::Shares::sharing);
    for _ in 0..4 * most {
        if hosts.len() >= most.min(problem.hosts.len()) {
            break;
        }
        let on = &state.on[hosts[rng.below(hosts.len())]];
        let from = if on.is_empty() { vm } else { usize::from(on[rng.below(on.len())]) };
        let shared = signatures.map_or(&[][..], |sharing| &sharing.of_vm[from]);
        let host = if shared.is_empty() || rng.below(5) == 0 {
            rng.below(problem.hosts.len())
        } else {
            let number = shared[rng.below(shared.len())] as usize;
            let vms = signatures.map_or(&[][..], |sharing| &sharing.signatures[number].vms);
            any_of(&state.placed[usize::from(vms[rng.below(vms.len())])], rng)
        };
        if !hosts.contains(&host) {
            hosts.push(host);
        }
    }
    hosts
}

/// What a round looks for.
enum Pace {
    /// Whatever costs no more than now, or up to so much more, at random.
    Quick { slack: u64 },
    /// Something that costs less, thoroughly.
    Deep,
}

/// Takes copies off some hosts and puts them back, wherever among these hosts they cost least.
fn rebuild(state: &mut State, hosts: &[usize], pace: Pace, rng: &mut Rng) {
    let before: (u64, Evenness) = (state.cost(), state.evenness(hosts));
    let mut taken: Vec<(usize, usize)> = Vec::new();
    for &host in hosts {
        let here = state.on[host].iter().map(|&vm| usize::from(vm));
        taken.extend(here.filter(|&vm| state.problem.vms[vm].pins.is_none()).map(|vm| (vm, host)));
    }
    while taken.len() > TAKEN_MAX {
        taken.swap_remove(rng.below(taken.len()));
    }
    taken.iter().for_each(|&(vm, host)| state.take(vm, host));
    let vms = order(state, &taken, rng);
    let (limit, steps) = match pace {
        Pace::Quick { slack } => (before.0 + rng.next() % (slack + 1), STEPS_EACH * vms.len()),
        Pace::Deep => (before.0.saturating_sub(1), STEPS_DEEP),
    };
    let mut refill = Refill { hosts, taken: &taken, before, limit, steps };
    if !refill.fill(state, &vms, rng) {
        taken.iter().for_each(|&(vm, host)| state.put(vm, host));
    }
}

/// Copies being put back: depth first, as far as steps suffice.
struct Refill<'a> {
    hosts: &'a [usize],
    taken: &'a [(usize, usize)],
    before: (u64, Evenness),
    /// What the placement may cost.
    limit: u64,
    /// Steps left.
    steps: usize,
}

impl Refill<'_> {
    /// Puts a copy of each VM back. False if that is not found; then none is put.
    fn fill(&mut self, state: &mut State, vms: &[usize], rng: &mut Rng) -> bool {
        let Some((&vm, rest)) = vms.split_first() else { return self.is_kept(state) };
        for host in ranked(state, vm, self.hosts, rng) {
            if self.steps == 0 {
                return false;
            }
            self.steps -= 1;
            state.put(vm, host);
            // What is placed costs no less by more of it.
            if state.cost() <= self.limit && self.fill(state, rest, rng) {
                return true;
            }
            state.take(vm, host);
        }
        false
    }

    /// Whether the placement, whole again, is taken.
    fn is_kept(&self, state: &State) -> bool {
        let is_even = || (state.cost(), state.evenness(self.hosts)) <= self.before;
        (self.limit != self.before.0 || is_even()) && ties_hold(state, self.taken)
    }
}

/// An order to put copies back in: by size, by bytes, or any.
fn order(state: &State, taken: &[(usize, usize)], rng: &mut Rng) -> Vec<usize> {
    let mut vms: Vec<usize> = taken.iter().map(|&(vm, _)| vm).collect();
    let by = rng.below(3);
    let whole = state.problem.capacity();
    let all = |vm: usize| state.shares.as_ref().map_or(0, |shares| shares.sharing().all[vm]);
    let mut keyed: Vec<(Reverse<u128>, u64, usize)> = vms
        .drain(..)
        .map(|vm| {
            let key = match by {
                0 => state.problem.vms[vm].load.share_of(whole),
                1 => all(vm).into(),
                _ => 0,
            };
            (Reverse(key), rng.next(), vm)
        })
        .collect();
    keyed.sort_unstable();
    keyed.into_iter().map(|(_, _, vm)| vm).collect()
}

/// The hosts where a copy may go, the cheapest first, now and then the second.
fn ranked(state: &State, vm: usize, hosts: &[usize], rng: &mut Rng) -> Vec<usize> {
    let musts = state.missed(vm);
    let mut ranked: Vec<(u64, u64, usize)> = hosts
        .iter()
        .filter(|&&host| musts.is_empty() || musts.contains(&host_index(host)))
        .filter(|&&host| state.admits(vm, host) && state.may_have_company(vm, host))
        .map(|&host| (state.delta(vm, host), rng.next(), host))
        .collect();
    ranked.sort_unstable();
    if ranked.len() > 1 && rng.below(12) == 0 {
        ranked.swap(0, 1);
    }
    ranked.into_iter().map(|(_, _, host)| host).collect()
}

/// Whether affinities of VMs that may have moved hold.
fn ties_hold(state: &State, taken: &[(usize, usize)]) -> bool {
    taken.iter().all(|&(vm, from)| {
        state.placed[vm].iter().all(|&host| state.has_company(vm, host.into()))
            && state.is_not_missed(vm, from)
    })
}
