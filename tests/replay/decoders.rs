//! No panic, no growth, no wrong byte from any decoder.

use crate::mutate::{Rng, mutate};
use crate::seeds::seeds;
use crate::targets::TARGETS;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Inputs longer than this are cut: mutation is to find what is wrong, not what is slow.
const INPUT_BYTES_MAX: usize = 16 << 10;
/// Most that the process may grow by while all targets run.
const GROWTH_BYTES_MAX: u64 = 128 << 20;
/// Address space beyond what is used at the start: an allocation by an unchecked length ends the test.
const SPACE_BYTES: u64 = 4 << 30;

fn corpora() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpora")
}

/// All files of a target's corpus: seeds, and what fuzzers found.
fn corpus(target: &str) -> BTreeMap<String, Vec<u8>> {
    let dir = corpora().join(target);
    let entries = std::fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let file = |entry: std::io::Result<std::fs::DirEntry>| {
        let entry = entry.expect("a directory entry");
        let name = entry.file_name().into_string().expect("names are plain");
        (name, std::fs::read(entry.path()).expect("corpora can be read"))
    };
    entries.map(file).collect()
}

/// Mutations of a target, by what one costs: together more than a million in an optimised build.
fn mutations(target: &str) -> usize {
    let all = match target {
        "datagram" | "to_host" | "to_sender" => 400_000,
        "block_body" | "mapped_ram" | "igmp" | "qemu_answer" => 150_000,
        "qemu_stream" => 60_000,
        "qemu_state" | "inventory" | "plan" | "signatures" | "collector" | "receiving" | "sending" => 30_000,
        "journal" => 2_000,
        other => panic!("no figure for {other}"),
    };
    if cfg!(debug_assertions) { all / 10 } else { all }
}

#[test]
fn corpora_are_what_this_version_writes() {
    let write = std::env::var_os("SCATTER_WRITE_CORPORA").is_some();
    for (target, name, bytes) in seeds() {
        let dir = corpora().join(target);
        if write {
            std::fs::create_dir_all(&dir).expect("corpora can be made");
            std::fs::write(dir.join(&name), &bytes).expect("corpora can be written");
        }
        let found = corpus(target).remove(&name).unwrap_or_else(|| panic!("{target}/{name} is missing"));
        assert_eq!(
            found, bytes,
            "{target}/{name}: the format changed; with a new version, SCATTER_WRITE_CORPORA=1 writes the corpora"
        );
    }
}

#[test]
fn corpora_are_taken() {
    for (target, run) in TARGETS {
        for (name, bytes) in corpus(target) {
            println!("{target}/{name}");
            run(&bytes);
        }
    }
    // Seeds that were refused at once would test nothing.
    let all: Vec<_> = seeds();
    let of = |wanted: &'static str| {
        all.iter().filter(move |(target, ..)| *target == wanted).map(|(.., bytes)| bytes)
    };
    use wire::control::{Message, ToHost, ToSender};
    assert!(of("to_host").all(|bytes| ToHost::decode(bytes).is_ok()));
    assert!(of("to_sender").all(|bytes| ToSender::decode(bytes).is_ok()));
    assert!(of("datagram").all(|bytes| wire::datagram::parse(bytes).is_ok()));
    assert!(of("mapped_ram").all(|bytes| vmm::image::mapped_ram::parse(bytes).is_ok()));
    assert!(of("qemu_state").all(|bytes| vmm::qemu::DeviceState::decode(bytes).is_ok()));
    assert!(of("qemu_stream").all(|bytes| {
        let mut parser = vmm::qemu::stream::Parser::new(vmm::qemu::stream::BlockPlan::default());
        let used = parser.feed(&bytes[1..], |_| Ok::<_, vmm::qemu::stream::StreamError>(()));
        used == Ok(bytes.len() - 1) && parser.in_tail()
    }));
    let mut scratch = pages::block::Scratch::new();
    let limits = crate::targets::BLOCK_LIMITS;
    assert!(of("block_body").all(|bytes| {
        pages::block::decode_block(bytes, &limits, &mut scratch).is_ok()
            || pages::block::decode_named(bytes, &limits, &mut scratch).is_ok()
    }));
}

#[test]
fn a_million_mutations_panic_nowhere_and_cost_no_memory() {
    let limit = getrlimit(Resource::RLIMIT_AS).expect("a limit");
    let space = usage_of("VmSize:") + SPACE_BYTES;
    setrlimit(Resource::RLIMIT_AS, space.min(limit.1), limit.1).expect("a lower limit");
    let before = usage_of("VmHWM:");
    let mut total = 0;
    for (target, run) in TARGETS {
        let start = std::time::Instant::now();
        let seeds: Vec<Vec<u8>> = corpus(target).into_values().collect();
        let mut rng = Rng(target.bytes().fold(7, |seed, byte| seed * 31 + u64::from(byte)));
        let count = mutations(target);
        let mut input = Vec::new();
        for _ in 0..count {
            let (seed, other) = (&seeds[rng.below(seeds.len())], &seeds[rng.below(seeds.len())]);
            input.clear();
            input.extend_from_slice(&seed[..seed.len().min(INPUT_BYTES_MAX)]);
            mutate(&mut rng, &mut input, other);
            run(&input);
        }
        total += count;
        println!("{target}: {count} in {:.1?}", start.elapsed());
    }
    let growth = usage_of("VmHWM:").saturating_sub(before);
    println!("{total} mutations, {} MiB more at the peak", growth >> 20);
    assert!(growth < GROWTH_BYTES_MAX, "grew by {growth} bytes");
    assert!(cfg!(debug_assertions) || total > 1_000_000);
}

/// A figure of this process, in bytes.
fn usage_of(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux has it");
    let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("the kernel tells");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}
