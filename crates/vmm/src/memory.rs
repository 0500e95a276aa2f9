//! A guest's memory: one mapping in this process.

use pages::{PAGE_SIZE, Page};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::ptr::{self, NonNull};

/// Memory cannot be mapped, or a file of it read or written.
#[derive(Debug, thiserror::Error)]
#[error("guest memory of {bytes} bytes: cannot {action}")]
pub struct MemoryError {
    /// Its length.
    pub bytes: u64,
    /// What was tried.
    pub action: &'static str,
    /// The system's answer.
    #[source]
    pub source: io::Error,
}

/// A mapping that is a guest's memory, from guest address 0 on.
///
/// Other threads (a vCPU, a page server) read and write it at any time, so it is never handed out as a Rust slice:
/// [`read_page`](Self::read_page) copies.
#[derive(Debug)]
pub struct GuestMemory {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread; all access is through raw copies.
unsafe impl Send for GuestMemory {}
// SAFETY: as above; `&GuestMemory` gives no references into the mapping.
unsafe impl Sync for GuestMemory {}

impl GuestMemory {
    /// Fresh anonymous memory: zeros, or nothing at all once a userfaultfd is registered on it.
    ///
    /// # Errors
    ///
    /// The system refuses the mapping.
    pub fn anonymous(len: usize) -> Result<Self, MemoryError> {
        Self::map(len, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE, -1)
    }

    /// Fresh anonymous memory of huge pages (2 MiB, or the system's default size), which the system must have reserved.
    ///
    /// # Errors
    ///
    /// The system has not as many.
    pub fn huge(len: usize) -> Result<Self, MemoryError> {
        Self::map(len, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB, -1)
    }

    /// A private view of the first `len` bytes of a file: clean pages are the file's (shared by all clones on the
    /// host), written ones are this guest's own.
    ///
    /// # Errors
    ///
    /// The system refuses the mapping.
    pub fn private_file(file: impl AsFd, len: usize) -> Result<Self, MemoryError> {
        Self::map(len, libc::MAP_PRIVATE | libc::MAP_NORESERVE, file.as_fd().as_raw_fd())
    }

    /// A shared view of the first `len` bytes of a file (a memfd): another process can hold the same memory.
    ///
    /// # Errors
    ///
    /// The system refuses the mapping.
    pub fn shared_file(file: impl AsFd, len: usize) -> Result<Self, MemoryError> {
        Self::map(len, libc::MAP_SHARED | libc::MAP_NORESERVE, file.as_fd().as_raw_fd())
    }

    fn map(len: usize, flags: libc::c_int, fd: libc::c_int) -> Result<Self, MemoryError> {
        let error = |source| MemoryError { bytes: len as u64, action: "map it", source };
        if len == 0 || !len.is_multiple_of(PAGE_SIZE) {
            return Err(error(io::Error::from_raw_os_error(libc::EINVAL)));
        }
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing; `fd` is open or -1.
        let base =
            unsafe { libc::mmap(ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, fd, 0) };
        match NonNull::new(base.cast::<u8>()) {
            Some(base) if base.as_ptr().cast() != libc::MAP_FAILED => Ok(Self { base, len }),
            _ => Err(error(io::Error::last_os_error())),
        }
    }

    /// Where the mapping begins in this process, 4 KiB-aligned.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.base.as_ptr() as u64
    }

    /// Its length in bytes, a multiple of 4 KiB.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never true: an empty mapping cannot be made.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of 4 KiB pages.
    #[must_use]
    pub fn page_count(&self) -> usize {
        self.len / PAGE_SIZE
    }

