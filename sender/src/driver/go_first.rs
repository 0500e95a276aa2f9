//! Clones go first: while they start, and fault in what they need to go on, bulk data would take the CPUs and the link from them.
//! For that time a page that one host's clones wait for is sent to all hosts with clones of the same VM: clones of one state touch the same
//! pages, so each of them is waited for once, not once a host.

use super::Guests;
use crate::guests::{CloneOutcome, GuestInput};
use std::collections::BTreeMap;
use std::time::Duration;
use wire::control::Want;

/// They go first for so long at most, from the start of the transfer. Receivers wait for the first block for longer.
const FIRST_MAX: Duration = Duration::from_secs(1);
/// When all clones have settled and none has waited for a page for so long, they have what they need.
const QUIET: Duration = Duration::from_millis(30);
/// Answers may take this part of the bytes that are to be sent. Beyond, what clones touch is no small working set, and blocks bring it to all at once.
const BUDGET_PART: u64 = 40;

/// What it goes by. No clock here.
#[derive(Default)]
pub(super) struct GoFirst {
    budget_bytes: u64,
    /// When a clone last waited for a page.
    last_fault: Option<Duration>,
    /// By VM, [`crate::guests::GuestInput::settle`].
    settle: BTreeMap<u16, Duration>,
    /// Hosts that have taken the offer: they have images to put pages into.
    accepted: Vec<bool>,
    /// It does not come back.
    over: bool,
}

impl GoFirst {
    pub(super) fn new(hosts: usize, expected_bytes: u64, guests: &[GuestInput]) -> Self {
        Self {
            budget_bytes: expected_bytes / BUDGET_PART,
            settle: guests.iter().map(|guest| (guest.vm, guest.settle)).collect(),
            accepted: vec![false; hosts],
            ..Self::default()
        }
    }

    /// Until when a clone that began to run `at` has not settled.
    fn settles_until(&self, vm: u16, at: Duration) -> Duration {
        at + self.settle.get(&vm).copied().unwrap_or_default().max(QUIET)
    }

    pub(super) fn note_accepted(&mut self, host: usize) {
        self.accepted[host] = true;
    }

    /// Whether bulk data wait: clones are `starting`, settle until `settled`, or did not get all that they need with answers of
    /// `answered_bytes` so far.
    fn judge(
        &mut self,
        starting: bool,
        settled: Option<Duration>,
        answered_bytes: u64,
        now: Duration,
    ) -> bool {
        let settles =
            self.last_fault.is_some_and(|at| now < at + QUIET) || settled.is_some_and(|at| now < at);
        let first = starting || settles && answered_bytes < self.budget_bytes;
        self.over |= now >= FIRST_MAX || !first;
        !self.over
    }
}

impl Guests {
    /// Whether bulk data wait for clones.
    pub(super) fn go_first(&mut self, now: Duration) -> bool {
        let counts = |clone: &&CloneOutcome| clone.failed.is_none() && !clone.leaves;
        let clones = || self.clones.all().iter().filter(counts);
        let starting = clones().any(|clone| clone.running.is_none());
        let settles = |clone: &CloneOutcome| Some(self.go_first.settles_until(clone.vm, clone.running?));
        let settled = clones().filter_map(settles).max();
        self.go_first.judge(starting, settled, self.service.stats().bytes, now)
    }

    /// Clones wait for pages: while they go first, all other hosts that have clones of the VM get them, too.
    pub(super) fn share_faults(&mut self, from: usize, want: &Want, now: Duration) {
        let moves = |clone: &CloneOutcome| clone.vm == want.vm && clone.leaves;
        if want.pages.is_empty() || !self.go_first(now) || self.clones.all().iter().any(moves) {
            return;
        }
        self.go_first.last_fault = Some(now);
        let accepted = &self.go_first.accepted;
        self.service.share(from, want, &mut |host| accepted[host]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn bulk_data_wait_until_clones_run_and_have_fallen_quiet_and_never_again() {
        let mut first = GoFirst::new(1, 1 << 20, &[]);
        assert!(first.judge(true, None, 0, 300 * MS));
        first.last_fault = Some(310 * MS);
        assert!(first.judge(false, None, 0, 339 * MS), "it may fault again");
        assert!(!first.judge(false, None, 0, 340 * MS));
        first.last_fault = Some(341 * MS);
        assert!(!first.judge(true, None, 0, 342 * MS), "once over, it is over");
    }

    #[test]
    fn clones_that_fault_on_and_on_or_do_not_start_do_not_hold_up_the_rest() {
        let with_faults = || GoFirst { last_fault: Some(500 * MS), ..GoFirst::new(1, 1 << 20, &[]) };
        assert!(with_faults().judge(false, None, (1 << 20) / BUDGET_PART - 1, 510 * MS));
        assert!(
            !with_faults().judge(false, None, (1 << 20) / BUDGET_PART, 510 * MS),
            "that is no small working set"
        );
        assert!(GoFirst::new(1, 1 << 20, &[]).judge(true, None, 1 << 20, 999 * MS), "none runs yet");
        assert!(!GoFirst::new(1, 1 << 20, &[]).judge(true, None, 0, 1000 * MS));
    }

    #[test]
    fn clones_that_wait_for_nothing_have_the_cpus_until_they_have_settled() {
        let guest = GuestInput { vm: 7, settle: 500 * MS, ..GuestInput::default() };
        let mut started = GoFirst::new(1, 1 << 20, &[guest]);
        let settled = Some(started.settles_until(7, 200 * MS));
        assert_eq!(started.settles_until(8, 200 * MS), 200 * MS + QUIET, "nothing was said of it");
        assert!(started.judge(false, settled, 0, 699 * MS));
        assert!(!started.judge(false, settled, 0, 700 * MS));
        assert!(!GoFirst::new(1, 1 << 20, &[]).judge(false, Some(1400 * MS), 0, 1000 * MS), "not for ever");
    }
}
