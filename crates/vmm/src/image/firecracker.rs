//! Firecracker's memory file: the guest's memory regions one after the other, raw and dense.
//!
//! Where the regions stand in guest physical memory is in the vmstate file beside it, whose encoding
//! changes with each release; it stays opaque here, so the file is one block.
//!
//! Trap: a file that a running VM was loaded from (the `File` backend) is mapped by it. Never overwrite it.

use super::raw::whole_file;
use super::{Contents, ImageError};
use pages::PAGE_SIZE;
use std::path::Path;

/// What a vmstate file begins with up to Firecracker 1.14, on x86-64 and aarch64 (`src/vmm/src/snapshot`).
const VMSTATE_MAGICS: [u64; 2] = [0x0710_1984_8664_0000, 0x0710_1984_AAAA_0000];

pub(super) fn contents(path: &Path, file: &[u8]) -> Result<Contents, ImageError> {
    let len = file.len() as u64;
    if let Some(magic) = file.first_chunk()
        && VMSTATE_MAGICS.contains(&u64::from_le_bytes(*magic))
    {
        return Err(ImageError::FirecrackerVmstate { path: path.to_owned() });
    }
    if !len.is_multiple_of(PAGE_SIZE as u64) {
        return Err(ImageError::PartialPage { path: path.to_owned(), len });
    }
    Ok(Contents {
        blocks: vec![whole_file(len)],
        present_pages: None,
        fingerprint: format!("firecracker;length={len}"),
    })
}
