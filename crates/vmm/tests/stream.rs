//! QEMU's stream, against what a real QEMU wrote (`tests/data/make-stream-golden.sh`).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;
use std::collections::BTreeMap;
use vmm::qemu::stream::{
    Block, BlockPlan, Command, Event, Parser, RamWriter, StreamError, split_tail, with_ignore_shared,
    without_capabilities, write_command, write_description, write_end,
};

/// Fills in the pages that the recording left out.
fn golden(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/data/stream-{name}.extents", env!("CARGO_MANIFEST_DIR"));
    let data = std::fs::read(path).unwrap();
    let (len, mut rest) = data.split_first_chunk().unwrap();
    let mut stream = vec![0; usize::try_from(u64::from_le_bytes(*len)).unwrap()];
    while let Some((offset, after)) = rest.split_first_chunk() {
        let (len, after) = after.split_first_chunk().unwrap();
        let (bytes, after) = after.split_at(u32::from_le_bytes(*len) as usize);
        let at = usize::try_from(u64::from_le_bytes(*offset)).unwrap();
        stream[at..at + bytes.len()].copy_from_slice(bytes);
        rest = after;
    }
    stream
}

/// All that a stream holds.
#[derive(Default, PartialEq, Debug)]
struct Content {
    machine: String,
    prefix: Vec<u8>,
    section: u32,
    blocks: Vec<Block>,
    /// The last bytes of each page that came; `None`: a zero page.
    pages: BTreeMap<u32, Option<Vec<u8>>>,
    early: Vec<u8>,
    commands: Vec<Command>,
    package: Vec<u8>,
    tail: Vec<u8>,
}

/// Feeds a stream in pieces of these sizes, over and over.
fn parse(stream: &[u8], sizes: &[usize]) -> Result<Content, StreamError> {
    let mut content = Content::default();
    let mut parser = Parser::new(BlockPlan::default());
    let (mut buffer, mut rest) = (Vec::new(), stream);
    for size in sizes.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (piece, after) = rest.split_at((*size).clamp(1, rest.len()));
        buffer.extend_from_slice(piece);
        rest = after;
        let used = parser.feed(&buffer, |event| {
            take(&mut content, event);
            Ok::<_, StreamError>(())
        })?;
        buffer.drain(..used);
    }
    if parser.in_tail() && buffer.is_empty() { Ok(content) } else { Err(parser.cut_off()) }
}

fn take(content: &mut Content, event: Event<'_>) {
    match event {
        Event::Configuration { configuration, prefix } => {
            content.machine = configuration.machine;
            content.prefix = prefix.to_vec();
        }
        Event::Blocks { section, blocks } => {
            content.section = section;
            content.blocks = blocks.to_vec();
        }
        Event::Page(page, bytes) => drop(content.pages.insert(page, Some(bytes.to_vec()))),
        Event::Zero(page) => drop(content.pages.insert(page, None)),
        Event::Early(bytes) => content.early.extend_from_slice(bytes),
        Event::Command(command) => content.commands.push(command),
        Event::Package { bytes, .. } => content.package.extend_from_slice(bytes),
        Event::Tail(bytes) => content.tail.extend_from_slice(bytes),
        _ => {}
    }
}

fn whole(name: &str) -> Content {
    parse(&golden(name), &[usize::MAX]).unwrap()
}

#[test]
fn a_plain_stream_has_all_pages_and_a_description() {
    let content = whole("plain");
    assert_eq!(content.machine, "microvm");
    let ids: Vec<&str> = content.blocks.iter().map(|block| block.id.as_str()).collect();
    assert_eq!(ids[0], "microvm.ram");
    assert_eq!(content.blocks[0].len, 1 << 20);
    let pages: u32 = content.blocks.iter().map(Block::pages).sum();
    assert_eq!(content.pages.len(), pages as usize, "a stopped VM's pages come once each");
    let tail = split_tail(&content.tail).unwrap();
    assert_eq!(tail.devices[0], 4, "a device section");
    let description: serde_json::Value = serde_json::from_slice(tail.description).unwrap();
    assert_eq!(description["page_size"], 4096);
    // The description names the devices in the order of the sections, and says how long each is.
    let devices = description["devices"].as_array().unwrap();
    assert!(devices.iter().any(|device| device["name"] == "cpu"));
}

#[test]
fn a_stream_with_ignored_ram_tells_addresses_and_leaves_the_pages_out() {
    let content = whole("ignore-shared");
    assert_eq!(content.blocks[0].id, "ram");
    assert_eq!(content.blocks[0].gpa, Some(0));
    assert!(content.pages.keys().all(|page| *page >= content.blocks[0].pages()), "none of the shared block");
    assert!(!content.pages.is_empty(), "those of the others");
    let plain = without_capabilities(&content.prefix);
    assert!(plain.len() < content.prefix.len());
    assert_eq!(with_ignore_shared(&plain), content.prefix, "as QEMU writes it");
}