    /// Copies a page. Of a running guest it may be a mixture; behind a userfaultfd it may wait for the page.
    ///
    /// # Panics
    ///
    /// If there is no such page.
    pub fn read_page(&self, page: usize, into: &mut Page) {
        assert!(page < self.page_count(), "page {page} of a memory of {}", self.page_count());
        // SAFETY: the source is within the mapping (asserted), which lives as long as `self`; `into` is a page
        // of its own and cannot overlap it.
        unsafe {
            ptr::copy_nonoverlapping(self.base.as_ptr().add(page * PAGE_SIZE), into.as_mut_ptr(), PAGE_SIZE);
        }
    }

    /// Copies bytes into the memory at a guest address.
    ///
    /// # Errors
    ///
    /// They do not fit.
    pub fn write(&self, at: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        let fits = usize::try_from(at)
            .ok()
            .filter(|at| at.checked_add(bytes.len()).is_some_and(|end| end <= self.len));
        let Some(at) = fits else {
            let source = io::Error::from_raw_os_error(libc::EFAULT);
            return Err(MemoryError { bytes: self.len as u64, action: "load the guest", source });
        };
        // SAFETY: the target is within the mapping (checked), and `bytes` is no part of it.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.base.as_ptr().add(at), bytes.len()) };
        Ok(())
    }

    /// Writes all pages into a file, at their offsets; zero pages become holes. The guest must be paused.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn write_to(&self, file: &File) -> Result<(), MemoryError> {
        let error = |source| MemoryError { bytes: self.len as u64, action: "write it", source };
        file.set_len(0).map_err(error)?;
        file.set_len(self.len as u64).map_err(error)?;
        let mut page = [0; PAGE_SIZE];
        for i in 0..self.page_count() {
            self.read_page(i, &mut page);
            if page != [0; PAGE_SIZE] {
                file.write_all_at(&page, (i * PAGE_SIZE) as u64).map_err(error)?;
            }
        }
        Ok(())
    }

    /// Bytes of it that are no file's: what a clone costs beyond what it shares. Of a private view, pages that were written; of
    /// anonymous memory, pages that are there. Swapped ones are not counted.
    ///
    /// # Errors
    ///
    /// `/proc/self/pagemap` cannot be read.
    pub fn own_bytes(&self) -> io::Result<u64> {
        // Documentation/admin-guide/mm/pagemap.rst: the page is there, it is a file's, it is mapped here only. The kernel's
        // one page of zeros is neither of the last two.
        const PRESENT: u64 = 1 << 63;
        const FILE: u64 = 1 << 61;
        const EXCLUSIVE: u64 = 1 << 56;
        let pagemap = File::open("/proc/self/pagemap")?;
        let mut entries = vec![0u8; self.page_count() * 8];
        pagemap.read_exact_at(&mut entries, self.address() / PAGE_SIZE as u64 * 8)?;
        #[expect(clippy::host_endian_bytes, reason = "the kernel writes its own words")]
        let own = |entry: &&[u8; 8]| {
            u64::from_ne_bytes(**entry) & (PRESENT | FILE | EXCLUSIVE) == PRESENT | EXCLUSIVE
        };
        Ok(entries.as_chunks().0.iter().filter(own).count() as u64 * PAGE_SIZE as u64)
    }

    /// Gives a range back to the system (`MADV_DONTNEED`), as a balloon does: it reads as zeros (or the file's bytes) next.
    ///
    /// # Errors
    ///
    /// The system refuses.
    ///
    /// # Panics
    ///
    /// If the range is not of this memory.
    pub fn discard(&self, first_page: usize, pages: usize) -> io::Result<()> {
        let end = first_page.checked_add(pages).expect("a count of pages");
        assert!(end <= self.page_count(), "pages to {end} of a memory of {}", self.page_count());
        // SAFETY: the range is within the mapping (asserted); nobody holds references into it.
        let result = unsafe {
            let at = self.base.as_ptr().add(first_page * PAGE_SIZE);
            libc::madvise(at.cast(), pages * PAGE_SIZE, libc::MADV_DONTNEED)
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

impl Drop for GuestMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `map`, is unmapped once, and its users hold an `Arc` of it.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}
