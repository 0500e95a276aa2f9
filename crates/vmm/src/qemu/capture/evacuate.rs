//! Taking a VM away: pre-copy for a while, then post-copy. Afterwards the source cannot go on by itself.
//!
//! ```text
//! source ── pages, changed ones again ──▶ file        … until it no longer pays
//!        ── DISCARD (what is stale) · PACKAGED { devices } ──▶ `switched` gets image and state: the VM may run elsewhere
//!        ── the stale pages, once each; those that are demanded first ──▶ image
//!        ◀── REQ_PAGES · SHUT
//! ```
//!
//! Until `switched` is called the source goes on whatever fails. From then on it stands, and keeps all its pages: if the
//! link breaks it rests in `postcopy-paused`, from where it can be told to go on sending.

use super::super::error::QemuError;
use super::super::qmp::Qmp;
use super::super::state::{DeviceState, Fingerprint};
use super::super::stream::{
    BlockPlan, Command, DEVICE_BYTES_MAX, Event, PAGE_BYTES, Parser, ReturnMessage, StreamError,
    package_devices, split_tail,
};
use super::live::Sink;
use super::patience::Patience;
use super::ram_file::RamFile;
use super::settings::{self, Settings};
use super::{CaptureFigures, driver, readiness, sees_writes};
use crate::lazy::{LazyError, LazyImage, Origin};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use pages::Bitmap;
use serde_json::json;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

const BUFFER_BYTES: usize = 1 << 20;
const POLL_MS: u16 = 20;
/// A tail that nothing follows for so long is whole.
const QUIET_MS: u16 = 60;

/// How to take a VM away.
pub struct EvacuateOptions<'a> {
    /// The memory's file, made anew; on a tmpfs, as a VM may run from it at once.
    pub image: &'a Path,
    /// Pre-copy ends after so long; zero: post-copy from the start.
    pub precopy_for: Duration,
    /// Pre-copy ends when no more than this is left, in bytes: what is left costs page faults.
    pub enough_left: u64,
    /// After so long without a byte it fails.
    pub stall_within: Duration,
}

/// Called when the source has stopped for good, with the image, which is still being filled, and the state.
pub type Switched<'a> = &'a mut dyn FnMut(&Arc<LazyImage>, &Arc<DeviceState>) -> Result<(), QemuError>;

/// A VM that was taken away.
#[derive(Clone, Debug)]
pub struct Evacuated {
    /// Its memory, complete.
    pub image: Arc<LazyImage>,
    /// Everything else.
    pub state: Arc<DeviceState>,
    /// What it cost. `pause` is not known here: it ends where the VM runs on.
    pub figures: CaptureFigures,
    /// From the first command to the hand-over of the device state.
    pub switched_after: Duration,
    /// Pages that were stale then.
    pub stale_pages: u64,
    /// Pages that were asked for because someone waited for them.
    pub requests: u64,
}

/// Takes a VM away. `switched` is called once, when the source has stopped for good: with the image, which is still being
/// filled, and the state. What it demands of the image from then on comes first.
///
/// # Errors
///
/// As [`super::capture`]. Before `switched` was called the source is as it was; from then on its pages are safe in it.
pub fn evacuate(
    qmp: &mut Qmp,
    options: &EvacuateOptions<'_>,
    switched: Switched<'_>,
) -> Result<Evacuated, QemuError> {
    let ran = readiness(qmp)?;
    if !ran {
        return Err(QemuError::refused("it stands: capture it, as nothing is gained by post-copy"));
    }
    let fingerprint = Fingerprint::of(qmp)?;
    sees_writes(&fingerprint)?;
    let saved = Settings::of(qmp)?;
    let file = File::options().read(true).write(true).create_new(true).open(options.image);
    let file = file.map_err(QemuError::io("make", options.image))?;
    if !is_shared_memory(&file) {
        let _ = std::fs::remove_file(options.image);
        return Err(LazyError::NotSharedMemory { path: options.image.to_owned() }.into());
    }
    let mut run = match Run::start(qmp, options, &fingerprint, file) {
        Ok(run) => run,
        Err(error) => {
            driver::abandon(qmp, ran);
            saved.restore(qmp);
            let _ = std::fs::remove_file(options.image);
            return Err(error);
        }
    };
    let outcome = run.whole(qmp, switched);
    if outcome.is_err() && run.image.is_none() {
        drop(run);
        driver::abandon(qmp, ran);
        let _ = std::fs::remove_file(options.image);
    }
    saved.restore(qmp);
    outcome
}

