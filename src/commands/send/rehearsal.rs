//! `scatter clone --rehearse`: what clones will touch first, found out while the memory is merged. The QEMU that tries it starts beside the capture.

use super::sources::Sources;
use crate::cli::capture::WayChoice;
use crate::cli::clones::{Clone as CloneArgs, PrePaging};
use crate::cli::exit::{Coded, Exit, Failure, Outcome};
use crate::commands::launchers;
use crate::commands::qemu_capture::STATE;
use crate::interrupt;
use crate::report::RehearsalReport;
use crate::scratch::{Scratch, on_tmpfs};
use anyhow::Context;
use planner::Plan;
use receiver::guests::Qemus;
use sender::guests::GuestInput;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use vmm::image::ImageFormat;
use vmm::qemu::DeviceState;
use vmm::uffd::WorkingSet;

const IN_PLACE: &str = "what is read in place cannot be rehearsed, as that takes memory in a file of its own: --way shared-ram copies it";
const MAPPED_RAM: &str = "only raw memory is rehearsed: leave --way mapped-ram out, or take the file apart by `scatter capture` before";

/// QEMUs that wait, or are about to.
pub(super) struct Stage {
    qemus: Option<JoinHandle<Result<Qemus, String>>>,
    time: Duration,
    cancel: interrupt::Flag,
    /// Their files'.
    _dir: Scratch,
}

/// A VM to be tried.
struct Trial {
    vm: u16,
    name: String,
    memory: PathBuf,
    state: DeviceState,
}

/// What came of it.
struct Tried {
    vm: u16,
    set: WorkingSet,
    report: RehearsalReport,
}

/// A rehearsal under way.
pub(super) struct Rehearsal {
    thread: Option<JoinHandle<Outcome<Vec<Tried>>>>,
    /// Nobody waits for its end any more.
    over: Arc<AtomicBool>,
}

impl Stage {
    /// Has a QEMU of each machine wait, if VMs are to be rehearsed.
    pub(super) fn prepare(args: &CloneArgs) -> Outcome<Option<Self>> {
        let Some(machines) = &args.rehearse.rehearse else { return Ok(None) };
        if !args.pre_paging.contains(&PrePaging::WorkingSet) {
            let message = "--rehearse finds out a working set, which --pre-paging does not have sent";
            return Err(Failure::new(Exit::Usage, message));
        }
        match args.capture.way {
            Some(WayChoice::SharedRamInPlace) => {
                return Err(Failure::new(Exit::Usage, format!("--rehearse: {IN_PLACE}")));
            }
            Some(WayChoice::MappedRam) => {
                return Err(Failure::new(Exit::Usage, format!("--rehearse: {MAPPED_RAM}")));
            }
            _ => on_tmpfs("--rehearse", &args.capture_dir, "give another --capture-dir, as /dev/shm")?,
        }
        let machines = launchers::machines_to_rehearse(machines)?;
        let dir = Scratch::new(&args.capture_dir, "scatter-rehearsal-");
        let words = || format!("cannot make a directory in {}", args.capture_dir.display());
        let dir = dir.with_context(words).or_exit(Exit::Input)?;
        let root = dir.path().to_owned();
        let qemus = std::thread::Builder::new()
            .name("rehearsal".into())
            .spawn(move || Qemus::for_rehearsal(&machines, &root))
            .or_exit(Exit::System)?;
        let (time, cancel) = (args.rehearse.time(), interrupt::install().or_exit(Exit::System)?);
        Ok(Some(Self { qemus: Some(qemus), time, cancel, _dir: dir }))
    }

