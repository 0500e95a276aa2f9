//! The journal of one transfer: what the images hold, as far as that is certain.
//!
//! ```text
//! 0    8   magic
//! 8    u32 version
//! 12   u32 length of the body
//! 16   u64 checksum of the body
//! 24   u64 durable mark: bytes of this journal that may be trusted after a restart of the machine   } in place
//! 32   u64 checksum of the mark                                                                     }
//! 40       body: boot id, transfer, table of VMs
//! ...      a slot of 40 bytes for each VM: which file is its image                                    in place
//! ...      records (see `record`)
//! ```
//!
//! All integers are little-endian. A journal is replaced as a whole (rename) when an intake begins, and then only
//! appended to, save for the fields marked *in place*, each smaller than a disk sector and checked by itself.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use pages::VmId;

use super::disk::StoreFile;
use super::record::{self, Digest, Run, checksum};

const MAGIC: [u8; 8] = *b"VMSCSTOR";
const VERSION: u32 = 1;
const MARK_AT: u64 = 24;
const BODY_AT: usize = 40;
const BODY_BYTES_MAX: usize = 32 << 20;
const SLOT_BYTES: usize = 40;

/// One VM of a transfer on this host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct VmEntry {
    pub(super) id: VmId,
    pub(super) name: String,
    pub(super) file_len: u64,
    pub(super) page_count: u32,
}

/// What a journal belongs to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Header {
    pub(super) boot_id: String,
    pub(super) transfer: String,
    /// Ascending by id.
    pub(super) vms: Vec<VmEntry>,
}

/// Which file holds a VM's pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Image {
    /// None of this transfer's.
    None,
    /// The unfinished file of that inode.
    Part { ino: u64 },
    /// The finished file of that inode; its time of modification shows that nobody wrote to it since.
    Finished { ino: u64, mtime_s: i64, mtime_ns: i64 },
}

/// A journal found on disk.
pub(super) struct Found {
    pub(super) header: Header,
    pub(super) images: Vec<Image>,
    /// Bytes trusted after a restart of the machine.
    pub(super) durable: u64,
    records_at: u64,
    file: File,
}

/// A journal being written.
pub(super) struct Journal {
    file: StoreFile,
    slots_at: u64,
    records_at: u64,
    /// Changes under the intake's lock only.
    len: AtomicU64,
}

impl Journal {
    /// Writes the head of a new journal; no slot names an image yet.
    pub(super) fn create(file: StoreFile, header: &Header, images: &[Image]) -> io::Result<Self> {
        let body = encode_body(header);
        let mut head = Vec::with_capacity(BODY_AT + body.len() + images.len() * SLOT_BYTES);
        head.extend_from_slice(&MAGIC);
        head.extend_from_slice(&VERSION.to_le_bytes());
        head.extend_from_slice(&u32::try_from(body.len()).map_err(io::Error::other)?.to_le_bytes());
        head.extend_from_slice(&checksum(&body).to_le_bytes());
        head.extend_from_slice(&encode_mark(0));
        head.extend_from_slice(&body);
        let slots_at = head.len() as u64;
        for image in images {
            head.extend_from_slice(&encode_slot(*image));
        }
        file.write_all_at(&head, 0)?;
        let records_at = head.len() as u64;
        Ok(Self { file, slots_at, records_at, len: AtomicU64::new(records_at) })
    }

    /// Bytes written so far.
    pub(super) fn len(&self) -> u64 {
        self.len.load(Ordering::Relaxed)
    }

    pub(super) fn file(&self) -> &StoreFile {
        &self.file
    }

    /// Appends an encoded record and returns where it stands.
    pub(super) fn append(&self, encoded: &[u8]) -> io::Result<u64> {
        let at = self.len();
        if let Err(error) = self.file.write_all_at(encoded, at) {
            // What was written of it must not lie under the next, perhaps shorter record. If even this fails the
            // checksums still tell the torn record from a whole one.
            let _ = self.file.set_len(at);
            return Err(error);
        }
        self.len.store(at + encoded.len() as u64, Ordering::Relaxed);
        Ok(at)
    }

