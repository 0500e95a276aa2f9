//! `scatter cancel`: VMs that leave, and still can stay, do; clones that lack pages are ended.

mod clones;

use crate::cli::clones::Cancel;
use crate::cli::exit::{Coded, Exit, Failure, Outcome};
use crate::commands::read_plan;
use crate::commands::send::leave::{self, StatusFile};
use sender::driver::DepartureOutcome;
use sender::handover::State;
use sender::handover::journal::Journal;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a sender may take to put its VMs right.
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// Why a VM that was handed over is left alone.
const TOO_LATE: &str = "its host may run it already, so it cannot stay here";
const LOOK_EVERY: Duration = Duration::from_millis(50);

pub(crate) fn run(args: &Cancel) -> Outcome {
    let plan = read_plan(&args.group)?;
    let folder = leave::folder(&args.group);
    let leaves = folder.is_dir() && leave::lock(&folder)?.is_none();
    if plan.vms.iter().any(|vm| vm.launch.is_some()) && !leaves {
        return clones::run(args, &plan);
    }
    if !folder.is_dir() {
        let message = format!("nothing of {} leaves: there is no {}", args.group.display(), folder.display());
        return Err(Failure::new(Exit::Input, message));
    }
    match leave::lock(&folder)? {
        None => ask(&folder),
        // No sender runs: what one left is put right here.
        Some(_alone) => {
            let journal = Journal::open(&folder).or_exit(Exit::System)?;
            let mut late = 0;
            for vm in &plan.vms {
                if journal.is_decided(&vm.name) {
                    late += 1;
                    println!("{}: handed over: {TOO_LATE}; `scatter send` again brings the rest", vm.name);
                    continue;
                }
                match journal.find(&vm.name).or_exit(Exit::System)? {
                    None => println!("{}: runs here, and nothing of it is under way", vm.name),
                    Some(leaving) => {
                        leave::put_right(&leaving, &journal, &folder)?;
                        println!("{}: runs here again", vm.name);
                    }
                }
            }
            Ok(verdict(late, plan.vms.len()))
        }
    }
}

/// Asks the sender that runs, and waits until each VM is in one place.
fn ask(folder: &Path) -> Outcome {
    std::fs::write(folder.join("cancel"), []).or_exit(Exit::System)?;
    let deadline = Instant::now() + ANSWER_MAX;
    loop {
        let vms = StatusFile::read(folder);
        let under_way = |vm: &DepartureOutcome| matches!(vm.state, State::Migrating | State::Paused);
        let gone = leave::lock(folder)?.is_some();
        if gone || !vms.is_empty() && !vms.iter().any(under_way) {
            for vm in &vms {
                let late = (vm.state == State::HandedOver).then_some(TOO_LATE);
                let words = vm.reason.as_deref().or(late);
                let words = words.map_or_else(String::new, |words| format!(": {words}"));
                println!("{}: {}{words}", vm.vm, vm.state);
            }
            let late = vms.iter().filter(|vm| vm.state != State::Running).count();
            return Ok(verdict(late, vms.len()));
        }
        if Instant::now() > deadline {
            let message = format!("the sender did not answer within {} s", ANSWER_MAX.as_secs());
            return Err(Failure::new(Exit::System, message));
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

fn verdict(late: usize, all: usize) -> Exit {
    match late {
        0 => Exit::Done,
        late if late == all => Exit::AllFailed,
        _ => Exit::SomeFailed,
    }
}
