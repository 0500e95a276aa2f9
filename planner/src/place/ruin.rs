//! Large neighbourhood search: empties a few related hosts and fills them again (ruin and recreate: Schrimpf et al.,
//! J. Comp. Physics 159, 2000), keeping what is no worse.

use std::cmp::Reverse;

use super::score::Evenness;
use super::state::State;
use crate::rng::Rng;

/// Most copies taken away at once.
const TAKEN_MAX: usize = 28;
/// Rounds for each VM, and at most.
const ROUNDS_EACH: usize = 60;
const ROUNDS_MIN: usize = 3_000;
const ROUNDS_MAX: usize = 600_000;

/// Improves a whole placement that keeps all constraints. Stops early where the cost meets `bound`.
pub(super) fn improve(state: &mut State, bound: u64, rng: &mut Rng) {
    let movable: Vec<usize> =
        (0..state.problem.vms.len()).filter(|&vm| state.problem.vms[vm].pins.is_none()).collect();
    if movable.is_empty() || state.problem.hosts.len() < 2 {
        return;
    }
    let rounds = (movable.len() * ROUNDS_EACH).clamp(ROUNDS_MIN, ROUNDS_MAX);
    for round in 0..rounds {
        // Where traffic cannot fall any more, some rounds still make loads even.
        if state.cost() <= bound && round >= ROUNDS_MIN {
            break;
        }
        let hosts = related(state, movable[rng.below(movable.len())], rng);
        rebuild(state, &hosts, rng);
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

/// Takes copies off some hosts and puts them back, wherever among these hosts they cost least.
fn rebuild(state: &mut State, hosts: &[usize], rng: &mut Rng) {
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
    let mut put: Vec<(usize, usize)> = Vec::with_capacity(taken.len());
    for vm in vms {
        let Some(host) = choose(state, vm, hosts, rng) else { break };
        state.put(vm, host);
        put.push((vm, host));
    }
    let is_whole = put.len() == taken.len();
    if is_whole && (state.cost(), state.evenness(hosts)) <= before && ties_hold(state, &taken) {
        return;
    }
    put.iter().for_each(|&(vm, host)| state.take(vm, host));
    taken.iter().for_each(|&(vm, host)| state.put(vm, host));
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

/// The host where a copy costs least, now and then the second.
fn choose(state: &State, vm: usize, hosts: &[usize], rng: &mut Rng) -> Option<usize> {
    let mut ranked: Vec<(u64, u64, usize)> = hosts
        .iter()
        .filter(|&&host| state.admits(vm, host))
        .map(|&host| (state.delta(vm, host), rng.next(), host))
        .collect();
    ranked.sort_unstable();
    let second = ranked.len() > 1 && rng.below(12) == 0;
    ranked.get(usize::from(second)).map(|&(_, _, host)| host)
}

/// Whether affinities of VMs that may have moved hold.
fn ties_hold(state: &State, taken: &[(usize, usize)]) -> bool {
    taken.iter().all(|&(vm, from)| {
        state.placed[vm].iter().all(|&host| state.has_company(vm, host.into()))
            && state.is_not_missed(vm, from)
    })
}
