//! Transfers whose clones are to be ended: asked for by `scatter cancel`, done by the thread that runs transfers.

use crate::live::Lives;
use crate::service::ServiceEvent;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;
use wire::control::{CloneStatus, EndClones, HostStatus, Offer, TransferStatus};

/// Those that wait to be done; who asks beyond that is told to ask again by a closed connection.
const WAITING_MAX: usize = 64;

/// One of them.
pub(crate) struct Ending {
    pub(crate) what: EndClones,
    answer: oneshot::Sender<HostStatus>,
}

impl Ending {
    /// Tells who asked how the transfer's clones fare now.
    pub(crate) fn answer(self, clones: Vec<CloneStatus>) {
        let status = TransferStatus::of(self.what.transfer, clones);
        // Who asked may be gone: it is done all the same.
        let _ = self.answer.send(HostStatus { transfers: vec![status] });
    }
}

/// The queue of them.
#[derive(Clone, Default)]
pub(crate) struct Endings(Arc<Mutex<Vec<Ending>>>);

impl Endings {
    fn lock(&self) -> MutexGuard<'_, Vec<Ending>> {
        // A list is whole at any time.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for one; what comes of it comes here, or nothing if too many wait.
    pub(crate) fn ask(&self, what: EndClones) -> oneshot::Receiver<HostStatus> {
        let (answer, answered) = oneshot::channel();
        let mut waiting = self.lock();
        if waiting.len() < WAITING_MAX {
            waiting.push(Ending { what, answer });
        }
        answered
    }

    /// Does those that are due. That of a transfer that runs here waits until it has ended, for [this reason](Self::reason).
    pub(crate) fn serve(
        &self,
        running: Option<&Offer>,
        lives: &mut Lives,
        observer: &mut dyn FnMut(ServiceEvent),
    ) {
        while let Some(ending) = self.take(running) {
            if running.is_some_and(|offer| offer.transfer == ending.what.transfer) {
                // No clones: VMs that move here, whose source decides whether they can stay, or memory files. It is not answered.
                continue;
            }
            let (clones, notes) = lives.end(&ending.what.transfer, &ending.what.reason);
            ending.answer(clones);
            notes.into_iter().for_each(|note| observer(ServiceEvent::Guests(note)));
        }
    }

    /// The next one that does not wait for the end of a transfer of clones that runs here.
    fn take(&self, running: Option<&Offer>) -> Option<Ending> {
        let waits = |of: &Ending| {
            running.is_some_and(|offer| {
                let clones = offer.guests.iter().all(|guest| guest.leaves.is_none());
                offer.transfer == of.what.transfer && clones && !offer.guests.is_empty()
            })
        };
        let mut waiting = self.lock();
        let at = waiting.iter().position(|of| !waits(of))?;
        Some(waiting.remove(at))
    }

    /// Why this transfer is to end, if it is.
    pub(crate) fn reason(&self, transfer: &str) -> Option<String> {
        let waiting = self.lock();
        waiting.iter().find(|of| of.what.transfer == transfer).map(|of| of.what.reason.clone())
    }
}
