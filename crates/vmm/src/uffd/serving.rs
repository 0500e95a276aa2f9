//! The page server's thread: waits for faults, news of pages and commands, and pushes pages in between.

use super::server::{Command, PageServer, Shared, VmStatus};
use super::vm::{Outcome, Vm};
use super::{Attachment, UffdError};
use crate::lazy::{LazyImage, News};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::EventFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError};
use std::time::{Duration, Instant};

/// Ready descriptors taken at once.
const READY: usize = 64;
/// When a fill met `EAGAIN` although no event could be read: the event is on its way.
const RETRY_MS: u8 = 1;
/// How often counters are told while anything happens.
const TELL_MS: u8 = 100;
const TELL_INTERVAL: Duration = Duration::from_millis(TELL_MS as u64);

/// What a descriptor belongs to; the number that epoll carries.
#[derive(Copy, Clone, PartialEq, Eq)]
enum Source {
    Command,
    News(usize),
    Faults(usize),
    Process(usize),
}

impl Source {
    fn data(self) -> u64 {
        match self {
            Self::Command => 0,
            Self::News(slot) => 1 | (slot as u64) << 2,
            Self::Faults(slot) => 2 | (slot as u64) << 2,
            Self::Process(slot) => 3 | (slot as u64) << 2,
        }
    }

    fn of(data: u64) -> Self {
        let slot = usize::try_from(data >> 2).expect("it was one");
        match data & 3 {
            0 => Self::Command,
            1 => Self::News(slot),
            2 => Self::Faults(slot),
            _ => Self::Process(slot),
        }
    }
}

/// An image and the VMs that need it.
struct Served {
    image: Arc<LazyImage>,
    news: News,
    vms: Vec<usize>,
}

pub(super) struct Serving {
    epoll: Epoll,
    commands: Receiver<Command>,
    event: Arc<EventFd>,
    images: Vec<Option<Served>>,
    vms: Vec<Option<Vm>>,
    told: Instant,
    /// Something has happened since.
    untold: bool,
}

impl Serving {
    pub(super) fn new(commands: Receiver<Command>, event: Arc<EventFd>) -> Result<Self, UffdError> {
        let system =
            |source: Errno| UffdError::System { action: "wait for page faults", source: source.into() };
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(system)?;
        epoll
            .add(event.as_ref(), EpollEvent::new(EpollFlags::EPOLLIN, Source::Command.data()))
            .map_err(system)?;
        Ok(Self {
            epoll,
            commands,
            event,
            images: Vec::new(),
            vms: Vec::new(),
            told: Instant::now(),
            untold: false,
        })
    }

    pub(super) fn run(mut self) {
        let mut ready = [EpollEvent::empty(); READY];
        loop {
            let pushing =
                self.vms.iter().flatten().any(|vm| !vm.to_push.is_empty() && vm.deferred.is_empty());
            let retrying = self.vms.iter().flatten().any(|vm| !vm.deferred.is_empty());
            let timeout = match (pushing, retrying) {
                (true, _) => EpollTimeout::ZERO,
                (false, true) => EpollTimeout::from(RETRY_MS),
                (false, false) if self.untold => EpollTimeout::from(TELL_MS),
                (false, false) => EpollTimeout::NONE,
            };
            let count = match self.epoll.wait(&mut ready, timeout) {
                Ok(count) => count,
                Err(Errno::EINTR) => 0,
                // Nothing can be served without; the drop of `self` ends the VMs.
                Err(error) => panic!("epoll_wait: {error}"),
            };
            self.untold |= count > 0 || pushing || retrying;
            // Faults before news: who waits comes first.
            let sources = ready[..count].iter().map(|event| Source::of(event.data()));
            let (faults, others): (Vec<Source>, Vec<Source>) =
                sources.partition(|source| matches!(source, Source::Faults(_)));
            for source in faults.into_iter().chain(others) {
                if !self.handle(source) {
                    return;
                }
            }
            self.work();
        }
    }

    /// `false` when the server's owner is gone.
    fn handle(&mut self, source: Source) -> bool {
        match source {
            Source::Command => return self.obey(),
            Source::Faults(slot) => self.with(slot, Vm::serve),
            Source::News(slot) => self.tell_news(slot),
            Source::Process(slot) => self.with(slot, |_| Outcome::Gone),
        }
        true
    }

