//! A userfaultfd: one process's page faults in registered ranges, as messages.

use super::sys;
use super::{Backing, UffdError};
use crate::memory::GuestMemory;
use nix::errno::Errno;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Messages that are read by one call.
pub(super) const BATCH: usize = 64;

/// What a read brought.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Event {
    /// Someone waits for the page at this address.
    Fault { address: u64 },
    /// The range was given back to the system: what is faulted there from now on is zero.
    Remove { start: u64, end: u64 },
    /// Another one, which is not asked for.
    Other(u8),
}

/// How far a fill came: this many bytes, then this error, unless all was filled.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Filled {
    /// Bytes from the beginning of the range.
    pub bytes: u64,
    /// Why not more. [`Errno::EAGAIN`] with 0 bytes: an event waits to be read first. [`Errno::EEXIST`]: the next page is there already.
    pub error: Option<Errno>,
}

/// A userfaultfd, made here or handed over by a VMM.
///
/// Dropping the last descriptor of one unregisters its ranges: who waits wakes up and, on anonymous memory, reads zeros. So
/// a [`PageServer`](super::PageServer) ends a VM before it lets go of one that is not complete.
#[derive(Debug)]
pub struct Uffd(File);

impl Uffd {
    /// Opens one for this process, with the features that [`Backing`] needs and events of removed ranges.
    ///
    /// # Errors
    ///
    /// [`UffdError::Unavailable`] without the right to open one; [`UffdError::Feature`] if the kernel is too old.
    pub fn open(backing: Backing) -> Result<Self, UffdError> {
        let this = Self(File::from(new_fd().map_err(UffdError::Unavailable)?));
        let features = sys::FEATURE_EVENT_REMOVE
            | match backing {
                Backing::Anonymous => 0,
                Backing::PrivateView => sys::FEATURE_MISSING_SHMEM,
                Backing::SharedFile => sys::FEATURE_MISSING_SHMEM | sys::FEATURE_MINOR_SHMEM,
                Backing::Huge => sys::FEATURE_MISSING_HUGETLBFS,
            };
        let mut api = sys::Api { api: sys::API, features, ioctls: 0 };
        // SAFETY: the descriptor is a userfaultfd, the structure is as the kernel has it and outlives the call.
        unsafe { sys::api(this.0.as_raw_fd(), &mut api) }
            .map_err(|error| UffdError::Feature { backing, source: io::Error::from(error) })?;
        Ok(this)
    }

    /// Opens one for a guest's whole memory and registers it.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open) and [`register`](Self::register).
    pub fn for_memory(memory: &GuestMemory, backing: Backing) -> Result<Self, UffdError> {
        let uffd = Self::open(backing)?;
        uffd.register(memory.address(), memory.len() as u64, backing)?;
        Ok(uffd)
    }

    /// Takes one that another process has opened and registered, which must be non-blocking as Firecracker's are; it
    /// is made so if it is not.
    ///
    /// # Errors
    ///
    /// The descriptor cannot be changed.
    pub fn from_owned(fd: OwnedFd) -> Result<Self, UffdError> {
        use nix::fcntl::{FcntlArg, OFlag, fcntl};
        let system =
            |source: Errno| UffdError::System { action: "take a userfaultfd", source: source.into() };
        let flags = fcntl(&fd, FcntlArg::F_GETFL).map_err(system)?;
        let flags = OFlag::from_bits_truncate(flags) | OFlag::O_NONBLOCK;
        fcntl(&fd, FcntlArg::F_SETFL(flags)).map_err(system)?;
        Ok(Self(File::from(fd)))
    }

    /// Another descriptor of the same userfaultfd: with it, a supervisor keeps waiting guests waiting.
    ///
    /// # Errors
    ///
    /// No descriptors left.
    pub fn try_clone(&self) -> Result<Self, UffdError> {
        let file = self
            .0
            .try_clone()
            .map_err(|source| UffdError::System { action: "duplicate a userfaultfd", source })?;
        Ok(Self(file))
    }

    /// Registers a mapping of this process: from now on faults on missing pages wait. Address and length are multiples of its
    /// page size.
    ///
    /// # Errors
    ///
    /// The kernel refuses: the range is no mapping, or not of this kind.
    pub fn register(&self, address: u64, len: u64, backing: Backing) -> Result<(), UffdError> {
        let mode = match backing {
            Backing::Anonymous | Backing::PrivateView | Backing::Huge => sys::REGISTER_MISSING,
            Backing::SharedFile => sys::REGISTER_MISSING | sys::REGISTER_MINOR,
        };
        let mut register = sys::Register { range: sys::Range { start: address, len }, mode, ioctls: 0 };
        // SAFETY: the structure is as the kernel has it; registering changes who answers faults, no memory.
        unsafe { sys::register(self.0.as_raw_fd(), &mut register) }.map_err(|error| UffdError::Register {
            address,
            len,
            source: error.into(),
        })?;
        Ok(())
    }

