//! The control device: who the guest is, and what it shall do. Its registers are ports of 32 bits, read-only but the last.
//!
//! | port | |
//! |---|---|
//! | 0x5c0 | magic: the device is there |
//! | 0x5c4 | epoch: changes whenever anything below does |
//! | 0x5c8, 0x5cc | identity, low and high half |
//! | 0x5d0 … 0x5dc | workload: pattern, pages a tick, percent written, µs of rest |
//! | 0x5e0 | written: the vCPU rests for so many microseconds (there is no HLT at ring 3) |

/// First port.
const BASE: u16 = 0x5c0;
/// A write rests.
pub(super) const REST: u16 = BASE + 32;
/// Longest rest.
pub(super) const REST_US_MAX: u32 = 1_000_000;
const MAGIC: u32 = 0x4d53_5643;

/// Which clone this is: what the guest derives names, addresses and random numbers from after a restore, as others
/// do from a VM generation id. 0 is the original.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Identity(pub u64);

/// The order in which the guest visits its pages.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub enum Pattern {
    /// Uniformly random.
    #[default]
    Random,
    /// Ascending; after each pass the guest reports `PASS`.
    Sequential,
    /// Nine visits of ten within the first tenth of the pages.
    HotSet,
}

/// What the guest does between two reports.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Workload {
    /// Which pages it visits.
    pub pattern: Pattern,
    /// Pages a tick, at least 1.
    pub step: u32,
    /// Percent of visited pages that it writes anew, 0–100.
    pub write_percent: u32,
    /// Rest between ticks in microseconds, at most a second.
    pub idle_us: u32,
}

impl Default for Workload {
    /// 256 random pages a tick, half of them written, a millisecond of rest.
    fn default() -> Self {
        Self { pattern: Pattern::Random, step: 256, write_percent: 50, idle_us: 1_000 }
    }
}

/// The registers' contents.
#[derive(Copy, Clone, Debug)]
pub(super) struct Control {
    pub(super) identity: Identity,
    pub(super) workload: Workload,
    pub(super) epoch: u32,
}

impl Control {
    /// What a read of a port gives; ports of no device read as ones, as on a PC.
    pub(super) fn read(&self, port: u16) -> u32 {
        let halves = self.identity.0.to_le_bytes();
        let half =
            |at: usize| u32::from_le_bytes([halves[at], halves[at + 1], halves[at + 2], halves[at + 3]]);
        match port.wrapping_sub(BASE) {
            0 => MAGIC,
            4 => self.epoch,
            8 => half(0),
            12 => half(4),
            16 => match self.workload.pattern {
                Pattern::Random => 0,
                Pattern::Sequential => 1,
                Pattern::HotSet => 2,
            },
            20 => self.workload.step.max(1),
            24 => self.workload.write_percent.min(100),
            28 => self.workload.idle_us.min(REST_US_MAX),
            _ => u32::MAX,
        }
    }
}
