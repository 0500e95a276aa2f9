//! The target: a Cloud Hypervisor process that runs a VM whose memory is still arriving.

use super::protocol::{self, Command, Request};
use super::serve::{Server, Told, kill};
use super::source::{Slot, slots};
use super::{Api, CloudHypervisorError, Version, fingerprint, migration, post_copy_is_safe};
use crate::lazy::LazyImage;
use crate::uffd::{FaultStats, VmStatus};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use pages::PAGE_SIZE;
use serde_json::json;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const START_TIMEOUT: Duration = Duration::from_secs(20);
/// How long its answer is waited for after the migration broke off.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(2);
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// A clone to start.
#[derive(Clone, Debug)]
pub struct CloneConfig {
    /// The binary.
    pub binary: PathBuf,
    /// The clone's own folder, which exists and is empty; its path must be short.
    pub dir: PathBuf,
    /// Its name in messages.
    pub id: String,
    /// The migration's configuration: the source's, changed where clones must differ (files of consoles, taps, disks).
    pub config: Vec<u8>,
    /// The VM's state.
    pub state: Vec<u8>,
    /// Run at once; else it stays paused.
    pub resume: bool,
}

/// A Cloud Hypervisor process with a VM whose pages come from an image. Killed when dropped.
#[derive(Debug)]
pub struct Clone {
    /// Its API.
    pub api: Api,
    process: Arc<Mutex<Child>>,
    told: Arc<Told>,
    serving: Option<JoinHandle<()>>,
    /// It lives on when this value is dropped.
    kept: bool,
}

impl Clone {
    /// What became of it, waiting for at most `timeout` while it is served.
    #[must_use]
    pub fn wait(&self, timeout: Duration) -> VmStatus {
        self.told.wait(timeout)
    }

    /// Pages that Cloud Hypervisor asked for so far, for its vCPUs and on its own walk through memory, and how long they took.
    #[must_use]
    pub fn stats(&self) -> FaultStats {
        self.told.stats()
    }

    /// The process's number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.lock().unwrap_or_else(PoisonError::into_inner).id()
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    ///
    /// The system does not tell.
    pub fn ended(&self) -> io::Result<Option<ExitStatus>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner).try_wait()
    }

    /// Lets a complete clone live on its own: it is not killed when this value is dropped. Its process's number.
    ///
    /// # Errors
    ///
    /// It is not complete, and stays as it is.
    pub fn let_go(mut self) -> Result<u32, Self> {
        if self.wait(Duration::ZERO) != VmStatus::Complete {
            return Err(self);
        }
        self.kept = true;
        Ok(self.pid())
    }
}

impl Drop for Clone {
    fn drop(&mut self) {
        if !self.kept {
            kill(&self.process);
        }
        if let Some(serving) = self.serving.take() {
            // A panic in it was reported, and has ended the connection.
            let _ = serving.join();
        }
    }
}

/// The version of a binary, which is run to ask it.
///
/// # Errors
///
/// It cannot be run, or is no Cloud Hypervisor.
pub fn binary_version(binary: &Path) -> Result<Version, CloudHypervisorError> {
    let output = Process::new(binary)
        .arg("--version")
        .output()
        .map_err(|source| CloudHypervisorError::Start { binary: binary.to_owned(), source })?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let first = text.lines().next().unwrap_or_default();
    let version = first.strip_prefix("cloud-hypervisor ").and_then(Version::parse);
    version.ok_or_else(|| CloudHypervisorError::Answer {
        what: format!("{} --version", binary.display()),
        answer: first.to_owned(),
    })
}

/// Whether this machine's binary can restore a snapshot by page faults, asked before anything is sent.
///
/// # Errors
///
/// [`CloudHypervisorError::Unfit`], [`CloudHypervisorError::Version`]; or the binary does not run.
pub fn check(binary: &Path, snapshot: &str) -> Result<(), CloudHypervisorError> {
    let version = binary_version(binary)?;
    let here = fingerprint(&version);
    if here != snapshot {
        return Err(CloudHypervisorError::Unfit { snapshot: snapshot.to_owned(), here });
    }
    post_copy_is_safe(&version)
}

