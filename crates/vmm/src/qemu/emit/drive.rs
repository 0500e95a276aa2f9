//! The socket: one thread that waits for QEMU and for pages at once.

use super::super::error::QemuError;
use super::super::stream::StreamError;
use super::pages::PageQueue;
use super::{EmitOptions, EmitProgress, EmitReport, SETTLE, percentile};
use crate::lazy::{LazyImage, News};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// Bytes of pages that are made ready at once. What stands in front of an asked-for page is at most this and the
/// socket's buffer.
const BATCH_BYTES: usize = 64 << 10;
/// The socket's buffer: enough to keep QEMU busy, little enough for an asked-for page to overtake.
const SOCKET_BYTES: usize = 128 << 10;
/// How often the flags from outside are looked at while nothing happens.
const POLL_MS: u16 = 50;
/// How often page faults are told to whoever looks at the progress.
const TELL_EVERY: Duration = Duration::from_millis(100);
/// A guest that has settled and asked for nothing for so long has what it needs to go on.
const QUIET_MS: u16 = 30;
/// Most bytes of answers that are held: a bitmap and what is around it.
const INPUT_BYTES_MAX: usize = 33 << 20;

/// What the ping says that follows the devices, as in QEMU's own streams.
pub(super) const PING_LOADED: u32 = 3;

/// What QEMU has said that scripts wait for.
#[derive(Default)]
pub(super) struct Heard {
    pub(super) shut: Option<u32>,
    pub(super) resume_ack: Option<u32>,
    /// Blocks whose bitmap came.
    pub(super) bitmaps: usize,
    /// QEMU has closed the socket.
    pub(super) end: bool,
}

pub(super) struct Driver {
    socket: UnixStream,
    path: PathBuf,
    news: News,
    pub(super) progress: Arc<EmitProgress>,
    stall_within: Duration,
    pub(super) out: Vec<u8>,
    /// Bytes of `out` that are written.
    written: usize,
    pub(super) input: Vec<u8>,
    pub(super) queue: Option<PageQueue>,
    /// The block of the last request that named one.
    pub(super) named: Option<String>,
    /// The block whose bitmap comes next.
    pub(super) bitmap_of: Option<usize>,
    pub(super) heard: Heard,
    start: Instant,
    moved: Instant,
    pub(super) requests: u64,
    pub(super) waited: u64,
    started_after: Duration,
    hold_back: Duration,
    holds_back: bool,
    /// Pages that nobody asks for never go.
    on_demand: bool,
    /// When the guest last asked for a page.
    pub(super) asked: Instant,
    /// Pages were looked at and none had to go, but there are more to look at.
    looks_on: bool,
    /// When its faults were last told.
    told: Instant,
}

