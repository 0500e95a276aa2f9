//! The start of an intake: what is on disk, what of it can be trusted, and a journal that says so.
//!
//! Order matters, for a crash may come after any step: a new journal that claims only what was judged held is durable
//! before anything that an older journal vouched for is truncated, created or overwritten.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use pages::{PAGE_SIZE, VmId};

use super::disk::{self, StoreFile};
use super::error::{Attempt, StoreError};
use super::intake::Intake;
use super::journal::{self, Found, Header, Image, Journal, VmEntry};
use super::ledger::{Ledger, Phase};
use super::shared::{Opened, Vm};
use super::{Store, VmSpec, names};

const PAGE_BYTES: u64 = PAGE_SIZE as u64;

/// What stands at a VM's two paths.
struct Seen {
    ram: PathBuf,
    part: PathBuf,
    /// Which of the two is this transfer's own image.
    own: Own,
    /// It has the length that it must have and the journal describes it.
    usable: bool,
    /// Bytes that the file which will become the image occupies already.
    allocated: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Own {
    None,
    Part,
    Ram,
}

/// What an old journal proves to be held.
struct Resumed {
    ledger: Ledger,
    /// The ledger's number of each record of the old journal, in its order; `None` if it is not trusted.
    ids: Vec<Option<u32>>,
    /// Each record's end in the old journal.
    ends: Vec<u64>,
    note: Option<String>,
}

pub(super) fn begin(
    store: &Store,
    transfer: &str,
    vms: &[(VmId, VmSpec)],
    replace: bool,
) -> Result<Intake, StoreError> {
    names::check("transfer", transfer)?;
    let table = check_table(vms)?;
    let mut keys = vec![("transfer", transfer.to_owned())];
    keys.extend(table.iter().map(|vm| ("VM", vm.name.clone())));
    let lease = store.lease(keys)?;

    let header = Header { boot_id: store.boot_id.clone(), transfer: transfer.to_owned(), vms: table };
    let path = store.meta.join(format!("{transfer}.journal"));
    let mut notes = Vec::new();
    let old = match Found::open(&path) {
        Ok(found) => found,
        Err(Ok(reason)) => {
            notes.push(format!("the journal {} was discarded: {reason}", path.display()));
            None
        }
        Err(Err(error)) => return Err(Attempt::on("read this journal", &path).failed(error)),
    };
    let seen = look(store, &header, old.as_ref(), replace)?;
    let resumed = resume(&header, old.as_ref(), &seen)
        .map_err(|error| Attempt::on("read this journal", &path).failed(error))?;
    notes.extend(resumed.note.clone());
    check_space(store, vms, &header, &seen)?;
    notes.extend(take_over(store, &header, &path)?);

    let any_held = resumed.ledger.any_held();
    let mut images = Vec::with_capacity(seen.len());
    for (slot, seen) in seen.iter().enumerate() {
        images.push(settle(store, seen, any_held[slot])?);
    }
    let (journal, ledger, durable) = write_journal(store, &path, &header, old.as_ref(), resumed, &images)?;
    let mut opened = Opened { journal, ledger, durable, finished: Vec::new(), vms: Vec::new() };
    for ((slot, entry), seen) in header.vms.into_iter().enumerate().zip(seen) {
        let finished = matches!(images[slot], Image::Finished { .. });
        let image = open_image(store, slot, &entry, &seen, images[slot], &mut opened)?;
        opened.finished.push(finished);
        opened.vms.push(Vm {
            entry,
            ram: seen.ram,
            part: seen.part,
            image,
            lazy: std::sync::OnceLock::new(),
        });
    }
    disk::sync_dir(&store.root)
        .map_err(|error| Attempt::on("sync this directory", &store.root).failed(error))?;
    let note = (!notes.is_empty()).then(|| notes.join("; "));
    Intake::start(store, path, replace, opened, lease, note)
}

/// Checks the VMs and orders them by id.
fn check_table(vms: &[(VmId, VmSpec)]) -> Result<Vec<VmEntry>, StoreError> {
    let mut table: Vec<VmEntry> = Vec::with_capacity(vms.len());
    for (id, spec) in vms {
        names::check("VM", &spec.name)?;
        if u64::from(spec.page_count) != spec.file_len.div_ceil(PAGE_BYTES) {
            let VmSpec { name, file_len, page_count, .. } = spec.clone();
            return Err(StoreError::BadSpec { name, file_len, page_count });
        }
        let VmSpec { name, file_len, page_count, .. } = spec.clone();
        table.push(VmEntry { id: *id, name, file_len, page_count });
    }
    let mut seen = std::collections::HashSet::new();
    for vm in &table {
        if !seen.insert(vm.name.as_str()) {
            return Err(StoreError::DuplicateVm { vm: vm.id, name: vm.name.clone() });
        }
    }
    table.sort_by_key(|vm| vm.id);
    if let Some(pair) = table.windows(2).find(|pair| pair[0].id == pair[1].id) {
        return Err(StoreError::DuplicateVm { vm: pair[1].id, name: pair[1].name.clone() });
    }
    Ok(table)
}

/// Finds each VM's files and whose they are.
fn look(store: &Store, header: &Header, old: Option<&Found>, replace: bool) -> Result<Vec<Seen>, StoreError> {
    let mut all = Vec::with_capacity(header.vms.len());
    for vm in &header.vms {
        let ram = store.root.join(format!("{}.ram", vm.name));
        let part = store.root.join(format!("{}.ram.part", vm.name));
        let at_ram = stat(&ram)?;
        let at_part = stat(&part)?;
        let known = old.and_then(|old| {
            let slot = old.header.vms.iter().position(|other| other.name == vm.name)?;
            Some((old.images[slot], old.header.vms[slot].file_len))
        });
        let own = match known {
            Some((Image::Part { ino } | Image::Finished { ino, .. }, len))
                if at_part.as_ref().is_some_and(|at| at.ino() == ino && at.len() == len) =>
            {
                Own::Part
            }
            Some((image @ Image::Finished { .. }, len))
                if at_ram.as_ref().is_some_and(|at| finished(at) == image && at.len() == len) =>
            {
                Own::Ram
            }
            _ => Own::None,
        };
        if at_ram.is_some() && own != Own::Ram && !replace {
            return Err(StoreError::ImageExists { vm: vm.name.clone(), path: ram });
        }
        let usable = own != Own::None && known.is_some_and(|(_, len)| len == vm.file_len);
        let becomes = if own == Own::Ram { &at_ram } else { &at_part };
        let allocated = becomes.as_ref().map_or(0, |at| at.blocks() * 512);
        all.push(Seen { ram, part, own, usable, allocated });
    }
    Ok(all)
}

/// The slot of a finished image with this metadata.
pub(super) fn finished(at: &Metadata) -> Image {
    Image::Finished { ino: at.ino(), mtime_s: at.mtime(), mtime_ns: at.mtime_nsec() }
}

/// The slot of an unfinished image with this metadata.
pub(super) fn part(at: &Metadata) -> Image {
    Image::Part { ino: at.ino() }
}

fn stat(path: &Path) -> Result<Option<Metadata>, StoreError> {
    match path.symlink_metadata() {
        Ok(at) if at.is_file() => Ok(Some(at)),
        Ok(_) => Err(StoreError::NotAFile { path: path.to_path_buf() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Attempt::on("look at this file", path).failed(error)),
    }
}

/// Reads what of the old journal can be trusted.
fn resume(header: &Header, old: Option<&Found>, seen: &[Seen]) -> io::Result<Resumed> {
    let ledger = Ledger::new(header.vms.iter().map(|vm| vm.page_count));
    let mut resumed = Resumed { ledger, ids: Vec::new(), ends: Vec::new(), note: None };
    let Some(old) = old else { return Ok(resumed) };
    if old.header.transfer != header.transfer || old.header.vms != header.vms {
        resumed.note =
            Some("what was held is discarded: the transfer's VMs or their sizes changed".to_owned());
        return Ok(resumed);
    }
    let same_boot = !header.boot_id.is_empty() && old.header.boot_id == header.boot_id;
    let (mut volatile, mut orphaned) = (0u64, 0u64);
    old.records(|end, _, record| {
        let orphan = record.runs.iter().any(|run| !seen[run.slot as usize].usable);
        let trusted = same_boot || end <= old.durable;
        let id = match (record.live, trusted, orphan) {
            (true, true, false) => Some(resumed.ledger.adopt(record.digest, &record.runs)),
            (live, trusted, orphan) => {
                volatile += u64::from(live && !trusted);
                orphaned += u64::from(live && trusted && orphan);
                None
            }
        };
        resumed.ids.push(id);
        resumed.ends.push(end);
        Ok(())
    })?;
    let mut notes = Vec::new();
    if volatile > 0 {
        notes.push(format!(
            "the machine was restarted: {volatile} blocks that may not have reached the disk are discarded"
        ));
    }
    if orphaned > 0 {
        notes.push(format!("{orphaned} blocks are discarded: their image files are gone or were changed"));
    }
    resumed.note = (!notes.is_empty()).then(|| notes.join("; "));
    Ok(resumed)
}

/// Refuses to start what cannot fit.
fn check_space(
    store: &Store,
    vms: &[(VmId, VmSpec)],
    header: &Header,
    seen: &[Seen],
) -> Result<(), StoreError> {
    let mut needed_bytes = 0u64;
    let mut largest: Option<(&str, u64)> = None;
    for (entry, seen) in header.vms.iter().zip(seen) {
        let content = vms.iter().find(|(id, _)| *id == entry.id).map_or(0, |(_, spec)| spec.content_pages);
        let bytes = (u64::from(content) * PAGE_BYTES).saturating_sub(seen.allocated);
        needed_bytes += bytes;
        if largest.is_none_or(|(_, most)| bytes > most) {
            largest = Some((&entry.name, bytes));
        }
    }
    let free_bytes = disk::free_bytes(&store.root).map_err(|error| {
        Attempt::on("ask for the free space of this directory", &store.root).failed(error)
    })?;
    if needed_bytes > free_bytes {
        // One VM is named only where there is but one.
        let vm = largest.filter(|_| header.vms.len() == 1).map(|(name, _)| name.to_owned());
        return Err(StoreError::StoreFull { path: store.root.clone(), vm, needed_bytes, free_bytes });
    }
    Ok(())
}

/// Makes the journals of other transfers forget the VMs that this one takes over. Otherwise such a journal could
/// vouch for pages in a file that has this transfer's bytes by then.
fn take_over(store: &Store, header: &Header, own: &Path) -> Result<Option<String>, StoreError> {
    let attempt = Attempt::on("read this directory", &store.meta);
    let mut from = Vec::new();
    for entry in std::fs::read_dir(&store.meta).map_err(|error| attempt.failed(error))? {
        let path = entry.map_err(|error| attempt.failed(error))?.path();
        if path == own || path.extension().is_none_or(|extension| extension != "journal") {
            continue;
        }
        match Found::open(&path) {
            Ok(Some(found)) => {
                let ours = |name: &str| header.vms.iter().any(|vm| vm.name == name);
                let taken =
                    store.disk.open(&path, false).and_then(|file| journal::disown(&found, &file, ours));
                if taken.map_err(|error| Attempt::on("update this journal", &path).failed(error))? {
                    from.push(found.header.transfer);
                }
            }
            Ok(None) => {}
            // Nobody can resume by it, and which VMs it vouches for cannot be told.
            Err(Ok(_)) => {
                store
                    .disk
                    .remove(&path)
                    .map_err(|error| Attempt::on("remove this file", &path).failed(error))?;
            }
            Err(Err(error)) => return Err(Attempt::on("read this journal", &path).failed(error)),
        }
    }
    from.sort();
    Ok((!from.is_empty())
        .then(|| format!("VMs were taken over from the interrupted transfer {}", from.join(", "))))
}

/// Decides which file goes on as the image, and brings a finished one that is of no use back to its `.part` name.
fn settle(store: &Store, seen: &Seen, any_held: bool) -> Result<Image, StoreError> {
    let keep = seen.usable && any_held;
    match seen.own {
        Own::Part if keep => Ok(stat(&seen.part)?.map_or(Image::None, |at| part(&at))),
        Own::Ram if keep => Ok(stat(&seen.ram)?.map_or(Image::None, |at| finished(&at))),
        Own::Ram => {
            let attempt = Attempt::on("rename this image back to .part", &seen.ram);
            store.disk.rename(&seen.ram, &seen.part).map_err(|error| attempt.failed(error))?;
            Ok(Image::None)
        }
        _ => Ok(Image::None),
    }
}

/// Replaces the journal by one that holds the trusted records only; returns how much of it is durable, too.
fn write_journal(
    store: &Store,
    path: &Path,
    header: &Header,
    old: Option<&Found>,
    resumed: Resumed,
    images: &[Image],
) -> Result<(Journal, Ledger, u64), StoreError> {
    let new = path.with_extension("journal.new");
    let attempt = Attempt::on("write this journal", &new);
    let Resumed { mut ledger, ids, ends, .. } = resumed;
    let written = (|| {
        let file = store.disk.open(&new, true)?;
        file.reset(0)?;
        let journal = Journal::create(file, header, images)?;
        let mut durable = 0;
        if let Some(old) = old.filter(|_| ids.iter().any(Option::is_some)) {
            let mut at = 0;
            old.records(|_, raw, _| {
                // The file cannot have grown: this process holds the store.
                let (id, end) = (ids[at], ends[at]);
                at += 1;
                if let Some(id) = id.filter(|&id| ledger.phase(id) == Phase::Live) {
                    let offset = journal.append(raw)?;
                    ledger.set_offset(id, offset);
                    if end <= old.durable {
                        durable = journal.len();
                    }
                }
                Ok(())
            })?;
        }
        if durable > 0 {
            journal.set_durable(durable)?;
        }
        journal.file().sync_all()?;
        store.disk.rename(&new, path)?;
        Ok((journal, durable))
    })();
    let (journal, durable) = written.map_err(|error| attempt.failed(error))?;
    Ok((journal, ledger, durable))
}

/// Opens a VM's image; one that holds nothing of use becomes one hole.
fn open_image(
    store: &Store,
    slot: usize,
    entry: &VmEntry,
    seen: &Seen,
    image: Image,
    opened: &mut Opened,
) -> Result<StoreFile, StoreError> {
    let path = if matches!(image, Image::Finished { .. }) { &seen.ram } else { &seen.part };
    let attempt =
        Attempt { bytes: entry.file_len, vm: Some(&entry.name), ..Attempt::on("create this image", path) };
    let file = store.disk.open(path, image == Image::None).map_err(|error| attempt.failed(error))?;
    if image == Image::None {
        file.reset(entry.file_len).map_err(|error| attempt.failed(error))?;
        let noted = file.metadata().and_then(|at| opened.journal.set_image(slot, part(&at)));
        noted.map_err(|error| attempt.failed(error))?;
        return Ok(file);
    }
    // What earlier runs wrote and nobody vouches for any more must not pass for zeros.
    let page = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    let ledger = &mut opened.ledger;
    file.data_ranges(entry.file_len, |start, end| {
        ledger.note_data(slot, page(start / PAGE_BYTES), page(end.div_ceil(PAGE_BYTES)));
    })
    .map_err(|error| Attempt { action: "find the written parts of this image", ..attempt }.failed(error))?;
    Ok(file)
}
