//! Cloud Hypervisor: a running VM's memory handed over as files, clones whose pages come later. With the stand-in always, and also with
//! the real binary that `SCATTER_CLOUD_HYPERVISOR` or PATH names.

use crate::support::{
    self, PATIENCE, Source, StopOnDrop, answer_demands, image_of, kvm_or_skip, ticks_in, until,
};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use vmm::LazyImage;
use vmm::cloud_hypervisor::{self, Api, Captured, Clone, CloneConfig, CloudHypervisorError};
use vmm::uffd::VmStatus;

const MEMORY: u64 = 32 << 20;

fn standin() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_cloud-hypervisor-standin"))
}

fn binaries() -> Vec<PathBuf> {
    support::binaries(standin(), "cloud-hypervisor", "SCATTER_CLOUD_HYPERVISOR")
}

fn boot(binary: &Path, dir: &Path) -> Source<Api> {
    let kernel = dir.join("guest.elf");
    std::fs::write(&kernel, vmm::microvm::guest::ELF).expect("written");
    let (socket, console) = (dir.join("source.sock"), dir.join("serial.log"));
    let child = Command::new(binary)
        .arg("--api-socket")
        .arg(format!("path={}", socket.display()))
        .env_remove("RUST_BACKTRACE")
        .stdin(Stdio::null())
        .spawn()
        .expect("starts");
    let source = Source { child, api: Api::new(&socket), console };
    until("the API", || source.api.version().is_ok());
    let cmdline = format!("mb={} seed=5 zero=30 dup=10 idle=2000000 step=64", (MEMORY >> 20) - 1);
    let config = json!({
        "cpus": { "boot_vcpus": 1, "max_vcpus": 1 },
        "memory": { "size": MEMORY, "shared": true, "thp": false },
        "payload": { "kernel": kernel, "cmdline": cmdline },
        "serial": { "mode": "File", "file": source.console },
        "console": { "mode": "Off" },
    });
    source.api.request("PUT", "vm.create", Some(&config)).expect("created");
    source.api.request("PUT", "vm.boot", None).expect("boots");
    until("the first ticks", || ticks_in(&source.console) >= 2);
    source
}

/// A clone, which writes on a console of its own.
fn config(binary: &Path, captured: &Captured, dir: PathBuf) -> (CloneConfig, PathBuf) {
    std::fs::create_dir(&dir).expect("made");
    let serial = dir.join("serial.log");
    let mut config: Value = serde_json::from_slice(&captured.config).expect("JSON");
    config["vm_config"]["serial"]["file"] = json!(serial);
    let config = CloneConfig {
        binary: binary.to_owned(),
        id: dir.file_name().expect("a name").to_string_lossy().into_owned(),
        dir,
        config: config.to_string().into_bytes(),
        state: captured.state.clone(),
        resume: true,
    };
    (config, serial)
}

#[test]
fn a_running_vm_is_handed_over_and_clones_run_while_their_pages_come() {
    if !kvm_or_skip("a_running_vm_is_handed_over_and_clones_run_while_their_pages_come") {
        return;
    }
    for binary in binaries() {
        let dir = tempfile::tempdir_in("/dev/shm").expect("a folder");
        let mut source = boot(&binary, dir.path());
        let captured = cloud_hypervisor::capture(&source.api, dir.path()).expect("captured");
        assert!(captured.running);
        assert_eq!(captured.slots().iter().map(|slot| slot.size).sum::<u64>(), MEMORY);
        let memory = dir.path().join("memory");
        captured.write_image(&memory).expect("written");
        let (image, bytes) = image_of(&memory);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let _stop = StopOnDrop(&stop);
            answer_demands(scope, (&image, &bytes), &stop, Duration::from_micros(100));
            let since = Instant::now();
            let clones: Vec<(Clone, PathBuf)> = (1..=4)
                .map(|number| {
                    let (config, serial) =
                        config(&binary, &captured, dir.path().join(format!("clone-{number}")));
                    (cloud_hypervisor::start(&image, &config).expect("started"), serial)
                })
                .collect();
            let loaded = since.elapsed();
            for (_, serial) in &clones {
                until("a clone's first tick", || ticks_in(serial) >= 1);
            }
            let ticked = since.elapsed();
            println!("{}: 4 clones loaded in {loaded:?}, all ticked after {ticked:?}", binary.display());
            for (clone, serial) in &clones {
                assert_eq!(clone.wait(PATIENCE), VmStatus::Complete);
                assert!(clone.stats().faults > 0);
                let before = ticks_in(serial);
                until("ticks after all pages came", || ticks_in(serial) >= before + 3);
            }
            stop.store(true, Ordering::SeqCst);
        });
        // The source was not told that it moved: it runs on.
        let before = ticks_in(&source.console);
        captured.finish(false).expect("told");
        until("the source's next ticks", || ticks_in(&source.console) > before + 1);
        // And now it moves.
        let moving = dir.path().join("moving");
        std::fs::create_dir(&moving).expect("made");
        let captured = cloud_hypervisor::capture(&source.api, &moving).expect("captured");
        captured.finish(true).expect("told");
        until("the source's end", || {
            source.child.try_wait().expect("ours").is_some()
                || source.api.request("GET", "vm.info", None).is_err()
        });
    }
}

