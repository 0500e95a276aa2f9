//! Starting QEMUs: waiting for a VM to come in, with an identity of their own.

use super::error::QemuError;
use super::keeper::Keeper;
use super::qmp::Qmp;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a QEMU may take to listen on its monitor.
const START_WITHIN: Duration = Duration::from_secs(30);
/// How long one may take to end once its monitor was told to quit.
const QUIT_WITHIN: Duration = Duration::from_secs(5);
/// Bytes of what it said that go into an error.
const OUTPUT_BYTES_MAX: usize = 2000;

/// What a clone does not share with its siblings, and where it comes from.
///
/// | | decided by |
/// |---|---|
/// | `name` | the destination's command line |
/// | `vmgenid` | the destination's command line, if it has `-device vmgenid,guid={vmgenid}`: the guest sees it change |
/// | `disk` | the destination's command line: an overlay over the disk as it was while the source stood |
/// | `mac` | **the stream**: QEMU restores the source's address, whatever the command line says. The guest must take the new one, or each clone needs a network of its own |
/// | UUID (SMBIOS) | the memory: the guest's firmware tables are pages |
///
/// Within the guest remain: machine-id, host keys, leases, the clock, and every secret and random state that was in memory.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Identity {
    /// Unique on its host.
    pub name: String,
    /// A random UUID, in text.
    pub vmgenid: String,
    /// A random, locally administered address, in text.
    pub mac: String,
    /// Its own disk, if it has one.
    pub disk: Option<PathBuf>,
}

impl Identity {
    /// A new identity under this name, without a disk.
    ///
    /// # Errors
    ///
    /// [`QemuError::Io`] if the system has no random bytes.
    pub fn new(name: impl Into<String>) -> Result<Self, QemuError> {
        let mut bytes = [0; 22];
        let random = Path::new("/dev/urandom");
        File::open(random)
            .and_then(|mut file| file.read_exact(&mut bytes))
            .map_err(QemuError::io("read", random))?;
        // RFC 9562: version 4, variant 10. IEEE 802: unicast, locally administered.
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        bytes[16] = bytes[16] & 0xfc | 0x02;
        let hex = |bytes: &[u8], joint: &str| {
            bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(joint)
        };
        let parts = [0..4, 4..6, 6..8, 8..10, 10..16].map(|range| hex(&bytes[range], ""));
        Ok(Self { name: name.into(), vmgenid: parts.join("-"), mac: hex(&bytes[16..22], ":"), disk: None })
    }
}

/// How QEMUs of one kind are started.
///
/// Arguments may name `{name}`, `{vmgenid}`, `{mac}`, `{disk}` and `{dir}`, the clone's own directory; `{{` and `}}` are braces.
/// `-name`, `-qmp` and (for those that wait) `-incoming defer` are added.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Launch {
    /// QEMU, as `qemu-system-x86_64`.
    pub program: PathBuf,
    /// Everything that makes the machine, as the source was started.
    pub args: Vec<String>,
}

/// A running QEMU, which is killed when this is dropped, unless it was [released](Self::release); and when this process
/// dies, unless its [`keeper`](Self::keeper) was dismissed.
#[derive(Debug)]
pub struct Vm {
    /// The process; `None` once it was released.
    child: Option<Child>,
    keeper: Arc<Keeper>,
    program: PathBuf,
    dir: PathBuf,
    /// Its monitor.
    pub qmp: Qmp,
    /// Who it is.
    pub identity: Identity,
}

impl Launch {
    /// A command line with an identity put in.
    ///
    /// # Errors
    ///
    /// [`QemuError::Refused`] for names in braces that are not known, or for `{disk}` without a disk.
    pub fn arguments(&self, identity: &Identity, dir: &Path) -> Result<Vec<String>, QemuError> {
        self.args.iter().map(|arg| fill(arg, identity, dir)).collect()
    }

    /// Starts a QEMU that waits for a VM (`-incoming defer`), with its files in a directory of its own, which is made.
    ///
    /// # Errors
    ///
    /// [`QemuError::Ended`] with what it said if it does not come up.
    pub fn wait_for_vm(&self, identity: Identity, dir: &Path) -> Result<Vm, QemuError> {
        self.start(identity, dir, &["-incoming", "defer"])
    }

    /// Starts a QEMU that boots.
    ///
    /// # Errors
    ///
    /// As [`wait_for_vm`](Self::wait_for_vm).
    pub fn boot(&self, identity: Identity, dir: &Path) -> Result<Vm, QemuError> {
        self.start(identity, dir, &[])
    }

