//! Blocks that name contents to the one host that holds them, and those contents for a host that does not after all.

use super::{EncodePlan, EncodedBlock, PLACEMENTS_MAX, Placed, runs};
use crate::prepare::{Prepared, Stripe, VmInput};
use pages::block::{
    BlockLimits, BlockParts, Encoding, NamedBlock, Scratch, decode_named, encode_block, encode_named,
};
use pages::{PAGE_SIZE, Page, Pfn};

/// Contents that one block names at most: carried as they are, with their places, they still fit a control message.
pub const NAMED_CONTENTS_MAX: usize = 128;
/// Bytes of a body that names contents, for the same reason.
const BODY_BYTES_MAX: usize = 256 << 10;
const _: () =
    assert!(NAMED_CONTENTS_MAX * PAGE_SIZE + BODY_BYTES_MAX < wire::limits::BLOCK_BYTES_MAX as usize);

/// Encodes a stripe of contents that its host holds.
pub(super) fn encode_stripe(
    prepared: &Prepared,
    stripe: &Stripe,
    plan: &EncodePlan,
    scratch: &mut Scratch,
) -> Vec<EncodedBlock> {
    let segment = &prepared.segments[stripe.segment];
    let host = segment.hosts.iter().next().expect("contents are named to one host");
    let residents = prepared.residents.as_ref().expect("somebody told what it holds");
    let bytes_max = plan.block_bytes_max.min(BODY_BYTES_MAX);
    let mut blocks = Vec::new();
    let mut todo = vec![&segment.named[stripe.named.clone()]];
    while let Some(ids) = todo.pop() {
        if ids.len() > NAMED_CONTENTS_MAX {
            let (first, rest) = ids.split_at(NAMED_CONTENTS_MAX);
            todo.extend([rest, first]);
            continue;
        }
        let names: Vec<u128> = ids.iter().map(|id| residents.name(*id)).collect();
        // The host is told nothing of VMs that are not its own.
        let mut placed: Vec<Placed> = (0..)
            .zip(ids)
            .flat_map(|(at, id)| prepared.index.placements(*id).map(move |(vm, pfn)| (vm, pfn, at)))
            .filter(|(vm, _, _)| prepared.vms[usize::from(vm.0)].hosts.contains(host))
            .collect();
        placed.sort_unstable();
        let body = (placed.len() <= PLACEMENTS_MAX).then(|| encode_named(&runs(&placed), &names, scratch));
        if let Some(body) = body.filter(|body| body.len() <= bytes_max) {
            blocks.push(EncodedBlock::new(body, 0..0));
        } else if let [_] = ids {
            // One content that stands in very many places.
            for placed in placed.chunks((bytes_max / 32).max(1)) {
                blocks.push(EncodedBlock::new(encode_named(&runs(placed), &names, scratch), 0..0));
            }
        } else {
            let (first, rest) = ids.split_at(ids.len() / 2);
            todo.extend([rest, first]);
        }
    }
    blocks
}

/// The contents that a block names, as a body that carries them to the same places. `None` if the bytes are no such block's.
///
/// # Panics
/// If the block places pages that these VMs have not: it was encoded from others.
#[must_use]
pub fn supply(vms: &[VmInput], named: &[u8], scratch: &mut Scratch) -> Option<Vec<u8>> {
    let NamedBlock { runs, names, .. } = decode_named(named, &BlockLimits::default(), scratch).ok()?;
    let mut pages: Vec<Option<&Page>> = vec![None; names.len()];
    for run in &runs {
        for offset in 0..run.count {
            let slot = &mut pages[(run.content + offset) as usize];
            slot.get_or_insert_with(|| vms[usize::from(run.vm.0)].source.page(Pfn(run.pfn.0 + offset)));
        }
    }
    let pages: Option<Vec<&Page>> = pages.into_iter().collect();
    let pages = pages?;
    // Compressed as in the body that names them, the places fit here, too.
    let encoding = Encoding::Zstd { level: 1 };
    Some(encode_block(&BlockParts { runs: &runs, uniform: &[], contents: &pages }, encoding, scratch))
}
