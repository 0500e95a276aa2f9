//! What repairing a block costs, and the cheapest way.
//!
//! Costs are nanoseconds: of the link, for symbols sent until every host has what it lacks (in expectation,
//! over all rounds, with each host losing symbols independently), plus CPU time of the encoder and of the
//! host with most to decode; hosts decode at the same time.

use crate::shape::{BlockShape, CAUCHY_REPAIR_SYMBOLS, SYMBOLS_MAX, Scheme};

/// Another round of report and answer costs about as much as this many symbols; so one more symbol is sent
/// along while the risk that a host would need another round is above one in this many.
const ROUND_COST_SYMBOLS: f64 = 4.0;
/// Loss is taken as at most this, so that expectations stay finite.
const LOSS_MAX: f64 = 0.9;
/// Symbols sent at once beyond the largest deficit, at most.
const EXTRA_MAX: u32 = 2 * SYMBOLS_MAX;

/// What one host lacks of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HostDeficit {
    /// Bit i is set if source symbol i is missing.
    pub missing: u128,
    /// RaptorQ repair symbols that the host holds.
    pub has_raptorq: u32,
    /// Cauchy repair symbols that the host holds.
    pub has_cauchy: u32,
}

impl HostDeficit {
    /// How many more symbols the host needs: repair symbols of either scheme stand for one missing symbol
    /// each.
    #[must_use]
    pub fn needed(&self) -> u32 {
        self.missing.count_ones().saturating_sub(self.held())
    }

    fn held(&self) -> u32 {
        self.has_raptorq.saturating_add(self.has_cauchy)
    }
}

/// How to repair a block for a group of hosts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RepairPlan {
    /// Send these source symbols again: bit i for symbol i. 0 if no host lacks anything.
    Source(u128),
    /// Send repair symbols that were not sent before.
    Fresh {
        /// Of this scheme.
        scheme: Scheme,
        /// How many, at least 1, with some in excess where loss is likely to take them.
        count: u32,
    },
}

/// A cost that grows with a block's symbols and its bytes.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Linear {
    pub(crate) ns_per_symbol: f64,
    pub(crate) ns_per_byte: f64,
}

impl Linear {
    fn of(self, shape: &BlockShape) -> f64 {
        f64::from(shape.symbols()) * self.ns_per_symbol + padded(shape) * self.ns_per_byte
    }
}

/// CPU costs of encoding and decoding on this machine. The default is what was measured on a Sapphire Rapids
/// core of a build for plain x86-64 (`benches/fec.rs`); [`CostModel::measure`] asks the machine at hand.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct CostModel {
    /// ns per byte of the block for the first Cauchy symbol, a parity; the same for one loss repaired by it.
    pub(crate) parity: f64,
    /// ns per byte of the block for each other Cauchy symbol, while there are few.
    pub(crate) direct_row: f64,
    /// ns per byte of the block, once, if there are more …
    pub(crate) table: f64,
    /// … and for each symbol.
    pub(crate) table_row: f64,
    /// RaptorQ's intermediate symbols.
    pub(crate) raptorq_encode: Linear,
    /// RaptorQ's solver at the receiver.
    pub(crate) raptorq_decode: Linear,
    /// ns per byte of a RaptorQ symbol from intermediate symbols.
    pub(crate) raptorq_symbol: f64,
}

impl CostModel {
    /// Measured on the reference machine.
    pub(crate) const REFERENCE: Self = Self {
        parity: 0.035,
        direct_row: 0.11,
        table: 0.2,
        table_row: 0.036,
        raptorq_encode: Linear { ns_per_symbol: 100.0, ns_per_byte: 0.93 },
        raptorq_decode: Linear { ns_per_symbol: 1300.0, ns_per_byte: 1.1 },
        raptorq_symbol: 0.16,
    };

    /// Computing `rows` symbols from K, of which the first is a parity if `parity`.
    fn dense(&self, shape: &BlockShape, rows: u32, parity: bool) -> f64 {
        let first = if parity && rows > 0 { self.parity } else { 0.0 };
        let direct = first + f64::from(rows.saturating_sub(u32::from(parity))) * self.direct_row;
        let tabled = self.table + f64::from(rows) * self.table_row;
        padded(shape) * direct.min(tabled)
    }

