//! The target: a Firecracker process that runs a snapshot whose memory is still arriving.

use super::handshake;
use super::{Api, FirecrackerError, Version, fingerprint};
use crate::lazy::LazyImage;
use crate::uffd::{Attachment, Guard, PageServer, PidFd, ServedVm, UffdError, VmStatus, Watchdog};
use serde_json::{Value, json};
use std::fs::File;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A new process's API is there within milliseconds; on a busy machine, later.
const API_TIMEOUT: Duration = Duration::from_secs(20);
/// Loading asks for its page-fault handler before it restores anything.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(20);
const POLL_INTERVAL: Duration = Duration::from_millis(2);
/// Files and sockets in a clone's folder.
const API_SOCKET: &str = "api.sock";
const FAULT_SOCKET: &str = "faults.sock";
/// What the guest writes on its console, and Firecracker's own log.
pub const CONSOLE: &str = "console.log";

/// A network interface of the snapshot that gets another device of the host: two clones cannot share a tap.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NetworkOverride {
    /// The interface's id in the snapshot's configuration.
    pub iface_id: String,
    /// The tap device.
    pub host_dev_name: String,
}

/// A clone to start.
#[derive(Clone, Debug)]
pub struct CloneConfig {
    /// The Firecracker binary.
    pub binary: PathBuf,
    /// The clone's own folder, which exists and is empty: sockets and log. Its path must be short (108 bytes with a socket's name).
    pub dir: PathBuf,
    /// Its name: letters, digits and `-`.
    pub id: String,
    /// The snapshot's state.
    pub vmstate: PathBuf,
    /// Devices of the host for its interfaces.
    pub network: Vec<NetworkOverride>,
    /// Socket of the host for its vsock.
    pub vsock: Option<PathBuf>,
    /// Run at once; else it stays paused until [`Api::resume`].
    pub resume: bool,
    /// Track dirty pages, so that exact diff snapshots of it can be taken.
    pub track_dirty_pages: bool,
}

/// A Firecracker process with a restored VM, whose pages come from an image. Killed when dropped.
#[derive(Debug)]
pub struct Clone {
    /// Its API.
    pub api: Api,
    /// Its page faults.
    pub served: ServedVm,
    /// `None` once it is on its own.
    child: Option<Child>,
    dir: PathBuf,
    _watched: Option<Watched>,
    /// Held until it ends: see [`Introduction::socket`](handshake::Introduction::socket).
    _socket: UnixStream,
}

impl Clone {
    /// The file with what the guest wrote on its console so far, and Firecracker's log.
    #[must_use]
    pub fn console(&self) -> PathBuf {
        self.dir.join(CONSOLE)
    }

    /// The process's number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    ///
    /// The system does not tell.
    pub fn ended(&mut self) -> std::io::Result<Option<ExitStatus>> {
        self.child.as_mut().map_or(Ok(None), Child::try_wait)
    }

    /// Lets a complete clone live on its own: it is killed neither when this value is dropped nor when this process dies.
    ///
    /// # Errors
    ///
    /// It is not complete, and stays as it is.
    pub fn let_go(mut self) -> Result<Child, Self> {
        match (self.served.status(), self.child.take()) {
            (VmStatus::Complete, Some(child)) => Ok(child),
            (_, child) => {
                self.child = child;
                Err(self)
            }
        }
    }
}

impl Drop for Clone {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            end(child);
        }
    }
}

/// A process's place with a watchdog, given up when dropped.
#[derive(Debug)]
struct Watched {
    watchdog: Arc<Watchdog>,
    number: u16,
}

impl Watched {
    fn by(watchdog: &Arc<Watchdog>, process: &PidFd) -> Result<Self, UffdError> {
        Ok(Self { watchdog: watchdog.clone(), number: watchdog.guard(process)? })
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // A watchdog that is gone guards nothing any more.
        let _ = self.watchdog.release(self.number);
    }
}

fn end(child: &mut Child) {
    // It has ended already, or is ours to kill.
    let _ = child.kill();
    let _ = child.wait();
}

