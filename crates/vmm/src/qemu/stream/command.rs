//! Commands from source to destination (`enum qemu_vm_cmd` of `migration/savevm.c`).

use super::cursor::{Cursor, name};

/// A stretch of a block, in bytes; both are multiples of the block's page size.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct PageRange {
    /// From the block's first byte.
    pub start: u64,
    /// Not zero.
    pub len: u64,
}

/// A command section.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Command {
    /// The destination shall answer from now on.
    OpenReturnPath,
    /// The destination shall answer with this number.
    Ping(u32),
    /// Post-copy may follow. `None`: without RAM.
    PostcopyAdvise(Option<PostcopyPages>),
    /// From here on pages are placed at faults.
    PostcopyListen,
    /// The destination's vCPUs shall start.
    PostcopyRun,
    /// What the destination has of these stretches is stale.
    RamDiscard {
        /// The block.
        block: String,
        /// At most 12 in QEMU's own streams; at most 4000 here, as many as the 64 KiB of a command take.
        ranges: Vec<PageRange>,
    },
    /// So many bytes of a stream in the stream follow.
    Packaged(u32),
    /// After a recovered link: go on.
    PostcopyResume,
    /// The destination shall tell which pages of this block it has.
    ReceivedBitmap(String),
    /// The source's vCPUs are stopped (machine types from 10.0 on).
    SwitchoverStart,
}

/// What must be equal at both ends for post-copy.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct PostcopyPages {
    /// The page sizes of all blocks, or-ed together.
    pub block_pages: u64,
    /// 4096.
    pub target_page: u64,
}

impl Command {
    /// The command's number and data. Ranges beyond the 4000th of a discard are left out: the caller cuts them up.
    pub(super) fn encode(&self) -> (u16, Vec<u8>) {
        match self {
            Self::OpenReturnPath => (1, Vec::new()),
            Self::Ping(number) => (2, number.to_be_bytes().to_vec()),
            Self::PostcopyAdvise(None) => (3, Vec::new()),
            Self::PostcopyAdvise(Some(pages)) => {
                (3, [pages.block_pages.to_be_bytes(), pages.target_page.to_be_bytes()].concat())
            }
            Self::PostcopyListen => (4, Vec::new()),
            Self::PostcopyRun => (5, Vec::new()),
            Self::RamDiscard { block, ranges } => {
                let mut data = vec![0];
                data.extend(counted(block));
                data.push(0);
                for range in ranges.iter().take(RANGES_MAX) {
                    data.extend(range.start.to_be_bytes());
                    data.extend(range.len.to_be_bytes());
                }
                (6, data)
            }
            Self::Packaged(len) => (7, len.to_be_bytes().to_vec()),
            Self::PostcopyResume => (9, Vec::new()),
            Self::ReceivedBitmap(block) => (10, counted(block)),
            Self::SwitchoverStart => (11, Vec::new()),
        }
    }

    /// `None` for a number or data that is not known.
    pub(super) fn decode(number: u16, data: &[u8]) -> Option<Self> {
        let mut cursor = Cursor::new(data);
        let command = match number {
            1 => Self::OpenReturnPath,
            2 => Self::Ping(cursor.u32()?),
            3 if data.is_empty() => Self::PostcopyAdvise(None),
            3 => {
                let pages = PostcopyPages { block_pages: cursor.u64()?, target_page: cursor.u64()? };
                Self::PostcopyAdvise(Some(pages))
            }
            4 => Self::PostcopyListen,
            5 => Self::PostcopyRun,
            6 => discard(&mut cursor)?,
            7 => Self::Packaged(cursor.u32()?),
            9 => Self::PostcopyResume,
            10 => Self::ReceivedBitmap(name(cursor.counted()?)?.to_owned()),
            11 => Self::SwitchoverStart,
            _ => return None,
        };
        cursor.rest().is_empty().then_some(command)
    }
}

/// As many as the 64 KiB of a command's data take.
pub(super) const RANGES_MAX: usize = 4000;

fn discard(cursor: &mut Cursor<'_>) -> Option<Command> {
    (cursor.u8()? == 0).then_some(())?;
    let block = name(cursor.counted()?)?.to_owned();
    (cursor.u8()? == 0).then_some(())?;
    let mut ranges = Vec::new();
    while !cursor.rest().is_empty() {
        let range = PageRange { start: cursor.u64()?, len: cursor.u64()? };
        // No sum of a range overflows from here on.
        (range.len > 0 && range.start.checked_add(range.len).is_some()).then_some(())?;
        ranges.push(range);
    }
    Some(Command::RamDiscard { block, ranges })
}

/// A name with its length in front. Names come from [`name`] and [`super::Block`], which are at most 255 bytes.
pub(super) fn counted(text: &str) -> Vec<u8> {
    let len = u8::try_from(text.len()).expect("names of blocks are at most 255 bytes");
    [&[len], text.as_bytes()].concat()
}
