//! Being the source of a migration towards a local QEMU that waits, with pages from a [`LazyImage`].
//!
//! ```text
//! prefix · ADVISE · RAM START · DISCARD of all · [pages at hand] · PACKAGED { LISTEN · devices · PING · RUN }
//!        · pages: asked for by the guest's faults first, then as they come · END · EOF      ◀── REQ_PAGES … SHUT
//! ```
//!
//! **No page goes twice.** QEMU fails on a second one, so one bitmap, in one thread, says what was sent; after a broken
//! link QEMU's own bitmaps take its place. **Every page not sent before LISTEN is discarded there**, as QEMU may have
//! filled it on its own (ROM, huge pages). **Zero pages that nobody asks for do not go at all** after that: they are discarded, and
//! so they are zero when post-copy ends.

mod ahead;
mod answers;
mod drive;
mod pages;
mod script;
mod template;
#[cfg(test)]
mod tests;

pub use template::{TemplateVm, template_backend};

use super::error::QemuError;
use super::qmp::Qmp;
use super::state::{DeviceState, StateError};
use crate::lazy::LazyImage;
use crate::uffd::Histogram;
use ahead::Switch;
use drive::Driver;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Before a guest has run for so long under QEMU it has not settled: one whose working set went ahead asks for nothing while it fills
/// caches and translates its code anew, and needs the CPU for that. What nobody waits for is held back.
pub const SETTLE: Duration = Duration::from_millis(500);

/// When the VM starts.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum EmitMode {
    /// Once all its pages are there.
    Precopy,
    /// At once; its page faults bring what it touches.
    Postcopy,
}

/// How to emit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EmitOptions {
    /// When the VM starts.
    pub mode: EmitMode,
    /// Post-copy: those of these pages that are at hand go first, in this order: 256 before the VM starts, the others right behind its
    /// start, whether it asks or not. They cost time then, and save faults.
    pub preload: Arc<[u32]>,
    /// Post-copy: pages that the guest does not ask for wait until it has run for half a second and fallen quiet, or so long at most.
    /// They would take the CPU from it while it faults its working set in and settles. Zero: they do not wait.
    pub hold_back: Duration,
    /// Pages that the guest does not ask for go at all. Without them post-copy comes to no end before the guest has touched all of its memory.
    pub background: bool,
    /// After so long without any progress the emitter gives up.
    pub stall_within: Duration,
}

impl EmitOptions {
    /// In this mode, nothing preloaded, the rest held back for a second at most, at most a minute without progress.
    #[must_use]
    pub fn new(mode: EmitMode) -> Self {
        Self {
            mode,
            preload: Arc::default(),
            hold_back: Duration::from_secs(1),
            background: true,
            stall_within: Duration::from_secs(60),
        }
    }
}

/// How long a QEMU may take to notice that its link is gone.
const PAUSED_WITHIN: Duration = Duration::from_secs(10);

/// What an emitter did.
#[derive(Clone, Default, PartialEq, Debug, Serialize, Deserialize)]
pub struct EmitReport {
    /// Pages sent with their bytes.
    pub pages: u64,
    /// Pages sent as zero.
    pub zero_pages: u64,
    /// Zero pages that were not sent, as a discarded page reads as zeros once post-copy is over.
    pub left_out: u64,
    /// Pages that the guest's faults asked for.
    pub requests: u64,
    /// Of those, pages that were not here yet.
    pub waited: u64,
    /// From a request's arrival to its page's bytes in the socket: the median.
    pub fault_p50: Duration,
    /// The same, 99 of 100.
    pub fault_p99: Duration,
    /// From the first byte until QEMU had loaded the device state and went on to run (pre-copy: until the last byte).
    pub started_after: Duration,
    /// From the first byte until QEMU said that it has everything.
    pub complete_after: Duration,
}

/// Page faults of a guest, by what they waited for.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct EmitFaults {
    /// On pages that were here when QEMU asked for them.
    pub here: u64,
    /// On pages that a block brought while it waited.
    pub by_block: u64,
    /// … that the sender answered.
    pub by_sender: u64,
    /// … that another receiver answered.
    pub by_peer: u64,
    /// From request to answer, of those that waited.
    pub waited: Histogram,
}

