//! Firecracker: snapshots of running VMs, clones whose pages come later. With the stand-in always, and also with the real binary
//! that `SCATTER_FIRECRACKER` or PATH names.

use crate::support::{
    self, PATIENCE, Source, StopOnDrop, answer_demands, image_of, kvm_or_skip, place, ticks_in, until,
};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use vmm::LazyImage;
use vmm::firecracker::{
    self, Api, Clone, CloneConfig, FirecrackerError, MEMORY, NetworkOverride, SnapshotKind, VMSTATE,
};
use vmm::lazy::Origin;
use vmm::uffd::{PageServer, VmStatus, Watchdog};

pub(crate) const MEMORY_MIB: u64 = 48;

pub(crate) fn standin() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_firecracker-standin"))
}

/// The stand-in, and Firecracker itself if there is one.
pub(crate) fn binaries() -> Vec<PathBuf> {
    support::binaries(standin(), "firecracker", "SCATTER_FIRECRACKER")
}

fn boot(binary: &Path, dir: &Path) -> Source<Api> {
    boot_with(binary, dir, &[])
}

/// Boots the guest with more of a configuration than it needs: paths of the API and bodies.
pub(crate) fn boot_with(binary: &Path, dir: &Path, more: &[(&str, Value)]) -> Source<Api> {
    let kernel = dir.join("guest.elf");
    std::fs::write(&kernel, vmm::microvm::guest::ELF).expect("written");
    let (socket, console) = (dir.join("source.sock"), dir.join("source.log"));
    let log = std::fs::File::create(&console).expect("made");
    let child = Command::new(binary)
        .args(["--id", "source", "--api-sock"])
        .arg(&socket)
        .stdin(Stdio::null())
        .stdout(log)
        .spawn()
        .expect("starts");
    let source = Source { child, api: Api::new(&socket), console };
    until("the API", || source.api.version().is_ok());
    let put = |path: &str, body| source.api.request("PUT", path, Some(&body)).expect("taken");
    put("/machine-config", json!({ "vcpu_count": 1, "mem_size_mib": MEMORY_MIB, "track_dirty_pages": true }));
    let arguments = format!("mb={} seed=5 zero=30 dup=10 idle=2000000 step=64", MEMORY_MIB - 8);
    put("/boot-source", json!({ "kernel_image_path": kernel, "boot_args": arguments }));
    for (path, body) in more {
        put(path, body.clone());
    }
    put("/actions", json!({ "action_type": "InstanceStart" }));
    until("the first ticks", || ticks_in(&source.console) >= 2);
    source
}

pub(crate) fn config(binary: &Path, snapshot: &Path, dir: PathBuf) -> CloneConfig {
    std::fs::create_dir(&dir).expect("made");
    CloneConfig {
        binary: binary.to_owned(),
        id: dir.file_name().expect("a name").to_string_lossy().into_owned(),
        dir,
        vmstate: snapshot.join(VMSTATE),
        network: Vec::new(),
        vsock: None,
        resume: true,
        track_dirty_pages: false,
    }
}

pub(crate) fn clone_ticks(clone: &Clone) -> usize {
    ticks_in(&clone.console())
}

