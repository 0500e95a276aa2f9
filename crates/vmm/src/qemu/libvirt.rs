//! libvirt's saved images (`virsh save`, `virsh restore`): a header, the domain's XML, a cookie, then QEMU's stream.
//!
//! ```text
//! 0   magic[16] "LibvirtQemudSave" ("LibvirtQemudPart" until it is complete)
//! 16  u32 version = 2 · u32 data_len · u32 was_running · u32 format · u32 cookie_offset · u32 unused[14]      (little-endian here)
//! 92  data_len bytes: XML, NUL; at cookie_offset the cookie, NUL; zeros (64 KiB at first, room for edited XML)
//! 92 + data_len   the stream: format 0 raw; 6 sparse, which is mapped-ram with offsets from the file's start
//! ```
//!
//! Source: libvirt 11.3, `src/qemu/qemu_saveimage.{h,c}`. Compressed images (formats 1 to 5) are refused by name. The XML is
//! opaque here. docs/qemu.md tells how a domain is cloned with these.

use super::capture::{RamFile, import_mapped_ram, import_stream};
use super::error::QemuError;
use super::state::DeviceState;
use super::stream::{BlockPlan, Command, RamWriter, write_command, write_description, write_end};
use pages::{PAGE_SIZE, PageSource, Pfn};
use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes of the header.
pub const HEADER_BYTES: usize = 92;
/// Most bytes of XML, cookie and padding that are taken; libvirt writes some 100 KB.
pub const DATA_BYTES_MAX: u32 = 16 << 20;
const MAGIC: &[u8; 16] = b"LibvirtQemudSave";
const PARTIAL: &[u8; 16] = b"LibvirtQemudPart";
const VERSION: u32 = 2;
/// Room that libvirt leaves for longer XML.
const PADDING_BYTES: usize = 64 << 10;
/// Pages in one section of RAM.
const PAGES_PER_SECTION: usize = 1024;

/// How the stream stands in the file.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum SaveFormat {
    /// As QEMU sends it.
    Raw,
    /// mapped-ram.
    Sparse,
}

/// Why a file is no saved image that can be used.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum SaveError {
    /// Another file.
    #[error("not an image saved by libvirt")]
    NotSaved,
    /// libvirt has not finished writing it, or never will.
    #[error("libvirt has not finished writing this image")]
    Partial,
    /// A newer libvirt, or a host of the other byte order.
    #[error("version {0} of libvirt's images is not known (or it is from a host of the other byte order)")]
    Version(u32),
    /// A compressed one.
    #[error("the image is compressed ({0}): save it with --image-format raw or sparse, or decompress it")]
    Compressed(&'static str),
    /// A field that does not fit.
    #[error("the image's {0} is damaged")]
    Damaged(&'static str),
    /// XML for which there is no room.
    #[error("XML and cookie have {needs} bytes, and the image has room for {room}")]
    NoRoom {
        /// Bytes of both with their NULs.
        needs: usize,
        /// `data_len`.
        room: usize,
    },
}

/// What stands in front of the stream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SaveHead {
    /// Whether a restored domain is to run.
    pub was_running: bool,
    /// How the stream stands in the file.
    pub format: SaveFormat,
    /// The domain's definition; no NUL.
    pub xml: String,
    /// libvirt's own, XML too; no NUL.
    pub cookie: Option<String>,
    /// Bytes between header and stream.
    pub data_len: u32,
}

impl SaveHead {
    /// A new head with libvirt's own padding.
    ///
    /// # Errors
    ///
    /// [`SaveError::Damaged`] for texts with a NUL, [`SaveError::NoRoom`] for more than [`DATA_BYTES_MAX`].
    pub fn new(xml: String, cookie: Option<String>, was_running: bool) -> Result<Self, SaveError> {
        let len = xml.len() + 1 + cookie.as_ref().map_or(0, |cookie| cookie.len() + 1) + PADDING_BYTES;
        let room = DATA_BYTES_MAX as usize;
        let data_len = u32::try_from(len).ok().filter(|len| *len <= DATA_BYTES_MAX);
        let data_len = data_len.ok_or(SaveError::NoRoom { needs: len, room })?;
        let head = Self { was_running, format: SaveFormat::Raw, xml, cookie, data_len };
        head.encode(true).map(|_| head)
    }

