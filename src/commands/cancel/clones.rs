//! `scatter cancel` of a plan whose VMs are cloned: its sender has the hosts end the clones that lack pages; hosts that it cannot reach any
//! more, or all of them if it is dead, are asked from here.

use crate::cli::clones::Cancel;
use crate::cli::exit::{Coded, Exit, Outcome};
use crate::commands::send::under_way;
use crate::commands::status::{self, Question};
use planner::Plan;
use std::path::Path;
use std::time::{Duration, Instant};
use wire::control::{CloneStatus, EndClones, HostStatus, ToHost};

/// How long a sender may take: its hosts have ten seconds, and it writes reports.
const SENDER_MAX: Duration = Duration::from_secs(30);
/// How long a host may take to end its clones.
const HOST_MAX: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(50);

pub(super) fn run(args: &Cancel, plan: &Plan) -> Outcome {
    if under_way::is_under_way(&args.group)? {
        await_sender(&args.group)?;
    } else {
        println!("no `scatter clone` of {} runs here: its hosts are asked", args.group.display());
    }
    let reason = format!("cancelled by `scatter cancel` at {}", plan.source.name);
    let end = EndClones { transfer: plan.name.clone(), reason };
    let question = Question { keys: args.keys.as_ref(), ask: ToHost::EndClones(end), answer_max: HOST_MAX };
    let answers = status::answers(plan, &question)?;
    for (host, answer) in plan.hosts.iter().zip(&answers) {
        say(plan, &host.name, answer);
    }
    let failed = answers.iter().filter(|answer| answer.is_err()).count();
    Ok(match failed {
        0 => Exit::Done,
        count if count == answers.len() => Exit::AllFailed,
        _ => Exit::SomeFailed,
    })
}

/// Asks the sender that runs, and waits until it has ended. One that does not hear is passed over: the hosts end its transfer.
fn await_sender(plan_file: &Path) -> Outcome<()> {
    let request = under_way::request(plan_file);
    std::fs::write(&request, []).or_exit(Exit::System)?;
    let deadline = Instant::now() + SENDER_MAX;
    while under_way::is_under_way(plan_file)? {
        if Instant::now() > deadline {
            println!("its sender did not end within {} s: the hosts are asked", SENDER_MAX.as_secs());
            break;
        }
        std::thread::sleep(LOOK_EVERY);
    }
    // Nobody is left to heed it.
    let _ = std::fs::remove_file(&request);
    Ok(())
}

fn say(plan: &Plan, host: &str, answer: &Result<HostStatus, String>) {
    let status = match answer {
        Ok(status) => status,
        Err(reason) => {
            println!(
                "{host}: cannot be asked: {reason}; clones that lack pages there wait until its --orphan-timeout, or this is said again"
            );
            return;
        }
    };
    let clones = status.transfers.iter().filter(|transfer| transfer.transfer == plan.name);
    let clones: Vec<&CloneStatus> = clones.flat_map(|transfer| &transfer.clones).collect();
    if clones.is_empty() {
        println!("{host}: no clone of {} is here", plan.name);
    }
    for clone in clones {
        match clone {
            clone if clone.over => println!("{host}: {}: over: {}", clone.name, clone.words),
            clone => println!("{host}: {}: has all of its memory and runs on; {}", clone.name, clone.words),
        }
    }
}
