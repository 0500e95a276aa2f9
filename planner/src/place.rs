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
use crate::signatures::{SignatureError, Signatures, weights};

use problem::Problem;
use search::Outcome;
use shares::Sharing;

pub use explain::{Change, Constraint, Infeasible, Resource};

/// Steps after which a search gives up: about a second.
const STEPS_MAX: u64 = 400_000;
/// Steps for a search that prefers hosts with shared pages; if it fails, one without preferences follows.
const GUIDED_STEPS_MAX: u64 = 50_000;

/// Where each VM goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The hosts of each VM, by VM index of the inventory.
    pub hosts_of_vm: Vec<HostSet>,
    /// What it costs: the bytes that hosts need, summed over the hosts.
    pub bytes: u64,
    /// A lower bound of that cost over all placements (not always attainable).
    pub bytes_min: u64,
    /// How it was found.
    pub method: Method,
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
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BestFit => "best fit",
            Self::Greedy => "greedy by shared pages, host by host",
            Self::MostShared => "greedy by shared pages, VM by VM",
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
    let mut best: Option<(u64, Method, Vec<HostSet>)> = None;
    if sharing.is_any() {
        let greedy = greedy::greedy(&problem, &sharing).map(|found| (Method::Greedy, found));
        let guided = match search::search(&problem, Some(&sharing), GUIDED_STEPS_MAX).0 {
            Outcome::Found(found) => Some((Method::MostShared, found)),
            Outcome::Infeasible | Outcome::GaveUp => None,
        };
        for (method, found) in [greedy, guided].into_iter().flatten() {
            let found = improve::improve(&problem, &sharing, found);
            let bytes = problem::cost(&weights, &found);
            if best.as_ref().is_none_or(|best| bytes < best.0) {
                best = Some((bytes, method, found));
            }
        }
    }
    let (bytes, method, hosts_of_vm) = match best {
        Some(best) => best,
        None => {
            let found = any(inventory, &problem)?;
            (problem::cost(&weights, &found), Method::BestFit, found)
        }
    };
    let bytes_min = problem.cost_min(&weights);
    Ok(Placement { hosts_of_vm, bytes, bytes_min, method })
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
