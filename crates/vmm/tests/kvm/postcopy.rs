//! Micro-VMs that run while their pages come: real vCPUs' faults, answered by the page server.

use crate::support::{PATIENCE, StopOnDrop, booted, full_pass, kvm_or_skip, next_tick};
use pages::PAGE_SIZE;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use vmm::LazyImage;
use vmm::lazy::Origin;
use vmm::memory::GuestMemory;
use vmm::microvm::{Config, Identity, MicroVm, Pattern, Report, VmState, Workload};
use vmm::uffd::{Attachment, Backing, Guard, PageServer, Region, ServedVm, Uffd, VmStatus};

const VERIFY: Workload =
    Workload { pattern: Pattern::Sequential, step: 1 << 20, write_percent: 30, idle_us: 1_000 };

/// A captured guest: its state, and its memory page by page.
struct Snapshot {
    state: VmState,
    pages: Vec<[u8; PAGE_SIZE]>,
}

fn snapshot(config: &Config) -> Snapshot {
    let mut vm = booted(config);
    vm.pause().expect("pauses");
    let state = vm.capture().expect("captured");
    let pages = (0..vm.memory().page_count())
        .map(|page| {
            let mut bytes = [0; PAGE_SIZE];
            vm.memory().read_page(page, &mut bytes);
            bytes
        })
        .collect();
    Snapshot { state, pages }
}

impl Snapshot {
    fn image(&self) -> Arc<LazyImage> {
        Arc::new(LazyImage::memfd("clone", u32::try_from(self.pages.len()).expect("few")).expect("a memfd"))
    }

    fn place(&self, image: &LazyImage, page: u32, origin: Origin) {
        let bytes = &self.pages[page as usize];
        if *bytes == [0; PAGE_SIZE] {
            image.place_word(page, 1, 0, origin).expect("placed");
        } else {
            image.place(page, bytes, origin).expect("placed");
        }
    }

    fn place_all(&self, image: &LazyImage) {
        (0..image.page_count()).for_each(|page| self.place(image, page, Origin::Block));
    }
}

struct Clone {
    vm: MicroVm,
    served: ServedVm,
}

fn restore(
    server: &PageServer,
    snapshot: &Snapshot,
    image: &Arc<LazyImage>,
    backing: Backing,
    id: u64,
) -> Clone {
    let len = image.page_count() as usize * PAGE_SIZE;
    let memory = match backing {
        Backing::PrivateView => GuestMemory::private_file(image.file(), len),
        _ => GuestMemory::anonymous(len),
    };
    let memory = Arc::new(memory.expect("mapped"));
    // Before KVM sees the memory: nothing of it may be touched unserved.
    let uffd = Uffd::for_memory(&memory, backing).expect("registered");
    let vm = MicroVm::restore(&snapshot.state, memory.clone(), Identity(id)).expect("restored");
    let guard = Guard::Hook(Box::new(vm.ender()));
    let regions = vec![Region::whole(&memory)];
    let attachment = Attachment::new(&format!("clone {id}"), uffd, image.clone(), regions, backing, guard);
    let served = server.attach(attachment).expect("attached");
    Clone { vm, served }
}

#[test]
fn clones_run_while_their_pages_come_and_find_all_of_them_right() {
    if !kvm_or_skip("clones_run_while_their_pages_come_and_find_all_of_them_right") {
        return;
    }
    let snapshot = snapshot(&Config { seed: 3, ..Config::default() });
    for backing in [Backing::PrivateView, Backing::Anonymous] {
        let image = snapshot.image();
        let server = PageServer::start().expect("starts");
        let mut clones: Vec<Clone> =
            (1..=4).map(|id| restore(&server, &snapshot, &image, backing, id)).collect();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let _stop = StopOnDrop(&stop);
            let (snapshot, image, stop) = (&snapshot, &image, &stop);
            // Nothing comes but what is demanded, one page after the other, a millisecond each.
            scope.spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(1));
                    if let Some(page) = image.next_demand() {
                        snapshot.place(image, page, Origin::Sender);
                    }
                }
            });
            for clone in &mut clones {
                clone.vm.resume().expect("runs");
            }
            for clone in &clones {
                next_tick(&clone.vm, 0);
            }
            // The rest comes by blocks, while they run.
            snapshot.place_all(image);
            stop.store(true, Ordering::SeqCst);
        });
        for clone in &clones {
            assert_eq!(clone.served.wait(PATIENCE), VmStatus::Complete);
            clone.vm.set_workload(VERIFY);
            full_pass(&clone.vm);
            let stats = clone.served.stats();
            assert!(stats.faults > 0, "{backing:?} {stats:?}");
        }
        let stats: Vec<_> = clones.iter().map(|clone| clone.served.stats()).collect();
        assert!(stats.iter().any(|stats| stats.network() > 0), "{stats:?}");
    }
}

