//! One transfer's images on this host while they are received.

use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, OnceLock};

use pages::VmId;
use pages::block::DecodedBlock;
use vmm::lazy::Origin;

use super::begin;
use super::checkpoint::{self, Checkpoint};
use super::error::{Attempt, StoreError};
use super::journal::Journal;
use super::placement::{Fill, Placement};
use super::shared::{FileState, Inner, Opened, State};
use super::{Lease, Store};

/// The images of one transfer on this host, being received.
///
/// All methods take `&self`: several threads place different blocks at once. Blocks that share a page wait for each
/// other. Dropping it keeps everything for a later [`Store::begin`] of the same transfer.
pub struct Intake {
    pub(super) inner: Arc<Inner>,
    note: Option<String>,
    _lease: Lease,
}

/// What [`Intake::place`] did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct PlaceStats {
    /// The block was there already: nothing was written, its pages count as done.
    pub already_held: bool,
    /// Pages of this host's VMs that now hold what the block says.
    pub pages: u64,
    /// Of these, pages of zero runs that were zero in the image already: nothing was written for them.
    pub zero_pages_free: u64,
    /// Bytes written to images, zeroed ranges included.
    pub bytes: u64,
    /// System calls that wrote to images.
    pub writes: u64,
    /// Blocks held from before that were given up, since this one takes pages from them.
    pub invalidated: u64,
    /// VMs whose finished image was brought back to `.part` to be changed: [`Intake::finish`] is due again.
    pub reopened: Vec<VmId>,
}

impl Intake {
    pub(super) fn start(
        store: &Store,
        journal_path: PathBuf,
        replace: bool,
        opened: Opened,
        lease: Lease,
        note: Option<String>,
    ) -> Result<Self, StoreError> {
        let Opened { journal, ledger, durable, finished, vms } = opened;
        // Bytes of a resumed image that an earlier run did not sync are this run's to sync.
        let files = finished
            .into_iter()
            .map(|finished| FileState { finished, unsynced: true, busy: false })
            .collect();
        let table = vms.iter().map(|vm| vm.entry.clone()).collect();
        let inner = Arc::new(Inner {
            disk: store.disk.clone(),
            journal_path,
            checkpoint_bytes: store.checkpoint_bytes,
            replace,
            vms,
            table,
            shelf: OnceLock::new(),
            state: Mutex::new(State {
                ledger,
                journal: Arc::new(journal),
                files,
                checkpoint: Checkpoint::new(durable),
                broken: None,
                stop: false,
            }),
            changed: Condvar::new(),
            checkpoint_due: Condvar::new(),
            checkpointing: Mutex::new(()),
        });
        checkpoint::spawn(&inner).map_err(|error| {
            Attempt::on("start the thread that syncs this store", &store.root).failed(error)
        })?;
        Ok(Self { inner, note, _lease: lease })
    }

    /// Why something that an earlier run left could not be used; `None` if nothing was lost.
    #[must_use]
    pub fn resume_note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// Digests of the blocks held from an earlier, interrupted run and not announced in this one yet.
    #[must_use]
    pub fn held_digests(&self) -> Vec<[u8; 32]> {
        self.inner.lock().ledger.held_digests()
    }

    /// Digests of all blocks held, those placed in this run included: for a sender that connects once more.
    #[must_use]
    pub fn live_digests(&self) -> Vec<[u8; 32]> {
        self.inner.lock().ledger.live_digests()
    }

    /// Tells that the sender announced a block with this digest in the current session: if it is held, its pages count
    /// as done from now on. `false` means that it has to be sent (and placed).
    #[must_use]
    pub fn confirm_held(&self, digest: &[u8; 32]) -> bool {
        let mut state = self.inner.lock();
        state.broken.is_none() && state.ledger.confirm(digest)
    }

    /// Writes a verified block's pages of this host's VMs into their images; pages of other VMs are left out.
    ///
    /// The caller has compared `digest` with the block's bytes. On return the pages are in the page cache, where a
    /// crash of the process does no harm; a checkpoint brings them to the disk later. Zero runs cost nothing where the
    /// image is zero already.
    ///
    /// # Errors
    ///
    /// A full disk, an exhausted quota and other failures to write; pages that a VM does not have and blocks that
    /// contradict themselves, of which nothing is written. After a failed write the block is as good as never placed.
    pub fn place(&self, digest: [u8; 32], block: &DecodedBlock<'_>) -> Result<PlaceStats, StoreError> {
        self.place_by(digest, block, Origin::Block)
    }

    pub(super) fn place_by(
        &self,
        digest: [u8; 32],
        block: &DecodedBlock<'_>,
        origin: Origin,
    ) -> Result<PlaceStats, StoreError> {
        let inner = &*self.inner;
        let contents = &block.contents;
        let placement = Placement::new(&digest, &block.runs, &block.uniform, contents, &inner.table)?;
        let mut stats = PlaceStats {
            pages: placement.runs.iter().map(|run| u64::from(run.count)).sum(),
            ..PlaceStats::default()
        };
        let Some(claim) = inner.claim(digest, &placement, &mut stats)? else {
            stats.already_held = true;
            return Ok(stats);
        };
        let written = inner.write(&placement, contents, &claim.stale, origin)?;
        (stats.bytes, stats.writes) = (written.bytes, written.calls);
        let zeros = placement.pieces.iter().filter(|piece| piece.fill == Fill::Word(0));
        let stale: u64 = claim.stale.iter().map(|run| u64::from(run.count)).sum();
        stats.zero_pages_free = zeros.map(|piece| u64::from(piece.run.count)).sum::<u64>() - stale;
        claim.complete(&digest, &placement, written.bytes)?;
        Ok(stats)
    }

