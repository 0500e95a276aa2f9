//! Recording which pages a snapshot touches first, by restoring it once.

use super::{Identity, MicroVm, MicroVmError, VmState};
use crate::lazy::{LazyError, LazyImage, Origin};
use crate::memory::{GuestMemory, MemoryError};
use crate::uffd::{Attachment, Backing, Guard, PageServer, Region, Uffd, UffdError, WorkingSet};
use pages::{PAGE_SIZE, uniform_word};
use std::sync::Arc;
use std::time::Duration;

/// Why a working set cannot be recorded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The snapshot cannot be restored.
    #[error("the snapshot cannot be restored to record its working set")]
    Vm(#[from] MicroVmError),
    /// Its memory cannot be mapped.
    #[error("no memory to record a working set in")]
    Memory(#[from] MemoryError),
    /// Its memory cannot be kept.
    #[error("no memory to record a working set from")]
    Image(#[from] LazyError),
    /// Its faults cannot be served.
    #[error("page faults cannot be recorded here")]
    Faults(#[from] UffdError),
}

/// Restores a snapshot, of a state as [`VmState::to_bytes`] writes it and the paused VM's memory, lets it run as `identity` (one that
/// no clone has: what each does by its identity is not what all have in common) for `time`, and
/// returns the pages that it touched in the order of their first touches.
///
/// # Errors
/// [`RecordError`]: no userfaultfd here, or too little memory for two more copies of the VM's.
///
/// # Panics
/// If the VM has 2^32 pages or more, which none can have.
pub fn record_working_set(
    state: &[u8],
    memory: &GuestMemory,
    identity: Identity,
    time: Duration,
) -> Result<WorkingSet, RecordError> {
    let state = VmState::from_bytes(state).map_err(MicroVmError::from)?;
    let page_count = u32::try_from(memory.page_count()).expect("at most 3 GiB");
    let image = Arc::new(LazyImage::memfd("recorded", page_count)?);
    let mut page = [0; PAGE_SIZE];
    for at in 0..page_count {
        memory.read_page(at as usize, &mut page);
        match uniform_word(&page) {
            Some(word) => image.place_word(at, 1, word, Origin::Block)?,
            None => image.place(at, &page, Origin::Block)?,
        };
    }
    let own = Arc::new(GuestMemory::anonymous(memory.len())?);
    let uffd = Uffd::for_memory(&own, Backing::Anonymous)?;
    let mut vm = MicroVm::restore(&state, Arc::clone(&own), identity)?;
    let server = PageServer::start()?;
    let guard = Guard::Hook(Box::new(vm.ender()));
    let regions = vec![Region::whole(&own)];
    let mut attachment = Attachment::new("recorded", uffd, image, regions, Backing::Anonymous, guard);
    // Every first touch is a fault of its own.
    (attachment.push, attachment.around, attachment.record) = (false, 1, true);
    let served = server.attach(attachment)?;
    vm.resume()?;
    std::thread::sleep(time);
    vm.pause()?;
    // What is told is a tenth of a second old, as long as anything happens.
    std::thread::sleep(TELL_INTERVAL * 2);
    Ok(WorkingSet::of(page_count, &served.touched()))
}

/// How often the page server tells what was touched.
const TELL_INTERVAL: Duration = Duration::from_millis(100);
