//! Who hosts which VM.

mod explain;
mod greedy;
mod improve;
mod problem;
mod search;
mod shares;
mod state;

use std::fmt;

use crate::HostSet;
use crate::inventory::{Inventory, InventoryError};
use crate::signatures::{SignatureError, Signatures, Weight, weights};

use problem::Problem;
use search::Outcome;
use shares::Sharing;

pub use explain::{Change, Constraint, Infeasible, Resource};

/// Steps after which a search gives up: about a second.
const STEPS_MAX: u64 = 400_000;
/// Steps for a search that prefers hosts with shared pages; if it fails, one without preferences follows.
const GUIDED_STEPS_MAX: u64 = 50_000;

/// Most VMs for which the cheapest placement is searched for, and the steps of that search: a quarter of a second.
const EXACT_VMS_MAX: usize = 14;
const EXACT_STEPS_MAX: u64 = 200_000;

/// Where each VM goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The hosts of each VM, by VM index of the inventory.
    pub hosts_of_vm: Vec<HostSet>,
    /// What it costs: the bytes needed behind each link, times the link's cost, summed over all links but the source's.
    pub cost: u64,
    /// A lower bound of that cost over all placements; the cost itself if it is proved least.
    pub cost_min: u64,
    /// How it was found.
    pub method: Method,
    /// What other ways would cost, the cheapest first.
    pub alternatives: Vec<(Method, u64)>,
}

/// How a placement was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Method {
    /// Best-fit decreasing with backtracking; no pages are known to be shared.
    BestFit,
    /// VMScatter's greedy: fill the largest host first with the VMs that share most with it; then moves and swaps.
    Greedy,
    /// Largest VM first to the host it shares most with, with backtracking; then moves and swaps.
    MostShared,
    /// Branch and bound, from the better of the two above.
    BranchAndBound,
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BestFit => "best fit",
            Self::Greedy => "greedy by shared pages, host by host",
            Self::MostShared => "greedy by shared pages, VM by VM",
            Self::BranchAndBound => "branch and bound",
        })
    }
}

/// Why there is no placement.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlaceError {
    /// The inventory cannot be used.
    #[error(transparent)]
    Inventory(#[from] InventoryError),
    /// The signatures cannot be used.
    #[error(transparent)]
    Signatures(#[from] SignatureError),
    /// Proved: no placement keeps all constraints.
    #[error(transparent)]
    Infeasible(Box<Infeasible>),
    /// None was found, and none was proved impossible.
    #[error(
        "no placement was found in {steps} steps, though none was proved impossible; give some host more room, or pin some VMs"
    )]
    GaveUp {
        /// Steps taken.
        steps: u64,
    },
}

/// Places the VMs under memory, vCPUs, pins, clone counts, affinity and anti-affinity, so that hosts need few bytes
/// where `signatures` tell what VMs have in common.
///
/// Complete: [`PlaceError::Infeasible`] is a proof. The search takes at most 400,000 steps, each O(M log M) for M
/// hosts; where it finds nothing within them, [`PlaceError::GaveUp`] says so. Deterministic.
///
/// # Errors
/// [`PlaceError`].
pub fn place(inventory: &Inventory, signatures: Option<&Signatures>) -> Result<Placement, PlaceError> {
    inventory.validate()?;
    let problem = Problem::new(inventory);
    let weights = weights(inventory, signatures)?;
    let sharing = Sharing::new(&problem, &weights);
    let (method, hosts_of_vm, is_least) = if sharing.is_any() {
        let mut found = candidates(&problem, &sharing);
        if found.is_empty() {
            found.push((Method::BestFit, any(inventory, &problem)?));
        }
        let (method, found) = improved(&problem, &sharing, &weights, found);
        exact(&problem, &sharing, method, found)
    } else {
        (Method::BestFit, any(inventory, &problem)?, false)
    };
    let cost = problem::cost(&weights, &hosts_of_vm);
    let cost_min = if is_least { cost } else { problem.cost_min(&weights) };
    Ok(Placement { hosts_of_vm, cost, cost_min, method, alternatives: Vec::new() })
}

/// Placements by what VMs have in common.
fn candidates(problem: &Problem, sharing: &Sharing) -> Vec<(Method, Vec<HostSet>)> {
    let greedy = greedy::greedy(problem, sharing).map(|found| (Method::Greedy, found));
    let guided = match search::search(problem, Some(sharing), GUIDED_STEPS_MAX).0 {
        Outcome::Found(found) => Some((Method::MostShared, found)),
        Outcome::Infeasible | Outcome::GaveUp => None,
    };
    [greedy, guided].into_iter().flatten().collect()
}

/// The best of some placements after moves and swaps; of equally good ones the first.
fn improved(
    problem: &Problem,
    sharing: &Sharing,
    weights: &[Weight],
    found: Vec<(Method, Vec<HostSet>)>,
) -> (Method, Vec<HostSet>) {
    let improved =
        found.into_iter().map(|(method, found)| (method, improve::improve(problem, sharing, found)));
    improved.min_by_key(|(_, found)| problem::cost(weights, found)).expect("there is one")
}

/// The cheapest placement of few VMs, and whether it is proved cheapest.
fn exact(
    problem: &Problem,
    sharing: &Sharing,
    method: Method,
    found: Vec<HostSet>,
) -> (Method, Vec<HostSet>, bool) {
    if problem.vms.len() > EXACT_VMS_MAX || !sharing.is_all {
        return (method, found, false);
    }
    let below = improve::shared_cost(problem, sharing, &found);
    match search::cheapest(problem, sharing, below, EXACT_STEPS_MAX) {
        (Some(cheaper), is_proved) => (Method::BranchAndBound, cheaper, is_proved),
        (None, is_proved) => (method, found, is_proved),
    }
}