    /// Runs the VMs under QEMU, one after another.
    pub(super) fn begin(self, plan: &Plan, guests: &[GuestInput], sources: &Sources) -> Outcome<Rehearsal> {
        let guests = guests.iter().filter(|guest| guest.kind == "qemu");
        let trials = guests.map(|guest| Trial::of(plan, guest, sources)).collect::<Outcome<Vec<_>>>()?;
        if trials.is_empty() {
            return Err(Failure::new(Exit::Input, "--rehearse: the plan starts no VM under QEMU"));
        }
        let over = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&over);
        let run = move || self.run(trials, &seen);
        let thread = std::thread::Builder::new().name("rehearsal".into()).spawn(run);
        thread.map(|thread| Rehearsal { thread: Some(thread), over }).or_exit(Exit::System)
    }

    fn run(mut self, trials: Vec<Trial>, over: &AtomicBool) -> Outcome<Vec<Tried>> {
        let cancel = Arc::clone(&self.cancel);
        let cancelled = || cancel.load(Ordering::Relaxed) || over.load(Ordering::Relaxed);
        let failed = |reason: String| Failure::new(Exit::System, format!("--rehearse: {reason}"));
        let qemus = self.qemus.take().expect("joined once").join();
        let qemus =
            qemus.unwrap_or_else(|_| Err("the thread that starts QEMUs panicked".into())).map_err(failed)?;
        let run = |trial: Trial| {
            let interrupted = || Failure::new(Exit::Interrupted, "interrupted before anything was sent");
            if cancelled() {
                return Err(interrupted());
            }
            let start = Instant::now();
            let set = qemus.rehearse(&trial.memory, trial.state, self.time, &cancelled);
            let set = set.map_err(|reason| match cancelled() {
                true => interrupted(),
                false => failed(format!("VM {}: {reason}", trial.name)),
            })?;
            let (pages, total_s) = (set.pages().len() as u64, start.elapsed().as_secs_f64());
            Ok(Tried { vm: trial.vm, set, report: RehearsalReport { vm: trial.name, pages, total_s } })
        };
        trials.into_iter().map(run).collect()
    }
}

impl Drop for Stage {
    /// Whatever is still being started ends before its files are removed.
    fn drop(&mut self) {
        if let Some(qemus) = self.qemus.take() {
            drop(qemus.join());
        }
    }
}

impl Trial {
    fn of(plan: &Plan, guest: &GuestInput, sources: &Sources) -> Outcome<Self> {
        let name = plan.vms[usize::from(guest.vm)].name.clone();
        let refused = |why: &str| Failure::new(Exit::Input, format!("--rehearse: VM {name}: {why}"));
        let image = &sources.images[usize::from(guest.vm)];
        if sources.standing.has(&name) {
            return Err(refused(
                "it is read in place, and only memory in a file of its own is rehearsed: --way shared-ram copies it",
            ));
        }
        if image.info().format != ImageFormat::Raw {
            return Err(refused(MAPPED_RAM));
        }
        on_tmpfs(
            "--rehearse",
            image.path(),
            &format!("bring VM {name}'s memory there, or leave --rehearse out"),
        )?;
        let state = guest.attachments.iter().find(|(name, _)| name == STATE);
        let (_, state) = state.ok_or_else(|| refused("it has no attachment `state`"))?;
        let state = DeviceState::decode(state).with_context(|| format!("VM {name}: attachment state"));
        let state = state.or_exit(Exit::Input)?;
        Ok(Self { vm: guest.vm, memory: image.path().to_owned(), state, name })
    }
}

impl Rehearsal {
    /// Waits for its end, and has the guests' working sets be what was touched.
    pub(super) fn end(mut self, guests: &mut [GuestInput]) -> Outcome<Vec<RehearsalReport>> {
        let tried = self.thread.take().expect("ended once").join();
        let tried =
            tried.unwrap_or_else(|_| Err(Failure::new(Exit::Internal, "the rehearsal's thread panicked")))?;
        for Tried { vm, set, .. } in &tried {
            guests
                .iter_mut()
                .filter(|guest| guest.vm == *vm)
                .for_each(|guest| guest.working_set = set.pages().to_vec());
        }
        Ok(tried.into_iter().map(|tried| tried.report).collect())
    }
}

impl Drop for Rehearsal {
    /// Its QEMU ends, and its files are removed, before this process does.
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}
