//! Programs that run clones: what a host may start is told by its own configuration, never by a sender.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use vmm::lazy::LazyImage;
use wire::control::FaultFigures;

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
        }
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
    }

    /// Whether it is to end. Looked at some times a second.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}
