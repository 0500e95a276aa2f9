//! The source: a running VM's snapshot, and what a diff snapshot changes.

use super::{Api, FirecrackerError, SnapshotKind, fingerprint};
use nix::unistd::{Whence, lseek};
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Names of a snapshot's files in its folder.
pub const VMSTATE: &str = "vmstate";
/// The memory file.
pub const MEMORY: &str = "memory";

/// A snapshot on this machine.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Device and CPU state, opaque.
    pub vmstate: PathBuf,
    /// Memory: all regions one after the other.
    pub memory: PathBuf,
    /// Whether `memory` is whole or has only what changed.
    pub kind: SnapshotKind,
    /// What can restore it.
    pub fingerprint: String,
    /// How long the vCPUs stood still.
    pub downtime: Duration,
}

/// Pauses a running VM, writes a snapshot of it into a folder (on a tmpfs: Firecracker writes and syncs the whole memory
/// while the VM stands), and lets it run on, also if writing failed. With `stay_paused` it is not resumed after
/// a snapshot that succeeded, as for a VM that is to move.
///
/// # Errors
///
/// Firecracker refuses a step; if it then also cannot be resumed, the error says so.
pub fn capture(
    api: &Api,
    kind: SnapshotKind,
    dir: &Path,
    stay_paused: bool,
) -> Result<Snapshot, FirecrackerError> {
    let version = api.version()?;
    let (vmstate, memory) = (dir.join(VMSTATE), dir.join(MEMORY));
    let since = Instant::now();
    api.pause()?;
    let created = api.create_snapshot(kind, &vmstate, &memory);
    if created.is_err() || !stay_paused {
        match (&created, api.resume()) {
            (_, Ok(())) => {}
            (Ok(()), Err(error)) => return Err(error),
            (Err(first), Err(then)) => {
                return Err(FirecrackerError::LeftPaused {
                    first: first.to_string(),
                    source: Box::new(then),
                });
            }
        }
    }
    let downtime = since.elapsed();
    created?;
    Ok(Snapshot { vmstate, memory, kind, fingerprint: fingerprint(&version), downtime })
}

/// Writes what a diff snapshot's memory holds over a copy of the memory it is based on. Never over a file that a running VM
/// has mapped: its clean pages would change under it.
///
/// Returns the bytes written.
///
/// # Errors
///
/// The files differ in length, or cannot be read or written.
pub fn merge_diff(diff: &Path, onto: &Path) -> Result<u64, FirecrackerError> {
    let io = |action| move |source| FirecrackerError::Merge { diff: diff.to_owned(), action, source };
    let mut source = File::open(diff).map_err(io("open"))?;
    let mut target = File::options().write(true).open(onto).map_err(io("open the base of"))?;
    let len = source.metadata().map_err(io("inspect"))?.len();
    if target.metadata().map_err(io("inspect the base of"))?.len() != len {
        return Err(io("merge, as its base has another length:")(io::ErrorKind::InvalidInput.into()));
    }
    let (mut at, mut written) = (0i64, 0);
    loop {
        let data = match lseek(&source, at, Whence::SeekData) {
            Ok(data) => data,
            // No data after this place.
            Err(nix::Error::ENXIO) => break,
            Err(error) => return Err(io("read")(error.into())),
        };
        let hole = lseek(&source, data, Whence::SeekHole).map_err(|error| io("read")(error.into()))?;
        let (from, bytes) = (data.cast_unsigned(), (hole - data).cast_unsigned());
        source.seek(SeekFrom::Start(from)).map_err(io("read"))?;
        target.seek(SeekFrom::Start(from)).map_err(io("write the base of"))?;
        let copied = io::copy(&mut io::Read::take(&source, bytes), &mut target).map_err(io("copy"))?;
        written += copied;
        at = hole;
    }
    target.sync_data().map_err(io("write the base of"))?;
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn a_diff_changes_what_it_holds_and_nothing_else() {
        let dir = tempfile::tempdir().expect("a folder");
        let (base, diff) = (dir.path().join("base"), dir.path().join("diff"));
        std::fs::write(&base, vec![7; 1 << 20]).expect("written");
        let file = File::create(&diff).expect("made");
        file.set_len(1 << 20).expect("sized");
        file.write_all_at(&[9; 4096], 8192).expect("written");
        // Zeros that are written are data, and holes are none.
        file.write_all_at(&[0; 4096], 64 << 10).expect("written");
        file.write_all_at(&[5; 4096], (1 << 20) - 4096).expect("written");
        let written = merge_diff(&diff, &base).expect("merged");
        assert!((3 * 4096..1 << 19).contains(&written), "{written}");
        let merged = std::fs::read(&base).expect("read");
        for (page, bytes) in merged.chunks(4096).enumerate() {
            let right = match page {
                2 => 9,
                16 => 0,
                255 => 5,
                _ => 7,
            };
            assert_eq!(bytes, [right; 4096], "page {page}");
        }
        std::fs::write(&diff, [1; 10]).expect("written");
        assert!(merge_diff(&diff, &base).is_err());
    }
}
