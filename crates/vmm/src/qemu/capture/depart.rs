//! A VM that leaves while it runs, in steps that whoever takes it decides about:
//!
//! ```text
//! begin ─▶ first pass: every page once, into `first`         the VM runs; its migration is held back, as it may not
//!     │    later versions into `newer`                       switch over before we say so (`switchover-ack`)
//!  follow ─▶ pages that changed, into `newer`                any number of times
//!  stop ───▶ the rest into `newer`; device state             the VM stands
//!     ├─ resume: it runs on here                             until `settle`, also by itself, if this process dies
//!  settle ─▶ it stands for good: QEMU's migration is over    only `resume` starts it again
//!  quit
//! ```
//!
//! `first` never changes once `begin` returns, so blocks may be made from it at leisure, and equal pages merged; which pages
//! of it are not the newest is told by [`DepartingVm::newer`].
//!
//! **QEMU is to look at what changed only when all that it knew of is sent.** By itself it looks once less is left than its downtime
//! limit allows for, and while it may not switch over, again and again. A look that finds only pages which are still to be sent clears
//! their marks, but under TCG leaves the CPUs' TLBs as they are (`num_dirty` in `cpu_physical_memory_sync_dirty_bitmap` counts other pages
//! only; seen in 10.0): from then on writes to these pages are not noticed, and their newest versions never sent. Where the switch-over
//! follows at once, as in QEMU's own migrations, that does no harm. So the limit is nothing here, and one byte in
//! [`follow`](DepartingVm::follow). (With nothing left and leave to switch over, QEMU does so under a limit of nothing, too.)

use super::super::error::QemuError;
use super::super::qmp::Qmp;
use super::super::state::{DeviceState, Fingerprint};
use super::super::stream::{BlockPlan, Parser, ReturnMessage, split_tail};
use super::live::Sink;
use super::ram_file::RamFile;
use super::settings::{self, HELD_BANDWIDTH, LOOK_BANDWIDTH, Settings};
use super::versions::Versions;
use super::{driver, readiness};
use crate::lazy::LazyError;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use pages::Bitmap;
use serde_json::{Value, json};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

const BUFFER_BYTES: usize = 1 << 20;
const POLL_MS: u16 = 10;
/// A tail without a description that nothing follows for so long is whole.
const QUIET: Duration = Duration::from_millis(60);
/// Longest time without a page or device state of a source that is to send.
const STALL_WITHIN: Duration = Duration::from_secs(60);
/// How often QEMU is asked whether it has looked at what changed.
const ASK_EVERY: Duration = Duration::from_millis(5);

/// Where a departing VM's memory goes: new files on a tmpfs.
#[derive(Clone, Debug)]
pub struct DepartFiles {
    /// Each page as it was first seen.
    pub first: PathBuf,
    /// Later versions, at the same offsets.
    pub newer: PathBuf,
}

/// Whether anything of use still comes. (QEMU that has nothing to send sends empty sections.)
struct Progress {
    taken: u64,
    at: Instant,
}

impl Progress {
    fn new() -> Self {
        Self { taken: 0, at: Instant::now() }
    }

    fn note(&mut self, taken: u64, what: &'static str) -> Result<(), QemuError> {
        if taken != self.taken {
            (self.taken, self.at) = (taken, Instant::now());
        }
        if self.at.elapsed() > STALL_WITHIN {
            return Err(QemuError::TimedOut { what, within: STALL_WITHIN });
        }
        Ok(())
    }
}

/// See the module's text.
pub struct DepartingVm {
    qmp: Qmp,
    saved: Settings,
    socket: Option<UnixStream>,
    parser: Parser,
    buffer: Vec<u8>,
    len: usize,
    sink: Versions,
    path: PathBuf,
    stream_bytes: u64,
    stopped_at: Option<Instant>,
}

