//! Records of the journal: which block wrote which pages.
//!
//! ```text
//! 0   u32  state: LIVE, or anything else: dead (overwritten in place when the block's pages are about to change)
//! 4   u32  length of the payload in bytes
//! 8   u64  checksum: first 8 bytes of the payload's BLAKE3
//! 16       payload: digest (32), varint number of runs, and for each run varints: steps to its VM's place in the
//!          table, first page (as distance from the end of the VM's run before), pages less one
//! ```
//!
//! The state is not under the checksum and is changed in place. So *any* prefix of a journal tells the truth about the
//! records in it: cutting off a damaged tail can lose records, it cannot bring a dead one back.

use std::io::{self, Read};

/// A block's BLAKE3 digest.
pub(super) type Digest = [u8; 32];

/// Length of a record's head in bytes.
pub(super) const HEAD_BYTES: usize = 16;
/// Longest payload accepted: pages of a 1 MiB block at three varints each stay far below.
const PAYLOAD_BYTES_MAX: usize = 64 << 20;
const LIVE: u32 = 0x4556_494c;
const DEAD: u32 = 0x4441_4544;

/// Consecutive pages of one VM; `slot` is the VM's place in the intake's table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Run {
    pub(super) slot: u32,
    pub(super) first: u32,
    pub(super) count: u32,
}

impl Run {
    pub(super) fn end(self) -> u64 {
        u64::from(self.first) + u64::from(self.count)
    }
}

/// A record as read back.
pub(super) struct Record {
    pub(super) live: bool,
    pub(super) digest: Digest,
    pub(super) runs: Vec<Run>,
}

/// Encodes a live record; `runs` ascend by VM and page and do not overlap.
pub(super) fn encode(digest: &Digest, runs: &[Run], out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(&LIVE.to_le_bytes());
    out.extend_from_slice(&[0; HEAD_BYTES - 4]);
    out.extend_from_slice(digest);
    put_varint(out, u32::try_from(runs.len()).expect("runs name distinct pages of at most 2^32"));
    let (mut slot, mut end) = (0, 0);
    for run in runs {
        put_varint(out, run.slot - slot);
        if run.slot != slot {
            (slot, end) = (run.slot, 0);
        }
        put_varint(out, run.first - end);
        put_varint(out, run.count - 1);
        end = run.first + run.count;
    }
    let payload =
        u32::try_from(out.len() - HEAD_BYTES).expect("a block's runs encode to far less than 4 GiB");
    let check = checksum(&out[HEAD_BYTES..]);
    out[4..8].copy_from_slice(&payload.to_le_bytes());
    out[8..16].copy_from_slice(&check.to_le_bytes());
}

/// The bytes that, written over a record's first four, make it dead.
pub(super) fn dead_state() -> [u8; 4] {
    DEAD.to_le_bytes()
}

/// First 8 bytes of the BLAKE3 of `bytes`.
pub(super) fn checksum(bytes: &[u8]) -> u64 {
    let hash = blake3::hash(bytes);
    let (head, _) = hash.as_bytes().split_first_chunk::<8>().expect("a digest has 32 bytes");
    u64::from_le_bytes(*head)
}

/// Reads the next record; `None` at the end of the journal and at the first byte that cannot be a record's.
///
/// `raw` receives the record's bytes. `pages` are the VMs' page counts by place in the table.
pub(super) fn read(input: &mut impl Read, raw: &mut Vec<u8>, pages: &[u32]) -> io::Result<Option<Record>> {
    raw.clear();
    if !fill(input, raw, HEAD_BYTES)? {
        return Ok(None);
    }
    let word = |at: usize| u32::from_le_bytes(raw[at..at + 4].try_into().expect("four bytes of the head"));
    let (state, payload) = (word(0), word(4) as usize);
    let check = u64::from_le_bytes(raw[8..16].try_into().expect("eight bytes of the head"));
    if payload > PAYLOAD_BYTES_MAX || !fill(input, raw, payload)? || checksum(&raw[HEAD_BYTES..]) != check {
        return Ok(None);
    }
    Ok(decode(&raw[HEAD_BYTES..], pages).map(|(digest, runs)| Record { live: state == LIVE, digest, runs }))
}

