//! The page server's handle: start, attach, watch.

use super::guard::Guard;
use super::serving::Serving;
use super::stats::FaultStats;
use super::{Backing, Region, Uffd, UffdError};
use crate::lazy::LazyImage;
use nix::sys::eventfd::{EfdFlags, EventFd};
use pages::PAGE_SIZE;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// VMs that one server takes.
const VMS_MAX: usize = 1024;
/// Regions of one VM.
const REGIONS_MAX: usize = 64;
/// Around a fault on anonymous memory, pages of so many are brought at once by default: 64 KiB.
const AROUND_DEFAULT: u32 = 16;

/// A VM to be served.
#[derive(Debug)]
pub struct Attachment {
    /// What it is called in messages.
    pub name: String,
    /// Its faults.
    pub uffd: Uffd,
    /// Its pages.
    pub image: Arc<LazyImage>,
    /// Where they go.
    pub regions: Vec<Region>,
    /// What its memory is.
    pub backing: Backing,
    /// Put pages in place as they come, so that the VM needs no server in the end. Without, anonymous memory gets what
    /// it faults on and the VM depends on the server for ever. Views of a file need no push.
    pub push: bool,
    /// Pages of an aligned window around a fault that are brought with it (anonymous memory only), at least 1.
    pub around: u32,
    /// Pages that are put in place first if they are here: a recorded working set.
    pub first: Vec<u32>,
    /// Record which pages are faulted on, in order.
    pub record: bool,
    /// How it is ended if its pages will not come.
    pub guard: Guard,
}

impl Attachment {
    /// A VM with the usual settings: pages are pushed, 16 around a fault, nothing recorded.
    #[must_use]
    pub fn new(
        name: &str,
        uffd: Uffd,
        image: Arc<LazyImage>,
        regions: Vec<Region>,
        backing: Backing,
        guard: Guard,
    ) -> Self {
        let name = name.to_owned();
        let (push, around, first, record) = (true, AROUND_DEFAULT, Vec::new(), false);
        Self { name, uffd, image, regions, backing, push, around, first, record, guard }
    }

    fn check(&self) -> Result<(), UffdError> {
        if self.regions.is_empty() || self.regions.len() > REGIONS_MAX {
            return Err(UffdError::TooMany { what: "regions of a VM (and one at least)", max: REGIONS_MAX });
        }
        let image_bytes = u64::from(self.image.page_count()) * PAGE_SIZE as u64;
        for &region in &self.regions {
            let Region { address, len, image_offset, page_bytes } = region;
            let page_fits = match self.backing {
                Backing::Huge => page_bytes.is_power_of_two() && (1 << 13..=1 << 30).contains(&page_bytes),
                _ => page_bytes == PAGE_SIZE as u64,
            };
            let fits = page_fits
                && len > 0
                && address.is_multiple_of(page_bytes)
                && len.is_multiple_of(page_bytes)
                && image_offset.is_multiple_of(PAGE_SIZE as u64)
                && address.checked_add(len).is_some()
                && image_offset.checked_add(len).is_some_and(|end| end <= image_bytes);
            if !fits {
                return Err(UffdError::Region { name: self.name.clone(), region, image_bytes });
            }
        }
        Ok(())
    }
}

/// What became of a VM.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum VmStatus {
    /// Its faults are answered.
    #[default]
    Serving,
    /// All its pages are in place: it depends on the server no longer.
    Complete,
    /// It was ended, for this reason.
    Ended(String),
    /// Its process ended by itself.
    Gone,
}