impl DepartingVm {
    /// Takes the first pass over a running VM's memory. It runs on, whatever happens; `cancel` ends this.
    ///
    /// # Errors
    ///
    /// [`QemuError::Refused`] for VMs that cannot be taken, or that do not run; QEMU before 8.1, which cannot be held back;
    /// what else [`super::capture`] may meet. The VM and its settings are as before then, and the files are gone.
    pub fn begin(mut qmp: Qmp, files: &DepartFiles, cancel: &AtomicBool) -> Result<Self, QemuError> {
        if !readiness(&mut qmp)? {
            return Err(QemuError::refused(
                "it stands: capture it, nothing is gained by taking it while it runs",
            ));
        }
        let fingerprint = Fingerprint::of(&mut qmp)?;
        let saved = Settings::of(&mut qmp)?;
        let remove = || {
            let _ = std::fs::remove_file(&files.first);
            let _ = std::fs::remove_file(&files.newer);
        };
        let begun = Self::start(&mut qmp, files, &fingerprint);
        let (socket, sink) = match begun {
            Ok(begun) => begun,
            Err(error) => {
                driver::abandon(&mut qmp, true);
                saved.restore(&mut qmp);
                remove();
                return Err(error);
            }
        };
        let huge = fingerprint.blocks.iter().filter(|row| row.page_size != super::super::stream::PAGE_BYTES);
        let plan =
            BlockPlan { huge: huge.map(|row| (row.id.clone(), row.page_size)).collect(), postcopy: false };
        let mut vm = Self {
            qmp,
            saved,
            socket: Some(socket),
            parser: Parser::new(plan),
            buffer: vec![0; BUFFER_BYTES],
            len: 0,
            sink,
            path: files.first.clone(),
            stream_bytes: 0,
            stopped_at: None,
        };
        let first_pass = vm.first_pass(cancel).and_then(|()| vm.hold());
        if let Err(error) = first_pass {
            if let Err(other) = vm.resume() {
                tracing::error!(error = %other, "a VM could not be put right: look at it");
            }
            remove();
            return Err(error);
        }
        Ok(vm)
    }

    fn start(
        qmp: &mut Qmp,
        files: &DepartFiles,
        fingerprint: &Fingerprint,
    ) -> Result<(UnixStream, Versions), QemuError> {
        let make = |path: &Path| {
            let file = File::options().read(true).write(true).create_new(true).open(path);
            let file = file.map_err(QemuError::io("make", path))?;
            if fstatfs(&file).is_ok_and(|system| system.filesystem_type() == TMPFS_MAGIC) {
                return Ok(RamFile::new(file, path));
            }
            Err(QemuError::from(LazyError::NotSharedMemory { path: path.to_owned() }))
        };
        let (first, newer_file) = (make(&files.first)?, make(&files.newer)?);
        settings::prepare(qmp, &["return-path", "switchover-ack"])?;
        let failed = |action| move |source| QemuError::io(action, &files.first)(source);
        let (ours, theirs) = UnixStream::pair().map_err(failed("make a socket for"))?;
        ours.set_nonblocking(true).map_err(failed("set up a socket for"))?;
        qmp.send_fd("scatter", &theirs)?;
        drop(theirs);
        qmp.take_events();
        // No look while pages are left, and none by itself when there are none.
        qmp.execute("migrate-set-parameters", json!({"downtime-limit": 0}))?;
        qmp.execute("migrate", json!({"uri": "fd:scatter"}))?;
        let versions = Versions {
            sink: Sink::new(first, fingerprint),
            newer_file,
            seen: Bitmap::new(0),
            newer: Bitmap::new(0),
            fresh: Bitmap::new(0),
            answers: Vec::new(),
            pages: 0,
        };
        Ok((ours, versions))
    }

    fn first_pass(&mut self, cancel: &AtomicBool) -> Result<(), QemuError> {
        let mut progress = Progress::new();
        while self.sink.seen.is_empty() || !self.sink.seen.is_full() {
            if cancel.load(Relaxed) {
                let reason = "it was cancelled here".to_owned();
                return Err(QemuError::Migration { status: "cancelled".to_owned(), reason });
            }
            self.turn()?;
            progress.note(self.sink.taken(), "any page")?;
        }
        self.sink.sink.ram.flush()?;
        self.sink.newer_file.flush()
    }

