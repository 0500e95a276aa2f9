//! What is fuzzed: one function for each decoder. Each takes any bytes, and panics if the decoder breaks a promise. libFuzzer
//! calls them from `fuzz_targets/`, the test `tests/replay` with a corpus and mutations of its own.

mod collector;
mod journal;
mod qemu;
mod sessions;

pub use collector::collector;
pub use journal::journal;
pub use qemu::{qemu_answer, qemu_state, qemu_stream};
pub use sessions::{join_frames, receiving, sending};

use net::doctor::{IgmpQuery, check_probe};
use pages::PAGE_SIZE;
use pages::block::{
    BlockLimits, BlockParts, Encoding, Scratch, decode_block, decode_named, encode_block, encode_named,
    is_named,
};
use planner::{Inventory, Plan, Signatures};
use std::cell::RefCell;
use wire::control::{Message, ToHost, ToSender};
use wire::datagram::{HEADER_BYTES, OVERHEAD_BYTES, parse};
use wire::seal::{ChannelSecret, Opener, Sealer};

/// A name, which is that of its corpus, and the function.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: [Target; 16] = [
    ("datagram", datagram),
    ("to_host", to_host),
    ("to_sender", to_sender),
    ("receiving", receiving),
    ("sending", sending),
    ("block_body", block_body),
    ("mapped_ram", mapped_ram),
    ("qemu_stream", qemu_stream),
    ("qemu_answer", qemu_answer),
    ("qemu_state", qemu_state),
    ("collector", collector),
    ("journal", journal),
    ("inventory", inventory),
    ("plan", plan),
    ("signatures", signatures),
    ("igmp", igmp),
];

/// The key that the corpus is sealed with. Whatever opens under it must be what was sealed.
#[must_use]
pub fn corpus_secret() -> ChannelSecret {
    ChannelSecret { key: [0x42; 32], salt: *b"salt" }
}

/// Counters below this may be in the corpus.
const CORPUS_COUNTERS: u64 = 16;

/// A datagram is taken apart without loss, and opens only if it is, bit by bit, one that was sealed.
pub fn datagram(bytes: &[u8]) {
    let Ok(view) = parse(bytes) else { return };
    let mut again = [0; HEADER_BYTES];
    view.header.write(&mut again);
    assert_eq!(&again, view.associated, "a header is what it was read from");
    assert_eq!(bytes.len(), view.symbol.len() + OVERHEAD_BYTES);
    let mut symbol = vec![0; view.symbol.len()];
    if Opener::new(&corpus_secret()).open(&view, &mut symbol).is_err() {
        return;
    }
    assert!(view.header.counter < CORPUS_COUNTERS, "forged: {:?}", view.header);
    let mut sealer = Sealer::new(&corpus_secret());
    let mut sealed = vec![0; bytes.len()];
    for _ in 0..=view.header.counter {
        sealer.seal(view.header, &symbol, &mut sealed);
    }
    assert_eq!(sealed, bytes, "forged");
}

/// A message that is taken is the same after another trip.
pub fn to_host(bytes: &[u8]) {
    if let Ok(message) = ToHost::decode(bytes) {
        assert_eq!(ToHost::decode(&message.encode()), Ok(message));
    }
}

/// As [`to_host`].
pub fn to_sender(bytes: &[u8]) {
    if let Ok(message) = ToSender::decode(bytes) {
        assert_eq!(ToSender::decode(&message.encode()), Ok(message));
    }
}

/// Small, so that mutations are quick and limits are met.
pub const BLOCK_LIMITS: BlockLimits = BlockLimits {
    body_bytes_max: 1 << 16,
    contents_max: 32,
    runs_max: 256,
    placements_max: 4096,
    uniform_max: 256,
};