/// Starts a clone. Returns when its state is loaded; pages may be missing for as long as they like.
///
/// # Errors
///
/// The binary does not start, its version has no safe post-copy here, or it refuses. The process is killed then.
pub fn start(image: &Arc<LazyImage>, config: &CloneConfig) -> Result<Clone, CloudHypervisorError> {
    let slots = slots(&config.config)?;
    let bytes: u64 = slots.iter().map(|slot| slot.size).sum();
    if bytes != u64::from(image.page_count()) * PAGE_SIZE as u64 {
        return Err(CloudHypervisorError::Config("its memory is not as long as the image"));
    }
    let socket = config.dir.join("api.sock");
    let console = File::create(config.dir.join("log")).map_err(migration("make its log"))?;
    let child = Process::new(&config.binary)
        .arg("--api-socket")
        .arg(format!("path={}", socket.display()))
        // With it, each error it makes reads the current folder, for which its system-call filter kills it.
        .env_remove("RUST_BACKTRACE")
        // A signal to our terminal or group is not for it.
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(console.try_clone().map_err(migration("make its log"))?)
        .stderr(console)
        .spawn()
        .map_err(|source| CloudHypervisorError::Start { binary: config.binary.clone(), source })?;
    let process = Arc::new(Mutex::new(child));
    let started = migrate_in(image, config, slots, &Api::new(&socket), &process);
    if started.is_err() {
        kill(&process);
    }
    started
}

fn migrate_in(
    image: &Arc<LazyImage>,
    config: &CloneConfig,
    slots: Vec<Slot>,
    api: &Api,
    process: &Arc<Mutex<Child>>,
) -> Result<Clone, CloudHypervisorError> {
    connect(api.socket(), process)
        .map_err(|source| CloudHypervisorError::Start { binary: config.binary.clone(), source })?;
    post_copy_is_safe(&api.version()?)?;
    let path = config.dir.join("migration.sock");
    let body = json!({ "receiver_url": format!("unix:{}", path.display()), "memory_mode": "Postcopy" });
    let asking = api.clone();
    let asked = std::thread::spawn(move || asking.request("PUT", "vm.receive-migration", Some(&body)));
    let replayed = replay(image, config, slots, &path, process);
    match replayed {
        Ok((told, serving)) => {
            asked.join().map_err(|_| CloudHypervisorError::Panicked)??;
            Ok(Clone {
                api: api.clone(),
                process: process.clone(),
                told,
                serving: Some(serving),
                kept: false,
            })
        }
        Err(error) => {
            // It may be about to say why.
            let deadline = Instant::now() + LAST_WORDS_TIMEOUT;
            while !asked.is_finished() && Instant::now() < deadline {
                std::thread::sleep(POLL_INTERVAL);
            }
            kill(process);
            let said = asked.join().map_err(|_| CloudHypervisorError::Panicked)?;
            Err(match said {
                Err(said @ CloudHypervisorError::Refused { .. }) => said,
                _ => error,
            })
        }
    }
}

/// The source's part of a migration with empty memory files, and a second connection for page faults.
fn replay(
    image: &Arc<LazyImage>,
    config: &CloneConfig,
    slots: Vec<Slot>,
    path: &Path,
    process: &Arc<Mutex<Child>>,
) -> Result<(Arc<Told>, JoinHandle<()>), CloudHypervisorError> {
    let mut stream = connect(path, process).map_err(migration("it does not listen"))?;
    Request::ask(Command::Start, &[], &mut stream).map_err(migration("it does not begin"))?;
    let mut files = Vec::with_capacity(slots.len());
    for slot in slots {
        let file = memory_file(&slot).map_err(migration("make a file for its memory"))?;
        protocol::send_memory(slot.slot, file.as_fd(), &mut stream)
            .map_err(migration("it does not take its memory"))?;
        files.push((slot, file));
    }
    Request::ask(Command::Config, &config.config, &mut stream)
        .map_err(migration("it does not take its configuration"))?;
    // It must be there before the state: devices touch memory while they are restored.
    let mut faults = connect(path, process).map_err(migration("it takes no connection for page faults"))?;
    protocol::open_fault_connection(&mut faults)
        .map_err(migration("it takes no connection for page faults"))?;
    let told = Arc::new(Told::default());
    let server = Server::new(&config.id, image, files, process, &told)?;
    let serving = std::thread::Builder::new()
        .name(format!("faults-{}", config.id))
        .spawn(move || server.run(faults))
        .map_err(migration("start a thread for its page faults"))?;
    Request::ask(Command::State, &config.state, &mut stream)
        .map_err(migration("it does not take its state"))?;
    let end = if config.resume { Command::Complete } else { Command::CompletePaused };
    Request::ask(end, &[], &mut stream).map_err(migration("it does not run"))?;
    Ok((told, serving))
}

/// Connects to a socket that the process is about to make.
fn connect(path: &Path, process: &Mutex<Child>) -> io::Result<UnixStream> {
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => return Ok(stream),
            Err(error) => {
                let ended = process.lock().unwrap_or_else(PoisonError::into_inner).try_wait()?;
                if ended.is_some() || Instant::now() >= deadline {
                    return Err(error);
                }
            }
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// A slot's memory, all of it missing. It is the VM's own: it writes there.
fn memory_file(slot: &Slot) -> io::Result<File> {
    let fd = memfd_create("cloud-hypervisor", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let file = File::from(fd);
    file.set_len(slot.file_offset + slot.size)?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW))?;
    Ok(file)
}
