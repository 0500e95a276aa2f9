//! Taking a VM as the destination of its migration.

use super::super::error::QemuError;
use super::super::qmp::Qmp;
use super::super::state::{DeviceState, Fingerprint};
use super::super::stream::{
    Block, BlockPlan, Command, DEVICE_BYTES_MAX, Event, INPUT_BYTES_MIN, PAGE_BYTES, Parser, StreamError,
    split_tail, without_capabilities,
};
use super::driver::{self, Clock};
use super::ram_file::RamFile;
use super::shared::{self, BackingFile};
use super::{CaptureFigures, CaptureOptions, settings};
use crate::image::ImageFormat;
use serde_json::json;
use std::fs::File;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// What is read at once.
const BUFFER_BYTES: usize = 1 << 20;
const _: () = assert!(BUFFER_BYTES >= 2 * INPUT_BYTES_MIN);

pub(super) type Taken = (DeviceState, ImageFormat, CaptureFigures);

/// Blocks that stay out of the stream.
#[derive(Copy, Clone)]
pub(super) enum Shared<'a> {
    /// Copied from their files while the source stands.
    Copied(&'a [BackingFile]),
    /// Holes in the image: somebody reads them in place.
    InPlace,
}

/// No blocks.
pub(super) const ALL: Shared<'_> = Shared::Copied(&[]);

/// Reads the whole stream into the image. Afterwards the source is stopped, in state `postmigrate`.
pub(super) fn take(
    qmp: &mut Qmp,
    options: &CaptureOptions<'_>,
    image: File,
    fingerprint: &Fingerprint,
    shared: Shared<'_>,
) -> Result<Taken, QemuError> {
    let all = matches!(shared, Shared::Copied([]));
    let wanted: &[&str] = if all { &[] } else { &["x-ignore-shared"] };
    settings::prepare(qmp, wanted)?;
    let mut sink = Sink::new(RamFile::new(image, options.image), fingerprint);
    let (ours, theirs) = UnixStream::pair().map_err(QemuError::io("make a socket for", options.image))?;
    qmp.send_fd("scatter", &theirs)?;
    drop(theirs);
    qmp.take_events();
    qmp.execute("migrate", json!({"uri": "fd:scatter"}))?;
    let (mut clock, cancel) = (Clock::start(options), options.cancel);
    let look = |qmp: &mut Qmp| clock.check(qmp, cancel).map(|()| true);
    let read = driver::watched(qmp, &ours, look, || read_stream(&ours, &mut sink, options.image));
    if let Err(error @ QemuError::Stream(StreamError::CutOff { .. })) = read {
        // QEMU's own reason is better than ours, if it has one.
        driver::completed(qmp)?;
        return Err(error);
    }
    read?;
    driver::completed(qmp)?;
    if let Shared::Copied(shared) = shared {
        shared::copy(shared, &sink.blocks, sink.ram.file(), options.image)?;
    }
    sink.finish()
}

/// Reads until the source closes the stream, which must be whole then.
fn read_stream(mut from: impl Read, sink: &mut Sink, path: &Path) -> Result<(), QemuError> {
    let mut parser = Parser::new(BlockPlan::default());
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut len = 0;
    loop {
        match from.read(&mut buffer[len..]) {
            Ok(0) if parser.in_tail() && len == 0 => {
                sink.figures.stream_bytes = parser.at();
                return Ok(());
            }
            Ok(0) => return Err(parser.cut_off().into()),
            Ok(more) => len += more,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(QemuError::io("read the stream of", path)(error)),
        }
        let used = parser.feed(&buffer[..len], |event| sink.event(event))?;
        buffer.copy_within(used..len, 0);
        len -= used;
    }
}

/// Reads a stream that was written to a file, from where it stands to its end.
///
/// # Errors
///
/// [`QemuError::Stream`], [`QemuError::Io`].
pub fn import_stream(from: impl Read, path: &Path, ram: RamFile) -> Result<DeviceState, QemuError> {
    let mut sink = Sink::new(ram, &Fingerprint::default());
    read_stream(from, &mut sink, path)?;
    sink.finish().map(|(state, ..)| state)
}

/// Where the stream's pieces go.
pub(super) struct Sink {
    pub(super) ram: RamFile,
    pub(super) blocks: Vec<Block>,
    pub(super) figures: CaptureFigures,
    fingerprint: Fingerprint,
    prefix: Vec<u8>,
    section: u32,
    early: Vec<u8>,
    switchover_start: bool,
    tail: Vec<u8>,
}

