//! The demo's second part: one running micro-VM becomes many, which run while their memory arrives, and check it.

use super::children::{self, ReceivingHost};
use super::{GROUP_PORT, Place, Stage};
use crate::cli::clones::{Microvm, Status};
use crate::cli::exit::{Coded, Exit, Failure, Outcome};
use crate::commands::{self, write_file};
use crate::report::{ClonesReport, TransferReport};
use crate::units;
use serde_json::json;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use wire::control::CloneStatus;

/// The guest's memory; the first 8 MiB are its program and tables.
const GUEST_MIB: u64 = 64;
/// How long its first touches are recorded, before it is cloned.
const RECORD_MS: u64 = 100;
/// Pages that it checks between two of its ticks.
const STEP: u32 = 16;
/// How long every clone may take to tick once it has all of its memory.
const TICKS_MAX: Duration = Duration::from_secs(10);
const GLANCE: Duration = Duration::from_millis(100);

/// The clones, once they have checked their memory.
pub(super) struct Cloned {
    pub(super) report: ClonesReport,
    /// Clones that ticked on with all of their memory and found no wrong page.
    pub(super) right: usize,
}

/// Clones a running micro-VM to all hosts. `None` where there can be none, and says why.
pub(super) fn play(stage: &Stage<'_>, keys: &Path) -> Outcome<Option<Cloned>> {
    if stage.args.clones == 0 {
        println!("\nrunning VMs: not cloned (--clones 0)");
        return Ok(None);
    }
    if let Err(reason) = receiver::guests::MicroVms::new() {
        println!("\nrunning VMs: not cloned, as this machine cannot run them here: {reason}");
        return Ok(None);
    }
    let all = u32::from(stage.args.hosts) * stage.args.clones;
    println!("\nrunning VMs: one micro-VM of {GUEST_MIB} MiB, to be cloned {all} times while it runs:");
    let dir = stage.dir.join("golden");
    commands::microvm::run(&Microvm {
        dir,
        size: GUEST_MIB,
        seed: 1,
        step: STEP,
        rest: 2,
        record: RECORD_MS,
    })?;
    let listen = stage.listen_addresses()?;
    let plan = plan(stage, &listen)?;
    let mut receivers = stage.receivers(keys, &listen, "clones", &["--launch", "microvm"])?;
    receivers.iter_mut().try_for_each(ReceivingHost::ready)?;
    let path = stage.dir.join("clones.json");
    let (src, rate) = (keys.join("src"), stage.args.rate);
    let status = children::send("clone", &stage.place, &plan, &src, rate, &path, &stage.interrupt)?;
    let ticked = if status.success() { ticked(stage, &plan, &src, all)? } else { Vec::new() };
    let last: Vec<Option<String>> = receivers.into_iter().map(ReceivingHost::end).collect();
    if !status.success() {
        let said = last.into_iter().flatten().collect::<Vec<_>>().join("\n");
        return Err(Failure::new(Exit::AllFailed, format!("clones failed ({status})\n{said}")));
    }
    let report = TransferReport::read(&path)?.clones;
    let report = report.ok_or_else(|| Failure::new(Exit::Internal, "the report has no clones"))?;
    Ok(Some(Cloned { report, right: ticked.iter().filter(|clone| is_right(clone)).count() }))
}

/// A plan that starts so many clones on each host.
fn plan(stage: &Stage<'_>, listen: &[SocketAddr]) -> Outcome<PathBuf> {
    let (hosts, clones) = (stage.args.hosts, stage.args.clones);
    let rate_mbps = (stage.args.rate / 1_000_000).max(1);
    let host = |(host, address): (u16, &SocketAddr)| {
        json!({"name": Stage::host_name(host), "address": address.to_string(), "vcpus": 1_024,
            "memory_mib": u64::from(clones) * GUEST_MIB, "rate_mbps": rate_mbps})
    };
    let port = match &stage.place {
        // The last session's datagrams are over; its groups may still be there.
        Place::Lab(_) => GROUP_PORT + 1,
        Place::Loopback => stage.group_port()?,
    };
    let mut launch = json!({"kind": "microvm", "attachments": {"state": "golden/state"}});
    if stage.dir.join("golden/working-set").exists() {
        launch["working_set"] = "golden/working-set".into();
    }
    let inventory = json!({
        "version": 1,
        "name": "demo-clones",
        "source": {"name": "src", "rate_mbps": rate_mbps},
        "hosts": stage.hosts().zip(listen).map(host).collect::<Vec<_>>(),
        "vms": [{
            "name": "golden", "image": "golden/memory", "memory_mib": GUEST_MIB,
            "to": {"clones": u32::from(hosts) * clones}, "clones_per_host": clones,
            "launch": launch,
        }],
        "multicast": {"pool": "239.78.0.0/16", "port": port},
    });
    let (path, output) = (stage.dir.join("clones-inventory.json"), stage.dir.join("clones-plan.json"));
    write_file(&path, &format!("{inventory:#}\n"))?;
    super::make_plan(path, &output)?;
    Ok(output)
}

/// The clones as their hosts tell them, when all of them have ticked on with all of their memory, or time is up.
fn ticked(stage: &Stage<'_>, plan: &Path, keys: &Path, all: u32) -> Outcome<Vec<CloneStatus>> {
    let deadline = Instant::now() + TICKS_MAX;
    let args = Status { group: plan.to_owned(), keys: Some(keys.to_owned()), json: false };
    loop {
        let asked = stage.place.run(0, || commands::status::clones(&args)).or_exit(Exit::System)?;
        let clones = asked?;
        if clones.iter().filter(|clone| is_right(clone)).count() == all as usize || Instant::now() >= deadline
        {
            return Ok(clones);
        }
        std::thread::sleep(GLANCE);
    }
}

/// A guest that ticks has checked pages; the launcher's words tell what it found.
fn is_right(clone: &CloneStatus) -> bool {
    !clone.over
        && clone.missing_pages == 0
        && clone.words.starts_with("tick ")
        && clone.words.ends_with(", 0 wrong pages")
}

/// The table.
pub(super) fn show(cloned: &Cloned) {
    let Cloned { report, right } = cloned;
    let seconds = |at: Option<f64>| at.map_or("–".to_owned(), units::time);
    let all = report.clones.len();
    println!("\n{:<40}{:>12}{:>12}{:>12}", "clones: first instruction after", "half", "99 %", "last");
    println!(
        "{:<40}{:>12}{:>12}{:>12}",
        format!("{} of {all} ran, from the command's start", report.running),
        seconds(report.first_instruction_p50_s),
        seconds(report.first_instruction_p99_s),
        seconds(report.first_instruction_last_s),
    );
    let independent = report.clones.iter().filter_map(|clone| clone.independent_s).fold(0.0, f64::max);
    println!("{:<40}{:>36}", "all memory there, the last after", units::time(independent));
    println!(
        "{:<40}{:>36}",
        "page faults: here, by a block, by answers",
        format!(
            "{}, {}, {}",
            report.faults_here,
            report.faults_block,
            report.faults_sender + report.faults_peer
        )
    );
    println!("{:<40}{:>36}", "went on, and found their memory right", format!("{right} of {all}"));
}

/// Whether every clone ran and is right.
pub(super) fn verified(cloned: &Cloned) -> bool {
    cloned.right == cloned.report.clones.len()
}
