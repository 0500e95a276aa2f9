//! Reading a stream as it comes.

use super::command::Command;
use super::configuration::{Configuration, configuration};
use super::cursor::{Cursor, lossy};
use super::early::early_end;
use super::error::StreamError;
use super::ram::{Block, BlockList, BlockPlan, Record};
use super::{
    EARLY_BYTES_MAX, RAM_VERSION, SECTION_COMMAND, SECTION_END, SECTION_EOF, SECTION_FOOTER, SECTION_FULL,
    SECTION_PART, SECTION_START,
};

/// A caller's buffer must take at least so many bytes: no item of a stream that is taken is longer.
pub const INPUT_BYTES_MIN: usize = 256 << 10;
/// Most bytes of magic and configuration.
const PREFIX_BYTES_MAX: usize = 16 << 10;

/// A piece of the stream. Pages are numbered through the image ([`Block::first_page`]).
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Magic and configuration have come; `prefix` is all of it, to be sent on as it is.
    Configuration {
        /// What it says.
        configuration: Configuration,
        /// As it stands in the stream.
        prefix: &'a [u8],
    },
    /// The RAM section has begun.
    Blocks {
        /// Its section id, needed to write on under it.
        section: u32,
        /// All blocks.
        blocks: &'a [Block],
    },
    /// A page's bytes.
    Page(u32, &'a [u8; 4096]),
    /// A page of zeros.
    Zero(u32),
    /// A section of RAM has ended.
    SectionEnd,
    /// Device sections between RAM's start and its first pages, whole.
    Early(&'a [u8]),
    /// A command, but for packages.
    Command(Command),
    /// A piece of a package; its pieces follow each other.
    Package {
        /// The piece.
        bytes: &'a [u8],
        /// Whether it is the last one.
        last: bool,
    },
    /// A piece of what follows the end of RAM, up to the end of the stream; see [`super::split_tail`].
    Tail(&'a [u8]),
}

#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum State {
    Prefix,
    /// Between sections; pages have come or not.
    Sections,
    /// In a RAM section; whether it is the END section.
    Ram {
        end: bool,
    },
    /// Behind a section's end mark, before its footer.
    Footer {
        end: bool,
    },
    Package {
        left: u32,
    },
    Tail,
}

/// Takes a stream's bytes and gives events. Holds the block list, and nothing else of the stream.
///
/// Refuses what cannot be carried with a named cause as soon as it is seen. Sections of devices are told apart by
/// what frames them, as they have no lengths themselves.
#[derive(Debug)]
pub struct Parser {
    state: State,
    list: BlockList,
    section: Option<u32>,
    /// A PART or END section of RAM has come.
    pages_begun: bool,
    at: u64,
}

impl Parser {
    /// For a stream from a source with these settings.
    #[must_use]
    pub fn new(plan: BlockPlan) -> Self {
        Self { state: State::Prefix, list: BlockList::new(plan), section: None, pages_begun: false, at: 0 }
    }

    /// Takes as many whole items as `input` begins with, and returns how many bytes they were. The caller keeps the
    /// rest and puts what comes next behind it. Does nothing less than all it can: 0 means that more must come.
    ///
    /// # Errors
    ///
    /// [`StreamError`], or what `sink` returns. The stream cannot be read on then.
    pub fn feed<E: From<StreamError>>(
        &mut self,
        input: &[u8],
        mut sink: impl FnMut(Event<'_>) -> Result<(), E>,
    ) -> Result<usize, E> {
        let mut used = 0;
        loop {
            let rest = &input[used..];
            let step = self.step(rest, &mut sink)?;
            if step == 0 {
                if rest.len() >= INPUT_BYTES_MIN {
                    let max = INPUT_BYTES_MIN as u64;
                    return Err(StreamError::TooLarge { what: "bytes of an item", max }.into());
                }
                return Ok(used);
            }
            used += step;
            self.at += step as u64;
        }
    }

    /// Whether the stream may end here: behind the end of RAM.
    #[must_use]
    pub fn in_tail(&self) -> bool {
        self.state == State::Tail
    }

    /// Bytes taken so far.
    #[must_use]
    pub fn at(&self) -> u64 {
        self.at
    }

    /// Why the stream must not end here.
    #[must_use]
    pub fn cut_off(&self) -> StreamError {
        let within = match self.state {
            State::Prefix => "head",
            State::Sections if self.section.is_none() => "head",
            State::Sections | State::Ram { .. } | State::Footer { .. } => "memory",
            State::Package { .. } => "package",
            State::Tail => "device state",
        };
        StreamError::CutOff { at: self.at, within }
    }

    /// One item: its length, or 0 if it is not whole yet.
    fn step<E: From<StreamError>>(
        &mut self,
        input: &[u8],
        sink: &mut impl FnMut(Event<'_>) -> Result<(), E>,
    ) -> Result<usize, E> {
        if input.is_empty() {
            return Ok(0);
        }
        match self.state {
            State::Prefix => self.prefix(input, sink),
            State::Sections => self.section(input, sink),
            State::Ram { end } => self.ram(input, end, sink),
            State::Footer { end } => Ok(self.footer(input, end)?),
            State::Package { left } => {
                let len = input.len().min(left as usize);
                sink(Event::Package { bytes: &input[..len], last: len == left as usize })?;
                let left = left - u32::try_from(len).expect("at most what is left");
                self.state = if left == 0 { State::Sections } else { State::Package { left } };
                Ok(len)
            }
            State::Tail => {
                sink(Event::Tail(input))?;
                Ok(input.len())
            }
        }
    }

    fn prefix<E: From<StreamError>>(
        &mut self,
        input: &[u8],
        sink: &mut impl FnMut(Event<'_>) -> Result<(), E>,
    ) -> Result<usize, E> {
        let shown = &input[..input.len().min(PREFIX_BYTES_MAX)];
        let mut cursor = Cursor::new(shown);
        let Some(configuration) = configuration(&mut cursor)? else {
            if input.len() >= PREFIX_BYTES_MAX {
                let max = PREFIX_BYTES_MAX as u64;
                return Err(StreamError::TooLarge { what: "bytes of configuration", max }.into());
            }
            return Ok(0);
        };
        self.list.addresses = configuration.capabilities.iter().any(|name| name == "x-ignore-shared");
        let used = cursor.at();
        sink(Event::Configuration { configuration, prefix: &input[..used] })?;
        self.state = State::Sections;
        Ok(used)
    }

    fn section<E: From<StreamError>>(
        &mut self,
        input: &[u8],
        sink: &mut impl FnMut(Event<'_>) -> Result<(), E>,
    ) -> Result<usize, E> {
        let mut cursor = Cursor::new(input);
        let Some(kind) = cursor.u8() else { return Ok(0) };
        match (kind, self.section) {
            (SECTION_START, _) => Ok(self.start(&mut cursor)?),
            (SECTION_PART | SECTION_END, Some(ram)) => {
                let Some(section) = cursor.u32() else { return Ok(0) };
                if section != ram {
                    return Err(self.damaged("section id").into());
                }
                self.pages_begun = true;
                self.state = State::Ram { end: kind == SECTION_END };
                Ok(cursor.at())
            }
            (SECTION_COMMAND, _) => self.command(&mut cursor, sink),
            (SECTION_FULL, Some(ram)) if !self.pages_begun => match early_end(input, ram) {
                Some(len) => {
                    sink(Event::Early(&input[..len]))?;
                    Ok(len)
                }
                None if input.len() > EARLY_BYTES_MAX => {
                    let max = EARLY_BYTES_MAX as u64;
                    Err(StreamError::TooLarge { what: "bytes of early device state", max }.into())
                }
                None => Ok(0),
            },
            // A background snapshot has no END of RAM: the first device after the pages begins the tail.
            (SECTION_FULL | SECTION_EOF, Some(_)) if self.pages_begun => {
                self.state = State::Tail;
                sink(Event::Tail(input))?;
                Ok(input.len())
            }
            (SECTION_FULL, _) => {
                let id = cursor.u32().and_then(|_| cursor.counted());
                let Some(id) = id else { return Ok(0) };
                Err(StreamError::Iterable { name: lossy(id) }.into())
            }
            _ => Err(self.damaged("section type").into()),
        }
    }

    fn start(&mut self, cursor: &mut Cursor<'_>) -> Result<usize, StreamError> {
        let Some(section) = cursor.u32() else { return Ok(0) };
        let Some(id) = cursor.counted() else { return Ok(0) };
        // Others that iterate (VFIO, dirty bitmaps, …) interleave with RAM in ways only they know.
        if id != b"ram" {
            return Err(StreamError::Iterable { name: lossy(id) });
        }
        let (Some(instance), Some(version)) = (cursor.u32(), cursor.u32()) else { return Ok(0) };
        if version != RAM_VERSION {
            return Err(StreamError::RamVersion { found: version });
        }
        if instance != 0 || self.section.is_some() {
            return Err(self.damaged("start of RAM"));
        }
        self.section = Some(section);
        self.state = State::Ram { end: false };
        Ok(cursor.at())
    }

    fn command<E: From<StreamError>>(
        &mut self,
        cursor: &mut Cursor<'_>,
        sink: &mut impl FnMut(Event<'_>) -> Result<(), E>,
    ) -> Result<usize, E> {
        let (Some(number), Some(len)) = (cursor.u16(), cursor.u16()) else { return Ok(0) };
        let Some(data) = cursor.take(len.into()) else { return Ok(0) };
        let unknown = StreamError::Command { command: number, len: data.len(), at: self.at };
        match Command::decode(number, data).ok_or(unknown)? {
            Command::Packaged(len) => {
                if len as usize > super::DEVICE_BYTES_MAX || len == 0 {
                    let max = super::DEVICE_BYTES_MAX as u64;
                    return Err(StreamError::TooLarge { what: "bytes of a package", max }.into());
                }
                self.state = State::Package { left: len };
            }
            command => sink(Event::Command(command))?,
        }
        Ok(cursor.at())
    }

    fn ram<E: From<StreamError>>(
        &mut self,
        input: &[u8],
        end: bool,
        sink: &mut impl FnMut(Event<'_>) -> Result<(), E>,
    ) -> Result<usize, E> {
        let mut cursor = Cursor::new(input);
        if self.list.is_open() {
            if self.list.entry(&mut cursor)?.is_none() {
                return Ok(0);
            }
            if !self.list.is_open() {
                let section = self.section.expect("a RAM section has begun");
                sink(Event::Blocks { section, blocks: &self.list.blocks })?;
            }
            return Ok(cursor.at());
        }
        match self.list.record(&mut cursor, self.at)? {
            None => return Ok(0),
            Some(Record::MemSize) if self.pages_begun => {
                return Err(self.damaged("list of RAM blocks").into());
            }
            Some(Record::MemSize) => {}
            Some(Record::Page(page, bytes)) => sink(Event::Page(page, bytes))?,
            Some(Record::Zero(page)) => sink(Event::Zero(page))?,
            Some(Record::EndOfSection) => {
                self.state = State::Footer { end };
                sink(Event::SectionEnd)?;
            }
        }
        Ok(cursor.at())
    }

    fn footer(&mut self, input: &[u8], end: bool) -> Result<usize, StreamError> {
        let mut cursor = Cursor::new(input);
        let (Some(mark), Some(section)) = (cursor.u8(), cursor.u32()) else { return Ok(0) };
        if mark != SECTION_FOOTER || Some(section) != self.section {
            return Err(self.damaged("footer of section ram"));
        }
        self.state = if end { State::Tail } else { State::Sections };
        Ok(cursor.at())
    }

    fn damaged(&self, what: &'static str) -> StreamError {
        StreamError::Damaged { what, at: self.at }
    }
}