/// Appends exactly `len` bytes to `raw`; `false` if the input ends before.
fn fill(input: &mut impl Read, raw: &mut Vec<u8>, len: usize) -> io::Result<bool> {
    Ok(input.by_ref().take(len as u64).read_to_end(raw)? == len)
}

fn decode(payload: &[u8], pages: &[u32]) -> Option<(Digest, Vec<Run>)> {
    let (digest, mut rest) = payload.split_first_chunk::<32>()?;
    let count = take_varint(&mut rest)? as usize;
    // A run takes at least three bytes, so the count bounds nothing that the payload does not.
    let mut runs = Vec::with_capacity(count.min(rest.len() / 3));
    let (mut slot, mut end) = (0u32, 0u64);
    for _ in 0..count {
        let step = take_varint(&mut rest)?;
        if step != 0 {
            (slot, end) = (slot.checked_add(step)?, 0);
        }
        let first = end + u64::from(take_varint(&mut rest)?);
        let count = take_varint(&mut rest)?.checked_add(1)?;
        end = first + u64::from(count);
        if end > u64::from(*pages.get(slot as usize)?) {
            return None;
        }
        runs.push(Run { slot, first: u32::try_from(first).ok()?, count });
    }
    rest.is_empty().then_some((*digest, runs))
}

/// LEB128.
fn put_varint(out: &mut Vec<u8>, mut value: u32) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

fn take_varint(rest: &mut &[u8]) -> Option<u32> {
    let mut value = 0u32;
    for shift in (0..32).step_by(7) {
        let (&byte, tail) = rest.split_first()?;
        *rest = tail;
        let bits = u32::from(byte & 0x7f);
        if shift == 28 && bits > 0xf {
            return None;
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn runs_from(gaps: &[(bool, u32, u32)]) -> Vec<Run> {
        let (mut slot, mut end) = (0, 0);
        gaps.iter()
            .map(|&(step, gap, more)| {
                if step {
                    (slot, end) = (slot + 1, 0);
                }
                let run = Run { slot, first: end + gap, count: more + 1 };
                end = run.first + run.count;
                run
            })
            .collect()
    }

    proptest! {
        #[test]
        fn records_come_back_as_written(
            digest: [u8; 32],
            gaps in proptest::collection::vec((any::<bool>(), 0u32..1 << 20, 0u32..1 << 20), 0..20),
        ) {
            let runs = runs_from(&gaps);
            let mut bytes = Vec::new();
            encode(&digest, &runs, &mut bytes);
            let mut raw = Vec::new();
            let record = read(&mut bytes.as_slice(), &mut raw, &[u32::MAX; 21]).unwrap().unwrap();
            prop_assert!(record.live);
            prop_assert_eq!(record.digest, digest);
            prop_assert_eq!(&record.runs, &runs);
            prop_assert_eq!(&raw, &bytes);
            // A VM that is one page too small refuses the record.
            if let Some(last) = runs.last() {
                let mut pages = [u32::MAX; 21];
                pages[last.slot as usize] = u32::try_from(last.end()).unwrap() - 1;
                prop_assert!(read(&mut bytes.as_slice(), &mut raw, &pages).unwrap().is_none());
            }
        }

        #[test]
        fn damaged_records_are_not_read(
            gaps in proptest::collection::vec((any::<bool>(), 0u32..1 << 20, 0u32..1 << 20), 0..20),
            at: proptest::sample::Index,
            flip in 1u8..,
        ) {
            let mut bytes = Vec::new();
            encode(&[7; 32], &runs_from(&gaps), &mut bytes);
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            let record = read(&mut bytes.as_slice(), &mut Vec::new(), &[u32::MAX; 21]).unwrap();
            // Damage to the state makes the record dead; anywhere else, unreadable.
            prop_assert!(record.is_none_or(|record| at < 4 && !record.live));
        }

        #[test]
        fn no_bytes_make_the_reader_panic(bytes: Vec<u8>) {
            let _ = read(&mut bytes.as_slice(), &mut Vec::new(), &[100, 100]);
            let _ = decode(&bytes, &[100, 100]);
        }
    }
}
