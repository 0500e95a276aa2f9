//! The programs that VMScatter is compared with: each carries a file from a lab's first host to others, and is timed.
//!
//! UFTP and udpcast are run as their Debian packages have them, unpacked by `scripts/peers.sh`, with the settings that
//! were fastest for each on a lab. Plain TCP is a stream to each host, sent by this process, one thread a stream: see [`Stream`].
//!
//! Each run returns a [`PeerResult`] also where hosts failed: a program that says it is done while a host's file is not
//! whole is a result, too. Files are received into a directory of the caller's, best on a tmpfs, and removed after they
//! were compared. All processes are killed, by number, when the time is out.

mod tcp;
mod udpcast;
mod uftp;
mod watch;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::hosts::{Lab, LabError};
use watch::Watch;

/// What is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Peer {
    /// UFTP 4: multicast with NAKs, no FEC, here unencrypted and without a limit of its rate.
    Uftp,
    /// udpcast: multicast in acknowledged slices, unencrypted.
    Udpcast,
    /// A plain TCP stream to each host.
    Tcp(Stream),
}

/// How a plain TCP stream is sent, and what becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stream {
    /// sendfile(2) from the file's pages in place of write(2) from memory.
    pub sendfile: bool,
    /// Receivers write a file, as the other peers do, which is compared then. Without it they count bytes and drop
    /// them: the fastest that TCP can be.
    pub keep: bool,
}

impl Peer {
    /// Every peer, TCP in its two ways to send, files kept.
    pub const ALL: [Self; 4] = [
        Self::Uftp,
        Self::Udpcast,
        Self::Tcp(Stream { sendfile: true, keep: true }),
        Self::Tcp(Stream { sendfile: false, keep: true }),
    ];

    /// A name for tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Uftp => "uftp",
            Self::Udpcast => "udpcast",
            Self::Tcp(Stream { sendfile: true, keep: true }) => "tcp-sendfile",
            Self::Tcp(Stream { sendfile: false, keep: true }) => "tcp-write",
            Self::Tcp(Stream { sendfile: true, keep: false }) => "tcp-sendfile-dropped",
            Self::Tcp(Stream { sendfile: false, keep: false }) => "tcp-write-dropped",
        }
    }

    /// Carries `file` from host 0 to the hosts 1 to `hosts`.
    ///
    /// # Errors
    /// [`PeerError::Missing`] if the program is not unpacked; [`PeerError::Hosts`] if the lab has too few; what keeps
    /// a run from starting. A transfer that fails or runs out of time is a [`PeerResult`].
    pub fn run(
        self,
        lab: &Lab,
        file: &Path,
        hosts: u16,
        options: &PeerOptions,
    ) -> Result<PeerResult, PeerError> {
        if hosts == 0 || usize::from(hosts) > lab.receivers().len() {
            return Err(PeerError::Hosts { wanted: hosts, there: lab.receivers().len() });
        }
        let bytes = std::fs::metadata(file).map_err(|source| PeerError::io("read", file, source))?.len();
        let directory = options.directory.join(format!("{}-{}", lab.prefix(), self.name()));
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir_all(&directory).map_err(|source| PeerError::io("make", &directory, source))?;
        let run = Run { lab, file, hosts, bytes, directory: &directory, options };
        let before = lab.counters(0)?.host;
        let watch = Watch::start(lab);
        let result = match self {
            Self::Uftp => uftp::run(&run),
            Self::Udpcast => udpcast::run(&run),
            Self::Tcp(stream) => tcp::run(&run, stream),
        };
        let began = watch.began();
        let sent = lab.counters(0)?.host - before;
        let _ = std::fs::remove_dir_all(&directory);
        let Outcome { start, wall, per_host_ok, completed } = result?;
        let data =
            wall.saturating_sub(began.map_or(Duration::ZERO, |began| began.saturating_duration_since(start)));
        Ok(PeerResult { wall, data, per_host_ok, completed, bytes, link_bytes: sent.tx_bytes })
    }
}

/// How peers are run.
#[derive(Clone, Debug)]
pub struct PeerOptions {
    /// Where hosts keep what they receive, in a directory that is made and removed there. A tmpfs keeps disks out of
    /// the figures; it must hold the file once a host.
    pub directory: PathBuf,
    /// When a run is ended.
    pub timeout: Duration,
    /// The links lose datagrams. UFTP is then run with its own, slower estimate of the group's round trip and gives hosts up
    /// later: its fastest settings without loss make it declare hosts lost at 1 %. (At 5 % it does so often with any.)
    pub lossy: bool,
}

impl Default for PeerOptions {
    /// `/dev/shm`, two minutes, links without loss.
    fn default() -> Self {
        Self { directory: PathBuf::from("/dev/shm"), timeout: Duration::from_secs(120), lossy: false }
    }
}

/// How a run went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerResult {
    /// From the sender's start, receivers waiting, until it and they said that all is there (or the time was out).
    pub wall: Duration,
    /// The same from the moment on when the sender's link had carried 128 KiB: without the handshake, some of which take
    /// longer than the data.
    pub data: Duration,
    /// Of hosts 1, 2, …: whether it has the whole file, compared byte for byte where it kept one.
    pub per_host_ok: Vec<bool>,
    /// Whether the program itself reported success.
    pub completed: bool,
    /// The file's length.
    pub bytes: u64,
    /// Bytes on the sender's link, all headers counted.
    pub link_bytes: u64,
}

impl PeerResult {
    /// Bits of the file a second of `wall`, for each host.
    #[must_use]
    pub fn goodput_bps(&self) -> f64 {
        // A file has less than 2⁵³ bytes.
        #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
        let bits = self.bytes as f64 * 8.0;
        bits / self.wall.as_secs_f64()
    }

