//! VMs start elsewhere from what was taken.

use crate::support::{
    NONE, TICK_WITHIN, boot, complete_image, dir, empty_image, feed, fill, identity, machine, sent, settled,
    template_machine, ticks, ticks_on, wait_for_ticks,
};
use std::sync::Arc;
use std::time::Instant;
use vmm::qemu::emit::TemplateVm;
use vmm::qemu::launch::make_overlay;
use vmm::qemu::{
    CaptureOptions, Captured, EmitMode, EmitOptions, Emitter, Identity, Launch, QemuError, Vm, capture,
};

/// A guest that ran and was taken; it ticks on, and is then ended.
fn taken(machine: &Launch, dir: &std::path::Path) -> Captured {
    let mut vm = boot(machine, dir, "source");
    let captured = capture(&mut vm.qmp, CaptureOptions::new(&dir.join("image"))).unwrap();
    ticks_on(&mut vm);
    vm.quit();
    captured
}

fn waiting(machine: &Launch, dir: &std::path::Path, name: &str) -> Vm {
    machine.wait_for_vm(identity(name), &dir.join(name)).unwrap()
}

#[test]
fn a_clone_runs_by_precopy_and_by_postcopy() {
    let Some(machine) = machine(128, NONE) else { return };
    let dir = dir();
    let captured = taken(&machine, dir.path());
    let (image, state) = (complete_image(&captured), sent(&captured.state));
    for (mode, preload_pages) in [
        (EmitMode::Precopy, 0),
        (EmitMode::Postcopy, 0),
        (EmitMode::Postcopy, 5000),
        (EmitMode::Postcopy, u32::MAX),
    ] {
        let mut clone = waiting(&machine, dir.path(), &format!("{mode:?}-{preload_pages}"));
        let start = Instant::now();
        // Some twice, and backwards: each goes once all the same.
        let preload = (0..image.page_count().min(preload_pages)).rev().chain([0, 1]).collect();
        let options = EmitOptions { preload, ..EmitOptions::new(mode) };
        let emitter =
            Emitter::start(&mut clone.qmp, Arc::clone(&image), Arc::clone(&state), options.clone()).unwrap();
        wait_for_ticks(&mut clone, 1, TICK_WITHIN);
        let first_tick = start.elapsed();
        let report = emitter.wait().unwrap();
        println!("{mode:?}, {preload_pages} pages first: first tick after {first_tick:?}, {report:?}");
        let pages: u32 = state.blocks.iter().map(|block| block.pages()).sum();
        assert_eq!(report.pages + report.zero_pages + report.left_out, u64::from(pages), "each page once");
        settled(&mut clone);
        ticks_on(&mut clone);
        clone.quit();
    }
}

#[test]
fn four_clones_run_while_their_memory_comes_in() {
    let Some(machine) = machine(128, NONE) else { return };
    let dir = dir();
    let captured = taken(&machine, dir.path());
    let state = sent(&captured.state);
    let image = empty_image(&state);
    let mut clones: Vec<Vm> =
        (0..4).map(|number| waiting(&machine, dir.path(), &format!("clone{number}"))).collect();
    let start = Instant::now();
    // Nothing is here but what the guests ask for; the rest comes in an order of its own, slowly.
    let feeder = feed(&image, &captured);
    let options = EmitOptions::new(EmitMode::Postcopy);
    let emitters: Vec<Emitter> = clones
        .iter_mut()
        .map(|clone| {
            Emitter::start(&mut clone.qmp, Arc::clone(&image), Arc::clone(&state), options.clone()).unwrap()
        })
        .collect();
    for clone in &mut clones {
        wait_for_ticks(clone, 1, TICK_WITHIN);
        println!("{}: first tick after {:?}", clone.identity.name, start.elapsed());
    }
    println!("{:?}", image.stats());
    for emitter in emitters {
        let report = emitter.wait().unwrap();
        assert!(report.waited > 0, "{report:?}");
        println!("{report:?}");
    }
    feeder.join().unwrap();
    for clone in &mut clones {
        settled(clone);
        ticks_on(clone);
    }
    clones.into_iter().for_each(Vm::quit);
}