#[test]
fn a_clone_whose_source_is_lost_ends_by_name() {
    if !kvm_or_skip("a_clone_whose_source_is_lost_ends_by_name") {
        return;
    }
    let snapshot = snapshot(&Config::default());
    for end in ["the image is lost", "the server is dropped"] {
        let image = snapshot.image();
        let server = PageServer::start().expect("starts");
        let mut clone = restore(&server, &snapshot, &image, Backing::PrivateView, 1);
        clone.vm.resume().expect("runs");
        while image.stats().demanded == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        if end == "the image is lost" {
            image.lose("the sender is gone");
        } else {
            drop(server);
        }
        let VmStatus::Ended(reason) = clone.served.wait(PATIENCE) else { panic!("it goes on") };
        assert!(reason.contains("clone 1"), "{reason}");
        // The vCPU itself may be a moment behind: it waits in the kernel until its memory is let go.
        let _ = clone.vm.console().wait(u64::MAX, PATIENCE, |_| false);
        assert_eq!(clone.vm.console().ended(), Some(reason));
        // It said nothing from pages that were not there.
        let said = clone.vm.console().since(0);
        assert!(!said.iter().any(|seen| matches!(seen.report, Report::Bad(_))), "{said:?}");
    }
}

#[test]
fn thirty_two_clones_of_one_image_share_what_they_do_not_write() {
    if !kvm_or_skip("thirty_two_clones_of_one_image_share_what_they_do_not_write") {
        return;
    }
    const CLONES: usize = 32;
    let config = Config {
        workload: Workload { write_percent: 10, step: 64, idle_us: 20_000, ..Workload::default() },
        ..Config::default()
    };
    let snapshot = snapshot(&config);
    let image = snapshot.image();
    snapshot.place_all(&image);
    let server = PageServer::start().expect("starts");
    let since = Instant::now();
    let one = &|id| {
        let mut clone = restore(&server, &snapshot, &image, Backing::PrivateView, id);
        clone.vm.resume().expect("runs");
        clone
    };
    let mut clones: Vec<Clone> = std::thread::scope(|scope| {
        let half = CLONES as u64 / 2;
        let first = scope.spawn(move || (1..=half).map(one).collect::<Vec<_>>());
        let mut clones: Vec<Clone> = (half + 1..=2 * half).map(one).collect();
        clones.extend(first.join().expect("no panic"));
        clones
    });
    let mut ran: Vec<Duration> = clones
        .iter()
        .map(|clone| {
            next_tick(&clone.vm, 0);
            clone.vm.first_exit().expect("it has ticked").duration_since(since)
        })
        .collect();
    let ticked = since.elapsed();
    ran.sort();
    println!(
        "{CLONES} clones of {} MiB: the guest ran after p50 {:?}, last {:?}; all had ticked after {ticked:?}",
        snapshot.pages.len() / 256,
        ran[CLONES / 2],
        ran[CLONES - 1],
    );
    for clone in &mut clones {
        clone.vm.pause().expect("pauses");
    }
    let own: Vec<u64> = clones.iter().map(|clone| clone.vm.memory().own_bytes().expect("counted")).collect();
    let mean = own.iter().sum::<u64>() / CLONES as u64;
    println!("{mean} bytes of its own a clone, of {}", snapshot.state.memory_bytes());
    assert!(mean < snapshot.state.memory_bytes() / 4, "clean pages are not shared: {own:?}");
    // Some of them look at every page; all of them share one image.
    for mut clone in clones.drain(..).step_by(8) {
        clone.vm.set_workload(VERIFY);
        clone.vm.resume().expect("runs on");
        full_pass(&clone.vm);
    }
}
