//! Checkpoints: how much of the journal survives a restart of the machine.
//!
//! Data and records reach the disk in any order, so after a power failure a record proves nothing by itself. A
//! checkpoint syncs the images, then the journal, and then marks the journal up to where it stood before as durable.
//! The mark is withdrawn, on disk, before a page of a block under it changes; the next checkpoint sets it anew.

use std::io;
use std::path::Path;
use std::sync::{Arc, PoisonError};

use super::error::StoreError;
use super::shared::Inner;

/// Which part of the journal the disk vouches for.
pub(super) struct Checkpoint {
    /// Bytes of the journal under the mark.
    durable: u64,
    /// Bytes written to images since the last checkpoint began.
    unsynced: u64,
    /// The mark that the checkpoint in progress will set; `None` if there is none, or if it was spoiled.
    underway: Option<u64>,
}

impl Checkpoint {
    pub(super) fn new(durable: u64) -> Self {
        Self { durable, unsynced: 0, underway: None }
    }

    /// Notes written bytes; whether a checkpoint is due.
    pub(super) fn wrote(&mut self, bytes: u64, limit: u64) -> bool {
        self.unsynced = self.unsynced.saturating_add(bytes);
        self.unsynced >= limit
    }

    /// A record at `offset` is about to be killed: whether the mark must be withdrawn before.
    pub(super) fn before_kill(&mut self, offset: u64) -> bool {
        // A mark that is about to cover the record would say that it is live and its pages are on disk.
        if self.underway.is_some_and(|mark| offset < mark) {
            self.underway = None;
        }
        offset < self.durable
    }

    /// The mark is withdrawn.
    pub(super) fn voided(&mut self) {
        self.durable = 0;
    }
}

impl Inner {
    /// Makes everything recorded so far durable; `false` if it was spoiled by a block that had to be killed meanwhile,
    /// or there was nothing to do.
    pub(super) fn checkpoint(&self) -> Result<bool, StoreError> {
        // A thread that panicked here left the state consistent: the lock only keeps checkpoints apart.
        let _alone = self.checkpointing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.lock();
        state.usable()?;
        let mark = state.journal.len();
        state.checkpoint.unsynced = 0;
        if mark == state.checkpoint.durable {
            return Ok(false);
        }
        state.checkpoint.underway = Some(mark);
        let journal = Arc::clone(&state.journal);
        let unsynced: Vec<bool> =
            state.files.iter_mut().map(|file| std::mem::replace(&mut file.unsynced, false)).collect();
        drop(state);
        for (vm, _) in self.vms.iter().zip(&unsynced).filter(|(_, unsynced)| **unsynced) {
            vm.image.sync_data().map_err(|error| self.break_down(&vm.part, &error))?;
        }
        journal.file().sync_data().map_err(|error| self.break_down(&self.journal_path, &error))?;
        let mut state = self.lock();
        if state.checkpoint.underway.take().is_none() || state.broken.is_some() {
            return Ok(false);
        }
        // Under the lock, so that no record is killed between the decision and the mark.
        journal.set_durable(mark).map_err(|error| {
            super::error::Attempt::on("mark this journal as durable", &self.journal_path).failed(error)
        })?;
        state.checkpoint.durable = mark;
        drop(state);
        journal.file().sync_data().map_err(|error| self.break_down(&self.journal_path, &error))?;
        Ok(true)
    }

    /// The disk lost data that it had accepted (the kernel tells once, then forgets): nothing may be trusted or
    /// finished from now on, in this run or a later one.
    pub(super) fn break_down(&self, path: &Path, error: &io::Error) -> StoreError {
        let mut state = self.lock();
        if state.broken.is_none() {
            let errno = error.raw_os_error().unwrap_or(nix::libc::EIO);
            state.broken = Some((path.to_path_buf(), errno));
            // Should even this fail, a file system that is in such a state has become read-only.
            let _ = state.journal.forget();
        }
        state.usable().expect_err("broken was set just now")
    }
}

/// Starts the thread that makes checkpoints when enough was written. It ends with the intake.
pub(super) fn spawn(inner: &Arc<Inner>) -> io::Result<()> {
    let inner = Arc::clone(inner);
    let body = move || {
        loop {
            let mut state = inner.lock();
            while !state.stop && state.checkpoint.unsynced < inner.checkpoint_bytes {
                state = inner.checkpoint_due.wait(state).expect("nothing panics while it holds the ledger");
            }
            if state.stop {
                return;
            }
            drop(state);
            match inner.checkpoint() {
                Ok(_) => {}
                // Whoever places next is told.
                Err(StoreError::WriteBack { .. }) => return,
                Err(error) => tracing::warn!(%error, "checkpoint failed, the next one will try again"),
            }
        }
    };
    std::thread::Builder::new().name("store-checkpoint".to_owned()).spawn(body).map(drop)
}
