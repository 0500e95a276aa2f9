//! `scatter clone`: which clones start where, and what became of them.

use super::outcome::Sent;
use super::sources::Sources;
use crate::cli::clones::{Clone, PrePaging, StartWhen};
use crate::cli::exit::{Coded, Exit, Failure, Outcome};
use crate::commands::qemu_capture::STATE;
use crate::images;
use crate::report::{CloneReport, ClonesReport, RehearsalReport};
use crate::units::float;
use anyhow::Context;
use pages::PageSource;
use planner::Plan;
use planner::plan::PlannedVm;
use sender::driver;
use sender::guests::{CloneOutcome, GuestInput};
use std::time::Duration;
use vmm::qemu::DeviceState;
use vmm::uffd::WorkingSet;
use wire::control::Paging;

/// Missing pages asked for behind a fault while no blocks come.
const AROUND_PAGES: u16 = 16;
/// Clones wait for their working set for so long at most.
const WAIT_MS_MAX: u16 = 400;

/// The guests of a plan.
pub(super) fn guests(plan: &Plan, args: &Clone, sources: &Sources) -> Outcome<Vec<GuestInput>> {
    let file = args.send.group.as_path();
    let paging = paging(args)?;
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
        let mut attachments: Vec<(String, Vec<u8>)> = attachments.collect::<Outcome<_>>()?;
        if let Some(state) = &sources.states[usize::from(vm)] {
            attachments.push((STATE.to_owned(), state.clone()));
        }
        guests.push(GuestInput {
            vm,
            kind: launch.kind.clone(),
            fingerprint: fingerprint(&planned.name, launch, &attachments)?,
            attachments,
            leaves: None,
            clones: clones.collect(),
            working_set: working_set(args, planned, sources.images[usize::from(vm)].page_count())?,
            paging,
            settle: if launch.kind == "qemu" { vmm::qemu::SETTLE } else { Duration::ZERO },
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
    let state = attachments.iter().find(|(name, _)| name == STATE);
    let state = state.with_context(|| format!("VM {vm}: kind qemu needs the attachment `state`"));
    let (_, state) = state.or_exit(Exit::Input)?;
    let state = DeviceState::decode(state).with_context(|| format!("VM {vm}: attachment state"));
    Ok(state.or_exit(Exit::Input)?.offer())
}

/// What hosts are told of pre-paging.
fn paging(args: &Clone) -> Outcome<Paging> {
    let has = |way| args.pre_paging.contains(&way);
    if has(PrePaging::Off) && args.pre_paging.len() > 1 {
        return Err(Failure::new(Exit::Usage, "--pre-paging: `off` goes with nothing else"));
    }
    Ok(Paging {
        around: if has(PrePaging::Around) { AROUND_PAGES } else { 0 },
        working_set: has(PrePaging::WorkingSet),
        wait_ms: if args.start == StartWhen::WorkingSet { WAIT_MS_MAX } else { 0 },
    })
}

/// A VM's recorded working set, if there is one and it is to be used. It is advice: one that does not fit is named, and left out.
fn working_set(args: &Clone, vm: &PlannedVm, page_count: u32) -> Outcome<Vec<u32>> {
    let path = vm.launch.as_ref().and_then(|launch| launch.working_set.as_ref());
    let Some(path) = path.filter(|_| args.pre_paging.contains(&PrePaging::WorkingSet)) else {
        return Ok(Vec::new());
    };
    let path = images::path_beside(&args.send.group, path);
    let words = || format!("VM {}: working set: cannot read {}", vm.name, path.display());
    let bytes = std::fs::read(&path).with_context(words).or_exit(Exit::Input)?;
    match WorkingSet::from_bytes(&bytes, page_count) {
        Ok(set) => Ok(set.pages().to_vec()),
        Err(error) => {
            eprintln!("VM {}: {}: {error}: not used", vm.name, path.display());
            Ok(Vec::new())
        }
    }
}

/// Writes what `--record` asks for.
pub(super) fn record(args: &Clone, plan: &Plan, sent: &Sent) -> Outcome<()> {
    let (Some(dir), Some(outcome)) = (&args.record, &sent.outcome) else { return Ok(()) };
    std::fs::create_dir_all(dir)
        .with_context(|| format!("cannot make {}", dir.display()))
        .or_exit(Exit::Input)?;
    for (vm, faults) in &outcome.first_faults {
        let planned = &plan.vms[usize::from(*vm)];
        let page_count = sent.page_count(*vm);
        let mut pages = sent.working_sets.get(vm).cloned().unwrap_or_default();
        pages.extend(faults);
        let path = dir.join(format!("{}.working-set", planned.name));
        std::fs::write(&path, WorkingSet::of(page_count, &pages).to_bytes())
            .with_context(|| format!("cannot write {}", path.display()))
            .or_exit(Exit::Input)?;
    }
    Ok(())
}

/// What became of the clones; times from the start of the command, `prepare` before the transfer included.
pub(super) fn report(
    plan: &Plan,
    outcome: &driver::Outcome,
    prepare: Duration,
    rehearsals: Vec<RehearsalReport>,
) -> Option<ClonesReport> {
    let all: Vec<&CloneOutcome> = outcome.clones.all().iter().filter(|clone| !clone.leaves).collect();
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
    let sum = |of: fn(&CloneOutcome) -> u64| all.iter().map(|clone| of(clone)).sum::<u64>();
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
        pages_spread: outcome.pages.spread,
        wants_suppressed: outcome.pages.suppressed,
        pages_shared: outcome.pages.shared,
        pages_late: outcome.pages.late,
        blocks_hastened: outcome.stats.hastened_blocks,
        answer_bytes: outcome.pages.bytes,
        rehearsals,
        clones: all.into_iter().map(clone).collect(),
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

/// What became of the clones of a transfer that was cancelled, by whomever.
pub(super) fn say_cancelled(clones: &ClonesReport) {
    let reasons = [sender::driver::CANCELLED, super::standing::READ_IN_PLACE];
    let cancelled = |clone: &&CloneReport| {
        clone.failed.as_ref().is_some_and(|why| reasons.iter().any(|reason| why.contains(reason)))
    };
    let names = |of: &dyn Fn(&&CloneReport) -> bool| {
        clones.clones.iter().filter(of).map(|clone| clone.name.as_str()).collect::<Vec<_>>().join(", ")
    };
    let ended = names(&cancelled);
    if ended.is_empty() {
        return;
    }
    eprintln!("cancelled: these clones lacked pages and are ended: {ended}");
    let independent = names(&|clone| clone.independent_s.is_some() && clone.failed.is_none());
    if !independent.is_empty() {
        eprintln!("these have all of their memory and run on: {independent}");
    }
    let unknown = names(&|clone| clone.independent_s.is_none() && clone.failed.is_none() && !clone.ended);
    if !unknown.is_empty() {
        eprintln!("the hosts of these could not be told: {unknown}");
    }
}