#[test]
fn a_cut_link_is_recovered_by_another_emitter() {
    let Some(machine) = machine(128, NONE) else { return };
    let dir = dir();
    let captured = taken(&machine, dir.path());
    let state = sent(&captured.state);
    let image = empty_image(&state);
    // A part of the memory, from the front; what else the guest wants it must wait for.
    fill(&image, &captured, 0..8000);
    let mut clone = waiting(&machine, dir.path(), "clone");
    let options = EmitOptions::new(EmitMode::Postcopy);
    let emitter =
        Emitter::start(&mut clone.qmp, Arc::clone(&image), Arc::clone(&state), options.clone()).unwrap();
    let deadline = Instant::now() + TICK_WITHIN;
    let sent_pages = || emitter.progress().sent.load(std::sync::atomic::Ordering::Relaxed);
    while sent_pages() < 7000 {
        assert!(Instant::now() < deadline && !emitter.is_finished(), "{} pages", sent_pages());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    emitter.cut();
    let before = ticks(&clone).len();
    // Another process would come with nothing but image and state.
    fill(&image, &captured, 8000..16_000);
    let emitter =
        Emitter::recover(&mut clone.qmp, Arc::clone(&image), Arc::clone(&state), options.clone()).unwrap();
    let feeder = feed(&image, &captured);
    let report = emitter.wait().unwrap();
    feeder.join().unwrap();
    let pages: u32 = state.blocks.iter().map(|block| block.pages()).sum();
    assert!(
        report.pages + report.zero_pages <= u64::from(pages) - 6000,
        "what it has is not repeated: {report:?}"
    );
    settled(&mut clone);
    assert!(ticks(&clone).len() >= before);
    ticks_on(&mut clone);
    clone.quit();
}

#[test]
fn pages_that_will_not_come_end_the_emitter_and_the_vm_can_still_be_saved() {
    let Some(machine) = machine(128, NONE) else { return };
    let dir = dir();
    let captured = taken(&machine, dir.path());
    let state = sent(&captured.state);
    let image = empty_image(&state);
    let mut clone = waiting(&machine, dir.path(), "clone");
    let options = EmitOptions::new(EmitMode::Postcopy);
    let emitter =
        Emitter::start(&mut clone.qmp, Arc::clone(&image), Arc::clone(&state), options.clone()).unwrap();
    // What it wants it gets, until it runs.
    let deadline = Instant::now() + TICK_WITHIN;
    while !emitter.progress().started.load(std::sync::atomic::Ordering::Relaxed) {
        assert!(Instant::now() < deadline && !emitter.is_finished(), "the guest does not start");
        while let Some(page) = image.next_demand() {
            fill(&image, &captured, page..page + 1);
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    image.lose("the sender is gone");
    let error = emitter.wait().unwrap_err();
    assert!(matches!(&error, QemuError::SourceLost { reason } if reason == "the sender is gone"), "{error}");
    // With the memory from elsewhere it goes on.
    let image = complete_image(&captured);
    Emitter::recover(&mut clone.qmp, image, state, options.clone()).unwrap().wait().unwrap();
    settled(&mut clone);
    ticks_on(&mut clone);
    clone.quit();
}

#[test]
fn clones_of_a_template_share_its_pages() {
    let Some(machine) = machine(128, NONE) else { return };
    let dir = dir();
    let captured = taken(&machine, dir.path());
    let (image, state) = (complete_image(&captured), sent(&captured.state));
    let template = TemplateVm::new(&image, &state).unwrap();
    let machine = template_machine(&captured);
    let mut clones: Vec<Vm> =
        (0..3).map(|number| waiting(&machine, dir.path(), &format!("t{number}"))).collect();
    for clone in &mut clones {
        let start = Instant::now();
        let load = template.load(&mut clone.qmp, &image, &EmitOptions::new(EmitMode::Precopy)).unwrap();
        wait_for_ticks(clone, 1, TICK_WITHIN);
        println!("{}: loaded in {load:?}, first tick after {:?}", clone.identity.name, start.elapsed());
    }
    for clone in &mut clones {
        ticks_on(clone);
        let own = crate::support::private_dirty_mib(clone.pid(), &captured.image);
        println!("{}: {own} MiB of its memory are its own", clone.identity.name);
        assert!(own < 100, "most of a guest that has just begun is shared");
    }
    clones.into_iter().for_each(Vm::quit);
}

#[test]
fn a_machine_of_another_kind_is_refused_before_anything_is_sent() {
    let Some(machine) = machine(128, NONE) else { return };
    let dir = dir();
    let captured = taken(&machine, dir.path());
    let (image, state) = (complete_image(&captured), sent(&captured.state));
    let cases: [(&[&str], &str); 4] = [
        (&["-cpu", "qemu64"], "CPU model: the source has max-x86_64-cpu"),
        (&["-m", "256"], "RAM block pc.ram"),
        (&["-smp", "2"], "virtual CPUs: the source has 1, the destination 2"),
        (&["-machine", "pc"], "machine type: the source has pc-q35-10.0"),
    ];
    for (args, expected) in cases {
        let mut other = machine.clone();
        other.args.extend(args.iter().map(|arg| (*arg).to_owned()));
        let mut clone = waiting(&other, dir.path(), "other");
        let options = EmitOptions::new(EmitMode::Postcopy);
        let error = Emitter::start(&mut clone.qmp, Arc::clone(&image), Arc::clone(&state), options.clone())
            .unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        let status = clone.qmp.execute("query-status", serde_json::Value::Null).unwrap();
        assert_eq!(status["status"], "inmigrate", "it still waits");
        clone.quit();
    }
}

/// Two CPUs, more memory than a host page table's page maps, a disk and a network card; the disk's contents are taken while
/// the source stands, and each clone writes to an overlay of its own.
#[test]
fn a_larger_machine_with_disk_and_card_is_cloned() {
    let dir = dir();
    let more = [
        "-smp",
        "2",
        "-drive",
        "if=virtio,format=qcow2,file={disk}",
        "-nic",
        "user,model=virtio-net-pci,mac={mac}",
        "-device",
        "vmgenid,guid={vmgenid}",
    ];
    let Some(machine) = machine(2048, &more) else { return };
    let base = dir.path().join("base.img");
    std::fs::File::create(&base).unwrap().set_len(16 << 20).unwrap();
    let with_disk = |name: &str, base: &std::path::Path, format: &str| {
        let disk = dir.path().join(format!("{name}.qcow2"));
        make_overlay(base, format, &disk).unwrap();
        Identity { disk: Some(disk), ..identity(name) }
    };
    let mut source = machine.boot(with_disk("source", &base, "raw"), &dir.path().join("source")).unwrap();
    wait_for_ticks(&mut source, 3, crate::support::BOOT_WITHIN);
    let (disk, frozen) = (source.identity.disk.clone().unwrap(), dir.path().join("frozen.qcow2"));
    let mut snapshot = |_: &mut vmm::qemu::Qmp| {
        std::fs::copy(&disk, &frozen).map(drop).map_err(|source| QemuError::Io {
            action: "copy",
            path: disk.clone(),
            source,
        })
    };
    let image = dir.path().join("image");
    let options = CaptureOptions { while_paused: Some(&mut snapshot), ..CaptureOptions::new(&image) };
    let captured = capture(&mut source.qmp, options).unwrap();
    println!("2 GiB: {:?}", captured.figures);
    ticks_on(&mut source);
    source.quit();
    // Most of it is zero, and stays a hole.
    let file = std::fs::File::options().read(true).write(true).open(&image).unwrap();
    let lazy = vmm::LazyImage::over(file, &image).unwrap();
    lazy.adopt(0, lazy.page_count()).unwrap();
    let mut clone =
        machine.wait_for_vm(with_disk("clone", &frozen, "qcow2"), &dir.path().join("clone")).unwrap();
    let options = EmitOptions::new(EmitMode::Postcopy);
    let emitter =
        Emitter::start(&mut clone.qmp, lazy.into(), sent(&captured.state), options.clone()).unwrap();
    wait_for_ticks(&mut clone, 1, TICK_WITHIN);
    println!("{:?}", emitter.wait().unwrap());
    settled(&mut clone);
    let told = clone.qmp.execute("query-vm-generation-id", serde_json::Value::Null).unwrap();
    assert_eq!(told["guid"], clone.identity.vmgenid, "its own, not the source's");
    ticks_on(&mut clone);
    clone.quit();
}
