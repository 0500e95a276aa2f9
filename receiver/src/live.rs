//! Transfers whose guests outlive a connection, or the transfer itself.

use crate::board::Board;
use crate::guests::Guests;
use crate::store::Intake;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use wire::control::{CloneStatus, Offer, VmOffer};

/// A transfer's images and guests.
pub(crate) struct Live {
    pub(crate) intake: Arc<Intake>,
    pub(crate) guests: Option<Guests>,
    vms: Vec<VmOffer>,
}

impl Live {
    pub(crate) fn new(intake: Intake, guests: Option<Guests>, offer: &Offer) -> Self {
        Self { intake: Arc::new(intake), guests, vms: offer.vms.clone() }
    }
}

enum Standing {
    /// No sender; clones wait for pages since then.
    Orphaned(Live, Instant),
    /// The transfer is over; clones run on.
    Running(Guests),
}

/// By the transfer's name.
#[derive(Default)]
pub(crate) struct Lives(BTreeMap<String, Standing>);

impl Lives {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How each clone fares, a line each.
    pub(crate) fn status(&self) -> Vec<String> {
        let guests = self.0.values().filter_map(|standing| match standing {
            Standing::Orphaned(live, _) => live.guests.as_ref(),
            Standing::Running(guests) => Some(guests),
        });
        let line = |clone: CloneStatus| {
            let state = match &clone {
                clone if clone.over => "over",
                clone if clone.starting => "starting",
                clone if clone.missing_pages > 0 => "depends on a sender",
                _ => "independent",
            };
            format!("{}: {state}; {}", clone.name, clone.words)
        };
        guests.flat_map(Guests::status).map(line).collect()
    }

    /// Keeps a transfer whose connection is gone.
    pub(crate) fn keep(&mut self, transfer: String, live: Live) {
        self.0.insert(transfer, Standing::Orphaned(live, Instant::now()));
    }

    /// Keeps clones that depend on nobody.
    pub(crate) fn keep_running(&mut self, transfer: String, guests: Guests) {
        if guests.any_alive() {
            self.0.insert(transfer, Standing::Running(guests));
        }
    }

    /// What waits for this transfer, if anything does: the clones that a sender is to go on with.
    ///
    /// The sender may be another process than before: answers and blocks that differ from the pages that are here are refused
    /// one by one. An `Err` says in words why it cannot go on.
    pub(crate) fn take(&mut self, offer: &Offer) -> Option<Result<Live, String>> {
        let transfer = &offer.transfer;
        let same = |live: &Live| {
            live.vms == offer.vms
                && live.guests.as_ref().is_none_or(|guests| {
                    guests.offers().count() == offer.guests.len()
                        && guests.offers().zip(&offer.guests).all(|(a, b)| a.is_same_guest(b))
                })
        };
        match self.0.remove(transfer)? {
            Standing::Orphaned(live, _) if same(&live) => Some(Ok(live)),
            standing => {
                let reason =
                    format!("clones of transfer {transfer} run here: end them first, or choose another name");
                self.0.insert(transfer.clone(), standing);
                Some(Err(reason))
            }
        }
    }

    /// Forgets what is over, tells the board of the others, and ends clones that have waited for too long; says what happened.
    pub(crate) fn tend(&mut self, orphan_timeout: Duration, board: &Board) -> Vec<String> {
        let mut notes = Vec::new();
        self.0.retain(|transfer, standing| {
            let guests = match standing {
                Standing::Orphaned(Live { guests: None, .. }, _) => return false,
                Standing::Orphaned(Live { guests: Some(guests), .. }, since) => {
                    let names = guests.dependent().join(", ");
                    if since.elapsed() >= orphan_timeout && !names.is_empty() {
                        let reason =
                            format!("no sender brought the missing pages for {} s", orphan_timeout.as_secs());
                        guests.lose(&reason);
                        notes.push(format!("{transfer}: {reason}: these clones are ended: {names}"));
                        *since = Instant::now();
                    }
                    guests
                }
                Standing::Running(guests) => guests,
            };
            guests.tend();
            let alive = guests.any_alive();
            if alive {
                board.write(transfer, None, Vec::new(), guests.status());
            } else {
                board.remove(transfer);
                notes.push(format!("{transfer}: no clone is running any more"));
            }
            alive
        });
        notes
    }
}