    /// Makes the record at `offset` dead.
    pub(super) fn kill(&self, offset: u64) -> io::Result<()> {
        self.file.write_all_at(&record::dead_state(), offset)
    }

    /// Names a VM's image.
    pub(super) fn set_image(&self, slot: usize, image: Image) -> io::Result<()> {
        self.file.write_all_at(&encode_slot(image), self.slots_at + (slot * SLOT_BYTES) as u64)
    }

    /// Sets how much of the journal may be trusted after a restart of the machine.
    pub(super) fn set_durable(&self, len: u64) -> io::Result<()> {
        self.file.write_all_at(&encode_mark(len), MARK_AT)
    }

    /// Drops all records; the images stay this transfer's own. Nothing may be appended after.
    pub(super) fn forget(&self) -> io::Result<()> {
        self.file.set_len(self.records_at)?;
        self.set_durable(0)?;
        self.file.sync_data()
    }
}

impl Found {
    /// Opens a journal; `Ok(None)` if there is none, `Err(Ok(reason))` if what is there is no journal that this
    /// version reads, `Err(Err(_))` if the system failed.
    pub(super) fn open(path: &Path) -> Result<Option<Self>, Result<&'static str, io::Error>> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Err(error)),
        };
        let mut input = BufReader::new(&file);
        let mut take = |len: usize| {
            let mut bytes = Vec::new();
            input.by_ref().take(len as u64).read_to_end(&mut bytes).map_err(Err)?;
            if bytes.len() == len { Ok(bytes) } else { Err(Ok("it is cut off in its header")) }
        };
        let head = take(BODY_AT)?;
        if head[..8] != MAGIC {
            return Err(Ok("it is not a journal"));
        }
        if u32_at(&head, 8) != VERSION {
            return Err(Ok("it is of another version"));
        }
        let body_len = u32_at(&head, 12) as usize;
        if body_len > BODY_BYTES_MAX {
            return Err(Ok("its header is damaged"));
        }
        let body = take(body_len)?;
        if checksum(&body) != u64_at(&head, 16) {
            return Err(Ok("its header is damaged"));
        }
        let header = decode_body(&body).ok_or(Ok("its header is damaged"))?;
        let slots = take(header.vms.len() * SLOT_BYTES)?;
        let images = slots.chunks_exact(SLOT_BYTES).map(decode_slot).collect();
        let durable = if encode_mark(u64_at(&head, 24))[..] == head[24..40] { u64_at(&head, 24) } else { 0 };
        let records_at = (BODY_AT + body.len() + slots.len()) as u64;
        drop(input);
        Ok(Some(Self { header, images, durable, records_at, file }))
    }

    /// Calls `f` with each record up to the first damaged one: its end in the journal, its bytes, itself.
    pub(super) fn records(
        &self,
        mut f: impl FnMut(u64, &[u8], record::Record) -> io::Result<()>,
    ) -> io::Result<()> {
        let pages: Vec<u32> = self.header.vms.iter().map(|vm| vm.page_count).collect();
        let mut file = &self.file;
        file.seek(SeekFrom::Start(self.records_at))?;
        let mut input = BufReader::with_capacity(256 << 10, file);
        let (mut raw, mut end) = (Vec::new(), self.records_at);
        while let Some(found) = record::read(&mut input, &mut raw, &pages)? {
            end += raw.len() as u64;
            f(end, &raw, found)?;
        }
        Ok(())
    }
}

/// Makes another transfer's journal forget its images of the VMs in `names`: their files are about to be taken.
/// Returns whether it had any.
pub(super) fn disown(found: &Found, file: &StoreFile, names: impl Fn(&str) -> bool) -> io::Result<bool> {
    let slots_at = found.records_at - (found.images.len() * SLOT_BYTES) as u64;
    let mut any = false;
    for (slot, (vm, image)) in found.header.vms.iter().zip(&found.images).enumerate() {
        if *image != Image::None && names(&vm.name) {
            file.write_all_at(&encode_slot(Image::None), slots_at + (slot * SLOT_BYTES) as u64)?;
            any = true;
        }
    }
    if any {
        file.sync_data()?;
    }
    Ok(any)
}