/// Any placement that keeps the constraints.
fn any(inventory: &Inventory, problem: &Problem) -> Result<Vec<HostSet>, PlaceError> {
    if let Some(constraint) = explain::plain_reason(inventory, problem) {
        return Err(PlaceError::Infeasible(Box::new(explain::explain(inventory, problem, Some(constraint)))));
    }
    match search::search(problem, None, STEPS_MAX) {
        (Outcome::Found(found), _) => Ok(found),
        (Outcome::Infeasible, _) => {
            Err(PlaceError::Infeasible(Box::new(explain::explain(inventory, problem, None))))
        }
        (Outcome::GaveUp, steps) => Err(PlaceError::GaveUp { steps }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::{Apart, Host, Isolation, Multicast, Source, Target, Vm};
    use crate::rng::Rng;
    use crate::signatures::SignatureWeight;

    /// Equal VMs in families and sub-families that share pages, on hosts that hold three each.
    fn families(vms: usize, hosts: usize, rng: &mut Rng) -> (Inventory, Signatures) {
        let name = |v: usize| format!("v{v}");
        let mut weights: Vec<SignatureWeight> = Vec::new();
        let mut add = |members: Vec<usize>, pages: usize| {
            let vms: Vec<String> = members.into_iter().map(name).collect();
            if !vms.is_empty() && weights.iter().all(|w| w.vms != vms) {
                weights.push(SignatureWeight {
                    vms,
                    pages: pages as u64,
                    bytes: pages as u64 * 4096,
                    ..SignatureWeight::default()
                });
            }
        };
        add((0..vms).collect(), 500);
        for modulus in [2, 3, 5] {
            for rest in 0..modulus {
                add((0..vms).filter(|v| v % modulus == rest).collect(), 500 + rng.below(2000));
            }
        }
        for _ in 0..3 * vms {
            let of = 2 + rng.below(3);
            let mut members: Vec<usize> = (0..of).map(|_| rng.below(vms)).collect();
            members.sort_unstable();
            members.dedup();
            add(members, rng.below(600));
        }
        (0..vms).for_each(|v| add(vec![v], 2000));
        let host = |h: usize| Host {
            name: format!("h{h}"),
            address: format!("10.0.0.{}:1", h + 1),
            memory_mib: 3,
            vcpus: 3,
            rate_mbps: 1,
            link_cost: 1,
            rack: None,
            domain: None,
        };
        let vm = |v: usize| Vm {
            name: name(v),
            image: name(v),
            format: None,
            memory_mib: 1,
            vcpus: 1,
            tenant: None,
            to: Target::default(),
            affinity: Vec::new(),
            anti_affinity: Vec::new(),
            clones_per_host: 1,
            apart: Apart::Host,
        };
        let multicast: Multicast = serde_json::from_str(r#"{"pool": "239.77.0.0/16"}"#).unwrap();
        let inventory = Inventory {
            version: 1,
            name: "families".to_owned(),
            source: Source { name: "s".to_owned(), address: None, rate_mbps: 1, rack: None },
            hosts: (0..hosts).map(host).collect(),
            vms: (0..vms).map(vm).collect(),
            multicast,
            isolation: Isolation::Normal,
            topology: None,
        };
        (inventory, Signatures { version: 1, weights, ..Default::default() })
    }

    /// What greedy and descent find, against branch and bound, where both are proved.
    #[test]
    fn heuristics_are_near_the_optimum() {
        let mut rng = Rng::new(3);
        let (mut gaps, mut greedy_gaps, mut proved) = (Vec::new(), Vec::new(), 0);
        for _ in 0..30 {
            let (inventory, signatures) = families(12, 4, &mut rng);
            let problem = Problem::new(&inventory);
            let weights = weights(&inventory, Some(&signatures)).unwrap();
            let sharing = Sharing::new(&problem, &weights);
            let greedy = greedy::greedy(&problem, &sharing).unwrap();
            let (method, found) = improved(&problem, &sharing, &weights, candidates(&problem, &sharing));
            let (_, best, is_proved) = exact(&problem, &sharing, method, found.clone());
            let cost = |placement: &[HostSet]| problem::cost(&weights, placement);
            assert!(problem.cost_min(&weights) <= cost(&best) && cost(&best) <= cost(&found));
            proved += usize::from(is_proved);
            gaps.push(cost(&found) as f64 / cost(&best) as f64 - 1.0);
            greedy_gaps.push(cost(&greedy) as f64 / cost(&best) as f64 - 1.0);
        }
        let mean = |gaps: &[f64]| gaps.iter().sum::<f64>() / gaps.len() as f64 * 100.0;
        let worst = |gaps: &[f64]| gaps.iter().fold(0.0, |a: f64, &b| a.max(b)) * 100.0;
        println!(
            "12 VMs on 4 hosts, above the best known ({proved} of 30 proved): greedy {:.2} % on average, {:.1} % at worst; \
             with moves and swaps {:.2} %, {:.1} %",
            mean(&greedy_gaps),
            worst(&greedy_gaps),
            mean(&gaps),
            worst(&gaps)
        );
        assert!(mean(&gaps) < 2.0 && worst(&gaps) < 5.0);
    }
}
