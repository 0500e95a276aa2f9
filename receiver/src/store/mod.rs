//! The images of a host's VMs on disk: placing verified blocks, resuming after an interruption.
//!
//! ```text
//! STORE/<vm>.ram              a finished image, byte-identical to its source
//! STORE/<vm>.ram.part         an image being received: sparse, of full length from the start
//! STORE/.scatter/lock         locked while a receiver uses the store
//! STORE/.scatter/<t>.journal  what the images of transfer `<t>` hold (`journal`, `record`)
//! ```
//!
//! The promise is that *a guest's memory is never silently wrong*: a finished image equals what the sender announced
//! in the session that finished it, whatever was interrupted, killed or powered off before, and whatever the image was
//! then. `docs/store.md` says why that holds.
//!
//! The way of a block: `Intake::place` (`intake`) checks and orders it (`placement`), claims its pages
//! and kills what they belonged to (`ledger`), writes them (`disk`), appends the record, counts.
//!
//! Start with [`Store::open`] and [`Store::begin`]. Not here: digests are compared by the caller before a block is
//! placed, and which blocks a transfer needs is the sender's affair.

mod begin;
mod checkpoint;
mod claim;
mod disk;
mod error;
mod intake;
mod journal;
mod lazy;
mod ledger;
mod names;
mod own;
mod placement;
mod record;
mod shared;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use nix::libc;
use pages::VmId;

pub use error::StoreError;
pub use intake::{Intake, PlaceStats};
pub(crate) use own::finished_by;

use disk::Disk;
use error::Attempt;

/// Bytes written between two checkpoints: what a power failure can cost at most is this, and what is written while a
/// checkpoint runs.
const CHECKPOINT_BYTES: u64 = 256 << 20;

/// A VM whose image a transfer brings to this host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VmSpec {
    /// Its name: the file is `STORE/<name>.ram`. At most 200 bytes, no path separator or control character, no
    /// leading dot or dash.
    pub name: String,
    /// Length of the image file in bytes.
    pub file_len: u64,
    /// Pages of the image: `file_len` in pages of 4096 bytes, rounded up.
    pub page_count: u32,
    /// Pages that are not uniform: the space needed on disk.
    pub content_pages: u32,
}

/// A directory of images, locked for this process until it and all its intakes are dropped.
pub struct Store {
    root: PathBuf,
    /// `root/.scatter`.
    meta: PathBuf,
    /// Held for its lock, by the intakes too.
    lock: Arc<File>,
    boot_id: String,
    checkpoint_bytes: u64,
    disk: Disk,
    in_use: Arc<Mutex<HashSet<(&'static str, String)>>>,
}

impl Store {
    /// Where this host notes the VMs that were handed over to it.
    #[must_use]
    pub fn hand_overs(&self) -> crate::handover::journal::Journal {
        crate::handover::journal::Journal::new(&self.meta)
    }

    /// Opens the store at `root`, creating the directory if need be, and locks it.
    ///
    /// The lock is advisory (`flock`) and ends with the process, however that ends.
    ///
    /// # Errors
    ///
    /// [`StoreError::Locked`] names the process that has the store; others, a directory that cannot be used.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        // Without a boot id no journal can be trusted beyond its durable part; the empty one never matches.
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self::open_as(root, boot_id.trim(), CHECKPOINT_BYTES, Disk::default())
    }

    fn open_as(root: &Path, boot_id: &str, checkpoint_bytes: u64, disk: Disk) -> Result<Self, StoreError> {
        let meta = root.join(".scatter");
        for dir in [root, &meta] {
            disk::create_dir(dir).map_err(|error| Attempt::on("create this directory", dir).failed(error))?;
        }
        let path = meta.join("lock");
        let attempt = Attempt::on("open this lock file", &path);
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path)
            .map_err(|error| attempt.failed(error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                let _ = (&lock).take(32).read_to_string(&mut text);
                let pid = text.trim().parse().ok();
                return Err(StoreError::Locked { path: root.to_path_buf(), pid });
            }
            Err(TryLockError::Error(error)) => return Err(Attempt::on("lock this file", &path).failed(error)),
        }
        // Only a help for whoever finds the store locked: a full disk must not keep the receiver from resuming.
        let _ = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
        Ok(Self {
            root: root.to_path_buf(),
            meta,
            lock: Arc::new(lock),
            boot_id: boot_id.to_owned(),
            checkpoint_bytes,
            disk,
            in_use: Arc::default(),
        })
    }

    /// The store's directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Prepares to receive `vms` (those of the transfer that this host gets), resuming what an interrupted run of the
    /// same transfer left. `transfer` names it across runs, under the same rules as VM names.
    ///
    /// Images that other, interrupted transfers left unfinished for the same VMs are given up. With `replace`,
    /// finished images of other origin are replaced, at the moment when the new ones are finished.
    ///
    /// # Errors
    ///
    /// Names that cannot be used, an image in the way, too little space, and failures of the file system.
    pub fn begin(&self, transfer: &str, vms: &[(VmId, VmSpec)], replace: bool) -> Result<Intake, StoreError> {
        begin::begin(self, transfer, vms, replace)
    }

    /// Reserves names for one intake.
    fn lease(&self, keys: Vec<(&'static str, String)>) -> Result<Lease, StoreError> {
        let mut in_use = lock_names(&self.in_use);
        if let Some((what, name)) = keys.iter().find(|key| in_use.contains(*key)) {
            return Err(StoreError::Busy { what, name: name.clone() });
        }
        in_use.extend(keys.iter().cloned());
        drop(in_use);
        Ok(Lease { keys, in_use: Arc::clone(&self.in_use), _lock: Arc::clone(&self.lock) })
    }
}

/// Names in use by an intake, and the store's lock, until dropped.
struct Lease {
    keys: Vec<(&'static str, String)>,
    in_use: Arc<Mutex<HashSet<(&'static str, String)>>>,
    _lock: Arc<File>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut in_use = lock_names(&self.in_use);
        for key in &self.keys {
            in_use.remove(key);
        }
    }
}

fn lock_names<T>(names: &Mutex<T>) -> MutexGuard<'_, T> {
    names.lock().expect("nothing panics while it holds the set of names")
}
