//! Running VMs are taken, and run on.

use crate::support::{
    NONE, boot, complete_image, dir, identity, machine, sent, settled, shared_memory, ticks, ticks_on,
};
use std::sync::atomic::AtomicBool;
use vmm::qemu::{
    CaptureOptions, Captured, EmitMode, EmitOptions, Emitter, Launch, QemuError, Vm, Way, capture,
};
use vmm::{ImageFormat, MappedImage};

/// What was taken runs in another QEMU.
fn runs(machine: &Launch, captured: &Captured, dir: &std::path::Path) {
    let name = captured.way.to_string().replace(' ', "-");
    let mut clone = machine.wait_for_vm(identity(&name), &dir.join(&name)).unwrap();
    let (image, state) = (complete_image(captured), sent(&captured.state));
    let emitter = Emitter::start(&mut clone.qmp, image, state, EmitOptions::new(EmitMode::Precopy)).unwrap();
    emitter.wait().unwrap();
    settled(&mut clone);
    ticks_on(&mut clone);
    clone.quit();
}

fn take(vm: &mut Vm, image: &std::path::Path, way: Option<Way>) -> Captured {
    let options = CaptureOptions { way, ..CaptureOptions::new(image) };
    let captured = capture(&mut vm.qmp, options).unwrap();
    println!("{}, {}: {:?}", captured.way, captured.because, captured.figures);
    captured
}

#[test]
fn a_running_vm_is_taken_in_each_way_and_ticks_on() {
    let dir = dir();
    let Some(machine) = machine(128, &shared_memory(&dir.path().join("ram"), 128)) else { return };
    // Clones have files of their own; QEMU wants the same kind of machine, not the same file.
    let clones = crate::support::machine(128, &shared_memory(&dir.path().join("clone-ram"), 128)).unwrap();
    let mut vm = boot(&machine, dir.path(), "source");
    let best = take(&mut vm, &dir.path().join("best"), None);
    assert_eq!(best.way, Way::LiveStream, "a tmpfs has no copies by reference: {}", best.because);
    assert_eq!(best.format, ImageFormat::Raw);
    for (way, format) in [
        (Way::LiveStream, ImageFormat::Raw),
        (Way::SharedRam, ImageFormat::Raw),
        (Way::MappedRam, ImageFormat::QemuMappedRam),
    ] {
        ticks_on(&mut vm);
        let captured = take(&mut vm, &dir.path().join(format!("{way:?}")), Some(way));
        assert_eq!((captured.way, captured.format), (way, format));
        assert!(!captured.figures.pause.is_zero(), "it stood for a moment: {:?}", captured.figures);
        let image = MappedImage::open(&captured.image, Some(format)).unwrap();
        assert_eq!(captured.state.blocks.len(), best.state.blocks.len());
        if format == ImageFormat::QemuMappedRam {
            let blocks = image.info().blocks.iter().map(|block| (block.id.clone(), block.file_offset / 4096));
            let ours = captured.state.blocks.iter().map(|block| (block.id.clone(), block.first_page.into()));
            assert!(blocks.eq(ours));
        }
        runs(&clones, &captured, dir.path());
        std::fs::remove_file(&captured.image).unwrap();
    }
    // Its settings are as they were.
    assert!(vm.qmp.capabilities().unwrap().iter().all(|(_, on)| !on));
    let parameters = vm.qmp.execute("query-migrate-parameters", serde_json::Value::Null).unwrap();
    assert_eq!(parameters["max-bandwidth"], 128 << 20);
    // One that is to stand gives its memory's file.
    let image = dir.path().join("standing");
    let options = CaptureOptions { resume: false, ..CaptureOptions::new(&image) };
    let captured = capture(&mut vm.qmp, options).unwrap();
    assert_eq!(captured.way, Way::SharedRam, "{}", captured.because);
    let before = ticks(&vm).len();
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(ticks(&vm).len(), before, "it stands");
    vm.kill();
}

#[test]
fn a_capture_that_fails_leaves_the_vm_running_and_nothing_behind() {
    let dir = dir();
    let Some(machine) = machine(128, NONE) else { return };
    let mut vm = boot(&machine, dir.path(), "source");
    let image = dir.path().join("image");
    let cancel = AtomicBool::new(true);
    let options = CaptureOptions { cancel: Some(&cancel), ..CaptureOptions::new(&image) };
    let error = capture(&mut vm.qmp, options).unwrap_err();
    assert!(matches!(&error, QemuError::Migration { status, .. } if status == "cancelled"), "{error}");
    assert!(!image.exists());
    ticks_on(&mut vm);

    // What is done while it stands fails: it goes on all the same.
    let mut fails =
        |_: &mut vmm::qemu::Qmp| Err(QemuError::Refused { reason: "the disk's snapshot failed".to_owned() });
    let options = CaptureOptions { while_paused: Some(&mut fails), ..CaptureOptions::new(&image) };
    let error = capture(&mut vm.qmp, options).unwrap_err();
    assert!(error.to_string().contains("the disk's snapshot failed"), "{error}");
    assert!(!image.exists());
    ticks_on(&mut vm);

    let options = CaptureOptions { way: Some(Way::SharedRam), ..CaptureOptions::new(&image) };
    let error = capture(&mut vm.qmp, options).unwrap_err();
    assert!(error.to_string().contains("no RAM in a shared file"), "{error}");

    // A file that is there is somebody's.
    std::fs::write(&image, "mine").unwrap();
    let error = capture(&mut vm.qmp, CaptureOptions::new(&image)).unwrap_err();
    assert!(matches!(error, QemuError::Io { action: "make", .. }), "{error}");
    assert_eq!(std::fs::read(&image).unwrap(), b"mine");
    ticks_on(&mut vm);
    vm.quit();
}

#[test]
fn vms_that_cannot_be_carried_are_refused_before_anything_is_sent() {
    let dir = dir();
    let disk = dir.path().join("disk");
    std::fs::write(&disk, [0; 1 << 16]).unwrap();
    let drive = format!("if=none,id=d,format=raw,file={}", disk.display());
    let Some(machine) = machine(128, &["-S", "-drive", &drive, "-device", "nvme,drive=d,serial=1"]) else {
        return;
    };
    let mut vm = machine.boot(identity("nvme"), &dir.path().join("nvme")).unwrap();
    let image = dir.path().join("image");
    let error = capture(&mut vm.qmp, CaptureOptions::new(&image)).unwrap_err();
    assert!(matches!(error, QemuError::Refused { .. }), "{error}");
    assert!(error.to_string().contains("nvme"), "{error}");
    vm.quit();

    let waits = crate::support::machine(128, NONE).unwrap();
    let mut vm = waits.wait_for_vm(identity("waits"), &dir.path().join("waits")).unwrap();
    let error = capture(&mut vm.qmp, CaptureOptions::new(&image)).unwrap_err();
    assert!(error.to_string().contains("it is in state inmigrate"), "{error}");
    assert!(!image.exists());
    vm.quit();
}
