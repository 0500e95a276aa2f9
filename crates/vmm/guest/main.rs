//! The self-checking guest: fills its memory with patterns, then checks and rewrites pages for ever and reports.
//!
//! A PVH image of its own, built by `crates/vmm/build.rs` with nothing but `rustc`, run at ring 3 (`boot.s`). It boots
//! in the micro-VM and in every hypervisor that takes PVH kernels. It proves that memory is right, and nothing
//! else: it is no operating system.
//!
//! `keys[page]` says what a page must hold: 0 means zeros, else word `i` is `key + i × STEP`. A written page gets
//! a new key, which depends on the clone's identity: clones diverge, and a page that is stale, swapped, foreign
//! or zero shows itself. The sum of all keys is kept apart, so the table itself is checked at each full pass.
//!
//! Command line, `name=decimal`: `mb` memory in MiB, `seed`, `zero` and `dup` percent of pages left zero or
//! filled with one of 64 repeated contents, and the defaults of what the control device sets (`device.rs` there).

#![no_std]
#![no_main]

mod balloon;
mod command_line;
mod console;

use balloon::{BATCH, Balloon};
use command_line::argument;
use console::{Line, in32, out32};
use core::arch::global_asm;
use core::ptr::addr_of_mut;

global_asm!(include_str!("boot.s"), options(att_syntax));

const PAGE: u64 = 4096;
const WORDS: usize = 512;
/// Where the pattern begins: all below belongs to the guest's program, tables and stack.
const PATTERN_AT: u64 = 8 << 20;
/// 3 GiB less what lies below the pattern: no memory above, where a PC has its device hole.
const PAGES_MAX: usize = 3 * 262_144 - 2048;
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
const CONTROL: u16 = 0x5c0;
/// A write of microseconds rests for so long, in the control device.
const REST: u16 = CONTROL + 32;
const CONTROL_MAGIC: u32 = 0x4d53_5643;
const START_INFO_MAGIC: u32 = 0x336e_c578;
/// Lines that one tick may print about wrong pages; the count is always whole.
const BAD_LINES_MAX: u32 = 8;

/// `hvm_start_info` of the PVH boot protocol, as far as it is read.
#[repr(C)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    module_list: u64,
    command_line: u64,
}

static mut KEYS: [u64; PAGES_MAX] = [0; PAGES_MAX];
/// Pages that a balloon has, a bit each.
static mut GIVEN: [u64; PAGES_MAX / 64] = [0; PAGES_MAX / 64];

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    let mut line = Line::new(false);
    line.text("PANIC\n");
    line.send();
    loop {
        core::hint::spin_loop();
    }
}

fn cycles() -> u64 {
    // SAFETY: RDTSC is always there on x86-64, and CR4.TSD is clear.
    unsafe { core::arch::x86_64::_rdtsc() }
}

fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// How the guest goes through its pages.
struct Workload {
    /// 0 random, 1 one after the other, 2 nine accesses of ten in a tenth of the pages.
    pattern: u64,
    /// Pages a tick.
    step: u64,
    /// Percent of checked pages that are written anew.
    write: u64,
    /// Rest between ticks: microseconds with the control device, cycles without.
    idle: u64,
}

struct Guest {
    keys: &'static mut [u64],
    given: &'static mut [u64],
    given_count: u32,
    balloon: Option<Balloon>,
    sum: u64,
    identity: u64,
    epoch: u32,
    device: bool,
    workload: Workload,
    rng: u64,
    cursor: u64,
    ticks: u64,
    passes: u64,
    written: u64,
    bad: u64,
    bad_lines: u32,
}

fn page_words(page: u64) -> &'static mut [u64; WORDS] {
    let at = (PATTERN_AT + page * PAGE) as *mut [u64; WORDS];
    // SAFETY: pages of the pattern lie above the program, below the end of memory (`mb`), identity-mapped and
    // aligned; only one reference is made at a time.
    unsafe { &mut *at }
}

fn fill(page: u64, key: u64) {
    let step = if key == 0 { 0 } else { STEP };
    for (i, word) in page_words(page).iter_mut().enumerate() {
        *word = key.wrapping_add((i as u64).wrapping_mul(step));
    }
}