    /// Pages of the VM that neither were placed nor confirmed in this session; 0 for a VM that is not of this intake.
    #[must_use]
    pub fn remaining_pages(&self, vm: VmId) -> u32 {
        self.inner.slot(vm).map_or(0, |slot| self.inner.lock().ledger.remaining(slot))
    }

    /// Whether every page of the VM was placed or confirmed in this session: [`Intake::finish`] is due.
    #[must_use]
    pub fn is_complete(&self, vm: VmId) -> bool {
        self.inner.slot(vm).is_ok_and(|slot| self.inner.lock().ledger.remaining(slot) == 0)
    }

    /// Brings a complete image to the disk and then to its final name, which it returns. Idempotent.
    ///
    /// # Errors
    ///
    /// [`StoreError::NotComplete`], a foreign file at the final name, and failures of the file system.
    pub fn finish(&self, vm: VmId) -> Result<PathBuf, StoreError> {
        let inner = &*self.inner;
        let slot = inner.slot(vm)?;
        let mut state = inner.lock();
        loop {
            state.usable()?;
            if !state.files[slot].busy && state.ledger.in_flight(slot) == 0 {
                break;
            }
            state = inner.wait(state);
        }
        let remaining_pages = state.ledger.remaining(slot);
        if remaining_pages != 0 {
            return Err(StoreError::NotComplete { vm: inner.table[slot].name.clone(), remaining_pages });
        }
        if state.files[slot].finished {
            return Ok(inner.vms[slot].ram.clone());
        }
        state.files[slot].busy = true;
        let journal = Arc::clone(&state.journal);
        drop(state);
        let done = inner.finish_file(slot, &journal);
        let mut state = inner.lock();
        state.files[slot].busy = false;
        // A rename that could not be made durable was done all the same.
        state.files[slot].finished = done.is_ok() || inner.vms[slot].part.symlink_metadata().is_err();
        drop(state);
        inner.changed.notify_all();
        done.map(|()| inner.vms[slot].ram.clone())
    }

    /// Makes what was placed so far survive a power failure. Done by itself from time to time.
    ///
    /// # Errors
    ///
    /// [`StoreError::WriteBack`] if the disk lost data: nothing placed in this transfer is trusted any more.
    pub fn checkpoint(&self) -> Result<(), StoreError> {
        self.inner.checkpoint().map(drop)
    }

    /// Ends this intake for now and keeps everything for a later run, also across a restart of the machine.
    ///
    /// # Errors
    ///
    /// Those of [`Intake::checkpoint`]; without a restart, what is held is kept all the same.
    pub fn abandon(self) -> Result<(), StoreError> {
        self.checkpoint()
    }

    /// Ends the transfer for good, when the sender says that it is over everywhere: removes the journal. The images are
    /// like any other file from then on.
    ///
    /// # Errors
    ///
    /// [`StoreError::NotComplete`] if an image is not finished (everything is kept then), and failures to remove.
    pub fn close_transfer(self) -> Result<(), StoreError> {
        let inner = &*self.inner;
        let state = inner.lock();
        for (slot, file) in state.files.iter().enumerate() {
            if !file.finished || state.ledger.remaining(slot) != 0 {
                let remaining_pages = state.ledger.remaining(slot);
                return Err(StoreError::NotComplete { vm: inner.table[slot].name.clone(), remaining_pages });
            }
        }
        drop(state);
        let path = &inner.journal_path;
        inner.disk.remove(path).map_err(|error| Attempt::on("remove this journal", path).failed(error))
    }
}

impl Drop for Intake {
    fn drop(&mut self) {
        // The thread is not joined: it may be waiting for a slow disk, and whatever it still does is harmless. The
        // journal it writes to is replaced by the next intake before that trusts or changes anything.
        self.inner.lock_even_poisoned().stop = true;
        self.inner.checkpoint_due.notify_all();
    }
}

impl Inner {
    /// Syncs a complete image, notes it as finished and renames it.
    fn finish_file(&self, slot: usize, journal: &Journal) -> Result<(), StoreError> {
        let vm = &self.vms[slot];
        // `fsync`, not `fdatasync`: the time of modification is how a later run knows the file as untouched.
        vm.image.sync_all().map_err(|error| self.break_down(&vm.part, &error))?;
        self.checkpoint()?;
        if !self.replace && vm.ram.symlink_metadata().is_ok() {
            return Err(StoreError::ImageExists { vm: vm.entry.name.clone(), path: vm.ram.clone() });
        }
        let noted = vm.image.metadata().and_then(|at| journal.set_image(slot, begin::finished(&at)));
        noted.and_then(|()| journal.file().sync_data()).map_err(|error| {
            Attempt::on("note a finished image in this journal", &self.journal_path).failed(error)
        })?;
        self.disk.rename(&vm.part, &vm.ram).map_err(|error| {
            Attempt { vm: Some(&vm.entry.name), ..Attempt::on("rename this image", &vm.part) }.failed(error)
        })
    }
}
