//! The store's journal, damaged. Its parser is the store's own affair, so this goes in by the door: a store with a
//! journal and a part of an image, opened again.

use pages::block::{BlockLimits, BlockParts, ContentRun, Encoding, Scratch, decode_block, encode_block};
use pages::{PAGE_SIZE, Pfn, VmId};
use receiver::store::{Store, VmSpec};
use std::cell::RefCell;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const PAGES: u32 = 6;
const BLOCKS: u32 = 3;
/// Where the header's body begins, and the length of a VM's slot (`receiver/src/store/journal.rs`).
const BODY_AT: usize = 40;
const SLOT_BYTES: usize = 40;

/// A store whose transfer was interrupted after some blocks.
struct Interrupted {
    root: TempDir,
    genuine: Vec<u8>,
    digests: Vec<[u8; 32]>,
    inode: u64,
}

fn specs() -> [(VmId, VmSpec); 1] {
    let file_len = u64::from(PAGES) * PAGE_SIZE as u64;
    [(VmId(3), VmSpec { name: "vm".into(), file_len, page_count: PAGES, content_pages: PAGES })]
}

fn journal_path(root: &Path) -> PathBuf {
    root.join(".scatter/t.journal")
}

fn inode(root: &Path) -> Option<u64> {
    std::fs::metadata(root.join("vm.ram.part")).ok().map(|image| image.ino())
}

impl Interrupted {
    fn new() -> Self {
        let root = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory");
        let store = Store::open(root.path()).expect("a new store");
        let intake = store.begin("t", &specs(), false).expect("an empty store");
        let mut digests = Vec::new();
        for block in 0..BLOCKS {
            let body = body(block);
            let digest = *blake3::hash(&body).as_bytes();
            let decoded = decode_block(&body, &BlockLimits::default(), &mut Scratch::new()).expect("our own");
            intake.place(digest, &decoded).expect("there is room");
            digests.push(digest);
        }
        intake.abandon().expect("a sync");
        let genuine = std::fs::read(journal_path(root.path())).expect("the journal is there");
        let inode = inode(root.path()).expect("the image is there");
        Self { root, genuine, digests, inode }
    }

    /// Whether the genuine journal still speaks of the image that is there.
    fn is_intact(&self) -> bool {
        inode(self.root.path()) == Some(self.inode)
    }
}

/// One page of each block.
fn body(block: u32) -> Vec<u8> {
    let page = [block.to_le_bytes()[0] + 1; PAGE_SIZE];
    let runs = [ContentRun { vm: VmId(3), pfn: Pfn(block * 2), content: 0, count: 1 }];
    let parts = BlockParts { runs: &runs, uniform: &[], contents: &[&page] };
    encode_block(&parts, Encoding::Raw, &mut Scratch::new())
}

/// Byte 0: bit 0 mends the checksums after the edits, bit 1 cuts the journal after the last edit. Then edits of four
/// bytes: offset (16 bits), operation, value. A damaged journal never brings up a block that was not there; one with
/// mended checksums (no accident makes those) must not bring down the receiver.
pub fn journal(bytes: &[u8]) {
    thread_local!(static STORE: RefCell<Interrupted> = RefCell::new(Interrupted::new()));
    STORE.with_borrow_mut(|interrupted| {
        if !interrupted.is_intact() {
            *interrupted = Interrupted::new();
        }
        damage(interrupted, bytes);
    });
}

fn damage(interrupted: &Interrupted, bytes: &[u8]) {
    let Some((how, edits)) = bytes.split_first() else { return };
    let mut journal = interrupted.genuine.clone();
    let mut last = journal.len();
    for edit in edits.as_chunks::<4>().0 {
        let at = usize::from(u16::from_le_bytes([edit[0], edit[1]])) % journal.len();
        match edit[2] & 3 {
            0 => journal[at] = edit[3],
            1 => journal[at] ^= 1 << (edit[3] & 7),
            2 => journal[at] = journal[at].wrapping_add(edit[3]),
            _ => journal.insert(at, edit[3]),
        }
        last = at;
    }
    let mend = how & 1 == 1;
    if mend {
        // Ends where the journal does.
        let _ = mend_checksums(&mut journal);
    }
    if how & 2 == 2 {
        journal.truncate(last);
    }
    let root = interrupted.root.path();
    std::fs::write(journal_path(root), &journal).expect("the store can be written");
    let store = Store::open(root).expect("nobody else has the store");
    match store.begin("t", &specs(), false) {
        Ok(intake) => {
            let held = intake.held_digests();
            assert!(held.len() < 1 << 16);
            assert!(
                *how != 0 || !edits.is_empty() || held.len() == interrupted.digests.len(),
                "resumed less than all"
            );
            let genuine = held.iter().all(|digest| interrupted.digests.contains(digest));
            assert!(mend || genuine, "a damaged journal brought up a block that was never there");
        }
        // Mended, it may say of whose file the image is whatever it likes.
        Err(error) => assert!(mend, "a damaged journal is in the way: {error}"),
    }
}

/// Sets every checksum right, as far as the journal can be followed.
fn mend_checksums(journal: &mut [u8]) -> Option<()> {
    let body = length(journal, 12)?;
    mend(journal, BODY_AT, body, 16)?;
    mend(journal, 24, 8, 32)?;
    let slot = BODY_AT + body;
    mend(journal, slot, 32, slot + 32)?;
    let mut record = slot + SLOT_BYTES;
    loop {
        let payload = length(journal, record + 4)?;
        mend(journal, record + 16, payload, record + 8)?;
        record += 16 + payload;
    }
}

fn length(journal: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u32::from_le_bytes(*journal.get(at..)?.first_chunk()?)).ok()
}

/// The first 8 bytes of the BLAKE3 of `from..from + len` go to `at`.
fn mend(journal: &mut [u8], from: usize, len: usize, at: usize) -> Option<()> {
    let hash = blake3::hash(journal.get(from..from.checked_add(len)?)?);
    journal.get_mut(at..at + 8)?.copy_from_slice(&hash.as_bytes()[..8]);
    Some(())
}