/// Whether a VM can run from the file.
fn is_shared_memory(file: &File) -> bool {
    fstatfs(file).is_ok_and(|system| system.filesystem_type() == TMPFS_MAGIC)
}

struct Run<'a> {
    options: &'a EvacuateOptions<'a>,
    socket: UnixStream,
    fingerprint: Fingerprint,
    start: Instant,
    moved: Instant,
    /// Before the switch.
    sink: Option<Sink>,
    stale: Bitmap,
    package: Vec<u8>,
    packaged: bool,
    answers: Vec<u8>,
    /// From the switch on.
    image: Option<Arc<LazyImage>>,
    state: Option<Arc<DeviceState>>,
    wake: Arc<EventFd>,
    requests: u64,
    figures: CaptureFigures,
    switched_after: Duration,
    stale_pages: u64,
}

impl<'a> Run<'a> {
    fn start(
        qmp: &mut Qmp,
        options: &'a EvacuateOptions<'a>,
        fingerprint: &Fingerprint,
        file: File,
    ) -> Result<Self, QemuError> {
        let failed = |action| move |source| QemuError::io(action, options.image)(source);
        settings::prepare(qmp, &["postcopy-ram"])?;
        let (socket, theirs) = UnixStream::pair().map_err(failed("make a socket for"))?;
        socket.set_nonblocking(true).map_err(failed("set up a socket for"))?;
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|error| failed("make an eventfd for")(error.into()))?;
        qmp.send_fd("scatter", &theirs)?;
        qmp.execute("migrate", json!({"uri": "fd:scatter"}))?;
        let now = Instant::now();
        Ok(Self {
            options,
            socket,
            fingerprint: fingerprint.clone(),
            start: now,
            moved: now,
            sink: Some(Sink::new(RamFile::new(file, options.image), fingerprint)),
            stale: Bitmap::new(0),
            package: Vec::new(),
            packaged: false,
            answers: Vec::new(),
            image: None,
            state: None,
            wake: Arc::new(wake),
            requests: 0,
            figures: CaptureFigures::default(),
            switched_after: Duration::ZERO,
            stale_pages: 0,
        })
    }

    fn whole(&mut self, qmp: &mut Qmp, switched: Switched<'_>) -> Result<Evacuated, QemuError> {
        let socket =
            self.socket.try_clone().map_err(QemuError::io("duplicate a socket for", self.options.image))?;
        let patience = Patience {
            start: self.start,
            precopy_for: self.options.precopy_for,
            enough_left: self.options.enough_left,
        };
        let look = |qmp: &mut Qmp| patience.look(qmp);
        let by_postcopy = driver::watched(qmp, &socket, look, || self.run_on(switched))?;
        if !by_postcopy {
            // It ended by itself, and would go on by itself if it did not know that everything is here. So it is told first,
            // and its VM handed over when it stands for good.
            driver::completed(qmp)?;
            let tail = self.sink.as_ref().map_or(&[][..], Sink::tail);
            let devices = split_tail(tail)?.devices.to_vec();
            self.switch(devices, switched)?;
        }
        let mut evacuated = self.evacuated()?;
        driver::completed(qmp)?;
        evacuated.figures.total = self.start.elapsed();
        Ok(evacuated)
    }

    /// Reads all of it and tells the source so. Whether it came to post-copy: then the VM was handed over on the way.
    fn run_on(&mut self, switched: Switched<'_>) -> Result<bool, QemuError> {
        let huge = self.fingerprint.blocks.iter().filter(|row| row.page_size != PAGE_BYTES);
        let plan =
            BlockPlan { huge: huge.map(|row| (row.id.clone(), row.page_size)).collect(), postcopy: true };
        let mut parser = Parser::new(plan);
        let (mut buffer, mut len) = (vec![0; BUFFER_BYTES], 0);
        // A source that has nothing left to send ends by itself, without post-copy: then the tail is its device state.
        while !parser.in_tail() || self.image.is_none() && !self.whole_tail() {
            self.wait_and_answer()?;
            match self.socket.read(&mut buffer[len..]) {
                Ok(0) => return Err(parser.cut_off().into()),
                Ok(more) => {
                    len += more;
                    self.moved = Instant::now();
                }
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) =>
                {
                    if self.moved.elapsed() > self.options.stall_within {
                        return Err(QemuError::TimedOut {
                            what: "any page",
                            within: self.options.stall_within,
                        });
                    }
                }
                Err(error) => return Err(QemuError::io("read the stream into", self.options.image)(error)),
            }
            let used = parser.feed(&buffer[..len], |event| {
                self.event(event)?;
                // The very next page is one of those that were stale.
                if self.packaged && self.image.is_none() {
                    let devices = package_devices(&self.package);
                    let devices = devices.ok_or(StreamError::Damaged { what: "package", at: 0 })?;
                    self.switch(devices.to_vec(), switched)?;
                }
                Ok::<_, QemuError>(())
            })?;
            buffer.copy_within(used..len, 0);
            len -= used;
        }
        self.figures.stream_bytes = parser.at();
        self.end()?;
        Ok(self.image.is_some())
    }

    /// Whether the device state of a source that ended by itself is here. It waits for our word before it closes.
    fn whole_tail(&self) -> bool {
        let tail = self.sink.as_ref().map_or(&[][..], Sink::tail);
        // Nothing more for a while tells that a tail that could end here does.
        self.moved.elapsed() > Duration::from_millis(QUIET_MS.into()) && split_tail(tail).is_ok()
    }

    fn event(&mut self, event: Event<'_>) -> Result<(), QemuError> {
        match (event, &self.image) {
            (Event::Command(Command::Ping(number)), _) => {
                self.answers.extend(ReturnMessage::Pong(number).encode());
            }
            (Event::Command(Command::RamDiscard { block, ranges }), None) => {
                let sink = self.sink.as_ref().expect("kept until the switch");
                let known = sink.blocks.iter().find(|known| known.id == block);
                let known =
                    known.ok_or(StreamError::Block { id: block, what: "is not in the list of blocks" })?;
                for range in ranges {
                    let page =
                        |at: u64| u32::try_from(at / PAGE_BYTES).ok().filter(|page| *page <= known.pages());
                    let (Some(first), Some(end)) = (page(range.start), page(range.start + range.len)) else {
                        return Err(StreamError::Damaged { what: "discard", at: range.start }.into());
                    };
                    self.stale.set_range(known.first_page + first..known.first_page + end);
                }
            }
            (Event::Package { bytes, last }, None) => {
                if self.package.len() + bytes.len() > DEVICE_BYTES_MAX {
                    let max = DEVICE_BYTES_MAX as u64;
                    return Err(StreamError::TooLarge { what: "bytes of device state", max }.into());
                }
                self.package.extend_from_slice(bytes);
                self.packaged = last;
            }
            (Event::Page(page, bytes), Some(image)) => {
                self.figures.pages += 1;
                image.place(page, bytes, Origin::Sender)?;
            }
            (Event::Zero(page), Some(image)) => {
                self.figures.zero_pages += 1;
                image.place_word(page, 1, 0, Origin::Sender)?;
            }
            (_, Some(_)) => {}
            (event, None) => {
                let sink = self.sink.as_mut().expect("kept until the switch");
                let listed = matches!(event, Event::Blocks { .. });
                sink.event(event)?;
                if listed {
                    self.stale = Bitmap::new(sink.blocks.last().map_or(0, |block| block.page_range().end));
                }
            }
        }
        Ok(())
    }

    /// The source has stopped: what is not stale is the VM's memory from now on.
    fn switch(&mut self, devices: Vec<u8>, switched: Switched<'_>) -> Result<(), QemuError> {
        let sink = self.sink.take().expect("kept until the switch");
        let (mut ram, state, figures) = sink.into_parts(devices)?;
        for run in self.stale.iter_set_ranges() {
            ram.clear(run)?;
        }
        self.figures = figures;
        let image = LazyImage::over(ram.into_file(), self.options.image)?;
        for run in self.stale.iter_unset_ranges() {
            image.adopt(run.start, run.end - run.start)?;
        }
        self.stale_pages = self.stale.count().into();
        let wake = Arc::clone(&self.wake);
        // A full counter is awake already.
        image.on_demand(move || {
            let _ = wake.write(1);
        });
        let (image, state) = (Arc::new(image), Arc::new(state));
        self.switched_after = self.start.elapsed();
        self.image = Some(Arc::clone(&image));
        self.state = Some(Arc::clone(&state));
        switched(&image, &state)
    }

    /// Asks the source for what someone waits for.
    fn demand(&mut self) {
        let (Some(image), Some(state)) = (&self.image, &self.state) else { return };
        let _ = self.wake.read();
        while let Some(page) = image.next_demand() {
            let Some(block) = state.blocks.iter().find(|block| block.page_range().contains(&page)) else {
                continue;
            };
            let start = u64::from(page - block.first_page) * PAGE_BYTES / block.page_size * block.page_size;
            let len = u32::try_from(block.page_size).unwrap_or(u32::MAX);
            let request = ReturnMessage::RequestPages { start, len, block: Some(block.id.clone()) };
            self.answers.extend(request.encode());
            self.requests += 1;
        }
    }

    /// Waits for the stream, a demand or room for answers, and writes what answers it can.
    fn wait_and_answer(&mut self) -> Result<(), QemuError> {
        let events =
            if self.answers.is_empty() { PollFlags::POLLIN } else { PollFlags::POLLIN | PollFlags::POLLOUT };
        let mut fds =
            [PollFd::new(self.socket.as_fd(), events), PollFd::new(self.wake.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::from(POLL_MS)) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(QemuError::io("wait for pages of", self.options.image)(error.into())),
        }
        self.demand();
        match self.socket.write(&self.answers) {
            Ok(len) => drop(self.answers.drain(..len)),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => return Err(QemuError::io("answer the source of", self.options.image)(error)),
        }
        Ok(())
    }

    /// Everything is here: the source is told so, and closes the link when it is done.
    fn end(&mut self) -> Result<(), QemuError> {
        if let Some(image) = &self.image
            && !image.is_complete()
        {
            let reason = "the source ended without having sent every page".to_owned();
            return Err(QemuError::Migration { status: "incomplete".to_owned(), reason });
        }
        self.answers.extend(ReturnMessage::Shut(0).encode());
        while !self.answers.is_empty() {
            self.wait_and_answer()?;
        }
        Ok(())
    }

    fn evacuated(&self) -> Result<Evacuated, QemuError> {
        let (Some(image), Some(state)) = (self.image.clone(), self.state.clone()) else {
            let at = self.figures.stream_bytes;
            return Err(StreamError::Damaged { what: "end: it came before the device state", at }.into());
        };
        Ok(Evacuated {
            image,
            state,
            figures: self.figures,
            switched_after: self.switched_after,
            stale_pages: self.stale_pages,
            requests: self.requests,
        })
    }
}