    fn start(&self, identity: Identity, dir: &Path, more: &[&str]) -> Result<Vm, QemuError> {
        std::fs::create_dir_all(dir).map_err(QemuError::io("make", dir))?;
        let socket = dir.join("qmp.sock");
        let output = dir.join("qemu.log");
        let log = File::create(&output).map_err(QemuError::io("make", &output))?;
        let _ = std::fs::remove_file(&socket);
        let mut command = Command::new(&self.program);
        command
            .args(self.arguments(&identity, dir)?)
            .args(["-name", &comma(&identity.name)])
            .args(["-qmp", &format!("unix:{},server=on,wait=off", comma(&socket.to_string_lossy()))])
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            // A signal to our group (as from a terminal) is none for the VMs.
            .process_group(0);
        let child = command.spawn().map_err(QemuError::io("start", &self.program))?;
        let mut guard = Guard(Some(child));
        let keeper = guard.0.as_ref().map(Keeper::of).expect("kept until the end");
        let keeper = Arc::new(keeper.map_err(QemuError::io("start", Path::new("/bin/sh")))?);
        let deadline = Instant::now() + START_WITHIN;
        let qmp = loop {
            match Qmp::connect(&socket, Duration::from_millis(20)) {
                Ok(qmp) => break qmp,
                Err(error) => {
                    let child = guard.0.as_mut().expect("kept until the end");
                    if let Ok(Some(status)) = child.try_wait() {
                        keeper.dismiss();
                        return Err(ended(&self.program, &status.to_string(), &output));
                    }
                    if Instant::now() > deadline {
                        return Err(error.into());
                    }
                }
            }
        };
        let child = guard.0.take();
        Ok(Vm { child, keeper, program: self.program.clone(), dir: dir.to_owned(), qmp, identity })
    }
}

/// Kills and reaps, if something goes wrong between start and hand-over.
struct Guard(Option<Child>);

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Vm {
    /// Its process id; 0 once it was released.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// CPU time of all its threads so far, in steps of the system's clock ticks (10 ms); zero once it is gone.
    #[must_use]
    pub fn cpu_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        // proc_pid_stat(5): utime and stime are fields 14 and 15, and the second, in brackets, may have anything in it.
        let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
        let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
        let per_s = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten();
        let per_s = per_s.and_then(|per_s| u64::try_from(per_s).ok()).unwrap_or(100).max(1);
        Duration::from_millis(ticks * 1000 / per_s)
    }

    /// The directory with its files: monitor, output, and what its arguments put there.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Gives it another directory, which must be empty or not exist, and another name than it was started under. QEMU keeps the
    /// paths and the name of its command line: the old directory becomes a link to the new one, and its monitor tells the old name.
    ///
    /// # Errors
    ///
    /// [`QemuError::Io`]: it is to be ended.
    pub fn adopt(&mut self, name: &str, dir: &Path) -> Result<(), QemuError> {
        std::fs::rename(&self.dir, dir).map_err(QemuError::io("rename", &self.dir))?;
        if let Err(error) = std::os::unix::fs::symlink(dir, &self.dir) {
            // As before: whoever has `dir` can use it otherwise.
            let back = std::fs::rename(dir, &self.dir).and_then(|()| std::fs::create_dir(dir));
            back.map_err(QemuError::io("rename", dir))?;
            return Err(QemuError::io("make", &self.dir)(error));
        }
        let moved = |path: &Path| path.strip_prefix(&self.dir).map(|rest| dir.join(rest)).ok();
        if let Some(path) = moved(self.qmp.path()) {
            self.qmp.renamed(path);
        }
        if let Some(disk) = self.identity.disk.as_deref().and_then(moved) {
            self.identity.disk = Some(disk);
        }
        name.clone_into(&mut self.identity.name);
        dir.clone_into(&mut self.dir);
        Ok(())
    }

    /// How its process ended; `None` while it runs, and for one that was released.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        let status = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten())?;
        // Its id may be another's soon.
        self.keeper.dismiss();
        Some(status)
    }

    /// What ends it when this process dies; once dismissed, it lives on then. Dropping this `Vm` ends it all the same.
    #[must_use]
    pub fn keeper(&self) -> &Arc<Keeper> {
        &self.keeper
    }

    /// Fails if it has ended, with what it said.
    ///
    /// # Errors
    ///
    /// [`QemuError::Ended`].
    pub fn check(&mut self) -> Result<(), QemuError> {
        match self.exit_status() {
            Some(status) => Err(ended(&self.program, &status.to_string(), &self.dir.join("qemu.log"))),
            None => Ok(()),
        }
    }

    /// Lets it run on when this process ends; its monitor, to find it by.
    pub fn release(mut self) -> PathBuf {
        self.keeper.dismiss();
        self.child = None;
        self.qmp.path().to_owned()
    }

    /// Ends it at once, without the guest's knowledge, and waits until it is gone. Its directory stays.
    pub fn kill(mut self) {
        self.end();
    }

    /// Asks QEMU (not the guest) to end and waits; kills it if it does not. Its directory stays.
    pub fn quit(mut self) {
        let _ = self.qmp.execute("quit", serde_json::Value::Null);
        let deadline = Instant::now() + QUIT_WITHIN;
        while self.check().is_ok() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        self.end();
    }

    fn end(&mut self) {
        // By its own id: a child that was not waited for keeps it.
        if let Some(child) = &mut self.child {
            let _ = child.kill();
        }
        self.keeper.dismiss();
        drop(Guard(self.child.take()));
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.end();
    }
}

