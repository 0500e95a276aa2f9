//! Answers one clone's page faults from an image that is being filled.

use super::CloudHypervisorError;
use super::protocol::{self, Command, Request};
use super::source::Slot;
use crate::lazy::{Demand, LazyImage, News, Origin};
use crate::uffd::{FaultStats, UffdError, VmStatus};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use pages::PAGE_SIZE;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::process::Child;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// While a page is waited for, this is how often the process is looked at.
const LOOK_MS: u8 = 100;
/// Cloud Hypervisor asks for all pages one after the other when no vCPU faults, on the same connection. The next of that walk is
/// given so long to come by itself, with a block for all hosts, before it is asked for as if a vCPU waited.
const WALK_MS: u8 = 3;
/// Pages that one fault may ask for: a huge page of 1 GiB.
const FAULT_BYTES_MAX: u64 = 1 << 30;

/// What the thread tells of its clone.
#[derive(Debug, Default)]
pub(super) struct Told {
    status: Mutex<(VmStatus, FaultStats)>,
    changed: Condvar,
}

impl Told {
    fn lock(&self) -> MutexGuard<'_, (VmStatus, FaultStats)> {
        // What is told is whole at any time.
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, status: VmStatus) {
        self.lock().0 = status;
        self.changed.notify_all();
    }

    pub(super) fn stats(&self) -> FaultStats {
        self.lock().1.clone()
    }

    pub(super) fn wait(&self, timeout: Duration) -> VmStatus {
        let deadline = Instant::now() + timeout;
        let mut told = self.lock();
        while told.0 == VmStatus::Serving {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            told = self.changed.wait_timeout(told, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        told.0.clone()
    }
}

pub(super) fn kill(process: &Mutex<Child>) {
    let mut process = process.lock().unwrap_or_else(PoisonError::into_inner);
    // It has ended already, or is ours to kill.
    let _ = process.kill();
    let _ = process.wait();
}

/// Answers one VM's page faults, which come one after the other.
pub(super) struct Server {
    id: String,
    image: Arc<LazyImage>,
    news: News,
    files: Vec<(Slot, File)>,
    process: Arc<Mutex<Child>>,
    told: Arc<Told>,
    /// Where its walk through memory will go on.
    walk: u64,
}

impl Server {
    /// `files`: each slot and its memory, all of it missing.
    pub(super) fn new(
        id: &str,
        image: &Arc<LazyImage>,
        files: Vec<(Slot, File)>,
        process: &Arc<Mutex<Child>>,
        told: &Arc<Told>,
    ) -> Result<Self, CloudHypervisorError> {
        let news = image.listen().map_err(UffdError::from)?;
        let (image, process, told) = (Arc::clone(image), Arc::clone(process), Arc::clone(told));
        let walk = files.first().map_or(0, |(slot, _)| slot.gpa);
        Ok(Self { id: id.to_owned(), image, news, files, process, told, walk })
    }

    /// Answers until the connection ends.
    pub(super) fn run(mut self, mut stream: UnixStream) {
        let status = loop {
            let request = match Request::read(&mut stream) {
                Ok(request) => request,
                // Cloud Hypervisor closes it when it has walked through all memory; or it has ended.
                Err(_) if self.ended() => break VmStatus::Gone,
                Err(_) => break VmStatus::Complete,
            };
            let answered = match request.command {
                Command::PageFault => self.fault(&request, &mut stream),
                Command::Abandon => break VmStatus::Gone,
                other => Err(format!("it sends {other:?} where a PageFault belongs")),
            };
            match answered {
                Ok(()) => {}
                Err(_) if self.ended() => break VmStatus::Gone,
                Err(reason) => break VmStatus::Ended(format!("VM {}: {reason}", self.id)),
            }
        };
        if matches!(status, VmStatus::Ended(_)) {
            // A guest that waits for a page that will not come is ended, not left to hang.
            kill(&self.process);
        }
        self.told.set(status);
    }

    fn ended(&self) -> bool {
        // A process that cannot be asked is taken for ended.
        self.process
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .try_wait()
            .map_or(true, |ended| ended.is_some())
    }

    fn fault(&mut self, request: &Request, stream: &mut UnixStream) -> Result<(), String> {
        let broken = |error: io::Error| format!("its page-fault connection fails: {error}");
        let (gpa, length) = protocol::read_fault(request, stream).map_err(broken)?;
        let odd = || format!("it asks for {length} bytes at {gpa:#x}, which are not its memory");
        let whole = |bytes: u64| bytes.is_multiple_of(PAGE_SIZE as u64);
        if !whole(gpa) || !whole(length) || length == 0 || length > FAULT_BYTES_MAX {
            return Err(odd());
        }
        let slot_at = self
            .files
            .iter()
            .position(|(slot, _)| gpa >= slot.gpa && gpa + length <= slot.gpa + slot.size)
            .ok_or_else(odd)?;
        let slot = self.files[slot_at].0;
        let page = |bytes: u64| u32::try_from(bytes / PAGE_SIZE as u64).map_err(|_| odd());
        let first = page(slot.image_offset + gpa - slot.gpa)?;
        let file_at = slot.file_offset + gpa - slot.gpa;
        let walks = gpa == self.walk;
        if walks {
            self.walk = gpa + length;
        }
        let since = Instant::now();
        for (index, pfn) in (first..first + page(length)?).enumerate() {
            self.wait_for(pfn, walks, since)?;
            let zero = self.image.is_zero(pfn);
            let bytes = if zero { &[0; PAGE_SIZE] } else { self.image.page(pfn).ok_or("a page is gone")? };
            let at = file_at + (index * PAGE_SIZE) as u64;
            let written = self.files[slot_at].1.write_all_at(bytes, at);
            written.map_err(|error| format!("page {pfn} cannot be written to its memory: {error}"))?;
        }
        protocol::answer(true, stream).map_err(broken)
    }

    /// Waits until the page is here; nothing is locked meanwhile.
    fn wait_for(&mut self, pfn: u32, walks: bool, since: Instant) -> Result<(), String> {
        let here = self.image.is_here(pfn);
        if !here && walks {
            let patience = since + Duration::from_millis(WALK_MS.into());
            while !self.image.is_here(pfn) && Instant::now() < patience {
                self.await_news(WALK_MS)?;
            }
        }
        while self.image.demand(pfn) != Demand::Here {
            if let Some(reason) = self.image.lost() {
                return Err(format!("it needs page {pfn}, which will not come: {reason}"));
            }
            if self.ended() {
                return Err("it has ended".into());
            }
            self.await_news(LOOK_MS)?;
        }
        let origin = self.image.origin(pfn);
        let stats = &mut self.told.lock().1;
        stats.faults += 1;
        let latency = match origin {
            _ if here => &mut stats.here,
            Some(Origin::Sender) => &mut stats.by_sender,
            Some(Origin::Peer) => &mut stats.by_peer,
            _ => &mut stats.by_block,
        };
        latency.add(since.elapsed());
        Ok(())
    }

    fn await_news(&mut self, at_most_ms: u8) -> Result<(), String> {
        let mut fds = [PollFd::new(self.news.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::from(at_most_ms)) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(format!("news of pages cannot be waited for: {error}")),
        }
        self.news.drain(|_| {});
        Ok(())
    }
}
