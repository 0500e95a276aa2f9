//! RAM in shared files, which needs no stream.

use super::super::error::QemuError;
use super::super::qmp::Qmp;
use super::super::state::Fingerprint;
use super::super::stream::Block;
use serde_json::{Value, json};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// A RAM block's file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct BackingFile {
    pub(super) block: String,
    pub(super) path: PathBuf,
    /// Where the block begins in it, in bytes.
    pub(super) offset: u64,
}

/// The blocks that capability `x-ignore-shared` leaves out: memory-backend-file with share=on. A memfd is not among them. None
/// if one of them is in a file that has no name (its path is a directory): it would be left out, and nobody had it.
pub(super) fn backing_files(qmp: &mut Qmp, fingerprint: &Fingerprint) -> Result<Vec<BackingFile>, QemuError> {
    let backends = qmp.execute("query-memdev", Value::Null)?;
    let mut files = Vec::new();
    for backend in backends.as_array().into_iter().flatten() {
        let (Some(id), Some(true)) = (backend["id"].as_str(), backend["share"].as_bool()) else { continue };
        let object = format!("/objects/{id}");
        let mut property = |name: &str| qmp.execute("qom-get", json!({"path": object, "property": name}));
        // Only backends with a file have the property.
        let Ok(path) = property("mem-path") else { continue };
        let offset = property("offset").ok().and_then(|offset| offset.as_u64()).unwrap_or(0);
        // Older machine types name the block by the object's path.
        let block =
            [id, &object].into_iter().find(|name| fingerprint.blocks.iter().any(|row| row.id == **name));
        if let (Some(path), Some(block)) = (path.as_str(), block) {
            if Path::new(path).is_dir() {
                return Ok(Vec::new());
            }
            files.push(BackingFile { block: block.to_owned(), path: path.into(), offset });
        }
    }
    Ok(files)
}

/// Whether files there can share blocks with each other until one is written: tried with a page of the file itself.
pub(super) fn copies_by_reference(source: &Path, image: &Path) -> bool {
    let Some(dir) = image.parent() else { return false };
    let Ok(probe) = tempfile::tempfile_in(if dir.as_os_str().is_empty() { Path::new(".") } else { dir })
    else {
        return false;
    };
    File::open(source).is_ok_and(|source| clone_range(&source, 0, &probe, 0, 4096).is_ok())
}

/// Copies the blocks from their files to their places in the image, by reference where the file system can. The source
/// must stand. Holes stay holes.
pub(super) fn copy(
    files: &[BackingFile],
    blocks: &[Block],
    image: &File,
    image_path: &Path,
) -> Result<(), QemuError> {
    for file in files {
        let Some(block) = blocks.iter().find(|block| block.id == file.block) else { continue };
        let source = File::open(&file.path).map_err(QemuError::io("open", &file.path))?;
        let to = u64::from(block.first_page) * 4096;
        if clone_range(&source, file.offset, image, to, block.len).is_ok() {
            continue;
        }
        copy_data(&source, file.offset, image, to, block.len)
            .map_err(QemuError::io("copy memory to", image_path))?;
    }
    Ok(())
}

nix::ioctl_write_ptr!(ficlonerange, 0x94, 13, libc::file_clone_range);

fn clone_range(source: &File, from: u64, image: &File, to: u64, len: u64) -> nix::Result<()> {
    let range = libc::file_clone_range {
        src_fd: source.as_raw_fd().into(),
        src_offset: from,
        src_length: len,
        dest_offset: to,
    };
    // SAFETY: the descriptor and the structure are valid for the call, which reads the structure and nothing else.
    unsafe { ficlonerange(image.as_raw_fd(), &raw const range) }.map(drop)
}

/// Copies what is no hole.
fn copy_data(source: &File, from: u64, image: &File, to: u64, len: u64) -> io::Result<()> {
    let end = from + len;
    let mut at = from;
    while at < end {
        let Some(data) = seek(source, at, libc::SEEK_DATA)? else { break };
        let start = data.min(end);
        let stop = seek(source, start, libc::SEEK_HOLE)?.unwrap_or(end).min(end);
        let (mut offset_in, mut offset_out) = (i64_of(start), i64_of(to + (start - from)));
        let mut left = usize::try_from(stop - start).map_err(io::Error::other)?;
        while left > 0 {
            let copied = nix::fcntl::copy_file_range(
                source,
                Some(&mut offset_in),
                image,
                Some(&mut offset_out),
                left,
            )?;
            if copied == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            left -= copied;
        }
        at = stop;
    }
    Ok(())
}

fn i64_of(offset: u64) -> i64 {
    i64::try_from(offset).expect("file systems end before 2^63")
}

/// Where data or a hole begins, at or after `at`; `None` behind the last data.
fn seek(file: &File, at: u64, whence: i32) -> io::Result<Option<u64>> {
    // SAFETY: lseek takes no pointers; the descriptor is open for as long as `file` lives.
    let found = unsafe { libc::lseek(file.as_raw_fd(), i64_of(at), whence) };
    match u64::try_from(found) {
        Ok(found) => Ok(Some(found)),
        Err(_) => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            error => Err(error),
        },
    }
}
