//! A unit of transmission from its first symbol until every host has it.

use super::engine::{BLOCK_SYMBOLS, Engine, nanos, time};
use super::loss::{Deficit, SAMPLED_BLOCKS, lost};
use super::queue::{Item, State};
use crate::HostSet;
use std::cmp::Reverse;

/// Repairs of a block before it goes whole by unicast.
const REPAIRS_MAX: u32 = 8;

/// Consecutive blocks of one segment, and what hosts still lack of them.
pub(super) struct Unit {
    pub(super) group: Option<usize>,
    pub(super) tree: Vec<usize>,
    pub(super) hosts: HostSet,
    pub(super) deficits: Vec<Deficit>,
    /// Blocks in the unit.
    pub(super) blocks: u64,
    /// Payload of the unit.
    pub(super) payload: u64,
    pub(super) round: u32,
}

impl Engine<'_> {
    /// What hosts make of a unit, or of a repair, whose bytes arrived then at the ends of its tree's links.
    pub(super) fn receive(&mut self, mut unit: Unit, arrived: &[u64]) {
        let last = if unit.round == 0 {
            self.receive_first(&mut unit, arrived)
        } else {
            self.receive_repair(&mut unit, arrived)
        };
        let answer = last + nanos(self.model.answer) + nanos(self.model.link_latency) * 2;
        let when = if unit.deficits.is_empty() { answer } else { answer + nanos(self.model.repair_holdoff) };
        // Complete units wait for the answer, too: the group is left after it.
        self.repairs.push(Reverse((when, self.open_repairs.len())));
        self.open_repairs.push(Some(unit));
    }

    /// The time at which the last host had what came.
    fn receive_first(&mut self, unit: &mut Unit, arrived: &[u64]) -> u64 {
        let symbol = self.overhead.symbol_bytes();
        let mut last = self.now;
        unit.blocks = unit.payload.div_ceil(BLOCK_SYMBOLS * symbol).max(1);
        let sampled = unit.blocks.min(SAMPLED_BLOCKS);
        // A unit's blocks are equally long.
        let each = unit.payload.div_ceil(unit.blocks).div_ceil(symbol).min(BLOCK_SYMBOLS);
        for host in unit.hosts.iter() {
            let ppm = self.loss_ppm(host);
            let lacks = ppm > 0;
            let lacking: Vec<u64> = if lacks {
                (0..sampled).map(|_| lost(&mut self.rng, each, ppm)).collect()
            } else {
                Vec::new()
            };
            let at = self.arrival(unit, arrived, host);
            last = last.max(at);
            let written = self.host_free[usize::from(host)].max(at) + time(unit.payload, self.host_bps(host));
            self.host_free[usize::from(host)] = written;
            if lacking.iter().any(|count| *count > 0) {
                unit.deficits.push(Deficit { host, lacking });
            } else {
                self.complete(host, written);
            }
        }
        last
    }

    /// As [`Self::receive_first`], for a repair.
    fn receive_repair(&mut self, unit: &mut Unit, arrived: &[u64]) -> u64 {
        let mut last = self.now;
        let mut deficits = std::mem::take(&mut unit.deficits);
        let largest = largest(&deficits);
        for deficit in &mut deficits {
            let ppm = self.loss_ppm(deficit.host);
            for (lacking, sent) in deficit.lacking.iter_mut().zip(&largest) {
                let came = sent - lost(&mut self.rng, *sent, ppm);
                *lacking = lacking.saturating_sub(came);
            }
            last = last.max(self.arrival(unit, arrived, deficit.host));
        }
        let done = deficits.extract_if(.., |deficit| deficit.lacking.iter().all(|count| *count == 0));
        let done: Vec<u16> = done.map(|deficit| deficit.host).collect();
        done.into_iter().for_each(|host| self.complete(host, last));
        unit.deficits = deficits;
        last
    }

    /// When bytes that were just sent are at a host.
    fn arrival(&self, unit: &Unit, arrived: &[u64], host: u16) -> u64 {
        unit.tree.binary_search(&self.network.host_link(host)).map_or(self.now, |at| arrived[at])
    }

    fn loss_ppm(&self, host: u16) -> u32 {
        self.model.host_loss_ppm.get(&host).copied().unwrap_or(self.model.loss_ppm)
    }

    fn complete(&mut self, host: u16, at: u64) {
        let host = usize::from(host);
        self.host_left[host] -= 1;
        self.host_done[host] = self.host_done[host].max(at);
    }

    /// A unit's answers are there: it is repaired, or it is over.
    pub(super) fn repair(&mut self, unit: usize) {
        let mut unit = self.open_repairs[unit].take().expect("each unit waits for one answer at a time");
        if unit.deficits.is_empty() {
            return self.over(unit.group);
        }
        unit.round += 1;
        if unit.round > REPAIRS_MAX {
            return self.catch_up(unit);
        }
        let sampled = unit.deficits[0].lacking.len() as u64;
        let symbols: u64 = largest(&unit.deficits).iter().sum();
        let payload = symbols * self.overhead.symbol_bytes() * unit.blocks / sampled.max(1);
        let bytes = self.overhead.bytes(payload, 1);
        self.totals.repair_bytes += bytes;
        self.totals.repairs += 1;
        let tree = std::mem::take(&mut unit.tree);
        let arrived = self.transmit(&tree, unit.group, &unit.hosts.clone(), bytes);
        unit.tree = tree;
        self.receive(unit, &arrived);
    }

    /// The blocks that repairs did not complete, whole to each host by itself.
    fn catch_up(&mut self, mut unit: Unit) {
        let sampled = unit.deficits[0].lacking.len() as u64;
        for deficit in std::mem::take(&mut unit.deficits) {
            let lacking = deficit.lacking.iter().filter(|count| **count > 0).count() as u64;
            let payload = unit.payload * lacking / sampled.max(1);
            let bytes = self.overhead.bytes(payload, 1);
            self.totals.catch_up_bytes += bytes;
            let host: HostSet = [deficit.host].into_iter().collect();
            let tree = self.network.tree(&host);
            let arrived = self.transmit(&tree, None, &host, bytes);
            self.complete(deficit.host, arrived.last().copied().unwrap_or(self.now));
        }
        self.over(unit.group);
    }

    /// A unit is complete everywhere; its group is left with its last one.
    fn over(&mut self, group: Option<usize>) {
        let Some(at) = group else { return };
        self.queue.groups[at].in_flight -= 1;
        if self.queue.groups[at].in_flight > 0 || self.queue.groups[at].items_left > 0 {
            return;
        }
        self.queue.groups[at].state = State::Left;
        let address = self.queue.groups[at].address;
        let tail = self.now + nanos(self.model.leave_tail);
        let next = self.next_on(address);
        for host in self.queue.groups[at].members.iter() {
            let stays = next.as_ref().is_some_and(|(next, begins)| next.contains(host) && *begins < tail);
            let until = if stays { u64::MAX } else { tail };
            self.tails[address].push((host, until));
            if !stays {
                self.totals.leaves += 1;
                self.host_memberships[usize::from(host)] -= 1;
            }
        }
    }

    /// The members of the next group on an address, and when it begins, about.
    fn next_on(&self, address: usize) -> Option<(HostSet, u64)> {
        let mut bytes = 0u64;
        for Item { group, left, .. } in &self.queue.items[self.head..] {
            if let Some(group) = group.map(|group| &self.queue.groups[group])
                && group.address == address
                && group.state == State::Closed
            {
                return Some((group.members.clone(), self.now + time(bytes, self.rate_bps)));
            }
            bytes = bytes.saturating_add(*left);
        }
        None
    }
}

/// For each sampled block, what the host that lacks most lacks.
fn largest(deficits: &[Deficit]) -> Vec<u64> {
    let mut largest = vec![0; deficits.first().map_or(0, |deficit| deficit.lacking.len())];
    for deficit in deficits {
        largest.iter_mut().zip(&deficit.lacking).for_each(|(most, lacking)| *most = (*most).max(*lacking));
    }
    largest
}
