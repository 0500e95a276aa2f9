//! Moves and swaps of single copies while they save bytes.

use super::problem::Problem;
use super::shares::Sharing;
use super::state::State;
use crate::HostSet;
use crate::host_set::host_index;

/// Most passes over all copies; in practice three or four suffice.
const PASSES_MAX: usize = 20;
/// Most signatures looked at for swaps, over all passes: about a second.
const LOOKS_MAX: usize = 200_000_000;

/// Descends to a placement that no move of one copy, nor swap of two, makes cheaper. `hosts_of_vm` must keep all
/// constraints; so does the result.
pub(super) fn improve(problem: &Problem, sharing: &Sharing, hosts_of_vm: Vec<HostSet>) -> Vec<HostSet> {
    let mut state = whole(problem, sharing, &hosts_of_vm);
    let mut looks_left = LOOKS_MAX;
    for _ in 0..PASSES_MAX {
        let moved = move_all(&mut state);
        if !(swap_all(&mut state, sharing, &mut looks_left) || moved) {
            break;
        }
    }
    state.hosts_of_vm
}

/// Bytes that hosts need of what VMs have in common.
pub(super) fn shared_cost(problem: &Problem, sharing: &Sharing, hosts_of_vm: &[HostSet]) -> u64 {
    whole(problem, sharing, hosts_of_vm).shares.map_or(0, |shares| shares.cost())
}

fn whole<'a>(problem: &'a Problem, sharing: &'a Sharing, hosts_of_vm: &[HostSet]) -> State<'a> {
    let mut state = State::new(problem, Some(sharing));
    for (vm, hosts) in hosts_of_vm.iter().enumerate() {
        hosts.iter().for_each(|host| state.put(vm, host.into()));
    }
    state
}

/// All copies that may move.
fn copies(state: &State) -> Vec<(usize, usize)> {
    let movable =
        state.hosts_of_vm.iter().enumerate().filter(|&(vm, _)| state.problem.vms[vm].pins.is_none());
    movable.flat_map(|(vm, hosts)| hosts.iter().map(move |host| (vm, host.into()))).collect()
}

fn move_all(state: &mut State) -> bool {
    let mut moved = false;
    for (vm, from) in copies(state) {
        let here = state.shared(vm, from);
        // Only a host that needs more of the VM's contents saves bytes.
        let better = (0..state.free.len())
            .filter(|&to| to != from)
            .map(|to| (state.shared(vm, to), to))
            .filter(|&(there, _)| there > here);
        let mut better: Vec<(u64, usize)> = better.collect();
        better.sort_unstable_by_key(|&(there, to)| (std::cmp::Reverse(there), to));
        moved |= better.into_iter().any(|(_, to)| try_move(state, vm, from, to));
    }
    moved
}

/// Moves a copy if the constraints allow it.
fn try_move(state: &mut State, vm: usize, from: usize, to: usize) -> bool {
    if state.has(vm, to) {
        return false;
    }
    state.take(vm, from);
    let host = if allows(state, vm, from, to) { to } else { from };
    state.put(vm, host);
    host == to
}

/// Whether a copy just taken from `from` may go to `to`.
fn allows(state: &State, vm: usize, from: usize, to: usize) -> bool {
    state.admits(vm, to)
        && state.has_company(vm, to)
        && !state.problem.vms[vm]
            .wanted_by
            .iter()
            .any(|&other| state.hosts_of_vm[other].contains(host_index(from)))
}

fn swap_all(state: &mut State, sharing: &Sharing, looks_left: &mut usize) -> bool {
    let copies = copies(state);
    let mut swapped = false;
    // Taking two copies away, looking at both the other way round, and putting them back.
    let looks = |a: usize, b: usize| 6 * (sharing.of_vm[a].len() + sharing.of_vm[b].len() + 1);
    // Where each copy is now; swaps change it on the way.
    let mut now: Vec<usize> = copies.iter().map(|&(_, host)| host).collect();
    for a in 0..copies.len() {
        for b in a + 1..copies.len() {
            let Some(left) = looks_left.checked_sub(looks(copies[a].0, copies[b].0)) else { return swapped };
            *looks_left = left;
            if now[a] != now[b] && try_swap(state, (copies[a].0, now[a]), (copies[b].0, now[b])) {
                now.swap(a, b);
                swapped = true;
            }
        }
    }
    swapped
}

/// Swaps two copies if that saves bytes and the constraints allow it.
fn try_swap(state: &mut State, (a, from_a): (usize, usize), (b, from_b): (usize, usize)) -> bool {
    if a == b || state.has(a, from_b) || state.has(b, from_a) {
        return false;
    }
    let before = state.shared(a, from_a) + state.shared(b, from_b);
    state.take(a, from_a);
    state.take(b, from_b);
    let after = state.shared(a, from_b) + state.shared(b, from_a);
    if after > before && state.admits(a, from_b) && state.admits(b, from_a) {
        state.put(a, from_b);
        state.put(b, from_a);
        if [(a, from_a), (b, from_b)].iter().all(|&(vm, from)| keeps_company(state, vm, from)) {
            return true;
        }
        state.take(a, from_b);
        state.take(b, from_a);
    }
    state.put(a, from_a);
    state.put(b, from_b);
    false
}

/// Whether a VM that left `from` has all it must be with where it is, and is missed by none there.
fn keeps_company(state: &State, vm: usize, from: usize) -> bool {
    state.hosts_of_vm[vm].iter().all(|host| state.has_company(vm, host.into()))
        && !state.problem.vms[vm].wanted_by.iter().any(|&other| state.has(other, from))
}
