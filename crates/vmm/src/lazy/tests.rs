use super::{Demand, LazyError, LazyImage, Origin, Placed};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use pages::{PAGE_SIZE, Page};
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

fn page_of(page: u32) -> Page {
    let mut bytes = [0; PAGE_SIZE];
    for (index, word) in bytes.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&((u64::from(page) + 1) << 16 | index as u64).to_le_bytes());
    }
    bytes
}

fn bytes_of(range: Range<u32>) -> Vec<u8> {
    range.flat_map(page_of).collect()
}

fn image(pages: u32) -> Arc<LazyImage> {
    Arc::new(LazyImage::memfd("test", pages).expect("memfd"))
}

fn readable(fd: &impl AsFd, wait_ms: u16) -> bool {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::from(wait_ms)).expect("poll") == 1
}

#[test]
fn pages_are_here_once_placed_and_only_then() {
    let image = image(200);
    assert!(image.page(3).is_none() && !image.is_here(3) && !image.is_here(200));
    let placed = image.place(60, &bytes_of(60..70), Origin::Block).expect("in range");
    assert_eq!((placed.new, placed.before), (10, 0));
    assert_eq!(image.page(69), Some(&page_of(69)));
    image.place_word(100, 50, 0, Origin::Block).expect("in range");
    image.place_word(150, 50, 0x1234, Origin::Sender).expect("in range");
    assert!(image.is_zero(120) && !image.is_zero(150) && image.page(120) == Some(&[0; PAGE_SIZE]));
    assert_eq!(image.page(199).map(|page| page[..2].to_vec()), Some(vec![0x34, 0x12]));
    assert_eq!(
        (image.origin(65), image.origin(199), image.origin(0)),
        (Some(Origin::Block), Some(Origin::Sender), None)
    );
    assert_eq!(image.missing(0..300), [0..60, 70..100]);
    assert!(!image.is_complete());
    image.place(0, &bytes_of(0..60), Origin::Peer).expect("in range");
    image.adopt(70, 30).expect("in range");
    assert!(image.is_complete());
    let stats = image.stats();
    assert_eq!((stats.here, stats.zero, stats.from_sender, stats.from_peers), (200, 50, 50, 60));
}

#[test]
fn a_page_is_never_written_twice_and_other_bytes_are_refused() {
    let image = image(100);
    image.place(10, &bytes_of(10..20), Origin::Sender).expect("in range");
    let placed = image.place(5, &bytes_of(5..25), Origin::Block).expect("the same bytes");
    assert_eq!((placed.new, placed.before), (10, 10));
    assert_eq!(image.origin(15), Some(Origin::Sender), "the first one counts");
    let error = image.place(18, &bytes_of(118..130), Origin::Block).expect_err("other bytes");
    assert!(matches!(error, LazyError::Differs { page: 18 }), "{error}");
    assert_eq!(image.page(18), Some(&page_of(18)), "what was here stays");
    assert_eq!(image.page(27), Some(&page_of(127)), "what was missing is placed");
    assert!(matches!(image.place_word(10, 1, 0, Origin::Block), Err(LazyError::Differs { page: 10 })));
    let beyond = image.place(95, &bytes_of(0..6), Origin::Block).expect_err("beyond the end");
    assert!(matches!(beyond, LazyError::OutOfRange { first: 95, end: 101, page_count: 100 }), "{beyond}");
    assert!(!image.is_here(96), "nothing of it is placed");
    assert!(image.place_word(u32::MAX, u32::MAX, 0, Origin::Block).is_err());
}

