//! VMs that move to this host: what their source says of them becomes [`crate::handover`]'s inputs, and its actions are done.

use super::clone::start;
use super::{Attachments, CloneSpec, GuestError, Guests, Moves, State as CloneState};
use crate::handover::journal::{Journal, Taken};
use crate::handover::{Action, Input, State, restarted, step};
use std::sync::Arc;
use wire::control::{self, AttachmentOffer, GuestOffer, HostWord, PageRange, SourceWord, ToSender};

/// Where this host notes which VMs are its own, for one transfer.
#[derive(Clone, Debug)]
pub struct HandOvers {
    /// The journal.
    pub journal: Journal,
    /// The transfer's name.
    pub transfer: String,
}

/// A VM that moves here.
pub(super) struct Taking {
    pub(super) state: State,
    name: String,
    whole: bool,
    /// Lists of stale pages that are here whole.
    epoch: u32,
    /// Its attachments have been named.
    told: bool,
    /// Its hypervisor has them.
    given: bool,
    /// Its hypervisor has loaded it, but not all of its memory is here, as it has to be.
    early: bool,
    withdrawn: bool,
    /// Why it is gone.
    reason: String,
    /// The hypervisor that an earlier receiver left running.
    pub(super) recover: Option<String>,
}

impl Taking {
    /// What an earlier receiver left of the VM is found.
    pub(super) fn find(offer: &GuestOffer, notes: &HandOvers) -> Result<Option<Self>, GuestError> {
        let Some(leaves) = &offer.leaves else { return Ok(None) };
        let [clone] = &offer.clones[..] else { return Err(GuestError::Offer { vm: offer.vm }) };
        let found = notes.journal.find(&notes.transfer, &clone.name).map_err(GuestError::Journal)?;
        Ok(Some(Self {
            state: found.as_ref().map_or(State::Preparing, |_| restarted(true, true).0),
            name: clone.name.clone(),
            whole: leaves.whole,
            epoch: 0,
            told: false,
            given: false,
            early: false,
            withdrawn: false,
            reason: String::new(),
            recover: found.map(|taken| taken.monitor),
        }))
    }

    /// Whether its clone is to be started when its attachments are here.
    pub(super) fn is_told(&self) -> bool {
        self.told
    }

    /// Whether its hypervisor has its attachments.
    pub(super) fn is_given(&self) -> bool {
        self.given
    }

    /// It was decided that it is this host's.
    pub(super) fn is_ours(&self) -> bool {
        matches!(self.state, State::Running | State::Complete)
    }

    /// It ran here, and has ended.
    pub(super) fn is_over(&self) -> bool {
        self.state == State::Over
    }

    /// Whether its source need not be there for it.
    pub(super) fn is_settled(&self, complete: bool) -> bool {
        match self.state {
            State::Running | State::Complete => complete,
            State::Gone => self.withdrawn,
            State::Over => true,
            State::Preparing | State::Ready => false,
        }
    }
}

impl Guests {
    /// Takes in a word of a VM's source.
    ///
    /// # Errors
    /// [`GuestError::Protocol`], [`GuestError::Place`].
    pub fn handle_hand_over(&mut self, vm: u16, word: SourceWord) -> Result<(), GuestError> {
        let at = self.vms.iter().position(|known| known.offer.vm == vm && known.taking.is_some());
        let at =
            at.ok_or_else(|| GuestError::Protocol(format!("VM {vm} was not offered as one that moves")))?;
        match word {
            SourceWord::Stale { epoch, ranges, last } => self.stale(at, epoch, &ranges, last)?,
            SourceWord::State { attachments } => self.state(at, &attachments),
            SourceWord::Decision => self.input(at, Input::Decision),
            SourceWord::Withdrawn { reason } => {
                let taking = self.taking(at);
                taking.withdrawn = true;
                taking.reason = reason;
                self.input(at, Input::Withdrawn);
            }
            _ => return Err(GuestError::Protocol("an unknown word of a VM that moves".into())),
        }
        Ok(())
    }

    fn taking(&mut self, at: usize) -> &mut Taking {
        self.vms[at].taking.as_mut().expect("looked for it")
    }

    fn stale(&mut self, at: usize, epoch: u32, ranges: &[PageRange], last: bool) -> Result<(), GuestError> {
        let vm = &mut self.vms[at];
        let taking = vm.taking.as_mut().expect("looked for it");
        if epoch <= taking.epoch {
            return Ok(());
        }
        if taking.given && vm.clones.iter().any(|clone| clone.state != CloneState::Over) {
            return Err(GuestError::Protocol(format!("pages of VM {} change that it has", vm.offer.vm)));
        }
        for range in ranges {
            vm.image
                .renew(range.first, range.count)
                .map_err(|source| GuestError::Place { vm: vm.offer.vm, source })?;
        }
        if last {
            taking.epoch = epoch;
        }
        Ok(())
    }