/// Kills the process that listens on this monitor, whoever started it; nobody there is as good.
///
/// # Errors
///
/// [`QemuError::Io`]: it may be there.
pub fn end_listening(monitor: &Path) -> Result<(), QemuError> {
    let Ok(socket) = UnixStream::connect(monitor) else { return Ok(()) };
    let peer = getsockopt(&socket, PeerCredentials).map_err(io::Error::from);
    let pid = Pid::from_raw(peer.map_err(QemuError::io("ask who listens on", monitor))?.pid());
    match kill(pid, Signal::SIGKILL) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(QemuError::io("end what listens on", monitor)(error.into())),
    }
}

/// Makes a disk that holds only what differs from `base`, which must not change while the overlay is in use.
///
/// # Errors
///
/// [`QemuError::Ended`] with `qemu-img`'s words.
pub fn make_overlay(base: &Path, base_format: &str, overlay: &Path) -> Result<(), QemuError> {
    let program = PathBuf::from("qemu-img");
    let base = base.canonicalize().map_err(QemuError::io("find", base))?;
    let output = Command::new(&program)
        .args(["create", "-q", "-f", "qcow2", "-F", base_format, "-b"])
        .arg(&base)
        .arg(overlay)
        .stdin(Stdio::null())
        .output()
        .map_err(QemuError::io("start", &program))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(QemuError::Ended { program, status: output.status.to_string(), output: said })
}

fn ended(program: &Path, status: &str, output: &Path) -> QemuError {
    let said = std::fs::read(output).unwrap_or_default();
    let said =
        String::from_utf8_lossy(&said[said.len().saturating_sub(OUTPUT_BYTES_MAX)..]).trim().to_owned();
    QemuError::Ended { program: program.to_owned(), status: status.to_owned(), output: said }
}

/// QEMU's option syntax: a comma in a value is doubled.
fn comma(value: &str) -> String {
    value.replace(',', ",,")
}

fn fill(arg: &str, identity: &Identity, dir: &Path) -> Result<String, QemuError> {
    let mut out = String::new();
    let mut rest = arg;
    while let Some(at) = rest.find(['{', '}']) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("{{").or_else(|| rest.strip_prefix("}}")) {
            out.push_str(&rest[..1]);
            rest = after;
            continue;
        }
        let end = rest.find('}').unwrap_or(rest.len().saturating_sub(1));
        let value = match &rest[..=end] {
            "{name}" => identity.name.clone(),
            "{vmgenid}" => identity.vmgenid.clone(),
            "{mac}" => identity.mac.clone(),
            "{dir}" => dir.to_string_lossy().into_owned(),
            "{disk}" => match &identity.disk {
                Some(disk) => disk.to_string_lossy().into_owned(),
                None => {
                    return Err(QemuError::refused(format!("{arg} names a disk, and the clone has none")));
                }
            },
            other => {
                let known = "{name}, {vmgenid}, {mac}, {disk} and {dir} are known, {{ and }} are braces";
                return Err(QemuError::refused(format!("{other} in argument {arg} is not known: {known}")));
            }
        };
        if value.contains(',') {
            let why = "which separates QEMU's options";
            return Err(QemuError::refused(format!("{value}, for argument {arg}, has a comma, {why}")));
        }
        out.push_str(&value);
        rest = &rest[end + 1..];
    }
    out.push_str(rest);
    Ok(out)
}
