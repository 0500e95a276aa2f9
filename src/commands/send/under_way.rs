//! How `scatter cancel` reaches a `scatter clone` on the same machine: that holds a shared lock on its plan's file, and looks for
//! `PLAN.cancel` beside it.

use crate::cli::exit::{Coded, Exit, Outcome};
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What asks the sender to cancel.
pub(crate) fn request(plan_file: &Path) -> PathBuf {
    let mut path = plan_file.as_os_str().to_owned();
    path.push(".cancel");
    path.into()
}

/// Whether a `scatter clone` of this plan runs on this machine.
pub(crate) fn is_under_way(plan_file: &Path) -> Outcome<bool> {
    match File::open(plan_file).or_exit(Exit::Input)?.try_lock() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error).or_exit(Exit::System),
    }
}

/// A `scatter clone` that can be cancelled.
pub(super) struct UnderWay {
    request: PathBuf,
    cancel: Arc<AtomicBool>,
    _lock: File,
}

impl UnderWay {
    pub(super) fn begin(plan_file: &Path) -> Outcome<Self> {
        let lock = File::open(plan_file).or_exit(Exit::Input)?;
        // `scatter cancel` holds it for a moment when it looks.
        lock.lock_shared().or_exit(Exit::System)?;
        let request = request(plan_file);
        // A word to an earlier process.
        let _ = std::fs::remove_file(&request);
        Ok(Self { request, cancel: Arc::default(), _lock: lock })
    }

    /// Set once it is to be cancelled.
    pub(super) fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.cancel)
    }

    /// Looks whether it is to be cancelled.
    pub(super) fn look(&self) -> bool {
        if self.request.exists() {
            self.cancel.store(true, Ordering::Relaxed);
        }
        self.cancel.load(Ordering::Relaxed)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if self.cancel.load(Ordering::Relaxed) {
            let _ = std::fs::remove_file(&self.request);
        }
    }
}
