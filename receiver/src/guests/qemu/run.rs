//! A clone from its device state to its end.

use super::super::words::{LOOK, words};
use super::super::{CloneSpec, Ward};
use super::Warm;
use super::machine::{Machine, MemoryKind};
use super::waiting::Ready;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};
use vmm::qemu::emit::TemplateVm;
use vmm::qemu::{DeviceState, EmitFaults, EmitMode, EmitOptions, Emitter, Vm};
use wire::control::FaultFigures;

/// How often what is about to happen is looked at.
pub(super) const GLANCE: Duration = Duration::from_millis(1);
/// How long a receiver that ends waits for a clone to take the rest of its memory.
const FINISH_WITHIN: Duration = Duration::from_secs(20);
/// A clone's QEMU may wait for pages as long as the image is not given up; this is for one that does not move at all.
pub(super) const STALL_WITHIN: Duration = Duration::from_secs(60);

/// Runs it until it ends, is to end, or its memory is lost.
pub(super) fn run(
    spec: &CloneSpec,
    ward: &Ward,
    machine: &Machine,
    state: Arc<DeviceState>,
    warm: Warm,
) -> Result<(), String> {
    ward.note_status("QEMU is being started".to_owned());
    while !warm.is_finished() && !ward.is_stopped() {
        std::thread::sleep(GLANCE);
    }
    let Ready { vm, instead } = warm.join().unwrap_or_else(|_| Err("its starting thread panicked".into()))?;
    if ward.is_stopped() {
        return Ok(());
    }
    let running = Running { spec, ward, machine, vm, instead, since: Instant::now(), stopping: None };
    match machine.memory() {
        MemoryKind::Private => running.private(&state),
        MemoryKind::Shared => running.shared(&state),
    }
}

struct Running<'a> {
    spec: &'a CloneSpec,
    ward: &'a Ward,
    machine: &'a Machine,
    vm: Vm,
    /// Why that is not one that waited.
    instead: Option<String>,
    since: Instant,
    /// When it was told to end, it may take until then.
    stopping: Option<Instant>,
}

impl Running<'_> {
    /// At once, by post-copy.
    fn private(mut self, state: &Arc<DeviceState>) -> Result<(), String> {
        let preload = Arc::clone(&self.spec.working_set);
        let options =
            EmitOptions { stall_within: STALL_WITHIN, preload, ..EmitOptions::new(EmitMode::Postcopy) };
        let (image, state) = (Arc::clone(&self.spec.image), Arc::clone(state));
        let emitter =
            Emitter::start(&mut self.vm.qmp, image, state, options).map_err(|error| words(&error))?;
        let progress = Arc::clone(emitter.progress());
        let mut told = false;
        while !emitter.is_finished() {
            if self.ward.is_stopped() && !self.may_finish() {
                // It has not all of its memory: it ends with its source of pages.
                return Ok(());
            }
            self.alive()?;
            if !told && progress.started.load(Relaxed) {
                told = true;
                self.status("private memory, by post-copy; its pages come");
                self.ward.running();
            }
            self.ward.note_faults(figures(&progress.faults()));
            std::thread::sleep(if told { LOOK } else { GLANCE });
        }
        let outcome = emitter.wait();
        // What QEMU said before it ended tells more than that its link broke.
        outcome.map_err(|error| self.alive().err().unwrap_or_else(|| words(&error)))?;
        self.ward.note_faults(figures(&progress.faults()));
        self.status("private memory, all of it here");
        if !told {
            self.ward.running();
        }
        self.stay()
    }

    /// Once the whole image is here: clean pages are the image's.
    fn shared(mut self, state: &DeviceState) -> Result<(), String> {
        self.ward.note_status("waits for all of its memory, which it will share".to_owned());
        let image = &self.spec.image;
        while !image.is_complete() {
            if self.ward.is_stopped() {
                return Ok(());
            }
            if let Some(reason) = image.lost() {
                return Err(reason.to_owned());
            }
            self.alive()?;
            std::thread::sleep(GLANCE);
        }
        let template = TemplateVm::new(image, state).map_err(|error| words(&error))?;
        let options = EmitOptions { stall_within: STALL_WITHIN, ..EmitOptions::new(EmitMode::Precopy) };
        template.load(&mut self.vm.qmp, image, &options).map_err(|error| words(&error))?;
        self.status("clean pages shared with the other clones of this host");
        self.ward.running();
        self.stay()
    }

    /// Whether a clone that is to end may still take the rest of its memory, which is all on this host, and then run on.
    fn may_finish(&mut self) -> bool {
        let until = *self.stopping.get_or_insert_with(|| Instant::now() + FINISH_WITHIN);
        self.machine.keeps() && self.spec.image.is_complete() && Instant::now() < until
    }

    /// It depends on nobody: until it ends, or this host's receiver does.
    fn stay(mut self) -> Result<(), String> {
        if self.machine.keeps() {
            self.vm.keeper().dismiss();
        }
        while !self.ward.is_stopped() {
            if self.ended()? {
                return Ok(());
            }
            std::thread::sleep(LOOK);
        }
        if self.machine.keeps() {
            let (name, pid) = (self.spec.name.clone(), self.vm.pid());
            let monitor = self.vm.release();
            tracing::info!(name, pid, monitor = %monitor.display(), "runs on without this receiver");
        }
        Ok(())
    }

    /// Fails if QEMU has ended, however it did.
    fn alive(&mut self) -> Result<(), String> {
        self.vm.check().map_err(|error| words(&error))
    }

    /// Whether the guest has shut down; fails if QEMU did not end well.
    fn ended(&mut self) -> Result<bool, String> {
        match self.vm.exit_status() {
            None => Ok(false),
            Some(status) if status.success() => Ok(true),
            Some(_) => self.alive().map(|()| true),
        }
    }

    fn status(&self, memory: &str) {
        let identity = &self.vm.identity;
        let disk =
            identity.disk.as_ref().map_or_else(String::new, |disk| format!(", disk {}", disk.display()));
        self.ward.note_status(format!(
            "{memory}; machine {}, started {:.0} ms after its QEMU waited{}; vmgenid {}, MAC {} if the guest takes it{disk}; monitor {}",
            self.machine.name(),
            self.since.elapsed().as_secs_f64() * 1000.0,
            instead_of(self.instead.as_deref()),
            identity.vmgenid,
            identity.mac,
            self.vm.qmp.path().display(),
        ));
    }
}

/// What is said of a QEMU that was started because one that waited was of no use.
pub(super) fn instead_of(given_up: Option<&str>) -> String {
    given_up
        .map_or_else(String::new, |why| format!(", in a new QEMU, as one that waited was given up: {why}"))
}

pub(super) fn figures(faults: &EmitFaults) -> FaultFigures {
    let quantile = |share| {
        let us = faults.waited.quantile(share).map_or(0, |time| time.as_micros());
        u32::try_from(us).unwrap_or(u32::MAX)
    };
    FaultFigures {
        here: faults.here,
        block: faults.by_block,
        sender: faults.by_sender,
        peer: faults.by_peer,
        waited_p50_us: quantile(0.5),
        waited_p99_us: quantile(0.99),
    }
}
