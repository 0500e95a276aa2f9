//! How clones fare, for whoever asks; and the end of those that lack pages when their transfer is cancelled.

use super::clone::{Clone, State};
use super::{GuestVm, Guests};
use std::time::{Duration, Instant};
use wire::control::{self, CloneOffer, CloneStatus, GuestReport, GuestState, ToSender};

/// How often clones that are to end are looked at.
const GLANCE: Duration = Duration::from_millis(5);

impl Guests {
    /// Names of the clones that depend on pages which are not here.
    #[must_use]
    pub fn dependent(&self) -> Vec<&str> {
        let dependent = self.vms.iter().filter(|vm| !vm.image.is_complete());
        let clones = dependent.flat_map(|vm| vm.clones.iter().zip(&vm.offer.clones));
        clones.filter(|(clone, _)| clone.state != State::Over).map(|(_, offer)| offer.name.as_str()).collect()
    }

    /// How each clone fares, those that were [ended](Self::let_go) included.
    #[must_use]
    pub fn status(&self) -> Vec<CloneStatus> {
        self.vms.iter().flat_map(GuestVm::status).chain(self.gone.iter().cloned()).collect()
    }

    /// Whether VMs move here, which is not for [`end`](Self::end) to undo.
    #[must_use]
    pub fn any_move(&self) -> bool {
        self.vms.iter().any(|vm| vm.taking.is_some())
    }

    /// Ends the clones that lack pages, and those that were never started; the others run on. VMs that move here are left alone.
    pub fn end(&mut self, reason: &str) {
        for vm in self.vms.iter_mut().filter(|vm| vm.taking.is_none() && !vm.image.is_complete()) {
            vm.image.lose(reason);
            if vm.cancelled {
                continue;
            }
            vm.cancelled = true;
            if vm.clones.is_empty() {
                let never = |offer: &CloneOffer| {
                    let state = GuestState::Failed { reason: control::reason(reason) };
                    let (faults, words) = Default::default();
                    ToSender::Guest(GuestReport { clone: offer.clone, state, faults, words })
                };
                self.messages.extend(vm.offer.clones.iter().map(never));
            }
        }
    }

    /// Whether the clones that were to [end](Self::end) are over.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        let over = |vm: &GuestVm| vm.clones.iter().all(|clone| clone.state == State::Over);
        self.vms.iter().filter(|vm| vm.cancelled).all(over)
    }

    /// Waits until they are, for at most `timeout`.
    pub(crate) fn settle(&mut self, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        loop {
            self.take_events();
            if self.is_settled() || Instant::now() >= deadline {
                return;
            }
            std::thread::sleep(GLANCE);
        }
    }

    /// Lets go of what clones that were to [end](Self::end) held. One that is not over yet is waited for.
    pub fn let_go(&mut self) {
        let (ended, live): (Vec<GuestVm>, Vec<GuestVm>) =
            std::mem::take(&mut self.vms).into_iter().partition(|vm| vm.cancelled);
        self.vms = live;
        for mut vm in ended {
            vm.join();
            for clone in &mut vm.clones {
                clone.state = State::Over;
            }
            self.gone.extend(vm.status());
            let started = vm.clones.len();
            let lost = vm.image.lost().unwrap_or_default();
            self.gone.extend(vm.offer.clones[started..].iter().map(|offer| CloneStatus {
                name: offer.name.clone(),
                starting: false,
                over: true,
                missing_pages: vm.image.missing_count(),
                words: control::reason(&format!("never started: {lost}")),
            }));
        }
    }
}

impl GuestVm {
    fn status(&self) -> impl Iterator<Item = CloneStatus> {
        self.clones.iter().zip(&self.offer.clones).map(|(clone, offer)| CloneStatus {
            name: offer.name.clone(),
            starting: clone.state == State::Starting,
            over: clone.state == State::Over,
            missing_pages: self.image.missing_count(),
            words: control::reason(&self.words(clone)),
        })
    }

    fn words(&self, clone: &Clone) -> String {
        match (&self.taking, &clone.why_over) {
            (Some(taking), _) => format!("{}; {}", taking.state, clone.ward.status()),
            (None, Some(reason)) => reason.clone(),
            (None, None) => clone.ward.status(),
        }
    }

    /// Ends its clones' threads and waits for them: their programs look at their wards some times a second.
    pub(super) fn join(&mut self) {
        self.clones.iter().for_each(|clone| clone.ward.stop());
        for clone in &mut self.clones {
            if let Some(thread) = clone.thread.take() {
                // A panic was reported by the thread.
                let _ = thread.join();
            }
        }
    }
}
