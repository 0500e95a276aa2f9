//! What placements are compared by.

use super::problem::Problem;
use super::shares::Sharing;
use super::state::{Placed, State};

/// Compared in this order: traffic, then time, then balance. Less is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Score {
    /// Bytes on links, times the links' costs.
    pub(super) cost: u64,
    /// Time of the busiest link, in ns.
    pub(super) time_ns: u64,
    /// Sum over hosts of the squared share of memory (or vCPUs, if more) in use, in 2^-40.
    pub(super) balance: u128,
}

impl Score {
    /// Of a whole placement.
    pub(super) fn of(problem: &Problem, sharing: &Sharing, placed: &Placed) -> Self {
        let state = State::of(problem, sharing, placed);
        let load = state.shares.as_ref().map_or(&[][..], |shares| &shares.load);
        let times = load.iter().zip(&problem.nodes).map(|(&bytes, node)| time_ns(bytes, node.rate_bps));
        let hosts = 0..problem.hosts.len();
        Self {
            cost: state.cost(),
            time_ns: times.max().unwrap_or(0),
            balance: hosts.map(|host| state.squared_use(host)).sum(),
        }
    }
}

/// Time of bytes on a link; a rate of 0 counts as unlimited.
pub(super) fn time_ns(bytes: u64, rate_bps: u64) -> u64 {
    let nanos = (u128::from(bytes) * 8_000_000_000).checked_div(u128::from(rate_bps)).unwrap_or(0);
    u64::try_from(nanos).unwrap_or(u64::MAX)
}

/// Something that falls when loads become more even, over some hosts and the links to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Evenness {
    /// Sum of the squared times of links, in 2^-40 s^2 or so: what descends towards a low maximum.
    times: u128,
    balance: u128,
}

impl State<'_> {
    fn squared_use(&self, host: usize) -> u128 {
        let whole = self.problem.hosts[host];
        let used = whole.minus(self.free[host]);
        (used.share_of(whole) >> 12).pow(2)
    }

    /// Of these hosts; equal hosts give comparable figures.
    pub(super) fn evenness(&self, hosts: &[usize]) -> Evenness {
        let mut nodes: Vec<usize> = hosts.iter().flat_map(|&host| self.problem.way(host)).collect();
        nodes.sort_unstable();
        nodes.dedup();
        let load = self.shares.as_ref().map_or(&[][..], |shares| &shares.load);
        let time = |&node: &usize| {
            let bytes = load.get(node).copied().unwrap_or(0);
            u128::from(time_ns(bytes, self.problem.nodes[node].rate_bps) >> 10).pow(2)
        };
        Evenness {
            times: nodes.iter().map(time).sum(),
            balance: hosts.iter().map(|&host| self.squared_use(host)).sum(),
        }
    }
}
