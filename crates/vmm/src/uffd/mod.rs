//! The page server: answers the page faults of one or many VMs from images that are being filled.
//!
//! ```text
//! guest ──fault──▶ userfaultfd ──▶ PageServer (one thread) ──demand──▶ LazyImage ◀── blocks, answers
//!       ◀──copy, zero, map, wake──                         ◀───news───
//! ```
//!
//! [`PageServer::start`], then [`PageServer::attach`] for each VM: its [`Uffd`], the [`LazyImage`](crate::LazyImage) whose pages it needs,
//! where they go ([`Region`]), and how the VM is ended if they will not come ([`Guard`]). docs/post-copy.md has the rest.
//!
//! What [`Backing`] a VM has decides how a page comes to it:
//!
//! | memory | a page that is here | a zero page | copies |
//! |---|---|---|---|
//! | [`Anonymous`](Backing::Anonymous) | `UFFDIO_COPY` | `UFFDIO_ZEROPAGE` | one a VM |
//! | [`PrivateView`](Backing::PrivateView) of the image's file | `UFFDIO_WAKE`: the guest finds it in the page cache | `UFFDIO_ZEROPAGE` | none |
//! | [`SharedFile`](Backing::SharedFile), the image's | `UFFDIO_CONTINUE` | `UFFDIO_ZEROPAGE` | none |
//! | [`Huge`](Backing::Huge) pages | assembled, `UFFDIO_COPY` | the same | two a VM |
//!
//! No lock is held while anything is waited for, and faults of other VMs are answered while one waits.

mod fd;
mod guard;
mod placing;
mod server;
mod serving;
mod stats;
mod sys;
#[cfg(test)]
mod tests;
mod vm;
mod watchdog;
mod working_set;

pub use fd::{Filled, Uffd};
pub use guard::{Guard, PidFd};
pub use server::{Attachment, PageServer, ServedVm, VmStatus};
pub use stats::{FaultStats, Histogram};
pub use watchdog::Watchdog;
pub use working_set::{WorkingSet, WorkingSetError};

use crate::memory::GuestMemory;
use pages::PAGE_SIZE;
use std::io;

/// What kind of memory a VM has.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Backing {
    /// Anonymous memory of its own.
    Anonymous,
    /// A private (copy-on-write) mapping of the image's own file: clones of a host share clean pages.
    ///
    /// Safe only where shared memory comes in small pages: see [`private_views_are_safe`].
    PrivateView,
    /// A shared mapping of the image's own file: for one VM, which then owns the file.
    SharedFile,
    /// Memory of huge pages: each is brought whole.
    Huge,
}

/// A part of a VM's memory. All numbers are multiples of `page_bytes`.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Region {
    /// Where it begins, in the process that runs the VM.
    pub address: u64,
    /// Bytes.
    pub len: u64,
    /// The byte of the image that stands at its beginning.
    pub image_offset: u64,
    /// 4,096, or the size of its huge pages.
    pub page_bytes: u64,
}

impl Region {
    /// A guest's whole memory in this process, which is the whole image, in pages of 4 KiB.
    #[must_use]
    pub fn whole(memory: &GuestMemory) -> Self {
        let (address, len) = (memory.address(), memory.len() as u64);
        Self { address, len, image_offset: 0, page_bytes: PAGE_SIZE as u64 }
    }
}

/// Why faults cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UffdError {
    /// No userfaultfd for this process.
    #[error(
        "no userfaultfd: the right to open /dev/userfaultfd is needed (or root, or vm.unprivileged_userfaultfd=1)"
    )]
    Unavailable(#[source] io::Error),
    /// The kernel is too old.
    #[error("this kernel's userfaultfd cannot serve {backing:?} memory: Linux 5.14 or later is needed")]
    Feature {
        /// What was asked.
        backing: Backing,
        /// Its answer.
        #[source]
        source: io::Error,
    },
    /// A range is refused.
    #[error("cannot register {len} bytes at {address:#x} for page faults")]
    Register {
        /// Where.
        address: u64,
        /// How many.
        len: u64,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Shared memory may come in huge pages, whose unfilled parts a guest would read as zeros.
    #[error(
        "{what} lets shared memory come in huge pages, so that a guest could read parts that are not filled yet: \
         set it to `never` or `advise`, or give the VM memory of its own"
    )]
    HugeShared {
        /// The setting.
        what: String,
    },
    /// A region is empty, not aligned, or not within the image.
    #[error("{name}: region {region:?} does not fit an image of {image_bytes} bytes")]
    Region {
        /// The VM.
        name: String,
        /// The region.
        region: Region,
        /// The image's length.
        image_bytes: u64,
    },
    /// Too many VMs or regions.
    #[error("{what}: at most {max}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// The limit.
        max: usize,
    },
    /// The server has ended, and its VMs with it.
    #[error("the page server has ended")]
    Ended,
    /// A call that should not fail.
    #[error("cannot {action}")]
    System {
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The image refuses.
    #[error("the image of the VM's memory cannot be used")]
    Image(#[from] crate::lazy::LazyError),
}

/// Checks that [`Backing::PrivateView`] and [`Backing::SharedFile`] are safe on this machine for memfds: that shared memory does not
/// come in huge pages of its own accord. In one that is partly written, a guest would find the other parts without a fault, as zeros.
///
/// # Errors
///
/// [`UffdError::HugeShared`] names the setting. Files on a tmpfs mounted with `huge=` are the caller's affair: this looks at memfds' settings.
pub fn private_views_are_safe() -> Result<(), UffdError> {
    let dir = std::path::Path::new("/sys/kernel/mm/transparent_hugepage");
    let mut settings = vec![dir.join("shmem_enabled")];
    if let Ok(sizes) = std::fs::read_dir(dir) {
        settings.extend(sizes.filter_map(Result::ok).map(|size| size.path().join("shmem_enabled")));
    }
    for setting in settings {
        // A kernel without huge pages, or without this size for shared memory, has no such file.
        let Ok(text) = std::fs::read_to_string(&setting) else { continue };
        if ["[always]", "[within_size]", "[force]"].iter().any(|chosen| text.contains(chosen)) {
            return Err(UffdError::HugeShared { what: setting.display().to_string() });
        }
    }
    Ok(())
}
