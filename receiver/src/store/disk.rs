//! Files of the store: every byte that changes on disk passes through [`StoreFile`].
//!
//! In tests a [`faults::Faults`] stands between it and the system, to crash at any system call and to lose what a
//! power failure may lose.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::FallocateFlags;
use nix::libc;
use nix::unistd::Whence;

#[cfg(test)]
use super::tests::faults::Faults;

/// Most buffers of one `pwritev` (`IOV_MAX` on Linux).
const IOV_MAX: usize = 1024;
/// Shorter ranges are zeroed by writing: freeing blocks costs a file system more than that.
const PUNCH_BYTES_MIN: u64 = 32 << 10;
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// How files are opened: in tests with a fault injector, otherwise plainly.
#[derive(Clone, Default)]
pub(super) struct Disk {
    #[cfg(test)]
    pub(super) faults: Option<std::sync::Arc<Faults>>,
}

/// A regular file of the store, open for reading and writing by offset.
pub(super) struct StoreFile {
    file: File,
    #[cfg(test)]
    faults: Option<std::sync::Arc<Faults>>,
}

impl Disk {
    /// Opens `path`, creating it (for this user alone: guests' memory is secret) if asked; never through a link.
    pub(super) fn open(&self, path: &Path, create: bool) -> io::Result<StoreFile> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(create)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::from_raw_os_error(libc::ELOOP));
        }
        Ok(StoreFile {
            file,
            #[cfg(test)]
            faults: self.faults.clone(),
        })
    }

    /// Renames within one directory and makes that durable.
    pub(super) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.metadata_step()?;
        std::fs::rename(from, to)?;
        to.parent().map_or(Ok(()), sync_dir)
    }

    /// Removes a file and makes that durable.
    pub(super) fn remove(&self, path: &Path) -> io::Result<()> {
        self.metadata_step()?;
        std::fs::remove_file(path)?;
        path.parent().map_or(Ok(()), sync_dir)
    }

    #[cfg(test)]
    fn metadata_step(&self) -> io::Result<()> {
        self.faults.as_ref().map_or(Ok(()), |faults| faults.step_whole())
    }

    #[cfg(not(test))]
    #[expect(
        clippy::unused_self,
        clippy::unnecessary_wraps,
        reason = "the counterpart in tests injects faults"
    )]
    fn metadata_step(&self) -> io::Result<()> {
        Ok(())
    }
}

impl StoreFile {
    /// The same open file once more.
    pub(super) fn try_clone(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    pub(super) fn metadata(&self) -> io::Result<Metadata> {
        self.file.metadata()
    }

    pub(super) fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(bytes, offset)
    }

