//! What became of clones, and what follows: those whose state is here start, those whose memory is whole are told.

use super::clone::{Event, State, report, start};
use super::{CloneSpec, GuestVm, Guests};
use std::sync::Arc;
use std::time::Duration;
use wire::control::{self, GuestState};

impl Guests {
    pub(super) fn start_ready(&mut self, now: Duration) {
        for at in 0..self.vms.len() {
            let vm = &mut self.vms[at];
            if let Some(taking) = &vm.taking {
                if taking.is_told() && !taking.is_given() && vm.attachments.all().is_some() {
                    self.load(at);
                }
                continue;
            }
            if !vm.clones.is_empty() || vm.cancelled {
                continue;
            }
            let Some(attachments) = vm.attachments.all() else { continue };
            if !vm.working_set.is_ready(&vm.image, now) {
                continue;
            }
            let attachments: Arc<[(String, Vec<u8>)]> = attachments.into();
            let specs: Vec<CloneSpec> =
                vm.offer.clones.iter().map(|offer| vm.spec(offer, &attachments)).collect();
            let started = specs.into_iter().map(|spec| start(spec, &vm.launcher, &self.out, &self.waker));
            vm.clones = started.collect();
        }
    }

    pub(super) fn take_events(&mut self) {
        while let Ok(event) = self.events.try_recv() {
            let (Event::Loaded(number) | Event::Running(number) | Event::Over(number, _)) = &event;
            let number = *number;
            let of = |vm: &GuestVm| vm.clones.iter().any(|clone| clone.number == number);
            let Some(at) = self.vms.iter().position(of) else { continue };
            match &event {
                Event::Loaded(_) => {
                    self.loaded(at);
                    continue;
                }
                Event::Over(_, ended) if self.vms[at].taking.is_some() => {
                    let reason = ended.clone().err().unwrap_or_else(|| "it ended by itself".to_owned());
                    self.died(at, &reason);
                }
                _ => {}
            }
            let clones = &mut self.vms[at].clones;
            let Some(clone) = clones.iter_mut().find(|clone| clone.number == number) else { continue };
            let state = match event {
                Event::Loaded(_) => continue,
                Event::Running(_) if clone.state == State::Starting => {
                    clone.state = State::Running;
                    GuestState::Running
                }
                Event::Running(_) => continue,
                Event::Over(_, ended) => {
                    clone.state = State::Over;
                    clone.why_over = ended.as_ref().err().cloned();
                    ended.map_or_else(
                        |reason| GuestState::Failed { reason: control::reason(&reason) },
                        |()| GuestState::Ended,
                    )
                }
            };
            let report = report(clone, state);
            self.messages.push_back(report);
        }
    }

    pub(super) fn find_complete(&mut self) {
        for at in 0..self.vms.len() {
            if self.vms[at].taking.is_some() && self.vms[at].image.is_complete() {
                self.whole(at);
            }
        }
        for vm in self.vms.iter_mut().filter(|vm| vm.image.is_complete()) {
            for clone in
                vm.clones.iter_mut().filter(|clone| clone.state == State::Running && !clone.told_complete)
            {
                clone.told_complete = true;
                let report = report(clone, GuestState::Complete);
                self.messages.push_back(report);
            }
        }
    }
}