#[test]
fn eight_clones_of_a_running_vm_run_while_their_pages_come() {
    if !kvm_or_skip("eight_clones_of_a_running_vm_run_while_their_pages_come") {
        return;
    }
    for binary in binaries() {
        let dir = tempfile::tempdir_in("/dev/shm").expect("a folder");
        let source = boot(&binary, dir.path());
        let snapshot =
            firecracker::capture(&source.api, SnapshotKind::Full, dir.path(), false).expect("captured");
        // The source runs on.
        let before = ticks_in(&source.console);
        until("the source's next tick", || ticks_in(&source.console) > before);
        drop(source);
        firecracker::check(&binary, &snapshot.fingerprint).expect("the same machine");
        let (image, bytes) = image_of(&snapshot.memory);
        let server = PageServer::start().expect("starts");
        let stop = AtomicBool::new(false);
        let clones: Vec<Clone> = std::thread::scope(|scope| {
            let _stop = StopOnDrop(&stop);
            answer_demands(scope, (&image, &bytes), &stop, Duration::from_micros(200));
            let since = Instant::now();
            let clones: Vec<Clone> = (1..=8)
                .map(|number| {
                    let config = config(&binary, dir.path(), dir.path().join(format!("clone-{number}")));
                    firecracker::start(&server, None, &image, &config).expect("started")
                })
                .collect();
            let loaded = since.elapsed();
            for clone in &clones {
                until("a clone's first tick", || clone_ticks(clone) >= 1);
            }
            println!(
                "{}: 8 clones loaded in {loaded:?}, all ticked after {:?}",
                binary.display(),
                since.elapsed()
            );
            // The rest, while they run.
            (0..image.page_count()).for_each(|page| place(&image, &bytes, page, Origin::Block));
            stop.store(true, Ordering::SeqCst);
            clones
        });
        for clone in &clones {
            assert_eq!(clone.served.wait(PATIENCE), VmStatus::Complete);
            let before = clone_ticks(clone);
            until("ticks after all pages came", || clone_ticks(clone) >= before + 3);
        }
        // Clones of one instant touch the same pages: what the first ones waited for may be in place in the last before it runs.
        assert!(clones.iter().map(|clone| clone.served.stats().faults).sum::<u64>() > 0);
        // They depend on nobody now.
        drop(server);
        let before = clone_ticks(&clones[7]);
        until("ticks without a server", || clone_ticks(&clones[7]) > before);
    }
}

#[test]
fn a_diff_snapshot_merged_onto_the_full_one_is_the_vm_as_it_was_then() {
    if !kvm_or_skip("a_diff_snapshot_merged_onto_the_full_one_is_the_vm_as_it_was_then") {
        return;
    }
    for binary in binaries() {
        let dir = tempfile::tempdir_in("/dev/shm").expect("a folder");
        let later = dir.path().join("later");
        std::fs::create_dir(&later).expect("made");
        let source = boot(&binary, dir.path());
        firecracker::capture(&source.api, SnapshotKind::Full, dir.path(), false).expect("captured");
        let before = ticks_in(&source.console);
        until("two more ticks", || ticks_in(&source.console) > before + 1);
        let diff = firecracker::capture(&source.api, SnapshotKind::Diff, &later, true).expect("captured");
        // It was told to stay paused.
        let paused = ticks_in(&source.console);
        std::thread::sleep(Duration::from_millis(100));
        assert!(ticks_in(&source.console) <= paused + 1);
        drop(source);
        let memory = dir.path().join(MEMORY);
        let merged = firecracker::merge_diff(&diff.memory, &memory).expect("merged");
        assert!(merged > 0 && merged < MEMORY_MIB << 20, "{merged} bytes changed");
        let (image, bytes) = image_of(&memory);
        (0..image.page_count()).for_each(|page| place(&image, &bytes, page, Origin::Block));
        let server = PageServer::start().expect("starts");
        let config = config(&binary, &later, dir.path().join("clone"));
        let clone = firecracker::start(&server, None, &image, &config).expect("started");
        until("ticks", || clone_ticks(&clone) >= 5);
    }
}

/// A snapshot by the stand-in, whose source is gone.
fn standin_snapshot(dir: &Path) -> (Arc<LazyImage>, Vec<u8>) {
    let source = boot(&standin(), dir);
    let snapshot = firecracker::capture(&source.api, SnapshotKind::Full, dir, true).expect("captured");
    image_of(&snapshot.memory)
}

