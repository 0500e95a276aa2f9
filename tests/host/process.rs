//! Children that are watched, signalled, and gone when the test is.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

const GLANCE: Duration = Duration::from_millis(5);

/// A child with a log. Its standard input stays open as long as it is watched.
pub(crate) struct Running {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Running {
    /// Starts `command`; both of its outputs go to `log`.
    pub(crate) fn start(mut command: Command, name: &str, log: PathBuf) -> Self {
        let out = File::create(&log).expect("a log");
        command.stdin(Stdio::piped()).stdout(out.try_clone().expect("a second handle")).stderr(out);
        let child = command.spawn().unwrap_or_else(|error| panic!("{name}: {command:?}: {error}"));
        Self { name: name.to_owned(), child, log }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a process id"));
        kill(pid, signal).unwrap_or_else(|error| panic!("{}: {signal}: {error}", self.name));
    }

    /// Ends it as a crash or the kernel would: without a chance to say or save anything.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("a child of ours");
        self.child.wait().expect("a child of ours");
    }

    /// Its nice value (proc_pid_stat(5), field 19); nothing if it has ended.
    pub(crate) fn nice(&self) -> Option<i32> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).ok()?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(16)?.parse().ok()
    }

    /// Whether it has not ended.
    pub(crate) fn is_alive(&mut self) -> bool {
        self.child.try_wait().expect("a child of ours").is_none()
    }

    /// How it ended; the test fails if it does not in time.
    #[track_caller]
    pub(crate) fn wait(&mut self, patience: Duration) -> ExitStatus {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child of ours") {
                return status;
            }
            assert!(Instant::now() < deadline, "{} did not end in {patience:?}:\n{}", self.name, self.said());
            std::thread::sleep(GLANCE);
        }
    }

    /// Waits until its log has `words`.
    #[track_caller]
    pub(crate) fn await_words(&mut self, words: &str, patience: Duration) {
        let deadline = Instant::now() + patience;
        while !self.said().contains(words) {
            let alive = self.is_alive() && Instant::now() < deadline;
            assert!(alive, "{} never said `{words}`:\n{}", self.name, self.said());
            std::thread::sleep(GLANCE);
        }
    }

    /// Its log so far.
    pub(crate) fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only for a child that was waited for already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
