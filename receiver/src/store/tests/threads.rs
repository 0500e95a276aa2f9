//! Several threads placing blocks into the same images.

use std::fs;
use std::sync::Barrier;

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use super::*;

const THREADS: u64 = 4;

#[test]
fn four_threads_place_overlapping_blocks() {
    for seed in 0..20 {
        let mut rng = StdRng::seed_from_u64(seed);
        let images = [Image::random(3, 600, &mut rng), Image::random(7, 301, &mut rng)];
        let blocks = layout(&images, &mut rng);
        let root = scratch();
        // Checkpoints all the time, by the store's own thread.
        let store = Store::open_as(root.path(), "boot-0", 64 << 10, Disk::default()).unwrap();
        let specs: Vec<_> = images.iter().map(Image::spec).collect();
        let intake = store.begin("t", &specs, false).unwrap();
        let start = Barrier::new(usize::try_from(THREADS).unwrap());
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (intake, start, mut blocks) = (&intake, &start, blocks.clone());
                scope.spawn(move || {
                    blocks.shuffle(&mut StdRng::seed_from_u64(seed * THREADS + thread));
                    start.wait();
                    // Each thread places every block; those that are there already cost nothing.
                    for block in &blocks {
                        intake.place(block.digest, &block.decoded()).unwrap();
                    }
                });
            }
        });
        for image in &images {
            assert_eq!(intake.remaining_pages(image.vm), 0);
            let path = intake.finish(image.vm).unwrap();
            assert!(fs::read(path).unwrap() == image.bytes(), "seed {seed}");
        }
        intake.close_transfer().unwrap();
    }
}

/// A broken sender announces blocks that contradict each other, and they arrive at once: whichever is held afterwards
/// really has its bytes in the image.
#[test]
fn contradicting_blocks_in_parallel_leave_no_false_claim() {
    for seed in 0..20 {
        let mut rng = StdRng::seed_from_u64(seed);
        let images: Vec<_> =
            (0..THREADS).map(|_| Image { tail: PAGE_SIZE, ..Image::random(3, 64, &mut rng) }).collect();
        let layouts: Vec<_> =
            images.iter().map(|image| layout(std::slice::from_ref(image), &mut rng)).collect();
        let root = scratch();
        let store = open(root.path());
        let specs = [images[0].spec()];
        let intake = store.begin("t", &specs, false).unwrap();
        let start = Barrier::new(layouts.len());
        std::thread::scope(|scope| {
            for blocks in &layouts {
                let (intake, start) = (&intake, &start);
                scope.spawn(move || {
                    start.wait();
                    for block in blocks {
                        intake.place(block.digest, &block.decoded()).unwrap();
                    }
                });
            }
        });
        drop(intake);
        let intake = store.begin("t", &specs, false).unwrap();
        let held = intake.held_digests();
        assert!(!held.is_empty());
        let file = fs::read(part(root.path(), &images[0].name)).unwrap();
        for block in layouts.iter().flatten().filter(|block| held.contains(&block.digest)) {
            for (pfn, bytes) in block.pages_of(VmId(3)) {
                assert!(file[pfn as usize * PAGE_SIZE..][..PAGE_SIZE] == bytes, "seed {seed}, page {pfn}");
            }
        }
    }
}
