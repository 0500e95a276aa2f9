//! A VM that moves here: loaded standing, started when it is this host's, and left running when this process ends.

use super::super::words::{LOOK, words};
use super::super::{CloneSpec, Ward};
use super::run::{GLANCE, STALL_WITHIN, figures, instead_of};
use super::waiting::Ready;
use super::{Warm, state_of};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};
use vmm::qemu::{DeviceState, EmitMode, EmitOptions, Emitter, QemuError, Qmp};

/// A broken link to a VM that is this host's is made anew after so long.
const RECOVER_AFTER: Duration = Duration::from_millis(500);
/// Most of it is here when it starts: this host's CPUs are well spent on bringing it the rest at once.
fn options() -> EmitOptions {
    let hold_back = Duration::ZERO;
    EmitOptions { stall_within: STALL_WITHIN, hold_back, ..EmitOptions::new(EmitMode::Postcopy) }
}

/// How often a hypervisor that is nobody's child is looked at.
const ASK_EVERY: Duration = Duration::from_millis(500);

/// A QEMU: started by this process, or left by an earlier one.
pub(super) enum Hypervisor {
    Own(Box<Ready>),
    Left(Qmp),
}

impl Hypervisor {
    /// One that waits already, or is being started.
    pub(super) fn own(warm: Warm) -> Result<Self, String> {
        let ready = warm.join().unwrap_or_else(|_| Err("its starting thread panicked".into()))?;
        Ok(Self::Own(Box::new(ready)))
    }

    fn qmp(&mut self) -> &mut Qmp {
        match self {
            Self::Own(ready) => &mut ready.vm.qmp,
            Self::Left(qmp) => qmp,
        }
    }

    /// Fails if it has ended.
    fn alive(&mut self) -> Result<(), String> {
        match self {
            Self::Own(ready) => ready.vm.check().map_err(|error| words(&error)),
            // Refused at once if nobody listens there any more; not asked, as it may be waiting for pages.
            Self::Left(qmp) => std::os::unix::net::UnixStream::connect(qmp.path())
                .map(drop)
                .map_err(|error| format!("its QEMU is gone: {error}")),
        }
    }

    fn release(self) -> PathBuf {
        match self {
            Self::Own(ready) => ready.vm.release(),
            Self::Left(qmp) => qmp.path().to_owned(),
        }
    }
}

pub(super) struct Moving<'a> {
    pub(super) spec: &'a CloneSpec,
    pub(super) ward: &'a Ward,
    pub(super) vm: Hypervisor,
    pub(super) state: Arc<DeviceState>,
}

