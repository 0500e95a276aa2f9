//! Memory that is read where a VM that stands has it, and what disturbs that.

use crate::support::{
    TICK_WITHIN, boot, complete_image, dir, identity, machine, sent, settled, shared_memory, ticks, ticks_on,
    wait_for_ticks,
};
use pages::{PageSource, Pfn};
use serde_json::{Value, json};
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::Duration;
use vmm::MappedImage;
use vmm::qemu::capture::Disturbed;
use vmm::qemu::{
    CaptureOptions, Captured, EmitMode, EmitOptions, Emitter, Launch, QemuError, Qmp, Standing, Vm, Way,
    capture, capture_for_transfer,
};

/// A machine with RAM in a file and a second monitor.
fn shared_machine(dir: &Path, more: &[&str]) -> Option<Launch> {
    let mut args = shared_memory(&dir.join("ram"), 128).to_vec();
    args.extend(["-qmp", "unix:{dir}/user.sock,server=on,wait=off"].map(str::to_owned));
    args.extend(more.iter().map(|&arg| arg.to_owned()));
    machine(128, &args)
}

/// A VM of it, which ticks.
fn source(dir: &Path) -> Option<Vm> {
    Some(boot(&shared_machine(dir, &[])?, dir, "source"))
}

fn second_monitor(vm: &Vm) -> Qmp {
    Qmp::connect(vm.dir().join("user.sock"), Duration::from_secs(5)).unwrap()
}

/// By its second monitor.
fn take(vm: &Vm, image: &Path, way: Option<Way>) -> (Captured, MappedImage, Option<Standing>) {
    let qmp = second_monitor(vm);
    let options = CaptureOptions { way, ..CaptureOptions::new(image) };
    let (captured, mapped, standing) = capture_for_transfer(qmp, options).unwrap();
    println!("{}, {}: {:?}", captured.way, captured.because, captured.figures);
    std::fs::remove_file(image).unwrap();
    (captured, mapped, standing)
}

fn allocated(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().blocks() * 512
}

fn ticks_on_by(vm: &mut Vm, more: usize) {
    let count = ticks(vm).len() + more;
    wait_for_ticks(vm, count, TICK_WITHIN);
}

fn stands(vm: &mut Vm) -> bool {
    vm.qmp.execute("query-status", Value::Null).unwrap()["running"] == false
}

#[test]
fn memory_is_read_where_it_lies_and_is_that_of_a_copy() {
    let dir = dir();
    let Some(mut vm) = source(dir.path()) else { return };
    let (ram, image) = (dir.path().join("ram"), dir.path().join("image"));
    // It runs: in place only if that is asked for.
    let (captured, _, none) = take(&vm, &image, None);
    assert!(captured.way == Way::LiveStream && none.is_none(), "{}", captured.because);
    ticks_on(&mut vm);

    let before = allocated(&ram);
    let qmp = second_monitor(&vm);
    let options = CaptureOptions { way: Some(Way::InPlace), ..CaptureOptions::new(&image) };
    let (captured, mapped, standing) = capture_for_transfer(qmp, options).unwrap();
    let standing = standing.unwrap();
    assert!(stands(&mut vm) && standing.disturbed().is_none());
    assert!(allocated(&image) < 4 << 20, "{} bytes beside the file of its RAM", allocated(&image));
    assert_eq!(mapped.page_count(), captured.state.page_count());

    // The file has the same pages, and the others are in the image.
    let file = File::open(&ram).unwrap();
    let mut differ = 0;
    for block in &captured.state.blocks {
        for page in block.page_range() {
            let mut bytes = [0; 4096];
            if block.id == "pc.ram" {
                file.read_exact_at(&mut bytes, u64::from(page - block.first_page) * 4096).unwrap();
                differ += u32::from(mapped.page(Pfn(page)) != &bytes);
            }
        }
    }
    assert_eq!(differ, 0);
    // Reading put nothing into its file where nothing was.
    assert!(allocated(&ram) <= before + (8 << 20), "{} bytes, before {before}", allocated(&ram));
    mapped.check_unchanged().unwrap();
    standing.check().unwrap();

    // What was taken runs elsewhere, made of the pages as they were read here.
    let file = File::create_new(dir.path().join("pages")).unwrap();
    file.set_len(u64::from(mapped.page_count()) * 4096).unwrap();
    for page in (0..mapped.page_count()).filter(|page| mapped.page(Pfn(*page)) != &[0; 4096]) {
        file.write_all_at(mapped.page(Pfn(page)), u64::from(page) * 4096).unwrap();
    }
    let stood = standing.end().unwrap();
    assert!(stood > Duration::from_millis(10) && stood < Duration::from_secs(60), "{stood:?}");
    ticks_on(&mut vm);
    let pages = Captured { image: dir.path().join("pages"), ..captured };
    let clones = machine(128, &shared_memory(&dir.path().join("clone-ram"), 128)).unwrap();
    let mut clone = clones.wait_for_vm(identity("clone"), &dir.path().join("clone")).unwrap();
    let options = EmitOptions::new(EmitMode::Precopy);
    let emitter =
        Emitter::start(&mut clone.qmp, complete_image(&pages), sent(&pages.state), options).unwrap();
    emitter.wait().unwrap();
    settled(&mut clone);
    ticks_on(&mut clone);
    clone.quit();
    vm.quit();
}

