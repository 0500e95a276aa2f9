//! VMs of a plan that run here and leave: `image` is `qmp:PATH`, the monitor of a running QEMU.
//!
//! Beside the plan stands `PLAN.handover/`: the journal, `status.json` for `scatter status`, and `cancel` for a moment when
//! `scatter cancel` asks for it.

use crate::cli::args::Send;
use crate::cli::exit::{Coded, Exit, Failure, Outcome};
use crate::report::DepartureReport;
use planner::Plan;
use sender::departure::{Departing, Mode, Pace, QemuDeparture};
use sender::driver::{Departure, DepartureOutcome};
use sender::guests::GuestInput;
use sender::handover::State;
use sender::handover::journal::{Journal, Leaving};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use usage::priority::Raised;
use vmm::image::MappedImage;
use wire::control::{LeaveOffer, Paging};

/// What an image is that is no file.
const MONITOR: &str = "qmp:";
/// Where memory of leaving VMs stands by default: it must be a tmpfs.
const MEMORY: &str = "/dev/shm";
/// Beside the journal: where it stands.
const MEMORY_NOTE: &str = "memory";

/// The folder beside a plan.
pub(crate) fn folder(plan_file: &Path) -> PathBuf {
    let mut path = plan_file.as_os_str().to_owned();
    path.push(".handover");
    path.into()
}

/// The right to send a plan's VMs, as long as the file is held; nothing if another process has it.
pub(crate) fn lock(folder: &Path) -> Outcome<Option<File>> {
    let path = folder.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path).or_exit(Exit::System)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(std::fs::TryLockError::WouldBlock) => Ok(None),
        Err(std::fs::TryLockError::Error(error)) => Err(error).or_exit(Exit::System),
    }
}

/// Where a VM that leaves stands.
pub(crate) struct Standing {
    pub(crate) vm: String,
    pub(crate) words: String,
    /// What the sender that is at work knows of it.
    pub(crate) outcome: Option<DepartureOutcome>,
}

/// Where each VM of a plan that leaves stands; none if the plan's images are files.
pub(crate) fn standing(plan_file: &Path, plan: &Plan) -> Outcome<Vec<Standing>> {
    let folder = folder(plan_file);
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    if lock(&folder)?.is_none() {
        let standing = |outcome: DepartureOutcome| {
            let report = DepartureReport::of(&outcome, Duration::ZERO, Vec::new());
            let words = format!("to {}: {}", outcome.host, report.words());
            Standing { vm: outcome.vm.clone(), words, outcome: Some(outcome) }
        };
        return Ok(StatusFile::read(&folder).into_iter().map(standing).collect());
    }
    let journal = Journal::open(&folder).or_exit(Exit::System)?;
    let mut standing = Vec::new();
    for vm in &plan.vms {
        let words = match journal.find(&vm.name).or_exit(Exit::System)? {
            Some(of) if journal.is_decided(&vm.name) => format!(
                "{}, to {}; no sender brings its pages: start the same `scatter send` again",
                State::HandedOver,
                of.host
            ),
            Some(_) => format!(
                "{}, left by a sender that died: `scatter cancel` or `scatter send` makes sure that it runs",
                State::Running
            ),
            None => "nothing of it is under way".to_owned(),
        };
        standing.push(Standing { vm: vm.name.clone(), words, outcome: None });
    }
    Ok(standing)
}

/// What `scatter status` reads.
#[derive(Serialize, Deserialize)]
pub(crate) struct StatusFile {
    /// The process that sends.
    pub(crate) pid: u32,
    /// Each VM.
    pub(crate) vms: Vec<DepartureOutcome>,
}

impl StatusFile {
    /// The VMs; none if no sender has written yet.
    pub(crate) fn read(folder: &Path) -> Vec<DepartureOutcome> {
        let text = std::fs::read_to_string(folder.join("status.json")).unwrap_or_default();
        serde_json::from_str::<Self>(&text).map(|file| file.vms).unwrap_or_default()
    }
}