/// How far an emitter is; read while it works.
#[derive(Debug, Default)]
pub struct EmitProgress {
    /// Pages that QEMU was sent.
    pub sent: AtomicU64,
    /// Pages that the guest asked for.
    pub requests: AtomicU64,
    /// QEMU has the device state and runs the VM. A link that breaks before fails QEMU's incoming migration, so that it
    /// ends; one that breaks afterwards can be recovered.
    pub started: AtomicBool,
    faults: Mutex<EmitFaults>,
    touched: Mutex<Vec<u32>>,
    stop: AtomicBool,
}

impl EmitProgress {
    /// The guest's page faults so far; up to a tenth of a second old.
    #[must_use]
    pub fn faults(&self) -> EmitFaults {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Pages that the guest asked for, in this order, none twice; once the emitter has ended.
    #[must_use]
    pub fn touched(&self) -> Vec<u32> {
        self.touched.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_touched(&self, pages: Vec<u32>) {
        *self.touched.lock().unwrap_or_else(PoisonError::into_inner) = pages;
    }

    fn set_faults(&self, faults: &EmitFaults) {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).clone_from(faults);
    }
}

/// A thread that feeds one QEMU. Dropping it cuts the link: QEMU's guest then rests in `postcopy-paused`, or its
/// incoming migration fails, if it was not started yet.
#[derive(Debug)]
pub struct Emitter {
    thread: Option<JoinHandle<Result<EmitReport, QemuError>>>,
    progress: Arc<EmitProgress>,
    socket: UnixStream,
    /// Of one that feeds ahead.
    switch: Option<Arc<Switch>>,
}

impl Emitter {
    /// Sets up a QEMU that waits (`-incoming defer`) and begins to feed it. The VM is checked against the QEMU first
    /// ([`super::Fingerprint::fits`]).
    ///
    /// # Errors
    ///
    /// [`QemuError::Refused`] if the two do not fit, [`QemuError::Qmp`] if QEMU refuses (post-copy needs
    /// `/dev/userfaultfd` or `vm.unprivileged_userfaultfd=1`).
    pub fn start(
        qmp: &mut Qmp,
        image: Arc<LazyImage>,
        state: Arc<DeviceState>,
        options: EmitOptions,
    ) -> Result<Self, QemuError> {
        let ours = open(qmp, &image, &state, options.mode)?;
        let stall_within = options.stall_within;
        let script = move |driver: &mut Driver| match options.mode {
            EmitMode::Precopy => driver.precopy(&state),
            EmitMode::Postcopy => driver.postcopy(&state, &options),
        };
        Self::run(ours, qmp.path(), script, image, stall_within)
    }

