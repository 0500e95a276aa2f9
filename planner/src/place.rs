//! Who hosts which VM.

mod baseline;
mod bound;
mod descent;
mod exact;
mod explain;
mod greedy;
mod problem;
mod ruin;
mod score;
mod search;
mod shares;
mod state;

use std::fmt;

use crate::HostSet;
use crate::inventory::{Inventory, InventoryError};
use crate::rng::Rng;
use crate::signatures::{SignatureError, Signatures, weights};

use exact::Exact;
use problem::Problem;
use score::Score;
use search::Outcome;
use shares::Sharing;
use state::{Placed, State};

pub use explain::{Change, Constraint, Infeasible, Resource};

/// Steps after which a search for any placement gives up: about a second.
const STEPS_MAX: u64 = 400_000;
/// Steps for a search that prefers hosts with shared pages; if it fails, one without preferences follows.
const GUIDED_STEPS_MAX: u64 = 50_000;
/// Steps of branch and bound, where there are few VMs and the exact method does not apply: a second.
const BRANCH_STEPS_MAX: u64 = 400_000;
const BRANCH_VMS_MAX: usize = 14;

/// Where each VM goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The hosts of each VM, by VM index of the inventory.
    pub hosts_of_vm: Vec<HostSet>,
    /// How many copies each of them gets, by VM index, hosts ascending.
    pub instances_of_vm: Vec<Vec<u32>>,
    /// What it costs: the bytes needed behind each link, times the link's cost, summed over all links but the source's.
    pub cost: u64,
    /// A lower bound of that cost over all placements; the cost itself if it is proved least.
    pub cost_min: u64,
    /// How it was found.
    pub method: Method,
    /// What other ways cost, the cheapest first.
    pub alternatives: Vec<(Method, u64)>,
}

/// A way to find a placement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Method {
    /// Dynamic programming over sets of copies: up to 14, proved best.
    Exact,
    /// Branch and bound, from the best of the ways below.
    BranchAndBound,
    /// Moves, swaps, and emptying and filling related hosts, from the best of the ways below.
    LocalSearch,
    /// VMScatter's greedy: fill the largest host first with the VMs that share most with it.
    Greedy,
    /// Largest VM first to the host where it costs least, with backtracking.
    LeastAdded,
    /// Best-fit decreasing with backtracking, whatever VMs have in common.
    BestFit,
    /// Largest VM first to the host that is used least, whatever VMs have in common.
    Balanced,
    /// Any host that takes the VM.
    Random,
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exact => "dynamic programming",
            Self::BranchAndBound => "branch and bound",
            Self::LocalSearch => "local search",
            Self::Greedy => "greedy by shared pages, host by host",
            Self::LeastAdded => "greedy by shared pages, VM by VM",
            Self::BestFit => "best fit",
            Self::Balanced => "load balancing",
            Self::Random => "random",
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

/// Places the VMs under memory, vCPUs, pins, clone counts, affinity and anti-affinity, so that links carry few bytes
/// where `signatures` tell what VMs have in common; among placements that cost the same, so that the busiest link is
/// done soon, then so that hosts are used evenly.
///
/// Complete: [`PlaceError::Infeasible`] is a proof. Up to 14 copies are placed at proved least cost ([`Method::Exact`];
/// `docs/planner.md` says when). The search for any placement takes at most 400,000 steps, each O(M log M) for M hosts;
/// where it finds nothing within them, [`PlaceError::GaveUp`] says so. Equal arguments give equal placements.
///
/// ```
/// use planner::{Inventory, Method, place};
///
/// let inventory = Inventory::from_json(include_str!("../../examples/inventory.json"))?;
/// let placement = place(&inventory, None, 0)?;
/// // Eight copies are few: none of the ways to place them costs less.
/// assert_eq!((placement.method, placement.cost), (Method::Exact, placement.cost_min));
/// // `db` is pinned to the second host.
/// assert_eq!(placement.hosts_of_vm[2].iter().collect::<Vec<_>>(), [1]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`PlaceError`].
pub fn place(
    inventory: &Inventory,
    signatures: Option<&Signatures>,
    seed: u64,
) -> Result<Placement, PlaceError> {
    let placing = Placing::new(inventory, signatures, seed)?;
    let (problem, sharing) = (&placing.problem, &placing.sharing);
    let exactly = exact::exact(problem, sharing);
    if matches!(exactly, Exact::Infeasible) {
        // Says why, too.
        placing.any(inventory)?;
    }
    let starts = placing.starts(inventory)?;
    let alternatives = placing.costs(&starts);
    if let Exact::Found(placed) = exactly {
        return Ok(placing.placement(Method::Exact, &placed, true, alternatives));
    }
    let (method, placed) = placing.searched(starts);
    let (method, placed, is_least) = placing.branched(method, placed);
    Ok(placing.placement(method, &placed, is_least, alternatives))
}

