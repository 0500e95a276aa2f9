//! How fast blocks are placed. Printed (`--nocapture`), not judged: machines differ.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

use super::*;

const PAGES: u32 = 32 << 10;
const BLOCK_PAGES: u32 = 256;

/// Blocks of 1 MiB that fill every `stride`-th page of one VM.
fn blocks(stride: u32, salt: u8) -> Vec<Block> {
    let contents: Vec<u8> = (0..BLOCK_PAGES).flat_map(|i| page(3 + u8::try_from(i % 250).unwrap())).collect();
    (0..PAGES / BLOCK_PAGES / stride)
        .map(|index| {
            let base = index * BLOCK_PAGES * stride;
            let run = |i| ContentRun { vm: VmId(0), pfn: Pfn(base + i * stride), content: i, count: 1 };
            let runs = if stride == 1 {
                vec![ContentRun { vm: VmId(0), pfn: Pfn(base), content: 0, count: BLOCK_PAGES }]
            } else {
                (0..BLOCK_PAGES).map(run).collect()
            };
            let digest = *blake3::hash(&[&index.to_le_bytes()[..], &[salt]].concat()).as_bytes();
            Block { digest, runs, contents: contents.clone(), ..Block::default() }
        })
        .collect()
}

/// Wall time, and the time that this thread spent in user mode: the store's own share.
struct Timer {
    start: Instant,
    user_us: i64,
}

fn user_us() -> i64 {
    getrusage(UsageWho::RUSAGE_THREAD).unwrap().user_time().num_microseconds()
}

impl Timer {
    fn start() -> Self {
        Self { start: Instant::now(), user_us: user_us() }
    }

    fn report(&self, what: &str, pages: u32) {
        let seconds = self.start.elapsed().as_secs_f64();
        let user = f64::from(i32::try_from(user_us() - self.user_us).unwrap()) * 1e3 / f64::from(pages);
        let speed = f64::from(pages) * 4096.0 / seconds / 1e9;
        println!(
            "{what:<52} {speed:7.2} GB/s  {:6.0} ns/page, in user mode {user:4.0}",
            seconds * 1e9 / f64::from(pages)
        );
    }
}

#[test]
fn placing_speed() {
    let root = scratch();
    let store = open(root.path());
    let file_len = u64::from(PAGES) * 4096;
    let spec = VmSpec { name: "a".to_owned(), file_len, page_count: PAGES, content_pages: 0 };
    let intake = store.begin("t", &[(VmId(0), spec)], false).unwrap();

    let long = blocks(1, 0);
    let bare = OpenOptions::new().create_new(true).write(true).open(root.path().join("bare")).unwrap();
    for what in ["bare pwrite, 1 MiB, fresh file", "bare pwrite, 1 MiB, again"] {
        let timer = Timer::start();
        for (offset, block) in (0..).step_by(1 << 20).zip(&long) {
            bare.write_all_at(&block.contents, offset).unwrap();
        }
        timer.report(what, PAGES);
    }
    let timer = Timer::start();
    for (offset, page) in
        (0..).step_by(8192).zip(long.iter().take(long.len() / 2).flat_map(|b| b.contents.chunks(4096)))
    {
        bare.write_all_at(page, offset).unwrap();
    }
    timer.report("bare pwrite, isolated pages, again", PAGES / 2);
    bare.set_len(0).unwrap();

    let place = |blocks: &[Block]| {
        for block in blocks {
            intake.place(block.digest, &block.decoded()).unwrap();
        }
    };
    let run = |what: &str, blocks: &[Block]| {
        let timer = Timer::start();
        place(blocks);
        timer.report(what, u32::try_from(blocks.len()).unwrap() * BLOCK_PAGES);
    };
    run("place, runs of 256 pages, fresh image", &long);
    run("place, runs of 256 pages, again (each kills one)", &blocks(1, 1));
    let again = blocks(1, 2);
    let timer = Timer::start();
    std::thread::scope(|scope| {
        for half in again.chunks(again.len().div_ceil(2)) {
            scope.spawn(|| place(half));
        }
    });
    timer.report("place, runs of 256 pages, again, 2 threads", PAGES);
    run("place, isolated pages, again (each kills two)", &blocks(2, 3));
    let zero = UniformRun { first: Pfn(0), count: PAGES, word: 0 };
    let zeros =
        Block { uniform: vec![UniformPlacement { vm: VmId(0), run: zero }], ..Block::default() }.sealed();
    run_zeros("one zero run over all of it, written before", &intake, &zeros, 1);
    run("place, isolated pages, fresh image", &blocks(2, 4));
    let hole = Block { digest: [9; 32], ..zeros.clone() };
    intake.place(hole.digest, &hole.decoded()).unwrap();
    run_zeros("one zero run over a hole", &intake, &Block { digest: [8; 32], ..zeros }, 0);
}

fn run_zeros(what: &str, intake: &super::super::Intake, zeros: &Block, writes: u64) {
    let timer = Timer::start();
    let stats = intake.place(zeros.digest, &zeros.decoded()).unwrap();
    timer.report(what, PAGES);
    assert_eq!(stats.writes, writes);
}