impl Sink {
    pub(super) fn new(ram: RamFile, fingerprint: &Fingerprint) -> Self {
        Self {
            ram,
            blocks: Vec::new(),
            figures: CaptureFigures::default(),
            fingerprint: fingerprint.clone(),
            prefix: Vec::new(),
            section: 0,
            early: Vec::new(),
            switchover_start: false,
            tail: Vec::new(),
        }
    }

    pub(super) fn event(&mut self, event: Event<'_>) -> Result<(), QemuError> {
        match event {
            Event::Configuration { prefix, configuration } => {
                self.prefix = prefix.to_vec();
                self.fingerprint.machine = configuration.machine;
            }
            Event::Blocks { section, blocks } => {
                self.section = section;
                self.blocks = with_page_sizes(blocks, &self.fingerprint);
                self.ram.set_blocks(blocks)?;
            }
            Event::Page(page, bytes) => {
                self.figures.pages += 1;
                self.ram.page(page, bytes)?;
            }
            Event::Zero(page) => {
                self.figures.zero_pages += 1;
                self.ram.zero(page)?;
            }
            Event::Early(bytes) => self.early.extend_from_slice(bytes),
            Event::Command(Command::SwitchoverStart) => self.switchover_start = true,
            // Without a return path nothing else is sent that we would have to do something about.
            Event::Command(_) | Event::SectionEnd => {}
            Event::Package { .. } => {
                return Err(
                    StreamError::Damaged { what: "order (a package without post-copy)", at: 0 }.into()
                );
            }
            Event::Tail(bytes) => {
                if self.tail.len() + bytes.len() > DEVICE_BYTES_MAX {
                    let max = DEVICE_BYTES_MAX as u64;
                    return Err(StreamError::TooLarge { what: "bytes of device state", max }.into());
                }
                self.tail.extend_from_slice(bytes);
            }
        }
        Ok(())
    }

    /// What followed the end of RAM.
    pub(super) fn tail(&self) -> &[u8] {
        &self.tail
    }

    /// Everything but the pages, of a stream whose tail is whole.
    pub(super) fn state(&mut self) -> Result<DeviceState, QemuError> {
        self.ram.flush()?;
        let tail = split_tail(&self.tail)?;
        Ok(DeviceState {
            prefix: without_capabilities(&self.prefix),
            section: self.section,
            early: self.early.clone(),
            switchover_start: self.switchover_start,
            devices: tail.devices.to_vec(),
            description: tail.description.to_vec(),
            blocks: self.blocks.clone(),
            fingerprint: self.fingerprint.clone(),
        })
    }

    /// All of the state that is known once the first pages have come: no devices, no description.
    pub(super) fn outline(&self) -> DeviceState {
        DeviceState {
            prefix: without_capabilities(&self.prefix),
            section: self.section,
            early: self.early.clone(),
            blocks: self.blocks.clone(),
            fingerprint: self.fingerprint.clone(),
            ..DeviceState::default()
        }
    }

    /// The whole, once the stream has ended.
    pub(super) fn finish(self) -> Result<Taken, QemuError> {
        let tail = split_tail(&self.tail)?;
        let (devices, description) = (tail.devices.to_vec(), tail.description.to_vec());
        let (_, state, figures) = self.into_parts(devices)?;
        Ok((DeviceState { description, ..state }, ImageFormat::Raw, figures))
    }

    /// Memory with all that came so far, and the state with these device sections.
    pub(super) fn into_parts(
        mut self,
        devices: Vec<u8>,
    ) -> Result<(RamFile, DeviceState, CaptureFigures), QemuError> {
        self.ram.flush()?;
        let state = DeviceState {
            // The image has all pages, so whoever sends it decides anew.
            prefix: without_capabilities(&self.prefix),
            section: self.section,
            early: self.early,
            switchover_start: self.switchover_start,
            devices,
            description: Vec::new(),
            blocks: self.blocks,
            fingerprint: self.fingerprint,
        };
        Ok((self.ram, state, self.figures))
    }
}

/// A pre-copy stream does not tell which blocks stand on huge pages; the monitor does.
fn with_page_sizes(blocks: &[Block], fingerprint: &Fingerprint) -> Vec<Block> {
    let size =
        |id: &str| fingerprint.blocks.iter().find(|row| row.id == id).map_or(PAGE_BYTES, |row| row.page_size);
    blocks.iter().map(|block| Block { page_size: size(&block.id), ..block.clone() }).collect()
}
