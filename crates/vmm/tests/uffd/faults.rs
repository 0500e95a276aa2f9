//! Every fault is answered by the right bytes, whatever the memory is, whoever brings the pages, in which order ever.

use crate::support::{
    Guest, PATIENCE, attach, check, expected, image, memory, place, reporting, shuffled, uffd_or_skip,
};
use pages::PAGE_SIZE;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use vmm::LazyImage;
use vmm::lazy::Origin;
use vmm::memory::GuestMemory;
use vmm::uffd::{Attachment, Backing, PageServer, Region, Uffd, VmStatus};

const PAGES: u32 = 4000;

/// A source that answers demands, one page at a time, until the image is complete or `stop` is set.
fn answering(image: &Arc<LazyImage>, stop: &Arc<AtomicBool>) -> std::thread::JoinHandle<()> {
    let (image, stop) = (image.clone(), stop.clone());
    std::thread::spawn(move || {
        while !stop.load(Ordering::SeqCst) {
            match image.next_demand() {
                Some(pfn) => place(&image, pfn..pfn + 1, Origin::Sender),
                None => std::thread::sleep(Duration::from_micros(50)),
            }
        }
    })
}

/// Waits for something that happens soon.
fn until(mut condition: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "it does not happen");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn complete(guest: &Guest) {
    assert_eq!(guest.served.wait(PATIENCE), VmStatus::Complete);
}

