//! VMs start elsewhere from what was taken.

use crate::support::{
    TICK_WITHIN, boot, complete_image, dir, identity, machine, sent, ticks, ticks_on, wait_for_ticks,
};
use std::sync::Arc;
use std::time::{Duration, Instant};
use vmm::qemu::{CaptureOptions, EmitMode, EmitOptions, Emitter, capture};

#[test]
fn a_clone_runs_by_precopy_and_by_postcopy() {
    let Some(machine) = machine(128, &[]) else { return };
    let dir = dir();
    let mut vm = boot(&machine, dir.path(), "source");
    let image = dir.path().join("image");
    let captured = capture(&mut vm.qmp, CaptureOptions::new(&image)).unwrap();
    ticks_on(&mut vm);
    vm.quit();
    let image = complete_image(&captured);
    let state = sent(&captured.state);
    for mode in [EmitMode::Precopy, EmitMode::Postcopy] {
        let mut clone =
            machine.wait_for_vm(identity("clone"), &dir.path().join(format!("{mode:?}"))).unwrap();
        let start = Instant::now();
        let emitter =
            Emitter::start(&mut clone.qmp, Arc::clone(&image), Arc::clone(&state), EmitOptions::new(mode))
                .unwrap();
        wait_for_ticks(&mut clone, 1, TICK_WITHIN);
        println!("{mode:?} first tick {:?} {:?}", start.elapsed(), ticks(&clone));
        println!("{:?}", emitter.wait().unwrap());
        vmm::qemu::emit::await_status(&mut clone.qmp, &["completed"], Duration::from_secs(10)).unwrap();
        ticks_on(&mut clone);
        clone.quit();
    }
}
