//! Where clones that run in processes of their own have their sockets, state files and logs.

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Longest name of a clone's folder; it is also what VMMs take as an id.
const NAME_BYTES_MAX: usize = 48;
/// And the shortest that would still tell clones apart.
const NAME_BYTES_MIN: usize = 8;
/// What tells clones of the same name apart: `-` and digits.
const SUFFIX_BYTES_MAX: usize = 5;
/// Folders of clones of the same name, of earlier runs, that are stepped over.
const SAME_NAME_MAX: u32 = 1_000;
/// Bytes of a unix socket's address (`sun_path`, unix(7)), its last zero counted.
const SOCKET_PATH_MAX: usize = 108;
/// Longest name of a socket in a clone's folder.
const LONGEST_SOCKET: &str = "migration.sock";

/// Longest name of a network device (`IFNAMSIZ`, netdevice(7)), its last zero not counted.
const DEVICE_NAME_MAX: usize = 15;

/// A folder with one for each clone.
#[derive(Debug)]
pub(super) struct Places {
    root: PathBuf,
    /// Longest name, before a suffix.
    name_bytes: usize,
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
        // The folder, a name, its suffix, a socket, two slashes and the last zero.
        let beside = root.as_os_str().len() + SUFFIX_BYTES_MAX + LONGEST_SOCKET.len() + 3;
        let name_bytes = SOCKET_PATH_MAX.saturating_sub(beside).min(NAME_BYTES_MAX);
        if name_bytes < NAME_BYTES_MIN {
            return Err(format!(
                "the path of the clones' folder {} is too long for sockets in it: name a shorter one (`--clones`, `--capture-dir`)",
                root.display()
            ));
        }
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&root).map_err(failed)?;
        Ok(Self { root, name_bytes, slots: Mutex::default() })
    }

    /// The folder that has the clones'.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// A new folder for a clone, whatever its sender calls it. State in it is the owner's alone.
    ///
    /// # Errors
    /// In words.
    pub(super) fn take(&self, name: &str) -> Result<Place<'_>, String> {
        let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
        let base: String = name.chars().map(plain).take(self.name_bytes).collect();
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

    /// The clone's device for an interface: `{slot}` and `{iface}` in the host's template become its slot and the interface's id.
    ///
    /// # Errors
    /// In words: the name is too long.
    pub(super) fn tap(&self, template: &str, iface: &str) -> Result<String, String> {
        let name = template.replace("{slot}", &self.slot.to_string()).replace("{iface}", iface);
        if name.len() > DEVICE_NAME_MAX {
            return Err(format!("`{name}` is too long for a network device's name: `--tap` must be shorter"));
        }
        Ok(name)
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
        assert_eq!(second.tap("fc{slot}-{iface}", "eth0").expect("short"), "fc1-eth0");
        assert!(second.tap("a-very-long-{iface}", "eth0").is_err_and(|words| words.contains("--tap")));
        first.write("log", b"one\n\ntwo\nthree\nfour\n").expect("written");
        assert_eq!(first.last_words("log"), "two | three | four");
        first.remove();
        let third = places.take(&"x".repeat(300)).expect("a folder");
        assert_eq!((third.id.len(), third.slot), (places.name_bytes, 0));
        assert!(third.dir.join(LONGEST_SOCKET).as_os_str().len() < SOCKET_PATH_MAX);
        let long = Places::new(&root.path().join("y".repeat(100))).expect_err("too long");
        assert!(long.contains("--clones"), "{long}");
    }
}
