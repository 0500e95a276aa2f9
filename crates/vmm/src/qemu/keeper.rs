//! Ending a process with the one that looks after it, however that one dies (`kill -9` included).
//!
//! `PR_SET_PDEATHSIG` (prctl(2)) would not do: it follows the *thread* that forked, and cannot be taken back for a VM that is to
//! live on. So a shell waits at a pipe whose other end only this process has: a word dismisses it, the end of the pipe does not.

use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

/// Reads a line, and kills if there is none.
const SCRIPT: &str = r#"read -r word || kill -9 "$1""#;

/// See the module's text. Dropping it ends the process, too, unless it was dismissed.
#[derive(Debug)]
pub struct Keeper(Mutex<Option<Child>>);

impl Keeper {
    /// Keeps a child of this process. Until it is dismissed the child must not be waited for: its id would be another's.
    pub(super) fn of(kept: &Child) -> io::Result<Self> {
        let shell = Command::new("/bin/sh")
            .args(["-c", SCRIPT, "scatter-keeper", &kept.id().to_string()])
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A signal to our group (as from a terminal) is none for it: it ends after us.
            .process_group(0)
            .spawn()?;
        Ok(Self(Mutex::new(Some(shell))))
    }

    /// From now on the process is not ended with this one.
    pub fn dismiss(&self) {
        if let Some(mut shell) = self.take() {
            // One that is gone (killed, as nothing else ends it) keeps nothing any more.
            if let Some(mut pipe) = shell.stdin.take() {
                let _ = pipe.write_all(b"dismissed\n");
            }
            let _ = shell.wait();
        }
    }

    fn take(&self) -> Option<Child> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if let Some(mut shell) = self.take() {
            // The end of the pipe, as if this process had died; `wait` closes it first.
            let _ = shell.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::time::Duration;

    fn sleeping() -> Child {
        Command::new("sleep").arg("60").spawn().expect("sleep")
    }

    #[test]
    fn what_is_kept_ends_with_its_keeper_and_what_was_dismissed_does_not() {
        let (mut kept, mut dismissed) = (sleeping(), sleeping());
        let keepers = [&kept, &dismissed].map(|child| Keeper::of(child).expect("a shell"));
        keepers[1].dismiss();
        drop(keepers);
        assert_eq!(kept.wait().expect("a child").signal(), Some(9));
        std::thread::sleep(Duration::from_millis(50));
        assert!(dismissed.try_wait().expect("a child").is_none(), "it lives on");
        dismissed.kill().expect("a child");
        dismissed.wait().expect("a child");
    }
}