    fn state(&mut self, at: usize, attachments: &[AttachmentOffer]) {
        let vm = &mut self.vms[at];
        let taking = vm.taking.as_mut().expect("looked for it");
        if taking.state == State::Gone {
            vm.clones.clear();
            taking.given = false;
        }
        taking.withdrawn = false;
        taking.told = true;
        if !taking.given {
            vm.attachments = Attachments::new(attachments);
        } else if taking.state != State::Preparing {
            // What is being loaded is not loaded twice.
            self.input(at, Input::StateHere);
        }
    }

    /// The VM's attachments are all here for the first time.
    pub(super) fn load(&mut self, at: usize) {
        let taking = self.taking(at);
        if taking.is_ours() {
            // Its hypervisor was there before this process.
            self.act(at, Action::Load);
        } else {
            self.input(at, Input::StateHere);
        }
    }

    /// Its hypervisor has loaded it, and it stands.
    pub(super) fn loaded(&mut self, at: usize) {
        let complete = self.vms[at].image.is_complete();
        let taking = self.taking(at);
        taking.early = taking.whole && !complete;
        if !taking.early {
            self.input(at, Input::Loaded);
        }
    }

    /// Its memory is whole.
    pub(super) fn whole(&mut self, at: usize) {
        let taking = self.taking(at);
        if std::mem::take(&mut taking.early) {
            self.input(at, Input::Loaded);
        }
        if self.taking(at).state == State::Running {
            self.input(at, Input::Complete);
        }
    }

    /// Its hypervisor is gone.
    pub(super) fn died(&mut self, at: usize, reason: &str) {
        let taking = self.taking(at);
        if taking.reason.is_empty() {
            reason.clone_into(&mut taking.reason);
        }
        self.input(at, Input::Died);
    }

    pub(super) fn input(&mut self, at: usize, input: Input) {
        let taking = self.taking(at);
        let (state, actions) = step(taking.state, input);
        if state != taking.state {
            tracing::info!(vm = taking.name, from = %taking.state, to = %state, "hand-over");
            taking.state = state;
        }
        for action in actions {
            self.act(at, *action);
        }
    }

    fn act(&mut self, at: usize, action: Action) {
        let number = self.vms[at].offer.vm;
        let ran = self.vms[at].taking.as_ref().is_some_and(|taking| taking.state == State::Over);
        let word = match action {
            Action::Load => return self.run(at),
            Action::Decide => return self.decide(at),
            Action::Start => {
                self.vms[at].clones.iter().for_each(|clone| clone.ward.go());
                return;
            }
            Action::End => {
                self.vms[at].clones.iter().for_each(|clone| clone.ward.stop());
                return;
            }
            Action::TellReady => HostWord::Ready,
            Action::TellRunning => HostWord::Running,
            Action::TellComplete => HostWord::Complete,
            Action::TellGone => HostWord::Gone { ran, reason: control::reason(&self.taking(at).reason) },
        };
        self.messages.push_back(ToSender::HandOver { vm: number, word });
    }

    /// Has hypervisors fed with what comes of VMs that still run at their sources.
    pub(super) fn feed_ahead(&mut self) {
        let none: Arc<[(String, Vec<u8>)]> = Arc::new([]);
        for vm in &mut self.vms {
            let outline = vm.offer.leaves.as_ref().map_or(&[][..], |of| &of.outline);
            let early = vm.taking.as_ref().is_some_and(|taking| taking.recover.is_none());
            if early && !outline.is_empty() {
                let moves = Some(Moves { recover: None, outline: Some(outline.to_vec()) });
                let spec = CloneSpec { moves, ..vm.spec(&vm.offer.clones[0], &none) };
                vm.clones = vec![start(spec, &vm.launcher, &self.out, &self.waker)];
            }
        }
    }

    fn run(&mut self, at: usize) {
        let vm = &mut self.vms[at];
        let Some(attachments) = vm.attachments.all() else { return };
        let attachments: Arc<[(String, Vec<u8>)]> = attachments.into();
        vm.taking.as_mut().expect("it moves").given = true;
        if let Some(fed) = vm.clones.first().filter(|clone| clone.state != CloneState::Over) {
            fed.ward.give(attachments);
            return;
        }
        let spec = vm.spec(&vm.offer.clones[0], &attachments);
        let clone = start(spec, &vm.launcher, &self.out, &self.waker);
        if vm.taking.as_ref().is_some_and(Taking::is_ours) {
            clone.ward.go();
        }
        vm.clones = vec![clone];
    }

    fn decide(&mut self, at: usize) {
        let vm = &self.vms[at];
        let taking = vm.taking.as_ref().expect("looked for it");
        let monitor = vm.clones.first().map_or_else(String::new, |clone| clone.ward.monitor());
        let taken = Taken { vm: taking.name.clone(), monitor };
        let outlive = || vm.clones.iter().for_each(|clone| clone.ward.outlive());
        match self.notes.journal.decide(&self.notes.transfer, &taken, outlive) {
            Ok(()) => self.input(at, Input::Decided),
            // Its source says it again, and it stays ready.
            Err(error) => {
                tracing::error!(vm = taken.vm, %error, "cannot note that the VM is this host's: it stands until this can be written");
            }
        }
    }
}
