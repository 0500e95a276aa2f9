//! Which finished images are a transfer's own.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::begin;
use super::journal::{Found, Image};
use super::names;

/// Device and inode of the images in the store at `root` that an interrupted run of `transfer` finished. Nothing if there
/// is no journal of it that can be read.
pub(crate) fn finished_by(root: &Path, transfer: &str) -> Vec<(u64, u64)> {
    if names::check("transfer", transfer).is_err() {
        return Vec::new();
    }
    let path = root.join(".scatter").join(format!("{transfer}.journal"));
    let Ok(Some(found)) = Found::open(&path) else { return Vec::new() };
    let of = |(vm, image): (&super::journal::VmEntry, &Image)| {
        let at = root.join(format!("{}.ram", vm.name)).symlink_metadata().ok()?;
        (begin::finished(&at) == *image).then(|| (at.dev(), at.ino()))
    };
    found.header.vms.iter().zip(&found.images).filter_map(of).collect()
}