/// Whether the page holds what its key says, and what its first word is.
fn check(page: u64, key: u64) -> (bool, u64) {
    let words = page_words(page);
    let step = if key == 0 { 0 } else { STEP };
    let mut wrong = 0;
    for (i, word) in words.iter().enumerate() {
        wrong |= *word ^ key.wrapping_add((i as u64).wrapping_mul(step));
    }
    (wrong == 0, words[0])
}

impl Guest {
    fn line(&self) -> Line {
        Line::new(self.device)
    }

    fn random(&mut self) -> u64 {
        self.rng = self.rng.wrapping_add(STEP);
        mix(self.rng)
    }

    fn next_page(&mut self) -> u64 {
        let pages = self.keys.len() as u64;
        if self.workload.pattern == 1 {
            let page = self.cursor;
            self.cursor = (page + 1) % pages;
            return page;
        }
        let hot = self.workload.pattern == 2 && !self.random().is_multiple_of(10);
        self.random() % if hot { (pages / 10).max(1) } else { pages }
    }

    fn report_bad(&mut self, page: u64, key: u64, has: u64) {
        self.bad += 1;
        if self.bad_lines < BAD_LINES_MAX {
            self.bad_lines += 1;
            let mut line = self.line();
            line.field("BAD page ", page);
            line.field(" key ", key);
            line.field(" has ", has);
            line.text("\n");
            line.send();
        }
    }

    /// A new key for a page.
    fn rewrite(&mut self, page: u64) {
        let key = self.keys[page as usize];
        let new = mix(key ^ mix(self.identity ^ page.wrapping_mul(STEP)).wrapping_add(self.written)) | 1;
        self.sum = self.sum.wrapping_add(new).wrapping_sub(key);
        self.keys[page as usize] = new;
        self.written += 1;
        fill(page, new);
    }

    fn is_given(&self, page: u64) -> bool {
        self.given[(page / 64) as usize] >> (page % 64) & 1 == 1
    }

    fn visit(&mut self) {
        let page = self.next_page();
        if self.is_given(page) {
            return;
        }
        let key = self.keys[page as usize];
        let (right, has) = check(page, key);
        if !right {
            self.report_bad(page, key, has);
        }
        if self.workload.write > 0 && self.random() % 100 < self.workload.write {
            self.rewrite(page);
        }
        if self.workload.pattern == 1 && self.cursor == 0 {
            self.end_pass();
        }
    }

    /// After each pass over all pages: the table of keys is right too.
    fn end_pass(&mut self) {
        self.passes += 1;
        let sum = self.keys.iter().fold(0u64, |sum, key| sum.wrapping_add(*key));
        if sum != self.sum {
            self.report_bad(u64::from(u32::MAX), self.sum, sum);
        }
        let mut line = self.line();
        line.field("PASS ", self.passes);
        line.text(if self.bad == 0 { " OK\n" } else { " BAD\n" });
        line.send();
    }

    fn tick(&mut self) {
        self.bad_lines = 0;
        for _ in 0..self.workload.step {
            self.visit();
        }
        self.ticks += 1;
        let mut line = self.line();
        line.field("TICK ", self.ticks);
        line.text(if self.bad == 0 { " OK" } else { " BAD" });
        line.field(" clone ", self.identity);
        line.field(" passes ", self.passes);
        line.field(" written ", self.written);
        line.field(" bad ", self.bad);
        line.text("\n");
        line.send();
    }

    /// Gives the balloon as many pages as it wants, or takes some back. What comes back should be zeros, and is written anew.
    fn balance(&mut self) {
        let Some(balloon) = self.balloon.take() else { return };
        let wanted = balloon.wanted().min(self.keys.len() as u32 / 2);
        if wanted != self.given_count {
            let (mut zero, mut stale) = (0, 0);
            while self.given_count != wanted {
                let give = self.given_count < wanted;
                let mut len = 0;
                let mut from = 0;
                while len < BATCH && self.given_count != wanted {
                    // Any pages are given, so that ranges of all lengths go; they come back in order.
                    let page = if give { self.random() % self.keys.len() as u64 } else { from };
                    from += 1;
                    if self.is_given(page) == give {
                        continue;
                    }
                    self.given[(page / 64) as usize] ^= 1 << (page % 64);
                    self.given_count = if give { self.given_count + 1 } else { self.given_count - 1 };
                    balloon.put(give, len, ((PATTERN_AT / PAGE) + page) as u32);
                    len += 1;
                }
                balloon.pass(give, len);
                if !give {
                    for i in 0..len {
                        let page = u64::from(balloon.at(give, i)) - PATTERN_AT / PAGE;
                        *(if check(page, 0).0 { &mut zero } else { &mut stale }) += 1;
                        self.rewrite(page);
                    }
                }
            }
            balloon.tell(self.given_count);
            let mut line = self.line();
            line.field("BALLOON has ", u64::from(self.given_count));
            line.field(" zero ", zero);
            line.field(" stale ", stale);
            line.text("\n");
            line.send();
        }
        self.balloon = Some(balloon);
    }

