//! VMs that stand while they are cloned, as their memory is read where their QEMUs have it.

use crate::cli::exit::{Coded, Exit, Failure, Outcome};
use crate::report::CaptureReport;
use anyhow::Context;
use sender::driver::Vouch;
use std::sync::Arc;
use vmm::qemu::Standing;
use vmm::qemu::capture::Disturbed;

/// What is said of one that did not stand still to hosts, whose clones are ended.
pub(super) const READ_IN_PLACE: &str = "while its memory was read in place";

/// They run on when this is dropped, those that ran.
#[derive(Default)]
pub(super) struct StandingVms(Vec<StandingVm>);

struct StandingVm {
    name: String,
    /// Which of the captures it is.
    capture: usize,
    standing: Standing,
}

impl StandingVms {
    pub(super) fn add(&mut self, name: &str, capture: usize, standing: Standing) {
        eprintln!("{name} stands until this is over, as its memory is read in place: leave it stopped");
        self.0.push(StandingVm { name: name.to_owned(), capture, standing });
    }

    /// What a transfer asks before it tells a host of pages.
    pub(super) fn vouch(&self) -> Option<Vouch> {
        let watched: Vec<_> = self.0.iter().map(|vm| (vm.name.clone(), vm.standing.watch())).collect();
        let disturbed = move || watched.iter().find_map(|(name, vm)| Some(words(name, &vm.disturbed()?)));
        (!self.0.is_empty()).then(|| Arc::new(disturbed) as Vouch)
    }

    /// Asks their QEMUs whether all that was read until now is right.
    pub(super) fn check(&self) -> Outcome<()> {
        self.0
            .iter()
            .try_for_each(|vm| vm.standing.check().map_err(|disturbed| failure(&vm.name, &disturbed)))
    }

    /// Asks a last time, and lets them run on, those that ran. Fails if what was read is not right, or one does not run.
    pub(super) fn end(self, captures: &mut [CaptureReport]) -> Outcome<()> {
        let mut outcome = Ok(());
        for StandingVm { name, capture, standing } in self.0 {
            let disturbed = standing.check().err();
            let ended = standing.end();
            captures[capture].disturbed = disturbed.as_ref().map(ToString::to_string);
            if let Ok(stood) = &ended {
                captures[capture].pause_s = stood.as_secs_f64();
            }
            let runs = ended.map(drop).with_context(|| {
                format!(
                    "VM {name} could not be set running again, but is whole: `cont` in its monitor does it"
                )
            });
            let vouched = disturbed.map_or(Ok(()), |disturbed| Err(failure(&name, &disturbed)));
            outcome = outcome.and(vouched).and(runs.or_exit(Exit::System));
        }
        outcome
    }
}

fn words(vm: &str, disturbed: &Disturbed) -> String {
    format!("VM {vm}: {disturbed} {READ_IN_PLACE}")
}

fn failure(vm: &str, disturbed: &Disturbed) -> Failure {
    let message = format!(
        "{}: nothing that was read later was sent, clones that lacked pages are ended, and this transfer failed. Start it again and leave the \
         VM stopped until it is over, or let it run and take it by --way live-stream",
        words(vm, disturbed)
    );
    Failure::new(Exit::Input, message)
}
