//! Faults on pages that are here: a page server's thread beside a bare handler that reads a local file.

use crate::trace::PAGES;
use anyhow::Context;
use pages::PAGE_SIZE;
use serde::Serialize;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use vmm::LazyImage;
use vmm::lazy::Origin;
use vmm::memory::GuestMemory;
use vmm::uffd::{Attachment, Backing, Guard, Histogram, PageServer, Region, Uffd};

/// One run of one handler.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Local {
    pub(crate) handler: &'static str,
    /// Threads that fault.
    pub(crate) clients: usize,
    pub(crate) repetition: u32,
    pub(crate) faults_per_s: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
}

pub(crate) fn measure(repetition: u32) -> anyhow::Result<Vec<Local>> {
    let image = Arc::new(LazyImage::memfd("bench", PAGES)?);
    let mut file = tempfile::tempfile().context("no temporary file")?;
    for page in 0..PAGES {
        let bytes = crate::player::page_of(page);
        image.place(page, &bytes, Origin::Block)?;
        file.write_all(&bytes)?;
    }
    let mut samples = Vec::new();
    for clients in [1, 2] {
        for (handler, (elapsed, latencies)) in
            [("bare, reads a file", bare(&file, clients)?), ("page server", served(&image, clients)?)]
        {
            let us = |share| latencies.quantile(share).unwrap_or_default().as_secs_f64() * 1e6;
            let faults_per_s = f64::from(PAGES) / elapsed.as_secs_f64();
            samples.push(Local {
                handler,
                clients,
                repetition,
                faults_per_s,
                p50_us: us(0.5),
                p99_us: us(0.99),
            });
        }
    }
    Ok(samples)
}

/// Touches every page once; the time it took, and each touch's.
fn touch(memory: &GuestMemory, clients: usize) -> (Duration, Histogram) {
    let since = Instant::now();
    let mut all = Histogram::default();
    std::thread::scope(|scope| {
        let touching: Vec<_> = (0..clients)
            .map(|client| {
                scope.spawn(move || {
                    let mut latencies = Histogram::default();
                    for page in (client..PAGES as usize).step_by(clients) {
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

fn served(image: &Arc<LazyImage>, clients: usize) -> anyhow::Result<(Duration, Histogram)> {
    let memory = GuestMemory::anonymous(PAGES as usize * PAGE_SIZE)?;
    let server = PageServer::start()?;
    let uffd = Uffd::for_memory(&memory, Backing::Anonymous)?;
    let guard = Guard::Hook(Box::new(|_| {}));
    let regions = vec![Region::whole(&memory)];
    let mut attachment =
        Attachment::new("bench", uffd, Arc::clone(image), regions, Backing::Anonymous, guard);
    // Each page is a fault of its own, as with the bare handler.
    (attachment.push, attachment.around) = (false, 1);
    let _served = server.attach(attachment)?;
    Ok(touch(&memory, clients))
}

/// The least that a handler does: waits, reads one fault, reads its page from a file, copies it.
fn bare(file: &File, clients: usize) -> anyhow::Result<(Duration, Histogram)> {
    let memory = GuestMemory::anonymous(PAGES as usize * PAGE_SIZE)?;
    let uffd = Uffd::for_memory(&memory, Backing::Anonymous)?;
    let base = memory.address();
    let done = AtomicBool::new(false);
    Ok(std::thread::scope(|scope| {
        let (uffd, done) = (&uffd, &done);
        scope.spawn(move || {
            let mut page = [0; PAGE_SIZE];
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
                let address = address / PAGE_SIZE as u64 * PAGE_SIZE as u64;
                file.read_exact_at(&mut page, address - base).expect("within the file");
                uffd.copy(address, &page);
            }
        });
        let result = touch(&memory, clients);
        done.store(true, Ordering::SeqCst);
        result
    }))
}
