//! What a clone will touch first: a captured VM runs once where it was captured, on its own, and is thrown away.

use super::emit::{EmitMode, EmitOptions, Emitter};
use super::error::QemuError;
use super::launch::Vm;
use super::state::DeviceState;
use crate::lazy::LazyImage;
use crate::uffd::WorkingSet;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// A QEMU may take so long to load the devices.
const START_WITHIN: Duration = Duration::from_secs(30);
/// How often it is looked at until then.
const GLANCE: Duration = Duration::from_millis(1);
/// How often its CPU time is looked at.
const LOOK: Duration = Duration::from_millis(10);
/// By the clock it runs so many times as long as by its CPU time at most.
const WALL_MAX: u32 = 4;

/// Runs the VM in a QEMU that waits, for `time` from its first instruction, as its CPUs tell it (by the clock at most four times that: a
/// guest may be idle, a host busy), and cuts its link: that QEMU is of no further use. The pages that it touched, device state
/// included, in the order of their first touches. `image` is complete, and is not changed. Once it is `cancelled` it ends with what was
/// touched until then.
///
/// # Errors
///
/// As [`Emitter::start`] and [`Emitter::wait`]; [`QemuError::TimedOut`].
pub fn rehearse(
    vm: &mut Vm,
    image: Arc<LazyImage>,
    state: Arc<DeviceState>,
    time: Duration,
    cancelled: &dyn Fn() -> bool,
) -> Result<WorkingSet, QemuError> {
    let page_count = image.page_count();
    let options = EmitOptions { background: false, ..EmitOptions::new(EmitMode::Postcopy) };
    let emitter = Emitter::start(&mut vm.qmp, image, state, options)?;
    let progress = Arc::clone(emitter.progress());
    let begin = Instant::now();
    let goes_on = || !emitter.is_finished() && !cancelled();
    while !progress.started.load(Relaxed) && goes_on() {
        if begin.elapsed() > START_WITHIN {
            return Err(QemuError::TimedOut { what: "the VM's devices to be loaded", within: START_WITHIN });
        }
        std::thread::sleep(GLANCE);
    }
    let (until, used) = (Instant::now() + time * WALL_MAX, vm.cpu_time());
    while vm.cpu_time().saturating_sub(used) < time && Instant::now() < until && goes_on() {
        std::thread::sleep(LOOK.min(time));
    }
    if emitter.is_finished() {
        // It has touched all of its memory, or failed.
        emitter.wait()?;
    } else {
        emitter.cut();
    }
    Ok(WorkingSet::of(page_count, &progress.touched()))
}
