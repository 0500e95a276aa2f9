//! When a VM that leaves stops here.

use super::Transfer;
use super::leavers::{Departures, Leaver};
use crate::departure::{Ask, Mode};
use crate::handover::State;
use crate::session::Phase;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// A host that was told of a decision is told again.
const REPEAT_EVERY: Duration = Duration::from_secs(1);
/// A host that lost a VM before it ran gets it again after so long.
pub(super) const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// How long the end of a transfer waits for VMs to be put right.
const FINISH_WITHIN: Duration = Duration::from_secs(30);

impl Departures {
    /// Whether data wait for VMs to run elsewhere: in post-copy nothing goes before that.
    pub(super) fn go_first(&self) -> bool {
        let waits = |leaver: &Leaver| {
            leaver.figures.running.is_none()
                && matches!(leaver.state, State::Migrating | State::Paused | State::HandedOver)
                && leaver.accepted
                && !leaver.over
        };
        self.pace.is_some_and(|pace| pace.mode == Mode::Postcopy) && self.list.iter().any(waits)
    }
}

impl Transfer {
    /// Looks at each VM that leaves: whether it is to stop, or to stay; and who is to be told something again.
    pub(super) fn steer_departures(&mut self) {
        let Some(pace) = self.departures.pace else { return };
        let now = self.start.elapsed();
        if self.departures.cancel.load(Relaxed) && !self.departures.cancelled && self.departures.may_leave() {
            self.departures.cancelled = true;
            self.abandon_all("cancelled");
            let goes_on = |leaver: &Leaver| leaver.state == State::HandedOver;
            if !self.departures.list.iter().any(goes_on) {
                self.session.cancel("cancelled", now);
            }
        }
        for index in 0..self.departures.list.len() {
            let leaver = &mut self.departures.list[index];
            let host = leaver.host;
            if leaver.again_at.is_some_and(|at| now >= at) && leaver.accepted {
                leaver.again_at = None;
                self.send_state(index);
                continue;
            }
            match leaver.state {
                State::HandedOver
                    if leaver.accepted
                        && leaver.figures.running.is_none()
                        && now >= leaver.told_at + REPEAT_EVERY =>
                {
                    self.tell_decision(index);
                }
                State::Migrating | State::Paused => {
                    if let Phase::Failed { reason } = self.session.phase(host) {
                        let why = format!("its host has failed: {reason}");
                        self.abandon(index, &why);
                    } else if self.departures.list[index].state == State::Migrating {
                        self.steer_running(index, pace, now);
                    }
                }
                _ => {}
            }
        }
    }

    /// One that still runs here.
    fn steer_running(&mut self, index: usize, pace: crate::departure::Pace, now: Duration) {
        let leaver = &self.departures.list[index];
        if !leaver.accepted || leaver.stopping || leaver.pending > 0 {
            return;
        }
        let late = now >= pace.precopy_timeout;
        let brought = self.has_all_blocks(leaver.host);
        let stop = match pace.mode {
            Mode::Postcopy => true,
            Mode::Hybrid => brought || late,
            Mode::Precopy if late => {
                let per_s = leaver.figures.dirty_pages_per_s;
                let why = format!(
                    "it could not be stopped for at most {} ms within {} s, as it changes {per_s} pages a second: allow more, or another mode",
                    pace.downtime_limit.as_millis(),
                    pace.precopy_timeout.as_secs_f64(),
                );
                return self.abandon(index, &why);
            }
            Mode::Precopy if !brought || !self.has_written(leaver.host) => return,
            Mode::Precopy => match leaver.brought_from {
                // What the last round brought took so long, and so does what has changed meanwhile; half is for all else.
                Some(at) if now.saturating_sub(at) <= pace.downtime_limit / 2 => true,
                _ => {
                    let leaver = &mut self.departures.list[index];
                    leaver.looked_at = Some(now);
                    return leaver.ask(Ask::Follow);
                }
            },
        };
        // Those of a host one after the other, so that each stands for a short time.
        let host = leaver.host;
        let busy = |leaver: &Leaver| {
            let under_way = leaver.stopping
                || leaver.state == State::Paused
                || leaver.state == State::HandedOver && leaver.figures.running.is_none() && !leaver.over;
            leaver.host == host && under_way
        };
        if stop && !self.departures.list.iter().any(busy) {
            let leaver = &mut self.departures.list[index];
            leaver.stopping = true;
            leaver.figures.stopped = Some(now);
            leaver.ask(Ask::Stop);
        }
    }

    /// Whether a host has all blocks that it needs.
    fn has_all_blocks(&self, host: usize) -> bool {
        let needs = |segment: &usize| self.needed_by[*segment].contains(&host);
        let todo = &self.stripes.todo;
        let encoded = (0..todo.len()).filter(needs).all(|segment| todo[segment].is_done());
        let (done, known) = self.session.progress(host);
        encoded && done >= known
    }

    /// Whether everything that was pushed to a host is on its way.
    fn has_written(&self, host: usize) -> bool {
        let written = self.queues[host].as_ref().is_none_or(|queue| queue.first_bytes() == 0);
        written && self.guests.service.is_idle(host)
    }

    /// The session is over: what VMs' threads still do is waited for.
    pub(super) fn finish_departures(&mut self) {
        for index in 0..self.departures.list.len() {
            if self.departures.list[index].state < State::HandedOver {
                self.abandon(index, "the transfer ended before it was handed over");
            }
        }
        let deadline = Instant::now() + FINISH_WITHIN;
        while self.departures.list.iter().any(|leaver| leaver.pending > 0) && Instant::now() < deadline {
            let happening = self.happenings.recv_timeout(Duration::from_millis(50));
            if let Ok(happening @ super::Happening::Departure { .. }) = happening {
                self.take_in(happening);
            }
        }
    }
}
