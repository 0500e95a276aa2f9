//! Cloud Hypervisor: a running VM's memory as files, and clones whose memory is still arriving.
//!
//! ```text
//! source: vm.send-migration (local) ─▶ Start, MemoryFd…, Config, State, Complete ─▶ capture
//! target: start ─▶ vm.receive-migration (Postcopy) ◀─ Start, MemoryFd…, Config, [fault connection], State, Complete
//!                                         PageFault ─▶ page of the LazyImage ─▶ the VM's own memory file ─▶ ok
//! ```
//!
//! Both are Cloud Hypervisor's own interface for an external process (`docs/snapshot_restore.md` and `offload_daemon` there). The
//! VM's memory must be `shared=on`. [`SnapshotDir`] is the other way: its snapshot as three files. docs/cloud-hypervisor.md has versions and traps.

mod api;
mod directory;
mod personal;
pub mod protocol;
mod serve;
mod source;
mod target;

pub use api::{Api, Version, fingerprint, post_copy_is_safe};
pub use directory::SnapshotDir;
pub use personal::{SERIAL, personal};
pub use source::{Captured, Slot, capture, slots};
pub use target::{Clone, CloneConfig, binary_version, check, start};

use crate::uffd::UffdError;
use std::io;
use std::path::PathBuf;

/// What fails with a Cloud Hypervisor.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CloudHypervisorError {
    /// The API's socket fails.
    #[error("Cloud Hypervisor's API at {socket}: {what} fails")]
    Api {
        /// The socket.
        socket: PathBuf,
        /// Method and path.
        what: String,
        /// How.
        #[source]
        source: io::Error,
    },
    /// It refuses.
    #[error("Cloud Hypervisor refuses {what} (status {status}): {words}")]
    Refused {
        /// Method and path.
        what: String,
        /// HTTP status.
        status: u16,
        /// Its own words.
        words: String,
    },
    /// It answers, but not as Cloud Hypervisor does.
    #[error("{what} is answered by what is not Cloud Hypervisor's: {answer}")]
    Answer {
        /// What was asked.
        what: String,
        /// The answer.
        answer: String,
    },
    /// The migration's connection fails, or breaks the protocol.
    #[error("the migration with Cloud Hypervisor: {step}")]
    Migration {
        /// Where.
        step: &'static str,
        /// How.
        #[source]
        source: io::Error,
    },
    /// A command where another belongs.
    #[error("Cloud Hypervisor sends {found:?} where {expected} belongs")]
    Unexpected {
        /// What came.
        found: protocol::Command,
        /// What belongs there.
        expected: &'static str,
    },
    /// The configuration does not say where memory stands, or not as it must.
    #[error("the VM's configuration: {0}")]
    Config(&'static str),
    /// A network interface cannot have a tap of its own.
    #[error("a clone's network interface: {0}")]
    Tap(String),
    /// Another version than the snapshot's.
    #[error("a snapshot of [{snapshot}] cannot be restored here, by [{here}]: both must be the same")]
    Unfit {
        /// The snapshot's.
        snapshot: String,
        /// This machine's.
        here: String,
    },
    /// A version without post-copy, or where it is not safe on this machine.
    #[error("Cloud Hypervisor {version} cannot restore by page faults here: {reason}")]
    Version {
        /// It.
        version: Version,
        /// Why.
        reason: &'static str,
    },
    /// A file cannot be read or written.
    #[error("{path}: cannot {action}")]
    File {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The binary cannot be run, or does not come up.
    #[error("cannot run {binary}: set SCATTER_CLOUD_HYPERVISOR to the binary")]
    Start {
        /// The binary.
        binary: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// Its faults cannot be served.
    #[error("its page faults cannot be served")]
    Faults(#[from] UffdError),
    /// A thread of ours panicked.
    #[error("a thread of the migration panicked: this is a defect of VMScatter")]
    Panicked,
}

fn migration(step: &'static str) -> impl Fn(io::Error) -> CloudHypervisorError {
    move |source| CloudHypervisorError::Migration { step, source }
}
