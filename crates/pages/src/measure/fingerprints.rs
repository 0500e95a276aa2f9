//! Short fingerprints: which of my contents might others have, too?

/// Bits by which fingerprints are longer than it takes to number all contents: one in 2^7 contents is a candidate by chance,
/// and costs its 16 bytes in vain, an eighth of a byte a content.
const SPARE_BITS: u8 = 7;
/// Shortest fingerprint.
const BITS_MIN: u8 = 16;
/// Longest fingerprint: 2^33 contents, 32 TiB.
const BITS_MAX: u8 = 40;

/// The length of fingerprints for so many contents of all hosts together, in bits: 16 to 40.
#[must_use]
pub fn fingerprint_bits(contents: u64) -> u8 {
    let numbering = u8::try_from(64 - contents.leading_zeros()).unwrap_or(64);
    (numbering + SPARE_BITS).clamp(BITS_MIN, BITS_MAX)
}

/// Ascending fingerprints of one host, Golomb–Rice coded: the differences of successive ones, their lower bits as they
/// are, the rest as so many ones and a zero. `n` of `b` bits take about `b − log2 n + 1.5` bits each, close to what sets
/// of random numbers must take (R. F. Rice, "Some practical universal noiseless coding techniques", 1979).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fingerprints {
    /// Bits of a fingerprint, 8 to 56.
    pub bits: u8,
    /// Lower bits of a difference that stand as they are.
    pub rice: u8,
    /// Number of fingerprints.
    pub count: u64,
    /// The code, lowest bit of each byte first.
    pub code: Vec<u8>,
}

/// Why a peer's fingerprints cannot be read.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FingerprintsError {
    /// Lengths that no encoder writes.
    #[error("fingerprints of {bits} bits with {rice} plain ones make no sense")]
    Shape {
        /// Bits of a fingerprint.
        bits: u8,
        /// Plain bits of a difference.
        rice: u8,
    },
    /// The code ends before, or goes on after, the number of fingerprints that were announced, or leaves their range.
    #[error("the code does not hold the {count} fingerprints that it should")]
    Damaged {
        /// Fingerprints announced.
        count: u64,
    },
}

impl Fingerprints {
    /// Encodes ascending fingerprints.
    ///
    /// # Panics
    /// If they do not ascend, or `bits` is not of 8 to 56.
    #[must_use]
    pub fn of(bits: u8, ascending: impl ExactSizeIterator<Item = u64>) -> Self {
        assert!((8..=56).contains(&bits), "fingerprints have 8 to 56 bits");
        let count = ascending.len() as u64;
        // The mean difference times ln 2, as a power of two.
        let numbering = 63u8.saturating_sub(u8::try_from(count.max(1).leading_zeros()).expect("at most 63"));
        let rice = bits.saturating_sub(numbering + 1);
        let mut code = Code::default();
        let mut last = 0;
        for fingerprint in ascending {
            let difference = fingerprint.checked_sub(last).expect("fingerprints ascend");
            (0..difference >> rice).for_each(|_| code.push(1, 1));
            code.push(0, 1);
            code.push(difference & mask(rice), rice);
            last = fingerprint;
        }
        Self { bits, rice, count, code: code.bytes }
    }

    /// The fingerprints, ascending; some may occur several times.
    ///
    /// # Errors
    /// [`FingerprintsError`]; nothing is allocated beyond what the code's bytes justify.
    pub fn decode(&self) -> Result<Vec<u64>, FingerprintsError> {
        let Self { bits, rice, count, .. } = *self;
        if !(8..=56).contains(&bits) || rice > bits {
            return Err(FingerprintsError::Shape { bits, rice });
        }
        let damaged = FingerprintsError::Damaged { count };
        // Each takes a bit at least.
        let count = usize::try_from(count).ok().filter(|count| count.div_ceil(8) <= self.code.len());
        let mut out = Vec::with_capacity(count.ok_or(damaged)?);
        let mut reader = Reader { bytes: &self.code, at: 0 };
        let mut last = 0u64;
        for _ in 0..self.count {
            let mut upper = 0u64;
            while reader.take(1).ok_or(damaged)? == 1 {
                upper += 1;
            }
            let difference = upper.checked_shl(rice.into()).filter(|d| d >> rice == upper).ok_or(damaged)?;
            last = last.checked_add(difference | reader.take(rice).ok_or(damaged)?).ok_or(damaged)?;
            if last > mask(bits) {
                return Err(damaged);
            }
            out.push(last);
        }
        if reader.at.div_ceil(8) != self.code.len() {
            return Err(damaged);
        }
        Ok(out)
    }
}

/// For each host, which of its fingerprints another host has, too. Each host's fingerprints ascend.
#[must_use]
pub fn in_common(hosts: &[Vec<u64>]) -> Vec<Vec<bool>> {
    let mut told: Vec<u64> = Vec::with_capacity(hosts.iter().map(Vec::len).sum());
    for host in hosts {
        // Two contents of one host may have one fingerprint; that is no other host's.
        let start = told.len();
        told.extend(host);
        let mut kept = start;
        for at in start..told.len() {
            if kept == start || told[kept - 1] != told[at] {
                told[kept] = told[at];
                kept += 1;
            }
        }
        told.truncate(kept);
    }
    told.sort_unstable();
    let shared: Vec<u64> =
        told.chunk_by(|a, b| a == b).filter(|equal| equal.len() > 1).map(|equal| equal[0]).collect();
    let of = |host: &Vec<u64>| {
        let mut at = 0;
        let found = host.iter().map(|fingerprint| {
            at += shared[at..].partition_point(|other| other < fingerprint);
            shared.get(at) == Some(fingerprint)
        });
        found.collect()
    };
    hosts.iter().map(of).collect()
}

fn mask(bits: u8) -> u64 {
    (1u64 << bits) - 1
}

/// Bits, written.
#[derive(Default)]
struct Code {
    bytes: Vec<u8>,
    /// Bits used of the last byte; 0 if it is full, or there is none.
    used: u8,
}

impl Code {
    fn push(&mut self, value: u64, bits: u8) {
        for bit in 0..bits {
            if self.used == 0 {
                self.bytes.push(0);
            }
            let last = self.bytes.last_mut().expect("just pushed, or not full");
            *last |= u8::from(value >> bit & 1 == 1) << self.used;
            self.used = (self.used + 1) % 8;
        }
    }
}

/// Bits, read.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn take(&mut self, bits: u8) -> Option<u64> {
        let mut value = 0;
        for bit in 0..bits {
            let byte = self.bytes.get(self.at / 8)?;
            value |= u64::from(byte >> (self.at % 8) & 1) << bit;
            self.at += 1;
        }
        Some(value)
    }
}
