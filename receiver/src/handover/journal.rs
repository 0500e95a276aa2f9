//! What survives the host's process: which VMs were handed over to it, and where their hypervisors are.
//!
//! `STORE/.scatter/<transfer>.<vm>.running`, JSON, is written beside its name (`.undecided`), synced, renamed, and its directory synced.

use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The extension of what is being decided.
const UNDECIDED: &str = "undecided";

/// A VM that was handed over to this host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Taken {
    /// Its name.
    pub vm: String,
    /// How to reach its hypervisor: for QEMU, its monitor.
    pub monitor: String,
}

/// See the module's text.
#[derive(Clone, Debug)]
pub struct Journal {
    dir: PathBuf,
}

impl Journal {
    /// The journal in this directory, which exists.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    fn path(&self, transfer: &str, vm: &str) -> PathBuf {
        self.dir.join(format!("{transfer}.{vm}.running"))
    }

    /// The VM is this host's from now on. Its hypervisor must outlive this process once that is noted, and must not before it can be
    /// found again: `outlive` sees to that in between.
    ///
    /// # Errors
    /// The system's; then it may or may not be noted, and must not be started before this succeeds.
    pub fn decide(&self, transfer: &str, taken: &Taken, outlive: impl FnOnce()) -> io::Result<()> {
        let path = self.path(transfer, &taken.vm);
        let beside = path.with_extension(UNDECIDED);
        let mut file = File::create(&beside)?;
        file.write_all(&serde_json::to_vec(taken)?)?;
        file.sync_all()?;
        outlive();
        std::fs::rename(&beside, &path)?;
        File::open(&self.dir)?.sync_all()
    }

    /// What was decided of a VM.
    ///
    /// # Errors
    /// The system's, or a file that is none of these.
    pub fn find(&self, transfer: &str, vm: &str) -> io::Result<Option<Taken>> {
        match std::fs::read(self.path(transfer, vm)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            bytes => Ok(Some(serde_json::from_slice(&bytes?)?)),
        }
    }

    /// What an earlier process left in the middle of deciding: hypervisors that stand, or are gone. To be asked before any VM is taken.
    ///
    /// # Errors
    /// The system's.
    pub fn undecided(&self) -> io::Result<Vec<Taken>> {
        let mut left = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == UNDECIDED) {
                // One that was not written whole: its hypervisor ended with its process.
                left.extend(std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()));
            }
        }
        Ok(left)
    }

    /// Forgets what was left in the middle of deciding.
    ///
    /// # Errors
    /// The system's.
    pub fn forget_undecided(&self) -> io::Result<()> {
        for entry in std::fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if path.is_file() && path.extension().is_some_and(|extension| extension == UNDECIDED) {
                std::fs::remove_file(&path)?;
            }
        }
        Ok(())
    }

    /// Forgets a VM whose source needs to know nothing of it any more.
    ///
    /// # Errors
    /// The system's.
    pub fn forget(&self, transfer: &str, vm: &str) -> io::Result<()> {
        match std::fs::remove_file(self.path(transfer, vm)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => File::open(&self.dir)?.sync_all(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_decided_is_found_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let journal = Journal::new(dir.path());
        let taken = Taken { vm: "db".into(), monitor: "/run/x.sock".into() };
        assert_eq!(journal.find("t", "db").expect("readable"), None);
        let mut outlives = false;
        let outlive = || {
            assert_eq!(journal.find("t", "db").expect("readable"), None, "not decided yet");
            assert_eq!(journal.undecided().expect("readable"), std::slice::from_ref(&taken));
            outlives = true;
        };
        journal.decide("t", &taken, outlive).expect("room");
        assert!(outlives && journal.undecided().expect("readable").is_empty());
        assert_eq!(journal.find("t", "db").expect("readable"), Some(taken.clone()));
        assert_eq!(journal.find("other", "db").expect("readable"), None);
        journal.forget("t", "db").expect("removed");
        journal.forget("t", "db").expect("gone already");
        assert_eq!(journal.find("t", "db").expect("readable"), None);
        std::fs::create_dir(dir.path().join("t.db.undecided")).expect("made");
        let outlive = || panic!("it cannot be found again");
        assert!(journal.decide("t", &taken, outlive).is_err(), "no room");
        journal.forget_undecided().expect("a directory is none of ours");
    }
}