/// A body that is taken keeps its limits, and says the same after being encoded again.
pub fn block_body(bytes: &[u8]) {
    thread_local!(static SCRATCH: RefCell<Scratch> = RefCell::default());
    SCRATCH.with_borrow_mut(|scratch| {
        if is_named(bytes) {
            return named_body(bytes, scratch);
        }
        let Ok(block) = decode_block(bytes, &BLOCK_LIMITS, scratch) else { return };
        let contents = block.pages().len();
        assert!(
            contents <= BLOCK_LIMITS.contents_max as usize && block.contents.len() == contents * PAGE_SIZE
        );
        assert!(block.runs.len() <= BLOCK_LIMITS.runs_max as usize);
        assert!(block.uniform.len() <= BLOCK_LIMITS.uniform_max as usize);
        for run in &block.runs {
            assert!(run.count > 0 && (run.content + run.count) as usize <= contents);
            assert!(run.pfn.0.checked_add(run.count).is_some());
        }
        let pages: Vec<&[u8; PAGE_SIZE]> = block.pages().iter().collect();
        let parts = BlockParts { runs: &block.runs, uniform: &block.uniform, contents: &pages };
        let again = encode_block(&parts, Encoding::Lz4, scratch);
        let limits = BlockLimits { body_bytes_max: usize::MAX, ..BLOCK_LIMITS };
        let second = decode_block(&again, &limits, scratch).expect("what was encoded decodes");
        assert!(second.runs == block.runs && second.uniform == block.uniform);
        assert!(second.contents == block.contents);
        second.recycle(scratch);
        block.recycle(scratch);
    });
}

fn named_body(bytes: &[u8], scratch: &mut Scratch) {
    assert!(decode_block(bytes, &BLOCK_LIMITS, scratch).is_err(), "a body is of one kind");
    let Ok(block) = decode_named(bytes, &BLOCK_LIMITS, scratch) else { return };
    assert!(block.names.len() <= BLOCK_LIMITS.contents_max as usize);
    for run in &block.runs {
        assert!(run.count > 0 && (run.content + run.count) as usize <= block.names.len());
        assert!(run.pfn.0.checked_add(run.count).is_some());
    }
    let again = encode_named(&block.runs, &block.names, scratch);
    let limits = BlockLimits { body_bytes_max: usize::MAX, ..BLOCK_LIMITS };
    let second = decode_named(&again, &limits, scratch).expect("what was encoded decodes");
    assert!(second.runs == block.runs && second.names == block.names);
}

/// Blocks of a layout that is taken lie within the file, one behind the other.
pub fn mapped_ram(bytes: &[u8]) {
    let Ok(layout) = vmm::image::mapped_ram::parse(bytes) else { return };
    let mut end = 0;
    for block in &layout.blocks {
        let bitmap = block.len.div_ceil(4096).div_ceil(64) * 8;
        assert!(end < block.bitmap_offset && block.bitmap_offset + bitmap <= block.pages_offset);
        assert!(block.present_pages * 4096 <= block.len);
        end = block.pages_offset + block.len;
    }
    assert!(
        !layout.blocks.is_empty() && end <= layout.tail_offset && layout.tail_offset <= bytes.len() as u64
    );
}

/// Every VM of an inventory that is taken goes somewhere.
pub fn inventory(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    if let Ok(inventory) = Inventory::from_json(text) {
        let copies: usize = inventory.vms.iter().map(planner::inventory::Vm::copies).sum();
        assert!(copies >= inventory.vms.len());
    }
}

/// A plan that is taken is the same after another trip, and names hosts that it has.
pub fn plan(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    if let Ok(plan) = Plan::from_json(text) {
        assert_eq!(Plan::from_json(&plan.to_json()).expect("what was written is read"), plan);
        for (hosts, vm) in plan.hosts_of_vms().iter().zip(&plan.vms) {
            assert_eq!(hosts.len(), vm.hosts.len());
        }
        assert!(plan.pool().is_ok());
    }
}

/// Signatures are read or refused.
pub fn signatures(bytes: &[u8]) {
    if let Ok(text) = str::from_utf8(bytes) {
        let _ = Signatures::from_json(text);
    }
}

/// Frames from the network, as `doctor` sees them: IGMP queries and probes.
pub fn igmp(bytes: &[u8]) {
    let _ = IgmpQuery::from_frame(bytes);
    let _ = IgmpQuery::from_ipv4(bytes);
    let _ = check_probe(bytes);
}