    /// Nobody takes pages for now.
    fn hold(&mut self) -> Result<(), QemuError> {
        let held = json!({"max-bandwidth": HELD_BANDWIDTH, "downtime-limit": 0});
        self.qmp.execute("migrate-set-parameters", held)?;
        Ok(())
    }

    /// Takes what changed, for so long at least; the pages that are newer in `newer` than they were when this was last asked. The VM
    /// runs on. Not for those that [`may_be_followed`] refuses: their pages may be wrong afterwards.
    ///
    /// # Errors
    ///
    /// QEMU's, the stream's, the system's.
    pub fn follow(&mut self, within: Duration) -> Result<Bitmap, QemuError> {
        // Stopped by its owner or by itself, it needs no leave to switch over; while it does, its monitor does not answer.
        if self.parser.in_tail() {
            return Ok(self.take_fresh());
        }
        let mut looking = json!({"max-bandwidth": 0, "downtime-limit": 1});
        if self.saved.knows(LOOK_BANDWIDTH.0) {
            looking[LOOK_BANDWIDTH.0] = LOOK_BANDWIDTH.1.into();
        }
        let looks = self.looks()?;
        self.qmp.execute("migrate-set-parameters", looking)?;
        let mut ask_at = Instant::now() + within;
        let mut progress = Progress::new();
        loop {
            self.turn()?;
            progress.note(self.sink.taken(), "a look at what changed")?;
            if self.parser.in_tail() {
                break;
            }
            if Instant::now() >= ask_at {
                // The second one comes when all that the first one found was sent.
                if self.looks()? >= looks + 2 {
                    self.hold()?;
                    break;
                }
                ask_at = Instant::now() + ASK_EVERY;
            }
        }
        self.sink.newer_file.flush()?;
        Ok(self.take_fresh())
    }

    /// How often QEMU has looked at what changed.
    fn looks(&mut self) -> Result<u64, QemuError> {
        let answer = self.qmp.execute("query-migrate", Value::Null)?;
        Ok(answer["ram"]["dirty-sync-count"].as_u64().unwrap_or(0))
    }

    fn take_fresh(&mut self) -> Bitmap {
        let empty = Bitmap::new(self.sink.fresh.len());
        std::mem::replace(&mut self.sink.fresh, empty)
    }

    /// Pages of `first` that are not the newest, and those that became so since `follow` or this was last called.
    #[must_use]
    pub fn newer(&mut self) -> (Bitmap, Bitmap) {
        (self.sink.newer.clone(), self.take_fresh())
    }

    /// What is known of its state while it runs: a [`DeviceState`] without devices. What hosts are asked about before anything is
    /// sent, and what their QEMUs are fed under ([`crate::qemu::Emitter::start_ahead`]).
    #[must_use]
    pub fn outline(&self) -> DeviceState {
        self.sink.sink.outline()
    }

    /// Stops the VM, and takes the rest of its memory and its device state.
    ///
    /// # Errors
    ///
    /// As [`follow`](Self::follow); then [`resume`](Self::resume) is to be called.
    pub fn stop(&mut self) -> Result<DeviceState, QemuError> {
        self.stopped_at = Some(Instant::now());
        if !self.parser.in_tail() {
            // What is left of an earlier look is sent while it runs on, and then it stops: at once, if nothing is left.
            self.qmp.execute("migrate-set-parameters", json!({"max-bandwidth": 0, "downtime-limit": 0}))?;
            self.sink.answers.extend(ReturnMessage::SwitchoverAck.encode());
        }
        let mut progress = Progress::new();
        loop {
            self.turn()?;
            progress.note(self.sink.taken(), "the device state")?;
            let tail = self.sink.sink.tail();
            if self.parser.in_tail() && self.len == 0
                && let Ok(parts) = split_tail(tail)
                // A description ends with its length; a bare end mark could be any zero byte.
                && (!parts.description.is_empty() || progress.at.elapsed() > QUIET)
            {
                break;
            }
        }
        self.sink.newer_file.flush()?;
        self.sink.sink.state()
    }

