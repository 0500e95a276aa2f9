//! Running VMs are taken away, and run elsewhere while the rest of their memory follows.

use crate::support::{
    NONE, TICK_WITHIN, boot, dir, empty_image, identity, machine, sent, settled, ticks, ticks_on,
    wait_for_ticks,
};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};
use vmm::lazy::Origin;
use vmm::qemu::capture::{DepartFiles, DepartingVm, EvacuateOptions, evacuate, resume_stopped};
use vmm::qemu::{EmitMode, EmitOptions, Emitter, QemuError, Qmp, Vm};

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
                emitter = Some(Emitter::start(
                    &mut target.qmp,
                    Arc::clone(image),
                    Arc::clone(state),
                    options.clone(),
                )?);
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

/// A second monitor: one serves one client at a time.
const MONITOR: &[&str] = &["-qmp", "unix:{dir}/leave.sock,server=on,wait=off"];

#[test]
fn a_departing_vm_can_go_on_until_it_has_settled_and_its_pages_are_told_apart_by_version() {
    let Some(machine) = machine(128, MONITOR) else { return };
    let dir = dir();
    let mut source = boot(&machine, dir.path(), "source");
    let monitor = source.dir().join("leave.sock");
    let depart = |name: &str| {
        let files = DepartFiles {
            first: dir.path().join(format!("{name}-first")),
            newer: dir.path().join(format!("{name}-newer")),
        };
        let qmp = Qmp::connect(&monitor, TICK_WITHIN).unwrap();
        (DepartingVm::begin(qmp, &files, &AtomicBool::new(false)).unwrap(), files)
    };
    // It runs on while it is followed, and when it is let go after it was stopped.
    let (mut vm, _) = depart("tried");
    ticks_on(&mut source);
    let changed = vm.follow(Duration::from_millis(200)).unwrap().count();
    assert!(changed > 0, "a guest that writes");
    vm.stop().unwrap();
    vm.resume().unwrap();
    drop(vm);
    ticks_on(&mut source);
    // Stopped by its owner meanwhile, QEMU switches over by itself.
    let (mut vm, _) = depart("paused");
    vm.follow(Duration::from_millis(1)).unwrap();
    source.qmp.execute("stop", Value::Null).unwrap();
    vm.follow(Duration::from_millis(200)).unwrap();
    let state = source.qmp.execute("query-status", Value::Null).unwrap();
    assert_eq!(state["status"], "finish-migrate", "it switches over");
    vm.follow(Duration::from_millis(1)).unwrap();
    assert!(!vm.stop().unwrap().devices.is_empty());
    vm.resume().unwrap();
    drop(vm);
    ticks_on(&mut source);
    // A process that dies before it settles leaves it running.
    let (mut vm, _) = depart("dropped");
    vm.follow(Duration::from_millis(1)).unwrap();
    vm.stop().unwrap();
    drop(vm);
    ticks_on(&mut source);
    // What it set in QEMU is put right by whoever comes next.
    let mut next = Qmp::connect(&monitor, TICK_WITHIN).unwrap();
    resume_stopped(&mut next).unwrap();
    let set = next.execute("query-migrate-parameters", Value::Null).unwrap();
    let own = json!([128 << 20, 300, 0]);
    assert_eq!(json!([set["max-bandwidth"], set["downtime-limit"], set["avail-switchover-bandwidth"]]), own);
    assert!(next.capabilities().unwrap().contains(&("switchover-ack".to_owned(), false)));
    drop(next);

    let (mut vm, files) = depart("left");
    ticks_on(&mut source);
    let state = vm.stop().unwrap();
    vm.settle().unwrap();
    let (newer, _) = vm.newer();
    println!("{} of {} pages changed meanwhile", newer.count(), newer.len());
    let last = ticks(&source).len();
    let image = empty_image(&state);
    for (file, ranges) in [
        (&files.first, newer.iter_unset_ranges().collect::<Vec<_>>()),
        (&files.newer, newer.iter_set_ranges().collect()),
    ] {
        let bytes = std::fs::read(file).unwrap();
        for run in ranges {
            let at = |page: u32| page as usize * 4096;
            image.place(run.start, &bytes[at(run.start)..at(run.end)], Origin::Block).unwrap();
        }
    }
    let mut target = machine.wait_for_vm(identity("target"), &dir.path().join("target")).unwrap();
    let options = EmitOptions::new(EmitMode::Postcopy);
    Emitter::start(&mut target.qmp, image, sent(&state), options.clone()).unwrap().wait().unwrap();
    settled(&mut target);
    ticks_on(&mut target);
    let first = usize::try_from(ticks(&target)[0]).unwrap();
    assert!((last..last + 3).contains(&first), "from {last} to {first}");
    assert_eq!(ticks(&source).len(), last, "the source stands");
    // Only the one who may do so starts it again, here after the target has ended.
    target.quit();
    vm.resume().unwrap();
    ticks_on(&mut source);
    vm.quit().unwrap();
}