#[test]
fn a_file_on_a_disk_is_refused_by_name() {
    let dir = tempfile::tempdir_in("/dev/shm").expect("tmpfs");
    let file = |path: &std::path::Path| {
        let file =
            std::fs::OpenOptions::new().read(true).write(true).create_new(true).open(path).expect("create");
        file.set_len(8192).expect("size");
        file
    };
    let path = dir.path().join("vm.ram");
    let image = LazyImage::over(file(&path), &path).expect("on a tmpfs");
    image.place(1, &page_of(7), Origin::Block).expect("in range");
    assert_eq!(std::fs::read(&path).expect("read")[4096..], page_of(7));
    let odd = dir.path().join("odd");
    let short = file(&odd);
    short.set_len(5000).expect("size");
    assert!(matches!(LazyImage::over(short, &odd), Err(LazyError::Length { len: 5000 })));
    let elsewhere = std::fs::File::open("/proc/self/status").expect("proc");
    let error = LazyImage::over(elsewhere, "/proc/self/status".as_ref()).expect_err("no tmpfs");
    assert!(error.to_string().starts_with("/proc/self/status is not on a tmpfs"), "{error}");
    assert!(matches!(LazyImage::memfd("none", 0), Err(LazyError::Length { len: 0 })));
}

#[test]
fn demands_are_queued_once_and_renewed_when_asked() {
    let image = image(1000);
    let woken = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&woken);
    image.on_demand(move || {
        count.fetch_add(1, Ordering::SeqCst);
    });
    assert_eq!([7, 900, 7].map(|page| image.demand(page)), [Demand::Queued, Demand::Queued, Demand::Pending]);
    assert_eq!(image.demand(1000), Demand::Beyond);
    assert_eq!(woken.load(Ordering::SeqCst), 2);
    assert_eq!(image.next_demand(), Some(7));
    image.place(900, &page_of(900), Origin::Block).expect("in range");
    assert_eq!(image.demand(900), Demand::Here);
    assert_eq!(image.next_demand(), None, "what came meanwhile is not asked for");
    assert_eq!(image.demand(7), Demand::Pending, "under way");
    assert_eq!(image.outstanding(), [7], "to be asked for again");
    let stats = image.stats();
    assert_eq!((stats.demanded, stats.suppressed), (2, 2));
}

#[test]
fn listeners_hear_of_each_page_once_the_late_ones_too() {
    let image = image(10_000);
    let mut early = image.listen().expect("eventfd");
    early.drain(|_| unreachable!("nothing is here"));
    assert!(!readable(&early, 0));
    image.place_word(60, 10, 5, Origin::Block).expect("in range");
    image.place_word(70, 5000, 0, Origin::Block).expect("in range");
    let mut late = image.listen().expect("eventfd");
    for news in [&mut early, &mut late] {
        assert!(readable(news, 0));
        let mut runs = Vec::new();
        assert!(news.drain(|run| runs.push(run)));
        assert_eq!((runs.len(), runs.first()), (1, Some(&(60..5070))), "one run, over chunks");
        assert!(!readable(news, 0) && !news.drain(|_| unreachable!("each once")));
    }
    image.lose("the sender is gone");
    assert!(readable(&early, 0) && image.lost() == Some("the sender is gone"));
    image.lose("another reason");
    assert_eq!(image.lost(), Some("the sender is gone"));
    drop(late);
    image.place_word(0, 1, 0, Origin::Block).expect("in range");
    assert!(readable(&early, 0));
}

/// Guests fault in random order, two sources place overlapping runs, listeners serve: every fault ends with the right bytes.
#[test]
fn faults_end_with_the_right_bytes_under_concurrent_sources() {
    const PAGES: u32 = 6000;
    let image = image(PAGES);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let mut servers = Vec::new();
        for guest in 0..3_u32 {
            let (image, mut news) = (Arc::clone(&image), image.listen().expect("eventfd"));
            servers.push(scope.spawn(move || {
                let mut seen = vec![false; PAGES as usize];
                for step in 0..PAGES / 3 {
                    let page = (step * 7919 + guest * 1001) % PAGES;
                    while image.demand(page) != Demand::Here {
                        assert!(readable(&news, 20_000), "a wake-up was lost for page {page}");
                        news.drain(|run| {
                            run.for_each(|page| assert!(!std::mem::replace(&mut seen[page as usize], true)))
                        });
                    }
                    assert_eq!(image.page(page), Some(&page_of(page)));
                }
            }));
        }
        let (by_demand, stop) = (Arc::clone(&image), &stop);
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                while let Some(page) = by_demand.next_demand() {
                    let end = (page + 8).min(PAGES);
                    by_demand.place(page, &bytes_of(page..end), Origin::Sender).expect("the same bytes");
                }
                std::thread::yield_now();
            }
        });
        let bulk = Arc::clone(&image);
        scope.spawn(move || {
            for first in (0..PAGES / 2).step_by(50) {
                bulk.place(first, &bytes_of(first..first + 50), Origin::Block).expect("the same bytes");
                std::thread::yield_now();
            }
        });
        let failed: Vec<_> = servers.into_iter().filter_map(|server| server.join().err()).collect();
        stop.store(true, Ordering::Relaxed);
        assert!(failed.is_empty());
    });
    let stats = image.stats();
    assert_eq!(
        stats.here,
        u64::from(PAGES) - image.missing(0..PAGES).iter().map(|run| run.len() as u64).sum::<u64>()
    );
    for page in 0..PAGES {
        assert!(image.page(page).is_none_or(|bytes| *bytes == page_of(page)));
    }
}

