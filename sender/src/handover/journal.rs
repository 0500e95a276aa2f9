//! What survives the source's process: where a leaving VM is, and whether it was handed over.
//!
//! ```text
//! DIR/<vm>.leaving      JSON: its monitor, its host, the files with its pages      before anything of it is taken
//! DIR/<vm>.handed-over  JSON: its host                                             the decision
//! ```
//!
//! Each is written beside its name, synced, renamed, and its directory synced: it is there whole or not at all.

use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// What is to be known of a leaving VM by whoever comes after this process.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Leaving {
    /// Its name.
    pub vm: String,
    /// The host that gets it.
    pub host: String,
    /// Its hypervisor's monitor.
    pub monitor: PathBuf,
}

/// Why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("hand-over journal: cannot {action} {path}")]
pub struct JournalError {
    /// What was tried.
    pub action: &'static str,
    /// On what.
    pub path: PathBuf,
    /// Why not.
    #[source]
    pub source: io::Error,
}

/// See the module's text.
#[derive(Clone, Debug)]
pub struct Journal {
    dir: PathBuf,
}

impl Journal {
    /// The journal of one transfer, whose directory is made.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn open(dir: &Path) -> Result<Self, JournalError> {
        std::fs::create_dir_all(dir).map_err(failed("make", dir))?;
        Ok(Self { dir: dir.to_owned() })
    }

    fn leaving(&self, vm: &str) -> PathBuf {
        self.dir.join(format!("{vm}.leaving"))
    }

    fn decision(&self, vm: &str) -> PathBuf {
        self.dir.join(format!("{vm}.handed-over"))
    }

    /// Notes that a VM is to leave.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn begin(&self, leaving: &Leaving) -> Result<(), JournalError> {
        self.write(&self.leaving(&leaving.vm), leaving)
    }

    /// Decides: from now on the VM is its host's. An error means that it surely is not, and `None` that nobody knows, since
    /// the disk neither took the decision for good nor forgot it: then the VM must neither be handed over nor resumed.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn decide(&self, leaving: &Leaving) -> Result<Option<()>, JournalError> {
        let path = self.decision(&leaving.vm);
        match self.write(&path, leaving) {
            Ok(()) => Ok(Some(())),
            Err(error) if !path.exists() => Err(error),
            // Renamed, but not known to stay so.
            Err(error) => match std::fs::remove_file(&path).and_then(|()| sync(&self.dir)) {
                Ok(()) => Err(error),
                Err(_) => Ok(None),
            },
        }
    }

    /// Whether a VM was handed over.
    #[must_use]
    pub fn is_decided(&self, vm: &str) -> bool {
        self.decision(vm).exists()
    }

    /// What an earlier process left of a VM.
    ///
    /// # Errors
    /// [`JournalError`], for a file that cannot be read, or is none of these.
    pub fn find(&self, vm: &str) -> Result<Option<Leaving>, JournalError> {
        let path = self.leaving(vm);
        let bytes = match std::fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            bytes => bytes.map_err(failed("read", &path))?,
        };
        let found = serde_json::from_slice(&bytes);
        found.map(Some).map_err(|error| failed("understand", &path)(error.into()))
    }

    /// Forgets a VM: it stays, or is gone for good.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn forget(&self, vm: &str) -> Result<(), JournalError> {
        // The decision last: a VM that was handed over must not be taken for one that was not.
        for path in [self.leaving(vm), self.decision(vm)] {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failed("remove", &path)(error));
                }
                _ => {}
            }
        }
        sync(&self.dir).map_err(failed("sync", &self.dir))
    }

    fn write(&self, path: &Path, what: &Leaving) -> Result<(), JournalError> {
        let bytes = serde_json::to_vec(what).map_err(|error| failed("write", path)(error.into()))?;
        let beside = path.with_extension("new");
        let written = File::create(&beside).and_then(|mut file| {
            file.write_all(&bytes)?;
            file.sync_all()
        });
        written.map_err(failed("write", &beside))?;
        std::fs::rename(&beside, path).map_err(failed("rename to", path))?;
        sync(&self.dir).map_err(failed("sync", &self.dir))
    }
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn failed(action: &'static str, path: &Path) -> impl Fn(io::Error) -> JournalError {
    let path = path.to_owned();
    move |source| JournalError { action, path: path.clone(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decision_is_there_whole_or_not_at_all_and_is_forgotten_last() {
        let dir = tempfile::tempdir().expect("a directory");
        let journal = Journal::open(&dir.path().join("t")).expect("made");
        let leaving = Leaving { vm: "db".into(), host: "h1".into(), monitor: "/run/db.sock".into() };
        assert_eq!(journal.find("db").expect("readable"), None);
        journal.begin(&leaving).expect("room");
        assert!(!journal.is_decided("db"));
        assert_eq!(journal.find("db").expect("readable"), Some(leaving.clone()));
        journal.decide(&leaving).expect("room").expect("known");
        assert!(journal.is_decided("db"));
        journal.forget("db").expect("removed");
        assert!(!journal.is_decided("db") && journal.find("db").expect("readable").is_none());
        // No room for the decision: something stands in its way.
        std::fs::create_dir(dir.path().join("t/db.new")).expect("made");
        assert!(journal.decide(&leaving).is_err());
        assert!(!journal.is_decided("db"));
    }
}
