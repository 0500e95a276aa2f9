//! A scripted destination, which says what QEMU says when a test wants it said.

use super::super::state::DeviceState;
use super::super::stream::{BlockPlan, Command, Event, Parser, ReturnMessage, StreamError};
use super::drive::{Driver, PING_LOADED};
use super::pages::PageQueue;
use super::{EmitMode, EmitOptions, EmitProgress};
use crate::lazy::{LazyImage, Origin};
use proptest::collection::vec;
use proptest::prelude::*;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

const PAGES: u32 = 300;
/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// A VM of one block.
fn state() -> DeviceState {
    let block = super::super::stream::Block {
        id: "pc.ram".to_owned(),
        len: u64::from(PAGES) * 4096,
        page_size: 4096,
        first_page: 0,
        gpa: None,
    };
    DeviceState {
        prefix: b"QEVM\0\0\0\x03\x07\0\0\0\x01m".to_vec(),
        section: 2,
        devices: vec![4; 100],
        blocks: vec![block],
        ..DeviceState::default()
    }
}

/// Reads the stream until `until` says that it has come; the bytes of RAM's end would be among them.
fn read_until(socket: &mut UnixStream, seen: &mut Vec<u8>, until: impl Fn(&[u8]) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    let mut chunk = [0; 4096];
    while !until(seen) {
        assert!(Instant::now() < deadline, "it does not come; {} bytes came", seen.len());
        match socket.read(&mut chunk) {
            Ok(0) => panic!("the emitter closed it after {} bytes", seen.len()),
            Ok(len) => seen.extend_from_slice(&chunk[..len]),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "{error}"),
        }
    }
}

/// Whether the package has come: what follows it is told apart by its length, as devices are opaque.
fn after_package(seen: &[u8]) -> Option<&[u8]> {
    let at = seen.windows(5).position(|bytes| bytes == [8, 0, 7, 0, 4])?;
    let len = u32::from_be_bytes(*seen.get(at + 5..)?.first_chunk()?) as usize;
    seen.get(at + 9 + len..)
}

#[test]
fn a_stream_with_zero_pages_left_out_ends_only_when_the_devices_are_loaded() {
    let image = Arc::new(LazyImage::memfd("stall", PAGES).expect("a memfd"));
    image.place_word(0, PAGES, 0, Origin::Block).expect("placed");
    let (ours, mut theirs) = UnixStream::pair().expect("a socket");
    theirs.set_read_timeout(Some(Duration::from_millis(20))).expect("set");
    let progress = Arc::new(EmitProgress::default());
    let mut driver =
        Driver::new(ours, Path::new("script"), &image, Arc::clone(&progress), PATIENCE).expect("a driver");
    let options = EmitOptions { hold_back: Duration::ZERO, ..EmitOptions::new(EmitMode::Postcopy) };
    let emitter = std::thread::spawn(move || driver.postcopy(&state(), &options).map(|()| driver.report()));

    let mut seen = Vec::new();
    read_until(&mut theirs, &mut seen, |seen| after_package(seen).is_some());
    // Nobody has asked for anything, and all pages are zero: all are left out.
    let deadline = Instant::now() + PATIENCE;
    while progress.sent.load(Relaxed) < PAGES.into() {
        assert!(Instant::now() < deadline, "{} pages", progress.sent.load(Relaxed));
        std::thread::sleep(Duration::from_millis(1));
    }
    // An emitter that ended the stream would do so now.
    std::thread::sleep(Duration::from_millis(100));
    let ask = ReturnMessage::RequestPages { start: 7 * 4096, len: 4096, block: Some("pc.ram".to_owned()) };
    theirs.write_all(&ask.encode()).expect("asked");
    // A device that is being loaded touches a page: it is answered, whatever was left out, and the stream is not over.
    let before = seen.len();
    read_until(&mut theirs, &mut seen, |seen| seen.len() > before);
    assert_eq!(after_package(&seen).expect("it came")[0], 2, "a part of RAM, not its end");

    theirs.write_all(&ReturnMessage::Pong(PING_LOADED).encode()).expect("loaded");
    // RAM's end, its footer, and the stream's end.
    read_until(&mut theirs, &mut seen, |seen| seen.last() == Some(&0) && seen.contains(&3));
    theirs.write_all(&ReturnMessage::Shut(0).encode()).expect("over");
    let report = emitter.join().expect("no panic").expect("all came");
    assert_eq!((report.pages, report.zero_pages, report.left_out), (0, 1, u64::from(PAGES) - 1));
    assert_eq!(report.requests, 1);
}

