//! `scatter capture`, and `scatter clone --from`: a running VM's snapshot, through its hypervisor's API.

use super::launchers::machines_to_rehearse;
use super::qemu_capture;
use crate::cli::capture::How;
use crate::cli::clones::{Capture, CaptureKind};
use crate::cli::exit::{Coded, Exit, Failure, Outcome};
use crate::scratch::{Scratch, on_tmpfs};
use crate::{images, interrupt, units};
use anyhow::Context;
use clap::ValueEnum;
use planner::{Launch, Plan};
use receiver::guests::{QemuMachine, Qemus};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use vmm::firecracker::SnapshotKind;
use vmm::qemu::DeviceState;
use vmm::{cloud_hypervisor, firecracker};

/// Names of a snapshot's files: the image, and what a plan's VM needs to be started.
pub(super) const MEMORY: &str = "memory";
const LAUNCH: &str = "launch.json";
const WORKING_SET: &str = "working-set";

/// A snapshot: its memory is `memory` in the folder, and each attachment a file by its own name.
struct Taken {
    attachments: &'static [&'static str],
    fingerprint: String,
    /// How long the VM stood still.
    downtime: Duration,
}

pub(crate) fn run(args: &Capture) -> Outcome {
    make(&args.dir)?;
    let dir = std::path::absolute(&args.dir).or_exit(Exit::Input)?;
    if args.base.is_some() && args.kind != CaptureKind::Firecracker {
        return Err(Failure::new(Exit::Usage, "--base: only Firecracker has snapshots of what changed"));
    }
    if args.rehearse.rehearse.is_some() && args.kind != CaptureKind::Qemu {
        return Err(Failure::new(Exit::Usage, "--rehearse: only snapshots of QEMU are tried so"));
    }
    let machines = args.rehearse.rehearse.as_deref().map(machines_to_rehearse).transpose()?;
    if machines.is_some() {
        on_tmpfs("--rehearse", &dir, "give another DIR, as /dev/shm/NAME")?;
        interrupt::install().or_exit(Exit::System)?;
    }
    let taken = take(args.kind, &args.socket, &dir, args.base.as_deref(), &args.how)?;
    let time = args.rehearse.time();
    let working_set = machines.map(|machines| rehearse(&dir, &machines, time)).transpose()?;
    let path = |name: &&str| ((*name).to_owned(), dir.join(name).display().to_string());
    let launch = Launch {
        kind: args.kind.name(),
        attachments: taken.attachments.iter().map(path).collect(),
        fingerprint: taken.fingerprint,
        working_set: working_set.map(|path| path.display().to_string()),
    };
    let text = serde_json::to_string_pretty(&launch).or_exit(Exit::Internal)?;
    super::write_file(&dir.join(LAUNCH), &text)?;
    let bytes = std::fs::metadata(dir.join(MEMORY)).or_exit(Exit::Input)?.len();
    println!(
        "{}: {} of memory; {}: what a plan's VM needs as `launch`; it stood still for {}",
        dir.join(MEMORY).display(),
        units::bytes(bytes),
        dir.join(LAUNCH).display(),
        units::time(taken.downtime.as_secs_f64()),
    );
    Ok(Exit::Done)
}