/// What the server's thread tells.
#[derive(Debug, Default)]
pub(super) struct Shared {
    told: Mutex<Told>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Told {
    status: VmStatus,
    stats: FaultStats,
    touched: Vec<u32>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Told> {
        // What is told is whole at any time.
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn publish(&self, stats: &FaultStats, touched: &[u32], status: Option<VmStatus>) {
        let mut told = self.lock();
        told.stats.clone_from(stats);
        let known = told.touched.len();
        told.touched.extend_from_slice(&touched[known..]);
        if let Some(status) = status {
            told.status = status;
            self.changed.notify_all();
        }
    }
}

/// A VM that is served. Dropping this changes nothing: the server goes on.
#[derive(Clone, Debug)]
pub struct ServedVm {
    shared: Arc<Shared>,
}

impl ServedVm {
    /// What became of it.
    #[must_use]
    pub fn status(&self) -> VmStatus {
        self.shared.lock().status.clone()
    }

    /// Its counters, at most a tenth of a second old while it faults.
    #[must_use]
    pub fn stats(&self) -> FaultStats {
        self.shared.lock().stats.clone()
    }

    /// The pages it faulted on, in order, if that is recorded (at most the first 1,048,576 faults).
    #[must_use]
    pub fn touched(&self) -> Vec<u32> {
        self.shared.lock().touched.clone()
    }

    /// Waits until it is served no longer, for at most `timeout`. The status then.
    #[must_use]
    pub fn wait(&self, timeout: Duration) -> VmStatus {
        let deadline = Instant::now() + timeout;
        let mut told = self.shared.lock();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if told.status != VmStatus::Serving || left.is_zero() {
                return told.status.clone();
            }
            told = self.shared.changed.wait_timeout(told, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

pub(super) enum Command {
    Attach(Box<Attachment>, Arc<Shared>, Sender<Result<(), UffdError>>),
    /// For a test of what follows a defect.
    #[cfg(test)]
    Panic,
}

/// A thread that answers page faults. When it is dropped, VMs that are not complete are ended.
#[derive(Debug)]
pub struct PageServer {
    commands: Option<Sender<Command>>,
    event: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl PageServer {
    /// Starts one. It sleeps while nothing faults.
    ///
    /// # Errors
    ///
    /// No descriptors or threads left.
    pub fn start() -> Result<Self, UffdError> {
        let system =
            |source: nix::Error| UffdError::System { action: "make an eventfd", source: source.into() };
        let event =
            Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).map_err(system)?);
        let (commands, received) = mpsc::channel();
        let serving = Serving::new(received, event.clone())?;
        let thread = std::thread::Builder::new()
            .name("page-server".into())
            .spawn(move || serving.run())
            .map_err(|source| UffdError::System { action: "start the page server's thread", source })?;
        Ok(Self { commands: Some(commands), event, thread: Some(thread) })
    }

    /// Takes a VM. Its regions must be registered with its userfaultfd; it may fault already.
    ///
    /// # Errors
    ///
    /// Regions that do not fit the image, too many VMs or listeners, or the server has ended. The VM is ended then, too, by its guard.
    pub fn attach(&self, attachment: Attachment) -> Result<ServedVm, UffdError> {
        let shared = Arc::new(Shared::default());
        if let Err(error) = attachment.check() {
            // What cannot be served must not wait for ever; that it could not be ended either is not more of an error.
            let _ = attachment.guard.end(&error.to_string());
            return Err(error);
        }
        let (reply, answer) = mpsc::channel();
        self.send(Command::Attach(Box::new(attachment), shared.clone(), reply))?;
        answer.recv().map_err(|_| UffdError::Ended)??;
        Ok(ServedVm { shared })
    }

    fn send(&self, command: Command) -> Result<(), UffdError> {
        let commands = self.commands.as_ref().ok_or(UffdError::Ended)?;
        commands.send(command).map_err(|_| UffdError::Ended)?;
        self.notify();
        Ok(())
    }

    fn notify(&self) {
        // Fails only if it is readable already, which is what is wanted.
        let _ = self.event.write(1);
    }

    #[cfg(test)]
    pub(super) fn panic(&self) {
        self.send(Command::Panic).expect("it runs");
    }

    pub(super) const fn vms_max() -> usize {
        VMS_MAX
    }
}

impl Drop for PageServer {
    fn drop(&mut self) {
        self.commands = None;
        self.notify();
        if let Some(thread) = self.thread.take() {
            // A panic in it was reported by the panic handler, and its VMs were ended.
            let _ = thread.join();
        }
    }
}
