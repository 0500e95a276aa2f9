//! How many faults a page server's thread answers, and how fast, beside a bare loop of read, copy on the same descriptor
//! kind. `cargo bench -p vmm --bench faults`. Prints; compare the two, not the machine.

use pages::PAGE_SIZE;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vmm::LazyImage;
use vmm::lazy::Origin;
use vmm::memory::GuestMemory;
use vmm::uffd::{Attachment, Backing, Guard, Histogram, PageServer, Region, Uffd};

/// 256 MiB.
const PAGES: u32 = 65_536;
const RUNS: usize = 5;

fn filled() -> Arc<LazyImage> {
    let image = Arc::new(LazyImage::memfd("bench", PAGES).expect("a memfd"));
    for pfn in 0..PAGES {
        image.place_word(pfn, 1, u64::from(pfn) + 1, Origin::Block).expect("placed");
    }
    image
}

/// Touches every page from `threads` threads; the time it took, and each touch's.
fn touch(memory: &GuestMemory, threads: usize) -> (Duration, Histogram) {
    let since = Instant::now();
    let mut all = Histogram::default();
    std::thread::scope(|scope| {
        let touching: Vec<_> = (0..threads)
            .map(|thread| {
                scope.spawn(move || {
                    let mut latencies = Histogram::default();
                    for page in (thread..PAGES as usize).step_by(threads) {
                        let before = Instant::now();
                        memory.write((page * PAGE_SIZE) as u64, &[1]).expect("within");
                        latencies.add(before.elapsed());
                    }
                    latencies
                })
            })
            .collect();
        for thread in touching {
            all.merge(&thread.join().expect("no panic"));
        }
    });
    (since.elapsed(), all)
}

fn served(image: &Arc<LazyImage>, backing: Backing, threads: usize) -> (Duration, Histogram) {
    let len = PAGES as usize * PAGE_SIZE;
    let memory = match backing {
        Backing::PrivateView => GuestMemory::private_file(image.file(), len),
        _ => GuestMemory::anonymous(len),
    }
    .expect("mapped");
    let server = PageServer::start().expect("starts");
    let uffd = Uffd::for_memory(&memory, backing).expect("registered");
    let guard = Guard::Hook(Box::new(|_| {}));
    let regions = vec![Region::whole(&memory)];
    let mut attachment = Attachment::new("bench", uffd, image.clone(), regions, backing, guard);
    (attachment.push, attachment.around) = (false, 1);
    let _served = server.attach(attachment).expect("attached");
    touch(&memory, threads)
}

/// The least that a handler does: waits, reads one fault, copies its page.
fn bare(image: &Arc<LazyImage>, threads: usize) -> (Duration, Histogram) {
    let memory = GuestMemory::anonymous(PAGES as usize * PAGE_SIZE).expect("mapped");
    let uffd = Uffd::for_memory(&memory, Backing::Anonymous).expect("registered");
    let base = memory.address();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (uffd, done) = (&uffd, &done);
        scope.spawn(move || {
            while !done.load(std::sync::atomic::Ordering::SeqCst) {
                let mut fds = [nix::poll::PollFd::new(uffd.as_fd(), nix::poll::PollFlags::POLLIN)];
                if nix::poll::poll(&mut fds, nix::poll::PollTimeout::from(10u8)).expect("polls") == 0 {
                    continue;
                }
                let mut message = [0u8; 32];
                if nix::unistd::read(uffd, &mut message) != Ok(32) {
                    continue;
                }
                let address = u64::from_le_bytes(*message[16..].first_chunk().expect("eight bytes"));
                let page = u32::try_from((address - base) / PAGE_SIZE as u64).expect("within");
                uffd.copy(address / 4096 * 4096, image.page(page).expect("here"));
            }
        });
        let result = touch(&memory, threads);
        done.store(true, std::sync::atomic::Ordering::SeqCst);
        result
    })
}

fn main() {
    let image = filled();
    println!("faults on {PAGES} pages, medians of {RUNS} runs");
    for threads in [1, 2, 4] {
        type Way<'a> = (&'a str, Box<dyn Fn() -> (Duration, Histogram) + 'a>);
        let ways: [Way<'_>; 3] = [
            ("bare handler", Box::new(|| bare(&image, threads))),
            ("page server, copy", Box::new(|| served(&image, Backing::Anonymous, threads))),
            // No userfault happens here: the pages are in the page cache, and the kernel maps them itself.
            ("private view, complete", Box::new(|| served(&image, Backing::PrivateView, threads))),
        ];
        for (name, way) in &ways {
            let mut runs: Vec<_> = (0..RUNS).map(|_| way()).collect();
            runs.sort_by_key(|(elapsed, _)| *elapsed);
            let (elapsed, latencies) = &runs[RUNS / 2];
            let rate = f64::from(PAGES) / elapsed.as_secs_f64();
            let [p50, p99] = [0.5, 0.99].map(|share| latencies.quantile(share).unwrap_or_default());
            println!("{threads} clients  {name:24} {rate:9.0} faults/s  p50 {p50:?}  p99 {p99:?}");
        }
    }
}