    /// The VM stands for good: QEMU is told that everything arrived.
    ///
    /// # Errors
    ///
    /// QEMU's, if it thinks otherwise; then it may run on by itself, and [`resume`](Self::resume) is to be called.
    pub fn settle(&mut self) -> Result<(), QemuError> {
        self.sink.answers.extend(ReturnMessage::Shut(0).encode());
        let deadline = Instant::now() + STALL_WITHIN;
        while !self.sink.answers.is_empty() {
            if Instant::now() > deadline {
                return Err(QemuError::TimedOut { what: "room for the last word", within: STALL_WITHIN });
            }
            self.write_answers()?;
        }
        driver::completed(&mut self.qmp)?;
        self.socket = None;
        Ok(())
    }

    /// The VM runs on here, its settings as they were.
    ///
    /// # Errors
    ///
    /// QEMU's: then it stands, or is gone.
    pub fn resume(&mut self) -> Result<(), QemuError> {
        // A migration that is not over fails by this, and QEMU lets the VM run on.
        self.socket = None;
        driver::abandon(&mut self.qmp, true);
        self.saved.restore(&mut self.qmp);
        let running = self.qmp.execute("query-status", Value::Null)?["running"] == true;
        if running { Ok(()) } else { Err(QemuError::refused("it does not run on")) }
    }

    /// Ends the VM's QEMU.
    ///
    /// # Errors
    ///
    /// QEMU's; if it is gone already, all is well.
    pub fn quit(&mut self) -> Result<(), QemuError> {
        self.qmp.execute("quit", Value::Null)?;
        Ok(())
    }

    /// Bytes of QEMU's stream so far.
    #[must_use]
    pub fn stream_bytes(&self) -> u64 {
        self.stream_bytes
    }

    /// When it was told to stop.
    #[must_use]
    pub fn stopped_at(&self) -> Option<Instant> {
        self.stopped_at
    }

    /// Reads and answers once.
    fn turn(&mut self) -> Result<(), QemuError> {
        self.write_answers()?;
        let Some(socket) = &mut self.socket else {
            return Err(QemuError::refused("its stream is over"));
        };
        let events = if self.sink.answers.is_empty() {
            PollFlags::POLLIN
        } else {
            PollFlags::POLLIN | PollFlags::POLLOUT
        };
        let mut fds = [PollFd::new(socket.as_fd(), events)];
        match poll(&mut fds, PollTimeout::from(POLL_MS)) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(QemuError::io("wait for", &self.path)(error.into())),
        }
        let came = match socket.read(&mut self.buffer[self.len..]) {
            Ok(0) => return Err(self.cut_off()),
            Ok(more) => more,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => 0,
            Err(error) => return Err(QemuError::io("read the stream of", &self.path)(error)),
        };
        self.len += came;
        self.stream_bytes += came as u64;
        let sink = &mut self.sink;
        let used = self.parser.feed(&self.buffer[..self.len], |event| sink.event(event))?;
        self.buffer.copy_within(used..self.len, 0);
        self.len -= used;
        Ok(())
    }

    /// QEMU's own reason is better than ours, if it has one.
    fn cut_off(&mut self) -> QemuError {
        match driver::completed(&mut self.qmp) {
            Err(error) => error,
            Ok(()) => self.parser.cut_off().into(),
        }
    }

    fn write_answers(&mut self) -> Result<(), QemuError> {
        let Some(socket) = &mut self.socket else { return Ok(()) };
        while !self.sink.answers.is_empty() {
            match socket.write(&self.sink.answers) {
                Ok(len) => drop(self.sink.answers.drain(..len)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(QemuError::io("answer the source of", &self.path)(error)),
            }
        }
        Ok(())
    }
}
