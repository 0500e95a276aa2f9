//! A captured VM runs once in one of these machines, to see what it touches first.

use super::machine::Machine;
use super::{QemuMachine, Qemus, words};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use vmm::lazy::LazyImage;
use vmm::qemu::{DeviceState, rehearse};
use vmm::uffd::WorkingSet;

impl Qemus {
    /// Machines for [`Qemus::rehearse`] alone, with files in `dir`. One that stands alone and has no disk, which its VM may still write
    /// to, is tried by a QEMU that waits for the VM then.
    ///
    /// # Errors
    /// As [`Qemus::new`].
    pub fn for_rehearsal(machines: &[QemuMachine], dir: &Path) -> Result<Self, String> {
        match machines {
            [QemuMachine { disk: None, .. }] => Self::of(machines, dir, Machine::probe_and_keep),
            _ => Self::of(machines, dir, Machine::probe),
        }
    }

    /// Runs the VM of this memory (a raw image on a tmpfs) and state for so long from its first instruction, in the first machine that
    /// can take it, on a disk overlay of its own. It is a clone like others: what its machine connects it to is its configuration's affair.
    /// Once it is `cancelled` it ends with what was touched until then.
    ///
    /// # Errors
    /// In words: no machine fits, or what QEMU said.
    pub fn rehearse(
        &self,
        memory: &Path,
        state: DeviceState,
        time: Duration,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<WorkingSet, String> {
        let machine = self.machine_for(&state.offer())?;
        let named = |error: &dyn std::error::Error| format!("{}: {}", memory.display(), words(error));
        let file = File::open(memory).map_err(|error| named(&error))?;
        let image = LazyImage::over(file, memory).map_err(|error| named(&error))?;
        image.adopt(0, image.page_count()).map_err(|error| named(&error))?;
        let place = self.places.take("rehearsal")?;
        let mut vm = machine.wait_for_vm(&place.id, &place.dir, None, false)?.vm;
        let set = rehearse(&mut vm, Arc::new(image), Arc::new(state), time, cancelled);
        set.map_err(|error| vm.check().err().map_or_else(|| words(&error), |ended| words(&ended)))
    }
}
