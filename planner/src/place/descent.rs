//! Moves and swaps of single copies while they make the placement better.

use std::cmp::Reverse;

use super::score::time_ns;
use super::state::State;

/// Most passes over all copies; in practice three or four suffice.
const PASSES_MAX: usize = 12;
/// Hosts considered for swaps with each copy.
const SWAP_HOSTS: usize = 6;
/// Most swaps tried: some seconds.
const SWAPS_MAX: usize = 2_000_000;

/// Descends to a placement that no move of one copy makes better, nor a swap of two among the likely ones. The state's
/// placement must keep all constraints; so does the result.
pub(super) fn descend(state: &mut State) {
    let mut order: Vec<usize> = (0..state.problem.vms.len()).collect();
    order.retain(|&vm| state.problem.vms[vm].pins.is_none());
    order.sort_by_key(|&vm| (Reverse(state.problem.vms[vm].load), vm));
    let mut deltas = Vec::new();
    let mut swaps_left = SWAPS_MAX;
    for _ in 0..PASSES_MAX {
        let mut is_better = false;
        for &vm in &order {
            for from in state.placed[vm].clone() {
                let from = usize::from(from);
                is_better |= move_copy(state, vm, from, &mut deltas)
                    || swap_copy(state, vm, from, &deltas, &mut swaps_left);
            }
        }
        if !is_better {
            break;
        }
    }
}

/// Moves a copy to the best host, if that is better than where it is. Leaves what each host would cost in `deltas`.
fn move_copy(state: &mut State, vm: usize, from: usize, deltas: &mut Vec<u64>) -> bool {
    let before = state.cost();
    state.take(vm, from);
    if let Some(shares) = &mut state.shares {
        shares.deltas(vm, deltas);
    }
    for &host in &state.placed[vm] {
        deltas[usize::from(host)] = 0;
    }
    let rank = |host: usize| {
        let node = state.problem.leaf(host);
        let load = state.shares.as_ref().map_or(0, |shares| shares.load[node]);
        let time = time_ns(load, state.problem.nodes[node].rate_bps);
        (deltas[host], time, Reverse(state.free[host]), host)
    };
    let better = (0..deltas.len()).filter(|&to| to != from && deltas[to] <= deltas[from]);
    let allowed = better.filter(|&to| state.admits(vm, to) && state.has_company(vm, to));
    let best = allowed.min_by_key(|&host| rank(host)).filter(|_| state.is_not_missed(vm, from));
    let Some(to) = best else {
        state.put(vm, from);
        return false;
    };
    state.put(vm, from);
    let even = state.evenness(&[from, to]);
    state.take(vm, from);
    state.put(vm, to);
    let is_better = (state.cost(), state.evenness(&[from, to])) < (before, even);
    if !is_better {
        state.take(vm, to);
        state.put(vm, from);
    }
    is_better
}

/// Swaps a copy with one on a host where it would cost less.
fn swap_copy(state: &mut State, vm: usize, from: usize, deltas: &[u64], left: &mut usize) -> bool {
    let mut hosts: Vec<(u64, usize)> =
        deltas.iter().copied().zip(0..).filter(|&(delta, to)| to != from && delta < deltas[from]).collect();
    if hosts.len() > SWAP_HOSTS {
        hosts.select_nth_unstable(SWAP_HOSTS);
        hosts.truncate(SWAP_HOSTS);
    }
    hosts.sort_unstable();
    for (_, to) in hosts {
        for other in state.on[to].clone() {
            let other = usize::from(other);
            if *left == 0 {
                return false;
            }
            if other != vm && may_swap(state, (vm, from), (other, to)) {
                *left -= 1;
                if swap(state, (vm, from), (other, to)) {
                    return true;
                }
            }
        }
    }
    false
}

/// Whether two copies have room in each other's place.
fn may_swap(state: &State, (a, from_a): (usize, usize), (b, from_b): (usize, usize)) -> bool {
    let vms = &state.problem.vms;
    vms[b].pins.is_none()
        && vms[b].load.fits(state.free[from_a].plus(vms[a].load))
        && vms[a].load.fits(state.free[from_b].plus(vms[b].load))
}

/// Swaps two copies if that costs less and the constraints allow it.
fn swap(state: &mut State, (a, from_a): (usize, usize), (b, from_b): (usize, usize)) -> bool {
    let before = state.cost();
    state.take(a, from_a);
    state.take(b, from_b);
    if state.admits(a, from_b) {
        state.put(a, from_b);
        if state.admits(b, from_a) {
            state.put(b, from_a);
            let is_allowed = [(a, from_b), (b, from_a)].iter().all(|&(vm, to)| state.has_company(vm, to))
                && [(a, from_a), (b, from_b)].iter().all(|&(vm, from)| state.is_not_missed(vm, from));
            if is_allowed && state.cost() < before {
                return true;
            }
            state.take(b, from_a);
        }
        state.take(a, from_b);
    }
    state.put(a, from_a);
    state.put(b, from_b);
    false
}
