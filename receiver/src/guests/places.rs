//! Where clones that run in processes of their own have their sockets, state files and logs.

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Longest name of a clone's folder; it is also what VMMs take as an id.
const NAME_BYTES_MAX: usize = 48;
/// Folders of clones of the same name, of earlier runs, that are stepped over.
const SAME_NAME_MAX: u32 = 1_000;
/// Bytes of a unix socket's address (`sun_path`, unix(7)), its last zero counted.
const SOCKET_PATH_MAX: usize = 108;
/// Longest name of a socket in a clone's folder.
const LONGEST_SOCKET: &str = "migration.sock";

/// A folder with one for each clone.
#[derive(Debug)]
pub(super) struct Places {
    root: PathBuf,
    /// Which slots are taken.
    slots: Mutex<Vec<bool>>,
}

/// A clone's own folder, empty at first, and its slot.
#[derive(Debug)]
pub(super) struct Place<'a> {
    places: &'a Places,
    /// The folder.
    pub(super) dir: PathBuf,
    /// The folder's name: letters, digits and `-`.
    pub(super) id: String,
    /// Differs between all clones that run at a time, and is as small as can be.
    pub(super) slot: usize,
}

impl Places {
    /// Makes the folder if need be.
    ///
    /// # Errors
    /// In words.
    pub(super) fn new(root: &Path) -> Result<Self, String> {
        let failed = |error: io::Error| format!("cannot make the clones' folder {}: {error}", root.display());
        let root = std::path::absolute(root).map_err(failed)?;
        let longest = root.as_os_str().len() + 1 + NAME_BYTES_MAX + 5 + 1 + LONGEST_SOCKET.len();
        if longest >= SOCKET_PATH_MAX {
            return Err(format!(
                "the path of the clones' folder {} is too long for sockets in it: name a shorter one by `--clones`",
                root.display()
            ));
        }
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&root).map_err(failed)?;
        Ok(Self { root, slots: Mutex::default() })
    }

    /// A new folder for a clone, whatever its sender calls it. State in it is the owner's alone.
    ///
    /// # Errors
    /// In words.
    pub(super) fn take(&self, name: &str) -> Result<Place<'_>, String> {
        let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
        let base: String = name.chars().map(plain).take(NAME_BYTES_MAX).collect();
        for count in 1..=SAME_NAME_MAX {
            let id = if count == 1 { base.clone() } else { format!("{base}-{count}") };
            let dir = self.root.join(&id);
            match std::fs::DirBuilder::new().mode(0o700).create(&dir) {
                Ok(()) => return Ok(Place { places: self, dir, id, slot: self.take_slot() }),
                // A clone of an earlier run, which may be alive, or has left its log.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(format!("cannot make the folder {}: {error}", dir.display())),
            }
        }
        Err(format!(
            "{} folders of clones called {base} are in {}: remove old ones",
            SAME_NAME_MAX,
            self.root.display()
        ))
    }

    fn take_slot(&self) -> usize {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let free = slots.iter().position(|taken| !taken).unwrap_or(slots.len());
        if free == slots.len() {
            slots.push(true);
        }
        slots[free] = true;
        free
    }
}

impl Place<'_> {
    /// Writes a file of the clone's.
    ///
    /// # Errors
    /// In words.
    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> Result<PathBuf, String> {
        let path = self.dir.join(name);
        std::fs::write(&path, bytes).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        Ok(path)
    }

    /// The last lines of a log in the folder, for messages.
    pub(super) fn last_words(&self, log: &str) -> String {
        let text = std::fs::read(self.dir.join(log)).unwrap_or_default();
        let tail = String::from_utf8_lossy(&text[text.len().saturating_sub(2_000)..]).into_owned();
        let mut last: Vec<&str> = tail.lines().rev().filter(|line| !line.is_empty()).take(3).collect();
        last.reverse();
        last.join(" | ")
    }

    /// Removes the folder: nothing of the clone is left that anybody would look at.
    pub(super) fn remove(self) {
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            tracing::warn!(dir = %self.dir.display(), %error, "cannot remove a clone's folder");
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.places.slots.lock().unwrap_or_else(PoisonError::into_inner)[self.slot] = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_clone_has_a_folder_and_a_slot_of_its_own_whatever_it_is_called() {
        let root = tempfile::tempdir().expect("a folder");
        let places = Places::new(&root.path().join("clones")).expect("made");
        let first = places.take("../web/h1 1").expect("a folder");
        let second = places.take("../web/h1 1").expect("another");
        assert_eq!((first.id.as_str(), first.slot), ("---web-h1-1", 0));
        assert_eq!((second.id.as_str(), second.slot), ("---web-h1-1-2", 1));
        assert_eq!(first.dir.parent(), second.dir.parent());
        first.write("log", b"one\n\ntwo\nthree\nfour\n").expect("written");
        assert_eq!(first.last_words("log"), "two | three | four");
        first.remove();
        let third = places.take(&"x".repeat(300)).expect("a folder");
        assert_eq!((third.id.len(), third.slot), (NAME_BYTES_MAX, 0));
        let long = Places::new(&root.path().join("y".repeat(100))).expect_err("too long");
        assert!(long.contains("--clones"), "{long}");
    }
}