/// VMs whose first pass is taken.
pub(super) struct Leave {
    pub(super) images: Vec<Arc<MappedImage>>,
    pub(super) guests: Vec<GuestInput>,
    pub(super) departures: Vec<Departure>,
    pub(super) journal: Journal,
    pub(super) pace: Pace,
    pub(super) cancel: Arc<AtomicBool>,
    folder: PathBuf,
    memory: PathBuf,
    lock: File,
    /// For as long as VMs leave: the [`Watch`] has it then.
    raised: Option<Raised>,
}

/// Takes the first pass over each VM, all at once; nothing if the plan's images are files.
pub(super) fn begin(args: &Send, plan: &Plan, interrupt: &AtomicBool) -> Outcome<Option<Leave>> {
    let monitors: Vec<Option<&str>> = plan.vms.iter().map(|vm| vm.image.strip_prefix(MONITOR)).collect();
    if monitors.iter().all(Option::is_none) {
        return Ok(None);
    }
    let folder = folder(&args.group);
    let journal = Journal::open(&folder).or_exit(Exit::System)?;
    let Some(lock) = lock(&folder)? else {
        let message = format!("another `scatter send` has VMs of {} under way", args.group.display());
        return Err(Failure::new(Exit::Input, message));
    };
    // Words to an earlier process, and of it.
    for file in ["cancel", "status.json"] {
        let _ = std::fs::remove_file(folder.join(file));
    }
    let inode = std::fs::metadata(&folder).or_exit(Exit::System)?.ino();
    let memory = args.memory.clone().unwrap_or_else(|| PathBuf::from(MEMORY));
    let memory = memory.join(format!("scatter-{}-{inode:x}", plan.name));
    let mut tasks = Vec::new();
    for ((vm, monitor), hosts) in plan.vms.iter().zip(&monitors).zip(plan.hosts_of_vms()) {
        let Some(monitor) = monitor else {
            let message =
                format!("VM {}: its image is a file, others run: send files and VMs apart", vm.name);
            return Err(Failure::new(Exit::Input, message));
        };
        let hosts: Vec<u16> = hosts.iter().collect();
        let [host] = hosts[..] else {
            let message = format!(
                "VM {} is to go to {} hosts: a VM that leaves goes to one; `scatter clone` makes several of it",
                vm.name,
                hosts.len()
            );
            return Err(Failure::new(Exit::Input, message));
        };
        let monitor = crate::images::path_beside(&args.group, monitor);
        let monitor = std::path::absolute(monitor).or_exit(Exit::System)?;
        let host_name = plan.hosts[usize::from(host)].name.clone();
        tasks.push((usize::from(host), Leaving { vm: vm.name.clone(), host: host_name, monitor }));
    }
    let raised = Raised::to(args.nice).inspect_err(|error| {
        tracing::warn!(%error, nice = args.nice, "this sender is no more urgent than guests: the transfer takes longer beside busy ones");
    });
    // For whoever comes after a sender that died.
    std::fs::write(folder.join(MEMORY_NOTE), memory.as_os_str().as_encoded_bytes()).or_exit(Exit::System)?;
    let whole = args.mode == Mode::Precopy;
    let begun =
        first_passes(&tasks, &journal, &memory, whole, interrupt).inspect_err(|_| remove_empty(&memory))?;
    let (mut images, mut guests, mut departures) = (Vec::new(), Vec::new(), Vec::new());
    for ((vm, (host, leaving)), departure) in (0..).zip(tasks).zip(begun) {
        images.push(Arc::clone(departure.image()));
        guests.push(GuestInput {
            vm,
            kind: "qemu".to_owned(),
            fingerprint: departure.fingerprint().to_owned(),
            attachments: Vec::new(),
            leaves: Some(LeaveOffer { whole, outline: departure.outline().to_vec() }),
            working_set: Vec::new(),
            paging: Paging::default(),
            settle: Duration::ZERO,
            clones: vec![(host, leaving.vm.clone())],
        });
        let handed_over = departure.is_handed_over();
        let (taken_at, departing) = (Instant::now(), Box::new(departure));
        departures.push(Departure { vm, host, leaving, handed_over, taken_at, departing });
    }
    let pace =
        Pace { mode: args.mode, downtime_limit: args.downtime_limit, precopy_timeout: args.precopy_timeout };
    let cancel = Arc::default();
    let raised = raised.ok();
    Ok(Some(Leave { images, guests, departures, journal, pace, cancel, folder, memory, lock, raised }))
}