    /// Goes on with a VM in post-copy whose link broke, here or in another process: QEMU tells which pages it has.
    /// The QEMU must be in `postcopy-paused`, which this waits for.
    ///
    /// # Errors
    ///
    /// [`QemuError::Qmp`] with QEMU's reason if it does not come to that; otherwise as [`start`](Self::start).
    pub fn recover(
        qmp: &mut Qmp,
        image: Arc<LazyImage>,
        state: Arc<DeviceState>,
        options: EmitOptions,
    ) -> Result<Self, QemuError> {
        // Out of band, and with a path: a device that waits for a page holds QEMU's main loop up, so that it can neither
        // tell its state nor take a descriptor.
        let dir = qmp.path().parent().unwrap_or(Path::new("/")).to_owned();
        let dir = tempfile::Builder::new()
            .prefix("recover-")
            .tempdir_in(&dir)
            .map_err(QemuError::io("use", dir))?;
        let path = dir.path().join("s");
        let uri = format!("unix:{}", path.display());
        let deadline = Instant::now() + PAUSED_WITHIN;
        while let Err(error) = qmp.execute_out_of_band("migrate-recover", json!({"uri": uri})) {
            // It takes a moment to notice that its link is gone.
            if !matches!(error, super::QmpError::Refused { .. }) || Instant::now() > deadline {
                return Err(error.into());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let ours = UnixStream::connect(&path).map_err(QemuError::io("connect to", &path))?;
        Self::run(ours, qmp.path(), move |driver| driver.recover(&state), image, options.stall_within)
    }

    fn run(
        socket: UnixStream,
        path: &Path,
        script: impl FnOnce(&mut Driver) -> Result<(), QemuError> + Send + 'static,
        image: Arc<LazyImage>,
        stall_within: Duration,
    ) -> Result<Self, QemuError> {
        let progress = Arc::new(EmitProgress::default());
        let handle = socket.try_clone().map_err(QemuError::io("duplicate a socket for", path))?;
        let mut driver = Driver::new(socket, path, &image, Arc::clone(&progress), stall_within)?;
        let thread = std::thread::Builder::new()
            .name("qemu-emitter".to_owned())
            .spawn(move || {
                let outcome = script(&mut driver);
                driver.tell_touched();
                outcome.map(|()| driver.report())
            })
            .map_err(QemuError::io("start a thread for", path))?;
        Ok(Self { thread: Some(thread), progress, socket: handle, switch: None })
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> &Arc<EmitProgress> {
        &self.progress
    }

    /// Whether it has come to an end, good or bad.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits for its end: QEMU has every page.
    ///
    /// # Errors
    ///
    /// [`QemuError::Migration`] if QEMU gave up or the link broke, [`QemuError::SourceLost`] if pages will not come,
    /// [`QemuError::TimedOut`] if nothing moved for too long.
    ///
    /// # Panics
    ///
    /// If the emitter's thread panicked.
    pub fn wait(mut self) -> Result<EmitReport, QemuError> {
        let thread = self.thread.take().expect("waited for once");
        thread.join().expect("the emitter's thread does not panic")
    }

    /// Cuts the link and waits for the thread's end.
    pub fn cut(self) {
        drop(self);
    }
}

impl Drop for Emitter {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.progress.stop.store(true, Relaxed);
            // The thread sees the end of its socket at once, wherever it waits.
            let _ = self.socket.shutdown(std::net::Shutdown::Both);
            let _ = thread.join();
        }
    }
}

/// Sets up a QEMU that waits to take this VM; the link to it.
fn open(
    qmp: &mut Qmp,
    image: &LazyImage,
    state: &DeviceState,
    mode: EmitMode,
) -> Result<UnixStream, QemuError> {
    check(qmp, image, state)?;
    let postcopy = mode == EmitMode::Postcopy;
    if postcopy && state.blocks.iter().any(|block| !block.len.is_multiple_of(block.page_size)) {
        return Err(QemuError::refused("a RAM block is no whole number of its huge pages"));
    }
    set_up(qmp, postcopy, false)?;
    let (ours, theirs) = UnixStream::pair().map_err(QemuError::io("make a socket for", qmp.path()))?;
    qmp.send_fd("scatter-in", &theirs)?;
    qmp.execute("migrate-incoming", json!({"uri": "fd:scatter-in"}))?;
    Ok(ours)
}

/// Whether this QEMU can take this VM.
fn check(qmp: &mut Qmp, image: &LazyImage, state: &DeviceState) -> Result<(), QemuError> {
    if state.page_count() > image.page_count() {
        return Err(StateError::Damaged("list of RAM blocks: it names more pages than the image has").into());
    }
    let here = super::Fingerprint::of(qmp)?;
    state.fingerprint.fits(&state.blocks, &here).map_err(|mismatch| QemuError::refused(mismatch.to_string()))
}

/// Switches a waiting QEMU's capabilities.
fn set_up(qmp: &mut Qmp, postcopy: bool, ignore_shared: bool) -> Result<(), QemuError> {
    qmp.set_capabilities(&[
        ("events", true),
        ("postcopy-ram", postcopy),
        ("x-ignore-shared", ignore_shared),
    ])?;
    Ok(())
}

/// Waits until a QEMU's incoming migration is in one of these states.
///
/// # Errors
///
/// [`QemuError::Migration`] if it failed, [`QemuError::TimedOut`].
pub fn await_status(qmp: &mut Qmp, wanted: &[&str], within: Duration) -> Result<(), QemuError> {
    let deadline = Instant::now() + within;
    loop {
        let answer = qmp.execute("query-migrate", Value::Null)?;
        let status = answer["status"].as_str().unwrap_or("none");
        if wanted.contains(&status) {
            return Ok(());
        }
        if matches!(status, "failed" | "completed") || Instant::now() > deadline {
            let reason = answer["error-desc"].as_str().map_or_else(
                || format!("it did not become {} within {} s", wanted.join(" or "), within.as_secs_f64()),
                str::to_owned,
            );
            return Err(QemuError::Migration { status: format!("is {status}"), reason });
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The sorted latencies' value below which `percent` of them are.
fn percentile(latencies: &[u32], percent: usize) -> Duration {
    let at = latencies.len() * percent / 100;
    let micros = latencies.get(at.min(latencies.len().saturating_sub(1))).copied().unwrap_or(0);
    Duration::from_micros(micros.into())
}