/// Takes the snapshots that a plan's clones are to be made of, now: `from` has VMs of the plan and the API sockets of the running
/// ones. Their images, attachments and fingerprints in the plan become those of the snapshots, and the plan's file is written anew.
pub(crate) fn refresh(plan: &mut Plan, file: &Path, from: &[(String, String)], how: &How) -> Outcome<()> {
    for (name, socket) in from {
        let wrong = |words: &str| Failure::new(Exit::Input, format!("--from {name}={socket}: {words}"));
        let vm = plan.vms.iter_mut().find(|vm| vm.name == *name);
        let vm = vm.ok_or_else(|| wrong("the plan has no such VM"))?;
        let launch = vm.launch.as_mut().ok_or_else(|| wrong("the VM has no `launch` in the plan"))?;
        let kind = CaptureKind::from_str(&launch.kind, false)
            .map_err(|_| wrong(&format!("VMs of kind {} cannot be captured while they run", launch.kind)))?;
        let image = std::path::absolute(images::path_beside(file, &vm.image)).or_exit(Exit::Input)?;
        let beside = image.parent().unwrap_or(Path::new("/"));
        make(beside)?;
        // Never over a file that others may have mapped: what is there is replaced when the new one is whole.
        let dir = Scratch::new(beside, ".capture-").or_exit(Exit::Input)?;
        let taken = take(kind, Path::new(socket), dir.path(), None, how)?;
        let files = attachments(file, &launch.attachments, taken.attachments)
            .map_err(|words| wrong(&format!("its `launch` {words}")))?;
        for (from, to) in files.into_iter().chain([(MEMORY, image.clone())]) {
            replace(&dir.path().join(from), &to)?;
        }
        launch.fingerprint = taken.fingerprint;
        vm.stamp = super::stale::look_at(&image);
        eprintln!(
            "scatter: {name}: captured, {}; it stood still for {}",
            image.display(),
            units::time(taken.downtime.as_secs_f64())
        );
    }
    // A transfer that breaks off is taken up with the snapshots that its clones run on, not with later ones.
    if from.is_empty() { Ok(()) } else { super::write_file(file, &plan.to_json()) }
}

/// Where the plan has the attachments that a snapshot brings.
fn attachments(
    plan: &Path,
    named: &BTreeMap<String, String>,
    brought: &'static [&'static str],
) -> Result<Vec<(&'static str, PathBuf)>, String> {
    if let Some(other) = named.keys().find(|name| !brought.contains(&name.as_str())) {
        return Err(format!("has an attachment `{other}`, which no snapshot of this kind brings"));
    }
    let path = |name: &&'static str| Some((*name, images::path_beside(plan, named.get(*name)?)));
    let files: Vec<_> = brought.iter().filter_map(path).collect();
    // What only tells devices apart may be left out.
    let needed = brought.first().filter(|name| !named.contains_key(**name));
    needed.map_or(Ok(files), |name| Err(format!("lacks the attachment `{name}`")))
}

fn replace(from: &Path, to: &Path) -> Outcome<()> {
    let failed = || format!("cannot write {}", to.display());
    make(to.parent().unwrap_or(Path::new("/")))?;
    if std::fs::rename(from, to).is_ok() {
        return Ok(());
    }
    // On another file system.
    std::fs::copy(from, to).map(drop).with_context(failed).or_exit(Exit::Input)
}

fn make(dir: &Path) -> Outcome<()> {
    std::fs::create_dir_all(dir)
        .with_context(|| format!("cannot make {}", dir.display()))
        .or_exit(Exit::Input)
}

/// The one place where a kind becomes a way to take snapshots. `dir` is absolute: other processes write into it.
fn take(kind: CaptureKind, socket: &Path, dir: &Path, base: Option<&Path>, how: &How) -> Outcome<Taken> {
    match kind {
        CaptureKind::Qemu => of_qemu(socket, dir, how),
        CaptureKind::Firecracker => of_firecracker(socket, dir, base),
        CaptureKind::CloudHypervisor => of_cloud_hypervisor(socket, dir),
    }
}

fn of_qemu(source: &Path, dir: &Path, how: &How) -> Outcome<Taken> {
    let taken = qemu_capture::into_folder(source, dir, how)?;
    eprintln!("scatter: {}", crate::report::capture_words(&taken.report));
    Ok(Taken {
        attachments: &[qemu_capture::STATE],
        fingerprint: taken.state.offer(),
        downtime: Duration::from_secs_f64(taken.report.pause_s),
    })
}

/// Runs a snapshot of QEMU's once, and writes the pages that it touches first.
fn rehearse(dir: &Path, machines: &[QemuMachine], time: Duration) -> Outcome<PathBuf> {
    let start = Instant::now();
    let failed = |reason: String| Failure::new(Exit::System, format!("--rehearse: {reason}"));
    let own = Scratch::new(dir, ".rehearsal-").or_exit(Exit::Input)?;
    let state = std::fs::read(dir.join(qemu_capture::STATE)).or_exit(Exit::Input)?;
    let state = DeviceState::decode(&state).or_exit(Exit::Internal)?;
    let qemus = Qemus::for_rehearsal(machines, own.path()).map_err(failed)?;
    let cancel = interrupt::install().or_exit(Exit::System)?;
    let cancelled = || cancel.load(Ordering::Relaxed);
    let set = qemus.rehearse(&dir.join(MEMORY), state, time, &cancelled);
    if cancelled() {
        return Err(Failure::new(
            Exit::Interrupted,
            "interrupted in the rehearsal: the snapshot is there, its launch.json is not",
        ));
    }
    let (set, path) = (set.map_err(failed)?, dir.join(WORKING_SET));
    std::fs::write(&path, set.to_bytes())
        .with_context(|| format!("cannot write {}", path.display()))
        .or_exit(Exit::Input)?;
    println!(
        "{}: the {} pages that a clone touches first, by a rehearsal that took {}",
        path.display(),
        set.pages().len(),
        units::time(start.elapsed().as_secs_f64())
    );
    Ok(path)
}

