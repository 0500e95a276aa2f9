//! A balloon that takes pages from clones whose memory is still arriving: Firecracker discards them, the page server is told, and they
//! are zeros from then on. The guest drives the balloon itself, so this is for the real binary; `firecracker.rs` has the stand-in's.

use crate::firecracker::{MEMORY_MIB, binaries, boot_with, clone_ticks, config, standin};
use crate::support::{PATIENCE, StopOnDrop, answer_demands, image_of, kvm_or_skip, place, until};
use serde_json::json;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use vmm::firecracker::{self, Clone, SnapshotKind};
use vmm::lazy::Origin;
use vmm::uffd::{PageServer, VmStatus};

/// What guests said of their balloons: pages that it has, and of those that came back, how many were zeros and how many were not.
fn balloons(console: &Path) -> Vec<[u64; 3]> {
    let text = String::from_utf8_lossy(&std::fs::read(console).unwrap_or_default()).into_owned();
    let numbers = |line: &str| -> Option<[u64; 3]> {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["has", has, "zero", zero, "stale", stale] => {
                Some([has.parse().ok()?, zero.parse().ok()?, stale.parse().ok()?])
            }
            _ => None,
        }
    };
    // Firecracker writes its own lines between the guest's bytes.
    text.split("BALLOON ").skip(1).filter_map(|said| numbers(said.lines().next()?)).collect()
}

/// Asks each clone for so many MiB, and waits until its guest has told that it gave them.
fn ask(clones: &[Clone], mib: u64) {
    for clone in clones {
        clone.api.request("PATCH", "/balloon", Some(&json!({ "amount_mib": mib }))).expect("taken");
    }
    for clone in clones {
        let has = || balloons(&clone.console()).last().is_some_and(|[has, ..]| *has == mib * 256);
        until("the guest's word that its balloon has changed", has);
    }
}

#[test]
fn eight_clones_of_the_real_one_give_pages_to_balloons_and_take_back_zeros() {
    if !kvm_or_skip("eight_clones_of_the_real_one_give_pages_to_balloons_and_take_back_zeros") {
        return;
    }
    let real = binaries().into_iter().filter(|binary| *binary != standin());
    for binary in real {
        let dir = tempfile::tempdir_in("/dev/shm").expect("a folder");
        let balloon = ("/balloon", json!({ "amount_mib": 0, "deflate_on_oom": false }));
        let source = boot_with(&binary, dir.path(), &[balloon]);
        let snapshot =
            firecracker::capture(&source.api, SnapshotKind::Full, dir.path(), true).expect("captured");
        drop(source);
        let version = firecracker::binary_version(&binary).expect("asked");
        let (image, bytes) = image_of(&snapshot.memory);
        let server = PageServer::start().expect("starts");
        let stop = AtomicBool::new(false);
        let clones: Vec<Clone> = std::thread::scope(|scope| {
            let _stop = StopOnDrop(&stop);
            answer_demands(scope, (&image, &bytes), &stop, Duration::from_micros(200));
            let clones: Vec<Clone> = (1..=8)
                .map(|number| {
                    let config = config(&binary, dir.path(), dir.path().join(format!("clone-{number}")));
                    firecracker::start(&server, None, &image, &config).expect("started")
                })
                .collect();
            // Before most pages are here, while they come, and after.
            ask(&clones, MEMORY_MIB / 4);
            scope.spawn(|| {
                for page in (0..image.page_count()).rev() {
                    place(&image, &bytes, page, Origin::Block);
                    if page % 64 == 0 {
                        std::thread::sleep(Duration::from_micros(500));
                    }
                }
            });
            ask(&clones, 2);
            ask(&clones, MEMORY_MIB / 4);
            for clone in &clones {
                assert_eq!(clone.served.wait(PATIENCE), VmStatus::Complete);
            }
            stop.store(true, Ordering::SeqCst);
            clones
        });
        ask(&clones, 0);
        let mut removed = 0;
        for clone in &clones {
            let before = clone_ticks(clone);
            until("ticks after the balloon", || clone_ticks(clone) >= before + 3);
            let said = balloons(&clone.console());
            let (zero, stale) = said.iter().fold((0, 0), |(z, s), [_, zero, stale]| (z + zero, s + stale));
            removed += clone.served.stats().removed;
            assert!(zero + stale >= MEMORY_MIB / 4 * 256, "{said:?}");
            if firecracker::tells_removed_pages(&version) {
                assert_eq!(stale, 0, "pages came back as they had been: {said:?}");
            }
        }
        println!("{}: {version}: {removed} faults of 8 clones on removed pages, all zeros", binary.display());
    }
}