impl Moving<'_> {
    /// Runs it until it ends; or stops caring for it when this process is to end, if it is this host's.
    pub(super) fn run(mut self) -> Result<(), String> {
        self.ward.note_monitor(self.vm.qmp().path().display().to_string());
        if let Hypervisor::Own(ready) = &self.vm {
            let keeper = Arc::clone(ready.vm.keeper());
            self.ward.on_outlive(Box::new(move || keeper.dismiss()));
        }
        let mut awaits_state = self.spec.moves.as_ref().is_some_and(|moves| moves.outline.is_some());
        let mut emitter = match &self.vm {
            Hypervisor::Own(_) if awaits_state => Some(self.fed_ahead().map_err(|error| words(&error))?),
            Hypervisor::Own(_) => Some(self.emitter(false).map_err(|error| words(&error))?),
            Hypervisor::Left(_) => self.recovered()?,
        };
        let (mut loaded, mut running) = (false, false);
        let mut asked = Instant::now();
        loop {
            if self.ward.is_stopped() {
                drop(emitter);
                return self.leave();
            }
            if matches!(self.vm, Hypervisor::Own(_)) || asked.elapsed() > ASK_EVERY {
                asked = Instant::now();
                self.vm.alive()?;
            }
            if awaits_state && let (Some(given), Some(emitter)) = (self.ward.given(), &emitter) {
                awaits_state = false;
                self.state = Arc::new(state_of(given)?);
                emitter.switch(Arc::clone(&self.state));
            }
            let started = emitter.as_ref().is_none_or(|emitter| emitter.progress().started.load(Relaxed));
            if started && !loaded {
                loaded = true;
                self.status("loaded, and stands until it is this host's");
                self.ward.loaded();
            }
            if loaded && !running && self.ward.may_run() {
                // QEMU that is about to stand runs on instead.
                self.vm.qmp().execute("cont", serde_json::Value::Null).map_err(|error| words(&error))?;
                running = true;
                self.status("moved here; its pages come");
                self.ward.running();
            }
            if let Some(working) = &emitter {
                self.ward.note_faults(figures(&working.progress().faults()));
            }
            if emitter.as_ref().is_some_and(Emitter::is_finished)
                && let Some(finished) = emitter.take()
                && let Err(error) = finished.wait()
            {
                emitter = self.again(&error)?;
            } else if emitter.is_none() && running {
                self.status("moved here, all of it");
            }
            // QEMU does not say when it has loaded the devices; for all else somebody says when it is time.
            self.ward.wait(if loaded || awaits_state { LOOK } else { GLANCE });
        }
    }

    /// One that takes what comes while its VM runs on at its source.
    fn fed_ahead(&mut self) -> Result<Emitter, QemuError> {
        let (image, outline) = (Arc::clone(&self.spec.image), Arc::clone(&self.state));
        self.status("fed while it runs at its source");
        Emitter::start_ahead(self.vm.qmp(), image, outline, options())
    }

    fn emitter(&mut self, recover: bool) -> Result<Emitter, QemuError> {
        let (image, state) = (Arc::clone(&self.spec.image), Arc::clone(&self.state));
        let begin = if recover { Emitter::recover } else { Emitter::start };
        begin(self.vm.qmp(), image, state, options())
    }

    /// A QEMU that an earlier receiver left: it waits for pages, or has all of them.
    fn recovered(&mut self) -> Result<Option<Emitter>, String> {
        match self.emitter(true) {
            Ok(emitter) => Ok(Some(emitter)),
            Err(error) => {
                let status = self.vm.qmp().execute("query-migrate", serde_json::Value::Null);
                let status = status.map_err(|error| words(&error))?;
                if status["status"] == "completed" { Ok(None) } else { Err(words(&error)) }
            }
        }
    }

    /// Its link broke: a VM that is this host's is never given up for that.
    fn again(&mut self, error: &QemuError) -> Result<Option<Emitter>, String> {
        // What QEMU said before it ended tells more than that its link broke.
        self.vm.alive()?;
        if !self.ward.may_run() {
            return Err(words(error));
        }
        let mut why = words(error);
        loop {
            tracing::warn!(name = self.spec.name, error = why, "the link to a VM broke: it is made anew");
            std::thread::sleep(RECOVER_AFTER);
            match self.recovered() {
                Err(_) if self.ward.is_stopped() => return Ok(None),
                // Its QEMU may be busy, or the link broke again in between; as long as it lives, it has the VM.
                Err(again) => {
                    self.vm.alive()?;
                    why = again;
                }
                recovered => return recovered,
            }
        }
    }

    /// This process ends, or the VM stays at its source: then it ends here.
    fn leave(self) -> Result<(), String> {
        if self.ward.may_run() {
            let name = self.spec.name.clone();
            let monitor = self.vm.release();
            tracing::info!(name, monitor = %monitor.display(), "runs on without this receiver");
        }
        Ok(())
    }

    fn status(&mut self, what: &str) {
        let monitor = self.vm.qmp().path().display().to_string();
        let instead = match &self.vm {
            Hypervisor::Own(ready) => instead_of(ready.instead.as_deref()),
            Hypervisor::Left(_) => String::new(),
        };
        self.ward.note_status(format!("{what}{instead}; monitor {monitor}"));
    }
}
