//! Images that guests run on while they are received: placed page by page, each once.

use super::error::{Attempt, StoreError};
use super::placement::{Fill, Piece};
use super::shared::Vm;
use super::{Intake, PlaceStats, Store, VmSpec, names};
use crate::shelf::Shelf;
use pages::block::DecodedBlock;
use pages::{PAGE_SIZE, Page, Pfn, VmId};
use std::io;
use std::sync::Arc;
use vmm::lazy::{LazyError, LazyImage, Origin};

/// A VM's memory as guests see it.
pub(super) struct Lazy {
    pub(super) image: Arc<LazyImage>,
    /// It stands beside the image file, in a memfd: the store is not on a tmpfs, so every page is written twice.
    pub(super) beside: bool,
}

impl Store {
    /// As [`Store::begin`], but nothing that an earlier run left is held: its guests are gone, and what vouches for their
    /// pages is not known page by page.
    ///
    /// # Errors
    /// Those of [`Store::begin`].
    pub fn begin_anew(
        &self,
        transfer: &str,
        vms: &[(VmId, VmSpec)],
        replace: bool,
    ) -> Result<Intake, StoreError> {
        names::check("transfer", transfer)?;
        let path = self.meta.join(format!("{transfer}.journal"));
        match self.disk.remove(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Attempt::on("remove this journal", &path).failed(error));
            }
            _ => {}
        }
        self.begin(transfer, vms, replace)
    }
}

impl Intake {
    /// Where the heads of placed blocks are kept from now on, for other hosts; only the first one counts.
    pub fn keep_heads(&self, shelf: Arc<Shelf>) {
        let _ = self.inner.shelf.set(shelf);
    }

    /// A block whose digest matched has been placed.
    pub(crate) fn note_placed(&self, digest: &[u8; 32], body: &[u8]) {
        if let Some(shelf) = self.inner.shelf.get() {
            shelf.placed(digest, body);
        }
    }

    /// As [`Intake::place`], for a block that another receiver brought.
    ///
    /// # Errors
    /// Those of [`Intake::place`].
    pub fn place_from_peer(
        &self,
        digest: [u8; 32],
        block: &DecodedBlock<'_>,
    ) -> Result<PlaceStats, StoreError> {
        self.place_by(digest, block, Origin::Peer)
    }

    /// Copies a page of a VM's image as it stands. Whether it was placed is for the caller to know.
    ///
    /// # Errors
    /// A VM that is not of this intake, a page beyond its whole pages, and failures to read.
    pub fn read_page(&self, vm: VmId, pfn: Pfn, into: &mut Page) -> Result<(), StoreError> {
        let slot = self.inner.slot(vm)?;
        let vm = &self.inner.vms[slot];
        let read = vm.image.read_exact_at(into, u64::from(pfn.0) * PAGE_SIZE as u64);
        read.map_err(|error| Attempt::on("read this image", &vm.part).failed(error))
    }

    /// Ends a transfer that was cancelled, for good: images that are whole get their names, what is here of the others goes, and so does
    /// the journal.
    ///
    /// # Errors
    /// The first of what could not be finished or removed; the rest is done all the same.
    pub fn discard(self) -> Result<(), StoreError> {
        let mut first = Ok(());
        let mut note = |done: Result<(), StoreError>| {
            if first.is_ok() {
                first = done;
            }
        };
        let inner = &*self.inner;
        let numbers = inner.vms.iter().map(|vm| vm.entry.id);
        for vm in numbers.filter(|vm| self.is_complete(*vm)) {
            note(self.finish(vm).map(drop));
        }
        let parts = inner.vms.iter().map(|vm| &vm.part);
        for path in parts.chain([&inner.journal_path]) {
            match inner.disk.remove(path) {
                // Finished, and renamed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                done => note(done.map_err(|error| Attempt::on("remove this file", path).failed(error))),
            }
        }
        first
    }

    /// The VM's memory for guests to run on, from now on; and whether it stands beside the image file, since the store is
    /// not in shared memory. To be called before anything of it is placed.
    ///
    /// # Errors
    /// A VM that is not of this intake, or whose memory is not whole pages; no memory.
    pub fn lazy_image(&self, vm: VmId) -> Result<(Arc<LazyImage>, bool), StoreError> {
        let slot = self.inner.slot(vm)?;
        let vm = &self.inner.vms[slot];
        if let Some(lazy) = vm.lazy.get() {
            return Ok((Arc::clone(&lazy.image), lazy.beside));
        }
        let file =
            vm.image.try_clone().map_err(|error| Attempt::on("open this image", &vm.part).failed(error))?;
        let (image, beside) = match LazyImage::over(file, &vm.part) {
            Err(LazyError::NotSharedMemory { .. }) => {
                (LazyImage::memfd(&vm.entry.name, vm.entry.page_count), true)
            }
            over => (over, false),
        };
        let image = Arc::new(image.map_err(|source| vm.lazy_failed(source))?);
        let lazy = vm.lazy.get_or_init(|| Lazy { image, beside });
        Ok((Arc::clone(&lazy.image), lazy.beside))
    }
}

impl Lazy {
    /// Places a block's pieces of one VM; returns the bytes that were new.
    pub(super) fn place(
        &self,
        vm: &Vm,
        pieces: &[Piece],
        contents: &[u8],
        origin: Origin,
    ) -> Result<u64, StoreError> {
        let mut pages = 0;
        for piece in pieces {
            let (first, count) = (piece.run.first, piece.run.count);
            let placed = match piece.fill {
                Fill::Content(content) => {
                    let from = content as usize * PAGE_SIZE;
                    let bytes = &contents[from..from + count as usize * PAGE_SIZE];
                    self.image.place(first, bytes, origin)
                }
                Fill::Word(word) => self.image.place_word(first, count, word, origin),
            };
            pages += u64::from(placed.map_err(|source| vm.lazy_failed(source))?.new);
        }
        Ok(pages * PAGE_SIZE as u64)
    }
}

impl Vm {
    fn lazy_failed(&self, source: LazyError) -> StoreError {
        match source {
            LazyError::System { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                self.write_failed(source, PAGE_SIZE as u64)
            }
            source => StoreError::Lazy { vm: self.entry.name.clone(), source },
        }
    }
}