#[test]
fn a_clone_whose_pages_are_lost_is_killed_and_named() {
    if !kvm_or_skip("a_clone_whose_pages_are_lost_is_killed_and_named") {
        return;
    }
    for binary in binaries() {
        let dir = tempfile::tempdir_in("/dev/shm").expect("a folder");
        let source = boot(&binary, dir.path());
        let captured = cloud_hypervisor::capture(&source.api, dir.path()).expect("captured");
        let memory = dir.path().join("memory");
        captured.write_image(&memory).expect("written");
        let (image, bytes) = image_of(&memory);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let _stop = StopOnDrop(&stop);
            answer_demands(scope, (&image, &bytes), &stop, Duration::from_micros(500));
            let (config, _) = config(&binary, &captured, dir.path().join("doomed"));
            let clone = cloud_hypervisor::start(&image, &config).expect("started");
            stop.store(true, Ordering::SeqCst);
            image.lose("the sender is gone");
            let VmStatus::Ended(reason) = clone.wait(PATIENCE) else { panic!("it goes on") };
            assert!(reason.contains("doomed") && reason.contains("the sender is gone"), "{reason}");
        });
    }
}

#[test]
fn versions_without_safe_post_copy_are_refused() {
    if !kvm_or_skip("versions_without_safe_post_copy_are_refused") {
        return;
    }
    let dir = tempfile::tempdir_in("/dev/shm").expect("a folder");
    let source = boot(&standin(), dir.path());
    let captured = cloud_hypervisor::capture(&source.api, dir.path()).expect("captured");
    let memory = dir.path().join("memory");
    captured.write_image(&memory).expect("written");
    let (image, _) = image_of(&memory);
    let old = dir.path().join("cloud-hypervisor-51");
    std::fs::write(&old, format!("#!/bin/sh\nSTANDIN_VERSION=51.1.0 exec {} \"$@\"\n", standin().display()))
        .expect("written");
    std::fs::set_permissions(&old, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("set");
    let (one, _) = config(&old, &captured, dir.path().join("old"));
    let error = cloud_hypervisor::start(&image, &one).expect_err("too old");
    assert!(matches!(error, CloudHypervisorError::Version { .. }), "{error}");
    let (mut two, _) = config(&standin(), &captured, dir.path().join("odd"));
    two.state = b"{}".to_vec();
    let error = cloud_hypervisor::start(&image, &two).expect_err("no state");
    assert!(matches!(error, CloudHypervisorError::Refused { .. }), "{error}");
    let (three, _) = config(Path::new("/nowhere"), &captured, dir.path().join("none"));
    let error = cloud_hypervisor::start(&image, &three).expect_err("no binary");
    assert!(error.to_string().contains("SCATTER_CLOUD_HYPERVISOR"), "{error}");
    let short = Arc::new(LazyImage::memfd("short", 10).expect("a memfd"));
    let (four, _) = config(&standin(), &captured, dir.path().join("short"));
    let error = cloud_hypervisor::start(&short, &four).expect_err("another length");
    assert!(matches!(error, CloudHypervisorError::Config(_)), "{error}");
}
