//! Programs that run clones: what a host may start is told by its own configuration, never by a sender.

use crossbeam_channel::{Receiver, Sender, bounded};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use vmm::lazy::LazyImage;
use wire::control::FaultFigures;

/// Names and bytes of a VM's attachments.
pub type Attached = Arc<[(String, Vec<u8>)]>;

/// A clone to run.
#[derive(Clone)]
pub struct CloneSpec {
    /// Number of the clone in its transfer.
    pub clone: u32,
    /// Its name.
    pub name: String,
    /// Its memory, which is being filled. Shared by all clones of the VM: each maps it privately or copies from it.
    pub image: Arc<LazyImage>,
    /// What the VM needs beside its memory, verified: names and bytes.
    pub attachments: Arc<[(String, Vec<u8>)]>,
    /// Its recorded working set: pages to put in place first, in this order. Empty if there is none.
    pub working_set: Arc<[u32]>,
    /// It is no clone: the VM itself comes here, and must not run before [`Ward::may_run`].
    pub moves: Option<Moves>,
}

/// How a VM moves to this host.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Moves {
    /// Its hypervisor runs already, left by an earlier receiver: how to reach it, as [`Ward::note_monitor`] was told.
    pub recover: Option<String>,
    /// It still runs at its source: what its hypervisor can be fed under meanwhile. Its attachments come by [`Ward::given`].
    pub outline: Option<Vec<u8>>,
}

impl CloneSpec {
    /// The bytes of an attachment.
    #[must_use]
    pub fn attachment(&self, name: &str) -> Option<&[u8]> {
        self.attachments.iter().find(|(of, _)| of == name).map(|(_, bytes)| bytes.as_slice())
    }
}

/// Runs clones of one kind.
pub trait Launch: Send + Sync {
    /// The kind, as senders name it: `microvm`, `firecracker`.
    fn kind(&self) -> &str;

    /// Whether this host can run a VM with this fingerprint, and with these attachments by name; asked before anything
    /// is sent.
    ///
    /// # Errors
    /// Why not, in words.
    fn check(&self, fingerprint: &str, attachments: &[&str]) -> Result<(), String>;

    /// Whether VMs can move here ([`CloneSpec::moves`]): they are loaded standing, and outlive this process once they run.
    fn can_move(&self) -> bool {
        false
    }

    /// A receiver died just when this VM was about to become its own: its hypervisor, reached by what [`Ward::note_monitor`] was
    /// told, stands, and is ended. One that is gone is no error.
    ///
    /// # Errors
    /// It may be there, in words.
    fn end_undecided(&self, _monitor: &str) -> Result<(), String> {
        Ok(())
    }

    /// A clone was accepted and its device state is on its way: time to start what waits for it. `spec` has no attachments yet.
    /// Must return at once; [`Launch::run`] follows, or [`Launch::abandon`].
    fn prepare(&self, _fingerprint: &str, _spec: &CloneSpec) {}

    /// A clone that was prepared will not be run.
    fn abandon(&self, _spec: &CloneSpec) {}

    /// Runs the clone on the calling thread until it ends, [`Ward::is_stopped`] says so, or its image is lost. Calls
    /// [`Ward::running`] at its first instruction.
    ///
    /// # Errors
    /// Why it could not be started, or was ended, in words.
    fn run(&self, spec: &CloneSpec, ward: &Ward) -> Result<(), String>;
}

/// What passes between a running clone and whoever started it.
pub struct Ward {
    stop: AtomicBool,
    faults: Mutex<FaultFigures>,
    status: Mutex<String>,
    tell_running: Box<dyn Fn() + Send + Sync>,
    tell_loaded: Box<dyn Fn() + Send + Sync>,
    may_run: AtomicBool,
    monitor: Mutex<String>,
    outlive: OnceLock<Box<dyn Fn() + Send + Sync>>,
    late: OnceLock<Attached>,
    /// Something was said to it that it may be waiting for.
    news: (Sender<()>, Receiver<()>),
}