#[test]
fn a_background_snapshot_has_no_end_of_ram() {
    let content = whole("background");
    assert_eq!(content.tail[0], 4, "the tail begins with the first device");
    assert_eq!(split_tail(&content.tail).unwrap().description, b"", "suppress-vmdesc=on");
}

#[test]
fn device_state_ahead_of_the_pages_is_kept_apart() {
    let content = whole("early");
    assert!(content.early.windows(22).any(|bytes| bytes == b"virtio-mem-device-earl"));
    assert_eq!((content.early[0], content.early[content.early.len() - 5]), (4, 0x7e), "whole sections");
    assert!(content.blocks.iter().any(|block| block.len == 128 << 20), "the device's memory");
    assert!(content.commands.contains(&Command::SwitchoverStart), "machine types from 10.0 on say so");
}

#[test]
fn each_cut_is_noticed() {
    let stream = golden("plain");
    let tail = whole("plain").tail.len();
    let ram = stream.len() - tail;
    for at in (0..ram.min(400)).chain((0..ram).step_by(977)) {
        let error = parse(&stream[..at], &[usize::MAX]).unwrap_err();
        assert!(matches!(error, StreamError::CutOff { .. }), "{at}: {error}");
    }
    for at in ram..stream.len() {
        assert!(split_tail(&stream[ram..at]).is_err() || stream[at - 1] == 0, "{at}");
    }
}

#[test]
fn what_cannot_be_carried_is_refused_by_name() {
    let stream = golden("plain");
    let at = stream.windows(4).position(|bytes| bytes == b"\x03ram").unwrap();
    let swap = |from: usize, bytes: &[u8]| {
        let mut stream = stream.clone();
        stream[from..from + bytes.len()].copy_from_slice(bytes);
        parse(&stream, &[usize::MAX]).unwrap_err().to_string()
    };
    assert!(swap(at, b"\x03htb").contains("\"htb\" sends its state while the VM runs"));
    let vfio = [&stream[..at], b"\x0d0000:00:03.0/vfio\0\0\0\0\0\0\0\x01"].concat();
    assert!(parse(&vfio, &[usize::MAX]).is_err());
    assert!(swap(at + 11, &[5]).contains("version 5 of section ram"));
    // The first record behind the list's section: a page of pc.ram or a zero page.
    let part = stream.windows(5).position(|bytes| bytes == [2, 0, 0, 0, stream[at - 1]]).unwrap();
    assert!(swap(part + 5, &0x40u64.to_be_bytes()).contains("turn capability xbzrle off"));
    assert!(swap(part + 5, &0x200u64.to_be_bytes()).contains("turn capability multifd off"));
    assert!(swap(0, b"QEVX").contains("not a QEMU migration stream"));
    assert!(swap(8, &[1]).contains("send-configuration"));
    let mapped = with_ignore_shared(&whole("plain").prefix);
    let mapped = String::from_utf8_lossy(&mapped).replace("x-ignore-shared", "x-something-new");
    let error = parse(&[mapped.as_bytes(), &[1]].concat(), &[usize::MAX]).unwrap_err();
    assert!(error.to_string().contains("\"x-something-new\" is on and not supported"), "{error}");
}

/// Writes a stream of our own from what was parsed.
fn rewrite(content: &Content) -> Vec<u8> {
    let mut out = content.prefix.clone();
    let mut writer = RamWriter::new(content.section, &content.blocks);
    writer.start(&mut out, &BlockPlan::default(), false);
    out.extend_from_slice(&content.early);
    for pages in content.pages.iter().collect::<Vec<_>>().chunks(100) {
        writer.part(&mut out);
        for (page, bytes) in pages {
            match bytes {
                Some(bytes) => writer.page(&mut out, **page, bytes.as_slice().try_into().unwrap()),
                None => writer.zero(&mut out, **page),
            }
        }
        writer.close(&mut out);
    }
    content.commands.iter().for_each(|command| write_command(&mut out, command));
    writer.end(&mut out);
    writer.close(&mut out);
    out.extend_from_slice(&content.tail);
    out
}

#[test]
fn what_is_written_reads_the_same() {
    for name in ["plain", "early"] {
        let content = whole(name);
        assert_eq!(parse(&rewrite(&content), &[usize::MAX]).unwrap(), content, "{name}");
    }
    let content = whole("plain");
    let tail = split_tail(&content.tail).unwrap();
    let mut again = tail.devices.to_vec();
    write_end(&mut again);
    write_description(&mut again, tail.description);
    assert_eq!(again, content.tail);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn pieces_do_not_matter(sizes in proptest::collection::vec(1usize..9000, 1..20)) {
        for name in ["plain", "early", "background", "ignore-shared"] {
            let stream = golden(name);
            prop_assert!(parse(&stream, &sizes).unwrap() == parse(&stream, &[usize::MAX]).unwrap());
        }
    }
}