    /// Where the stream begins in the file, in bytes.
    #[must_use]
    pub fn stream_offset(&self) -> u64 {
        HEADER_BYTES as u64 + u64::from(self.data_len)
    }

    /// Header and data as libvirt writes them, up to the stream; `complete`: with the magic of a finished image.
    ///
    /// # Errors
    ///
    /// [`SaveError::NoRoom`], [`SaveError::Damaged`] for texts with a NUL.
    ///
    /// # Panics
    ///
    /// Never: what is in the room has an offset of 32 bits.
    pub fn encode(&self, complete: bool) -> Result<Vec<u8>, SaveError> {
        for (text, what) in [(Some(&self.xml), "XML"), (self.cookie.as_ref(), "cookie")] {
            if text.is_some_and(|text| text.contains('\0')) {
                return Err(SaveError::Damaged(what));
            }
        }
        let mut data = self.xml.clone().into_bytes();
        data.push(0);
        let offset = if self.cookie.is_some() { data.len() } else { 0 };
        if let Some(cookie) = &self.cookie {
            data.extend_from_slice(cookie.as_bytes());
            data.push(0);
        }
        let room = self.data_len as usize;
        if data.len() > room || self.data_len > DATA_BYTES_MAX {
            return Err(SaveError::NoRoom { needs: data.len(), room: room.min(DATA_BYTES_MAX as usize) });
        }
        data.resize(room, 0);
        let format = match self.format {
            SaveFormat::Raw => 0u32,
            SaveFormat::Sparse => 6,
        };
        let offset = u32::try_from(offset).expect("below data_len");
        let fields = [VERSION, self.data_len, self.was_running.into(), format, offset];
        let mut out = if complete { MAGIC } else { PARTIAL }.to_vec();
        fields.iter().for_each(|field| out.extend(field.to_le_bytes()));
        out.resize(HEADER_BYTES, 0);
        out.extend(data);
        Ok(out)
    }

    /// Reads the beginning of a file; `None`: more bytes are needed than were given.
    ///
    /// # Errors
    ///
    /// [`SaveError`] for what cannot be used, named.
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>, SaveError> {
        let Some((magic, rest)) = bytes.split_first_chunk::<16>() else { return Ok(None) };
        match magic {
            MAGIC => {}
            PARTIAL => return Err(SaveError::Partial),
            _ => return Err(SaveError::NotSaved),
        }
        let Some((header, data)) = rest.split_first_chunk::<{ HEADER_BYTES - 16 }>() else { return Ok(None) };
        let (fields, _) = header.as_chunks::<4>();
        let [version, data_len, running, format, cookie_offset, ..] = fields else { return Ok(None) };
        let read = |field: &[u8; 4]| u32::from_le_bytes(*field);
        if read(version) != VERSION {
            return Err(SaveError::Version(read(version)));
        }
        let format = match read(format) {
            0 => SaveFormat::Raw,
            6 => SaveFormat::Sparse,
            known @ 1..=5 => {
                return Err(SaveError::Compressed(
                    ["gzip", "bzip2", "xz", "lzop", "zstd"][known as usize - 1],
                ));
            }
            _ => return Err(SaveError::Damaged("format")),
        };
        let data_len = read(data_len);
        if data_len == 0 || data_len > DATA_BYTES_MAX {
            return Err(SaveError::Damaged("length of XML and cookie"));
        }
        let Some(data) = data.get(..data_len as usize) else { return Ok(None) };
        let cookie_offset = read(cookie_offset) as usize;
        if cookie_offset > data.len() {
            return Err(SaveError::Damaged("offset of the cookie"));
        }
        let cookie = if cookie_offset == 0 { None } else { Some(text(&data[cookie_offset..], "cookie")?) };
        let xml = text(data, "XML")?;
        Ok(Some(Self { was_running: read(running) != 0, format, xml, cookie, data_len }))
    }
}

/// Up to the first NUL, which must be there.
fn text(bytes: &[u8], what: &'static str) -> Result<String, SaveError> {
    let len = bytes.iter().position(|byte| *byte == 0).ok_or(SaveError::Damaged(what))?;
    String::from_utf8(bytes[..len].to_vec()).map_err(|_| SaveError::Damaged(what))
}