    fn obey(&mut self) -> bool {
        // An unreadable eventfd is as well: commands are looked at anyway.
        let _ = self.event.read();
        loop {
            match self.commands.try_recv() {
                Ok(Command::Attach(attachment, shared, reply)) => self.attach(*attachment, shared, &reply),
                #[cfg(test)]
                Ok(Command::Panic) => panic!("asked to"),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn attach(&mut self, attachment: Attachment, shared: Arc<Shared>, reply: &Sender<Result<(), UffdError>>) {
        let mut vm = Vm::new(attachment, shared);
        match self.admit(&vm) {
            Ok((slot, image)) => {
                self.images[image].as_mut().expect("admitted to it").vms.push(slot);
                // What is here already is no news to the image's listener, but it is to this VM.
                let served = self.images[image].as_ref().expect("admitted to it");
                for run in here(&served.image) {
                    // No one waits yet: this only queues what is to be pushed.
                    let _ = vm.news(&run);
                }
                self.vms[slot] = Some(vm);
                // A caller that is gone does not need to know.
                let _ = reply.send(Ok(()));
                self.with(slot, Vm::serve);
            }
            Err(error) => {
                vm.end(&error.to_string());
                let _ = reply.send(Err(error));
            }
        }
    }

    /// Finds places for the VM and its image, and listens to both.
    fn admit(&mut self, vm: &Vm) -> Result<(usize, usize), UffdError> {
        let system =
            |source: Errno| UffdError::System { action: "watch a userfaultfd", source: source.into() };
        let slot = self.vms.iter().position(Option::is_none).unwrap_or(self.vms.len());
        if slot >= PageServer::vms_max() {
            return Err(UffdError::TooMany { what: "VMs of one page server", max: PageServer::vms_max() });
        }
        let known = |served: &Option<Served>| {
            served.as_ref().is_some_and(|served| Arc::ptr_eq(&served.image, &vm.image))
        };
        let image = match self.images.iter().position(known) {
            Some(image) => image,
            None => {
                let news = vm.image.listen()?;
                let image = self.images.iter().position(Option::is_none).unwrap_or(self.images.len());
                let event = EpollEvent::new(EpollFlags::EPOLLIN, Source::News(image).data());
                self.epoll.add(&news, event).map_err(system)?;
                let served = Served { image: vm.image.clone(), news, vms: Vec::new() };
                if image == self.images.len() {
                    self.images.push(None);
                }
                self.images[image] = Some(served);
                image
            }
        };
        self.epoll
            .add(&vm.uffd, EpollEvent::new(EpollFlags::EPOLLIN, Source::Faults(slot).data()))
            .map_err(system)?;
        if let Some(process) = &vm.process {
            let event = EpollEvent::new(EpollFlags::EPOLLIN, Source::Process(slot).data());
            self.epoll.add(process, event).map_err(system)?;
        }
        if slot == self.vms.len() {
            self.vms.push(None);
        }
        Ok((slot, image))
    }

    fn tell_news(&mut self, image: usize) {
        let Some(served) = self.images.get_mut(image).and_then(Option::as_mut) else { return };
        let mut runs = Vec::new();
        served.news.drain(|run| runs.push(run));
        let lost = served.image.lost().is_some();
        for slot in served.vms.clone() {
            self.with(slot, |vm| {
                for run in &runs {
                    let outcome = vm.news(run);
                    if !matches!(outcome, Outcome::Serving) {
                        return outcome;
                    }
                }
                match (vm.waiting.keys().next(), vm.image.lost()) {
                    (Some(page), Some(reason)) if lost => {
                        Outcome::Doomed(format!("it needs page {page}, which will not come: {reason}"))
                    }
                    _ => Outcome::Serving,
                }
            });
        }
    }

    /// Pushes, retries, finishes, tells.
    fn work(&mut self) {
        let tell = self.untold && self.told.elapsed() >= TELL_INTERVAL;
        for slot in 0..self.vms.len() {
            let Some(vm) = &self.vms[slot] else { continue };
            let retrying = !vm.deferred.is_empty();
            let pushing = !vm.to_push.is_empty();
            if retrying {
                self.with(slot, Vm::serve);
            }
            if pushing {
                self.with(slot, |vm| match vm.push_some() {
                    Ok(_) => Outcome::Serving,
                    Err(outcome) => outcome,
                });
            }
            self.with(slot, Vm::finish);
            if tell && let Some(vm) = &mut self.vms[slot] {
                vm.publish(None);
            }
        }
        if tell {
            (self.told, self.untold) = (Instant::now(), false);
        }
    }

    /// Does something with a VM, and releases it if it is over.
    fn with(&mut self, slot: usize, action: impl FnOnce(&mut Vm) -> Outcome) {
        let Some(vm) = self.vms.get_mut(slot).and_then(Option::as_mut) else { return };
        match action(vm) {
            Outcome::Serving => return,
            Outcome::Complete => vm.publish(Some(VmStatus::Complete)),
            Outcome::Gone => vm.publish(Some(VmStatus::Gone)),
            Outcome::Doomed(reason) => vm.end(&reason),
        }
        let Some(vm) = self.vms[slot].take() else { return };
        // Closing descriptors would take them out of epoll only if they have no duplicates, as a watchdog's.
        let _ = self.epoll.delete(&vm.uffd);
        if let Some(process) = &vm.process {
            let _ = self.epoll.delete(process);
        }
        for image in &mut self.images {
            if let Some(served) = image {
                served.vms.retain(|&other| other != slot);
                if served.vms.is_empty() {
                    *image = None;
                }
            }
        }
    }
}

impl Drop for Serving {
    /// However this thread ends, no VM is left waiting in silence.
    fn drop(&mut self) {
        let why =
            if std::thread::panicking() { "the page server panicked" } else { "the page server was ended" };
        for vm in self.vms.iter_mut().flatten() {
            vm.end(&format!("{why} before all pages were in place"));
        }
    }
}

/// The runs of pages that are here.
fn here(image: &LazyImage) -> Vec<std::ops::Range<u32>> {
    let mut at = 0;
    let mut runs = Vec::new();
    for gap in image.missing(0..image.page_count()) {
        if at < gap.start {
            runs.push(at..gap.start);
        }
        at = gap.end;
    }
    if at < image.page_count() {
        runs.push(at..image.page_count());
    }
    runs
}
