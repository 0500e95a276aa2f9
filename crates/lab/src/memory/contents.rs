//! The bytes of a page, made from the seed and the content's number.

use super::layout::Class;
use super::{Fleet, PAGE_SIZE, PageMix};
use crate::rng::Rng;

/// Names a stream of the generator for each kind of content, so that they never meet.
const UNIFORM: u64 = 1;
const REPEATED: u64 = 2;
const SYSTEM: u64 = 3;
const UNIQUE: u64 = 4;
const DRIFT: u64 = 5;

pub(super) struct Contents {
    seed: u64,
    vm: u64,
    system: u64,
    mix: PageMix,
}

impl Contents {
    /// `fleet.systems` is at least 1.
    pub(super) fn new(fleet: &Fleet, vm: u16) -> Self {
        Self { seed: fleet.seed, vm: vm.into(), system: (vm % fleet.systems).into(), mix: fleet.mix }
    }

    /// Whether this VM has changed a page of its system.
    pub(super) fn is_drifted(&self, number: u32) -> bool {
        self.drift(number).chance_ppm(u32::from(self.mix.drifted_permille) * 1_000)
    }

    pub(super) fn fill(&self, class: Class, number: u32, page: &mut [u8; PAGE_SIZE]) {
        let number_wide = u64::from(number);
        let stream = |kind, owner| Rng::of(self.seed, &[kind, owner, number_wide]);
        match class {
            Class::Zero => page.fill(0),
            Class::Uniform => {
                // Set bits keep the word from being zero. VMs have such words in common, as real ones do.
                let word = (stream(UNIFORM, 0).next_u64() | 1).to_le_bytes();
                page.chunks_exact_mut(8).for_each(|slot| slot.copy_from_slice(&word));
            }
            Class::Repeated => self.content(stream(REPEATED, self.vm), page),
            Class::Unique => self.content(stream(UNIQUE, self.vm), page),
            Class::System => {
                self.content(stream(SYSTEM, self.system), page);
                if self.is_drifted(number) {
                    scribble(self.drift(number).fork(), page);
                }
            }
        }
    }

    fn drift(&self, number: u32) -> Rng {
        Rng::of(self.seed, &[DRIFT, self.vm, u64::from(number)])
    }

    fn content(&self, mut rng: Rng, page: &mut [u8; PAGE_SIZE]) {
        if rng.chance_ppm(u32::from(self.mix.incompressible_permille) * 1_000) {
            rng.fill(page);
            return;
        }
        match rng.below(10) {
            0..3 => text(&mut rng, page),
            3..6 => objects(&mut rng, page),
            6..9 => code(&mut rng, page),
            _ => sparse(&mut rng, page),
        }
    }
}

/// A few words overwritten: a page that is nearly another.
fn scribble(mut rng: Rng, page: &mut [u8; PAGE_SIZE]) {
    for _ in 0..=rng.below(6) {
        let at = rng.index(PAGE_SIZE / 8) * 8;
        let word = rng.next_u64().to_le_bytes();
        page[at..at + 8].copy_from_slice(&word);
    }
}

const WORDS: [&str; 48] = [
    "kernel:",
    "systemd[1]:",
    "Started",
    "Stopped",
    "session",
    "for",
    "user",
    "root",
    "device",
    "eth0",
    "link",
    "is",
    "up",
    "the",
    "and",
    "of",
    "to",
    "in",
    "status",
    "failed",
    "daemon",
    "service",
    "target",
    "mount",
    "/usr/lib/",
    "/var/log/",
    "/etc/",
    "memory",
    "pages",
    "cache",
    "request",
    "GET",
    "200",
    "index.html",
    "error",
    "warning",
    "thread",
    "return",
    "static",
    "const",
    "struct",
    "int",
    "while",
    "buffer",
    "length",
    "offset",
    "reached",
    "loaded",
];

/// Lines as of a log: words that come again, numbers that do not.
fn text(rng: &mut Rng, page: &mut [u8; PAGE_SIZE]) {
    let mut line = Vec::with_capacity(256);
    let mut clock = rng.below(1 << 40);
    let mut at = 0;
    while at < PAGE_SIZE {
        line.clear();
        clock += rng.below(1 << 20);
        line.extend_from_slice(format!("[{clock:012}] ").as_bytes());
        for _ in 0..4 + rng.below(10) {
            line.extend_from_slice(WORDS[rng.index(WORDS.len())].as_bytes());
            line.push(b' ');
        }
        line.extend_from_slice(format!("0x{:06x}\n", rng.below(1 << 24)).as_bytes());
        let length = line.len().min(PAGE_SIZE - at);
        page[at..at + length].copy_from_slice(&line[..length]);
        at += length;
    }
}

/// Slab objects: pointers into one region, small counters, empty fields.
fn objects(rng: &mut Rng, page: &mut [u8; PAGE_SIZE]) {
    let region = 0xffff_8880_0000_0000 | (rng.below(1 << 18) << 12);
    let fields = 8 << rng.below(3);
    let kinds: Vec<u64> = (0..fields).map(|_| rng.below(8)).collect();
    for (index, slot) in page.chunks_exact_mut(8).enumerate() {
        let word = match kinds[index % kinds.len()] {
            0 => region + rng.below(1 << 14) * 64,
            1 => rng.below(16),
            2 => 0xffff_ffff_8100_0000 + rng.below(1 << 10) * 16,
            3 => rng.below(1 << 16),
            _ => 0,
        };
        slot.copy_from_slice(&word.to_le_bytes());
    }
}

/// Openings of common x86-64 instructions; operands follow.
const OPCODES: [&[u8]; 16] = [
    &[0x48, 0x89, 0xe5],
    &[0x48, 0x8b, 0x45],
    &[0x48, 0x8d, 0x3d],
    &[0xe8],
    &[0x55],
    &[0xc3],
    &[0x48, 0x83, 0xec],
    &[0x0f, 0x84],
    &[0x74],
    &[0x75],
    &[0x48, 0x85, 0xc0],
    &[0x31, 0xc0],
    &[0x41, 0x54],
    &[0x41, 0x5c],
    &[0x89, 0xc7],
    &[0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00],
];

/// Machine code: sequences that a compiler repeats, with operands of which many are small.
fn code(rng: &mut Rng, page: &mut [u8; PAGE_SIZE]) {
    let idioms: Vec<Vec<u8>> = (0..24)
        .map(|_| (0..3 + rng.below(4)).flat_map(|_| OPCODES[rng.index(OPCODES.len())]).copied().collect())
        .collect();
    let mut at = 0;
    while at < PAGE_SIZE {
        let idiom = &idioms[rng.index(idioms.len())];
        let operand = if rng.below(4) == 0 { rng.next_u64() } else { rng.below(16) << 3 };
        let operand = &operand.to_le_bytes()[..rng.index(3)];
        for byte in idiom.iter().chain(operand) {
            if at < PAGE_SIZE {
                page[at] = *byte;
                at += 1;
            }
        }
    }
}

/// A page begun and left: data, then nothing.
fn sparse(rng: &mut Rng, page: &mut [u8; PAGE_SIZE]) {
    page.fill(0);
    let length = 64 + rng.index(PAGE_SIZE / 2);
    rng.fill(&mut page[..length]);
}
