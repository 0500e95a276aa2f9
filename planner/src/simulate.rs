//! A plan's schedule on a modelled network, before a page moves.
//!
//! What is modelled, as the real sender and receivers do it (docs/sessions.md): segments in the schedule's order, paced;
//! groups joined ahead and open once the joins are through; a segment whose group is not open yet does not stop later
//! ones; links with rates and latency, each of which carries a group's datagram once; hosts that process no faster than
//! they can; losses on the way to each host; questions and answers after each block; repair by the largest deficit of a
//! block, once for all; a block that eight repairs did not complete, whole by unicast; leaves, and what still comes after
//! them on an address that is used again.
//!
//! Not modelled: the search for a rate (it is given), shared buffers of switches, control messages' own bytes.
//!
//! Everything is counted in integers of bytes and nanoseconds; equal plans, models and seeds give equal results. Blocks are
//! simulated together where there are more than [`BURSTS_MAX`] of them, so that a simulation of any size ends within seconds to minutes.

mod engine;
mod loss;
mod queue;
#[cfg(test)]
mod tests;
mod units;

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Plan;
use crate::network::LinkKind;

/// Most units of transmission; with more blocks, several are one unit.
pub const BURSTS_MAX: u64 = 200_000;

/// How the network and the hosts behave. [`Model::of`] takes what the plan says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// Rate at which the source sends, in bit/s, headers counted; at most its link's. 0: its link's.
    pub rate_bps: u64,
    /// One way over each link.
    pub link_latency: Duration,
    /// From a join to the first datagram, as the sender waits for it.
    pub join_latency: Duration,
    /// For how long datagrams still come after a leave.
    pub leave_tail: Duration,
    /// How far ahead of a group's data its hosts join.
    pub prejoin: Duration,
    /// From a block's last symbol at a host to the report at the sender, beside the links' latency.
    pub answer: Duration,
    /// From the first report of a deficit to its repair.
    pub repair_holdoff: Duration,
    /// Packets lost on the way to each host, in millionths, 0–500,000.
    pub loss_ppm: u32,
    /// Hosts with another loss, by host index.
    pub host_loss_ppm: BTreeMap<u16, u32>,
    /// Rate at which a host can open, verify and write, in bit/s; 0: no limit.
    pub host_bps: u64,
    /// Hosts with another such rate, by host index.
    pub slow_hosts: BTreeMap<u16, u64>,
    /// Seed of the losses.
    pub seed: u64,
}

impl Model {
    /// The plan's own figures; the rest as measured on a Linux bridge.
    #[must_use]
    pub fn of(plan: &Plan) -> Self {
        // `send` waits so much longer: a host's word that it joined may be ahead of the switch.
        let join_latency = Duration::from_millis(u64::from(plan.multicast.join_latency_ms) + 5);
        Self {
            rate_bps: 0,
            link_latency: Duration::from_micros(25),
            join_latency,
            leave_tail: Duration::from_millis(plan.multicast.leave_tail_ms.into()),
            prejoin: join_latency * 2 + Duration::from_millis(10),
            answer: Duration::from_millis(8),
            repair_holdoff: Duration::from_millis(10),
            loss_ppm: plan.multicast.loss_ppm,
            host_loss_ppm: BTreeMap::new(),
            host_bps: 0,
            slow_hosts: BTreeMap::new(),
            seed: 0,
        }
    }
}

/// Why a plan cannot be simulated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SimulateError {
    /// A plan written by hand without a schedule.
    #[error("the plan has no schedule to simulate; make it with `scatter plan`")]
    NoSchedule,
    /// A model beyond what is possible.
    #[error("a loss of {ppm} millionths is above a half: nothing would ever be complete")]
    Loss {
        /// The loss given.
        ppm: u32,
    },
    /// The model names a host that is not in the plan.
    #[error("the model names host {host}, and the plan has {hosts} hosts")]
    UnknownHost {
        /// The index given.
        host: u16,
        /// Hosts in the plan.
        hosts: usize,
    },
}

