//! From a stripe of contents to encoded, digested blocks.
//!
//! Blocks are filled as far as K allows: the number of contents in each follows the compression seen in the
//! block before. It depends on the stripe alone, so encoding a stripe again gives the same blocks and the same
//! digests, which is what lets a later session skip what hosts hold.

mod named;

pub use named::{NAMED_CONTENTS_MAX, supply};

use crate::prepare::{Prepared, Stripe};
use pages::block::{BlockParts, ContentRun, Encoding, Scratch, UniformPlacement, encode_block};
use pages::{ContentId, PAGE_SIZE, PageSource, Pfn, UniformRun, VmId, uniform_word};
use std::ops::Range;
use wire::Digest;

/// How a session encodes.
#[derive(Clone, Copy, Debug)]
pub struct EncodePlan {
    /// The encoding of every block's contents (a block that would grow stays raw).
    pub encoding: Encoding,
    /// Encoded bytes per content byte, expected.
    pub ratio: f64,
    /// Most bytes of a block: K symbols, at most 1 MiB.
    pub block_bytes_max: usize,
}

/// A block, ready to be sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EncodedBlock {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// BLAKE3 of them.
    pub digest: Digest,
    /// The contents in it, as a range of its segment's; a content that stands in very many places is in several blocks.
    pub contents: Range<usize>,
}

/// Smallest largest symbol of a session: 128 of them hold a page and its placements.
pub const SYMBOL_BYTES_MIN: u16 = 256;

/// Contents in one block at most: bounds what a receiver holds decoded to 8 MiB.
pub const BLOCK_CONTENTS_MAX: usize = 2048;

/// Places of contents in one block at most, whatever they compress to: a guest decides how often a page stands in its
/// memory, and receivers take 262,144 runs.
const PLACEMENTS_MAX: usize = 1 << 17;

impl EncodedBlock {
    fn new(bytes: Vec<u8>, contents: Range<usize>) -> Self {
        Self { digest: *blake3::hash(&bytes).as_bytes(), bytes, contents }
    }
}

impl EncodePlan {
    /// A plan for sessions with this largest symbol.
    #[must_use]
    pub fn new(encoding: Encoding, ratio: f64, symbol_size_max: u16) -> Self {
        let symbols = fec::SYMBOLS_MAX as usize * usize::from(symbol_size_max);
        Self { encoding, ratio, block_bytes_max: symbols.min(wire::limits::BLOCK_BYTES_MAX as usize) }
    }

    fn first_guess(&self) -> usize {
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a small positive count"
        )]
        let guess = (self.block_bytes_max as f64 * 0.9 / (PAGE_SIZE as f64 * self.ratio.max(0.01))) as usize;
        guess.clamp(1, BLOCK_CONTENTS_MAX)
    }
}

/// Encodes one stripe. `scratch` is one thread's own.
///
/// # Panics
/// If a block has no room for a page and some placements: symbols are below [`SYMBOL_BYTES_MIN`] then.
#[must_use]
pub fn encode_stripe(
    prepared: &Prepared,
    stripe: &Stripe,
    plan: &EncodePlan,
    scratch: &mut Scratch,
) -> Vec<EncodedBlock> {
    if !stripe.named.is_empty() {
        return named::encode_stripe(prepared, stripe, plan, scratch);
    }
    let mut blocks = Vec::new();
    let (mut contents, mut uniform) = (stripe.contents.clone(), stripe.uniform.clone());
    let (mut take_contents, mut take_uniform) = (plan.first_guess(), uniform.len());
    while !contents.is_empty() || !uniform.is_empty() {
        let part = Stripe {
            segment: stripe.segment,
            contents: contents.start..(contents.start + take_contents).min(contents.end),
            uniform: uniform.start..(uniform.start + take_uniform).min(uniform.end),
            named: 0..0,
        };
        let count = part.contents.len();
        // What has too many places is not even tried.
        let bytes = (placement_count(prepared, &part) <= PLACEMENTS_MAX)
            .then(|| encode_part(prepared, &part, plan.encoding, scratch));
        match bytes {
            Some(bytes) if bytes.len() <= plan.block_bytes_max => {
                if count > 0 {
                    let fitting = count * plan.block_bytes_max * 31 / (bytes.len() * 32);
                    take_contents = fitting.clamp(count / 2, count * 2).clamp(1, BLOCK_CONTENTS_MAX);
                }
                contents.start = part.contents.end;
                uniform.start = part.uniform.end;
                blocks.push(EncodedBlock::new(bytes, part.contents));
            }
            tried if count > 1 => {
                let fitting =
                    tried.map_or(count / 2, |bytes| count * plan.block_bytes_max * 15 / (bytes.len() * 16));
                take_contents = fitting.clamp(1, count - 1);
            }
            _ if !part.uniform.is_empty() => take_uniform = part.uniform.len() / 2,
            _ => {
                encode_wide(prepared, &part, plan, scratch, &mut blocks);
                contents.start = part.contents.end;
                take_uniform = uniform.len();
            }
        }
    }
    blocks
}

