//! Running VMs are taken away, and run elsewhere while the rest of their memory follows.

use crate::support::{
    NONE, TICK_WITHIN, boot, dir, identity, machine, settled, ticks, ticks_on, wait_for_ticks,
};
use std::sync::Arc;
use std::time::{Duration, Instant};
use vmm::qemu::capture::{EvacuateOptions, evacuate};
use vmm::qemu::{EmitMode, EmitOptions, Emitter, QemuError};

fn options(image: &std::path::Path) -> EvacuateOptions<'_> {
    EvacuateOptions {
        image,
        precopy_for: Duration::from_millis(300),
        enough_left: 0,
        stall_within: Duration::from_secs(60),
    }
}

#[test]
fn a_vm_moves_in_hybrid_mode_and_runs_at_one_place_only() {
    let Some(machine) = machine(128, NONE) else { return };
    let dir = dir();
    for (name, precopy_for) in [("hybrid", Duration::from_millis(300)), ("postcopy", Duration::ZERO)] {
        let dir = dir.path().join(name);
        let mut source = boot(&machine, &dir, "source");
        let mut target = machine.wait_for_vm(identity("target"), &dir.join("target")).unwrap();
        let image = dir.join("image");
        let options = EvacuateOptions { precopy_for, ..options(&image) };
        let mut emitter = None;
        let mut last = 0;
        let mut switched_at = Instant::now();
        // Source and target are waited for side by side, as between two hosts.
        let evacuated = std::thread::scope(|scope| {
            let source_dir = source.dir().to_owned();
            let mut start = |image: &_, state: &_| {
                switched_at = Instant::now();
                let said = std::fs::read_to_string(source_dir.join("serial")).unwrap();
                last = said.lines().filter(|line| line.starts_with("TICK")).count();
                let options = EmitOptions::new(EmitMode::Postcopy);
                emitter =
                    Some(Emitter::start(&mut target.qmp, Arc::clone(image), Arc::clone(state), options)?);
                Ok::<_, QemuError>(())
            };
            let _ = scope;
            evacuate(&mut source.qmp, &options, &mut start).unwrap()
        });
        wait_for_ticks(&mut target, 1, TICK_WITHIN);
        println!(
            "{name}: {:?}, {} stale pages, {} requests; first tick seen {:?} after the switch",
            evacuated.figures,
            evacuated.stale_pages,
            evacuated.requests,
            switched_at.elapsed()
        );
        emitter.unwrap().wait().unwrap();
        settled(&mut target);
        ticks_on(&mut target);
        // The guest went on counting where it was.
        let first = usize::try_from(ticks(&target)[0]).unwrap();
        assert!((last..last + 3).contains(&first), "from {last} to {first}");
        let source_ticks = ticks(&source).len();
        assert!(source_ticks <= last + 1, "the source stands: {source_ticks}, {last}");
        let status = source.qmp.execute("query-status", serde_json::Value::Null).unwrap();
        assert_eq!(status["status"], "postmigrate");
        source.quit();
        target.quit();
    }
}

#[test]
fn a_vm_that_cannot_be_taken_away_runs_on() {
    let Some(machine) = machine(128, NONE) else { return };
    let dir = dir();
    let mut source = boot(&machine, dir.path(), "source");
    // No tmpfs, no memory for a VM to run from.
    let elsewhere = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let image = elsewhere.path().join("image");
    let error = evacuate(&mut source.qmp, &options(&image), &mut |_, _| panic!("not switched")).unwrap_err();
    assert!(error.to_string().contains("is not on a tmpfs"), "{error}");
    assert!(!image.exists());
    ticks_on(&mut source);
    // Whoever takes the device state and fails has a VM that stands at the source, and nowhere else.
    let image = dir.path().join("image");
    let mut refuse = |_: &_, _: &_| Err(QemuError::Refused { reason: "no such host".into() });
    let error = evacuate(&mut source.qmp, &options(&image), &mut refuse).unwrap_err();
    assert!(error.to_string().contains("no such host"), "{error}");
    let status = source.qmp.execute("query-status", serde_json::Value::Null).unwrap();
    assert_eq!(status["running"], false);

    source.quit();
}