fn of_firecracker(socket: &Path, dir: &Path, base: Option<&Path>) -> Outcome<Taken> {
    let api = firecracker::Api::new(socket);
    let config = api.configuration().or_exit(Exit::System)?;
    let write = |name: &str, bytes: &[u8]| {
        let path = dir.join(name);
        std::fs::write(&path, bytes)
            .with_context(|| format!("cannot write {}", path.display()))
            .or_exit(Exit::Input)
    };
    write("config", &config)?;
    let Some(base) = base else {
        let snapshot = firecracker::capture(&api, SnapshotKind::Full, dir, false).or_exit(Exit::System)?;
        return Ok(of_snapshot(snapshot));
    };
    let changes = Scratch::new(dir, ".changes-").or_exit(Exit::Input)?;
    let memory = dir.join(MEMORY);
    if !std::fs::canonicalize(base)
        .is_ok_and(|base| std::fs::canonicalize(&memory).is_ok_and(|to| to == base))
    {
        let failed = || format!("cannot copy {} to {}", base.display(), memory.display());
        std::fs::copy(base, &memory).with_context(failed).or_exit(Exit::Input)?;
    }
    let snapshot =
        firecracker::capture(&api, SnapshotKind::Diff, changes.path(), false).or_exit(Exit::System)?;
    firecracker::merge_diff(&snapshot.memory, &memory).or_exit(Exit::Input)?;
    replace(&snapshot.vmstate, &dir.join(firecracker::VMSTATE))?;
    Ok(of_snapshot(snapshot))
}

fn of_snapshot(snapshot: firecracker::Snapshot) -> Taken {
    let attachments = &[firecracker::VMSTATE, "config"];
    Taken { attachments, fingerprint: snapshot.fingerprint, downtime: snapshot.downtime }
}

fn of_cloud_hypervisor(socket: &Path, dir: &Path) -> Outcome<Taken> {
    let api = cloud_hypervisor::Api::new(socket);
    let since = Instant::now();
    let captured = cloud_hypervisor::capture(&api, dir).or_exit(Exit::System)?;
    let written = || -> anyhow::Result<()> {
        captured.write_image(&dir.join(MEMORY))?;
        for (name, bytes) in [("state", &captured.state), ("config", &captured.config)] {
            let path = dir.join(name);
            std::fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    };
    let written = written();
    let fingerprint = captured.fingerprint.clone();
    // Whatever became of the files, the VM runs on.
    captured.finish(false).or_exit(Exit::System)?;
    written.or_exit(Exit::Input)?;
    Ok(Taken { attachments: &["state", "config"], fingerprint, downtime: since.elapsed() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plans_attachments_are_those_that_a_snapshot_brings() {
        let named = |names: &[&str]| names.iter().map(|name| ((*name).into(), format!("a/{name}"))).collect();
        let plan = Path::new("/plans/one.json");
        let brought = &["vmstate", "config"];
        let files = attachments(plan, &named(&["vmstate"]), brought).expect("the other may be left out");
        assert_eq!(files, [("vmstate", PathBuf::from("/plans/a/vmstate"))]);
        assert_eq!(attachments(plan, &named(&["vmstate", "config"]), brought).expect("both").len(), 2);
        assert!(attachments(plan, &named(&["config"]), brought).is_err_and(|words| words.contains("lacks")));
        let other = attachments(plan, &named(&["vmstate", "disk"]), brought);
        assert!(other.is_err_and(|words| words.contains("`disk`")));
    }
}