impl Ward {
    /// A ward whose clone is to run; `tell_running` is called at its first instruction.
    #[must_use]
    pub fn new(tell_running: Box<dyn Fn() + Send + Sync>) -> Self {
        Self {
            stop: AtomicBool::new(false),
            faults: Mutex::default(),
            status: Mutex::default(),
            tell_running,
            tell_loaded: Box::new(|| {}),
            may_run: AtomicBool::new(true),
            monitor: Mutex::default(),
            outlive: OnceLock::new(),
            late: OnceLock::new(),
            news: bounded(1),
        }
    }

    /// The ward of a VM that moves here: `tell_loaded` is called when it is loaded and stands; it waits for [`go`](Self::go).
    #[must_use]
    pub fn of_move(
        tell_running: Box<dyn Fn() + Send + Sync>,
        tell_loaded: Box<dyn Fn() + Send + Sync>,
    ) -> Self {
        Self { tell_loaded, may_run: AtomicBool::new(false), ..Self::new(tell_running) }
    }

    /// The VM is loaded and stands.
    pub fn loaded(&self) {
        (self.tell_loaded)();
    }

    /// Its vCPUs may start.
    pub fn go(&self) {
        self.may_run.store(true, Ordering::Release);
        self.wake();
    }

    /// Whether its vCPUs may start. [`wait`](Self::wait) ends when they may.
    #[must_use]
    pub fn may_run(&self) -> bool {
        self.may_run.load(Ordering::Acquire)
    }

    /// Notes how its hypervisor can be reached by a later process; before [`loaded`](Self::loaded).
    pub fn note_monitor(&self, monitor: String) {
        *self.monitor.lock().unwrap_or_else(PoisonError::into_inner) = monitor;
    }

    /// The attachments of a VM that was started without them ([`Moves::outline`]) have come.
    pub fn give(&self, attachments: Attached) {
        // They come once: later ones say the same.
        let _ = self.late.set(attachments);
        self.wake();
    }

    fn wake(&self) {
        // Full: it is about to be woken.
        let _ = self.news.0.try_send(());
    }

    /// Waits until it is told something ([`give`](Self::give), [`go`](Self::go), [`stop`](Self::stop)), for so long at most.
    pub fn wait(&self, at_most: Duration) {
        // Whether there is news or it is time: whoever waits looks at all of it.
        let _ = self.news.1.recv_timeout(at_most);
    }

    /// What was [given](Self::give).
    #[must_use]
    pub fn given(&self) -> Option<&Attached> {
        self.late.get()
    }

    /// Notes how to have its hypervisor outlive this process, however that ends; before [`loaded`](Self::loaded). Until
    /// [`outlive`](Self::outlive) it ends with this process.
    pub fn on_outlive(&self, outlive: Box<dyn Fn() + Send + Sync>) {
        // Only the first one counts: a VM has one hypervisor.
        let _ = self.outlive.set(outlive);
    }

    /// From now on its hypervisor outlives this process.
    pub fn outlive(&self) {
        if let Some(outlive) = self.outlive.get() {
            outlive();
        }
    }

    /// How its hypervisor can be reached.
    #[must_use]
    pub fn monitor(&self) -> String {
        self.monitor.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The clone executes its first instruction.
    pub fn running(&self) {
        (self.tell_running)();
    }

    /// Notes its page faults so far.
    pub fn note_faults(&self, faults: FaultFigures) {
        *self.faults.lock().unwrap_or_else(PoisonError::into_inner) = faults;
    }

    /// Notes how it fares, in words.
    pub fn note_status(&self, status: String) {
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }

    /// How it fares, as last noted.
    #[must_use]
    pub fn status(&self) -> String {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Its page faults, as last noted.
    #[must_use]
    pub fn faults(&self) -> FaultFigures {
        *self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the clone to end.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.wake();
    }

    /// Whether it is to end. Looked at some times a second.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}