    fn intermediate(&self, shape: &BlockShape, rows: u32) -> f64 {
        let symbols = f64::from(rows) * f64::from(shape.symbol_size) * self.raptorq_symbol;
        self.raptorq_encode.of(shape) + symbols
    }

    fn encode(&self, shape: &BlockShape, scheme: Scheme, count: u32, parity: bool) -> f64 {
        match scheme {
            Scheme::RaptorQ if REFERENCE.solver_encodes_faster(shape, count) => {
                self.intermediate(shape, count)
            }
            Scheme::RaptorQ => self.dense(shape, count, false),
            Scheme::Cauchy => self.dense(shape, count, parity),
        }
    }

    /// Decoding at `host` after it got what it needs of `scheme`.
    fn decode(&self, shape: &BlockShape, host: &HostDeficit, scheme: Scheme, parity: bool) -> f64 {
        let missing = host.missing.count_ones();
        match scheme {
            Scheme::RaptorQ if host.has_cauchy == 0 && REFERENCE.solver_decodes_faster(shape, missing) => {
                self.raptorq_decode.of(shape)
            }
            _ => self.dense(shape, missing, parity && missing == 1 && scheme == Scheme::Cauchy),
        }
    }

    fn solver_encodes_faster(&self, shape: &BlockShape, rows: u32) -> bool {
        self.intermediate(shape, rows) < self.dense(shape, rows, false)
    }

    fn solver_decodes_faster(&self, shape: &BlockShape, rows: u32) -> bool {
        self.raptorq_decode.of(shape) < self.dense(shape, rows, false)
    }

    /// The cheapest repair of a block for hosts that lack `deficits`.
    ///
    /// `next_cauchy` is the next ESI of the Cauchy scheme not sent yet: Cauchy is not chosen when its ESIs do
    /// not suffice. `link_ns_per_byte` is the inverse of the rate at which repair can be sent (0: the link is
    /// free); `loss` the probability that a host loses a symbol, 0 to 1.
    ///
    /// For one host, source symbols are sent: there is none that it does not need.
    #[must_use]
    pub fn choose(
        &self,
        shape: &BlockShape,
        deficits: &[HostDeficit],
        next_cauchy: u32,
        link_ns_per_byte: f64,
        loss: f64,
    ) -> RepairPlan {
        let hosts: Vec<HostDeficit> = deficits
            .iter()
            .map(|host| HostDeficit { missing: host.missing & shape.all_symbols(), ..*host })
            .filter(|host| host.missing != 0)
            .collect();
        let loss = if loss > 0.0 { loss.min(LOSS_MAX) } else { 0.0 };
        let symbol_ns = f64::from(shape.symbol_size) * link_ns_per_byte.max(0.0);
        let mut best = self.source_plan(shape, &hosts, symbol_ns, loss);
        if hosts.len() > 1 {
            let (count, expected) = fresh_symbols(&hosts, loss);
            for scheme in [Scheme::Cauchy, Scheme::RaptorQ] {
                let last = *shape.repair_esis(Scheme::Cauchy).end();
                if scheme == Scheme::Cauchy && (last + 1).saturating_sub(next_cauchy) < count {
                    continue;
                }
                let parity = next_cauchy == shape.symbols();
                let cpu = self.encode(shape, scheme, count, parity)
                    + most(hosts.iter().map(|host| self.decode(shape, host, scheme, parity)));
                let cost = expected * symbol_ns + cpu;
                if cost < best.0 {
                    best = (cost, RepairPlan::Fresh { scheme, count });
                }
            }
        }
        best.1
    }

    /// The cheapest plan without fresh symbols, and its cost.
    fn source_plan(
        &self,
        shape: &BlockShape,
        hosts: &[HostDeficit],
        symbol_ns: f64,
        loss: f64,
    ) -> (f64, RepairPlan) {
        let union = hosts.iter().fold(0, |union, host| union | host.missing);
        let mut all = 0.0;
        for symbol in (0..SYMBOLS_MAX).filter(|symbol| union >> symbol & 1 == 1) {
            let lacking = hosts.iter().filter(|host| host.missing >> symbol & 1 == 1).count();
            all += transmissions(lacking, loss);
        }
        let all = (all * symbol_ns, RepairPlan::Source(union));
        let &[host] = hosts else { return all };
        // One host that holds repair symbols needs only some of what is missing, but must decode then.
        let needed = host.needed().max(1);
        let some = f64::from(needed) * transmissions(1, loss) * symbol_ns
            + self.decode(shape, &host, Scheme::Cauchy, false);
        if needed < host.missing.count_ones() && some < all.0 {
            return (some, RepairPlan::Source(lowest(host.missing, needed)));
        }
        all
    }
}

