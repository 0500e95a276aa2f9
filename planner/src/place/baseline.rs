//! Placements that do not look at pages, to compare with.

use std::cmp::Reverse;

use super::problem::Problem;
use super::state::{Placed, State};
use crate::host_set::host_index;
use crate::rng::Rng;

/// Random placements tried before it is given up.
const TRIES: usize = 200;

/// The largest VM first, each to the host whose memory (or vCPUs) is used least. `None` if that dead-ends.
pub(super) fn balanced(problem: &Problem) -> Option<Placed> {
    let mut order: Vec<usize> = (0..problem.vms.len()).collect();
    order.sort_by_key(|&vm| (Reverse(problem.vms[vm].load), vm));
    fill(problem, &order, |state, vm| {
        let used = |host: usize| {
            let whole = problem.hosts[host];
            whole.minus(state.free[host]).plus(problem.vms[vm].load).share_of(whole)
        };
        (0..problem.hosts.len()).filter(|&host| state.admits(vm, host)).min_by_key(|&host| (used(host), host))
    })
}

/// Every VM to any host that takes it. `None` if 200 tries dead-end.
pub(super) fn random(problem: &Problem, rng: &mut Rng) -> Option<Placed> {
    (0..TRIES).find_map(|_| {
        let mut order: Vec<(u64, usize)> = (0..problem.vms.len()).map(|vm| (rng.next(), vm)).collect();
        order.sort_unstable();
        let order: Vec<usize> = order.into_iter().map(|(_, vm)| vm).collect();
        fill(problem, &order, |state, vm| {
            let open: Vec<usize> = (0..problem.hosts.len()).filter(|&host| state.admits(vm, host)).collect();
            (!open.is_empty()).then(|| open[rng.below(open.len())])
        })
    })
}

fn fill(
    problem: &Problem,
    order: &[usize],
    mut choose: impl FnMut(&State, usize) -> Option<usize>,
) -> Option<Placed> {
    let mut state = State::new(problem, None);
    for (vm, item) in problem.vms.iter().enumerate() {
        for host in item.pins.iter().flat_map(|pins| pins.iter().map(usize::from)) {
            if !state.admits(vm, host) {
                return None;
            }
            state.put(vm, host);
        }
    }
    for &vm in order {
        while !state.is_complete(vm) {
            // Where a VM that wants this one is, it must be.
            let missed = problem.vms[vm].wanted_by.iter().flat_map(|&other| state.placed[other].clone());
            let missed = missed.map(usize::from).find(|&host| !state.has(vm, host));
            let host = match missed {
                Some(host) if state.admits(vm, host) => host,
                Some(_) => return None,
                None => choose(&state, vm)?,
            };
            state.put(vm, host);
        }
    }
    let keeps_company = (0..problem.vms.len()).all(|vm| {
        let hosts = 0..host_index(problem.hosts.len());
        hosts.into_iter().all(|host| !state.has(vm, host.into()) || state.has_company(vm, host.into()))
    });
    keeps_company.then_some(state.placed)
}
