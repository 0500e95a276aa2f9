//! Tests of the store as a whole, and what they share.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

pub(super) mod faults;
mod full;
mod lifecycle;
mod oracle;
mod resume;
mod speed;
mod threads;

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use pages::block::{ContentRun, DecodedBlock, Encoding, UniformPlacement};
use pages::{PAGE_SIZE, Pfn, UniformRun, VmId};
use rand::Rng;
use rand::seq::SliceRandom;

use super::disk::Disk;
use super::{Store, StoreError, VmSpec};

/// An image in small: what kind of page stands where. 0 is zero, 1 and 2 repeat a word, the others are contents.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Image {
    vm: VmId,
    name: String,
    kinds: Vec<u8>,
    /// Bytes of the last page that are in the file.
    tail: usize,
}

impl Image {
    fn random(vm: u16, pages: usize, rng: &mut impl Rng) -> Self {
        let kinds = (0..pages).map(|_| rng.random_range(0..9)).collect();
        let tail = if rng.random() { PAGE_SIZE } else { rng.random_range(1..PAGE_SIZE) };
        // Long names keep the journal's mark and its first record in different sectors.
        Self { vm: VmId(vm), name: format!("vm{vm}-{}", "x".repeat(190)), kinds, tail }
    }

    /// The same VM some time later.
    fn changed(&self, rng: &mut impl Rng) -> Self {
        let mut later = self.clone();
        for kind in &mut later.kinds {
            if rng.random_ratio(1, 3) {
                *kind = rng.random_range(0..9);
            }
        }
        later
    }

    fn spec(&self) -> (VmId, VmSpec) {
        let page_count = u32::try_from(self.kinds.len()).unwrap();
        let file_len = self.bytes().len() as u64;
        let content = self.kinds.iter().filter(|kind| **kind > 2).count();
        let content_pages = u32::try_from(content).unwrap();
        (self.vm, VmSpec { name: self.name.clone(), file_len, page_count, content_pages })
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.kinds.iter().flat_map(|kind| page(*kind)).collect();
        bytes.truncate((bytes.len() + self.tail).saturating_sub(PAGE_SIZE));
        bytes
    }
}

fn word(kind: u8) -> u64 {
    [0, 0x0102_0304_0506_0708, u64::MAX][usize::from(kind)]
}

fn page(kind: u8) -> [u8; PAGE_SIZE] {
    let mut page = [0; PAGE_SIZE];
    match kind {
        0..=2 => page.as_chunks_mut().0.fill(word(kind).to_le_bytes()),
        _ => blake3::Hasher::new().update(&[kind]).finalize_xof().fill(&mut page),
    }
    page
}

/// A block as it comes out of the decoder, and its digest.
#[derive(Clone, Debug, Default)]
struct Block {
    digest: [u8; 32],
    runs: Vec<ContentRun>,
    uniform: Vec<UniformPlacement>,
    contents: Vec<u8>,
}

impl Block {
    fn decoded(&self) -> DecodedBlock<'_> {
        DecodedBlock {
            runs: self.runs.clone(),
            uniform: self.uniform.clone(),
            contents: Cow::Borrowed(&self.contents),
            encoding: Encoding::Raw,
        }
    }

    fn sealed(mut self) -> Self {
        let text = format!("{:?} {:?}", self.runs, self.uniform);
        self.digest =
            *blake3::Hasher::new().update(text.as_bytes()).update(&self.contents).finalize().as_bytes();
        self
    }

    /// Adds pages `first..first + kinds.len()` of a VM; contents are merged within the block where `merge` says so.
    fn add(&mut self, vm: VmId, first: u32, kinds: &[u8], merge: bool) {
        let mut known: HashMap<Vec<u8>, u32> = HashMap::new();
        for (pfn, &kind) in (first..).zip(kinds) {
            if kind <= 2 {
                let word = word(kind);
                match self.uniform.last_mut() {
                    Some(UniformPlacement { vm: v, run })
                        if *v == vm && run.word == word && run.first.0 + run.count == pfn =>
                    {
                        run.count += 1;
                    }
                    _ => self
                        .uniform
                        .push(UniformPlacement { vm, run: UniformRun { first: Pfn(pfn), count: 1, word } }),
                }
                continue;
            }
            let bytes = page(kind).to_vec();
            let next = u32::try_from(self.contents.len() / PAGE_SIZE).unwrap();
            let content = if merge { known.get(&bytes).copied().unwrap_or(next) } else { next };
            if content == next {
                self.contents.extend_from_slice(&bytes);
                known.insert(bytes, next);
            }
            match self.runs.last_mut() {
                Some(run)
                    if run.vm == vm && run.pfn.0 + run.count == pfn && run.content + run.count == content =>
                {
                    run.count += 1;
                }
                _ => self.runs.push(ContentRun { vm, pfn: Pfn(pfn), content, count: 1 }),
            }
        }
    }

    /// Every page that the block gives to `vm`.
    fn pages_of(&self, vm: VmId) -> Vec<(u32, Vec<u8>)> {
        let mut pages = Vec::new();
        for run in self.runs.iter().filter(|run| run.vm == vm) {
            for i in 0..run.count {
                let at = (run.content + i) as usize * PAGE_SIZE;
                pages.push((run.pfn.0 + i, self.contents[at..at + PAGE_SIZE].to_vec()));
            }
        }
        for UniformPlacement { run, .. } in self.uniform.iter().filter(|placed| placed.vm == vm) {
            for i in 0..run.count {
                pages.push((run.first.0 + i, run.word.to_le_bytes().repeat(PAGE_SIZE / 8)));
            }
        }
        pages
    }
}

