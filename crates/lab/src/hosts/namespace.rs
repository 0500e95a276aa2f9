//! Entering a network namespace: with a thread of this process, or with a child.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::LabError;

/// Where iproute2 keeps named namespaces.
pub(super) const NAMESPACES: &str = "/run/netns";

/// Where system programs are; a user's PATH need not have these.
const SYSTEM_PATHS: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];

/// Finds a program in PATH and in the system's own places.
pub(super) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(SYSTEM_PATHS.iter().map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
}

/// A command for a program that need not be in PATH.
pub(super) fn command(program: &str) -> Command {
    match find_program(program).filter(|_| !program.contains('/')) {
        Some(found) => Command::new(found),
        None => Command::new(program),
    }
}

/// Runs a command with `input` on its standard input and returns what it printed.
pub(super) fn output(mut command: Command, input: &str) -> Result<String, LabError> {
    let described = || format!("{command:?}").replace('"', "");
    let name = described();
    let fail = |source| LabError::system(format!("run {name}"), source);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(fail)?;
    let written = child.stdin.take().expect("piped just before").write_all(input.as_bytes());
    let Output { status, stdout, stderr } = child.wait_with_output().map_err(fail)?;
    if !status.success() {
        let message = String::from_utf8_lossy(&stderr).trim().to_owned();
        return Err(LabError::Command { command: name, status: status.to_string(), message });
    }
    // A command that fails closes its input early; its own words, above, say more than a broken pipe does.
    written.map_err(fail)?;
    Ok(String::from_utf8_lossy(&stdout).into_owned())
}

/// A named network namespace. Kept open, so that it can be entered until the end, whatever happens to its name.
#[derive(Clone, Debug)]
pub(super) struct Namespace {
    name: String,
    file: Arc<OwnedFd>,
}

impl Namespace {
    pub(super) fn open(name: &str) -> Result<Self, LabError> {
        let path = Path::new(NAMESPACES).join(name);
        let file = File::open(&path).map_err(|source| LabError::File { action: "open", path, source })?;
        Ok(Self { name: name.to_owned(), file: Arc::new(file.into()) })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// A command that runs its program in this namespace, with a `/sys` that shows it where that is allowed.
    pub(super) fn command(&self, program: &str) -> Command {
        let mut command = command(program);
        let file = Arc::clone(&self.file);
        let enter = move || {
            setns(file.as_ref(), CloneFlags::CLONE_NEWNET)?;
            // /sys/class/net shows the namespace of whoever mounted /sys. A mount namespace of the child's own
            // keeps the new mount to it. Not vital: without it, programs that read /sys see the host's interfaces.
            if unshare(CloneFlags::CLONE_NEWNS).is_ok()
                && mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)
                    .is_ok()
            {
                let _ = mount(Some("lab"), "/sys", Some("sysfs"), MsFlags::empty(), None::<&str>);
            }
            Ok(())
        };
        // SAFETY: the closure runs between fork and exec of a possibly threaded process, so it must be
        // async-signal-safe. It makes only the system calls setns, unshare and mount; nix turns these short
        // constant paths into C strings on the stack, so nothing is allocated and no lock is taken. The
        // descriptor that it uses stays open as the closure owns a reference.
        unsafe { command.pre_exec(enter) };
        command
    }

    /// Runs `action` on a thread of its own in this namespace and returns its result. Sockets that it makes belong
    /// to the namespace for good; threads that it starts begin there. A panic is passed on.
    pub(super) fn run<T: Send>(&self, action: impl FnOnce() -> T + Send) -> io::Result<T> {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(self.file.as_ref(), CloneFlags::CLONE_NEWNET)?;
                Ok(action())
            });
            match inside.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Starts a thread in this namespace.
    pub(super) fn spawn<T: Send + 'static>(
        &self,
        action: impl FnOnce() -> T + Send + 'static,
    ) -> std::thread::JoinHandle<io::Result<T>> {
        let file = Arc::clone(&self.file);
        std::thread::spawn(move || {
            setns(file.as_ref(), CloneFlags::CLONE_NEWNET)?;
            Ok(action())
        })
    }
}

/// Kills the processes, other than this one, whose main thread is in one of the namespaces; returns how many.
pub(super) fn kill_processes_in(names: &[String]) -> usize {
    let identity = |path: &Path| std::fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    let ours: Vec<_> = names.iter().filter_map(|name| identity(&Path::new(NAMESPACES).join(name))).collect();
    let Ok(processes) = std::fs::read_dir("/proc") else { return 0 };
    let mut killed = 0;
    for process in processes.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let is_inside = identity(&process.path().join("ns/net")).is_some_and(|id| ours.contains(&id));
        if is_inside
            && u32::try_from(pid) != Ok(std::process::id())
            && kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok()
        {
            killed += 1;
        }
    }
    killed
}