#[test]
fn whatever_disturbs_a_vm_that_stands_is_known_by_the_next_look() {
    let dir = dir();
    let Some(mut vm) = source(dir.path()) else { return };
    let image = dir.path().join("image");
    let again = |vm: &Vm| take(vm, &image, Some(Way::InPlace)).2.unwrap();

    // Pages that change as soon as it runs.
    let (_, mapped, standing) = take(&vm, &image, Some(Way::InPlace));
    let still: Vec<[u8; 4096]> = (0..mapped.page_count()).map(|page| *mapped.page(Pfn(page))).collect();
    drop(standing);
    ticks_on(&mut vm);
    let changed = |page: &u32| mapped.page(Pfn(*page)) != &still[*page as usize];
    let busy: Vec<u32> = (0..mapped.page_count()).filter(changed).take(64).collect();
    assert!(!busy.is_empty());

    // QEMU says that it sets it running before it does: what is read and differs is never vouched for.
    for _ in 0..50 {
        let (_, mapped, standing) = take(&vm, &image, Some(Way::InPlace));
        let standing = standing.unwrap();
        let read = || busy.iter().map(|page| *mapped.page(Pfn(*page))).collect::<Vec<_>>();
        let (first, mut reads) = (read(), 0);
        assert!(standing.check().is_ok());
        std::thread::scope(|scope| {
            let resumes = scope.spawn(|| vm.qmp.execute("cont", Value::Null).unwrap());
            while standing.disturbed().is_none() {
                let again = read();
                reads += 1;
                assert!(again == first || standing.disturbed().is_some(), "read {reads} is wrong");
            }
            resumes.join().unwrap();
        });
        assert_eq!(standing.disturbed(), Some(Disturbed::Resumed));
        // It stays so, though it stands again.
        vm.qmp.execute("stop", Value::Null).unwrap();
        assert_eq!(standing.check(), Err(Disturbed::Resumed));
        standing.end().unwrap();
        ticks_on_by(&mut vm, 2);
    }
    // One that stood stands, and is taken in place by itself.
    vm.qmp.execute("stop", Value::Null).unwrap();
    let (captured, _, standing) = take(&vm, &image, None);
    assert_eq!(captured.way, Way::InPlace, "{}", captured.because);
    assert_eq!(standing.unwrap().end().unwrap(), Duration::ZERO);
    let before = ticks(&vm).len();
    std::thread::sleep(Duration::from_millis(300));
    assert!(stands(&mut vm) && ticks(&vm).len() == before);
    vm.qmp.execute("cont", Value::Null).unwrap();

    let standing = again(&vm);
    vm.qmp.execute("set-action", json!({"reboot": "reset"})).unwrap();
    vm.qmp.execute("system_reset", Value::Null).unwrap();
    let deadline = std::time::Instant::now() + Duration::from_secs(5);
    while standing.disturbed().is_none() && std::time::Instant::now() < deadline {}
    assert_eq!(standing.check(), Err(Disturbed::Reset));
    // It ran before, so it boots.
    drop(standing);
    assert!(!stands(&mut vm));
    // Firmware may reset once more on its way.
    ticks_on(&mut vm);

    let standing = again(&vm);
    vm.quit();
    assert!(matches!(standing.check(), Err(Disturbed::MonitorGone(_))), "{:?}", standing.disturbed());
}