    /// Ends the registration of a range: later faults are the kernel's, as of any memory.
    pub(super) fn unregister(&self, address: u64, len: u64) -> Result<(), Errno> {
        let mut range = sys::Range { start: address, len };
        // SAFETY: as in `register`.
        unsafe { sys::unregister(self.0.as_raw_fd(), &mut range) }.map(drop)
    }

    /// Copies bytes to missing pages at `address`, and wakes who waits for them.
    ///
    /// `address` is where the memory stands in the process that opened the userfaultfd; the kernel checks it.
    pub fn copy(&self, address: u64, bytes: &[u8]) -> Filled {
        let len = bytes.len() as u64;
        let mut copy = sys::Copy_ { dst: address, src: bytes.as_ptr() as u64, len, mode: 0, copied: 0 };
        // SAFETY: the kernel reads `len` bytes of the slice, and writes only to missing pages of ranges that are
        // registered with this userfaultfd: memory that nobody has seen yet.
        let result = unsafe { sys::copy(self.0.as_raw_fd(), &mut copy) };
        filled(result, copy.copied, len)
    }

    /// Fills missing pages with zeros, and wakes who waits for them.
    pub fn zero(&self, address: u64, len: u64) -> Filled {
        let mut fill = sys::Fill { range: sys::Range { start: address, len }, mode: 0, filled: 0 };
        // SAFETY: as in `copy`; nothing is read.
        let result = unsafe { sys::zeropage(self.0.as_raw_fd(), &mut fill) };
        filled(result, fill.filled, len)
    }

    /// Maps pages that stand in the shared file already, and wakes who waits for them.
    pub fn continue_(&self, address: u64, len: u64) -> Filled {
        let mut fill = sys::Fill { range: sys::Range { start: address, len }, mode: 0, filled: 0 };
        // SAFETY: as in `copy`; what is mapped is the file that the range is a mapping of.
        let result = unsafe { sys::continue_(self.0.as_raw_fd(), &mut fill) };
        filled(result, fill.filled, len)
    }

    /// Wakes who waits in a range: it looks again.
    ///
    /// # Errors
    ///
    /// `ESRCH`: the process has ended; `EINVAL`: nothing is registered there.
    pub fn wake(&self, address: u64, len: u64) -> Result<(), Errno> {
        let mut range = sys::Range { start: address, len };
        // SAFETY: waking changes no memory.
        unsafe { sys::wake(self.0.as_raw_fd(), &mut range) }.map(drop)
    }

    /// Reads up to [`BATCH`] messages without waiting; `Ok` with none if there is none.
    pub(super) fn read(&self, events: &mut Vec<Event>) -> io::Result<()> {
        let mut messages = [sys::Message::default(); BATCH];
        let read = loop {
            // SAFETY: the buffer is as long as said, and any bytes are a `Message`.
            let read = unsafe {
                libc::read(self.0.as_raw_fd(), messages.as_mut_ptr().cast(), size_of_val(&messages))
            };
            match usize::try_from(read) {
                Ok(read) => break read,
                Err(_) => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error => return Err(error),
                },
            }
        };
        let count = read / size_of::<sys::Message>();
        events.extend(messages[..count].iter().map(|message| match message.event {
            sys::EVENT_PAGEFAULT => Event::Fault { address: message.args[1] },
            sys::EVENT_REMOVE | sys::EVENT_UNMAP => {
                Event::Remove { start: message.args[0], end: message.args[1] }
            }
            other => Event::Other(other),
        }));
        Ok(())
    }
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<Uffd> for OwnedFd {
    fn from(uffd: Uffd) -> Self {
        uffd.0.into()
    }
}

fn filled(result: nix::Result<libc::c_int>, done: i64, len: u64) -> Filled {
    // Where it failed, the field holds what was done before or minus the error; old kernels leave it as it was.
    match result {
        Ok(_) => Filled { bytes: len, error: None },
        Err(error) => Filled { bytes: u64::try_from(done).unwrap_or(0), error: Some(error) },
    }
}

/// From the device, whose permissions say who may; else by the system call, which asks for privileges.
fn new_fd() -> io::Result<OwnedFd> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    if let Ok(device) = File::options().read(true).write(true).open("/dev/userfaultfd") {
        // SAFETY: the device takes this request with flags as its argument.
        let fd = unsafe { libc::ioctl(device.as_raw_fd(), sys::NEW, flags) };
        if fd >= 0 {
            // SAFETY: the kernel has just made this descriptor for us.
            return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
    // SAFETY: the system call takes flags only.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
    match i32::try_from(fd) {
        // SAFETY: the kernel has just made this descriptor for us.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}
