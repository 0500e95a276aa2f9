use super::*;
use proptest::prelude::*;

/// A small, valid file: two blocks of 70 and 3 pages.
struct Sample {
    file: Vec<u8>,
    /// Where the fields of block 1 (the second one) begin: its name's length.
    block_1: usize,
    tail: usize,
}

const DESCRIPTION: &[u8] = b"{\"devices\": []}";

fn counted(file: &mut Vec<u8>, text: &str) {
    file.push(u8::try_from(text.len()).unwrap());
    file.extend(text.as_bytes());
}

fn sample() -> Sample {
    sample_with(&["mapped-ram"], &[("pc.ram", 70, 0b1011), ("pc.bios", 3, 0b101)])
}

fn sample_with(capabilities: &[&str], blocks: &[(&str, u64, u64)]) -> Sample {
    let mut file = Vec::new();
    file.extend(b"QEVM\0\0\0\x03\x07\0\0\0\x06pc-1.0\x05");
    counted(&mut file, "configuration/capabilities");
    file.extend(1u32.to_be_bytes());
    file.extend(u32::try_from(capabilities.len()).unwrap().to_be_bytes());
    for capability in capabilities {
        counted(&mut file, capability);
    }
    file.extend(b"\x01\0\0\0\x07\x03ram\0\0\0\0\0\0\0\x04");
    let total: u64 = blocks.iter().map(|(_, count, _)| count * PAGE).sum();
    file.extend((total | RAM_MEM_SIZE).to_be_bytes());
    let mut block_1 = 0;
    for (id, count, first_word) in blocks {
        block_1 = file.len();
        counted(&mut file, id);
        file.extend((count * PAGE).to_be_bytes());
        if capabilities.contains(&"x-ignore-shared") {
            file.extend(0x10_0000u64.to_be_bytes());
        }
        let bitmap = file.len() as u64 + 28;
        let words = count.div_ceil(64);
        let pages = (bitmap + words * 8).next_multiple_of(PAGE);
        file.extend(1u32.to_be_bytes());
        for field in [PAGE, bitmap, pages] {
            file.extend(field.to_be_bytes());
        }
        file.extend(first_word.to_le_bytes());
        file.resize(usize::try_from(pages + count * PAGE).unwrap(), 0);
    }
    file.extend(b"\0\0\0\0\0\0\0\x10\x7e\0\0\0\x07");
    let tail = file.len();
    file.extend(b"\x04 device state \x7e\0\0\0\0\0\x06");
    file.extend(u32::try_from(DESCRIPTION.len()).unwrap().to_be_bytes());
    file.extend(DESCRIPTION);
    Sample { file, block_1, tail }
}

/// Parses the sample after `change`.
fn damaged(change: impl FnOnce(&mut Sample)) -> Error {
    let mut sample = sample();
    change(&mut sample);
    parse(&sample.file).unwrap_err()
}

fn put(sample: &mut Sample, at: usize, bytes: &[u8]) {
    sample.file[at..at + bytes.len()].copy_from_slice(bytes);
}

// Offsets within a block's entry whose name is "pc.bios".
const LEN: usize = 8;
const VERSION: usize = 16;
const PAGE_SIZE_FIELD: usize = 20;
const BITMAP: usize = 28;
const PAGES: usize = 36;

#[test]
fn a_valid_file_is_read_whole() {
    let sample = sample();
    let layout = parse(&sample.file).unwrap();
    assert_eq!(layout.machine, "pc-1.0");
    assert_eq!(layout.capabilities, ["mapped-ram"]);
    assert_eq!(layout.tail_offset, sample.tail as u64);
    let of = |block: &Block| (block.id.clone(), block.len, block.pages_offset, block.present_pages);
    assert_eq!(of(&layout.blocks[0]), ("pc.ram".into(), 70 * PAGE, PAGE, 3));
    assert_eq!(of(&layout.blocks[1]), ("pc.bios".into(), 3 * PAGE, 72 * PAGE, 2));
    let contents = contents(&sample.file).unwrap();
    assert_eq!(contents.fingerprint, "qemu-mapped-ram;machine=pc-1.0;pc.ram=286720;pc.bios=12288");
    assert_eq!(contents.present_pages, Some(5));
}

#[test]
fn an_address_is_read_with_x_ignore_shared() {
    let sample = sample_with(&["mapped-ram", "x-ignore-shared"], &[("pc.ram", 2, 1)]);
    assert_eq!(parse(&sample.file).unwrap().blocks[0].gpa, Some(0x10_0000));
}

#[test]
fn memory_that_is_not_in_the_file_is_refused_by_name() {
    let mut sample = sample_with(&["mapped-ram", "x-ignore-shared"], &[("shm", 2, 1)]);
    let offsets = sample.block_1 + 4 + 8 + 8 + 12;
    put(&mut sample, offsets, &[0; 16]);
    assert_eq!(parse(&sample.file), Err(Error::BlockElsewhere { id: "shm".into() }));
}

