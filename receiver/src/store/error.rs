//! What can go wrong in a store, with the path, the VM and a way out.

use std::io;
use std::path::{Path, PathBuf};

use nix::libc;
use pages::VmId;
use thiserror::Error;

/// Why a store refused or failed an operation.
///
/// Every message names the path or VM concerned and, where the user can do something about it, what.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A VM that runs while its memory arrives cannot be given a page.
    #[error("VM {vm:?}: cannot place memory that guests run on")]
    Lazy {
        /// The VM.
        vm: String,
        /// Why.
        #[source]
        source: vmm::lazy::LazyError,
    },
    /// Another receiver has this store open.
    #[error("store {path} is in use by {}: stop that receiver or choose another store directory", owner(*pid))]
    Locked {
        /// The store's directory.
        path: PathBuf,
        /// Process id of the other receiver, where its lock file tells.
        pid: Option<u32>,
    },
    /// A VM or transfer name that cannot be a file name of the store.
    #[error("{what} name {name:?} cannot be used: {reason}")]
    BadName {
        /// `"VM"` or `"transfer"`.
        what: &'static str,
        /// The name as given.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The same VM id or name stands twice in one transfer.
    #[error(
        "VM {name:?} ({vm:?}) is listed twice in this transfer: every VM needs an id and a name of its own"
    )]
    DuplicateVm {
        /// The second VM's id.
        vm: VmId,
        /// The second VM's name.
        name: String,
    },
    /// A VM's page count does not follow from its file's length.
    #[error("VM {name:?}: {page_count} pages do not match a file of {file_len} bytes")]
    BadSpec {
        /// The VM's name.
        name: String,
        /// Its file's length in bytes.
        file_len: u64,
        /// Its number of pages as given.
        page_count: u32,
    },
    /// A transfer or VM is being received already by this process.
    #[error("{what} {name:?} is being received already: wait for that transfer or stop it")]
    Busy {
        /// `"VM"` or `"transfer"`.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// The image's place is taken by a file that is not this transfer's own.
    #[error(
        "VM {vm:?}: {path} exists and was not made by this transfer: move it away, or allow replacing it"
    )]
    ImageExists {
        /// The VM's name.
        vm: String,
        /// The file in the way.
        path: PathBuf,
    },
    /// Something that is not a regular file stands where the store keeps a file.
    #[error("{path} is not a regular file: move it away")]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// The file system is full, or would be.
    #[error(
        "{path}: {} needs {needed_bytes} bytes, {free_bytes} are free: free some space and start the receiver \
         again, it resumes with what it holds", subject(vm.as_deref())
    )]
    StoreFull {
        /// The file or directory on the full file system.
        path: PathBuf,
        /// The VM's name, where one VM is concerned.
        vm: Option<String>,
        /// Bytes that were to be written.
        needed_bytes: u64,
        /// Bytes available to this user.
        free_bytes: u64,
    },
    /// The user's disk quota is used up.
    #[error("{path}: the disk quota is exhausted while writing {}: raise it or choose another store", subject(vm.as_deref()))]
    QuotaExceeded {
        /// The file concerned.
        path: PathBuf,
        /// The VM's name, where one VM is concerned.
        vm: Option<String>,
    },
    /// The file system is mounted read-only.
    #[error("{path}: the file system is read-only: choose another store or mount it writable")]
    ReadOnly {
        /// The file or directory concerned.
        path: PathBuf,
    },
    /// The process may not do that.
    #[error("{path}: no permission to {action}: give this user the right, or choose another store")]
    Permission {
        /// The file or directory concerned.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The file system cannot hold a file of this size.
    #[error("{path}: a file of {file_len} bytes is too large for this file system: choose another store")]
    FileTooLarge {
        /// The image.
        path: PathBuf,
        /// The length it must have, in bytes.
        file_len: u64,
    },
    /// A block names pages that the VM does not have.
    #[error("VM {vm:?}: block places {count} pages at page {first}, the VM has {page_count}")]
    PageOutOfRange {
        /// The VM's name.
        vm: String,
        /// First page of the run.
        first: u32,
        /// Pages in the run.
        count: u32,
        /// Pages of the VM.
        page_count: u32,
    },
    /// A block contradicts itself: the sender is broken, nothing was written.
    #[error("block {digest} is inconsistent: {reason}")]
    BadBlock {
        /// First bytes of the block's digest, in hexadecimal.
        digest: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// An operation needs a complete image.
    #[error("VM {vm:?} is not complete: {remaining_pages} pages are missing")]
    NotComplete {
        /// The VM's name.
        vm: String,
        /// Pages that are not there yet.
        remaining_pages: u32,
    },
    /// The VM is not one of this intake's.
    #[error("{vm:?} is not a VM of this transfer on this host")]
    UnknownVm {
        /// The id asked for.
        vm: VmId,
    },
    /// The disk lost data that it had accepted; nothing of this transfer can be trusted any more.
    #[error(
        "{path}: the disk failed to write data back ({source}): what was received is discarded; \
         check the disk, then start the transfer again"
    )]
    WriteBack {
        /// The image or journal concerned.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Any other failure of the system.
    #[error("{path}: cannot {action}")]
    Io {
        /// The file or directory concerned.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

fn owner(pid: Option<u32>) -> String {
    pid.map_or_else(|| "another receiver".to_owned(), |pid| format!("another receiver (process {pid})"))
}

fn subject(vm: Option<&str>) -> String {
    vm.map_or_else(|| "the store".to_owned(), |vm| format!("VM {vm:?}"))
}

/// What was being done when the system refused: turns an [`io::Error`] into a [`StoreError`].
#[derive(Clone, Copy)]
pub(super) struct Attempt<'a> {
    pub(super) action: &'static str,
    pub(super) path: &'a Path,
    pub(super) vm: Option<&'a str>,
    /// Bytes that were to be written; 0 if none.
    pub(super) bytes: u64,
}

impl<'a> Attempt<'a> {
    pub(super) fn on(action: &'static str, path: &'a Path) -> Self {
        Self { action, path, vm: None, bytes: 0 }
    }

    pub(super) fn failed(self, source: io::Error) -> StoreError {
        let path = self.path.to_path_buf();
        let vm = self.vm.map(str::to_owned);
        match source.raw_os_error() {
            Some(libc::ENOSPC) => {
                let free_bytes = super::disk::free_bytes(self.path).unwrap_or(0);
                StoreError::StoreFull { path, vm, needed_bytes: self.bytes, free_bytes }
            }
            Some(libc::EDQUOT) => StoreError::QuotaExceeded { path, vm },
            Some(libc::EROFS) => StoreError::ReadOnly { path },
            Some(libc::EFBIG) => StoreError::FileTooLarge { path, file_len: self.bytes },
            Some(libc::EACCES | libc::EPERM) => StoreError::Permission { path, action: self.action, source },
            // O_NOFOLLOW answers so to a symbolic link.
            Some(libc::ELOOP | libc::EISDIR) => StoreError::NotAFile { path },
            _ => StoreError::Io { path, action: self.action, source },
        }
    }
}
