//! The stream of a VM that leaves, as it comes.

use super::super::error::QemuError;
use super::super::stream::{BlockPlan, Parser, ReturnMessage, split_tail};
use super::versions::Versions;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const BUFFER_BYTES: usize = 1 << 20;
/// A tail without a description that nothing follows for so long is whole.
const QUIET: Duration = Duration::from_millis(60);

/// A socket, what was read of it, and where that goes.
pub(super) struct Incoming {
    socket: Option<UnixStream>,
    parser: Parser,
    buffer: Vec<u8>,
    len: usize,
    pub(super) versions: Versions,
    path: PathBuf,
    pub(super) bytes: u64,
    /// What had been taken when anything of use last came, and when that was. (QEMU that has nothing to send sends empty sections.)
    progress: (u64, Instant),
}

impl Incoming {
    /// From a socket that does not block; the path is for errors.
    pub(super) fn new(socket: UnixStream, plan: BlockPlan, versions: Versions, path: PathBuf) -> Self {
        Self {
            socket: Some(socket),
            parser: Parser::new(plan),
            buffer: vec![0; BUFFER_BYTES],
            len: 0,
            versions,
            path,
            bytes: 0,
            progress: (0, Instant::now()),
        }
    }

    /// Nothing more is read or answered.
    pub(super) fn close(&mut self) {
        self.socket = None;
    }

    /// Whether all pages have come, and the devices are coming.
    pub(super) fn in_tail(&self) -> bool {
        self.parser.in_tail()
    }

    /// Whether the devices have come, too.
    pub(super) fn is_whole(&self) -> bool {
        self.in_tail()
            && self.len == 0
            // A description ends with its length; a bare end mark could be any zero byte.
            && split_tail(self.versions.sink.tail())
                .is_ok_and(|tail| !tail.description.is_empty() || self.quiet_for() > QUIET)
    }

    /// From now on something is to come.
    pub(super) fn expect(&mut self) {
        self.progress.1 = Instant::now();
    }

    /// How long nothing of use has come.
    pub(super) fn quiet_for(&self) -> Duration {
        self.progress.1.elapsed()
    }

    pub(super) fn answer(&mut self, message: &ReturnMessage) {
        self.versions.answers.extend(message.encode());
    }

    pub(super) fn has_answered(&self) -> bool {
        self.versions.answers.is_empty()
    }

    /// Reads and answers once, and waits so long for it at most.
    ///
    /// # Errors
    ///
    /// [`QemuError::Stream`] if it is damaged or cut off, [`QemuError::Io`].
    pub(super) fn turn(&mut self, wait_ms: u16) -> Result<(), QemuError> {
        self.write_answers()?;
        let Some(socket) = &mut self.socket else {
            return Err(QemuError::refused("its stream is over"));
        };
        let events = if self.versions.answers.is_empty() {
            PollFlags::POLLIN
        } else {
            PollFlags::POLLIN | PollFlags::POLLOUT
        };
        let mut fds = [PollFd::new(socket.as_fd(), events)];
        match poll(&mut fds, PollTimeout::from(wait_ms)) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(QemuError::io("wait for", &self.path)(error.into())),
        }
        let came = match socket.read(&mut self.buffer[self.len..]) {
            Ok(0) => return Err(self.parser.cut_off().into()),
            Ok(more) => more,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => 0,
            Err(error) => return Err(QemuError::io("read the stream of", &self.path)(error)),
        };
        self.len += came;
        self.bytes += came as u64;
        let versions = &mut self.versions;
        let used = self.parser.feed(&self.buffer[..self.len], |event| versions.event(event))?;
        self.buffer.copy_within(used..self.len, 0);
        self.len -= used;
        let taken = self.versions.taken();
        if taken != self.progress.0 {
            self.progress = (taken, Instant::now());
        }
        Ok(())
    }

    /// Writes what answers it can.
    ///
    /// # Errors
    ///
    /// [`QemuError::Io`].
    pub(super) fn write_answers(&mut self) -> Result<(), QemuError> {
        let Some(socket) = &mut self.socket else { return Ok(()) };
        while !self.versions.answers.is_empty() {
            match socket.write(&self.versions.answers) {
                Ok(len) => drop(self.versions.answers.drain(..len)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(QemuError::io("answer the source of", &self.path)(error)),
            }
        }
        Ok(())
    }
}
