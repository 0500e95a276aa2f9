//! A block at a receiver: announced, collected, handed out for checking, done.

use super::{Action, EARLY_AHEAD_MAX, Entry, ProtocolError, SPARE_COLLECTORS_MAX, Session, Stage};
use crate::check::{Checked, Job, Outcome, Payload};
use fec::{BlockShape, Collector, Scheme};
use std::time::Duration;
use wire::control::{self, Announce, Report, ToSender};
use wire::datagram::{self, View};
use wire::{BlockId, Digest};

impl Session {
    pub(super) fn announce(
        &mut self,
        now: Duration,
        announce: Announce,
        held: &mut dyn FnMut(&Digest) -> Option<Vec<u16>>,
    ) -> Result<(), ProtocolError> {
        let end = announce.first_block.saturating_add(announce.blocks.len() as u64);
        self.announced_end = self.announced_end.max(end);
        for (id, (len, digest)) in (announce.first_block..).zip(announce.blocks) {
            let shape = BlockShape::for_len(len, self.config.symbol_size_max)
                .map_err(|_| ProtocolError::Announce(id))?;
            if self.done.contains(BlockId(id)) {
                self.tell_done(now, id);
                continue;
            }
            if let Some(complete) = held(&digest) {
                self.stats.blocks_held += 1;
                self.forget(id);
                self.finish_block(now, id, &complete);
                continue;
            }
            match self.blocks.get_mut(&id) {
                // Announced before: a block never changes, least of all while it is being checked.
                Some(entry) if entry.digest.is_some() => {
                    if entry.digest != Some(digest) || entry.shape != shape {
                        return Err(ProtocolError::Changed(id));
                    }
                }
                Some(entry) if entry.shape == shape => {
                    entry.digest = Some(digest);
                    self.early.retain(|early| *early != id);
                    self.check_if_ready(id);
                }
                Some(_) => {
                    // Collected from datagrams whose header told another length: forged by a member.
                    self.forget(id);
                    self.blocks.insert(id, Entry { shape, digest: Some(digest), stage: Stage::Expected });
                }
                None => {
                    self.blocks.insert(id, Entry { shape, digest: Some(digest), stage: Stage::Expected });
                }
            }
        }
        Ok(())
    }

    pub(super) fn block_data(&mut self, now: Duration, id: u64, bytes: Vec<u8>) {
        if self.blocks.get(&id).is_none_or(|entry| bytes.len() == entry.shape.len as usize) {
            self.take_whole(now, id, Payload::Whole(bytes));
        }
    }

    /// The contents of a block that only named them.
    pub(super) fn supply(&mut self, now: Duration, id: u64, body: Vec<u8>) {
        self.take_whole(now, id, Payload::Supplied(body));
    }

    fn take_whole(&mut self, now: Duration, id: u64, payload: Payload) {
        if self.done.contains(BlockId(id)) {
            // It came by the group meanwhile; the sender waits for word of it.
            self.tell_done(now, id);
            return;
        }
        let Some(entry) = self.blocks.get_mut(&id) else { return };
        let Some(digest) = entry.digest else { return };
        if matches!(entry.stage, Stage::Checking) {
            return;
        }
        let shape = entry.shape;
        if let Stage::Collecting(collector) = std::mem::replace(&mut entry.stage, Stage::Checking) {
            self.spare(collector);
        } else {
            self.in_flight_bytes += u64::from(shape.len);
        }
        self.actions.push_back(Action::Check(Box::new(Job { block: BlockId(id), digest, shape, payload })));
    }

    /// Takes in one datagram: authenticates it, opens it into its place, and hands the block out for checking
    /// once it has enough symbols. Datagrams that are not ours are counted and dropped.
    pub fn handle_datagram(&mut self, bytes: &[u8]) {
        if self.accept_datagram(bytes).is_none() {
            self.stats.rejected += 1;
        }
    }

    pub(super) fn accept_datagram(&mut self, bytes: &[u8]) -> Option<()> {
        let view = datagram::parse(bytes).ok()?;
        let channel = self.channels.get_mut(&view.header.channel.0)?;
        let BlockId(id) = view.header.block;
        let wanted = match self.blocks.get(&id) {
            Some(Entry { stage: Stage::Checking | Stage::Lacking, .. }) => false,
            Some(entry) => {
                let shape = entry.shape;
                if shape.symbol_len() != view.symbol.len() || shape.len != view.header.block_len {
                    return None;
                }
                true
            }
            None => !self.done.contains(BlockId(id)),
        };
        if !wanted {
            // Nobody needs it, but it counts as received, so it must be what it says: forged ones would hide losses.
            let out = self.scratch.get_mut(..view.symbol.len())?;
            channel.opener.open(&view, out).ok()?;
            channel.count(&view);
            self.stats.datagrams += 1;
            self.stats.redundant += 1;
            return Some(());
        }
        if !self.blocks.contains_key(&id) {
            return self.early_datagram(view);
        }
        self.collect(view)
    }

    /// A symbol of a block not announced yet: authenticated before anything is kept for it.
    pub(super) fn early_datagram(&mut self, view: View<'_>) -> Option<()> {
        let channel = self.channels.get_mut(&view.header.channel.0)?;
        let shape = BlockShape::for_len(view.header.block_len, self.config.symbol_size_max).ok()?;
        let out = self.scratch.get_mut(..view.symbol.len())?;
        if shape.symbol_len() != view.symbol.len() || channel.opener.open(&view, out).is_err() {
            return None;
        }
        let BlockId(id) = view.header.block;
        if id >= self.announced_end.saturating_add(EARLY_AHEAD_MAX) || self.config.unannounced_blocks_max == 0
        {
            // No announcement is so late: a member makes it up.
            channel.count(&view);
            self.over_budget += 1;
            return Some(());
        }
        // The oldest make room: those of the sender are announced soon, what a member makes up never is.
        while self.early.len() >= self.config.unannounced_blocks_max {
            let Some(oldest) = self.early.front().copied() else { break };
            self.forget(oldest);
            self.over_budget += 1;
        }
        self.early.push_back(id);
        self.blocks.insert(id, Entry { shape, digest: None, stage: Stage::Expected });
        self.collect(view)
    }

