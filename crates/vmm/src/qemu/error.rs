//! Why a VM under QEMU cannot be captured, started or moved.

use super::qmp::QmpError;
use super::state::StateError;
use super::stream::StreamError;
use crate::image::ImageError;
use crate::lazy::LazyError;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why something that was asked of a QEMU failed.
#[derive(thiserror::Error, Debug)]
#[non_exhaustive]
pub enum QemuError {
    /// Its monitor refused, or is gone.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// Its stream is damaged, or of a VM that cannot be carried.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// Device state that was handed over is damaged.
    #[error(transparent)]
    State(#[from] StateError),
    /// The receiver's memory failed.
    #[error(transparent)]
    Lazy(#[from] LazyError),
    /// A captured image cannot be read.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The system refused.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file, socket or program.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The VM is of a kind that cannot be carried.
    #[error("the VM cannot be carried: {reason}")]
    Refused {
        /// Why, and what would help.
        reason: String,
    },
    /// QEMU itself says that a migration failed.
    #[error("QEMU's migration {status}: {reason}")]
    Migration {
        /// QEMU's word for the state.
        status: String,
        /// QEMU's `error-desc`, or what was seen.
        reason: String,
    },
    /// Something did not happen in time.
    #[error("{what} did not come within {} s", .within.as_secs_f64())]
    TimedOut {
        /// What was waited for.
        what: &'static str,
        /// How long.
        within: Duration,
    },
    /// The pages that are needed will not come.
    #[error("the pages' source is lost: {reason}")]
    SourceLost {
        /// Why, in the words of whoever gave up.
        reason: String,
    },
    /// A file that libvirt saved, or did not.
    #[error("{path}: {source}")]
    Saved {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: super::libvirt::SaveError,
    },
    /// The process ended.
    #[error("{program} ended ({status}){}{output}", if .output.is_empty() { "" } else { ": " })]
    Ended {
        /// The program.
        program: PathBuf,
        /// Its exit status.
        status: String,
        /// The end of what it said.
        output: String,
    },
}

impl QemuError {
    pub(super) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    /// A refusal with its reason, in words.
    pub fn refused(reason: impl Into<String>) -> Self {
        Self::Refused { reason: reason.into() }
    }
}
