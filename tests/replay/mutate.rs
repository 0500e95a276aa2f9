//! A deterministic mutation engine: few, small, nasty changes, as damage and as malice make them.

/// SplitMix64.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ word >> 31
    }

    /// Below `end`, or 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end.max(1) as u64).expect("below a usize")
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    /// Happens so many times in a thousand.
    pub(crate) fn permille(&mut self, share: usize) -> bool {
        self.below(1000) < share
    }
}

/// What lengths, counts and numbers break at.
const NASTY: [u64; 12] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    1 << 32,
    i64::MAX as u64,
    u64::MAX,
];

/// Changes `bytes` in one to four places; `other` lends pieces.
pub(crate) fn mutate(rng: &mut Rng, bytes: &mut Vec<u8>, other: &[u8]) {
    for _ in 0..=rng.below(4) {
        mutate_once(rng, bytes, other);
    }
}

fn mutate_once(rng: &mut Rng, bytes: &mut Vec<u8>, other: &[u8]) {
    let len = bytes.len();
    let at = rng.below(len);
    match rng.below(12) {
        0..=2 if len > 0 => bytes[at] ^= 1 << rng.below(8),
        3 | 4 if len > 0 => bytes[at] = rng.byte(),
        5 if len > 0 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][rng.below(5)],
        6 => {
            let word = NASTY[rng.below(NASTY.len())];
            let (little, big) = (word.to_le_bytes(), word.to_be_bytes());
            let width = [2, 4, 8][rng.below(3)].min(len - at);
            let word = if rng.below(2) == 0 { &little[..width] } else { &big[8 - width..] };
            bytes[at..at + width].copy_from_slice(word);
        }
        7 => {
            // A varint of any length, too long ones among them.
            let mut varint = vec![0xff; rng.below(11)];
            varint.push(rng.byte() & 0x7f);
            bytes.splice(at..(at + 1).min(len), varint);
        }
        8 => bytes.truncate(at),
        9 => {
            bytes.drain(at..(at + 1 + rng.below(8)).min(len));
        }
        10 => {
            let from = rng.below(other.len());
            let piece = &other[from..(from + 1 + rng.below(32)).min(other.len())];
            bytes.splice(at..at, piece.iter().copied());
        }
        _ => {
            let from = rng.below(other.len());
            let piece = &other[from..(from + 1 + rng.below(64)).min(other.len())];
            let end = (at + piece.len()).min(len);
            bytes[at..end].copy_from_slice(&piece[..end - at]);
        }
    }
}
