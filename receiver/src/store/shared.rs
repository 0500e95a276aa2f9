//! What the threads of one intake share.

use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::shelf::Shelf;
use pages::VmId;

use super::checkpoint::Checkpoint;
use super::disk::{Disk, StoreFile};
use super::error::StoreError;
use super::journal::{Journal, VmEntry};
use super::lazy::Lazy;
use super::ledger::Ledger;

/// A VM of the intake.
pub(super) struct Vm {
    pub(super) entry: VmEntry,
    pub(super) ram: PathBuf,
    pub(super) part: PathBuf,
    pub(super) image: StoreFile,
    /// Its memory as guests see it, if it is started while it arrives.
    pub(super) lazy: OnceLock<Lazy>,
}

/// What `begin` hands over.
pub(super) struct Opened {
    pub(super) journal: Journal,
    pub(super) ledger: Ledger,
    /// Bytes of the journal trusted after a restart of the machine.
    pub(super) durable: u64,
    /// By VM: the image stands at its final name.
    pub(super) finished: Vec<bool>,
    pub(super) vms: Vec<Vm>,
}

pub(super) struct Inner {
    pub(super) disk: Disk,
    pub(super) journal_path: PathBuf,
    pub(super) checkpoint_bytes: u64,
    pub(super) replace: bool,
    /// Ascending by id.
    pub(super) vms: Vec<Vm>,
    /// The same, as the journal and placements know them.
    pub(super) table: Vec<VmEntry>,
    /// Where heads of placed blocks are kept, if other hosts may ask for them.
    pub(super) shelf: OnceLock<Arc<Shelf>>,
    pub(super) state: Mutex<State>,
    /// A block in flight ended, or a VM is not busy any more.
    pub(super) changed: Condvar,
    /// Enough was written for a checkpoint, or the intake ends.
    pub(super) checkpoint_due: Condvar,
    /// One checkpoint at a time.
    pub(super) checkpointing: Mutex<()>,
}

pub(super) struct State {
    pub(super) ledger: Ledger,
    pub(super) journal: Arc<Journal>,
    pub(super) files: Vec<FileState>,
    pub(super) checkpoint: Checkpoint,
    /// Set once the disk lost data: path and error number.
    pub(super) broken: Option<(PathBuf, i32)>,
    pub(super) stop: bool,
}

#[derive(Clone, Copy, Default)]
pub(super) struct FileState {
    /// At its final name.
    pub(super) finished: bool,
    /// Being finished: nothing may be written.
    pub(super) busy: bool,
    /// Has bytes that no checkpoint has brought to the disk.
    pub(super) unsynced: bool,
}

impl State {
    /// Fails once the disk lost data.
    pub(super) fn usable(&self) -> Result<(), StoreError> {
        let Some((path, errno)) = &self.broken else { return Ok(()) };
        Err(StoreError::WriteBack { path: path.clone(), source: std::io::Error::from_raw_os_error(*errno) })
    }
}

impl Inner {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds the ledger")
    }

    /// For destructors, which must not panic while another panic unwinds.
    pub(super) fn lock_even_poisoned(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).expect("nothing panics while it holds the ledger")
    }

    pub(super) fn slot(&self, vm: VmId) -> Result<usize, StoreError> {
        self.table.binary_search_by_key(&vm, |entry| entry.id).map_err(|_| StoreError::UnknownVm { vm })
    }
}
