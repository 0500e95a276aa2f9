//! What runs here, for whoever asks: written by the thread that runs transfers, read by those that answer.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use wire::control::{CloneStatus, HostStatus, TransferStatus};
use wire::limits;

/// By the transfer's name.
#[derive(Clone, Default)]
pub(crate) struct Board(Arc<Mutex<BTreeMap<String, TransferStatus>>>);

impl Board {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, TransferStatus>> {
        // What is written is whole at any time.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes how a transfer's clones fare, and who feeds them.
    pub(crate) fn write(
        &self,
        transfer: &str,
        sender: Option<&str>,
        peers: Vec<String>,
        mut clones: Vec<CloneStatus>,
    ) {
        let more = clones.len().saturating_sub(limits::CLONES_MAX);
        clones.truncate(limits::CLONES_MAX);
        let status = TransferStatus {
            transfer: transfer.to_owned(),
            sender: sender.map(str::to_owned),
            peers,
            clones,
            more: u32::try_from(more).unwrap_or(u32::MAX),
        };
        self.lock().insert(transfer.to_owned(), status);
    }

    /// Forgets a transfer.
    pub(crate) fn remove(&self, transfer: &str) {
        self.lock().remove(transfer);
    }

    pub(crate) fn read(&self) -> HostStatus {
        HostStatus { transfers: self.lock().values().cloned().collect() }
    }
}
