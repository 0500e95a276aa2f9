//! Transfers whose guests outlive a connection, or the transfer itself.

use crate::board::Board;
use crate::fetch::Fetching;
use crate::guests::{GuestConfig, Guests};
use crate::service::ServiceEvent;
use crate::shelf::Shelf;
use crate::store::{Intake, Store};
use net::control::with_causes;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use wire::control::{CloneStatus, Offer, RefuseCause, VmOffer};

/// Clones that are to end are waited for so long; those that take longer are waited for one by one.
const END_WITHIN: Duration = Duration::from_secs(3);

/// A transfer's images and guests.
pub(crate) struct Live {
    pub(crate) intake: Arc<Intake>,
    pub(crate) guests: Option<Guests>,
    /// With guests: what other hosts may have from here, and this one from them.
    pub(crate) shelf: Option<Arc<Shelf>>,
    vms: Vec<VmOffer>,
    /// The sender's process that it was begun with, or goes on with.
    session: u64,
}

impl Live {
    pub(crate) fn new(intake: Intake, guests: Option<Guests>, offer: &Offer) -> Self {
        let shelf = guests.is_some().then(Arc::<Shelf>::default);
        if let Some(shelf) = &shelf {
            intake.keep_heads(Arc::clone(shelf));
        }
        Self { intake: Arc::new(intake), guests, shelf, vms: offer.vms.clone(), session: offer.session }
    }

    /// VMs that were to move here and are still their source's have run on there since, if their sender is another process than
    /// before: what is here of them is of another moment.
    fn is_outdated(&self, session: u64) -> bool {
        self.session != session && self.guests.as_ref().is_some_and(Guests::any_undecided)
    }

    /// Numbers of the VMs.
    pub(crate) fn vms(&self) -> Vec<u16> {
        self.vms.iter().map(|vm| vm.vm).collect()
    }
}

/// A transfer without a sender: its clones wait for pages.
struct Orphan {
    live: Live,
    since: Instant,
    fetching: Option<Fetching>,
    /// What was said of it already.
    told: Told,
}

#[derive(Default)]
struct Told {
    hopeless: bool,
    helped: bool,
    over: bool,
}

