//! QEMUs that were started before anybody asked for them, as starting one takes longer than all else that a clone waits for.

use super::machine::Machine;
use crate::guests::words::words;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};
use vmm::qemu::{QmpError, Vm};

/// Those that were taken are replaced after so long without another: whoever took them has better use for this host's CPUs.
const REPLACE_AFTER: Duration = Duration::from_secs(10);
/// How often that is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// One whose monitor does not answer within this is given up: starting another takes less, unless the machine is much too busy.
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);
/// One that could not be started is tried again after so long.
const RETRY_AFTER: Duration = Duration::from_secs(60);
/// What their folders' names begin with; then the receiver's process id.
const PREFIX: &str = ".warm-";

/// Device, number, length and time of the disk under a QEMU's overlay.
pub(super) type Seen = (u64, u64, u64, SystemTime);

/// A QEMU that waits in a folder of its own.
struct Waiting {
    vm: Vm,
    disk: Option<Seen>,
}

/// A QEMU for a VM that comes.
pub(super) struct Ready {
    pub(super) vm: Vm,
    /// Why it is not one that waited, if any of those was given up.
    pub(super) instead: Option<String>,
}

/// Those of one machine.
#[derive(Default)]
pub(super) struct Shelf {
    waiting: Mutex<Vec<Waiting>>,
    taken_at: Mutex<Option<Instant>>,
}

impl Shelf {
    fn waiting(&self) -> MutexGuard<'_, Vec<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn taken_at(&self) -> MutexGuard<'_, Option<Instant>> {
        self.taken_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends those that are of no use any more; how many are left.
    pub(super) fn prune(&self, disk: Option<Seen>) -> usize {
        let (kept, others) = {
            let mut waiting = self.waiting();
            let usable = |waiting: &mut Waiting| waiting.vm.check().is_ok() && waiting.disk == disk;
            let (kept, others): (Vec<_>, Vec<_>) =
                waiting.drain(..).map(|mut of| (usable(&mut of), of)).partition(|(usable, _)| *usable);
            waiting.extend(kept.into_iter().map(|(_, of)| of));
            (waiting.len(), others)
        };
        for (_, of) in others {
            tracing::warn!(dir = %of.vm.dir().display(), "a QEMU that waited has ended, or its disk has changed: it is replaced");
            discard(of.vm);
        }
        kept
    }

    pub(super) fn put(&self, vm: Vm, disk: Option<Seen>) {
        self.waiting().push(Waiting { vm, disk });
    }

    /// One that answers and whose disk is still what it was, under this name and in this folder; or why there is none, if any was
    /// given up. A VM waits for one that does not answer, and for no second one.
    pub(super) fn take(&self, disk: Option<Seen>, name: &str, dir: &Path) -> Result<Vm, Option<String>> {
        *self.taken_at() = Some(Instant::now());
        let mut given_up = None;
        loop {
            let Some(mut waiting) = self.waiting().pop() else { return Err(given_up) };
            let mut hangs = false;
            let usable = waiting.vm.check().map_err(|error| words(&error)).and_then(|()| {
                if waiting.disk != disk {
                    return Err("the disk under its overlay has changed".to_owned());
                }
                let answers = waiting.vm.qmp.answers(ANSWERS_WITHIN);
                hangs = matches!(&answers, Err(QmpError::Io { source, .. }) if source.kind() == ErrorKind::TimedOut);
                answers.map_err(|error| words(&error))?;
                waiting.vm.adopt(name, dir).map_err(|error| words(&error))
            });
            let Err(reason) = usable else { return Ok(waiting.vm) };
            tracing::warn!(name, reason, "a QEMU that waited is not used");
            discard(waiting.vm);
            given_up = Some(reason);
            if hangs {
                return Err(given_up);
            }
        }
    }

    /// Whether nobody takes any just now.
    fn is_quiet(&self) -> bool {
        self.taken_at().is_none_or(|at| at.elapsed() > REPLACE_AFTER)
    }
}

impl Drop for Shelf {
    fn drop(&mut self) {
        self.waiting().drain(..).for_each(|waiting| discard(waiting.vm));
    }
}

/// Ends it; nobody had its folder.
fn discard(vm: Vm) {
    let dir = vm.dir().to_owned();
    vm.kill();
    remove(&dir);
}

fn remove(dir: &Path) {
    if let Err(error) = std::fs::remove_dir_all(dir) {
        tracing::warn!(dir = %dir.display(), %error, "cannot remove the folder of a QEMU that waited");
    }
}

/// Keeps the shelves of machines full.
pub(super) struct Stock {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Stock {
    /// Fills the shelves, in folders of `clones`, and again whenever something was taken.
    ///
    /// # Errors
    /// In words: one does not start, or no thread.
    pub(super) fn keep(machines: Vec<Arc<Machine>>, clones: &Path) -> Result<Self, String> {
        let filler = Filler { machines, clones: clones.to_owned() };
        let (stop, stopped) = bounded(0);
        filler.fill(&stopped)?;
        let thread =
            std::thread::Builder::new().name("warm-stock".into()).spawn(move || filler.run(&stopped));
        let thread = thread.map_err(|error| format!("cannot start a thread: {error}"))?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Stock {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A panic was reported by the thread.
            let _ = thread.join();
        }
    }
}

struct Filler {
    machines: Vec<Arc<Machine>>,
    clones: PathBuf,
}

impl Filler {
    /// Whatever does not start keeps no other machine's from being started; the last failure is told.
    fn fill(&self, stopped: &Receiver<()>) -> Result<(), String> {
        let mut outcome = Ok(());
        for machine in &self.machines {
            while machine.shelf.is_quiet() && machine.wanted() > 0 {
                if stopped.try_recv() == Err(TryRecvError::Disconnected) {
                    return Ok(());
                }
                if let Err(reason) = self.start(machine) {
                    outcome = Err(reason);
                    break;
                }
            }
        }
        outcome
    }

    /// In a folder of its owner's alone, as clones' are.
    fn start(&self, machine: &Machine) -> Result<(), String> {
        let prefix = format!("{PREFIX}{}-", std::process::id());
        let dir = tempfile::Builder::new().prefix(&prefix).tempdir_in(&self.clones);
        let dir =
            dir.map_err(|error| format!("cannot make a folder in {}: {error}", self.clones.display()))?;
        machine.stock(dir.path())?;
        // The QEMU has it from now on.
        let _ = dir.keep();
        Ok(())
    }

    fn run(self, stopped: &Receiver<()>) {
        let mut wait = LOOK_EVERY;
        while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(wait) {
            wait = match self.fill(stopped) {
                Ok(()) => LOOK_EVERY,
                Err(reason) => {
                    tracing::warn!(reason, "no QEMU could be started to wait for VMs");
                    RETRY_AFTER
                }
            };
        }
    }
}

/// Removes what receivers that were killed left: their QEMUs have ended with them. Links are other names of clones' folders. Before this
/// process makes any: what has its number is an earlier one's.
pub(super) fn sweep(clones: &Path) {
    for entry in std::fs::read_dir(clones).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else { continue };
        let of = rest.split('-').next().unwrap_or_default();
        let alive = of != std::process::id().to_string() && Path::new("/proc").join(of).exists();
        if !alive && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        } else if std::fs::metadata(entry.path()).is_err() {
            // A link to a folder that somebody has removed. If it stays, it harms nobody.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}