/// Places the VMs in one given way, to compare with: [`Method::Greedy`], [`Method::BestFit`], [`Method::Balanced`],
/// [`Method::Random`] as they are, [`Method::LocalSearch`] as large instances get it, [`Method::Exact`]. `None` if that
/// way finds nothing, or does not apply; the others are not offered.
///
/// # Errors
/// [`PlaceError`], infeasibility aside.
pub fn place_by(
    method: Method,
    inventory: &Inventory,
    signatures: Option<&Signatures>,
    seed: u64,
) -> Result<Option<Placement>, PlaceError> {
    let placing = Placing::new(inventory, signatures, seed)?;
    let (problem, sharing) = (&placing.problem, &placing.sharing);
    let placed = match method {
        Method::Exact => match exact::exact(problem, sharing) {
            Exact::Found(placed) => Some(placed),
            Exact::Infeasible | Exact::Beyond => None,
        },
        Method::LocalSearch => Some(placing.searched(placing.starts(inventory)?).1),
        Method::Greedy => greedy::greedy(problem, sharing),
        Method::BestFit => match search::search(problem, None, STEPS_MAX).0 {
            Outcome::Found(placed) => Some(placed),
            Outcome::Infeasible | Outcome::GaveUp => None,
        },
        Method::Balanced => baseline::balanced(problem),
        Method::Random => baseline::random(problem, &mut Rng::new(seed)),
        Method::BranchAndBound | Method::LeastAdded => None,
    };
    let is_least = method == Method::Exact;
    Ok(placed.map(|placed| placing.placement(method, &placed, is_least, Vec::new())))
}

/// A problem being solved.
struct Placing {
    problem: Problem,
    sharing: Sharing,
    seed: u64,
}

impl Placing {
    fn new(inventory: &Inventory, signatures: Option<&Signatures>, seed: u64) -> Result<Self, PlaceError> {
        inventory.validate()?;
        let problem = Problem::new(inventory);
        let sharing = Sharing::new(&problem, &weights(inventory, signatures)?);
        Ok(Self { problem, sharing, seed })
    }

    /// Any placement that keeps the constraints.
    fn any(&self, inventory: &Inventory) -> Result<Placed, PlaceError> {
        let problem = &self.problem;
        if let Some(constraint) = explain::plain_reason(inventory, problem) {
            return Err(PlaceError::Infeasible(Box::new(explain::explain(
                inventory,
                problem,
                Some(constraint),
            ))));
        }
        match search::search(problem, None, STEPS_MAX) {
            (Outcome::Found(found), _) => Ok(found),
            (Outcome::Infeasible, _) => {
                Err(PlaceError::Infeasible(Box::new(explain::explain(inventory, problem, None))))
            }
            (Outcome::GaveUp, steps) => Err(PlaceError::GaveUp { steps }),
        }
    }