#[test]
fn clones_with_any_memory_fault_in_any_order_while_pages_come() {
    if !uffd_or_skip("clones_with_any_memory_fault_in_any_order_while_pages_come") {
        return;
    }
    for backing in [Backing::Anonymous, Backing::PrivateView] {
        let image = image(PAGES);
        let server = PageServer::start().expect("starts");
        let stop = Arc::new(AtomicBool::new(false));
        let source = answering(&image, &stop);
        place(&image, 0..PAGES / 4, Origin::Block);
        let guests: Vec<Guest> = (0..3).map(|_| attach(&server, &image, backing, |_| {})).collect();
        std::thread::scope(|scope| {
            for (seed, guest) in guests.iter().enumerate() {
                for half in 0..2 {
                    let memory = &guest.memory;
                    scope.spawn(move || check(memory, shuffled(PAGES, 10 * seed as u64 + half)));
                }
            }
            let image = &image;
            scope.spawn(move || {
                for first in (PAGES / 2..PAGES).step_by(100) {
                    place(image, first..first + 100, Origin::Block);
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
        });
        place(&image, 0..PAGES, Origin::Block);
        stop.store(true, Ordering::SeqCst);
        source.join().expect("no panic");
        for guest in &guests {
            complete(guest);
            check(&guest.memory, 0..PAGES);
            let stats = guest.served.stats();
            assert!(
                stats.faults >= stats.here.count() + stats.network() && stats.faults > 0,
                "{backing:?}: {stats:?}"
            );
        }
        assert!(guests.iter().any(|guest| guest.served.stats().by_sender.count() > 0));
    }
}

#[test]
fn clones_of_a_private_view_keep_their_writes_to_themselves() {
    if !uffd_or_skip("clones_of_a_private_view_keep_their_writes_to_themselves") {
        return;
    }
    let image = image(500);
    let server = PageServer::start().expect("starts");
    let guests: Vec<Guest> = (0..4).map(|_| attach(&server, &image, Backing::PrivateView, |_| {})).collect();
    std::thread::scope(|scope| {
        for (number, guest) in (1u8..).zip(&guests) {
            // A write is the first touch of each page: it waits for the page, then copies it.
            let memory = &guest.memory;
            scope.spawn(move || {
                for pfn in 0..500u64 {
                    memory.write(pfn * PAGE_SIZE as u64, &[number; 100]).expect("within");
                }
            });
        }
        until(|| image.stats().demanded > 0);
        place(&image, 0..500, Origin::Block);
    });
    for (number, guest) in (1u8..).zip(&guests) {
        complete(guest);
        let mut page = [0; PAGE_SIZE];
        for pfn in 0..500 {
            guest.memory.read_page(pfn as usize, &mut page);
            let right = expected(pfn);
            assert!(
                page[..100] == [number; 100] && page[100..] == right[100..],
                "page {pfn} of clone {number}"
            );
        }
    }
    for pfn in 0..500 {
        assert_eq!(image.page(pfn), Some(&expected(pfn)), "the image is as it was");
    }
}

#[test]
fn a_shared_file_is_mapped_as_it_is_filled() {
    if !uffd_or_skip("a_shared_file_is_mapped_as_it_is_filled") {
        return;
    }
    let image = image(PAGES);
    let server = PageServer::start().expect("starts");
    let guest = attach(&server, &image, Backing::SharedFile, |_| {});
    // Some are in the file before they are touched (minor faults), some are not (missing).
    place(&image, 0..PAGES / 2, Origin::Block);
    check(&guest.memory, 0..10);
    std::thread::scope(|scope| {
        let memory = &guest.memory;
        scope.spawn(move || check(memory, shuffled(PAGES, 1)));
        scope.spawn(move || check(memory, shuffled(PAGES, 2)));
        until(|| image.stats().demanded > 0);
        place(&image, PAGES / 2..PAGES, Origin::Peer);
    });
    complete(&guest);
    check(&guest.memory, 0..PAGES);
    let stats = guest.served.stats();
    assert!(stats.here.count() > 0 && stats.by_peer.count() > 0, "{stats:?}");
}

#[test]
fn what_is_given_back_reads_as_zero_even_amid_a_storm() {
    if !uffd_or_skip("what_is_given_back_reads_as_zero_even_amid_a_storm") {
        return;
    }
    let image = image(PAGES);
    let server = PageServer::start().expect("starts");
    let guest = attach(&server, &image, Backing::Anonymous, |_| {});
    let memory = &guest.memory;
    std::thread::scope(|scope| {
        // Pages come, others are read, and one range after the other is given back: some before they are there.
        scope.spawn(|| place(&image, 0..PAGES, Origin::Block));
        scope.spawn(move || check(memory, (PAGES / 2..PAGES).rev()));
        scope.spawn(move || {
            let mut page = [0; PAGE_SIZE];
            for first in (0..PAGES as usize / 2).step_by(20) {
                if first % 40 == 0 {
                    memory.read_page(first + 3, &mut page);
                }
                memory.discard(first, 10).expect("given back");
                memory.read_page(first + 3, &mut page);
                assert!(page == [0; PAGE_SIZE], "page {} was given back", first + 3);
            }
        });
    });
    complete(&guest);
    let mut page = [0; PAGE_SIZE];
    for pfn in 0..PAGES / 2 {
        guest.memory.read_page(pfn as usize, &mut page);
        let right = if pfn % 20 < 10 { [0; PAGE_SIZE] } else { expected(pfn) };
        assert!(page == right, "page {pfn}");
    }
    // Complete: the memory is the guest's own, and giving back needs no server.
    drop(server);
    guest.memory.discard(PAGES as usize - 1, 1).expect("given back");
    guest.memory.read_page(PAGES as usize - 1, &mut page);
    assert!(page == [0; PAGE_SIZE]);
}

#[test]
fn regions_stand_where_they_are_told() {
    if !uffd_or_skip("regions_stand_where_they_are_told") {
        return;
    }
    let image = image(1000);
    place(&image, 0..1000, Origin::Block);
    let server = PageServer::start().expect("starts");
    let memory = GuestMemory::anonymous(1000 * PAGE_SIZE).expect("mapped");
    let uffd = Uffd::for_memory(&memory, Backing::Anonymous).expect("registered");
    let page = PAGE_SIZE as u64;
    let region = |from: u64, pages: u64, image_page: u64| Region {
        address: memory.address() + from * page,
        len: pages * page,
        image_offset: image_page * page,
        page_bytes: page,
    };
    let (guard, _ended) = reporting();
    // The image's halves change places.
    let regions = vec![region(0, 500, 500), region(500, 500, 0)];
    let served = server
        .attach(Attachment::new("swapped", uffd, image, regions, Backing::Anonymous, guard))
        .expect("attached");
    let mut bytes = [0; PAGE_SIZE];
    for pfn in shuffled(1000, 3) {
        memory.read_page(pfn as usize, &mut bytes);
        assert!(bytes == expected((pfn + 500) % 1000), "page {pfn}");
    }
    assert_eq!(served.wait(PATIENCE), VmStatus::Complete);
}

#[test]
fn first_touches_are_recorded_in_order_and_put_in_place_first() {
    if !uffd_or_skip("first_touches_are_recorded_in_order_and_put_in_place_first") {
        return;
    }
    let image = image(1000);
    place(&image, 0..1000, Origin::Block);
    let server = PageServer::start().expect("starts");
    let order = shuffled(1000, 9)[..50].to_vec();
    let recorded = attach(&server, &image, Backing::Anonymous, |attachment| {
        (attachment.push, attachment.around, attachment.record) = (false, 1, true);
    });
    check(&recorded.memory, order.clone());
    check(&recorded.memory, order.clone());
    // It is told at intervals.
    until(|| recorded.served.touched().len() >= order.len());
    assert_eq!(recorded.served.touched()[..order.len()], order);
    let second = attach(&server, &image, Backing::Anonymous, |attachment| {
        (attachment.push, attachment.around) = (false, 1);
        attachment.first = order.clone();
    });
    until(|| second.served.stats().pushed == 50);
    let before = second.served.stats();
    assert_eq!((before.pushed, before.faults), (50, 0), "{before:?}");
    check(&second.memory, order);
    assert_eq!(second.served.stats().faults, 0, "none of them is missing");
    check(&second.memory, 0..1000);
}

/// Sets the number of huge pages for as long as this lives.
struct HugePages(String);

const NR_HUGE: &str = "/proc/sys/vm/nr_hugepages";

impl HugePages {
    fn reserve(more: u64) -> Result<Self, String> {
        let before = std::fs::read_to_string(NR_HUGE).map_err(|error| error.to_string())?.trim().to_owned();
        let wanted = before.parse::<u64>().map_err(|error| error.to_string())? + more;
        std::fs::write(NR_HUGE, wanted.to_string()).map_err(|error| error.to_string())?;
        let this = Self(before);
        let have = std::fs::read_to_string(NR_HUGE).map_err(|error| error.to_string())?;
        if have.trim().parse() == Ok(wanted) {
            Ok(this)
        } else {
            Err(format!("{wanted} huge pages wanted, {have}"))
        }
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        std::fs::write(NR_HUGE, &self.0).expect("as before");
    }
}

#[test]
fn huge_pages_come_whole() {
    if !uffd_or_skip("huge_pages_come_whole") {
        return;
    }
    const HUGE: usize = 2 << 20;
    let reserved = match HugePages::reserve(8) {
        Ok(reserved) => reserved,
        Err(error) => {
            println!("skipped: huge_pages_come_whole: no huge pages to be had: {error}");
            return;
        }
    };
    let image = image(8 * 512);
    let server = PageServer::start().expect("starts");
    let memory = GuestMemory::huge(8 * HUGE).expect("mapped");
    let uffd = Uffd::for_memory(&memory, Backing::Huge).expect("registered");
    let (guard, _ended) = reporting();
    let region = Region { page_bytes: HUGE as u64, ..Region::whole(&memory) };
    let served = server
        .attach(Attachment::new("huge", uffd, image.clone(), vec![region], Backing::Huge, guard))
        .expect("attached");
    std::thread::scope(|scope| {
        let memory = &memory;
        scope.spawn(move || check(memory, shuffled(8 * 512, 4)));
        // Never a whole huge page at once.
        for first in (0..8 * 512).step_by(300) {
            place(&image, first..(first + 300).min(8 * 512), Origin::Block);
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    assert_eq!(served.wait(PATIENCE), VmStatus::Complete);
    drop(memory);
    drop(reserved);
}

#[test]
fn one_server_serves_many_images() {
    if !uffd_or_skip("one_server_serves_many_images") {
        return;
    }
    let server = PageServer::start().expect("starts");
    let images: Vec<_> = (0..10).map(|_| image(300)).collect();
    let guests: Vec<Guest> = images
        .iter()
        .flat_map(|image| (0..4).map(|_| attach(&server, image, Backing::PrivateView, |_| {})))
        .collect();
    std::thread::scope(|scope| {
        for (seed, guest) in guests.iter().enumerate() {
            let memory = &guest.memory;
            scope.spawn(move || check(memory, shuffled(300, seed as u64)));
        }
        for image in &images {
            place(image, 0..300, Origin::Block);
        }
    });
    for guest in &guests {
        complete(guest);
    }
    let unused = memory(&images[0], Backing::Anonymous);
    assert_eq!(unused.page_count(), 300);
}
