//! Running VMs are taken, and run on.

use crate::support::{boot, dir, machine, ticks_on};
use vmm::qemu::{CaptureOptions, Way, capture};

#[test]
fn a_running_vm_is_taken_by_a_live_stream_and_ticks_on() {
    let Some(machine) = machine(128, &[]) else { return };
    let dir = dir();
    let mut vm = boot(&machine, dir.path(), "source");
    let image = dir.path().join("image");
    let captured = capture(&mut vm.qmp, CaptureOptions::new(&image)).unwrap();
    println!("{:?} {} {:?}", captured.way, captured.because, captured.figures);
    println!("{:?}", captured.state.blocks);
    assert_eq!(captured.way, Way::LiveStream);
    ticks_on(&mut vm);
    vm.quit();
}