#[test]
fn a_multifd_flush_may_precede_the_end_of_the_section() {
    let mut sample = sample();
    let at = sample.tail - 13;
    sample.file.splice(at..at, RAM_MULTIFD_FLUSH.to_be_bytes());
    assert_eq!(parse(&sample.file).unwrap().tail_offset, sample.tail as u64 + 8);
}

#[test]
fn a_machine_without_description_ends_with_the_end_mark() {
    let mut sample = sample();
    sample.file.truncate(sample.tail);
    sample.file.extend(b"device state \x7e\0\0\0\x01\0");
    assert!(parse(&sample.file).is_ok());
    sample.file.pop();
    assert_eq!(parse(&sample.file), Err(Error::CutOff));
}

// Offsets in the sample's head.
const CAPABILITY_COUNT: usize = 54;
const CAPABILITY: usize = 56;
const RAM_SECTION: usize = 66;
const RAM_NAME: usize = 72;
const RAM_VERSION_FIELD: usize = 82;
const MEM_SIZE: usize = 83;

#[test]
fn each_damage_to_the_head_has_its_name() {
    assert_eq!(damaged(|s| s.file[0] = b'q'), Error::NotAStream);
    assert_eq!(damaged(|s| s.file[7] = 4), Error::StreamVersion { found: 4 });
    assert_eq!(damaged(|s| s.file[8] = 1), Error::NoConfiguration { found: 1 });
    assert_eq!(damaged(|s| s.file[9] = 1), Error::MachineName);
    assert_eq!(damaged(|s| s.file[13] = b'\n'), Error::MachineName);
    assert!(matches!(damaged(|s| s.file[22] = b'C'), Error::UnknownConfiguration { .. }));
    assert_eq!(damaged(|s| s.file[CAPABILITY_COUNT] = 99), Error::TooManyCapabilities { found: 99 });
    let unknown = damaged(|s| put(s, CAPABILITY, b"\xffapped-ram"));
    assert_eq!(unknown, Error::UnknownCapability { name: "\u{fffd}apped-ram".into() });
    let vfio = damaged(|s| put(s, RAM_NAME, b"abc"));
    assert_eq!(vfio, Error::NotRamFirst { kind: SECTION_START, name: "abc".into() });
    let full = damaged(|s| s.file[RAM_SECTION] = 4);
    assert_eq!(full, Error::NotRamFirst { kind: 4, name: String::new() });
    assert_eq!(damaged(|s| s.file[RAM_VERSION_FIELD] = 5), Error::RamVersion { found: 5 });
    assert!(matches!(damaged(|s| s.file[MEM_SIZE + 7] = 8), Error::NoBlockList { .. }));
    let less = (72 * PAGE) | RAM_MEM_SIZE;
    let sum = damaged(|s| put(s, MEM_SIZE, &less.to_be_bytes()));
    assert_eq!(sum, Error::BlockSum { id: "pc.bios".into(), left: 2 * PAGE });
}

#[test]
fn each_damage_to_a_block_has_its_name() {
    let id = || "pc.bios".to_owned();
    let field = |at: usize, value: u64| damaged(|s| put(s, s.block_1 + at, &value.to_be_bytes()));
    let b = sample().block_1;
    assert_eq!(damaged(|s| s.file[b + 1] = 0), Error::BlockName { at: b as u64 });
    assert_eq!(damaged(|s| s.file[b + 1] = 0x80), Error::BlockName { at: b as u64 });
    assert_eq!(field(LEN, PAGE + 1), Error::BlockLength { id: id(), len: PAGE + 1 });
    let version = damaged(|s| s.file[b + VERSION + 3] = 2);
    assert_eq!(version, Error::HeaderVersion { id: id(), found: 2 });
    assert_eq!(field(PAGE_SIZE_FIELD, 65_536), Error::PageSize { id: id(), found: 65_536 });
    assert_eq!(field(PAGES, 72 * PAGE + 512), Error::Misaligned { id: id(), offset: 72 * PAGE + 512 });
    assert!(matches!(field(PAGES, 73 * PAGE), Error::OutsideFile { what: "pages", .. }));
    assert!(matches!(field(PAGES, PAGE.wrapping_neg()), Error::OutsideFile { what: "pages", .. }));
    assert!(matches!(field(BITMAP, u64::MAX), Error::OutsideFile { what: "bitmap", .. }));
    // Over its own header, over another block, after its own pages' begin.
    assert!(matches!(field(BITMAP, b as u64), Error::Overlap { what: "bitmap", .. }));
    assert!(matches!(field(PAGES, PAGE), Error::Overlap { what: "pages", .. }));
    assert!(matches!(field(BITMAP, 72 * PAGE), Error::Overlap { what: "pages", .. }));
    assert_eq!(damaged(|s| s.file[b + PAGES + 8] |= 8), Error::BitmapBits { id: id() });
}