/// Reads the head of a saved image.
///
/// # Errors
///
/// [`QemuError::Saved`], [`QemuError::Io`].
///
/// # Panics
///
/// Never: lengths are bounded before.
pub fn read_head(file: &File, path: &Path) -> Result<SaveHead, QemuError> {
    let len = file.metadata().map_err(QemuError::io("inspect", path))?.len();
    let most = HEADER_BYTES as u64 + u64::from(DATA_BYTES_MAX);
    let mut bytes = vec![0; usize::try_from(len.min(most)).expect("17 MB at most")];
    file.read_exact_at(&mut bytes, 0).map_err(QemuError::io("read", path))?;
    let saved = |source| QemuError::Saved { path: path.to_owned(), source };
    SaveHead::decode(&bytes).and_then(|head| head.ok_or(SaveError::Damaged("length"))).map_err(saved)
}

/// Reads a saved image: its head, its memory into a new image file (RAM blocks behind each other), and its device state.
/// What the image does not tell (QEMU's version, the CPU) is empty in the fingerprint, and not compared.
///
/// # Errors
///
/// [`QemuError::Saved`] for images of other kinds, [`QemuError::Stream`] for damaged ones, [`QemuError::Io`].
pub fn read(path: &Path, image: &Path) -> Result<(SaveHead, DeviceState), QemuError> {
    let mut file = File::open(path).map_err(QemuError::io("open", path))?;
    let head = read_head(&file, path)?;
    let out = File::options().read(true).write(true).create_new(true).open(image);
    let ram = RamFile::new(out.map_err(QemuError::io("make", image))?, image);
    let state = match head.format {
        SaveFormat::Raw => {
            file.seek(SeekFrom::Start(head.stream_offset())).map_err(QemuError::io("read", path))?;
            import_stream(file, path, ram)
        }
        SaveFormat::Sparse => import_mapped_ram(&file, path, head.stream_offset(), ram),
    };
    match state {
        Ok(state) => Ok((head, state)),
        Err(error) => {
            let _ = std::fs::remove_file(image);
            Err(error)
        }
    }
}

/// Writes a saved image, raw, that `virsh restore` takes. It carries the magic of a finished one only when all of it is on
/// disk.
///
/// # Errors
///
/// [`QemuError::Saved`] if the head does not fit, [`QemuError::Io`].
///
/// # Panics
///
/// If `pages` has fewer pages than the state's blocks.
pub fn write(
    path: &Path,
    head: &SaveHead,
    pages: &dyn PageSource,
    state: &DeviceState,
) -> Result<(), QemuError> {
    let saved = |source| QemuError::Saved { path: path.to_owned(), source };
    let head = SaveHead { format: SaveFormat::Raw, ..head.clone() };
    let file =
        File::options().write(true).create_new(true).open(path).map_err(QemuError::io("make", path))?;
    let failed = || QemuError::io("write", path);
    let mut out = BufWriter::with_capacity(1 << 20, &file);
    out.write_all(&head.encode(false).map_err(saved)?).map_err(failed())?;
    let mut writer = RamWriter::new(state.section, &state.blocks);
    let mut piece = state.prefix.clone();
    writer.start(&mut piece, &BlockPlan::default(), false);
    piece.extend_from_slice(&state.early);
    let all: Vec<u32> = state.blocks.iter().flat_map(|block| block.page_range()).collect();
    for numbers in all.chunks(PAGES_PER_SECTION) {
        writer.part(&mut piece);
        for number in numbers {
            match pages.page(Pfn(*number)) {
                bytes if *bytes == [0; PAGE_SIZE] => writer.zero(&mut piece, *number),
                bytes => writer.page(&mut piece, *number, bytes),
            }
        }
        writer.close(&mut piece);
        out.write_all(&piece).map_err(failed())?;
        piece.clear();
    }
    if state.switchover_start {
        write_command(&mut piece, &Command::SwitchoverStart);
    }
    writer.end(&mut piece);
    writer.close(&mut piece);
    piece.extend_from_slice(&state.devices);
    write_end(&mut piece);
    write_description(&mut piece, &state.description);
    out.write_all(&piece).map_err(failed())?;
    out.flush().map_err(failed())?;
    drop(out);
    file.sync_all().map_err(failed())?;
    file.write_all_at(MAGIC, 0).map_err(failed())?;
    file.sync_all().map_err(failed())
}