    fn rest(&self) {
        if self.device && self.workload.idle > 0 {
            out32(REST, self.workload.idle as u32);
            return;
        }
        let since = cycles();
        while cycles().wrapping_sub(since) < self.workload.idle {
            core::hint::spin_loop();
        }
    }

    /// Looks whether the control device says something new: another identity after a restore, another workload.
    fn listen(&mut self) {
        if !self.device {
            return;
        }
        let epoch = in32(CONTROL + 4);
        if epoch == self.epoch {
            return;
        }
        self.epoch = epoch;
        let identity = u64::from(in32(CONTROL + 8)) | u64::from(in32(CONTROL + 12)) << 32;
        self.workload = Workload {
            pattern: u64::from(in32(CONTROL + 16)),
            step: u64::from(in32(CONTROL + 20)),
            write: u64::from(in32(CONTROL + 24)),
            idle: u64::from(in32(CONTROL + 28)),
        };
        if identity != self.identity {
            self.identity = identity;
            // What two clones of one instant do from here on must differ.
            self.rng ^= mix(identity);
            let mut line = self.line();
            line.field("CLONE ", identity);
            line.text("\n");
            line.send();
        }
    }
}

fn start(info: &StartInfo) -> Guest {
    let command_line =
        if info.magic == START_INFO_MAGIC { info.command_line as *const u8 } else { core::ptr::null() };
    let number = |name: &str, default| argument(command_line, name.as_bytes(), default);
    let memory = number("mb", 32).clamp(9, 3072) << 20;
    let pages = ((memory - PATTERN_AT) / PAGE) as usize;
    let seed = mix(number("seed", 1));
    let (zero, dup) = (number("zero", 0), number("dup", 0));
    // SAFETY: `start` runs once, on the only CPU, and this is the only reference to the table ever made.
    let keys = unsafe { &mut (&mut *addr_of_mut!(KEYS))[..pages] };
    // SAFETY: as above.
    let given = unsafe { &mut (&mut *addr_of_mut!(GIVEN))[..pages.div_ceil(64)] };
    let mut sum = 0u64;
    for (page, key) in keys.iter_mut().enumerate() {
        let random = mix(seed ^ (page as u64).wrapping_mul(STEP));
        let class = random % 100;
        *key = match class {
            _ if class < zero => 0,
            _ if class < zero + dup => mix(random >> 32 & 63) | 1,
            _ => mix(random) | 1,
        };
        sum = sum.wrapping_add(*key);
        // Firmware may have left something in pages that are to be zero; reading a zero page costs no memory.
        if *key != 0 || !check(page as u64, 0).0 {
            fill(page as u64, *key);
        }
    }
    Guest {
        keys,
        given,
        given_count: 0,
        balloon: Balloon::find(command_line),
        sum,
        identity: 0,
        epoch: 0,
        device: in32(CONTROL) == CONTROL_MAGIC,
        workload: Workload {
            pattern: number("pattern", 0),
            step: number("step", 256),
            write: number("write", 50),
            idle: number("idle", 20_000_000),
        },
        rng: seed,
        cursor: 0,
        ticks: 0,
        passes: 0,
        written: 0,
        bad: 0,
        bad_lines: 0,
    }
}

/// Called by `boot.s` with the address of the boot protocol's structure.
#[unsafe(no_mangle)]
extern "C" fn guest_main(info: &StartInfo) -> ! {
    let mut guest = start(info);
    let mut line = guest.line();
    line.field("READY pages ", guest.keys.len() as u64);
    line.text("\n");
    line.send();
    loop {
        guest.listen();
        guest.balance();
        guest.tick();
        guest.rest();
    }
}
