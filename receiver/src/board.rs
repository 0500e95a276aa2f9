//! What runs here, for whoever asks: written by the thread that runs transfers, read by those that answer.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use wire::control::{CloneStatus, HostStatus, TransferStatus};

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
        clones: Vec<CloneStatus>,
    ) {
        let sender = sender.map(str::to_owned);
        let status = TransferStatus { sender, peers, ..TransferStatus::of(transfer.to_owned(), clones) };
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