impl Driver {
    pub(super) fn new(
        socket: UnixStream,
        path: &Path,
        image: &Arc<LazyImage>,
        progress: Arc<EmitProgress>,
        stall_within: Duration,
    ) -> Result<Self, QemuError> {
        socket.set_nonblocking(true).map_err(QemuError::io("set up a socket for", path))?;
        // A smaller or larger buffer changes latencies only.
        let _ = nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::SndBuf, &SOCKET_BYTES);
        let now = Instant::now();
        Ok(Self {
            socket,
            path: path.to_owned(),
            news: image.listen()?,
            progress,
            stall_within,
            out: Vec::with_capacity(2 * BATCH_BYTES),
            written: 0,
            input: Vec::new(),
            queue: None,
            named: None,
            bitmap_of: None,
            heard: Heard::default(),
            start: now,
            moved: now,
            requests: 0,
            waited: 0,
            started_after: Duration::ZERO,
            hold_back: Duration::ZERO,
            holds_back: false,
            on_demand: false,
            asked: now,
            told: now,
            looks_on: false,
        })
    }

    pub(super) fn image(&self) -> &Arc<LazyImage> {
        self.news.image()
    }

    /// QEMU has all of the device state, and goes on to run the VM.
    pub(super) fn started(&mut self) {
        self.started_after = self.start.elapsed();
        self.progress.started.store(true, Relaxed);
    }

    /// See [`started`](Self::started).
    pub(super) fn has_started(&self) -> bool {
        self.progress.started.load(Relaxed)
    }

    pub(super) fn report(&self) -> EmitReport {
        let (counts, mut latencies) =
            self.queue.as_ref().map(|queue| (queue.counts, queue.latencies_us.clone())).unwrap_or_default();
        latencies.sort_unstable();
        EmitReport {
            pages: counts.pages,
            zero_pages: counts.zero_pages,
            left_out: counts.left_out,
            requests: self.requests,
            waited: self.waited,
            fault_p50: percentile(&latencies, 50),
            fault_p99: percentile(&latencies, 99),
            started_after: self.started_after,
            complete_after: self.start.elapsed(),
        }
    }

    /// Tells the queue of pages that came.
    pub(super) fn hear_news(&mut self) {
        let queue = &mut self.queue;
        let any = self.news.drain(|run| {
            if let Some(queue) = queue {
                queue.came(run);
            }
        });
        if any {
            self.moved = Instant::now();
        }
    }

    /// Writes all of `out`, answering what comes meanwhile but sending no further pages.
    pub(super) fn flush(&mut self) -> Result<(), QemuError> {
        while self.written < self.out.len() {
            self.turn(true)?;
        }
        self.out.clear();
        self.written = 0;
        Ok(())
    }

    /// Sends pages, as they are asked for and as they come, until QEMU has all.
    pub(super) fn send_pages(&mut self) -> Result<(), QemuError> {
        loop {
            self.hear_news();
            if self.written == self.out.len() {
                self.out.clear();
                self.written = 0;
                let queue = self.queue.as_mut().expect("scripts make it first");
                let background = !self.holds_back && !self.on_demand;
                queue.write(&mut self.out, BATCH_BYTES, background);
                let counts = queue.counts;
                self.progress.sent.store(counts.pages + counts.zero_pages + counts.left_out, Relaxed);
                self.looks_on = background && self.out.is_empty() && queue.has_work();
                if self.out.is_empty() && queue.is_done() {
                    self.progress.set_faults(&queue.faults);
                    return Ok(());
                }
            }
            // With nothing to write it waits for pages of others' making, however long they take: whoever fills the
            // image says when they will not come.
            self.turn(!self.out.is_empty())?;
            self.judge_holding();
            self.tell_faults();
        }
    }

    /// One round of sending pages that have come, to a QEMU that waits for none.
    pub(super) fn send_ahead(&mut self) -> Result<(), QemuError> {
        self.hear_news();
        if self.written == self.out.len() {
            self.out.clear();
            self.written = 0;
            let queue = self.queue.as_mut().expect("scripts make it first");
            let wrote = queue.write_ahead(&mut self.out, BATCH_BYTES);
            self.looks_on = wrote && self.out.is_empty() && queue.has_work();
            let counts = queue.counts;
            self.progress.sent.store(counts.pages + counts.zero_pages + counts.left_out, Relaxed);
        }
        self.turn(!self.out.is_empty())
    }

    /// All pages that are here are news again.
    pub(super) fn listen_anew(&mut self) -> Result<(), QemuError> {
        self.news = self.image().listen()?;
        self.hear_news();
        Ok(())
    }

    /// At its end: what was asked for.
    pub(super) fn tell_touched(&mut self) {
        if let Some(queue) = &mut self.queue {
            self.progress.set_touched(std::mem::take(&mut queue.touched));
        }
    }

    fn tell_faults(&mut self) {
        if self.told.elapsed() >= TELL_EVERY {
            self.told = Instant::now();
            self.progress.set_faults(&self.queue.as_ref().expect("scripts make it first").faults);
        }
    }

    /// Whether pages that nobody asked for still wait. A guest that has just begun to run faults a few hundred times in a
    /// row: what it then needs of the CPU and of this socket is its own, until it has settled and falls quiet, or for so long at most.
    fn judge_holding(&mut self) {
        if !self.holds_back {
            return;
        }
        let quiet = self.asked.elapsed() >= Duration::from_millis(QUIET_MS.into());
        let elapsed = self.start.elapsed();
        let settled = self.has_started() && elapsed >= self.started_after + SETTLE;
        if settled && quiet || elapsed >= self.hold_back {
            self.holds_back = false;
        }
    }

    /// Pages that nobody asks for wait until the guest has settled and fallen quiet, or for ever.
    pub(super) fn hold_back(&mut self, options: &EmitOptions) {
        self.hold_back = options.hold_back;
        self.holds_back = !options.hold_back.is_zero();
        self.on_demand = !options.background;
    }

    /// Waits until `heard` says so.
    pub(super) fn await_heard(
        &mut self,
        what: &'static str,
        until: impl Fn(&Heard) -> bool,
    ) -> Result<(), QemuError> {
        while !until(&self.heard) {
            if self.heard.end {
                return Err(self.broken(&format!("QEMU closed it before {what}")));
            }
            self.turn(true)?;
        }
        Ok(())
    }

    /// Waits for anything, then writes, reads and hears what there is. `pressing`: nothing at all for too long is an error.
    pub(super) fn turn(&mut self, pressing: bool) -> Result<(), QemuError> {
        if self.progress.stop.load(Relaxed) {
            return Err(self.broken("it was cut here"));
        }
        if let Some(reason) = self.image().lost()
            && !self.image().is_complete()
        {
            return Err(QemuError::SourceLost { reason: reason.to_owned() });
        }
        if pressing && self.moved.elapsed() > self.stall_within {
            return Err(QemuError::TimedOut { what: "any progress of QEMU's", within: self.stall_within });
        }
        let more = self.written < self.out.len();
        let events = if more { PollFlags::POLLIN | PollFlags::POLLOUT } else { PollFlags::POLLIN };
        // Once QEMU has closed it, the socket would be readable for ever.
        let events = if self.heard.end { PollFlags::empty() } else { events };
        let mut fds =
            [PollFd::new(self.socket.as_fd(), events), PollFd::new(self.news.as_fd(), PollFlags::POLLIN)];
        let wait = match (self.looks_on, self.holds_back) {
            (true, _) => 0,
            (_, true) => QUIET_MS,
            _ => POLL_MS,
        };
        self.looks_on = false;
        match poll(&mut fds, PollTimeout::from(wait)) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(QemuError::io("wait for", &self.path)(error.into())),
        }
        self.write_some()?;
        self.read_some()?;
        self.hear_news();
        Ok(())
    }

    fn write_some(&mut self) -> Result<(), QemuError> {
        while self.written < self.out.len() {
            match self.socket.write(&self.out[self.written..]) {
                Ok(len) => {
                    self.written += len;
                    self.moved = Instant::now();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.broken(&error.to_string())),
            }
        }
        Ok(())
    }

    fn read_some(&mut self) -> Result<(), QemuError> {
        let mut chunk = [0; 16 << 10];
        loop {
            match self.socket.read(&mut chunk) {
                Ok(0) => {
                    self.heard.end = true;
                    break;
                }
                Ok(len) => {
                    self.moved = Instant::now();
                    self.input.extend_from_slice(&chunk[..len]);
                    if self.input.len() > INPUT_BYTES_MAX {
                        let max = INPUT_BYTES_MAX as u64;
                        return Err(StreamError::TooLarge { what: "bytes of answers", max }.into());
                    }
                    self.hear()?;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.broken(&error.to_string())),
            }
        }
        if self.heard.end && self.heard.shut.is_none() && self.written < self.out.len() {
            return Err(self.broken("QEMU closed it"));
        }
        Ok(())
    }

    pub(super) fn close_writing(&self) -> Result<(), QemuError> {
        self.socket.shutdown(std::net::Shutdown::Write).map_err(|error| self.broken(&error.to_string()))
    }

    pub(super) fn broken(&self, reason: &str) -> QemuError {
        QemuError::Migration { status: "link broke".to_owned(), reason: reason.to_owned() }
    }
}
