//! Round trips, equal bytes from equal parts, and damaged bodies by the hundred thousand.

use super::encode::PADDING_ROOM;
use super::*;
use crate::page::PAGE_SIZE;
use proptest::collection::vec;
use proptest::prelude::*;
use std::borrow::Cow;

const ENCODINGS: [Encoding; 5] = [
    Encoding::Raw,
    Encoding::Lz4,
    Encoding::Zstd { level: 1 },
    Encoding::Zstd { level: -5 },
    Encoding::Zstd { level: 3 },
];

/// A small generator, so that damage is the same in each run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).expect("below a usize")
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[3]
    }
}

/// Even seeds compress, odd ones do not.
fn page_of(seed: u64) -> Page {
    let mut random = Random(seed | 1 << 40);
    let mut page = [0; PAGE_SIZE];
    let noise = if seed.is_multiple_of(2) { 300 } else { PAGE_SIZE };
    page[..noise].iter_mut().for_each(|byte| *byte = random.byte());
    page
}

struct Owned {
    runs: Vec<ContentRun>,
    uniform: Vec<UniformPlacement>,
    contents: Vec<Page>,
}

/// Without the pages' bytes, which say nothing.
impl std::fmt::Debug for Owned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}, {:?}, {} contents", self.runs, self.uniform, self.contents.len())
    }
}

impl Owned {
    fn encode(&self, encoding: Encoding, scratch: &mut Scratch) -> Vec<u8> {
        let contents: Vec<&Page> = self.contents.iter().collect();
        let parts = BlockParts { runs: &self.runs, uniform: &self.uniform, contents: &contents };
        encode_block(&parts, encoding, scratch)
    }
}