/// Encodes a live record of `runs` into `out`.
pub(super) fn encode_record(digest: &Digest, runs: &[Run], out: &mut Vec<u8>) {
    record::encode(digest, runs, out);
}

fn encode_mark(durable: u64) -> [u8; 16] {
    let mut mark = [0; 16];
    mark[..8].copy_from_slice(&durable.to_le_bytes());
    let check = checksum(&mark[..8]);
    mark[8..].copy_from_slice(&check.to_le_bytes());
    mark
}

fn encode_slot(image: Image) -> [u8; SLOT_BYTES] {
    let (state, ino, mtime_s, mtime_ns) = match image {
        Image::None => (0u64, 0, 0, 0),
        Image::Part { ino } => (1, ino, 0, 0),
        Image::Finished { ino, mtime_s, mtime_ns } => (2, ino, mtime_s, mtime_ns),
    };
    let mut slot = [0; SLOT_BYTES];
    slot[..8].copy_from_slice(&state.to_le_bytes());
    slot[8..16].copy_from_slice(&ino.to_le_bytes());
    slot[16..24].copy_from_slice(&mtime_s.to_le_bytes());
    slot[24..32].copy_from_slice(&mtime_ns.to_le_bytes());
    let check = checksum(&slot[..32]);
    slot[32..].copy_from_slice(&check.to_le_bytes());
    slot
}

/// A slot that is damaged names no image.
fn decode_slot(slot: &[u8]) -> Image {
    if checksum(&slot[..32]) != u64_at(slot, 32) {
        return Image::None;
    }
    let signed = |at| i64::from_le_bytes(u64_at(slot, at).to_le_bytes());
    match u64_at(slot, 0) {
        1 => Image::Part { ino: u64_at(slot, 8) },
        2 => Image::Finished { ino: u64_at(slot, 8), mtime_s: signed(16), mtime_ns: signed(24) },
        _ => Image::None,
    }
}

fn encode_body(header: &Header) -> Vec<u8> {
    let mut body = Vec::new();
    let put_str = |body: &mut Vec<u8>, text: &str| {
        body.extend_from_slice(
            &u16::try_from(text.len()).expect("names are at most 200 bytes").to_le_bytes(),
        );
        body.extend_from_slice(text.as_bytes());
    };
    put_str(&mut body, &header.boot_id);
    put_str(&mut body, &header.transfer);
    let count = u32::try_from(header.vms.len()).expect("VM ids are 16-bit and distinct");
    body.extend_from_slice(&count.to_le_bytes());
    for vm in &header.vms {
        body.extend_from_slice(&vm.id.0.to_le_bytes());
        put_str(&mut body, &vm.name);
        body.extend_from_slice(&vm.file_len.to_le_bytes());
        body.extend_from_slice(&vm.page_count.to_le_bytes());
    }
    body
}

fn decode_body(mut body: &[u8]) -> Option<Header> {
    fn take<const N: usize>(body: &mut &[u8]) -> Option<[u8; N]> {
        let (head, tail) = body.split_first_chunk::<N>()?;
        *body = tail;
        Some(*head)
    }
    fn take_str(body: &mut &[u8]) -> Option<String> {
        let len = usize::from(u16::from_le_bytes(take(body)?));
        let (text, tail) = body.split_at_checked(len)?;
        *body = tail;
        String::from_utf8(text.to_vec()).ok()
    }
    let boot_id = take_str(&mut body)?;
    let transfer = take_str(&mut body)?;
    let count = u32::from_le_bytes(take(&mut body)?);
    let mut vms = Vec::new();
    for _ in 0..count {
        vms.push(VmEntry {
            id: VmId(u16::from_le_bytes(take(&mut body)?)),
            name: take_str(&mut body)?,
            file_len: u64::from_le_bytes(take(&mut body)?),
            page_count: u32::from_le_bytes(take(&mut body)?),
        });
    }
    body.is_empty().then_some(Header { boot_id, transfer, vms })
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
