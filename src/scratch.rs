//! Where memory is put for a while. Folders for what a command keeps only while it runs, as captured memory: one whose process was killed is removed by the next that
//! makes such a folder beside it.

use crate::cli::exit::{Coded, Exit, Failure, Outcome};
use anyhow::Context;
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use std::fs::{File, TryLockError};
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;

/// Younger ones are left alone, as their lock may not be taken yet.
const YOUNG: Duration = Duration::from_secs(60);

/// Gone, with all that is in it, when this is dropped.
pub(crate) struct Scratch {
    dir: TempDir,
    /// For as long as its process lives.
    _lock: File,
}

impl Scratch {
    /// A new folder whose name begins so.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn new(beside: &Path, prefix: &str) -> std::io::Result<Self> {
        sweep(beside, prefix);
        let dir = tempfile::Builder::new().prefix(prefix).tempdir_in(beside)?;
        let lock = File::open(dir.path())?;
        lock.lock()?;
        Ok(Self { dir, _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }
}

/// Fails if a VM cannot run from memory at this place, which is on another file system. `what` is refused then.
pub(crate) fn on_tmpfs(what: &str, path: &Path, way_out: &str) -> Outcome<()> {
    let words = || format!("{what}: cannot look at {}", path.display());
    let system = statfs(path).with_context(words).or_exit(Exit::Input)?.filesystem_type();
    if system == TMPFS_MAGIC {
        return Ok(());
    }
    let message = format!("{what}: {} is not on a tmpfs, from which a VM can run: {way_out}", path.display());
    Err(Failure::new(Exit::Input, message))
}

/// Removes what nobody holds any more. What cannot be looked at is somebody else's.
fn sweep(beside: &Path, prefix: &str) {
    for entry in std::fs::read_dir(beside).into_iter().flatten().flatten() {
        let old = || entry.metadata().ok()?.modified().ok()?.elapsed().ok().filter(|age| *age > YOUNG);
        let ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(prefix));
        if !ours || !entry.file_type().is_ok_and(|kind| kind.is_dir()) || old().is_none() {
            continue;
        }
        let path = entry.path();
        match File::open(&path).map(|dir| dir.try_lock()) {
            Ok(Ok(())) => match std::fs::remove_dir_all(&path) {
                Ok(()) => eprintln!("scatter: removed {}, which a killed process had left", path.display()),
                Err(error) => eprintln!("scatter: warning: cannot remove {}: {error}", path.display()),
            },
            Ok(Err(TryLockError::WouldBlock | TryLockError::Error(_))) | Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    #[test]
    fn what_a_killed_process_left_is_removed_and_what_lives_is_not() {
        let base = tempfile::tempdir().expect("a folder");
        let age = |path: &Path| {
            let long_ago = SystemTime::now() - 2 * YOUNG;
            File::open(path).and_then(|dir| dir.set_modified(long_ago)).expect("its owner may");
        };
        let living = Scratch::new(base.path(), "work-").expect("a folder");
        for name in ["work-left", "work-young", "other-left"] {
            std::fs::create_dir(base.path().join(name)).expect("a folder");
            std::fs::write(base.path().join(name).join("memory"), "left").expect("written");
        }
        ["work-left", "other-left"].iter().for_each(|name| age(&base.path().join(name)));
        age(living.path());
        let next = Scratch::new(base.path(), "work-").expect("a folder");
        let there = |name: &str| base.path().join(name).exists();
        assert_eq!((there("work-left"), there("work-young"), there("other-left")), (false, true, true));
        assert!(living.path().exists());
        let path = next.path().to_owned();
        drop(next);
        assert!(!path.exists());
    }
}
