//! Wakes a thread that waits for datagrams.

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// Wakes the thread in [`crate::udp::UdpReceiver::recv_batch`]. Shared by `Arc`; a wake-up is never lost, several
/// can become one, and waking a thread that has not taken the last one costs no system call.
#[derive(Debug)]
pub struct Waker {
    event: EventFd,
    /// Set from the first `wake` to the `take` that reports it.
    pending: AtomicBool,
}

impl Waker {
    /// A waker that nobody has woken yet.
    ///
    /// # Errors
    /// No file descriptor left.
    pub fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Self { event: EventFd::from_value_and_flags(0, flags)?, pending: AtomicBool::new(false) })
    }

    /// Wakes the waiting thread, or lets its next wait return at once.
    pub fn wake(&self) {
        if !self.pending.swap(true, Ordering::AcqRel) {
            // A full counter (EAGAIN) is as good as a wake-up: the descriptor is readable.
            let _ = self.event.write(1);
        }
    }

    /// Whether someone woke, and forgets it. What the waking thread did before `wake` is visible after this.
    ///
    /// `polled`: the descriptor was found readable. It is emptied before the flag is cleared: the other way round,
    /// a `wake` in between would leave flag and descriptor at odds, and later ones would write nothing.
    pub(crate) fn take(&self, polled: bool) -> bool {
        if !polled && !self.pending.load(Ordering::Relaxed) {
            return false;
        }
        while let Err(Errno::EINTR) = self.event.read() {}
        self.pending.swap(false, Ordering::AcqRel);
        true
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taken_once() {
        let waker = Waker::new().expect("eventfd");
        assert!(!waker.take(false));
        waker.wake();
        waker.wake();
        assert!(waker.take(false));
        assert!(!waker.take(false));
        waker.wake();
        assert!(waker.take(true));
    }
}
