//! Placing a block: its pages are claimed, what they belonged to is killed, then they are written and recorded.

use super::begin;
use super::error::{Attempt, StoreError};
use super::intake::PlaceStats;
use super::journal;
use super::ledger::{Phase, Survey};
use super::placement::{self, Placement, Written};
use super::record::{Digest, Run};
use super::shared::{Inner, State, Vm};
use vmm::lazy::Origin;

impl Inner {
    /// Makes the placement's pages this block's own, killing what they belonged to; `None` if the block is held.
    pub(super) fn claim<'a>(
        &'a self,
        digest: Digest,
        placement: &Placement,
        stats: &mut PlaceStats,
    ) -> Result<Option<Claim<'a>>, StoreError> {
        let mut state = self.lock();
        let victims = loop {
            state.usable()?;
            match state.ledger.lookup(&digest) {
                Some(Phase::InFlight) => {}
                Some(_) => {
                    state.ledger.confirm(&digest);
                    return Ok(None);
                }
                None => {
                    let busy = placement.runs.iter().any(|run| state.files[run.slot as usize].busy);
                    if let (false, Survey::Free { victims }) = (busy, state.ledger.survey(&placement.pieces))
                    {
                        break victims;
                    }
                }
            }
            state = self.wait(state);
        };
        self.kill(&mut state, &victims)?;
        stats.invalidated = victims.len() as u64;
        let (id, stale) = state.ledger.claim(digest, &placement.pieces, &placement.runs);
        let claim = Claim { inner: self, id, stale, done: false };
        let reopened = placement.changed_slots(&claim.stale).into_iter().try_for_each(|slot| {
            if state.files[slot].finished {
                self.reopen(&mut state, slot)?;
                stats.reopened.push(self.table[slot].id);
            }
            Ok(())
        });
        // The claim takes the lock again when it is dropped.
        drop(state);
        reopened.map(|()| Some(claim))
    }

    /// Takes trust from blocks before a page of theirs changes: in the journal first, and on the disk first where the
    /// disk vouches for them.
    fn kill(&self, state: &mut State, victims: &[u32]) -> Result<(), StoreError> {
        let attempt = Attempt::on("invalidate blocks in this journal", &self.journal_path);
        for &victim in victims {
            let offset = state.ledger.offset(victim);
            if state.checkpoint.before_kill(offset) {
                // After a power failure the new bytes may be there while the record still reads as live.
                let journal = &state.journal;
                let voided = journal.set_durable(0).and_then(|()| journal.file().sync_data());
                voided.map_err(|error| attempt.failed(error))?;
                state.checkpoint.voided();
            }
            state.journal.kill(offset).map_err(|error| attempt.failed(error))?;
            state.ledger.kill(victim);
        }
        Ok(())
    }

    /// Brings a finished image back to its `.part` name, durably, before it changes.
    fn reopen(&self, state: &mut State, slot: usize) -> Result<(), StoreError> {
        let Vm { ram, part, entry, image, .. } = &self.vms[slot];
        let attempt = Attempt {
            vm: Some(&entry.name),
            ..Attempt::on("rename this image back to .part to change it", ram)
        };
        self.disk.rename(ram, part).map_err(|error| attempt.failed(error))?;
        state.files[slot].finished = false;
        let noted = image.metadata().and_then(|at| state.journal.set_image(slot, begin::part(&at)));
        noted.map_err(|error| attempt.failed(error))
    }

    /// Writes the pieces, and zeros over the `stale` pages of zero runs.
    pub(super) fn write(
        &self,
        placement: &Placement,
        contents: &[u8],
        stale: &[Run],
        origin: Origin,
    ) -> Result<Written, StoreError> {
        let mut total = Written::default();
        for pieces in placement.pieces.chunk_by(|a, b| a.run.slot == b.run.slot) {
            let vm = &self.vms[pieces[0].run.slot as usize];
            if let Some(lazy) = vm.lazy.get() {
                total.bytes += lazy.place(vm, pieces, contents, origin)?;
                if !lazy.beside {
                    continue;
                }
            }
            let written = placement::write_pieces(&vm.image, vm.entry.file_len, pieces, contents)
                .map_err(|error| vm.write_failed(error, contents.len() as u64))?;
            total.bytes += written.bytes;
            total.calls += written.calls;
        }
        for run in stale {
            let vm = &self.vms[run.slot as usize];
            let (offset, len) = placement::file_range(*run, vm.entry.file_len);
            total.calls += vm.image.zero(offset, len).map_err(|error| vm.write_failed(error, len))?;
            total.bytes += len;
        }
        Ok(total)
    }
}

impl Vm {
    pub(super) fn write_failed(&self, error: std::io::Error, bytes: u64) -> StoreError {
        Attempt { action: "write to this image", path: &self.part, vm: Some(&self.entry.name), bytes }
            .failed(error)
    }
}

/// A block in flight: its pages are this thread's alone. Dropped unfinished, it has failed.
pub(super) struct Claim<'a> {
    inner: &'a Inner,
    id: u32,
    /// Pages of zero runs that are to be zeroed.
    pub(super) stale: Vec<Run>,
    done: bool,
}

impl Claim<'_> {
    /// Records the block, then counts its pages.
    pub(super) fn complete(
        mut self,
        digest: &Digest,
        placement: &Placement,
        bytes: u64,
    ) -> Result<(), StoreError> {
        let inner = self.inner;
        let mut encoded = Vec::new();
        journal::encode_record(digest, &placement.runs, &mut encoded);
        let mut state = inner.lock();
        state.usable()?;
        let attempt = Attempt {
            bytes: encoded.len() as u64,
            ..Attempt::on("append to this journal", &inner.journal_path)
        };
        let offset = state.journal.append(&encoded).map_err(|error| attempt.failed(error))?;
        state.ledger.complete(self.id, offset, &self.stale);
        for run in &placement.runs {
            state.files[run.slot as usize].unsynced = true;
        }
        self.done = true;
        if state.checkpoint.wrote(bytes, inner.checkpoint_bytes) {
            inner.checkpoint_due.notify_one();
        }
        drop(state);
        inner.changed.notify_all();
        Ok(())
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.inner.lock_even_poisoned().ledger.fail(self.id);
            self.inner.changed.notify_all();
        }
    }
}
