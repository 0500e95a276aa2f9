//! A scripted destination, which says what QEMU says when a test wants it said.

use super::super::state::DeviceState;
use super::super::stream::{BlockPlan, Command, Event, Parser, ReturnMessage, StreamError};
use super::drive::{Driver, PING_LOADED};
use super::{EmitMode, EmitOptions, EmitProgress};
use crate::lazy::{LazyImage, Origin};
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