    /// Placements to start from, at least one.
    fn starts(&self, inventory: &Inventory) -> Result<Vec<(Method, Placed)>, PlaceError> {
        let (problem, sharing) = (&self.problem, &self.sharing);
        let mut starts = Vec::new();
        if sharing.is_any() {
            starts.extend(greedy::greedy(problem, sharing).map(|found| (Method::Greedy, found)));
            if let (Outcome::Found(found), _) = search::search(problem, Some(sharing), GUIDED_STEPS_MAX) {
                starts.push((Method::LeastAdded, found));
            }
        }
        starts.extend(baseline::balanced(problem).map(|found| (Method::Balanced, found)));
        if starts.is_empty() {
            starts.push((Method::BestFit, self.any(inventory)?));
        }
        Ok(starts)
    }

    /// What ways cost that do not search, the cheapest first.
    fn costs(&self, starts: &[(Method, Placed)]) -> Vec<(Method, u64)> {
        let mut placed: Vec<(Method, Placed)> = starts.to_vec();
        let mut rng = Rng::new(self.seed);
        placed.extend(baseline::random(&self.problem, &mut rng).map(|found| (Method::Random, found)));
        let cost = |placed: &Placed| State::of(&self.problem, &self.sharing, placed).cost();
        let mut costs: Vec<(Method, u64)> =
            placed.iter().map(|(method, placed)| (*method, cost(placed))).collect();
        costs.sort_by_key(|&(method, cost)| (cost, method));
        costs
    }

    /// Descends from every start, and searches on from the best.
    fn searched(&self, starts: Vec<(Method, Placed)>) -> (Method, Placed) {
        let (problem, sharing) = (&self.problem, &self.sharing);
        let score = |placed: &Placed| Score::of(problem, sharing, placed);
        let before = starts.iter().map(|(method, placed)| (score(placed), *method)).min();
        let descended = starts.into_iter().map(|(_, placed)| {
            let mut state = State::of(problem, sharing, &placed);
            descent::descend(&mut state);
            state.placed
        });
        let best = descended.min_by_key(score).expect("there is a start");
        let bound = State::new(problem, Some(sharing)).cost();
        let mut state = State::of(problem, sharing, &best);
        ruin::improve(&mut state, bound, &mut Rng::new(self.seed));
        descent::descend(&mut state);
        let found = state.placed;
        match before {
            Some((unimproved, method)) if unimproved <= score(&found) => (method, found),
            _ => (Method::LocalSearch, found),
        }
    }

    /// The cheapest placement of few VMs, and whether it is proved cheapest.
    fn branched(&self, method: Method, placed: Placed) -> (Method, Placed, bool) {
        let (problem, sharing) = (&self.problem, &self.sharing);
        if problem.vms.len() > BRANCH_VMS_MAX {
            return (method, placed, false);
        }
        let below = State::of(problem, sharing, &placed).cost();
        match search::cheapest(problem, sharing, below, BRANCH_STEPS_MAX) {
            (Some(cheaper), is_proved) => (Method::BranchAndBound, cheaper, is_proved),
            (None, is_proved) => (method, placed, is_proved),
        }
    }

    fn placement(
        &self,
        method: Method,
        placed: &Placed,
        is_least: bool,
        alternatives: Vec<(Method, u64)>,
    ) -> Placement {
        let (problem, sharing) = (&self.problem, &self.sharing);
        let cost = State::of(problem, sharing, placed).cost();
        let floor = State::new(problem, Some(sharing)).cost();
        let instances = |hosts: &Vec<u16>| {
            let counts = hosts.chunk_by(|a, b| a == b).map(<[u16]>::len);
            counts.map(|count| u32::try_from(count).unwrap_or(u32::MAX)).collect()
        };
        Placement {
            hosts_of_vm: state::host_sets(placed),
            instances_of_vm: placed.iter().map(instances).collect(),
            cost,
            cost_min: if is_least { cost } else { bound::bound(problem, sharing, placed, floor) },
            method,
            alternatives,
        }
    }
}
