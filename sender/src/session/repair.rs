//! Repair: the deficits of a group merged, and answered once for all of it.

use super::flight::{At, InFlight};
use super::{Session, Symbols};
use fec::{BlockShape, HostDeficit, RepairPlan};
use std::time::Duration;
use wire::control::Deficit;

/// After so many repairs of one block its hosts get it whole over their control channels: something on the path, or a
/// member that forges, keeps the group from ever having it.
const ROUNDS_MAX: u32 = 8;
/// After so many repairs a single host that still lacks the block, and no other does, gets it whole: 40 % of loss leave
/// fewer than one block in a thousand to a fifth.
const ROUNDS_ALONE_MAX: u32 = 4;

impl Session {
    /// Answers the deficits whose group has fully reported or waited long enough.
    pub(super) fn plan_repairs(&mut self, now: Duration) {
        let dirty: Vec<u64> = self.dirty.iter().copied().collect();
        for id in dirty {
            if self.repair_ready(id, now) {
                self.dirty.remove(&id);
                self.repair(id);
            }
        }
    }

    fn repair_ready(&self, id: u64, now: Duration) -> bool {
        let Some(flight) = self.in_flight.get(&id) else { return true };
        let waited = flight.first_deficit.is_some_and(|since| now >= since + self.config.repair_holdoff);
        let outstanding = flight.hosts.values().any(|at| matches!(at, At::Sending | At::Asked));
        flight.is_answerable() && (waited || !outstanding)
    }

    /// When the next repair is due.
    pub(super) fn repair_due(&self) -> Option<Duration> {
        let dirty = self.dirty.iter().filter_map(|id| self.in_flight.get(id));
        let dirty = dirty.filter(|flight| flight.is_answerable());
        dirty.filter_map(|flight| Some(flight.first_deficit? + self.config.repair_holdoff)).min()
    }

    fn repair(&mut self, id: u64) {
        let shape = self.shape(id);
        let deficits = self.group_deficits(id, &shape);
        let Some(flight) = self.in_flight.get_mut(&id) else { return };
        if deficits.is_empty() {
            return;
        }
        flight.first_deficit = None;
        flight.rounds += 1;
        let (rounds, next_cauchy) = (flight.rounds, flight.next.cauchy);
        let members = self.channels[flight.channel].spec.hosts.len();
        self.stats.blocks_repaired += u64::from(rounds == 1);
        let is_alone = deficits.len() == 1 && members > 1;
        if rounds > ROUNDS_MAX || is_alone && rounds > ROUNDS_ALONE_MAX {
            for (host, _) in deficits {
                self.owe(host, id);
            }
            return;
        }
        for (host, _) in &deficits {
            flight.hosts.insert(*host, At::Sending);
        }
        let loss = deficits.iter().map(|(host, _)| self.hosts[*host].loss).fold(0.0, f64::max);
        let needs: Vec<HostDeficit> = deficits
            .iter()
            .map(|(_, deficit)| HostDeficit {
                missing: deficit.missing,
                has_raptorq: deficit.raptorq.into(),
                has_cauchy: deficit.cauchy.into(),
            })
            .collect();
        let ns_per_byte = self.pacer.ns_per_byte();
        match self.cost_model.choose(&shape, &needs, next_cauchy, ns_per_byte, loss) {
            RepairPlan::Source(union) => {
                let list = (0..shape.symbols()).filter(|symbol| union >> symbol & 1 == 1).collect();
                self.push_burst(id, Symbols::SourceAgain(list), true);
            }
            RepairPlan::Fresh { scheme, count } => self.push_fresh(id, scheme, count, true),
        }
    }

    /// The deficits to answer together. A few hosts that miss most of a block which the others have would make the
    /// whole group carry it again: they are owed it instead.
    fn group_deficits(&mut self, id: u64, shape: &BlockShape) -> Vec<(usize, Deficit)> {
        let Some(flight) = self.in_flight.get(&id) else { return Vec::new() };
        let members = self.channels[flight.channel].spec.hosts.len();
        let deficits: Vec<(usize, Deficit)> = (flight.hosts.iter())
            .filter_map(|(host, at)| match at {
                At::Deficit(deficit) => Some((*host, *deficit)),
                _ => None,
            })
            .collect();
        let is_large =
            |deficit: &Deficit| (deficit.missing & shape.all_symbols()).count_ones() > shape.symbols() / 2;
        let large = deficits.iter().filter(|(_, deficit)| is_large(deficit)).count();
        if large == 0 || members == 1 || large * 4 > members.max(4) {
            return deficits;
        }
        let (large, small): (Vec<_>, Vec<_>) = deficits.into_iter().partition(|(_, d)| is_large(d));
        for (host, _) in large {
            self.owe(host, id);
        }
        small
    }
}

impl InFlight {
    /// All that was to be sent of it is out.
    fn is_answerable(&self) -> bool {
        self.bursts == 0 && !self.recalling
    }
}