#[test]
fn what_a_balloon_takes_comes_back_as_zeros() {
    if !kvm_or_skip("what_a_balloon_takes_comes_back_as_zeros") {
        return;
    }
    let dir = tempfile::tempdir_in("/dev/shm").expect("a folder");
    let (image, bytes) = standin_snapshot(dir.path());
    let server = PageServer::start().expect("starts");
    std::thread::scope(|scope| {
        // All pages come while the balloon takes some: removals and fills meet.
        scope.spawn(|| {
            for page in (0..image.page_count()).rev() {
                place(&image, &bytes, page, Origin::Block);
                if page % 64 == 0 {
                    std::thread::sleep(Duration::from_micros(500));
                }
            }
        });
        let config = config(&standin(), dir.path(), dir.path().join("clone"));
        let clone = firecracker::start(&server, None, &image, &config).expect("started");
        for _ in 0..3 {
            clone.api.request("PATCH", "/balloon", Some(&json!({ "amount_mib": 8 }))).expect("all zeros");
        }
        assert_eq!(clone.served.wait(PATIENCE), VmStatus::Complete);
        clone.api.request("PATCH", "/balloon", Some(&json!({ "amount_mib": 8 }))).expect("all zeros");
        until("ticks", || clone_ticks(&clone) >= 3);
    });
}

#[test]
fn a_clone_whose_pages_are_lost_is_killed_and_named() {
    if !kvm_or_skip("a_clone_whose_pages_are_lost_is_killed_and_named") {
        return;
    }
    for binary in binaries() {
        let dir = tempfile::tempdir_in("/dev/shm").expect("a folder");
        let source = boot(&binary, dir.path());
        let snapshot =
            firecracker::capture(&source.api, SnapshotKind::Full, dir.path(), true).expect("captured");
        let (image, bytes) = image_of(&snapshot.memory);
        // Enough to load, not enough to run.
        let server = PageServer::start().expect("starts");
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let _stop = StopOnDrop(&stop);
            answer_demands(scope, (&image, &bytes), &stop, Duration::from_micros(50));
            let config = config(&binary, dir.path(), dir.path().join("doomed"));
            let mut clone = firecracker::start(&server, None, &image, &config).expect("started");
            stop.store(true, Ordering::SeqCst);
            image.lose("the sender is gone");
            let VmStatus::Ended(reason) = clone.served.wait(PATIENCE) else { panic!("it goes on") };
            assert!(reason.contains("doomed") && reason.contains("the sender is gone"), "{reason}");
            until("its end", || clone.ended().expect("ours").is_some());
        });
    }
}

/// Set for the handler's process in the next test: the folder of the snapshot.
const HANDLER_IN: &str = "VMM_TEST_FIRECRACKER_IN";

/// The handler's process: starts a clone, half of whose pages are here, tells its number, and waits to be killed.
fn be_handler(dir: &Path, binary: &Path) -> ! {
    let watchdog = Arc::new(Watchdog::start().expect("starts"));
    let (image, bytes) = image_of(&dir.join(MEMORY));
    let server = PageServer::start().expect("starts");
    let answering = image.clone();
    let loaded = Arc::new(AtomicBool::new(false));
    let until_loaded = loaded.clone();
    std::thread::spawn(move || {
        while !until_loaded.load(Ordering::SeqCst) {
            if let Some(page) = answering.next_demand() {
                place(&answering, &bytes, page, Origin::Sender);
            }
        }
    });
    let config = config(binary, dir, dir.join("clone"));
    let clone = firecracker::start(&server, Some(&watchdog), &image, &config).expect("started");
    loaded.store(true, Ordering::SeqCst);
    eprintln!("serving {}", clone.pid());
    std::thread::sleep(PATIENCE);
    panic!("nobody killed it");
}