#[test]
fn a_bad_list_is_refused() {
    let twice = sample_with(&["mapped-ram"], &[("pc.ram", 1, 1), ("pc.ram", 1, 1)]);
    assert_eq!(parse(&twice.file), Err(Error::DuplicateBlock { id: "pc.ram".into() }));
    let names: Vec<String> = (0..=BLOCKS_MAX).map(|i| format!("block{i}")).collect();
    let many: Vec<_> = names.iter().map(|name| (name.as_str(), 0, 0)).chain([("last", 1, 1)]).collect();
    assert_eq!(parse(&sample_with(&["mapped-ram"], &many).file), Err(Error::TooManyBlocks));
    assert_eq!(parse(&sample_with(&[], &[("pc.ram", 1, 1)]).file), Err(Error::NotMappedRam));
    let tail = sample().tail as u64;
    for at in [1, 5, 6, 13] {
        let error = damaged(|s| s.file[s.tail - at] ^= 0x40);
        assert_eq!(error, Error::EndOfList { at: tail - 13 });
    }
}

#[test]
fn bitmaps_without_a_page_are_refused() {
    let empty = sample_with(&["mapped-ram"], &[("pc.ram", 70, 0), ("pc.bios", 3, 0)]);
    assert_eq!(parse(&empty.file), Err(Error::NoPages));
}

#[test]
fn a_file_that_was_cut_off_anywhere_is_refused() {
    let Sample { file, tail, .. } = sample();
    for len in 0..file.len() {
        // Within the device state a zero byte could be the end mark; elsewhere there is no doubt.
        if len <= tail || file[len - 1] != 0 {
            assert!(parse(&file[..len]).is_err(), "{len} of {} bytes", file.len());
        }
    }
}

/// What every accepted file must satisfy.
fn check(file: &[u8], layout: &Layout) {
    let mut end = 0;
    for block in &layout.blocks {
        assert!(end < block.bitmap_offset && block.bitmap_offset <= block.pages_offset);
        assert!(block.len.is_multiple_of(PAGE) && block.pages_offset.is_multiple_of(PAGE));
        assert!(block.present_pages <= block.len / PAGE);
        end = block.pages_offset + block.len;
    }
    assert!(end < layout.tail_offset && layout.tail_offset <= file.len() as u64);
}

/// Byte positions that hold fields, not pages.
fn field_positions(sample: &Sample) -> Vec<usize> {
    let pages = |block: &Block| block.pages_offset..block.pages_offset + block.len;
    let blocks = parse(&sample.file).unwrap().blocks;
    let in_pages = |at: &usize| blocks.iter().any(|block| pages(block).contains(&(*at as u64)));
    (0..sample.file.len()).filter(|at| !in_pages(at)).collect()
}

#[test]
fn no_single_damaged_byte_makes_it_panic() {
    let sample = sample();
    for at in field_positions(&sample) {
        for value in [0, 1, 0x7f, 0x80, 0xff, sample.file[at] ^ 1, sample.file[at].wrapping_add(16)] {
            let mut file = sample.file.clone();
            file[at] = value;
            if let Ok(layout) = parse(&file) {
                check(&file, &layout);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Mutations as a fuzzer makes them: overwritten, removed and inserted bytes, integers at their limits.
    #[test]
    fn no_mutation_makes_it_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0u8..5, any::<u64>()), 1..6),
        cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        let mut sample = sample();
        let positions = field_positions(&sample);
        for (at, kind, value) in edits {
            let at = positions[at.index(positions.len())].min(sample.file.len() - 8);
            let limits = [0, 1, PAGE - 1, PAGE, 1 << 32, u64::MAX, u64::MAX - PAGE + 1, sample.file.len() as u64];
            let limit = limits[usize::try_from(value % 8).unwrap()];
            match kind {
                0 => put(&mut sample, at, &value.to_be_bytes()[..1]),
                1 => put(&mut sample, at, &value.to_be_bytes()),
                2 => put(&mut sample, at, &limit.to_be_bytes()),
                3 => drop(sample.file.remove(at)),
                _ => sample.file.insert(at, value.to_be_bytes()[0]),
            }
        }
        if let Some(cut) = cut {
            sample.file.truncate(cut.index(sample.file.len()));
        }
        if let Ok(layout) = parse(&sample.file) {
            check(&sample.file, &layout);
        }
    }

    #[test]
    fn bits_are_counted_as_one_by_one(bits in prop::collection::vec(any::<bool>(), 1..300)) {
        let mut bitmap = vec![0u8; bits.len().div_ceil(64) * 8];
        for (i, _) in bits.iter().enumerate().filter(|(_, set)| **set) {
            bitmap[i / 8] |= 1 << (i % 8);
        }
        let set = bits.iter().filter(|set| **set).count() as u64;
        prop_assert_eq!(count_bits(&bitmap, bits.len() as u64), Some(set));
        let beyond = bits.len() % 64;
        if beyond != 0 {
            bitmap[bits.len() / 8] |= 1 << (bits.len() % 8);
            prop_assert_eq!(count_bits(&bitmap, bits.len() as u64), None);
        }
    }
}
