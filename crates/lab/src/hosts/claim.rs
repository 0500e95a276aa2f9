//! A lab's claim on its name, and the removal of labs whose owner is gone.
//!
//! The owner holds a lock on `/run/vmscatter-lab/PREFIX`. The kernel lets go of it when the owner ends, however it
//! ends, so a claim that can be locked is stale: no process number has to be trusted, which may be another's by then.

use std::fs::{File, TryLockError};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::LabError;
use super::namespace::{NAMESPACES, command, kill_processes_in, output};

const CLAIMS: &str = "/run/vmscatter-lab";

/// How many names are tried for a lab without a prefix of its own.
const ATTEMPTS_MAX: u32 = 64;

/// Held as long as the lab lives.
pub(super) struct Claim {
    prefix: String,
    path: PathBuf,
    _lock: File,
}

impl Claim {
    /// Claims `prefix`, or a new one.
    pub(super) fn new(prefix: Option<&str>) -> Result<Self, LabError> {
        if let Some(prefix) = prefix {
            let is_plain = prefix.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
            if !is_plain || prefix.is_empty() || prefix.len() > 16 {
                let reason = format!("the prefix `{prefix}` is not 1 to 16 of a-z and 0-9");
                return Err(LabError::Options { reason });
            }
            return Self::take(prefix)?.ok_or_else(|| LabError::PrefixTaken { prefix: prefix.to_owned() });
        }
        // Of this process and this lab alone; the lock decides between processes of several pid namespaces.
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        for _ in 0..ATTEMPTS_MAX {
            let number = COUNTER.fetch_add(1, Ordering::Relaxed);
            if let Some(claim) = Self::take(&format!("vs{}x{number}", std::process::id()))? {
                return Ok(claim);
            }
        }
        Err(LabError::PrefixTaken { prefix: format!("vs{}x…", std::process::id()) })
    }

    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// `None` if the name is in use.
    fn take(prefix: &str) -> Result<Option<Self>, LabError> {
        let path = Path::new(CLAIMS).join(prefix);
        let fail =
            |action| move |path: &Path, source| LabError::File { action, path: path.to_owned(), source };
        std::fs::create_dir_all(CLAIMS).map_err(|source| fail("make")(Path::new(CLAIMS), source))?;
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let mut file = file.map_err(|source| fail("open")(&path, source))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(source)) => return Err(fail("lock")(&path, source)),
        }
        // A sweep may have removed the file between its opening and its locking: then the lock guards nothing.
        let is_current = std::fs::metadata(&path).and_then(|there| {
            Ok((there.dev(), there.ino()) == file.metadata().map(|own| (own.dev(), own.ino()))?)
        });
        if !is_current.unwrap_or(false) {
            return Ok(None);
        }
        // What a dead owner of the same name left.
        remove_namespaces(prefix)?;
        let number = format!("{}\n", std::process::id());
        file.set_len(0)
            .and_then(|()| file.write_all(number.as_bytes()))
            .map_err(|source| fail("write")(&path, source))?;
        Ok(Some(Self { prefix: prefix.to_owned(), path, _lock: file }))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Err(error) = remove_namespaces(&self.prefix) {
            eprintln!("lab {}: {error}", self.prefix);
        }
        // The file goes while the lock is still held, so nobody can have claimed it meanwhile.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Removes the labs whose owner is dead, with the processes left in them; returns their prefixes.
///
/// # Errors
/// [`LabError::File`] if the claims cannot be read, [`LabError::Command`] if a namespace cannot be removed.
pub fn sweep() -> Result<Vec<String>, LabError> {
    let Ok(claims) = std::fs::read_dir(CLAIMS) else { return Ok(Vec::new()) };
    let mut swept = Vec::new();
    for claim in claims.flatten() {
        let Ok(prefix) = claim.file_name().into_string() else { continue };
        if let Some(stale) = Claim::take(&prefix)? {
            drop(stale);
            swept.push(prefix);
        }
    }
    Ok(swept)
}

/// Removes all namespaces of a prefix and kills what runs in them.
fn remove_namespaces(prefix: &str) -> Result<(), LabError> {
    let Ok(entries) = std::fs::read_dir(NAMESPACES) else { return Ok(()) };
    let start = format!("{prefix}-");
    let names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(&start))
        .collect();
    if names.is_empty() {
        return Ok(());
    }
    kill_processes_in(&names);
    let batch: String = names.iter().map(|name| format!("netns del {name}\n")).collect();
    let mut ip = command("ip");
    ip.args(["-force", "-batch", "-"]);
    output(ip, &batch).map(drop)
}
