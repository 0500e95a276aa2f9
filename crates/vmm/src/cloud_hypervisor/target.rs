//! The target: a Cloud Hypervisor process that runs a VM whose memory is still arriving.

use super::protocol::{self, Command, Request};
use super::source::{Slot, slots};
use super::{Api, CloudHypervisorError, migration, post_copy_is_safe};
use crate::lazy::{Demand, LazyImage, News};
use crate::uffd::VmStatus;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use pages::PAGE_SIZE;
use serde_json::json;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command as Process, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const START_TIMEOUT: Duration = Duration::from_secs(20);
/// How long its answer is waited for after the migration broke off.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(2);
const POLL_INTERVAL: Duration = Duration::from_millis(2);
/// While a page is waited for, this is how often the process is looked at.
const LOOK_MS: u8 = 100;
/// Pages that one fault may ask for: a huge page of 1 GiB.
const FAULT_BYTES_MAX: u64 = 1 << 30;

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
}

#[derive(Debug, Default)]
struct Told {
    status: Mutex<(VmStatus, u64)>,
    changed: Condvar,
}

impl Told {
    fn set(&self, status: VmStatus) {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).0 = status;
        self.changed.notify_all();
    }
}

impl Clone {
    /// What became of it, waiting for at most `timeout` while it is served.
    #[must_use]
    pub fn wait(&self, timeout: Duration) -> VmStatus {
        let deadline = Instant::now() + timeout;
        let mut told = self.told.status.lock().unwrap_or_else(PoisonError::into_inner);
        while told.0 == VmStatus::Serving {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            told = self.told.changed.wait_timeout(told, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        told.0.clone()
    }

    /// Pages that Cloud Hypervisor asked for so far, for its vCPUs and on its own walk through memory.
    #[must_use]
    pub fn pages_asked(&self) -> u64 {
        self.told.status.lock().unwrap_or_else(PoisonError::into_inner).1
    }
}

impl Drop for Clone {
    fn drop(&mut self) {
        kill(&self.process);
        if let Some(serving) = self.serving.take() {
            // A panic in it was reported, and has ended the connection.
            let _ = serving.join();
        }
    }
}

fn kill(process: &Mutex<Child>) {
    let mut process = process.lock().unwrap_or_else(PoisonError::into_inner);
    // It has ended already, or is ours to kill.
    let _ = process.kill();
    let _ = process.wait();
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
            Ok(Clone { api: api.clone(), process: process.clone(), told, serving: Some(serving) })
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
    path: &std::path::Path,
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
    let server = Server {
        id: config.id.clone(),
        image: image.clone(),
        news: image.listen().map_err(crate::uffd::UffdError::from)?,
        files,
        process: process.clone(),
        told: told.clone(),
    };
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
fn connect(path: &std::path::Path, process: &Mutex<Child>) -> io::Result<UnixStream> {
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

/// Answers one VM's page faults, which come one after the other.
struct Server {
    id: String,
    image: Arc<LazyImage>,
    news: News,
    files: Vec<(Slot, File)>,
    process: Arc<Mutex<Child>>,
    told: Arc<Told>,
}

impl Server {
    fn run(mut self, mut stream: UnixStream) {
        let status = loop {
            let request = match Request::read(&mut stream) {
                Ok(request) => request,
                // Cloud Hypervisor closes it when it has walked through all memory; or it has ended.
                Err(_) if self.ended() => break VmStatus::Gone,
                Err(_) => break VmStatus::Complete,
            };
            let answered = match request.command {
                Command::PageFault => self.fault(&request, &mut stream),
                Command::Abandon => break VmStatus::Gone,
                other => Err(format!("it sends {other:?} where a PageFault belongs")),
            };
            match answered {
                Ok(()) => self.told.status.lock().unwrap_or_else(PoisonError::into_inner).1 += 1,
                Err(_) if self.ended() => break VmStatus::Gone,
                Err(reason) => break VmStatus::Ended(format!("VM {}: {reason}", self.id)),
            }
        };
        if matches!(status, VmStatus::Ended(_)) {
            // A guest that waits for a page that will not come is ended, not left to hang.
            kill(&self.process);
        }
        self.told.set(status);
    }

    fn ended(&self) -> bool {
        // A process that cannot be asked is taken for ended.
        self.process
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .try_wait()
            .map_or(true, |ended| ended.is_some())
    }

    fn fault(&mut self, request: &Request, stream: &mut UnixStream) -> Result<(), String> {
        let broken = |error: io::Error| format!("its page-fault connection fails: {error}");
        let (gpa, length) = protocol::read_fault(request, stream).map_err(broken)?;
        let odd = || format!("it asks for {length} bytes at {gpa:#x}, which are not its memory");
        let whole = |bytes: u64| bytes.is_multiple_of(PAGE_SIZE as u64);
        if !whole(gpa) || !whole(length) || length == 0 || length > FAULT_BYTES_MAX {
            return Err(odd());
        }
        let slot_at = self
            .files
            .iter()
            .position(|(slot, _)| gpa >= slot.gpa && gpa + length <= slot.gpa + slot.size)
            .ok_or_else(odd)?;
        let slot = self.files[slot_at].0;
        let page = |bytes: u64| u32::try_from(bytes / PAGE_SIZE as u64).map_err(|_| odd());
        let first = page(slot.image_offset + gpa - slot.gpa)?;
        let file_at = slot.file_offset + gpa - slot.gpa;
        for (index, pfn) in (first..first + page(length)?).enumerate() {
            self.wait_for(pfn)?;
            let zero = self.image.is_zero(pfn);
            let bytes = if zero { &[0; PAGE_SIZE] } else { self.image.page(pfn).ok_or("a page is gone")? };
            let at = file_at + (index * PAGE_SIZE) as u64;
            let written = self.files[slot_at].1.write_all_at(bytes, at);
            written.map_err(|error| format!("page {pfn} cannot be written to its memory: {error}"))?;
        }
        protocol::answer(true, stream).map_err(broken)
    }

    /// Waits until the page is here; nothing is locked meanwhile.
    fn wait_for(&mut self, pfn: u32) -> Result<(), String> {
        while self.image.demand(pfn) != Demand::Here {
            if let Some(reason) = self.image.lost() {
                return Err(format!("it needs page {pfn}, which will not come: {reason}"));
            }
            if self.ended() {
                return Err("it has ended".into());
            }
            let mut fds = [PollFd::new(self.news.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, LOOK_MS) {
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(error) => return Err(format!("news of pages cannot be waited for: {error}")),
            }
            self.news.drain(|_| {});
        }
        Ok(())
    }
}
