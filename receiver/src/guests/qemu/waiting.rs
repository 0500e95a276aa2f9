//! QEMUs that were started before anybody asked for them, as starting one takes longer than all else that a clone waits for.

use super::machine::Machine;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};
use vmm::qemu::Vm;

/// Those that were taken are replaced after so long without another: whoever took them has better use for this host's CPUs.
const REPLACE_AFTER: Duration = Duration::from_secs(10);
/// How often that is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// One that could not be started is tried again after so long.
const RETRY_AFTER: Duration = Duration::from_secs(60);
/// What their folders' names begin with; then the receiver's process id.
const PREFIX: &str = ".warm-";

/// Length and time of the disk under a QEMU's overlay.
pub(super) type Seen = (u64, SystemTime);

/// A QEMU that waits in a folder of its own.
struct Waiting {
    vm: Vm,
    disk: Option<Seen>,
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

    pub(super) fn len(&self) -> usize {
        self.waiting().len()
    }

    pub(super) fn put(&self, vm: Vm, disk: Option<Seen>) {
        self.waiting().push(Waiting { vm, disk });
    }

    /// One that is alive and whose disk is still what it was, under this name and in this folder; none if there is none.
    pub(super) fn take(&self, disk: Option<Seen>, name: &str, dir: &Path) -> Option<Vm> {
        *self.taken_at() = Some(Instant::now());
        loop {
            let mut waiting = self.waiting().pop()?;
            let usable = waiting.vm.check().map_err(|error| error.to_string()).and_then(|()| {
                if waiting.disk != disk {
                    return Err("the disk under its overlay has changed".to_owned());
                }
                waiting.vm.adopt(name, dir).map_err(|error| error.to_string())
            });
            match usable {
                Ok(()) => return Some(waiting.vm),
                Err(reason) => {
                    tracing::warn!(reason, "a QEMU that waited is not used");
                    discard(waiting.vm);
                }
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
        sweep(clones);
        let mut filler = Filler { machines, clones: clones.to_owned(), count: 0 };
        filler.fill()?;
        let (stop, stopped) = bounded(0);
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
    count: u64,
}

impl Filler {
    fn fill(&mut self) -> Result<(), String> {
        for machine in &self.machines {
            while machine.shelf.is_quiet() && machine.wanted() > 0 {
                self.count += 1;
                let dir = self.clones.join(format!("{PREFIX}{}-{}", std::process::id(), self.count));
                std::fs::create_dir(&dir)
                    .map_err(|error| format!("cannot make the folder {}: {error}", dir.display()))?;
                machine.stock(&dir).inspect_err(|_| remove(&dir))?;
            }
        }
        Ok(())
    }

    fn run(mut self, stopped: &Receiver<()>) {
        let mut wait = LOOK_EVERY;
        while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(wait) {
            wait = match self.fill() {
                Ok(()) => LOOK_EVERY,
                Err(reason) => {
                    tracing::warn!(reason, "no QEMU could be started to wait for VMs");
                    RETRY_AFTER
                }
            };
        }
    }
}

/// Removes what receivers that were killed left: their QEMUs have ended with them. Links are other names of clones' folders.
fn sweep(clones: &Path) {
    for entry in std::fs::read_dir(clones).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else { continue };
        let alive = rest.split('-').next().is_some_and(|pid| Path::new("/proc").join(pid).exists());
        if !alive && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        } else if std::fs::metadata(entry.path()).is_err() {
            // A link to a folder that somebody has removed. If it stays, it harms nobody.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}
