//! Why a file cannot be taken as an image.

use super::MappedRamError;
use std::io;
use std::path::PathBuf;

/// Why a file cannot be taken as an image.
#[derive(thiserror::Error, Debug)]
#[non_exhaustive]
pub enum ImageError {
    /// Opening, inspecting or mapping failed.
    #[error("{path}: cannot {action} the image")]
    Io {
        /// The image.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A directory, device, pipe or socket.
    #[error("{path}: not a regular file")]
    NotAFile {
        /// The image.
        path: PathBuf,
    },
    /// No bytes at all.
    #[error("{path}: the file is empty")]
    Empty {
        /// The image.
        path: PathBuf,
    },
    /// More pages than a page number can name.
    #[error("{path}: {len} bytes are more than 2^32 - 1 pages")]
    TooLarge {
        /// The image.
        path: PathBuf,
        /// Bytes in the file.
        len: u64,
    },
    /// A Firecracker memory file is whole pages.
    #[error("{path}: {len} bytes are no whole number of pages, so this is no Firecracker memory file")]
    PartialPage {
        /// The image.
        path: PathBuf,
        /// Bytes in the file.
        len: u64,
    },
    /// The other file of a Firecracker snapshot.
    #[error("{path}: this is Firecracker's vmstate; the memory is in the file given as mem_file_path")]
    FirecrackerVmstate {
        /// The image.
        path: PathBuf,
    },
    /// libvirt has not finished writing it, or never will.
    #[error("{path}: an unfinished libvirt save (LibvirtQemudPart)")]
    LibvirtUnfinished {
        /// The image.
        path: PathBuf,
    },
    /// A QEMU stream that is damaged or of a kind that cannot be carried.
    #[error("{path}: not a usable mapped-ram file")]
    MappedRam {
        /// The image.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: MappedRamError,
    },
    /// The file is not what it was when it was opened: what was read from it may be a mixture.
    #[error("{path}: the image was {change} while it was in use")]
    Changed {
        /// The image.
        path: PathBuf,
        /// What happened to it.
        change: Change,
    },
}

/// What happened to a file that is in use.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Change {
    /// Its length differs.
    Resized,
    /// Its time of modification differs.
    Modified,
    /// Another file stands under its name.
    Replaced,
    /// No file stands under its name.
    Removed,
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Resized => "resized",
            Self::Modified => "modified",
            Self::Replaced => "replaced",
            Self::Removed => "removed",
        })
    }
}