enum Standing {
    Orphaned(Orphan),
    /// The transfer is over; clones run on.
    Running(Guests),
    /// It was cancelled: clones that had all pages run on, and what became of the others is told for a while.
    Cancelled {
        guests: Guests,
        /// The sender's process that had begun it, which may not go on with it.
        session: u64,
        at: Instant,
    },
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
            Standing::Orphaned(orphan) => orphan.live.guests.as_ref(),
            Standing::Running(guests) | Standing::Cancelled { guests, .. } => Some(guests),
        });
        let line = |clone: CloneStatus| {
            let state = match &clone {
                clone if clone.over => "over",
                clone if clone.starting => "starting",
                clone if clone.missing_pages > 0 => "depends on a sender or another host",
                _ => "independent",
            };
            format!("{}: {state}; {}", clone.name, clone.words)
        };
        guests.flat_map(Guests::status).map(line).collect()
    }

    /// Keeps a transfer whose connection is gone, and what asks other hosts for the rest.
    pub(crate) fn keep(&mut self, transfer: String, live: Live, fetching: Option<Fetching>) {
        let orphan = Orphan { live, since: Instant::now(), fetching, told: Told::default() };
        self.0.insert(transfer, Standing::Orphaned(orphan));
    }

    /// Keeps clones that depend on nobody.
    pub(crate) fn keep_running(&mut self, transfer: String, mut guests: Guests) {
        guests.settle_down();
        if guests.any_alive() {
            self.0.insert(transfer, Standing::Running(guests));
        }
    }

    /// What waits for this transfer, if anything does: the clones that a sender is to go on with.
    ///
    /// The sender may be another process than before: answers and blocks that differ from the pages that are here are refused
    /// one by one. An `Err` says in words why it cannot go on.
    pub(crate) fn take(&mut self, offer: &Offer) -> Option<Result<Live, (RefuseCause, String)>> {
        let transfer = &offer.transfer;
        let same = |live: &Live| {
            live.vms == offer.vms
                && live.guests.as_ref().is_none_or(|guests| {
                    guests.offers().count() == offer.guests.len()
                        && guests.offers().zip(&offer.guests).all(|(a, b)| a.is_same_guest(b))
                })
        };
        match self.0.remove(transfer)? {
            Standing::Cancelled { guests, session, at } if session == offer.session => {
                self.0.insert(transfer.clone(), Standing::Cancelled { guests, session, at });
                Some(Err((RefuseCause::Offer, "it was cancelled here by `scatter cancel`".to_owned())))
            }
            Standing::Cancelled { guests, .. } if !guests.any_alive() => None,
            // Nothing lives here that could go on: the transfer begins anew.
            Standing::Orphaned(orphan) if !orphan.live.guests.as_ref().is_some_and(Guests::any_alive) => None,
            Standing::Orphaned(orphan) if orphan.live.is_outdated(offer.session) => None,
            Standing::Orphaned(mut orphan) if same(&orphan.live) => {
                orphan.live.session = offer.session;
                if let Some(guests) = &mut orphan.live.guests {
                    guests.take_up(&offer.guests);
                }
                Some(Ok(orphan.live))
            }
            standing => {
                let reason =
                    format!("clones of transfer {transfer} run here: end them first, or choose another name");
                self.0.insert(transfer.clone(), standing);
                Some(Err((RefuseCause::Busy, reason)))
            }
        }
    }

    /// Forgets what is over, tells the board of the others, and ends clones that have waited for too long; says what happened.
    pub(crate) fn tend(&mut self, orphan_timeout: Duration, board: &Board) -> Vec<String> {
        let mut notes = Vec::new();
        self.0.retain(|transfer, standing| match standing {
            Standing::Orphaned(orphan) => orphan.tend(transfer, orphan_timeout, board, &mut notes),
            Standing::Running(guests) => {
                guests.tend();
                let alive = guests.any_alive();
                if alive {
                    board.write(transfer, None, Vec::new(), guests.status());
                } else {
                    board.remove(transfer);
                    notes.push(format!("{transfer}: no clone is running any more"));
                }
                alive
            }
            Standing::Cancelled { guests, at, .. } => {
                guests.tend();
                let keep = guests.any_alive() || at.elapsed() < orphan_timeout;
                if keep {
                    board.write(transfer, None, Vec::new(), guests.status());
                } else {
                    board.remove(transfer);
                }
                keep
            }
        });
        notes
    }

    /// Ends a transfer's clones that lack pages, and lets go of what it holds; those that have all of their memory run on. How each
    /// fares then, and what is to be told here.
    pub(crate) fn end(&mut self, transfer: &str, reason: &str) -> (Vec<CloneStatus>, Vec<String>) {
        let (mut guests, session, mut notes) = match self.0.remove(transfer) {
            None => return (Vec::new(), Vec::new()),
            Some(Standing::Running(guests)) => {
                let status = guests.status();
                self.0.insert(transfer.to_owned(), Standing::Running(guests));
                return (status, Vec::new());
            }
            Some(Standing::Cancelled { guests, session, at }) => {
                let status = guests.status();
                self.0.insert(transfer.to_owned(), Standing::Cancelled { guests, session, at });
                return (status, Vec::new());
            }
            Some(Standing::Orphaned(Orphan { live, since, fetching, told })) => {
                if live.guests.as_ref().is_none_or(Guests::any_move) {
                    let orphan = Orphan { live, since, fetching, told };
                    self.0.insert(transfer.to_owned(), Standing::Orphaned(orphan));
                    return (Vec::new(), Vec::new());
                }
                // It places what other hosts bring.
                drop(fetching);
                let Live { intake, guests, session, .. } = live;
                let Some(mut guests) = guests else { return (Vec::new(), Vec::new()) };
                guests.end(reason);
                guests.settle(END_WITHIN);
                guests.let_go();
                (guests, session, free(transfer, intake))
            }
        };
        guests.tend();
        let clones = guests.status();
        let of = |over: bool| {
            let names = clones.iter().filter(|clone| clone.over == over).map(|clone| clone.name.as_str());
            names.collect::<Vec<_>>().join(", ")
        };
        let (ended, live) = (of(true), of(false));
        notes.push(match (ended.as_str(), live.as_str()) {
            ("", live) => format!("{transfer}: {reason}: all clones have their memory and run on: {live}"),
            (ended, "") => format!("{transfer}: {reason}: these clones are ended: {ended}"),
            (ended, live) => {
                format!("{transfer}: {reason}: these clones are ended: {ended}; these run on: {live}")
            }
        });
        self.0.insert(transfer.to_owned(), Standing::Cancelled { guests, session, at: Instant::now() });
        (clones, notes)
    }
}

