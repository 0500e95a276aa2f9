//! Handlers of page faults on memory that is here, and threads that touch it: a page server's thread, and the least that a handler can do.
//! Used by `faults.rs` here and by `benches/postcopy`.

use pages::PAGE_SIZE;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use vmm::LazyImage;
use vmm::memory::GuestMemory;
use vmm::uffd::{Attachment, Backing, Guard, Histogram, PageServer, Region, Uffd};

/// Touches every page once from `clients` threads; the time it took, and each touch's.
fn touch(memory: &GuestMemory, clients: usize) -> (Duration, Histogram) {
    let since = Instant::now();
    let mut all = Histogram::default();
    std::thread::scope(|scope| {
        let touching: Vec<_> = (0..clients)
            .map(|client| {
                scope.spawn(move || {
                    let mut latencies = Histogram::default();
                    for page in (client..memory.len() / PAGE_SIZE).step_by(clients) {
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

/// CPU time that this process's threads of a name have used, those that have ended not included.
pub(crate) fn cpu_of_threads(name: &str) -> Duration {
    let tasks = std::fs::read_dir("/proc/self/task").expect("every process has its threads there");
    let ns = tasks.filter_map(Result::ok).filter_map(|task| {
        let read = |file: &str| std::fs::read_to_string(task.path().join(file)).ok();
        // Nanoseconds on a CPU come first (Documentation/scheduler/sched-stats.rst).
        (read("comm")?.trim() == name)
            .then(|| read("schedstat")?.split(' ').next()?.parse::<u64>().ok())
            .flatten()
    });
    Duration::from_nanos(ns.sum())
}

/// What a run came to: how long it took, how long each touch took, and what the handler's thread used of a CPU.
pub(crate) struct Run {
    pub(crate) elapsed: Duration,
    pub(crate) latencies: Histogram,
    pub(crate) handler_cpu: Duration,
}

/// A page server's one thread serves a complete image. With `around` 1, each page is a fault of its own, as with the bare handler.
pub(crate) fn served(
    image: &Arc<LazyImage>,
    backing: Backing,
    clients: usize,
    around: u32,
) -> anyhow::Result<Run> {
    let len = image.page_count() as usize * PAGE_SIZE;
    let memory = match backing {
        Backing::PrivateView => GuestMemory::private_file(image.file(), len),
        _ => GuestMemory::anonymous(len),
    }?;
    let server = PageServer::start()?;
    let uffd = Uffd::for_memory(&memory, backing)?;
    let guard = Guard::Hook(Box::new(|_| {}));
    let regions = vec![Region::whole(&memory)];
    let mut attachment = Attachment::new("bench", uffd, Arc::clone(image), regions, backing, guard);
    (attachment.push, attachment.around) = (false, around);
    let _served = server.attach(attachment)?;
    let before = cpu_of_threads("page-server");
    let (elapsed, latencies) = touch(&memory, clients);
    let handler_cpu = cpu_of_threads("page-server").saturating_sub(before);
    Ok(Run { elapsed, latencies, handler_cpu })
}

/// The least that a handler does: waits, reads one fault, and has `fill` copy its page (by number) to its address.
pub(crate) fn bare(
    pages: u32,
    clients: usize,
    mut fill: impl FnMut(&Uffd, u64, u32) + Send,
) -> anyhow::Result<Run> {
    let memory = GuestMemory::anonymous(pages as usize * PAGE_SIZE)?;
    let uffd = Uffd::for_memory(&memory, Backing::Anonymous)?;
    let base = memory.address();
    let done = AtomicBool::new(false);
    Ok(std::thread::scope(|scope| {
        let (uffd, done) = (&uffd, &done);
        let handler = std::thread::Builder::new().name("bare-handler".into());
        let handling = move || {
            while !done.load(Ordering::SeqCst) {
                let mut fds = [nix::poll::PollFd::new(uffd.as_fd(), nix::poll::PollFlags::POLLIN)];
                if nix::poll::poll(&mut fds, nix::poll::PollTimeout::from(10_u8)).expect("polls") == 0 {
                    continue;
                }
                let mut message = [0_u8; 32];
                if nix::unistd::read(uffd, &mut message) != Ok(32) {
                    continue;
                }
                let address = u64::from_le_bytes(*message[16..].first_chunk().expect("eight bytes"));
                let page = u32::try_from((address - base) / PAGE_SIZE as u64).expect("within");
                fill(uffd, base + u64::from(page) * PAGE_SIZE as u64, page);
            }
        };
        handler.spawn_scoped(scope, handling).expect("a thread");
        let (elapsed, latencies) = touch(&memory, clients);
        let handler_cpu = cpu_of_threads("bare-handler");
        done.store(true, Ordering::SeqCst);
        Run { elapsed, latencies, handler_cpu }
    }))
}
