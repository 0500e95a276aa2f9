//! Firecracker: snapshots of running VMs at the source, clones whose memory is still arriving at the targets.
//!
//! ```text
//! source: Api ── pause, create, resume ──▶ vmstate (opaque) + memory (image file)
//! target: start ─▶ firecracker process ─ /snapshot/load ─▶ its userfaultfd ─▶ PageServer ◀── LazyImage
//! ```
//!
//! [`capture`] takes a snapshot, [`start`] starts a clone of one; [`check`] says beforehand whether this machine's binary can. No patch to
//! Firecracker is needed. docs/firecracker.md has versions and traps.

mod api;
mod devices;
mod handshake;
mod restore;
mod snapshot;
mod version;

pub use api::{Api, SnapshotKind};
pub use devices::Devices;
pub use handshake::{Introduction, accept};
pub use restore::{
    CONSOLE, Clone, CloneConfig, NetworkOverride, binary_version, check, start, tells_removed_pages,
};
pub use snapshot::{MEMORY, Snapshot, VMSTATE, capture, merge_diff};
pub use version::{Version, fingerprint};

use crate::uffd::UffdError;
use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;

/// What fails with a Firecracker.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FirecrackerError {
    /// The API's socket fails.
    #[error("Firecracker's API at {socket}: {what} fails")]
    Api {
        /// The socket.
        socket: PathBuf,
        /// Method and path.
        what: String,
        /// How.
        #[source]
        source: io::Error,
    },
    /// It answers, but not as Firecracker does.
    #[error("{what} is answered by what is not Firecracker's: {answer}")]
    Answer {
        /// What was asked.
        what: String,
        /// The answer.
        answer: String,
    },
    /// Firecracker refuses.
    #[error("Firecracker refuses {what} (status {status}): {words}")]
    Refused {
        /// Method and path.
        what: String,
        /// HTTP status.
        status: u16,
        /// Its own words.
        words: String,
    },
    /// A snapshot failed, and the VM could not be resumed after it.
    #[error("the snapshot failed ({first}), and the VM could not be resumed: it is still paused")]
    LeftPaused {
        /// Why the snapshot failed.
        first: String,
        /// Why it could not be resumed.
        #[source]
        source: Box<FirecrackerError>,
    },
    /// A diff snapshot cannot be merged.
    #[error("diff snapshot {diff}: cannot {action} it")]
    Merge {
        /// Its memory file.
        diff: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The binary cannot be run.
    #[error("cannot run {binary}: set SCATTER_FIRECRACKER to the Firecracker binary")]
    Start {
        /// The binary.
        binary: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// Its API does not come up.
    #[error("clone {id}: Firecracker's API does not come up ({}): {last}", ended.map_or("it runs".to_owned(), |status| status.to_string()))]
    NoApi {
        /// The clone.
        id: String,
        /// How the process ended, if it has.
        ended: Option<ExitStatus>,
        /// The last lines of its log.
        last: String,
    },
    /// It did not introduce itself as it should.
    #[error("the page-fault handler's socket: {reason}")]
    Handshake {
        /// What is wrong.
        reason: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The version has not what is asked of it.
    #[error("Firecracker {version} has no {what}: {since} or later is needed")]
    TooOld {
        /// It.
        version: Version,
        /// What it lacks.
        what: &'static str,
        /// From when on it is there.
        since: String,
    },
    /// Another version or CPU than the snapshot's.
    #[error("a snapshot of [{snapshot}] cannot be restored here, by [{here}]: both must be the same")]
    Unfit {
        /// The snapshot's.
        snapshot: String,
        /// This machine's.
        here: String,
    },
    /// A clone's folder cannot be used.
    #[error("clone {id}: cannot {what}")]
    Clone {
        /// The clone.
        id: String,
        /// What was tried.
        what: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// Its faults cannot be served.
    #[error("its page faults cannot be served")]
    Faults(#[from] UffdError),
    /// A thread of ours panicked.
    #[error("loading the snapshot panicked: this is a defect of VMScatter")]
    Panicked,
}
