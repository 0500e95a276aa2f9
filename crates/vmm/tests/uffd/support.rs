//! Images, memory and clients that the lanes share.

use pages::{PAGE_SIZE, Page};
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;
use vmm::LazyImage;
use vmm::lazy::Origin;
use vmm::memory::GuestMemory;
use vmm::uffd::{Attachment, Backing, Guard, PageServer, Region, ServedVm, Uffd, UffdError};

/// Time-outs are for hangs, not for speed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Whether this process may have a userfaultfd. Says so if not.
pub(crate) fn uffd_or_skip(test: &str) -> bool {
    match Uffd::open(Backing::Anonymous) {
        Ok(_) => true,
        Err(error @ UffdError::Unavailable(_)) => {
            assert!(std::env::var_os("SCATTER_REQUIRE_LAB").is_none(), "{test} must run: {error}");
            println!("skipped: {test}: {error}");
            false
        }
        Err(error) => panic!("{error}"),
    }
}

/// What a page must hold: every fifth is zero.
pub(crate) fn expected(pfn: u32) -> Page {
    let mut page = [0; PAGE_SIZE];
    if !pfn.is_multiple_of(5) {
        for (i, word) in page.chunks_exact_mut(8).enumerate() {
            word.copy_from_slice(&(u64::from(pfn) << 32 | i as u64).to_le_bytes());
        }
    }
    page
}

pub(crate) fn image(pages: u32) -> Arc<LazyImage> {
    Arc::new(LazyImage::memfd("test", pages).expect("a memfd"))
}

/// Brings pages as blocks do.
pub(crate) fn place(image: &LazyImage, pages: Range<u32>, origin: Origin) {
    for pfn in pages {
        if pfn.is_multiple_of(5) {
            image.place_word(pfn, 1, 0, origin).expect("placed");
        } else {
            image.place(pfn, &expected(pfn), origin).expect("placed");
        }
    }
}

/// Memory for a whole image, of a kind.
pub(crate) fn memory(image: &LazyImage, backing: Backing) -> GuestMemory {
    let len = image.page_count() as usize * PAGE_SIZE;
    match backing {
        Backing::PrivateView => GuestMemory::private_file(image.file(), len),
        Backing::SharedFile => GuestMemory::shared_file(image.file(), len),
        Backing::Anonymous | Backing::Huge => GuestMemory::anonymous(len),
    }
    .expect("mapped")
}

/// A guest that is a mapping: who touches it is the vCPU.
pub(crate) struct Guest {
    pub(crate) memory: Arc<GuestMemory>,
    pub(crate) served: ServedVm,
    pub(crate) ended: Receiver<String>,
}

/// A hook that reports, as a VM that is ended would.
pub(crate) fn reporting() -> (Guard, Receiver<String>) {
    let (report, ended) = mpsc::channel();
    // A test that looks at nothing more has dropped the other end.
    (Guard::Hook(Box::new(move |reason| drop(report.send(reason.to_owned())))), ended)
}

pub(crate) fn attach(
    server: &PageServer,
    image: &Arc<LazyImage>,
    backing: Backing,
    change: impl FnOnce(&mut Attachment),
) -> Guest {
    let memory = Arc::new(memory(image, backing));
    let uffd = Uffd::for_memory(&memory, backing).expect("registered");
    let (guard, ended) = reporting();
    let regions = vec![Region::whole(&memory)];
    let mut attachment = Attachment::new("test", uffd, image.clone(), regions, backing, guard);
    change(&mut attachment);
    let served = server.attach(attachment).expect("attached");
    Guest { memory, served, ended }
}

/// Reads pages and compares them.
pub(crate) fn check(memory: &GuestMemory, pages: impl IntoIterator<Item = u32>) {
    let mut page = [0; PAGE_SIZE];
    for pfn in pages {
        memory.read_page(pfn as usize, &mut page);
        assert!(page == expected(pfn), "page {pfn} is wrong: begins with {:?}", &page[..16]);
    }
}

/// All pages in an order that depends on `seed`.
pub(crate) fn shuffled(pages: u32, seed: u64) -> Vec<u32> {
    let mut order: Vec<u32> = (0..pages).collect();
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for i in (1..order.len()).rev() {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        order.swap(i, usize::try_from((state >> 33) % (i as u64 + 1)).expect("small"));
    }
    order
}
