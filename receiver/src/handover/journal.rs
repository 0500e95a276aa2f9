//! What survives the host's process: which VMs were handed over to it, and where their hypervisors are.
//!
//! `STORE/.scatter/<transfer>.<vm>.running`, JSON, is written beside its name, synced, renamed, and its directory synced.

use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

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

    /// The VM is this host's from now on.
    ///
    /// # Errors
    /// The system's; then it may or may not be noted, and must not be started before this succeeds.
    pub fn decide(&self, transfer: &str, taken: &Taken) -> io::Result<()> {
        let path = self.path(transfer, &taken.vm);
        let beside = path.with_extension("new");
        let mut file = File::create(&beside)?;
        file.write_all(&serde_json::to_vec(taken)?)?;
        file.sync_all()?;
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
        journal.decide("t", &taken).expect("room");
        assert_eq!(journal.find("t", "db").expect("readable"), Some(taken.clone()));
        assert_eq!(journal.find("other", "db").expect("readable"), None);
        journal.forget("t", "db").expect("removed");
        journal.forget("t", "db").expect("gone already");
        assert_eq!(journal.find("t", "db").expect("readable"), None);
        std::fs::create_dir(dir.path().join("t.db.new")).expect("made");
        assert!(journal.decide("t", &taken).is_err(), "no room");
    }
}