    pub(super) fn collect(&mut self, view: View<'_>) -> Option<()> {
        let BlockId(id) = view.header.block;
        let channel = self.channels.get_mut(&view.header.channel.0)?;
        let entry = self.blocks.get_mut(&id)?;
        if matches!(entry.stage, Stage::Expected) {
            let bytes = u64::from(entry.shape.len);
            if self.in_flight_bytes + bytes > self.config.in_flight_bytes_max {
                channel.count(&view);
                self.over_budget += 1;
                return Some(());
            }
            self.in_flight_bytes += bytes;
            let collector = match self.spare.pop() {
                Some(mut collector) => {
                    collector.reset(entry.shape);
                    collector
                }
                None => Collector::new(entry.shape),
            };
            entry.stage = Stage::Collecting(collector);
        }
        let Stage::Collecting(collector) = &mut entry.stage else { return None };
        let esi = view.header.esi;
        let new = if esi < entry.shape.symbols() {
            match collector.slot(esi) {
                Some(slot) => {
                    channel.opener.open(&view, slot).ok()?;
                    collector.mark(esi);
                    true
                }
                None => false,
            }
        } else {
            let scheme = Scheme::from_code(view.header.scheme)?;
            let out = self.scratch.get_mut(..view.symbol.len())?;
            channel.opener.open(&view, out).ok()?;
            collector.add_repair(scheme, esi, out).ok()?
        };
        channel.count(&view);
        self.stats.datagrams += 1;
        self.stats.redundant += u64::from(!new);
        self.check_if_ready(id);
        Some(())
    }

    pub(super) fn check_if_ready(&mut self, id: u64) {
        let Some(entry) = self.blocks.get_mut(&id) else { return };
        let Some(digest) = entry.digest else { return };
        let Stage::Collecting(collector) = &entry.stage else { return };
        let (raptorq, cauchy) = collector.repair_counts();
        if collector.missing_bitmap().count_ones() > raptorq + cauchy {
            return;
        }
        let Stage::Collecting(collector) = std::mem::replace(&mut entry.stage, Stage::Checking) else {
            return;
        };
        let (shape, payload) = (entry.shape, Payload::Symbols(collector));
        self.actions.push_back(Action::Check(Box::new(Job { block: BlockId(id), digest, shape, payload })));
    }

    /// Takes back a block that was handed out.
    pub fn handle_checked(&mut self, now: Duration, checked: Checked) {
        let BlockId(id) = checked.block;
        match checked.outcome {
            Outcome::Placed { how, reopened, complete_vms } => {
                how.count(&mut self.stats);
                for vm in reopened {
                    self.complete_vms.remove(&vm);
                    self.finished_vms.remove(&vm);
                }
                if let Some(collector) = checked.collector {
                    self.spare(collector);
                }
                self.forget(id);
                self.finish_block(now, id, &complete_vms);
            }
            Outcome::NeedMore | Outcome::Mismatch => {
                if matches!(checked.outcome, Outcome::Mismatch) {
                    self.stats.digest_mismatches += 1;
                }
                let Some(entry) = self.blocks.get_mut(&id) else { return };
                entry.stage = match checked.collector {
                    Some(collector) => Stage::Collecting(collector),
                    None => {
                        self.in_flight_bytes -= u64::from(entry.shape.len);
                        Stage::Expected
                    }
                };
                let deficits = self.deficit(id).into_iter().collect();
                self.send_report(Report { seq: self.answered_seq, deficits, ..Report::default() });
            }
            Outcome::Lacking => {
                if let Some(collector) = checked.collector {
                    self.spare(collector);
                }
                let Some(entry) = self.blocks.get_mut(&id) else { return };
                entry.stage = Stage::Lacking;
                self.in_flight_bytes -= u64::from(entry.shape.len);
                self.actions.push_back(Action::Send(ToSender::Lacks { block: id }));
            }
            Outcome::Failed(reason) => {
                let reason = control::reason(&reason);
                self.actions.push_back(Action::Send(ToSender::Failed { reason: reason.clone() }));
                self.actions.push_back(Action::End { released: false, reason: Some(reason) });
            }
        }
    }

    pub(super) fn finish_block(&mut self, now: Duration, id: u64, complete_vms: &[u16]) {
        self.done.insert(BlockId(id));
        self.tell_done(now, id);
        for vm in complete_vms {
            if self.complete_vms.insert(*vm) {
                self.actions.push_back(Action::FinishVm(*vm));
            }
        }
    }

    /// Drops what is kept for a block.
    pub(super) fn forget(&mut self, id: u64) {
        let Some(entry) = self.blocks.remove(&id) else { return };
        if entry.digest.is_none() {
            self.early.retain(|early| *early != id);
        }
        if !matches!(entry.stage, Stage::Expected | Stage::Lacking) {
            self.in_flight_bytes -= u64::from(entry.shape.len);
        }
        if let Stage::Collecting(collector) = entry.stage {
            self.spare(collector);
        }
    }

    pub(super) fn spare(&mut self, collector: Collector) {
        if self.spare.len() < SPARE_COLLECTORS_MAX {
            self.spare.push(collector);
        }
    }
}
