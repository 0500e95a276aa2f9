//! Raw files: the bytes of the memory, or of anything else, from the first to the last.
//!
//! What QEMU's `pmemsave` and `memory-backend-file` leave, and the fall-back for each file that no other
//! module knows: libvirt's saved images among them. It claims nothing about the contents, so it refuses
//! nothing.

use super::{Contents, RamBlock};
use pages::PAGE_SIZE;

/// The id of the one block that a file without block names has.
pub const BLOCK_ID: &str = "memory";

pub(super) fn contents(file_len: u64) -> Contents {
    Contents {
        blocks: vec![whole_file(file_len)],
        present_pages: None,
        fingerprint: format!("raw;length={file_len}"),
    }
}

/// One block as long as the file.
pub(super) fn whole_file(file_len: u64) -> RamBlock {
    RamBlock {
        id: BLOCK_ID.to_owned(),
        file_offset: 0,
        len: file_len,
        page_size: PAGE_SIZE as u64,
        gpa: None,
    }
}