    /// Whether every host has the file.
    #[must_use]
    pub fn all_ok(&self) -> bool {
        self.per_host_ok.iter().all(|ok| *ok)
    }
}

/// Why a peer could not be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PeerError {
    /// The program is not there.
    #[error("{program} is not in {}: run scripts/peers.sh", directory.display())]
    Missing {
        /// The program.
        program: &'static str,
        /// Where it was looked for.
        directory: PathBuf,
    },
    /// More hosts than the lab has, or none.
    #[error("{wanted} receiving hosts are wanted, the lab has {there}")]
    Hosts {
        /// Number asked for.
        wanted: u16,
        /// Number there.
        there: usize,
    },
    /// The lab refused something.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// A file or program could not be used.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl PeerError {
    fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }
}

/// One run, as its peer's module sees it.
struct Run<'a> {
    lab: &'a Lab,
    file: &'a Path,
    hosts: u16,
    bytes: u64,
    /// Of this run alone.
    directory: &'a Path,
    options: &'a PeerOptions,
}

/// A run's end.
struct Outcome {
    start: Instant,
    wall: Duration,
    per_host_ok: Vec<bool>,
    completed: bool,
}

impl Run<'_> {
    fn receivers(&self) -> impl Iterator<Item = u16> + use<> {
        1..=self.hosts
    }

    /// Routes groups through the interface of each host: these programs do not name it to the kernel.
    fn add_group_routes(&self) -> Result<(), PeerError> {
        for host in 0..=self.hosts {
            let host = self.lab.host(host);
            let mut route = host.command("ip");
            route.args(["route", "replace", "224.0.0.0/4", "dev", host.interface()]);
            let status = route.status().map_err(|source| PeerError::io("run", Path::new("ip"), source))?;
            if !status.success() {
                let command = format!("{route:?}");
                return Err(LabError::Command {
                    command,
                    status: status.to_string(),
                    message: String::new(),
                }
                .into());
            }
        }
        Ok(())
    }

    /// Waits until a UDP port is open on each receiver, or the time is out.
    fn await_port(&self, port: u16) -> Result<(), PeerError> {
        const TABLE: &str = "/proc/thread-self/net/udp";
        let suffix = format!(":{port:04X}");
        let is_open = |table: &str| {
            table
                .lines()
                .any(|line| line.split_whitespace().nth(1).is_some_and(|local| local.ends_with(&suffix)))
        };
        let deadline = Instant::now() + self.options.timeout.min(Duration::from_secs(10));
        for host in self.receivers() {
            let read = || std::fs::read_to_string(TABLE);
            loop {
                let table = self.lab.host(host).run(read).and_then(|table| table);
                let table = table.map_err(|source| PeerError::io("read", Path::new(TABLE), source))?;
                if is_open(&table) || Instant::now() > deadline {
                    break;
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        Ok(())
    }
}

/// A child that is killed if it still runs when this is dropped.
struct Running(Child);

/// How often a child is looked after. It adds to the measured time at most this.
const GLANCE: Duration = Duration::from_micros(500);

impl Running {
    fn start(mut command: Command) -> Result<Self, PeerError> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn();
        child.map(Self).map_err(|source| PeerError::io("run", Path::new(command.get_program()), source))
    }

    /// How it ended, or `None` if it had not until the deadline.
    fn wait_until(&mut self, deadline: Instant) -> Option<ExitStatus> {
        loop {
            match self.0.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) if Instant::now() < deadline => std::thread::sleep(GLANCE),
                Ok(None) | Err(_) => return None,
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only for a child that was waited for already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Finds an unpacked program: in `$SCATTER_PEERS`, else in `target/peers` of the working directory or of one above it.
fn find(program: &'static str) -> Result<PathBuf, PeerError> {
    let root = std::env::var_os("SCATTER_PEERS").map(PathBuf::from).unwrap_or_else(|| {
        let here = std::env::current_dir().unwrap_or_default();
        let places = here.ancestors().map(|directory| directory.join("target/peers"));
        places.into_iter().find(|place| place.is_dir()).unwrap_or_else(|| PathBuf::from("target/peers"))
    });
    let places = ["usr/bin", "usr/sbin"].map(|place| root.join(place).join(program));
    places.into_iter().find(|path| path.is_file()).ok_or(PeerError::Missing { program, directory: root })
}

/// Whether two files are the same, byte for byte; a file that cannot be read is not.
fn same_bytes(a: &Path, b: &Path) -> bool {
    let compare = || -> io::Result<bool> {
        let (mut a, mut b) = (File::open(a)?, File::open(b)?);
        if a.metadata()?.len() != b.metadata()?.len() {
            return Ok(false);
        }
        let mut buffers = (vec![0; 1 << 18], vec![0; 1 << 18]);
        loop {
            let length = a.read(&mut buffers.0)?;
            if length == 0 {
                return Ok(true);
            }
            b.read_exact(&mut buffers.1[..length])?;
            if buffers.0[..length] != buffers.1[..length] {
                return Ok(false);
            }
        }
    };
    compare().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_compared_whole() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let write = |name: &str, bytes: &[u8]| {
            let path = directory.path().join(name);
            std::fs::write(&path, bytes).expect("written");
            path
        };
        let mut bytes = vec![7; 600_000];
        let (first, second) = (write("a", &bytes), write("b", &bytes));
        assert!(same_bytes(&first, &second));
        bytes[599_999] = 8;
        assert!(!same_bytes(&first, &write("c", &bytes)));
        assert!(!same_bytes(&first, &write("d", &bytes[..599_999])));
        assert!(!same_bytes(&first, &directory.path().join("absent")));
    }
}
