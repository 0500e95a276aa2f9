//! Clones go first: while they start, and fault in what they need to go on, bulk data would take the CPUs and the link from them.
//! For that time a page that one host's clones wait for is sent to all hosts with clones of the same VM: clones of one state touch the same
//! pages, so each of them is waited for once, not once a host.

use super::Guests;
use crate::guests::CloneOutcome;
use std::time::Duration;
use wire::control::Want;

/// Clones are waited for until they run for so long at most.
const START_MAX: Duration = Duration::from_millis(400);
/// They may fault for so long at most, from the start of the transfer. Receivers wait for the first block for longer.
const FAULTS_MAX: Duration = Duration::from_secs(1);
/// When no clone has waited for a page for so long, they have what they need.
const QUIET: Duration = Duration::from_millis(30);
/// Answers may take this part of the bytes that are to be sent. Beyond, what clones touch is no small working set, and blocks bring it to all at once.
const BUDGET_PART: u64 = 20;

/// What it goes by.
#[derive(Default)]
pub(super) struct GoFirst {
    budget_bytes: u64,
    /// When a clone last waited for a page.
    last_fault: Option<Duration>,
    /// Hosts that have taken the offer: they have images to put pages into.
    accepted: Vec<bool>,
    /// It does not come back.
    over: bool,
}

impl GoFirst {
    pub(super) fn new(hosts: usize, expected_bytes: u64) -> Self {
        Self { budget_bytes: expected_bytes / BUDGET_PART, accepted: vec![false; hosts], ..Self::default() }
    }

    pub(super) fn note_accepted(&mut self, host: usize) {
        self.accepted[host] = true;
    }
}

impl Guests {
    /// Whether bulk data wait for clones.
    pub(super) fn go_first(&mut self, now: Duration) -> bool {
        if self.go_first.over {
            return false;
        }
        let waits = |clone: &CloneOutcome| clone.running.is_none() && clone.failed.is_none() && !clone.leaves;
        let start = now < START_MAX && self.clones.all().iter().any(waits);
        let fault = now < FAULTS_MAX
            && self.go_first.last_fault.is_some_and(|at| now < at + QUIET)
            && self.service.stats().bytes < self.go_first.budget_bytes;
        self.go_first.over = !start && !fault;
        !self.go_first.over
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