#[test]
fn what_is_left_out_was_discarded_before() {
    let image = Arc::new(LazyImage::memfd("discard", PAGES).expect("a memfd"));
    image.place_word(0, PAGES, 0, Origin::Block).expect("placed");
    let (ours, mut theirs) = UnixStream::pair().expect("a socket");
    theirs.set_read_timeout(Some(Duration::from_millis(20))).expect("set");
    let mut driver =
        Driver::new(ours, Path::new("script"), &image, Arc::default(), PATIENCE).expect("a driver");
    let options = EmitOptions { hold_back: Duration::ZERO, ..EmitOptions::new(EmitMode::Postcopy) };
    let emitter = std::thread::spawn(move || driver.postcopy(&state(), &options));
    let mut seen = Vec::new();
    read_until(&mut theirs, &mut seen, |seen| after_package(seen).is_some());
    drop(theirs);
    emitter.join().expect("no panic").expect_err("its destination is gone");
    let mut discarded = 0;
    let _ = Parser::new(BlockPlan { postcopy: true, ..BlockPlan::default() }).feed(&seen, |event| {
        if let Event::Command(Command::RamDiscard { ranges, .. }) = event {
            discarded += ranges.iter().map(|range| range.len / 4096).sum::<u64>();
        }
        Ok::<_, StreamError>(())
    });
    assert_eq!(discarded, u64::from(PAGES));
}

/// What a queue has sent: how often each page went since it was last taken back.
struct Sent {
    parser: Parser,
    times: Vec<u32>,
}

impl Sent {
    fn new(queue: &PageQueue) -> Self {
        let (mut head, plan) = (state().prefix, BlockPlan::default());
        queue.writer().start(&mut head, &plan, false);
        let mut sent = Self { parser: Parser::new(plan), times: vec![0; PAGES as usize] };
        sent.take_in(&head);
        sent
    }

    fn take_in(&mut self, bytes: &[u8]) {
        let Self { parser, times } = self;
        let used = parser.feed(bytes, |event| {
            if let Event::Page(page, _) | Event::Zero(page) = event {
                times[page as usize] += 1;
            }
            Ok::<_, StreamError>(())
        });
        assert_eq!(used, Ok(bytes.len()));
    }

    /// All that can go goes.
    fn drain(&mut self, queue: &mut PageQueue) {
        while queue.has_work() {
            let mut out = Vec::new();
            queue.write(&mut out, 64 << 10, true);
            self.take_in(&out);
        }
    }
}

proptest! {
    /// Pages come, are asked for, put first and taken back in any order, zero pages being left out from some moment on: none goes twice,
    /// none is forgotten, and what is left is counted right.
    #[test]
    fn every_page_goes_once_or_is_a_zero_that_nobody_asked_for(
        steps in vec((0u8..6, 0..PAGES, 1u32..90), 0..60),
        leaves in 0usize..60,
    ) {
        let image = Arc::new(LazyImage::memfd("queue", PAGES).expect("a memfd"));
        let mut news = image.listen().expect("news");
        let mut queue = PageQueue::new(&image, &state().blocks, 2);
        let mut sent = Sent::new(&queue);
        for (at, (step, first, count)) in steps.into_iter().enumerate() {
            if at == leaves {
                queue.leave_zeros();
            }
            let range = first..(first + count).min(PAGES);
            match step {
                // What is there as something else stays.
                0 | 1 => drop(image.place_word(first, range.end - first, u64::from(step) * 7, Origin::Block)),
                2 => drop(queue.request("pc.ram", u64::from(first) * 4096, 4096, Instant::now())),
                3 => queue.put_first(&range.collect::<Vec<_>>()),
                4 => {
                    queue.take_back(std::slice::from_ref(&range));
                    range.for_each(|page| sent.times[page as usize] = 0);
                }
                _ => sent.drain(&mut queue),
            }
            news.drain(|run| queue.came(run));
        }
        queue.leave_zeros();
        let _ = image.place_word(0, PAGES, 0, Origin::Block);
        news.drain(|run| queue.came(run));
        // What was taken back is no news of the image's.
        queue.came(0..PAGES);
        sent.drain(&mut queue);
        prop_assert!(queue.is_done());
        for (page, times) in (0..).zip(&sent.times) {
            prop_assert!(*times == 1 || *times == 0 && image.is_zero(page), "page {} went {} times", page, times);
        }
    }

    /// Zero pages are told apart at any place in their words.
    #[test]
    fn zeros_are_the_pages_that_are_here_and_zero(steps in vec((0..PAGES, 1u32..90, any::<bool>()), 0..20), from in 0..PAGES) {
        let image = LazyImage::memfd("zeros", PAGES).expect("a memfd");
        for (first, count, zero) in steps {
            let _ = image.place_word(first, count.min(PAGES - first), if zero { 0 } else { 7 }, Origin::Block);
        }
        let told: Vec<u32> = image.zeros(from..PAGES).into_iter().flatten().collect();
        prop_assert_eq!(told, (from..PAGES).filter(|page| image.is_zero(*page)).collect::<Vec<_>>());
    }
}