    pub(super) fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        #[cfg(test)]
        if let Some(faults) = &self.faults {
            return faults.write(&self.file, bytes, offset);
        }
        self.file.write_all_at(bytes, offset)
    }

    /// Writes all of `slices` one after the other from `offset` on; returns the number of system calls.
    pub(super) fn write_vectored_at(
        &self,
        mut slices: &mut [IoSlice<'_>],
        mut offset: u64,
    ) -> io::Result<u64> {
        let mut calls = 0;
        while !slices.is_empty() {
            if let [only] = slices {
                self.write_all_at(only, offset)?;
                return Ok(calls + 1);
            }
            #[cfg(test)]
            if let Some(faults) = &self.faults {
                faults.write(&self.file, &slices[0], offset)?;
                offset += slices[0].len() as u64;
                slices = &mut slices[1..];
                calls += 1;
                continue;
            }
            let batch = slices.len().min(IOV_MAX);
            let start = libc::off_t::try_from(offset).map_err(io::Error::other)?;
            calls += 1;
            match nix::sys::uio::pwritev(&self.file, &slices[..batch], start) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    IoSlice::advance_slices(&mut slices, written);
                    offset += written as u64;
                }
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(calls)
    }

    /// Makes a range read as zero, freeing its blocks where that is worth it; returns the number of system calls.
    pub(super) fn zero(&self, offset: u64, len: u64) -> io::Result<u64> {
        if len >= PUNCH_BYTES_MIN && self.punch(offset, len)? {
            return Ok(1);
        }
        let (mut at, mut calls) = (offset, 0);
        while at < offset + len {
            let piece = usize::try_from(offset + len - at).map_or(ZEROS.len(), |rest| rest.min(ZEROS.len()));
            self.write_all_at(&ZEROS[..piece], at)?;
            at += piece as u64;
            calls += 1;
        }
        Ok(calls)
    }

    /// Frees a range's blocks; `false` if the file system cannot.
    fn punch(&self, offset: u64, len: u64) -> io::Result<bool> {
        #[cfg(test)]
        if let Some(faults) = &self.faults {
            faults.write_zeros(&self.file, offset, len)?;
        }
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let (Ok(start), Ok(length)) = (libc::off_t::try_from(offset), libc::off_t::try_from(len)) else {
            return Ok(false);
        };
        loop {
            match nix::fcntl::fallocate(&self.file, flags, start, length) {
                Ok(()) => return Ok(true),
                Err(Errno::EINTR) => {}
                Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL) => return Ok(false),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Makes the file one hole of `len` bytes.
    pub(super) fn reset(&self, len: u64) -> io::Result<()> {
        #[cfg(test)]
        if let Some(faults) = &self.faults {
            let old = self.file.metadata()?.len();
            faults.write_zeros(&self.file, 0, old)?;
        }
        self.file.set_len(0)?;
        self.file.set_len(len)
    }

    /// Cuts or extends the file.
    pub(super) fn set_len(&self, len: u64) -> io::Result<()> {
        #[cfg(test)]
        if let Some(faults) = &self.faults {
            faults.step_whole()?;
        }
        self.file.set_len(len)
    }

    /// `fdatasync`: contents and length are on disk when it returns.
    pub(super) fn sync_data(&self) -> io::Result<()> {
        #[cfg(test)]
        if let Some(faults) = &self.faults {
            faults.synced(&self.file)?;
        }
        self.file.sync_data()
    }

    /// `fsync`: contents and all metadata, times included.
    pub(super) fn sync_all(&self) -> io::Result<()> {
        #[cfg(test)]
        if let Some(faults) = &self.faults {
            faults.synced(&self.file)?;
        }
        self.file.sync_all()
    }

    /// Calls `f` with each range of the file that may hold anything but zeros (`SEEK_DATA`/`SEEK_HOLE`).
    pub(super) fn data_ranges(&self, len: u64, mut f: impl FnMut(u64, u64)) -> io::Result<()> {
        let mut at = 0;
        while at < len {
            let Ok(position) = libc::off_t::try_from(at) else { break };
            let start = match nix::unistd::lseek(&self.file, position, Whence::SeekData) {
                Ok(start) => start,
                // No data up to the end.
                Err(Errno::ENXIO) => break,
                // A file system that does not know: all of it may be data.
                Err(Errno::EINVAL | Errno::EOPNOTSUPP) => {
                    f(at, len);
                    break;
                }
                Err(errno) => return Err(errno.into()),
            };
            let end = nix::unistd::lseek(&self.file, start, Whence::SeekHole)?;
            let (start, end) = (u64::try_from(start).unwrap_or(at), u64::try_from(end).unwrap_or(len));
            f(start, end.min(len));
            at = end.max(at + 1);
        }
        Ok(())
    }
}

/// Makes the entries of a directory durable.
pub(super) fn sync_dir(path: &Path) -> io::Result<()> {
    match File::open(path)?.sync_all() {
        // Some file systems (FUSE, overlays) know no fsync of directories.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        other => other,
    }
}

/// Creates a directory, and its parents, for this user alone; an existing one is left as it is.
pub(super) fn create_dir(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Bytes that this user may still write to the file system of `path`.
pub(super) fn free_bytes(path: &Path) -> io::Result<u64> {
    let stat = nix::sys::statvfs::statvfs(path)?;
    Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
}
