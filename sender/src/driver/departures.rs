//! VMs that leave, in a transfer: when each stops, what its host is told, what became of it. What follows from what says
//! [`crate::handover`]; when a VM stops is told by [`super::steer`].

use super::Transfer;
use super::leavers::ranges;
use crate::departure::{Ask, Newest, Stood, Told};
use crate::guests::{attachment_offer, parts};
use crate::handover::{Action, Input, State, step};
use net::control::with_causes;
use pages::Bitmap;
use std::sync::Arc;
use std::time::Duration;
use wire::control::{HostWord, SourceWord, ToHost, reason};
use wire::limits;

impl Transfer {
    /// The transfer's hosts have accepted: this one is told what it may have missed.
    pub(super) fn departures_accepted(&mut self, host: usize) {
        for index in 0..self.departures.list.len() {
            if self.departures.list[index].host == host {
                let leaver = &mut self.departures.list[index];
                leaver.accepted = true;
                leaver.missed = leaver.figures.rounds > 0;
                leaver.brought_from = None;
                self.departure_input(index, Input::Connected);
            }
        }
    }

    /// Takes in what a host says of a VM that comes to it; why not, in words.
    pub(super) fn handle_host_word(&mut self, host: usize, vm: u16, word: HostWord) -> Result<(), String> {
        let now = self.start.elapsed();
        let found =
            self.departures.list.iter_mut().enumerate().find(|(_, of)| of.vm == vm && of.host == host);
        let Some((index, leaver)) = found else {
            return Err(format!("told news of VM {vm}, which does not come to it"));
        };
        match word {
            HostWord::Ready if leaver.deciding => {}
            HostWord::Ready => self.departure_input(index, Input::Ready),
            HostWord::Running => {
                leaver.figures.running.get_or_insert(now);
            }
            HostWord::Complete => self.departure_input(index, Input::Complete),
            HostWord::Gone { ran: true, reason } => {
                leaver.over = true;
                leaver.reason = Some(format!("it ran at its host, and has ended there: {reason}"));
            }
            HostWord::Gone { ran: false, reason } => {
                leaver.reason = Some(format!("its host lost it before it ran: {reason}"));
                if leaver.state == State::HandedOver {
                    // Its host gets everything again, in a while.
                    leaver.again_at = Some(now + super::steer::AGAIN_AFTER);
                } else {
                    self.departure_input(index, Input::Gone);
                }
            }
            _ => return Err("said an unknown word of a VM that comes to it".into()),
        }
        Ok(())
    }

    /// What follows from an input, done.
    pub(super) fn departure_input(&mut self, index: usize, input: Input) {
        let leaver = &mut self.departures.list[index];
        let (state, actions) = match step(leaver.state, input) {
            Ok(next) => next,
            Err(late) => {
                if leaver.state != State::Released {
                    leaver.reason = Some(late.to_string());
                }
                return;
            }
        };
        if state != leaver.state {
            tracing::info!(vm = leaver.name(), from = %leaver.state, to = %state, "hand-over");
            leaver.state = state;
        }
        for action in actions {
            match action {
                Action::SendState => self.send_state(index),
                Action::Settle => {
                    let leaver = &mut self.departures.list[index];
                    leaver.deciding = true;
                    leaver.ask(Ask::Settle);
                }
                // Once it has settled.
                Action::Decide => {}
                Action::TellDecision => self.tell_decision(index),
                Action::TellWithdrawn => {
                    let words = self.departures.list[index].reason.clone().unwrap_or_default();
                    self.say_of(index, SourceWord::Withdrawn { reason: reason(&words) });
                }
                Action::Resume => self.departures.list[index].ask(Ask::Resume),
                Action::Release => {
                    let now = self.start.elapsed();
                    let leaver = &mut self.departures.list[index];
                    leaver.figures.released = Some(now);
                    leaver.ask(Ask::Release);
                }
            }
        }
    }

    /// It stays, for this reason; one that was handed over says that it is too late.
    pub(super) fn abandon(&mut self, index: usize, why: &str) {
        let leaver = &mut self.departures.list[index];
        if matches!(leaver.state, State::Migrating | State::Paused) && !leaver.deciding {
            leaver.reason = Some(why.to_owned());
        }
        if !leaver.deciding {
            self.departure_input(index, Input::Abandon);
        }
    }

    /// All that can still stay, do.
    pub(super) fn abandon_all(&mut self, why: &str) {
        for index in 0..self.departures.list.len() {
            self.abandon(index, why);
        }
    }

    fn say_of(&self, index: usize, word: SourceWord) {
        let leaver = &self.departures.list[index];
        // In order with the pages, which go first, too.
        if let Some(queue) = &self.queues[leaver.host] {
            queue.say_first(&ToHost::HandOver { vm: leaver.vm, word });
        }
    }

    pub(super) fn tell_decision(&mut self, index: usize) {
        self.departures.list[index].told_at = self.start.elapsed();
        self.say_of(index, SourceWord::Decision);
    }

