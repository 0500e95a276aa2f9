//! Cloud Hypervisor's snapshot as files: two that are small and opaque, and the memory.

use super::CloudHypervisorError;
use pages::PAGE_SIZE;
use std::path::{Path, PathBuf};

/// Longest of the small files; they have some hundred KiB.
const SMALL_BYTES_MAX: u64 = 64 << 20;
const CONFIG: &str = "config.json";
const STATE: &str = "state.json";
const MEMORY: &str = "memory-ranges";

/// A snapshot's folder. Its memory is a raw image ([`ImageFormat::Raw`](crate::ImageFormat::Raw)), the other two go beside it.
#[derive(Clone, Debug)]
pub struct SnapshotDir {
    /// The VM's configuration, JSON.
    pub config: Vec<u8>,
    /// Its devices' and CPUs' state, JSON.
    pub state: Vec<u8>,
    /// The file with all ranges of its memory, one after the other.
    pub memory: PathBuf,
}

impl SnapshotDir {
    /// Reads what Cloud Hypervisor wrote (`vm.snapshot`), and checks that it is whole.
    ///
    /// # Errors
    ///
    /// A file is missing, too long, no JSON, or the memory is no whole number of pages.
    pub fn open(dir: &Path) -> Result<Self, CloudHypervisorError> {
        let small = |name: &str| {
            let path = dir.join(name);
            let file = |action| {
                let path = path.clone();
                move |source| CloudHypervisorError::File { path, action, source }
            };
            if std::fs::metadata(&path).map_err(file("inspect it"))?.len() > SMALL_BYTES_MAX {
                return Err(file("take it, as it is too long")(std::io::ErrorKind::FileTooLarge.into()));
            }
            let bytes = std::fs::read(&path).map_err(file("read it"))?;
            match serde_json::from_slice::<serde::de::IgnoredAny>(&bytes) {
                Ok(_) => Ok(bytes),
                Err(error) => Err(file("read it as JSON")(error.into())),
            }
        };
        let memory = dir.join(MEMORY);
        let len = std::fs::metadata(&memory)
            .map_err(|source| CloudHypervisorError::File {
                path: memory.clone(),
                action: "inspect it",
                source,
            })?
            .len();
        if len == 0 || !len.is_multiple_of(PAGE_SIZE as u64) {
            let source = std::io::ErrorKind::InvalidData.into();
            let action = "take it, as it is no whole number of pages";
            return Err(CloudHypervisorError::File { path: memory, action, source });
        }
        Ok(Self { config: small(CONFIG)?, state: small(STATE)?, memory })
    }

    /// Writes the two small files beside a memory file that stands in `dir` under [`memory_name`](Self::memory_name) already: then
    /// the folder is one that Cloud Hypervisor restores.
    ///
    /// # Errors
    ///
    /// They cannot be written, or what is there is no snapshot then.
    pub fn complete(dir: &Path, config: &[u8], state: &[u8]) -> Result<Self, CloudHypervisorError> {
        for (name, bytes) in [(CONFIG, config), (STATE, state)] {
            let path = dir.join(name);
            std::fs::write(&path, bytes).map_err(|source| CloudHypervisorError::File {
                path,
                action: "write it",
                source,
            })?;
        }
        Self::open(dir)
    }

    /// What the memory's file is called.
    #[must_use]
    pub const fn memory_name() -> &'static str {
        MEMORY
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_taken_whole_or_refused_by_name() {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::write(dir.path().join(SnapshotDir::memory_name()), [1; 8192]).expect("written");
        let error = SnapshotDir::open(dir.path()).expect_err("half of it");
        assert!(error.to_string().contains(CONFIG), "{error}");
        let error = SnapshotDir::complete(dir.path(), b"{}", b"{\"half\":").expect_err("no JSON");
        assert!(error.to_string().contains(STATE), "{error}");
        let whole = SnapshotDir::complete(dir.path(), b"{\"a\":1}", b"[]").expect("whole");
        assert_eq!((whole.config.as_slice(), whole.state.as_slice()), (&b"{\"a\":1}"[..], &b"[]"[..]));
        std::fs::write(&whole.memory, [1; 5000]).expect("written");
        assert!(SnapshotDir::open(dir.path()).is_err());
    }
}