fn placement_count(prepared: &Prepared, part: &Stripe) -> usize {
    let ids = &prepared.segments[part.segment].contents[part.contents.clone()];
    ids.iter().map(|id| prepared.index.placement_count(*id) as usize).sum()
}

type Placed = (VmId, Pfn, u32);

/// One content that stands in so many places that they do not fit one block: sent in several, with a part of its
/// places each.
fn encode_wide(
    prepared: &Prepared,
    part: &Stripe,
    plan: &EncodePlan,
    scratch: &mut Scratch,
    blocks: &mut Vec<EncodedBlock>,
) {
    let id = prepared.segments[part.segment].contents[part.contents.start];
    let placed: Vec<Placed> = prepared.index.placements(id).map(|(vm, pfn)| (vm, pfn, 0)).collect();
    let page = page(prepared, id);
    // A placement takes at most 10 bytes or so, and runs take less.
    let most = ((plan.block_bytes_max - PAGE_SIZE) / 16).clamp(1, PLACEMENTS_MAX);
    for placed in placed.chunks(most) {
        let runs = runs(placed);
        let parts = BlockParts { runs: &runs, uniform: &[], contents: &[page] };
        let bytes = encode_block(&parts, plan.encoding, scratch);
        assert!(bytes.len() <= plan.block_bytes_max, "a content and few placements fit a block");
        blocks.push(EncodedBlock::new(bytes, part.contents.clone()));
    }
}

fn page(prepared: &Prepared, id: ContentId) -> &[u8; PAGE_SIZE] {
    let (vm, pfn) = prepared.index.representative(id);
    prepared.vms[usize::from(vm.0)].source.page(pfn)
}

fn encode_part(prepared: &Prepared, part: &Stripe, encoding: Encoding, scratch: &mut Scratch) -> Vec<u8> {
    let segment = &prepared.segments[part.segment];
    let ids = &segment.contents[part.contents.clone()];
    let contents: Vec<&[u8; PAGE_SIZE]> = ids.iter().map(|id| page(prepared, *id)).collect();
    let mut placed: Vec<Placed> = (0..)
        .zip(ids)
        .flat_map(|(content, id)| prepared.index.placements(*id).map(move |(vm, pfn)| (vm, pfn, content)))
        .collect();
    placed.sort_unstable();
    let runs = runs(&placed);
    let uniform = &segment.uniform[part.uniform.clone()];
    encode_block(&BlockParts { runs: &runs, uniform, contents: &contents }, encoding, scratch)
}

/// The body of a block with these pages of one VM, in any order, none twice: what a guest's page faults are answered with.
///
/// # Panics
/// With more than 2^32 pages, or one that the source has not.
#[must_use]
pub fn encode_pages(source: &dyn PageSource, vm: VmId, pages: &[u32], scratch: &mut Scratch) -> Vec<u8> {
    let (mut placed, mut uniform, mut contents) = (Vec::new(), Vec::new(), Vec::new());
    for &pfn in pages {
        let page = source.page(Pfn(pfn));
        if let Some(word) = uniform_word(page) {
            uniform.push(UniformPlacement { vm, run: UniformRun { first: Pfn(pfn), count: 1, word } });
        } else {
            let content = u32::try_from(contents.len()).expect("fewer than pages of a VM");
            placed.push((vm, Pfn(pfn), content));
            contents.push(page);
        }
    }
    let runs = runs(&placed);
    let parts = BlockParts { runs: &runs, uniform: &uniform, contents: &contents };
    encode_block(&parts, Encoding::Lz4, scratch)
}

/// Neighbours in memory and in the block become one run.
fn runs(placed: &[Placed]) -> Vec<ContentRun> {
    let mut runs: Vec<ContentRun> = Vec::new();
    for &(vm, pfn, content) in placed {
        match runs.last_mut() {
            Some(run)
                if run.vm == vm && run.pfn.0 + run.count == pfn.0 && run.content + run.count == content =>
            {
                run.count += 1;
            }
            _ => runs.push(ContentRun { vm, pfn, content, count: 1 }),
        }
    }
    runs
}
