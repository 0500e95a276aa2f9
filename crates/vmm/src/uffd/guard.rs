//! What happens to a VM whose pages will not come: it is ended, by name, never left to hang.

use super::UffdError;
use nix::errno::Errno;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// Linux 6.5 (asm-generic/socket.h): the peer's pidfd, with no chance that its number means another process by now.
const SO_PEERPIDFD: libc::c_int = 77;
/// The option's value is a descriptor.
const FD_BYTES: libc::socklen_t = 4;

/// How a VM is ended when it cannot be served any more.
pub enum Guard {
    /// The process that runs it is killed.
    Process(PidFd),
    /// A VM in this process: called once, with the reason. It must make sure that no vCPU runs when it returns, because
    /// pages that are missing read as zeros after that.
    Hook(Box<dyn FnOnce(&str) + Send>),
}

impl Guard {
    /// What tells that the VM's process has ended.
    pub(super) fn process(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Process(process) => Some(process.as_fd()),
            Self::Hook(_) => None,
        }
    }

    /// Ends the VM.
    pub(super) fn end(self, reason: &str) -> io::Result<()> {
        match self {
            Self::Process(process) => process.kill(),
            Self::Hook(hook) => {
                hook(reason);
                Ok(())
            }
        }
    }
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Process(process) => f.debug_tuple("Process").field(process).finish(),
            Self::Hook(_) => f.write_str("Hook"),
        }
    }
}

/// A process, named without the risk that its number is another one's.
#[derive(Debug)]
pub struct PidFd(OwnedFd);

impl PidFd {
    /// The process at the other end of a unix socket, as the kernel knows it.
    ///
    /// # Errors
    ///
    /// The kernel does not tell, or the process is gone.
    pub fn of_peer(socket: &UnixStream) -> Result<Self, UffdError> {
        let mut fd: libc::c_int = -1;
        let mut len = FD_BYTES;
        // SAFETY: the option's value is one int, and the pointers are to one and to its length.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                SO_PEERPIDFD,
                (&raw mut fd).cast(),
                &raw mut len,
            )
        };
        if result == 0 && fd >= 0 {
            // SAFETY: the kernel has just made this descriptor for us.
            return Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }));
        }
        // Before Linux 6.5: the number, which may be used again only after the peer, just connected, has ended.
        let system =
            |source: Errno| UffdError::System { action: "learn a socket's peer", source: source.into() };
        let peer = nix::sys::socket::getsockopt(socket, nix::sys::socket::sockopt::PeerCredentials)
            .map_err(system)?;
        Self::of(u32::try_from(peer.pid()).unwrap_or(0))
    }

    /// A process by its number; the caller knows that it still is the one that is meant (its own child, say).
    ///
    /// # Errors
    ///
    /// There is no such process.
    pub fn of(pid: u32) -> Result<Self, UffdError> {
        // SAFETY: the call takes a number and flags.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        match i32::try_from(fd) {
            // SAFETY: the kernel has just made this descriptor for us.
            Ok(fd) if fd >= 0 => Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) })),
            _ => Err(UffdError::System { action: "open a process", source: io::Error::last_os_error() }),
        }
    }

    /// Kills the process; one that has ended already is no error.
    ///
    /// # Errors
    ///
    /// This process may not.
    pub fn kill(&self) -> io::Result<()> {
        // SAFETY: a pidfd, a signal, no further information, no flags.
        let result = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.0.as_raw_fd(),
                libc::SIGKILL,
                std::ptr::null::<()>(),
                0,
            )
        };
        match io::Error::last_os_error() {
            _ if result == 0 => Ok(()),
            error if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            error => Err(error),
        }
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