fn any_block() -> impl Strategy<Value = Owned> {
    let pfn = prop_oneof![0u32..50, any::<u32>()];
    let vm = prop_oneof![0u16..4, any::<u16>()];
    let word = prop_oneof![Just(0), Just(u64::MAX), any::<u64>()];
    let runs = vec((vm.clone(), pfn.clone(), any::<u32>(), any::<u32>()), 0..40);
    let uniform = vec((vm, pfn, prop_oneof![1u32..9, any::<u32>()], word), 0..20);
    (vec(0u64..1000, 0..12), runs, uniform).prop_map(|(seeds, runs, uniform)| {
        let contents: Vec<Page> = seeds.into_iter().map(page_of).collect();
        let available = u32::try_from(contents.len()).expect("small");
        let runs = runs.into_iter().filter(|_| available > 0).map(|(vm, pfn, content, count)| {
            let content = content % available;
            let count = 1 + count % (available - content);
            ContentRun { vm: VmId(vm), pfn: Pfn(pfn.min(u32::MAX - count)), content, count }
        });
        let uniform = uniform.into_iter().map(|(vm, first, count, word)| {
            let first = Pfn(first.min(u32::MAX - 1));
            let count = count.clamp(1, u32::MAX - first.0);
            UniformPlacement { vm: VmId(vm), run: UniformRun { first, count, word } }
        });
        Owned { runs: runs.collect(), uniform: uniform.collect(), contents }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn blocks_round_trip(blocks in vec(any_block(), 1..4)) {
        // Contexts are reused; what they saw before must leave no trace.
        let (mut encoder, mut decoder) = (Scratch::new(), Scratch::new());
        for (block, encoding) in blocks.iter().flat_map(|b| ENCODINGS.map(|e| (b, e))) {
            let body = block.encode(encoding, &mut encoder);
            let max = body_len_max(block.contents.len(), block.runs.len(), block.uniform.len());
            prop_assert!(body.len() <= max && body.capacity() == body.len() + PADDING_ROOM);
            prop_assert_eq!(&block.encode(encoding, &mut Scratch::new()), &body);
            let decoded = decode_block(&body, &BlockLimits::default(), &mut decoder).expect("just encoded");
            prop_assert_eq!(&decoded.runs, &block.runs);
            prop_assert_eq!(&decoded.uniform, &block.uniform);
            prop_assert_eq!(decoded.pages(), &block.contents);
            prop_assert_eq!(matches!(decoded.contents, Cow::Borrowed(_)), decoded.encoding == Encoding::Raw);
            prop_assert!(decoded.encoding == encoding || decoded.encoding == Encoding::Raw);
            decoded.recycle(&mut decoder);
        }
    }

    #[test]
    fn any_bytes_decode_to_what_encodes_again_or_to_an_error(bytes in vec(any::<u8>(), 0..200)) {
        let mut body = vec![b'V', b'S', b'B', b'K', 1, 1, 0, 1];
        body.extend_from_slice(&bytes);
        for bytes in [&bytes, &body] {
            let _ = decode_block(bytes, &BlockLimits::default(), &mut Scratch::new());
        }
    }
}

fn run(vm: u16, pfn: u32, content: u32, count: u32) -> ContentRun {
    ContentRun { vm: VmId(vm), pfn: Pfn(pfn), content, count }
}

fn zero(vm: u16, first: u32, count: u32, word: u64) -> UniformPlacement {
    UniformPlacement { vm: VmId(vm), run: UniformRun { first: Pfn(first), count, word } }
}

fn sample() -> Owned {
    Owned {
        runs: (0..40)
            .map(|i| run([0, 1, 2][i as usize % 3], 100 + i * 7, i % 8, 1))
            .chain([run(9, 0, 2, 6)])
            .collect(),
        uniform: vec![zero(0, 0, 50, 0), zero(1, 3, 1, 77), zero(1, 9, 2, 77), zero(400, 9, u32::MAX - 9, 0)],
        contents: (0..8).map(|i| page_of(i * 2)).collect(),
    }
}

#[test]
fn isolated_placements_take_about_four_bytes() {
    // One VM, 1,000 contents, each at a page of its own with gaps between.
    let runs: Vec<ContentRun> = (0..1_000).map(|i| ContentRun::single(VmId(5), Pfn(i * 9), i)).collect();
    let page = page_of(1);
    let contents = vec![&page; 1_000];
    let parts = BlockParts { runs: &runs, uniform: &[], contents: &contents };
    let mut plain = Vec::new();
    placements::write(
        parts.runs,
        parts.uniform,
        parts.contents.len(),
        &mut placements::Ends::default(),
        &mut plain,
    );
    assert!(plain.len() <= 4_010, "{} bytes", plain.len());
    // And compressed next to nothing.
    let body = encode_block(&parts, Encoding::Raw, &mut Scratch::new());
    assert!(body.len() < HEADER_LEN + 1_000 * PAGE_SIZE + 200, "{} bytes", body.len());
}

#[test]
fn what_does_not_compress_stays_as_it_is() {
    let block =
        Owned { runs: vec![run(0, 0, 0, 2)], uniform: vec![], contents: vec![page_of(1), page_of(3)] };
    let raw = block.encode(Encoding::Raw, &mut Scratch::new());
    for encoding in ENCODINGS {
        assert_eq!(block.encode(encoding, &mut Scratch::new()), raw);
    }
}

#[test]
fn an_empty_block_is_a_header() {
    let body = Owned { runs: vec![], uniform: vec![], contents: vec![] }
        .encode(Encoding::Zstd { level: 1 }, &mut Scratch::new());
    assert_eq!(body.len(), HEADER_LEN);
    assert!(decode_block(&body, &BlockLimits::default(), &mut Scratch::new()).is_ok());
}

#[test]
#[should_panic(expected = "outside the contents")]
fn a_run_past_the_contents_is_not_encoded() {
    let _ = Owned { runs: vec![run(0, 0, 0, 2)], uniform: vec![], contents: vec![page_of(0)] }
        .encode(Encoding::Raw, &mut Scratch::new());
}

fn decode_err(body: &[u8], limits: &BlockLimits) -> BlockError {
    decode_block(body, limits, &mut Scratch::new()).expect_err("damaged")
}

#[test]
fn limits_are_kept_and_named() {
    let body = sample().encode(Encoding::Lz4, &mut Scratch::new());
    let all = BlockLimits {
        body_bytes_max: body.len(),
        contents_max: 8,
        runs_max: 41,
        placements_max: 46,
        uniform_max: 4,
    };
    assert!(decode_block(&body, &all, &mut Scratch::new()).is_ok());
    let err = |limits| decode_err(&body, &limits);
    let (found, max) = (body.len(), body.len() - 1);
    assert_eq!(err(BlockLimits { body_bytes_max: max, ..all }), BlockError::TooLong { found, max });
    assert_eq!(err(BlockLimits { contents_max: 7, ..all }), BlockError::TooManyContents { found: 8, max: 7 });
    assert_eq!(err(BlockLimits { runs_max: 40, ..all }), BlockError::TooManyRuns { found: 41, max: 40 });
    assert_eq!(err(BlockLimits { uniform_max: 3, ..all }), BlockError::TooManyUniform { found: 4, max: 3 });
    assert_eq!(
        err(BlockLimits { placements_max: 45, ..all }),
        BlockError::TooManyPlacements { found: 46, max: 45 }
    );
}

#[test]
fn damage_is_named() {
    let limits = BlockLimits::default();
    let block =
        Owned { runs: vec![run(1, 5, 0, 1)], uniform: vec![zero(2, 6, 1, 0)], contents: vec![page_of(1)] };
    let body = block.encode(Encoding::Raw, &mut Scratch::new());
    let with = |at: usize, byte: u8| {
        let mut damaged = body.clone();
        damaged[at] = byte;
        decode_err(&damaged, &limits)
    };
    assert_eq!(with(0, 0), BlockError::Magic);
    assert_eq!(with(4, 2), BlockError::Version { found: 2 });
    assert_eq!(with(5, 0), BlockError::UnknownEncoding { code: 0 });
    assert_eq!(with(5, 9), BlockError::UnknownEncoding { code: 9 });
    assert_eq!(with(6, 1), BlockError::StrayLevel { code: 1, level: 1 });
    assert_eq!(with(5, 2), BlockError::Decompress { part: BlockPart::Contents });
    assert_eq!(with(5, 3), BlockError::Decompress { part: BlockPart::Contents });
    assert_eq!(with(7, 3), BlockError::Decompress { part: BlockPart::Placements });
    assert_eq!(with(8, 2), BlockError::SectionLength { part: BlockPart::Placements, found: 8 });
    assert_eq!(with(16, 2), BlockError::SectionLength { part: BlockPart::Contents, found: 4096 });
    assert_eq!(with(20, 7), BlockError::SectionLength { part: BlockPart::Placements, found: 7 });
    let len = body.len();
    assert_eq!(with(24, 9), BlockError::Truncated { needed: len as u64 + 1, found: len });
    assert_eq!(with(24, 7), BlockError::TrailingBytes { count: 1 });
    // The columns: vm 1, count 1, content 0, pfn 5; then vm 2, count 1, word 0, pfn 6.
    assert_eq!(body[32..40], [1, 1, 0, 10, 2, 1, 0, 12]);
    assert_eq!(with(33, 0), BlockError::PlacementSyntax);
    assert_eq!(with(33, 2), BlockError::RunOutsideContents { run: 0, contents: 1 });
    assert_eq!(with(34, 2), BlockError::RunOutsideContents { run: 0, contents: 1 });
    assert_eq!(with(34, 1), BlockError::RunOutsideContents { run: 0, contents: 1 });
    assert_eq!(with(35, 1), BlockError::RunOutsidePages { run: 0, vm: VmId(1) });
    assert_eq!(with(39, 1), BlockError::UniformOutsidePages { run: 0, vm: VmId(2) });
    assert_eq!(with(38, 1), BlockError::PlacementSyntax);
    assert_eq!(with(38, 3), BlockError::PlacementSyntax);
    for cut in 0..body.len() {
        assert!(
            matches!(decode_err(&body[..cut], &limits), BlockError::Truncated { found, .. } if found == cut)
        );
    }
}

/// A body whose contents are the given bytes, said to be so many contents in the given encoding.
fn forged(encoding: Encoding, contents: u32, stored: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    header::Header {
        encoding,
        placement_code: Encoding::RAW,
        runs: 0,
        uniform: 0,
        contents,
        placement_len: 0,
        placement_stored: 0,
        contents_stored: u32::try_from(stored.len()).expect("small"),
    }
    .write(&mut body);
    body.extend_from_slice(stored);
    body
}

#[test]
fn compressed_streams_must_be_exactly_what_is_announced() {
    let zstd = Encoding::Zstd { level: 1 };
    let frame = |len: usize| zstd::bulk::compress(&vec![7; len], 1).expect("compresses");
    let decode = |body: &[u8]| {
        let block = decode_block(body, &BlockLimits::default(), &mut Scratch::new());
        block.map(|block| block.contents.len())
    };
    let refused = Err(BlockError::Decompress { part: BlockPart::Contents });
    assert_eq!(decode(&forged(zstd, 2, &frame(2 * PAGE_SIZE))), Ok(2 * PAGE_SIZE));
    // A bomb, too short a stream, two frames, a skippable frame behind, a frame that does not say its length.
    assert_eq!(decode(&forged(zstd, 2, &frame(1 << 28))), refused);
    assert_eq!(decode(&forged(zstd, 2, &frame(PAGE_SIZE))), refused);
    assert_eq!(decode(&forged(zstd, 2, &[frame(PAGE_SIZE), frame(PAGE_SIZE)].concat())), refused);
    let skippable = [0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0];
    assert_eq!(decode(&forged(zstd, 1, &[&frame(PAGE_SIZE)[..], &skippable].concat())), refused);
    assert_eq!(decode(&forged(zstd, 0, &skippable)), refused);
    let streamed = zstd::stream::encode_all(&[7; PAGE_SIZE][..], 1).expect("compresses");
    assert_eq!(decode(&forged(zstd, 1, &streamed)), refused);

    let lz4 = |len: usize| lz4_flex::block::compress(&vec![7; len]);
    assert_eq!(decode(&forged(Encoding::Lz4, 2, &lz4(2 * PAGE_SIZE))), Ok(2 * PAGE_SIZE));
    assert_eq!(decode(&forged(Encoding::Lz4, 2, &lz4(2 * PAGE_SIZE + 1))), refused);
    assert_eq!(decode(&forged(Encoding::Lz4, 2, &lz4(2 * PAGE_SIZE - 1))), refused);
    assert_eq!(decode(&forged(Encoding::Lz4, 4096, &[0; 16])), refused);
}

/// Changes a byte, a bit, a length, cuts, repeats or inserts.
fn damage(body: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(3) {
        // Mostly in header and placements, where it matters most.
        let len = body.len();
        let at = if random.below(4) > 0 { random.below(len.min(160)) } else { random.below(len) };
        match random.below(6) {
            0 => body[at] = random.byte(),
            1 => body[at] ^= 1 << random.below(8),
            2 => body[at] = body[at].wrapping_add(1),
            3 => body.truncate(at.max(1)),
            4 => {
                let copy = body[at..(at + 9).min(len)].to_vec();
                body.extend_from_slice(&copy);
            }
            _ => body.insert(at, random.byte()),
        }
    }
}

#[test]
fn damaged_bodies_never_panic_nor_exceed_the_limits() {
    let mut random = Random(0x5eed);
    let limits = BlockLimits {
        body_bytes_max: 1 << 17,
        contents_max: 16,
        runs_max: 128,
        placements_max: 1000,
        uniform_max: 64,
    };
    let mut scratch = Scratch::new();
    let blocks = [
        sample(),
        Owned {
            contents: (0..2).map(|i| page_of(i * 2)).collect(),
            runs: vec![run(0, 1, 0, 2)],
            uniform: vec![],
        },
        Owned { contents: vec![], runs: vec![], uniform: sample().uniform },
    ];
    let bodies: Vec<Vec<u8>> = blocks
        .iter()
        .flat_map(|block| ENCODINGS.map(|encoding| block.encode(encoding, &mut Scratch::new())))
        .collect();
    let (mut accepted, mut refused) = (0u32, 0u32);
    for i in 0..300_000 {
        let mut body = bodies[i % bodies.len()].clone();
        damage(&mut body, &mut random);
        match decode_block(&body, &limits, &mut scratch) {
            Ok(block) => {
                accepted += 1;
                check_bounds(&block, &limits);
                block.recycle(&mut scratch);
            }
            Err(_) => refused += 1,
        }
        if i % 50_000 == 0 {
            // Nothing that was damaged leaves a trace in the contexts.
            let good = decode_block(&bodies[0], &limits, &mut scratch).expect("undamaged");
            assert_eq!(good.runs, sample().runs);
            assert_eq!(good.uniform, sample().uniform);
            assert_eq!(good.pages(), sample().contents);
        }
    }
    // Damage within a page's raw bytes is for the digest to find; most of the rest is found here.
    assert!(accepted > 1_000 && refused > 100_000, "{accepted} accepted, {refused} refused");
    assert!(scratch.bytes() <= 4 * (1 << 18), "{} bytes kept", scratch.bytes());
}

fn check_bounds(block: &DecodedBlock<'_>, limits: &BlockLimits) {
    let contents = block.pages().len();
    assert_eq!(contents * PAGE_SIZE, block.contents.len());
    assert!(contents <= limits.contents_max as usize);
    assert!(
        block.runs.len() <= limits.runs_max as usize && block.runs.capacity() <= limits.runs_max as usize
    );
    assert!(block.uniform.len() <= limits.uniform_max as usize);
    assert!(block.uniform.capacity() <= limits.uniform_max as usize);
    if let Cow::Owned(buffer) = &block.contents {
        assert!(buffer.capacity() <= 1 << 18, "{} bytes", buffer.capacity());
    }
    for run in &block.runs {
        assert!(run.count > 0 && run.content as usize + run.count as usize <= contents);
        assert!(run.pfn.0.checked_add(run.count).is_some());
    }
    for UniformPlacement { run, .. } in &block.uniform {
        assert!(run.count > 0 && run.first.0.checked_add(run.count).is_some());
    }
}
