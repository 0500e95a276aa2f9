//! `scatter clone`: which clones start where, and what became of them.

use crate::cli::exit::{Coded, Exit, Failure, Outcome};
use crate::images;
use crate::report::{CloneReport, ClonesReport};
use crate::units::float;
use anyhow::Context;
use planner::Plan;
use sender::driver;
use sender::guests::{CloneOutcome, GuestInput};
use std::path::Path;
use std::time::Duration;
use vmm::qemu::DeviceState;

/// The guests of a plan.
pub(super) fn guests(plan: &Plan, file: &Path) -> Outcome<Vec<GuestInput>> {
    let mut guests = Vec::new();
    for ((vm, planned), instances) in (0..).zip(&plan.vms).zip(plan.instances_of_vms()) {
        let Some(launch) = &planned.launch else { continue };
        let attachments = launch.attachments.iter().map(|(name, path)| {
            let path = images::path_beside(file, path);
            let bytes = std::fs::read(&path);
            let words = || format!("VM {}: attachment {name}: cannot read {}", planned.name, path.display());
            bytes.with_context(words).map(|bytes| (name.clone(), bytes)).or_exit(Exit::Input)
        });
        let clones = instances.iter().flat_map(|(host, count)| {
            let at = plan.hosts[usize::from(*host)].name.as_str();
            (1..=*count).map(move |number| (usize::from(*host), format!("{}-{at}-{number}", planned.name)))
        });
        let attachments: Vec<(String, Vec<u8>)> = attachments.collect::<Outcome<_>>()?;
        guests.push(GuestInput {
            vm,
            kind: launch.kind.clone(),
            fingerprint: fingerprint(&planned.name, launch, &attachments)?,
            attachments,
            clones: clones.collect(),
        });
    }
    if guests.is_empty() {
        let message =
            "no VM of the plan has `launch`: nothing is to be started; `scatter send` brings memory files";
        return Err(Failure::new(Exit::Input, message));
    }
    sender::guests::check(&guests).or_exit(Exit::Input)?;
    Ok(guests)
}

/// What hosts are asked before anything is sent: what the plan says, else what the device state itself does.
fn fingerprint(vm: &str, launch: &planner::Launch, attachments: &[(String, Vec<u8>)]) -> Outcome<String> {
    if launch.kind != "qemu" || !launch.fingerprint.is_empty() {
        return Ok(launch.fingerprint.clone());
    }
    let state = attachments.iter().find(|(name, _)| name == "state");
    let state = state.with_context(|| format!("VM {vm}: kind qemu needs the attachment `state`"));
    let (_, state) = state.or_exit(Exit::Input)?;
    let state = DeviceState::decode(state).with_context(|| format!("VM {vm}: attachment state"));
    Ok(state.or_exit(Exit::Input)?.offer())
}

/// What became of the clones; times from the start of the command, `prepare` before the transfer included.
pub(super) fn report(plan: &Plan, outcome: &driver::Outcome, prepare: Duration) -> Option<ClonesReport> {
    let all = outcome.clones.all();
    if all.is_empty() {
        return None;
    }
    let mut running: Vec<f64> =
        all.iter().filter_map(|clone| clone.running).map(|at| (prepare + at).as_secs_f64()).collect();
    running.sort_by(f64::total_cmp);
    let rank = |share: f64| -> Option<f64> {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank among few")]
        let rank = (share * float(running.len() as u64)).ceil() as usize;
        running.get(rank.max(1) - 1).copied()
    };
    let sum = |of: fn(&CloneOutcome) -> u64| all.iter().map(of).sum::<u64>();
    let (here, network) = (sum(|clone| clone.faults.here), sum(|clone| clone.faults.network()));
    let clone = |clone: &CloneOutcome| CloneReport {
        name: clone.name.clone(),
        vm: plan.vms[usize::from(clone.vm)].name.clone(),
        host: plan.hosts[clone.host].name.clone(),
        first_instruction_s: clone.running.map(|at| (prepare + at).as_secs_f64()),
        independent_s: clone.complete.map(|at| (prepare + at).as_secs_f64()),
        how: clone.words.clone(),
        failed: clone.failed.clone(),
        ended: clone.ended,
        faults_here: clone.faults.here,
        faults_block: clone.faults.block,
        faults_sender: clone.faults.sender,
        faults_peer: clone.faults.peer,
        waited_p50_us: clone.faults.waited_p50_us,
        waited_p99_us: clone.faults.waited_p99_us,
    };
    Some(ClonesReport {
        running: running.len() as u64,
        first_instruction_p50_s: rank(0.5),
        first_instruction_p99_s: rank(0.99),
        first_instruction_last_s: running.last().copied(),
        faults_here: here,
        faults_block: sum(|clone| clone.faults.block),
        faults_sender: sum(|clone| clone.faults.sender),
        faults_peer: sum(|clone| clone.faults.peer),
        network_fault_ratio: (here + network > 0).then(|| float(network) / float(here + network)),
        pages_answered: outcome.pages.answered,
        pages_ahead: outcome.pages.ahead,
        wants_suppressed: outcome.pages.suppressed,
        answer_bytes: outcome.pages.bytes,
        clones: all.iter().map(clone).collect(),
    })
}

/// How `scatter clone` ends: as the hosts did, unless clones failed on hosts that did not.
pub(super) fn verdict(clones: &ClonesReport, hosts: Exit) -> Exit {
    let failed = clones
        .clones
        .iter()
        .filter(|clone| clone.failed.is_some() || clone.first_instruction_s.is_none())
        .count();
    match hosts {
        Exit::Done if failed == clones.clones.len() => Exit::AllFailed,
        Exit::Done if failed > 0 => Exit::SomeFailed,
        other => other,
    }
}
