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
use super::super::stream::{BlockPlan, ReturnMessage, StreamError};
use super::incoming::Incoming;
use super::live::Sink;
use super::ram_file::RamFile;
use super::settings::{self, HELD_BANDWIDTH, LOOK_BANDWIDTH, Settings};
use super::versions::Versions;
use super::{driver, readiness};
use crate::lazy::LazyError;
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use pages::Bitmap;
use serde_json::{Value, json};
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// How long a look at the socket waits for it at most; while the monitor is asked something.
const POLL_MS: u16 = 10;
const POLL_ASKING_MS: u16 = 1;
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

/// See the module's text.
pub struct DepartingVm {
    qmp: Qmp,
    saved: Settings,
    incoming: Incoming,
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
        let (socket, versions) = match begun {
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
        let incoming = Incoming::new(socket, plan, versions, files.first.clone());
        let mut vm = Self { qmp, saved, incoming, stopped_at: None };
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
        self.incoming.expect();
        while self.incoming.versions.seen.is_empty() || !self.incoming.versions.seen.is_full() {
            if cancel.load(Relaxed) {
                let reason = "it was cancelled here".to_owned();
                return Err(QemuError::Migration { status: "cancelled".to_owned(), reason });
            }
            self.turn("any page")?;
        }
        self.incoming.versions.sink.ram.flush()?;
        self.incoming.versions.newer_file.flush()
    }

    /// Nobody takes pages for now.
    fn hold(&mut self) -> Result<(), QemuError> {
        self.set(json!({"max-bandwidth": HELD_BANDWIDTH, "downtime-limit": 0}))
    }

    /// Takes what changed, for so long at least; the pages that are newer in `newer` than they were when this was last asked. The VM
    /// runs on. Not for those that [`may_be_followed`](super::may_be_followed) refuses: their pages may be wrong afterwards.
    ///
    /// # Errors
    ///
    /// QEMU's, the stream's, the system's.
    pub fn follow(&mut self, within: Duration) -> Result<Bitmap, QemuError> {
        let mut looking = json!({"max-bandwidth": 0, "downtime-limit": 1});
        if self.saved.knows(LOOK_BANDWIDTH.0) {
            looking[LOOK_BANDWIDTH.0] = LOOK_BANDWIDTH.1.into();
        }
        let looks = self.looks()?;
        self.set(looking)?;
        let mut ask_at = Instant::now() + within;
        self.incoming.expect();
        // Stopped by its owner or by itself, it needs no leave to switch over.
        while !self.incoming.in_tail() {
            self.turn("a look at what changed")?;
            if Instant::now() >= ask_at {
                // The second one comes when all that the first one found was sent.
                if self.looks()? >= looks + 2 {
                    break;
                }
                ask_at = Instant::now() + ASK_EVERY;
            }
        }
        self.hold()?;
        self.incoming.versions.newer_file.flush()?;
        Ok(self.take_fresh())
    }

    /// How often QEMU has looked at what changed.
    fn looks(&mut self) -> Result<u64, QemuError> {
        let answer = self.ask("query-migrate", Value::Null)?;
        Ok(answer["ram"]["dirty-sync-count"].as_u64().unwrap_or(0))
    }

    fn take_fresh(&mut self) -> Bitmap {
        let fresh = &mut self.incoming.versions.fresh;
        let empty = Bitmap::new(fresh.len());
        std::mem::replace(fresh, empty)
    }

    /// Pages of `first` that are not the newest, and those that became so since `follow` or this was last called.
    #[must_use]
    pub fn newer(&mut self) -> (Bitmap, Bitmap) {
        (self.incoming.versions.newer.clone(), self.take_fresh())
    }

    /// What is known of its state while it runs: a [`DeviceState`] without devices. What hosts are asked about before anything is
    /// sent, and what their QEMUs are fed under ([`crate::qemu::Emitter::start_ahead`]).
    #[must_use]
    pub fn outline(&self) -> DeviceState {
        self.incoming.versions.sink.outline()
    }

    /// Stops the VM, and takes the rest of its memory and its device state.
    ///
    /// # Errors
    ///
    /// As [`follow`](Self::follow); then [`resume`](Self::resume) is to be called.
    pub fn stop(&mut self) -> Result<DeviceState, QemuError> {
        self.stopped_at = Some(Instant::now());
        // What is left of an earlier look is sent while it runs on, and then it stops: at once, if nothing is left.
        self.set(json!({"max-bandwidth": 0, "downtime-limit": 0}))?;
        self.incoming.answer(&ReturnMessage::SwitchoverAck);
        self.incoming.expect();
        while !self.incoming.is_whole() {
            self.turn("the device state")?;
        }
        self.incoming.versions.newer_file.flush()?;
        self.incoming.versions.sink.state()
    }

    /// The VM stands for good: QEMU is told that everything arrived.
    ///
    /// # Errors
    ///
    /// QEMU's, if it thinks otherwise; then it may run on by itself, and [`resume`](Self::resume) is to be called.
    pub fn settle(&mut self) -> Result<(), QemuError> {
        self.incoming.answer(&ReturnMessage::Shut(0));
        let deadline = Instant::now() + STALL_WITHIN;
        while !self.incoming.has_answered() {
            if Instant::now() > deadline {
                return Err(QemuError::TimedOut { what: "room for the last word", within: STALL_WITHIN });
            }
            self.incoming.write_answers()?;
        }
        driver::completed(&mut self.qmp)?;
        self.incoming.close();
        Ok(())
    }

    /// The VM runs on here, its settings as they were.
    ///
    /// # Errors
    ///
    /// QEMU's: then it stands, or is gone.
    pub fn resume(&mut self) -> Result<(), QemuError> {
        // A migration that is not over fails by this, and QEMU lets the VM run on.
        self.incoming.close();
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
        self.incoming.bytes
    }

    /// When it was told to stop.
    #[must_use]
    pub fn stopped_at(&self) -> Option<Instant> {
        self.stopped_at
    }

    /// Reads and answers once. It fails if nothing of use has come for too long.
    fn turn(&mut self, what: &'static str) -> Result<(), QemuError> {
        match self.incoming.turn(POLL_MS) {
            // QEMU's own reason is better than ours, if it has one.
            Err(error @ QemuError::Stream(StreamError::CutOff { .. })) => {
                driver::completed(&mut self.qmp)?;
                Err(error)
            }
            Ok(()) if self.incoming.quiet_for() > STALL_WITHIN => {
                Err(QemuError::TimedOut { what, within: STALL_WITHIN })
            }
            other => other,
        }
    }

    fn set(&mut self, parameters: Value) -> Result<(), QemuError> {
        self.ask("migrate-set-parameters", parameters).map(drop)
    }

    /// Has QEMU do something, and reads on meanwhile: one that switches over, which it may do by itself if somebody stops the VM, answers
    /// only when its pages are taken.
    fn ask(&mut self, command: &str, arguments: Value) -> Result<Value, QemuError> {
        let Self { qmp, incoming, .. } = self;
        std::thread::scope(|scope| {
            let asking = scope.spawn(|| qmp.execute(command, arguments));
            while !asking.is_finished() {
                incoming.turn(POLL_ASKING_MS)?;
            }
            Ok(asking.join().expect("asking does not panic")?)
        })
    }
}