#[test]
fn a_clone_does_not_outlive_its_killed_handler() {
    if let Some(dir) = std::env::var_os(HANDLER_IN) {
        let binary = std::env::var_os("VMM_TEST_FIRECRACKER").expect("given too");
        be_handler(Path::new(&dir), Path::new(&binary));
    }
    if !kvm_or_skip("a_clone_does_not_outlive_its_killed_handler") {
        return;
    }
    for binary in binaries() {
        let dir = tempfile::tempdir_in("/dev/shm").expect("a folder");
        let source = boot(&binary, dir.path());
        firecracker::capture(&source.api, SnapshotKind::Full, dir.path(), true).expect("captured");
        drop(source);
        let mut handler = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "firecracker::a_clone_does_not_outlive_its_killed_handler", "--nocapture"])
            .env(HANDLER_IN, dir.path())
            .env("VMM_TEST_FIRECRACKER", &binary)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        let said = BufReader::new(handler.stderr.take().expect("piped"));
        let serving = said
            .lines()
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("serving ").map(str::to_owned));
        let pid = serving.expect("it serves a clone");
        let proc = PathBuf::from(format!("/proc/{pid}"));
        assert!(proc.exists(), "the clone runs");
        handler.kill().expect("ours");
        handler.wait().expect("ours");
        // It is nobody's child that we could wait for; a zombie has no command line any more.
        until("the clone's end", || std::fs::read(proc.join("cmdline")).map_or(true, |line| line.is_empty()));
    }
}

#[test]
fn what_a_version_has_not_is_refused_with_a_reason() {
    if !kvm_or_skip("what_a_version_has_not_is_refused_with_a_reason") {
        return;
    }
    let dir = tempfile::tempdir_in("/dev/shm").expect("a folder");
    let (image, bytes) = standin_snapshot(dir.path());
    (0..image.page_count()).for_each(|page| place(&image, &bytes, page, Origin::Block));
    let here = firecracker::fingerprint(&firecracker::binary_version(&standin()).expect("asked"));
    firecracker::check(&standin(), &here).expect("the same");
    let error = firecracker::check(&standin(), &here.replace("1.16.1", "1.16.0")).expect_err("another");
    assert!(matches!(error, FirecrackerError::Unfit { .. }), "{error}");
    // An old version, as a wrapper of the stand-in.
    let old = dir.path().join("firecracker-1.11");
    std::fs::write(&old, format!("#!/bin/sh\nSTANDIN_VERSION=1.11.0 exec {} \"$@\"\n", standin().display()))
        .expect("written");
    std::fs::set_permissions(&old, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("set");
    let server = PageServer::start().expect("starts");
    let over = vec![NetworkOverride { iface_id: "eth0".into(), host_dev_name: "tap7".into() }];
    let try_one = |binary: &Path, name: &str, change: &dyn Fn(&mut CloneConfig)| {
        let mut config = config(binary, dir.path(), dir.path().join(name));
        change(&mut config);
        firecracker::start(&server, None, &image, &config).map(drop)
    };
    let error = try_one(&old, "a", &|config| config.network = over.clone()).expect_err("too old");
    assert!(error.to_string().contains("1.12 or later"), "{error}");
    let error = try_one(&old, "b", &|config| config.vsock = Some("/tmp/v".into())).expect_err("too old");
    assert!(error.to_string().contains("1.16 or later"), "{error}");
    try_one(&old, "c", &|config| config.track_dirty_pages = true).expect("by its old name");
    try_one(&standin(), "d", &|config| config.track_dirty_pages = true).expect("by its new name");
    // Firecracker's own refusals are told in its words.
    let error =
        try_one(&standin(), "e", &|config| config.network = over.clone()).expect_err("no such device");
    assert!(error.to_string().contains("Unknown Network Device"), "{error}");
    let error = try_one(&standin(), "f", &|config| config.vmstate = "/nowhere".into()).expect_err("no state");
    assert!(matches!(error, FirecrackerError::Refused { .. }), "{error}");
    let error = try_one(Path::new("/nowhere"), "g", &|_| {}).expect_err("no binary");
    assert!(error.to_string().contains("SCATTER_FIRECRACKER"), "{error}");
    let error = try_one(Path::new("/bin/false"), "h", &|_| {}).expect_err("no Firecracker");
    assert!(matches!(error, FirecrackerError::NoApi { .. }), "{error}");
}