#[test]
fn a_vm_that_is_let_go_runs_on_and_is_not_vouched_for() {
    let dir = dir();
    let Some(mut vm) = source(dir.path()) else { return };
    let image = dir.path().join("image");
    let again = |vm: &Vm| take(vm, &image, Some(Way::InPlace)).2.unwrap();
    // Whoever has it goes away, or is about to be ended: it runs on.
    drop(again(&vm));
    ticks_on(&mut vm);
    let standing = again(&vm);
    let watch = standing.watch();
    standing.put_back().put_back();
    ticks_on(&mut vm);
    // Whoever still reads is told by the next look.
    assert_eq!((watch.disturbed(), standing.disturbed()), (Some(Disturbed::Over), Some(Disturbed::Over)));
    drop(standing);
    // However many look at it, it is let go.
    let standing = again(&vm);
    let watch = standing.watch();
    assert_eq!(watch.disturbed(), None);
    standing.end().unwrap();
    assert_eq!(watch.disturbed(), Some(Disturbed::Over));
    ticks_on(&mut vm);
    vm.quit();
}

#[test]
fn memory_that_others_write_is_not_read_in_place() {
    let ivshmem = "memory-backend-file,id=others,size=1M,mem-path={dir}/others,share=on";
    let crypto = "socket,id=crypto,path={dir}/crypto.sock,server=on,wait=off";
    for (outsider, more) in [
        ("ivshmem-plain", ["-object", ivshmem, "-device", "ivshmem-plain,memdev=others,master=on"]),
        // An object that belongs to no device yet.
        ("cryptodev-vhost-user", ["-chardev", crypto, "-object", "cryptodev-vhost-user,id=c,chardev=crypto"]),
    ] {
        let dir = dir();
        let Some(launch) = shared_machine(dir.path(), &more) else { return };
        let vm = launch.boot(identity("source"), &dir.path().join("source")).unwrap();
        let image = dir.path().join("image");
        let options = CaptureOptions { way: Some(Way::InPlace), ..CaptureOptions::new(&image) };
        let qmp = second_monitor(&vm);
        let error = capture_for_transfer(qmp, options).unwrap_err();
        let why = format!("its {outsider} writes to its memory from outside QEMU");
        assert!(error.to_string().contains(&why), "{error}");
        vm.kill();
    }
}

/// Also if it was to stand afterwards.
#[test]
fn a_vm_whose_image_cannot_be_mapped_runs_on() {
    let dir = dir();
    let Some(mut vm) = source(dir.path()) else { return };
    let image = dir.path().join("image");
    for (way, resume) in [(Way::InPlace, true), (Way::InPlace, false), (Way::LiveStream, false)] {
        let qmp = second_monitor(&vm);
        let mut loses = |qmp: &mut Qmp| {
            assert!(qmp.execute("query-status", Value::Null).unwrap()["running"] == false);
            std::fs::remove_file(&image).unwrap();
            Ok(())
        };
        let options = CaptureOptions {
            way: Some(way),
            resume,
            while_paused: Some(&mut loses),
            ..CaptureOptions::new(&image)
        };
        let error = capture_for_transfer(qmp, options).unwrap_err();
        assert!(matches!(error, QemuError::Image(_)), "{error}");
        assert!(!stands(&mut vm), "{way}, {resume}");
        ticks_on_by(&mut vm, 2);
    }
    vm.quit();
}

#[test]
fn a_file_that_is_not_the_vms_own_is_not_read() {
    let dir = dir();
    let Some(mut vm) = source(dir.path()) else { return };
    let image = dir.path().join("image");
    vm.qmp.execute("stop", Value::Null).unwrap();
    let options = CaptureOptions { way: Some(Way::InPlace), ..CaptureOptions::new(&image) };
    let error = capture(&mut vm.qmp, options).unwrap_err();
    assert!(error.to_string().contains("only for one transfer at once"), "{error}");

    // Another file stands under the name.
    let ram = dir.path().join("ram");
    std::fs::rename(&ram, dir.path().join("away")).unwrap();
    File::create(&ram).unwrap().set_len(128 << 20).unwrap();
    for way in [Way::InPlace, Way::SharedRam] {
        let options = CaptureOptions { way: Some(way), ..CaptureOptions::new(&image) };
        let qmp = second_monitor(&vm);
        let error = capture_for_transfer(qmp, options).unwrap_err();
        assert!(error.to_string().contains("is not mapped by the process"), "{error}");
        assert!(!image.exists());
    }
    let (captured, _, standing) = take(&vm, &image, None);
    assert!(captured.way == Way::LiveStream && standing.is_none(), "{}", captured.because);
    assert!(captured.because.contains("is not mapped by the process"), "{}", captured.because);
    vm.qmp.execute("cont", json!({})).unwrap();
    ticks_on(&mut vm);
    vm.kill();
}