    /// Which pages are stale that its host does not know of, those pages, and the device state.
    pub(super) fn send_state(&mut self, index: usize) {
        let leaver = &self.departures.list[index];
        let (Some(stood), Some(late)) = (leaver.stood.clone(), leaver.late().cloned()) else { return };
        let (vm, host) = (leaver.vm, leaver.host);
        if leaver.state == State::Paused {
            self.departures.list[index].figures.late_pages = late.count();
        }
        self.tell_stale(index, &late);
        let attachments = stood.attachments.iter().map(|(name, bytes)| attachment_offer(name, bytes));
        self.say_of(index, SourceWord::State { attachments: attachments.collect() });
        if let Some(queue) = &self.queues[host] {
            for (at, (_, bytes)) in stood.attachments.iter().enumerate() {
                parts(vm, at, bytes).iter().for_each(|part| queue.say_first(part));
            }
        }
        // A guest's first faults are answered before these.
        self.guests.service.push(host, vm, &late, true);
    }

    /// These pages come in newer versions.
    pub(super) fn tell_stale(&self, index: usize, stale: &Bitmap) {
        let ranges = ranges(stale);
        let epoch = self.departures.list[index].epoch;
        let count = ranges.len().div_ceil(limits::STALE_RANGES_MAX).max(1);
        for part in 0..count {
            let from = part * limits::STALE_RANGES_MAX;
            let to = (from + limits::STALE_RANGES_MAX).min(ranges.len());
            let last = part + 1 == count;
            self.say_of(index, SourceWord::Stale { epoch, ranges: ranges[from..to].to_vec(), last });
        }
    }

    /// Takes in what a VM's thread answers.
    pub(super) fn departure_told(&mut self, index: usize, told: Told) {
        let leaver = &mut self.departures.list[index];
        leaver.pending -= 1;
        match told {
            Told::Followed(Ok(newest)) => self.followed(index, newest),
            Told::Stood(Ok(stood)) => self.stood(index, stood),
            Told::Followed(Err(why)) | Told::Stood(Err(why)) => {
                leaver.stopping = false;
                self.abandon(index, &why);
            }
            Told::Settled(settled) => self.settled(index, settled),
            Told::Resumed(resumed) => {
                let forgotten = resumed.and_then(|()| self.forget(index));
                if let Err(why) = forgotten {
                    let leaver = &mut self.departures.list[index];
                    tracing::error!(
                        vm = leaver.name(),
                        why,
                        "a VM that stays could not be put right: look at it"
                    );
                    leaver.reason = Some(format!("it stays, but could not be put right: {why}"));
                }
            }
            Told::Released(released) => {
                if let Err(why) = released.and_then(|()| self.forget(index)) {
                    let leaver = &mut self.departures.list[index];
                    tracing::warn!(vm = leaver.name(), why, "something of a VM that left is still here");
                }
            }
        }
    }

    fn forget(&self, index: usize) -> Result<(), String> {
        let Some(journal) = &self.departures.journal else { return Ok(()) };
        journal.forget(self.departures.list[index].name()).map_err(|error| error.to_string())
    }

    fn followed(&mut self, index: usize, newest: Newest) {
        let now = self.start.elapsed();
        let leaver = &mut self.departures.list[index];
        leaver.epoch += 1;
        leaver.brought_from = Some(now);
        let since = leaver.looked_at.map_or(now, |at| now.saturating_sub(at)).max(Duration::from_millis(1));
        leaver.figures.dirty_pages_per_s = per_second(newest.fresh.count(), since);
        leaver.figures.rounds += 1;
        // One that is away is told all once it is back.
        let all = leaver.accepted && std::mem::take(&mut leaver.missed);
        let pages = if all { newest.stale } else { newest.fresh };
        let (vm, host) = (leaver.vm, leaver.host);
        self.guests.newest.insert(vm, newest.source);
        self.tell_stale(index, &pages);
        self.guests.service.push(host, vm, &pages, true);
    }

    fn stood(&mut self, index: usize, stood: Stood) {
        let leaver = &mut self.departures.list[index];
        leaver.stopping = false;
        leaver.epoch += 1;
        leaver.figures.stale_pages = stood.newest.stale.count();
        if leaver.figures.rounds == 0 && leaver.state == State::Migrating {
            leaver.figures.dirty_pages_per_s =
                per_second(leaver.figures.stale_pages, leaver.taken_at.elapsed());
        }
        self.guests.newest.insert(leaver.vm, Arc::clone(&stood.newest.source));
        leaver.stood = Some(stood);
        match leaver.state {
            // Found in the journal.
            State::HandedOver => self.send_state(index),
            State::Migrating => self.departure_input(index, Input::Stopped),
            // It was abandoned meanwhile, and is being resumed.
            _ => {}
        }
    }

    fn settled(&mut self, index: usize, settled: Result<(), String>) {
        let leaver = &mut self.departures.list[index];
        leaver.deciding = false;
        let input = match (settled, &self.departures.journal) {
            (Err(why), _) => {
                leaver.reason = Some(why);
                Input::Undecided
            }
            (Ok(()), Some(journal)) => match journal.decide(&leaver.leaving) {
                Ok(Some(())) => Input::Decided,
                Ok(None) => {
                    leaver.reason = Some(
                        "nobody knows whether the decision is on disk: it stands here until a later run finds out".into(),
                    );
                    return;
                }
                Err(error) => {
                    leaver.reason = Some(with_causes(&error));
                    Input::Undecided
                }
            },
            (Ok(()), None) => unreachable!("departures come with a journal"),
        };
        self.departure_input(index, input);
    }
}

fn per_second(pages: u32, within: Duration) -> u32 {
    let millis = u64::try_from(within.as_millis()).unwrap_or(u64::MAX).max(1);
    u32::try_from(u64::from(pages) * 1000 / millis).unwrap_or(u32::MAX)
}