/// Each on a thread; if one fails, all run on.
fn first_passes(
    tasks: &[(usize, Leaving)],
    journal: &Journal,
    memory: &Path,
    follows: bool,
    interrupt: &AtomicBool,
) -> Outcome<Vec<QemuDeparture>> {
    let begun: Vec<_> = std::thread::scope(|scope| {
        let begin =
            |leaving| scope.spawn(move || QemuDeparture::begin(leaving, journal, memory, follows, interrupt));
        let threads: Vec<_> = tasks.iter().map(|(_, leaving)| begin(leaving)).collect();
        threads.into_iter().map(|thread| thread.join().expect("the first pass does not panic")).collect()
    });
    if begun.iter().all(Result::is_ok) {
        return Ok(begun.into_iter().filter_map(Result::ok).collect());
    }
    let mut failure = None;
    for (departure, (_, leaving)) in begun.into_iter().zip(tasks) {
        match departure {
            Ok(mut departure) if !departure.is_handed_over() => {
                if let Err(error) = departure.resume() {
                    tracing::error!(vm = leaving.vm, error, "a VM could not be put right: look at it");
                }
                journal.forget(&leaving.vm).or_exit(Exit::System)?;
            }
            Ok(_) => {}
            Err(error) => {
                let error = anyhow::Error::new(error).context(format!("VM {}", leaving.vm));
                failure.get_or_insert(Failure { exit: Exit::Input, error });
            }
        }
    }
    Err(failure.expect("one failed"))
}

impl Leave {
    /// What tells others how the VMs fare, and hears them.
    pub(super) fn watch(&mut self) -> Outcome<Watch> {
        let lock = self.lock.try_clone().or_exit(Exit::System)?;
        let (folder, memory) = (self.folder.clone(), self.memory.clone());
        Ok(Watch {
            folder,
            memory,
            cancel: Arc::clone(&self.cancel),
            _lock: lock,
            _raised: self.raised.take(),
        })
    }
}

/// See [`Leave::watch`].
pub(super) struct Watch {
    folder: PathBuf,
    memory: PathBuf,
    cancel: Arc<AtomicBool>,
    _lock: File,
    _raised: Option<Raised>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        remove_empty(&self.memory);
    }
}

/// Removes the directory of VMs' memory, unless one that was handed over still has its pages there.
fn remove_empty(memory: &Path) {
    // Not there, or not empty: both are well.
    let _ = std::fs::remove_dir(memory);
}

/// A VM that an earlier sender left, and that was not handed over, runs on, and what was taken of it is removed.
pub(crate) fn put_right(leaving: &Leaving, journal: &Journal, folder: &Path) -> Outcome<()> {
    let memory =
        std::fs::read(folder.join(MEMORY_NOTE)).ok().map(|path| PathBuf::from(OsString::from_vec(path)));
    sender::departure::put_right(leaving, journal, memory.as_deref()).or_exit(Exit::System)?;
    memory.iter().for_each(|memory| remove_empty(memory));
    Ok(())
}

impl Watch {
    pub(super) fn look(&self, departures: &[DepartureOutcome]) {
        if self.folder.join("cancel").exists() {
            self.cancel.store(true, Ordering::Relaxed);
        }
        let file = StatusFile { pid: std::process::id(), vms: departures.to_vec() };
        let text = serde_json::to_string_pretty(&file).expect("plain data");
        // Told again in a moment: a full disk must not end a transfer.
        let written = crate::commands::write_file(&self.folder.join("status.json"), &text);
        if let Err(failure) = written {
            tracing::debug!(error = %failure.error, "status.json");
        }
    }
}

/// How it went.
pub(super) fn verdict(departures: &[DepartureOutcome], interrupted: bool) -> Exit {
    let gone = departures.iter().filter(|outcome| outcome.state == State::Released).count();
    match gone {
        count if count == departures.len() => Exit::Done,
        _ if interrupted => Exit::Interrupted,
        0 => Exit::AllFailed,
        _ => Exit::SomeFailed,
    }
}
