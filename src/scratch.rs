//! Where memory is put for a while. Folders for what a command keeps only while it runs, as captured memory: one whose process was killed
//! is removed by the next that makes such a folder beside it, on a tmpfs, where locks are what all who see it go by.

use crate::cli::exit::{Coded, Exit, Failure, Outcome};
use anyhow::Context;
use nix::fcntl::OFlag;
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use nix::unistd::geteuid;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use tempfile::TempDir;

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
    pub(crate) fn new(beside: &Path, prefix: &str) -> io::Result<Self> {
        sweep(beside, prefix);
        loop {
            let dir = tempfile::Builder::new().prefix(prefix).tempdir_in(beside)?;
            match locked(dir.path()) {
                Ok(lock) => return Ok(Self { dir, _lock: lock }),
                // Another command swept it before it was locked.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }
}

/// A folder, locked, under its name.
fn locked(path: &Path) -> io::Result<File> {
    let lock = open(path)?;
    lock.lock()?;
    let (held, named) = (lock.metadata()?, std::fs::metadata(path)?);
    let same = (held.dev(), held.ino()) == (named.dev(), named.ino());
    if same { Ok(lock) } else { Err(ErrorKind::NotFound.into()) }
}

fn open(dir: &Path) -> io::Result<File> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
    File::options().read(true).custom_flags(flags.bits()).open(dir)
}

fn is_on_tmpfs(path: &Path) -> nix::Result<bool> {
    statfs(path).map(|system| system.filesystem_type() == TMPFS_MAGIC)
}

/// Fails if a VM cannot run from memory at this place, which is on another file system. `what` is refused then.
pub(crate) fn on_tmpfs(what: &str, path: &Path, way_out: &str) -> Outcome<()> {
    let words = || format!("{what}: cannot look at {}", path.display());
    if is_on_tmpfs(path).with_context(words).or_exit(Exit::Input)? {
        return Ok(());
    }
    let message = format!("{what}: {} is not on a tmpfs, from which a VM can run: {way_out}", path.display());
    Err(Failure::new(Exit::Input, message))
}

/// Removes what this user's commands left and nobody holds any more.
fn sweep(beside: &Path, prefix: &str) {
    if !is_on_tmpfs(beside).unwrap_or(false) {
        return;
    }
    for entry in std::fs::read_dir(beside).into_iter().flatten().flatten() {
        let ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(prefix));
        if !ours || !entry.metadata().is_ok_and(|of| of.is_dir() && of.uid() == geteuid().as_raw()) {
            continue;
        }
        let path = entry.path();
        // Held until it is removed, so that nobody else does.
        let Ok(dir) = open(&path) else { continue };
        if dir.try_lock().is_err() {
            continue;
        }
        match std::fs::remove_dir_all(&path) {
            Ok(()) => eprintln!("scatter: removed {}, which a killed command had left", path.display()),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => eprintln!("scatter: warning: cannot remove {}: {error}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_command_left_is_removed_and_what_lives_is_not() {
        let base = tempfile::tempdir_in("/dev/shm").expect("a folder");
        let living = Scratch::new(base.path(), "work-").expect("a folder");
        for name in ["work-left", "other-left"] {
            std::fs::create_dir(base.path().join(name)).expect("a folder");
            std::fs::write(base.path().join(name).join("memory"), "left").expect("written");
        }
        std::fs::write(base.path().join("work-file"), "no folder").expect("written");
        let next = Scratch::new(base.path(), "work-").expect("a folder");
        let there = |name: &str| base.path().join(name).exists();
        assert_eq!((there("work-left"), there("work-file"), there("other-left")), (false, true, true));
        assert!(living.path().exists());
        let path = next.path().to_owned();
        drop(next);
        assert!(!path.exists() && living.path().exists());
    }

    #[test]
    fn a_folder_that_was_swept_before_it_was_locked_is_none() {
        let base = tempfile::tempdir_in("/dev/shm").expect("a folder");
        let path = base.path().join("one");
        std::fs::create_dir(&path).expect("a folder");
        let sweeper = open(&path).expect("there");
        sweeper.try_lock().expect("nobody has it");
        let owner = std::thread::spawn({
            let path = path.clone();
            move || locked(&path).map(drop)
        });
        std::thread::sleep(std::time::Duration::from_millis(50));
        std::fs::remove_dir(&path).expect("empty");
        drop(sweeper);
        let error = owner.join().expect("it ended").expect_err("it is gone");
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }
}