/// The version of a Firecracker binary, which is run to ask it.
///
/// # Errors
///
/// It cannot be run, or is no Firecracker.
pub fn binary_version(binary: &Path) -> Result<Version, FirecrackerError> {
    let output = Command::new(binary)
        .arg("--version")
        .output()
        .map_err(|source| FirecrackerError::Start { binary: binary.to_owned(), source })?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let first = text.lines().next().unwrap_or_default();
    let version = first.strip_prefix("Firecracker ").and_then(Version::parse);
    version.ok_or_else(|| FirecrackerError::Answer {
        what: format!("{} --version", binary.display()),
        answer: first.to_owned(),
    })
}

/// Whether this machine's binary can restore a snapshot, asked before anything is sent.
///
/// # Errors
///
/// [`FirecrackerError::Unfit`] names both fingerprints; or the binary does not run.
pub fn check(binary: &Path, snapshot: &str) -> Result<(), FirecrackerError> {
    let here = fingerprint(&binary_version(binary)?);
    if here == snapshot {
        Ok(())
    } else {
        Err(FirecrackerError::Unfit { snapshot: snapshot.to_owned(), here })
    }
}

/// Starts a clone: a new process, which loads the state and takes its memory from `image` as it touches it. Returns when
/// the state is loaded; pages may be missing for as long as they like.
///
/// With a watchdog, the process is also killed if this one dies before the clone is complete.
///
/// # Errors
///
/// The process does not start or does not answer, refuses, wants what its version has not, or its memory does not
/// fit the image. It is killed then.
pub fn start(
    server: &PageServer,
    watchdog: Option<&Arc<Watchdog>>,
    image: &Arc<LazyImage>,
    config: &CloneConfig,
) -> Result<Clone, FirecrackerError> {
    let io =
        |what: &'static str| move |source| FirecrackerError::Clone { id: config.id.clone(), what, source };
    let faults = config.dir.join(FAULT_SOCKET);
    let listener = UnixListener::bind(&faults).map_err(io("make the socket for its page faults"))?;
    let mut child = spawn(config)?;
    match load(&mut child, server, watchdog, image, config, &listener) {
        Ok((api, served, socket, watched)) => Ok(Clone {
            api,
            served,
            child: Some(child),
            dir: config.dir.clone(),
            _watched: watched,
            _socket: socket,
        }),
        Err(error) => {
            end(&mut child);
            Err(error)
        }
    }
}

fn spawn(config: &CloneConfig) -> Result<Child, FirecrackerError> {
    let io =
        |what: &'static str| move |source| FirecrackerError::Clone { id: config.id.clone(), what, source };
    let console = File::create(config.dir.join(CONSOLE)).map_err(io("make its console's file"))?;
    let errors = console.try_clone().map_err(io("make its console's file"))?;
    Command::new(&config.binary)
        .arg("--id")
        .arg(&config.id)
        .arg("--api-sock")
        .arg(config.dir.join(API_SOCKET))
        // A signal to our terminal or group is not for it.
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(console)
        .stderr(errors)
        .spawn()
        .map_err(|source| FirecrackerError::Start { binary: config.binary.clone(), source })
}