#[test]
fn a_vm_that_is_fed_ahead_finds_only_newest_pages() {
    let Some(machine) = machine(128, MONITOR) else { return };
    let dir = dir();
    let mut source = boot(&machine, dir.path(), "source");
    let files = DepartFiles { first: dir.path().join("first"), newer: dir.path().join("newer") };
    let qmp = Qmp::connect(source.dir().join("leave.sock"), TICK_WITHIN).unwrap();
    let mut vm = DepartingVm::begin(qmp, &files, &AtomicBool::new(false)).unwrap();
    let outline = sent(&vm.outline());
    let image = empty_image(&outline);
    let mut target = machine.wait_for_vm(identity("target"), &dir.path().join("target")).unwrap();
    let options = EmitOptions::new(EmitMode::Postcopy);
    let emitter =
        Emitter::start_ahead(&mut target.qmp, Arc::clone(&image), Arc::clone(&outline), options).unwrap();
    let place = |bytes: &[u8], run: std::ops::Range<u32>, origin: Origin| {
        for page in run {
            match &bytes[page as usize * 4096..][..4096] {
                zeros if zeros.iter().all(|byte| *byte == 0) => image.place_word(page, 1, 0, origin).unwrap(),
                bytes => image.place(page, bytes, origin).unwrap(),
            };
        }
    };
    // All of the first pass comes, and goes, while the VM runs on at its source.
    place(&std::fs::read(&files.first).unwrap(), 0..outline.page_count(), Origin::Block);
    let deadline = Instant::now() + TICK_WITHIN;
    let all = u64::from(outline.page_count());
    while emitter.progress().sent.load(Relaxed) < all - all / 50 {
        let sent = emitter.progress().sent.load(Relaxed);
        assert!(Instant::now() < deadline && !emitter.is_finished(), "{sent} of {all} pages");
        std::thread::sleep(Duration::from_millis(5));
    }
    ticks_on(&mut source);
    let state = vm.stop().unwrap();
    vm.settle().unwrap();
    let (newer, _) = vm.newer();
    let stale: Vec<_> = newer.iter_set_ranges().collect();
    println!("{} of {} pages changed meanwhile", newer.count(), newer.len());
    assert!(stale.len() > 1, "a guest that writes");
    stale.iter().for_each(|run| image.renew(run.start, run.end - run.start).unwrap());
    // Some of the newest are there when it switches, some come later.
    let (before, after) = stale.split_at(stale.len() / 2);
    let newest = std::fs::read(&files.newer).unwrap();
    before.iter().for_each(|run| place(&newest, run.clone(), Origin::Sender));
    let last = ticks(&source).len();
    emitter.switch(sent(&state));
    after.iter().for_each(|run| place(&newest, run.clone(), Origin::Sender));
    let report = emitter.wait().unwrap();
    println!("{report:?}");
    assert!(report.pages + report.zero_pages + report.left_out > all, "what changed went twice: {report:?}");
    settled(&mut target);
    ticks_on(&mut target);
    let first = usize::try_from(ticks(&target)[0]).unwrap();
    assert!((last..last + 3).contains(&first), "from {last} to {first}");
    target.quit();
    vm.quit().unwrap();
}

/// Pages of `pc.ram` below are covered by ROMs and the VGA window, as the CPUs see them.
const PLAIN_MEMORY_FROM: u32 = 256;

/// Slows a migration down once it has begun, as a busy machine does.
fn slow_down(source: &mut Vm, bytes_per_s: u64) {
    let deadline = Instant::now() + TICK_WITHIN;
    while source.qmp.execute("query-migrate", Value::Null).unwrap()["status"] != "active" {
        assert!(Instant::now() < deadline, "a migration");
    }
    source.qmp.execute("migrate-set-parameters", json!({"max-bandwidth": bytes_per_s})).unwrap();
}

fn looks(source: &mut Vm) -> u64 {
    source.qmp.execute("query-migrate", Value::Null).unwrap()["ram"]["dirty-sync-count"].as_u64().unwrap()
}

/// QEMU's dirty log under TCG loses writes after a look that found only pages which were still to be sent: so there must be none such.
#[test]
fn a_departing_vm_is_looked_at_only_when_nothing_is_left_and_all_that_it_wrote_is_taken() {
    let Some(machine) = machine(128, MONITOR) else { return };
    let dir = dir();
    let mut source = boot(&machine, dir.path(), "source");
    let files = DepartFiles { first: dir.path().join("first"), newer: dir.path().join("newer") };
    for follows in [0, 2, 0] {
        let qmp = Qmp::connect(source.dir().join("leave.sock"), TICK_WITHIN).unwrap();
        let files_there = files.clone();
        let begun = std::thread::spawn(move || {
            DepartingVm::begin(qmp, &files_there, &AtomicBool::new(false)).unwrap()
        });
        slow_down(&mut source, 60 << 20);
        let mut vm = begun.join().unwrap();
        let ticked = ticks(&source).len();
        wait_for_ticks(&mut source, ticked + 20, TICK_WITHIN);
        assert_eq!(looks(&mut source), 1, "but for the one that it begins with");
        for _ in 0..follows {
            let before = looks(&mut source);
            vm.follow(Duration::from_millis(1)).unwrap();
            assert!(looks(&mut source) >= before + 2, "a whole round");
        }
        let state = vm.stop().unwrap();
        let saved = dir.path().join("saved");
        let block = state.blocks.iter().find(|block| block.id == "pc.ram").unwrap();
        let arguments = json!({"val": 0, "size": block.len, "filename": saved.to_str().unwrap()});
        source.qmp.execute("pmemsave", arguments).unwrap();
        let [first, newer, has] =
            [&files.first, &files.newer, &saved].map(|path| std::fs::read(path).unwrap());
        let (stale, _) = vm.newer();
        let at = |page: u32| page as usize * 4096..(page as usize + 1) * 4096;
        let wrong: Vec<u32> = (PLAIN_MEMORY_FROM..block.pages())
            .filter(|page| {
                let taken = block.first_page + page;
                let taken = if stale.get(taken) { &newer[at(taken)] } else { &first[at(taken)] };
                *taken != has[at(*page)]
            })
            .collect();
        println!("{} pages changed, {} of them are not as they were taken", stale.count(), wrong.len());
        assert!(wrong.is_empty(), "{wrong:?}");
        vm.resume().unwrap();
        drop(vm);
        [&files.first, &files.newer, &saved].iter().for_each(|path| std::fs::remove_file(path).unwrap());
        ticks_on(&mut source);
    }
}
