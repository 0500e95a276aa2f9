//! Blocks from other hosts of the same transfer, when the sender is gone (docs/post-copy.md).
//!
//! ```text
//! host that lacks blocks                  host of the same circle
//!   Fetch (transfer, digests) ─────────────▶     certificates of the fleet at both ends
//!   ◀──────────────────────────── Fetched*       one a digest, in order
//! ```
//!
//! A *circle* is a set of hosts that need the same blocks. A host is told only of circles that it is in, by the sender; it hands a
//! block to nobody outside of the block's circle, and takes none whose digest the sender did not tell it.

use super::ControlError;
use super::check::at_most;
use crate::{Digest, limits};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// Another host of the transfer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Peer {
    /// Its name, as in its certificate.
    pub name: String,
    /// Where its `scatter receive` listens.
    pub address: SocketAddr,
}

/// Hosts that need the same blocks.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Circle {
    /// Named by `Announce`; never 0, which is no circle.
    pub id: u32,
    /// The others of it: indexes into the offer's peers.
    pub peers: Vec<u16>,
}

/// Asks a peer for blocks.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Fetch {
    /// The transfer.
    pub transfer: String,
    /// BLAKE3 of each block; at most [`limits::FETCHED_MAX`].
    pub digests: Vec<Digest>,
}

/// A peer's answer for one block.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Fetched {
    /// Its BLAKE3.
    pub digest: Digest,
    /// Its bytes; empty if the peer has it not, or the asking host is not in its circle.
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
}

/// Checks the peers and circles of an offer.
pub(super) fn check(peers: &[Peer], circles: &[Circle]) -> Result<(), ControlError> {
    at_most("peers", peers.len(), limits::PEERS_MAX)?;
    peers.iter().try_for_each(|peer| at_most("peer name", peer.name.len(), limits::NAME_BYTES_MAX))?;
    at_most("circles", circles.len(), limits::CIRCLES_MAX)?;
    for circle in circles {
        at_most("peers of a circle", circle.peers.len(), limits::PEERS_MAX)?;
        let beyond = circle.peers.iter().copied().max().map_or(0, |last| usize::from(last) + 1);
        at_most("number of a peer", beyond, peers.len())?;
    }
    Ok(())
}

impl Fetch {
    pub(super) fn check(&self) -> Result<(), ControlError> {
        at_most("transfer name", self.transfer.len(), limits::NAME_BYTES_MAX)?;
        at_most("blocks asked for", self.digests.len(), limits::FETCHED_MAX)
    }
}

impl Fetched {
    pub(super) fn check(&self) -> Result<(), ControlError> {
        at_most("block", self.bytes.len(), limits::BLOCK_BYTES_MAX as usize)
    }
}