#[test]
fn the_same_page_from_many_threads_is_written_by_one() {
    let image = image(512);
    let new: u32 = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..6)
            .map(|_| {
                scope.spawn(|| image.place(0, &bytes_of(0..512), Origin::Block).expect("the same bytes").new)
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
    });
    assert_eq!(new, 512);
    assert!(image.is_complete());
    assert_eq!(image.stats().duplicates, 512 * 5);
}

#[test]
fn what_could_not_be_written_stays_missing_and_can_be_placed_again() {
    let image = image(64);
    let full = |run: &Range<u32>| match run.start {
        0 => Ok(()),
        _ => Err(std::io::Error::from(std::io::ErrorKind::StorageFull)),
    };
    image.place_word(8, 8, 3, Origin::Block).expect("in range");
    let error = image.place_by(0, 64, Origin::Block, false, &full, &|_| true).expect_err("memory is out");
    assert!(matches!(error, LazyError::System { .. }), "{error}");
    assert_eq!(image.missing(0..64).first(), Some(&(16..64)), "what was written before is here");
    assert_eq!(image.place(16, &bytes_of(16..64), Origin::Block).expect("in range").new, 48);
}

#[test]
fn a_stale_page_is_missing_until_its_newest_version_comes_and_no_block_brings_it() {
    let image = LazyImage::memfd("renewed", 300).expect("memory");
    let old = [7; PAGE_SIZE];
    image.place_word(0, 300, 0x0707_0707_0707_0707, Origin::Block).expect("room");
    assert!(image.is_complete());
    image.renew(10, 100).expect("in the image");
    assert_eq!(image.missing_count(), 100);
    // Pages that were still under way are old, too.
    for origin in [Origin::Block, Origin::Peer] {
        assert_eq!(image.place(9, &old.repeat(3), origin).expect("heard").new, 0, "{origin:?}");
        assert_eq!(image.place_word(50, 10, 0, origin).expect("heard").new, 0, "{origin:?}");
    }
    assert!(!image.is_here(10) && !image.is_here(11) && image.is_here(9));
    image.place(10, &[1; PAGE_SIZE], Origin::Sender).expect("newest");
    image.place_word(11, 99, 0, Origin::Sender).expect("newest");
    assert!(image.is_complete());
    for origin in [Origin::Block, Origin::Peer] {
        assert_eq!(image.place(10, &old, origin).expect("left out"), Placed::default());
    }
    assert_eq!(image.page(10), Some(&[1; PAGE_SIZE]));
    assert_eq!(image.page(60), Some(&[0; PAGE_SIZE]), "nothing of the old bytes is left");
    // A page may change again, as long as nobody runs on it.
    image.renew(10, 1).expect("in the image");
    image.place(10, &[2; PAGE_SIZE], Origin::Sender).expect("newest");
    assert_eq!(image.page(10), Some(&[2; PAGE_SIZE]));
    assert!(image.renew(299, 2).is_err());
    assert_eq!(image.stats().here, 300);
}
