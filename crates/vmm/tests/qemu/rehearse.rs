//! What a rehearsal tells, and what it is good for.

use crate::support::{NONE, TICK_WITHIN, boot, complete_image, dir, identity, machine, sent, wait_for_ticks};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use vmm::qemu::{CaptureOptions, EmitMode, EmitOptions, Emitter, capture, rehearse};

#[test]
fn a_clone_that_has_what_a_rehearsal_touched_first_faults_on_little_else() {
    let Some(machine) = machine(128, NONE) else { return };
    let dir = dir();
    let mut source = boot(&machine, dir.path(), "source");
    let captured = capture(&mut source.qmp, CaptureOptions::new(&dir.path().join("image"))).unwrap();
    source.quit();
    let (image, state) = (complete_image(&captured), sent(&captured.state));
    let waiting = |name: &str| machine.wait_for_vm(identity(name), &dir.path().join(name)).unwrap();

    let mut trial = waiting("trial");
    let time = Duration::from_secs(1);
    let set = rehearse(&mut trial, Arc::clone(&image), Arc::clone(&state), time, &|| false).unwrap();
    drop(trial);
    let touched = set.pages().len();
    assert!((200..image.page_count() as usize / 2).contains(&touched), "{touched} pages in a second");

    // Only what they wait for goes, so that each first touch is counted.
    let faults = |name: &str, preload: &[u32]| {
        let mut clone = waiting(name);
        let options = EmitOptions {
            preload: preload.into(),
            background: false,
            ..EmitOptions::new(EmitMode::Postcopy)
        };
        let emitter =
            Emitter::start(&mut clone.qmp, Arc::clone(&image), Arc::clone(&state), options).unwrap();
        wait_for_ticks(&mut clone, 2, TICK_WITHIN);
        emitter.progress().requests.load(Relaxed)
    };
    let (without, with) = (faults("without", &[]), faults("with", set.pages()));
    println!(
        "{touched} pages touched in a second; faults until the second tick: {without} without them, {with} with them"
    );
    assert!(with * 2 < without, "{with} of {without} faults are left");
}
