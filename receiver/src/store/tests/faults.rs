//! A disk that crashes at a chosen system call, and forgets what a power failure may forget.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use rand::Rng;

const SECTOR: u64 = 512;

/// All states of a sector since the file was last synced, the synced one first.
type Versions = Vec<Vec<u8>>;
type Hook = Box<dyn FnOnce() + Send>;

pub(in crate::store) struct Faults {
    /// Changes to the disk that still succeed.
    fuel: AtomicI64,
    /// The next sync reports that data was lost.
    lossy: AtomicBool,
    /// Called after so many more syncs.
    after_sync: Mutex<Option<(u32, Hook)>>,
    /// By inode and sector.
    unsynced: Mutex<HashMap<u64, BTreeMap<u64, Versions>>>,
}

fn crashed() -> io::Error {
    io::Error::other("crashed (injected)")
}

impl Faults {
    /// Fails, for good, with the change after the first `fuel`; that one is done by half.
    pub(in crate::store) fn new(fuel: i64) -> Arc<Self> {
        Arc::new(Self {
            fuel: AtomicI64::new(fuel),
            lossy: AtomicBool::new(false),
            after_sync: Mutex::default(),
            unsynced: Mutex::default(),
        })
    }

    pub(in crate::store) fn crashed(&self) -> bool {
        self.fuel.load(Ordering::Relaxed) < 0
    }

    pub(in crate::store) fn fail_next_sync(&self) {
        self.lossy.store(true, Ordering::Relaxed);
    }

    /// From now on only so many changes succeed.
    pub(in crate::store) fn set_fuel(&self, fuel: i64) {
        self.fuel.store(fuel, Ordering::Relaxed);
    }

    /// Calls `hook` in the middle of the store's work: right after the `count`th sync.
    pub(in crate::store) fn after_sync(&self, count: u32, hook: impl FnOnce() + Send + 'static) {
        *self.after_sync.lock().unwrap() = Some((count, Box::new(hook)));
    }

    /// Whether the next change may be done: all of it, half of it, nothing.
    fn spend(&self) -> io::Result<bool> {
        match self.fuel.fetch_sub(1, Ordering::Relaxed) {
            1.. => Ok(true),
            0 => Ok(false),
            _ => Err(crashed()),
        }
    }

    /// A change that is done whole or not at all.
    pub(in crate::store) fn step_whole(&self) -> io::Result<()> {
        if self.spend()? { Ok(()) } else { Err(crashed()) }
    }

    pub(in crate::store) fn write(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        let whole = self.spend()?;
        let bytes = if whole { bytes } else { &bytes[..bytes.len() / 2] };
        self.note(file, offset, bytes.len() as u64, |sector, at| {
            let from = at.saturating_sub(offset);
            for (byte, new) in sector
                .iter_mut()
                .skip(usize::try_from(offset.saturating_sub(at)).unwrap())
                .zip(&bytes[usize::try_from(from).unwrap()..])
            {
                *byte = *new;
            }
        });
        file.write_all_at(bytes, offset)?;
        if whole { Ok(()) } else { Err(crashed()) }
    }

    /// A range is about to become zero by other means than writing.
    pub(in crate::store) fn write_zeros(&self, file: &File, offset: u64, len: u64) -> io::Result<()> {
        self.step_whole()?;
        self.note(file, offset, len, |sector, at| {
            for (byte, position) in sector.iter_mut().zip(at..) {
                if (offset..offset + len).contains(&position) {
                    *byte = 0;
                }
            }
        });
        Ok(())
    }

    pub(in crate::store) fn synced(&self, file: &File) -> io::Result<()> {
        self.step_whole()?;
        if self.lossy.swap(false, Ordering::Relaxed) {
            return Err(io::Error::from_raw_os_error(nix::libc::EIO));
        }
        self.unsynced.lock().unwrap().remove(&file.metadata()?.ino());
        let mut after_sync = self.after_sync.lock().unwrap();
        if let Some((count, _)) = after_sync.as_mut() {
            *count -= 1;
        }
        let due = after_sync.take_if(|(count, _)| *count == 0);
        drop(after_sync);
        if let Some((_, hook)) = due {
            hook();
        }
        Ok(())
    }

    fn note(&self, file: &File, offset: u64, len: u64, change: impl Fn(&mut [u8], u64)) {
        if len == 0 {
            return;
        }
        let mut unsynced = self.unsynced.lock().unwrap();
        let sectors = unsynced.entry(file.metadata().unwrap().ino()).or_default();
        for sector in offset / SECTOR..(offset + len).div_ceil(SECTOR) {
            let versions = sectors.entry(sector).or_insert_with(|| {
                let mut base = vec![0; 512];
                let mut at = 0;
                while let Ok(read @ 1..) = file.read_at(&mut base[at..], sector * SECTOR + at as u64) {
                    at += read;
                }
                vec![base]
            });
            let mut new = versions.last().unwrap().clone();
            change(&mut new, sector * SECTOR);
            versions.push(new);
        }
    }

    /// Leaves each sector that was not synced in one of its states, whichever.
    pub(in crate::store) fn power_failure(&self, root: &Path, rng: &mut impl Rng) {
        let unsynced = std::mem::take(&mut *self.unsynced.lock().unwrap());
        for dir in [root.to_path_buf(), root.join(".scatter")] {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                let at = path.metadata().unwrap();
                let Some(sectors) = unsynced.get(&at.ino()).filter(|_| at.is_file()) else { continue };
                let file = OpenOptions::new().write(true).open(&path).unwrap();
                for (sector, versions) in sectors {
                    let offset = sector * SECTOR;
                    let len = usize::try_from(at.len().saturating_sub(offset).min(SECTOR)).unwrap();
                    let version = &versions[rng.random_range(0..versions.len())];
                    file.write_all_at(&version[..len], offset).unwrap();
                }
            }
        }
    }
}