/// What came of it. Bytes are those on links, with headers of Ethernet, IP, UDP and our own; times are from the first
/// join, or datagram if there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Simulation {
    /// Seed of the losses.
    pub seed: u64,
    /// Blocks that are one unit of the simulation.
    pub blocks_per_unit: u64,
    /// Every link: the source's, those of racks, those of hosts in the plan's order.
    pub links: Vec<SimulatedLink>,
    /// Joins of group addresses over all hosts.
    pub joins: u64,
    /// Leaves.
    pub leaves: u64,
    /// Most addresses that one host was on at once.
    pub memberships_peak: u64,
    /// Time in which nothing could be sent, as all groups that had data waited for joins, in µs.
    pub stall_us: u64,
    /// Time in which the sender waited for a slower link or host, in µs.
    pub throttled_us: u64,
    /// Bytes of repair on the source's link.
    pub repair_bytes: u64,
    /// Bytes of whole blocks by unicast after repairs, on the source's link.
    pub catch_up_bytes: u64,
    /// Repairs sent.
    pub repairs: u64,
    /// Bytes on hosts' links that the hosts had no use for: of groups that hold more hosts than a segment has, and
    /// after leaves.
    pub unwanted_bytes: u64,
    /// First datagram, in µs.
    pub first_datagram_us: u64,
    /// When each host had everything, in µs, in the plan's order; 0 for hosts that need nothing.
    pub host_done_us: Vec<u64>,
    /// Of the hosts that need something: half were done by then, in µs.
    pub done_p50_us: u64,
    /// 99 of 100 were done by then, in µs.
    pub done_p99_us: u64,
    /// All were done: the total time, in µs.
    pub done_max_us: u64,
    /// When the source had every host's word and could forget everything, in µs: the eviction time.
    pub eviction_us: u64,
}

/// What a link carried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SimulatedLink {
    /// Which sort of link.
    pub kind: LinkKind,
    /// The source, rack or host at its end.
    pub name: String,
    /// Its rate, in Mbit/s (10^6 bit/s).
    pub rate_mbps: u64,
    /// Bytes that were sent onto it.
    pub bytes: u64,
    /// Bytes foreseen by the plan (`predicted.links[].network_bytes`); 0 if it foresees none.
    pub predicted_bytes: u64,
    /// Time that it was busy, in µs.
    pub busy_us: u64,
}

impl Simulation {
    /// The JSON Schema (draft 2020-12) of a simulation's result.
    #[must_use]
    pub fn schema() -> serde_json::Value {
        schemars::schema_for!(Self).to_value()
    }
}

/// Simulates a checked plan.
///
/// ```
/// use planner::simulate::{Model, simulate};
/// use planner::{Inventory, make_plan};
///
/// let inventory = Inventory::from_json(include_str!("../../examples/inventory.json"))?;
/// let plan = make_plan(&inventory, None, 0)?;
/// let went = simulate(&plan, &Model { loss_ppm: 10_000, seed: 7, ..Model::of(&plan) })?;
/// assert!(went.repair_bytes > 0 && went.host_done_us.len() == plan.hosts.len());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Takes time in proportion to units of transmission ([`BURSTS_MAX`] at most, and one for each segment at least) times
/// the hosts that each goes to.
///
/// # Errors
/// [`SimulateError`].
pub fn simulate(plan: &Plan, model: &Model) -> Result<Simulation, SimulateError> {
    if plan.schedule.is_empty() {
        return Err(SimulateError::NoSchedule);
    }
    if let Some(&ppm) = model.host_loss_ppm.values().chain([&model.loss_ppm]).find(|&&ppm| ppm > 500_000) {
        return Err(SimulateError::Loss { ppm });
    }
    let unknown = |host: &&u16| usize::from(**host) >= plan.hosts.len();
    if let Some(&host) = model.host_loss_ppm.keys().chain(model.slow_hosts.keys()).find(unknown) {
        return Err(SimulateError::UnknownHost { host, hosts: plan.hosts.len() });
    }
    Ok(engine::run(plan, model))
}