impl Default for CostModel {
    fn default() -> Self {
        REFERENCE
    }
}

/// Which algorithm computes RaptorQ symbols is decided by the reference, so that results never depend on a
/// clock.
const REFERENCE: CostModel = CostModel::REFERENCE;

/// Whether intermediate symbols pay for `rows` RaptorQ repair symbols.
pub(crate) fn solver_encodes_faster(shape: &BlockShape, rows: usize) -> bool {
    REFERENCE.solver_encodes_faster(shape, u32::try_from(rows).unwrap_or(u32::MAX))
}

/// Whether RaptorQ's solver beats computing `rows` missing symbols one by one.
pub(crate) fn solver_decodes_faster(shape: &BlockShape, rows: usize) -> bool {
    REFERENCE.solver_decodes_faster(shape, u32::try_from(rows).unwrap_or(u32::MAX))
}

fn padded(shape: &BlockShape) -> f64 {
    f64::from(shape.symbols()) * f64::from(shape.symbol_size)
}

fn most(costs: impl Iterator<Item = f64>) -> f64 {
    costs.fold(0.0, f64::max)
}

/// The `count` lowest bits that are set.
fn lowest(bits: u128, count: u32) -> u128 {
    let mut rest = bits;
    for _ in 0..count {
        rest &= rest.saturating_sub(1);
    }
    bits & !rest
}

/// Expected number of times that one symbol is sent until `hosts` hosts have it.
fn transmissions(hosts: usize, loss: f64) -> f64 {
    let hosts = i32::try_from(hosts).unwrap_or(i32::MAX);
    let (mut expected, mut lost) = (1.0, loss);
    while lost > 1e-4 {
        expected += 1.0 - (1.0 - lost).powi(hosts);
        lost *= loss;
    }
    expected
}

/// How many fresh symbols to send at once, and how many in expectation until every host has what it needs.
fn fresh_symbols(hosts: &[HostDeficit], loss: f64) -> (u32, f64) {
    // Hosts by need; one that holds enough but did not decode needs one symbol more.
    let mut needs = [0u32; SYMBOLS_MAX as usize + 1];
    for host in hosts {
        needs[host.needed().max(1) as usize] += 1;
    }
    let largest = (1..=SYMBOLS_MAX).rev().find(|&need| needs[need as usize] != 0).unwrap_or(1);
    let mut expected = f64::from(largest);
    let mut count = None;
    for sent in largest..=largest + EXTRA_MAX {
        let unfinished = 1.0 - all_served(&needs, largest, sent, loss);
        if unfinished <= 1.0 / ROUND_COST_SYMBOLS && count.is_none() {
            count = Some(sent);
        }
        if unfinished < 1e-3 {
            break;
        }
        expected += unfinished;
    }
    (count.unwrap_or(largest + EXTRA_MAX), expected)
}

/// Probability that every host gets its need out of `sent` symbols.
fn all_served(needs: &[u32], largest: u32, sent: u32, loss: f64) -> f64 {
    // P(lost ≤ n) of the binomial distribution, for growing n as needs get smaller.
    let ratio = loss / (1.0 - loss);
    let mut term = (1.0 - loss).powi(i32::try_from(sent).unwrap_or(i32::MAX));
    let mut at_most = term;
    let mut lost = 0;
    let mut all = 1.0;
    for need in (1..=largest).rev() {
        while lost < sent - need {
            term *= ratio * f64::from(sent - lost) / f64::from(lost + 1);
            at_most += term;
            lost += 1;
        }
        if let Ok(hosts @ 1..) = i32::try_from(needs[need as usize]) {
            all *= at_most.min(1.0).powi(hosts);
        }
    }
    all
}

const _: () = assert!(CAUCHY_REPAIR_SYMBOLS >= SYMBOLS_MAX, "any deficit can be met by Cauchy at first");

#[cfg(test)]
mod tests;