fn load(
    child: &mut Child,
    server: &PageServer,
    watchdog: Option<&Arc<Watchdog>>,
    image: &Arc<LazyImage>,
    config: &CloneConfig,
    listener: &UnixListener,
) -> Result<(Api, ServedVm, UnixStream, Option<Watched>), FirecrackerError> {
    let api = Api::new(&config.dir.join(API_SOCKET));
    wait_for_api(child, &api, config)?;
    let version = api.version()?;
    let body = load_body(&version, config)?;
    std::thread::scope(|scope| {
        // Loading touches memory, so it ends only if faults are answered meanwhile.
        let loading = scope.spawn(|| api.request("PUT", "/snapshot/load", Some(&body)));
        let deadline = Instant::now() + HANDSHAKE_TIMEOUT;
        let introduced = loop {
            match handshake::accept(listener, POLL_INTERVAL) {
                // It failed before it came to that: its own words say more than the time-out.
                Err(error) if loading.is_finished() || Instant::now() >= deadline => break Err(error),
                Err(FirecrackerError::Handshake { source, .. })
                    if source.kind() == std::io::ErrorKind::TimedOut => {}
                other => break other,
            }
        };
        let introduced = match introduced {
            Ok(introduced) => introduced,
            Err(error) => {
                // Ends the request too, if it still waits.
                end(child);
                return Err(loading.join().ok().and_then(Result::err).filter(is_answer).unwrap_or(error));
            }
        };
        let watched = watchdog.map(|watchdog| Watched::by(watchdog, &introduced.process)).transpose();
        let served = watched.and_then(|watched| {
            let guard = Guard::Process(introduced.process);
            let attachment = Attachment::new(
                &config.id,
                introduced.uffd,
                image.clone(),
                introduced.regions,
                introduced.backing,
                guard,
            );
            Ok((server.attach(attachment)?, watched))
        });
        if served.is_err() {
            // What waits for pages ends only with its process.
            end(child);
        }
        let loaded = loading.join();
        let (served, watched) = served?;
        loaded.map_err(|_| FirecrackerError::Panicked)??;
        Ok((api.clone(), served, introduced.socket, watched))
    })
}

/// Whether the error is Firecracker's own word, and not only a socket that closed.
fn is_answer(error: &FirecrackerError) -> bool {
    matches!(error, FirecrackerError::Refused { .. } | FirecrackerError::Answer { .. })
}

fn wait_for_api(child: &mut Child, api: &Api, config: &CloneConfig) -> Result<(), FirecrackerError> {
    let deadline = Instant::now() + API_TIMEOUT;
    loop {
        if UnixStream::connect(api.socket()).is_ok() {
            return Ok(());
        }
        let ended = child.try_wait().ok().flatten();
        if ended.is_some() || Instant::now() >= deadline {
            let log = std::fs::read_to_string(config.dir.join(CONSOLE)).unwrap_or_default();
            let last: String = log.lines().rev().take(3).collect::<Vec<_>>().join(" | ");
            return Err(FirecrackerError::NoApi { id: config.id.clone(), ended, last });
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// The body of `PUT /snapshot/load`. Firecracker refuses fields that it does not know, so only what is needed is said, and
/// what a version has not is refused here with a reason.
fn load_body(version: &Version, config: &CloneConfig) -> Result<Value, FirecrackerError> {
    let need = |since: [u32; 3], what| {
        if version.since(since) {
            Ok(())
        } else {
            let since = format!("{}.{}", since[0], since[1]);
            Err(FirecrackerError::TooOld { version: version.clone(), what, since })
        }
    };
    need(Version::UFFD, "a page-fault handler")?;
    let mut body = json!({
        "snapshot_path": config.vmstate,
        "mem_backend": { "backend_type": "Uffd", "backend_path": config.dir.join(FAULT_SOCKET) },
        "resume_vm": config.resume,
    });
    if config.track_dirty_pages {
        let renamed = version.since(Version::TRACK_DIRTY_PAGES);
        body[if renamed { "track_dirty_pages" } else { "enable_diff_snapshots" }] = true.into();
    }
    if !config.network.is_empty() {
        need(Version::NETWORK_OVERRIDES, "other network devices than the snapshot's")?;
        let one = |over: &NetworkOverride| json!({ "iface_id": over.iface_id, "host_dev_name": over.host_dev_name });
        body["network_overrides"] = config.network.iter().map(one).collect();
    }
    if let Some(path) = &config.vsock {
        need(Version::VSOCK_OVERRIDE, "another vsock than the snapshot's")?;
        body["vsock_override"] = json!({ "uds_path": path });
    }
    Ok(body)
}

/// Whether what a balloon takes from a restored VM is told to its page server. Before, pages that a balloon took come back
/// as they were in the snapshot, not as zeros.
#[must_use]
pub fn tells_removed_pages(version: &Version) -> bool {
    version.since(Version::REMOVE_EVENTS)
}