/// Cuts images into blocks of scattered stretches; some stretches stand in two blocks, and some blocks hold pages of a
/// VM of another host.
fn layout(images: &[Image], rng: &mut impl Rng) -> Vec<Block> {
    let mut stretches = Vec::new();
    for (index, image) in images.iter().enumerate() {
        let mut first = 0;
        while first < image.kinds.len() {
            let end = (first + rng.random_range(1..8)).min(image.kinds.len());
            stretches.push((index, first, end));
            first = end;
        }
    }
    stretches.shuffle(rng);
    let mut blocks = Vec::new();
    for group in stretches.chunks(rng.random_range(1..6)) {
        let mut group = group.to_vec();
        let extra = *stretches.choose_one(rng);
        if rng.random_ratio(1, 4) && !group.contains(&extra) {
            group.push(extra);
        }
        let mut block = Block::default();
        for (index, first, end) in group {
            let image = &images[index];
            block.add(image.vm, u32::try_from(first).unwrap(), &image.kinds[first..end], rng.random());
        }
        if rng.random_ratio(1, 4) {
            block.add(VmId(5), rng.random_range(0..1 << 20), &[0, 1, 4, 5], false);
        }
        blocks.push(block.sealed());
    }
    blocks
}

trait ChooseOne<T> {
    fn choose_one(&self, rng: &mut impl Rng) -> &T;
}

impl<T> ChooseOne<T> for [T] {
    fn choose_one(&self, rng: &mut impl Rng) -> &T {
        &self[rng.random_range(0..self.len())]
    }
}

fn image(name: &str, kinds: &[u8]) -> Image {
    Image { vm: VmId(3), name: name.to_owned(), kinds: kinds.to_vec(), tail: PAGE_SIZE }
}

/// The pages `first..end` of an image as a block.
fn block(image: &Image, first: usize, end: usize) -> Block {
    let mut block = Block::default();
    block.add(image.vm, u32::try_from(first).unwrap(), &image.kinds[first..end], true);
    block.sealed()
}

/// A directory in memory where there is one: syncing costs nothing there.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// A store whose checkpoints are made by the test alone.
fn open(root: &Path) -> Store {
    open_as(root, "boot-0")
}

fn open_as(root: &Path, boot_id: &str) -> Store {
    Store::open_as(root, boot_id, u64::MAX, Disk::default()).unwrap()
}

fn ram(root: &Path, name: &str) -> PathBuf {
    root.join(format!("{name}.ram"))
}

fn part(root: &Path, name: &str) -> PathBuf {
    root.join(format!("{name}.ram.part"))
}

/// Asserts that `result` is the error that `pattern` describes and returns its message.
macro_rules! assert_err {
    ($result:expr, $pattern:pat $(if $guard:expr)?) => {
        match $result {
            Err(ref error @ $pattern) $(if $guard)? => error.to_string(),
            Err(other) => panic!("another error than expected: {other:?}"),
            Ok(_) => panic!("no error"),
        }
    };
}
use assert_err;
