//! A file system that is full: a small tmpfs, mounted by the test, which needs the right to mount.

use std::fs;
use std::path::PathBuf;

use nix::mount::{MsFlags, mount, umount};

use super::*;

/// A tmpfs of so many bytes, unmounted when dropped.
struct Small {
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Small {
    /// `None`, with the reason printed, where mounting is not allowed.
    fn mount(bytes: usize) -> Option<Self> {
        let dir = scratch();
        let path = dir.path().to_path_buf();
        let options = format!("size={bytes},mode=700");
        match mount(Some("tmpfs"), &path, Some("tmpfs"), MsFlags::empty(), Some(options.as_str())) {
            Ok(()) => Some(Self { path, _dir: dir }),
            Err(error) => {
                println!("SKIPPED: a tmpfs cannot be mounted here ({error}); run as root");
                assert!(std::env::var_os("SCATTER_REQUIRE_LAB").is_none(), "this lane must run: {error}");
                None
            }
        }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = umount(&self.path);
    }
}

fn contents(pages: usize) -> (Image, Vec<Block>) {
    let kinds: Vec<u8> = (0..pages).map(|i| 3 + u8::try_from(i % 200).unwrap()).collect();
    let image = Image { vm: VmId(0), name: "big".to_owned(), kinds, tail: PAGE_SIZE };
    let blocks = (0..pages / 16).map(|i| {
        let mut block = Block::default();
        block.add(image.vm, u32::try_from(16 * i).unwrap(), &image.kinds[16 * i..16 * i + 16], false);
        block.sealed()
    });
    let blocks = blocks.collect();
    (image, blocks)
}

#[test]
fn what_cannot_fit_is_refused_at_the_start() {
    let Some(small) = Small::mount(1 << 20) else { return };
    let store = open(&small.path);
    let (image, _) = contents(512);
    let message = assert_err!(
        store.begin("t", &[image.spec()], false),
        StoreError::StoreFull { needed_bytes: 2_097_152, free_bytes: 900_000..1_048_576, .. }
    );
    assert!(message.contains(small.path.to_str().unwrap()) && message.contains("2097152"), "{message}");
    assert!(!part(&small.path, "big").exists());
    // A sparse image of any size fits.
    let sparse = Image { kinds: vec![0; 512], ..image };
    store.begin("t", &[sparse.spec()], false).unwrap();
}

#[test]
fn a_disk_that_fills_up_is_an_error_and_resumes_once_there_is_space() {
    let Some(small) = Small::mount(2 << 20) else { return };
    let ballast = small.path.join("ballast");
    let (image, blocks) = contents(256);
    let specs = [image.spec()];
    {
        let store = open(&small.path);
        let intake = store.begin("t", &specs, false).unwrap();
        // Somebody else fills the disk meanwhile.
        fs::write(&ballast, vec![1; 1_500_000]).unwrap();
        let mut placed = 0;
        let error = blocks.iter().find_map(|block| {
            let result = intake.place(block.digest, &block.decoded());
            placed += usize::from(result.is_ok());
            result.err()
        });
        let message = assert_err!(
            error.map_or(Ok(()), Err),
            StoreError::StoreFull { vm: Some(ref vm), free_bytes: 0..65536, .. } if vm == "big"
        );
        assert!(message.contains("big.ram.part") && message.contains("free some space"), "{message}");
        assert!(placed > 0 && placed < blocks.len());
        assert!(!intake.is_complete(image.vm));
        // Going on where it failed works without starting anew, too.
        fs::write(&ballast, vec![1; 1_300_000]).unwrap();
        let next = &blocks[placed];
        intake.place(next.digest, &next.decoded()).unwrap();
    }
    let store = open(&small.path);
    let message = assert_err!(store.begin("t", &specs, false), StoreError::StoreFull { .. });
    assert!(message.contains("big"), "{message}");
    fs::remove_file(&ballast).unwrap();
    let intake = store.begin("t", &specs, false).unwrap();
    let held = intake.held_digests();
    assert!(held.len() > 4);
    for block in &blocks {
        assert_eq!(intake.confirm_held(&block.digest), held.contains(&block.digest));
        intake.place(block.digest, &block.decoded()).unwrap();
    }
    assert!(fs::read(intake.finish(image.vm).unwrap()).unwrap() == image.bytes());
}