/// Gives back what a cancelled transfer holds on disk.
fn free(transfer: &str, intake: Arc<Intake>) -> Vec<String> {
    let freed = match Arc::try_unwrap(intake) {
        Ok(intake) => intake.discard().map_err(|error| with_causes(&error)),
        Err(_) => Err("its images are in use".to_owned()),
    };
    let left = |reason| format!("{transfer}: something of it is left in the store: {reason}");
    freed.err().map(left).into_iter().collect()
}

impl Orphan {
    /// Whether it is to be kept: while a clone lives, and after that while other hosts may need what is here.
    fn tend(
        &mut self,
        transfer: &str,
        orphan_timeout: Duration,
        board: &Board,
        notes: &mut Vec<String>,
    ) -> bool {
        let Some(guests) = &mut self.live.guests else { return false };
        let names = guests.dependent().join(", ");
        let late = self.since.elapsed() >= orphan_timeout;
        let helpers = self.live.shelf.as_ref().map(|shelf| shelf.helpers()).unwrap_or_default();
        if names.is_empty() && !helpers.is_empty() && !std::mem::replace(&mut self.told.helped, true) {
            notes.push(format!(
                "{transfer}: complete without its sender: {} brought the rest",
                helpers.join(", ")
            ));
        }
        let hopeless = !names.is_empty() && self.fetching.as_ref().is_some_and(Fetching::is_fruitless);
        if hopeless && !std::mem::replace(&mut self.told.hopeless, true) {
            notes.push(format!(
                "{transfer}: the sender is gone, and no other host has what these clones lack: {names}"
            ));
        }
        if late && !names.is_empty() {
            let seconds = orphan_timeout.as_secs();
            let reason =
                format!("no sender brought the missing pages for {seconds} s, and no other host has them");
            guests.lose(&reason);
            notes.push(format!("{transfer}: {reason}: these clones are ended: {names}"));
            self.since = Instant::now();
        }
        guests.tend();
        let alive = guests.any_alive();
        if alive {
            board.write(transfer, None, helpers, guests.status());
        } else {
            board.remove(transfer);
            if !std::mem::replace(&mut self.told.over, true) {
                notes.push(format!("{transfer}: no clone is running any more"));
            }
        }
        alive || !late
    }
}

/// What a receiver that died while it noted a decision has left standing is ended: its source has it still.
pub(crate) fn end_undecided(store: &Store, guests: &GuestConfig, observer: &mut dyn FnMut(ServiceEvent)) {
    let journal = store.hand_overs();
    let ended = journal.undecided().map_err(|error| error.to_string()).and_then(|left| {
        for taken in left {
            for launcher in guests.launchers.iter().filter(|launcher| launcher.can_move()) {
                launcher.end_undecided(&taken.monitor)?;
            }
            observer(ServiceEvent::Guests(format!("{}: a copy that never ran here was ended", taken.vm)));
        }
        journal.forget_undecided().map_err(|error| error.to_string())
    });
    if let Err(reason) = ended {
        observer(ServiceEvent::Guests(format!("a VM that never ran here may be left standing: {reason}")));
    }
}
