//! A process that outlives this one by an instant: if this one dies with VMs that wait for its pages, it kills them.
//!
//! A userfaultfd is held by the VMM too, so when its handler is killed, nothing wakes who waits: the guest hangs for ever and
//! nobody is told. No code of a killed process can prevent that, so a child does: it holds pidfds of the VMMs and one end of a
//! socket, and the kernel closes the other end when this process dies, however it dies.

use super::{PidFd, UffdError};
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Mutex;
use std::sync::PoisonError;

/// VMMs that one watchdog takes.
const SLOTS: usize = 1024;
const ADD: u8 = b'+';
const REMOVE: u8 = b'-';
const QUIT: u8 = b'q';
const MESSAGE_BYTES: usize = 3;

/// The child. Dropping it in order lets the VMMs live: they are on their own then.
#[derive(Debug)]
pub struct Watchdog {
    socket: OwnedFd,
    child: libc::pid_t,
    taken: Mutex<Vec<bool>>,
}

impl Watchdog {
    /// Starts the child. The earlier in a process's life, the cheaper: it is a fork, though one that touches no memory.
    ///
    /// # Errors
    ///
    /// No processes or descriptors left.
    pub fn start() -> Result<Self, UffdError> {
        let system = |source: io::Error| UffdError::System { action: "start the watchdog", source };
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .map_err(|error| system(error.into()))?;
        // SAFETY: the child of a process with threads may only make system calls until it ends: `watch` does nothing else,
        // on memory of its own stack.
        match unsafe { libc::fork() } {
            -1 => Err(system(io::Error::last_os_error())),
            0 => watch(theirs.as_raw_fd()),
            child => Ok(Self { socket: ours, child, taken: Mutex::new(vec![false; SLOTS]) }),
        }
    }

    /// From now on the process is killed when this one dies. Returns a number for [`release`](Self::release).
    ///
    /// # Errors
    ///
    /// Too many, or the watchdog is gone.
    pub fn guard(&self, process: &PidFd) -> Result<u16, UffdError> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let free = (0..).zip(taken.iter_mut()).find(|(_, taken)| !**taken);
        let (number, taken): (u16, &mut bool) =
            free.ok_or(UffdError::TooMany { what: "processes of one watchdog", max: SLOTS })?;
        self.send(ADD, number, Some(process.as_fd().as_raw_fd()))?;
        *taken = true;
        Ok(number)
    }

    /// The process depends on this one no longer.
    ///
    /// # Errors
    ///
    /// The watchdog is gone.
    pub fn release(&self, number: u16) -> Result<(), UffdError> {
        self.send(REMOVE, number, None)?;
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)[usize::from(number)] = false;
        Ok(())
    }

    fn send(&self, what: u8, number: u16, fd: Option<RawFd>) -> Result<(), UffdError> {
        let [low, high] = number.to_le_bytes();
        let message = [what, low, high];
        let fds: Vec<RawFd> = fd.into_iter().collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let control: &[ControlMessage<'_>] = if fds.is_empty() { &[] } else { &rights };
        sendmsg::<()>(
            self.socket.as_raw_fd(),
            &[IoSlice::new(&message)],
            control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        )
        .map_err(|error| UffdError::System { action: "reach the watchdog", source: error.into() })?;
        Ok(())
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        // If it is gone already, there is nothing left to be told.
        let _ = self.send(QUIT, 0, None);
        // SAFETY: waits for our own child, which ends at once; no status is asked for.
        unsafe { libc::waitpid(self.child, std::ptr::null_mut(), 0) };
    }
}

/// The child's whole life. System calls only: after a fork of a process with threads, any lock may be held for ever.
fn watch(socket: RawFd) -> ! {
    let mut fds: [RawFd; SLOTS] = [-1; SLOTS];
    // SAFETY: in all of this, pointers are to this function's own variables with their own sizes, and every descriptor is
    // this process's: nothing else runs in it.
    unsafe {
        // A signal to the parent's group or terminal is not for this process.
        libc::setsid();
        // Copies of the parent's descriptors would keep its sockets and userfaultfds alive: 3 becomes the socket, all others go.
        libc::dup2(socket, 3);
        libc::syscall(libc::SYS_close_range, 4, u32::MAX, 0);
        for standard in 0..3 {
            libc::close(standard);
        }
        loop {
            let mut message = [0u8; MESSAGE_BYTES];
            let mut control = [0u64; 8];
            let mut part = libc::iovec { iov_base: message.as_mut_ptr().cast(), iov_len: MESSAGE_BYTES };
            let mut header: libc::msghdr = std::mem::zeroed();
            header.msg_iov = &raw mut part;
            header.msg_iovlen = 1;
            header.msg_control = control.as_mut_ptr().cast();
            header.msg_controllen = size_of_val(&control);
            let read = libc::recvmsg(3, &raw mut header, 0);
            if read < 0 && *libc::__errno_location() == libc::EINTR {
                continue;
            }
            if read <= 0 {
                break;
            }
            let slot = usize::from(u16::from_le_bytes([message[1], message[2]])) % SLOTS;
            match message[0] {
                QUIT => libc::_exit(0),
                ADD => {
                    let first = libc::CMSG_FIRSTHDR(&raw const header);
                    if !first.is_null() && (*first).cmsg_type == libc::SCM_RIGHTS {
                        fds[slot] = libc::CMSG_DATA(first).cast::<RawFd>().read_unaligned();
                    }
                }
                _ => {
                    libc::close(fds[slot]);
                    fds[slot] = -1;
                }
            }
        }
        for fd in fds {
            if fd >= 0 {
                libc::syscall(libc::SYS_pidfd_send_signal, fd, libc::SIGKILL, std::ptr::null::<()>(), 0);
            }
        }
        libc::_exit(0)
    }
}
