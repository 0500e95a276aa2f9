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

    pub(super) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|vm| vm.name == name)
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
    if *disturbed == Disturbed::Over {
        // Somebody in a hurry had it put back (`interrupt`): the VM runs, and nobody disturbed it.
        return Failure::new(Exit::Interrupted, format!("{}: interrupted", words(vm, disturbed)));
    }
    let message = format!(
        "{}: nothing that was read later was sent, clones that lacked pages are ended, and this transfer failed. Start it again and leave the \
         VM stopped until it is over, or let it run and take it by --way live-stream",
        words(vm, disturbed)
    );
    Failure::new(Exit::Input, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use std::path::Path;
    use std::time::Duration;
    use vmm::qemu::{CaptureOptions, Identity, Launch, Qmp, Vm, Way, capture_for_transfer};

    /// A VM that runs its firmware, with RAM in a file and a second monitor. `None`: no QEMU is here, which was printed.
    fn firmware(dir: &Path) -> Option<Vm> {
        let args = [
            "-accel",
            "tcg",
            "-nodefaults",
            "-display",
            "none",
            "-object",
            "memory-backend-file,id=pc.ram,size=32M,mem-path={dir}/ram,share=on",
            "-machine",
            "q35,vmport=off,memory-backend=pc.ram",
            "-m",
            "32",
            "-qmp",
            "unix:{dir}/user.sock,server=on,wait=off",
        ];
        let program = "qemu-system-x86_64";
        if let Err(error) = std::process::Command::new(program).arg("--version").output() {
            assert!(std::env::var_os("SCATTER_REQUIRE_LAB").is_none(), "this lane must run: {error}");
            println!("skipped: {program}: {error}");
            return None;
        }
        let launch = Launch { program: program.into(), args: args.map(str::to_owned).into() };
        Some(launch.boot(Identity::new("golden").expect("random bytes"), &dir.join("vm")).expect("QEMU"))
    }

    fn standing(vm: &Vm, image: &Path) -> (StandingVms, Vec<CaptureReport>) {
        let qmp = Qmp::connect(vm.dir().join("user.sock"), Duration::from_secs(5)).expect("a monitor");
        let options = CaptureOptions { way: Some(Way::InPlace), ..CaptureOptions::new(image) };
        let (captured, _, standing) = capture_for_transfer(qmp, options).expect("it is taken");
        let report = CaptureReport {
            vm: "golden".to_owned(),
            source: String::new(),
            way: captured.way.to_string(),
            because: captured.because,
            total_s: 0.0,
            pause_s: 0.0,
            pages: 0,
            zero_pages: 0,
            stream_bytes: 0,
            disks: Vec::new(),
            disturbed: None,
        };
        let mut vms = StandingVms::default();
        vms.add("golden", 0, standing.expect("in place"));
        std::fs::remove_file(image).expect("an image");
        (vms, vec![report])
    }

    fn runs(vm: &mut Vm) -> bool {
        vm.qmp.execute("query-status", Value::Null).expect("an answer")["running"] == true
    }

    /// All hosts have all pages by then, and nobody looks any more until it is to be reported.
    #[test]
    fn a_vm_that_is_set_running_before_the_report_fails_the_transfer_all_the_same() {
        let dir = tempfile::tempdir().expect("a directory");
        let Some(mut vm) = firmware(dir.path()) else { return };
        let image = dir.path().join("image");
        let (vms, mut captures) = standing(&vm, &image);
        // A transfer that was not dropped, as one whose threads are late, keeps nothing from ending.
        let vouch = vms.vouch().expect("a VM stands");
        assert_eq!((vouch(), runs(&mut vm)), (None, false));
        vms.end(&mut captures).map_err(|failure| failure.error).expect("nobody disturbed it");
        assert!(runs(&mut vm) && captures[0].disturbed.is_none() && captures[0].pause_s > 0.0);
        assert_eq!(vouch().as_deref(), Some("VM golden: it was let go while its memory was read in place"));

        for stands_again in [false, true] {
            let (vms, mut captures) = standing(&vm, &image);
            let vouch = vms.vouch().expect("a VM stands");
            assert_eq!(vouch(), None, "the last look of the transfer");
            vm.qmp.execute("cont", Value::Null).expect("it runs");
            if stands_again {
                vm.qmp.execute("stop", Value::Null).expect("it stands");
            }
            let failure = vms.end(&mut captures).expect_err("it ran");
            assert_eq!(failure.exit, Exit::Input);
            let said = failure.error.to_string();
            assert!(said.starts_with("VM golden: it was set running while its memory was read"), "{said}");
            assert_eq!(captures[0].disturbed.as_deref(), Some("it was set running"));
            assert!(runs(&mut vm), "as it did before");
        }
        vm.kill();
    }
}
