//! A body from its head and the pages that it brought: for hosts that keep pages, not bodies.

use super::compress::Scratch;
use super::decode::{BlockLimits, check_counts, decode_placements};
use super::encoding::Encoding;
use super::header::{HEADER_LEN, Header};
use super::{BlockError, ContentRun};
use crate::page::{PAGE_SIZE, Page, Pfn, VmId};

/// Header and placements of a block body, as stored at its front: with the pages, all that is needed to write it anew.
///
/// # Errors
/// [`BlockError`] if the bytes are no body.
pub fn body_head(body: &[u8]) -> Result<&[u8], BlockError> {
    let (header, rest) = Header::read(body)?;
    let len = HEADER_LEN + header.placement_stored as usize;
    let needed = len as u64;
    body.get(..len)
        .filter(|_| rest.len() >= header.placement_stored as usize)
        .ok_or(BlockError::Truncated { needed, found: body.len() })
}

/// Writes the body anew whose [`body_head`] this is. `page` copies a page of a VM, or says that it is not here; of several places
/// of a content the first that is here is taken. `None` if a content is nowhere.
///
/// The bytes are those of the first body only if the compressor's version is the same, and the pages are: its digest tells.
///
/// # Errors
/// [`BlockError`] if the bytes are no head within the limits.
pub fn rebuild_body(
    head: &[u8],
    limits: &BlockLimits,
    page: &mut dyn FnMut(VmId, Pfn, &mut Page) -> bool,
    scratch: &mut Scratch,
) -> Result<Option<Vec<u8>>, BlockError> {
    let (header, placements) = Header::read(head)?;
    check_counts(&header, limits)?;
    if placements.len() != header.placement_stored as usize {
        let needed = HEADER_LEN as u64 + u64::from(header.placement_stored);
        return Err(BlockError::Truncated { needed, found: head.len() });
    }
    let (runs, _) = decode_placements(&header, placements, limits, scratch)?;
    let mut contents = vec![0; header.contents as usize * PAGE_SIZE];
    let mut known = vec![false; header.contents as usize];
    let (pages, _) = contents.as_chunks_mut::<PAGE_SIZE>();
    for ContentRun { vm, pfn, content, count } in runs {
        for step in 0..count {
            let at = (content + step) as usize;
            if !known[at] {
                known[at] = page(vm, Pfn(pfn.0 + step), &mut pages[at]);
            }
        }
    }
    if !known.into_iter().all(|known| known) {
        return Ok(None);
    }
    let mut body = head.to_vec();
    if header.encoding == Encoding::Raw {
        body.append(&mut contents);
    } else {
        let mut packed = scratch.take();
        if scratch.compress(header.encoding, &contents, &mut packed) {
            body.extend_from_slice(&packed);
        }
        scratch.give_back(packed);
    }
    Ok(Some(body))
}
