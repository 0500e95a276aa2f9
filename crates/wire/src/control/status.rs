//! Who depends on whom at a host: the answer to `scatter status`.

use super::ControlError;
use super::check::at_most;
use crate::limits;
use serde::{Deserialize, Serialize};

/// What runs at a host, or waits there.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct HostStatus {
    /// Transfers with guests.
    pub transfers: Vec<TransferStatus>,
}

/// A transfer whose guests run here.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TransferStatus {
    /// Its name.
    pub transfer: String,
    /// The sender that is connected now, which brings what is missing; none if nobody does.
    pub sender: Option<String>,
    /// Hosts that brought pages after the sender was lost.
    pub peers: Vec<String>,
    /// At most [`limits::CLONES_MAX`] of its clones.
    pub clones: Vec<CloneStatus>,
    /// Clones beyond these.
    pub more: u32,
}

/// A clone.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CloneStatus {
    /// Its name.
    pub name: String,
    /// Its program is still starting it.
    pub starting: bool,
    /// It is over.
    pub over: bool,
    /// Pages of its memory that are not at the host yet; 0: it depends on nobody.
    pub missing_pages: u32,
    /// How it fares, as its program says.
    pub words: String,
}

impl TransferStatus {
    /// A transfer that nobody feeds, with as many of its clones as one message names.
    #[must_use]
    pub fn of(transfer: String, mut clones: Vec<CloneStatus>) -> Self {
        let more = clones.len().saturating_sub(limits::CLONES_MAX);
        clones.truncate(limits::CLONES_MAX);
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        Self { transfer, sender: None, peers: Vec::new(), clones, more }
    }
}

impl HostStatus {
    pub(super) fn check(&self) -> Result<(), ControlError> {
        at_most("transfers", self.transfers.len(), limits::VMS_MAX)?;
        for transfer in &self.transfers {
            at_most("transfer name", transfer.transfer.len(), limits::NAME_BYTES_MAX)?;
            let sender = transfer.sender.as_ref().map_or(0, String::len);
            at_most("sender name", sender, limits::NAME_BYTES_MAX)?;
            at_most("peers", transfer.peers.len(), limits::PEERS_MAX)?;
            transfer
                .peers
                .iter()
                .try_for_each(|peer| at_most("peer name", peer.len(), limits::NAME_BYTES_MAX))?;
            at_most("clones", transfer.clones.len(), limits::CLONES_MAX)?;
            for clone in &transfer.clones {
                at_most("clone name", clone.name.len(), limits::NAME_BYTES_MAX)?;
                at_most("words", clone.words.len(), limits::REASON_BYTES_MAX)?;
            }
        }
        Ok(())
    }
}
