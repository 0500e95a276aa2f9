//! The order in which a guest touches its pages.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::time::Duration;
use vmm::microvm::{Config, Identity, MicroVm, Pattern, Report, Workload, record_working_set};
use vmm::uffd::WorkingSet;

/// Pages of a guest, but for the Linux one: 64 MiB.
pub(crate) const PAGES: u32 = 16_384;
/// Touches of a drawn trace.
const TOUCHES: usize = 3_000;
/// A hot set: a tenth of the pages takes nine tenths of the touches.
const HOT_PAGES: u32 = PAGES / 10;

/// A kind of trace.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Access {
    Sequential,
    HotSet,
    Random,
    MicroVm,
    Linux,
}

/// First touches of two clones of a Debian guest under QEMU, of one instant, as `qemu-clone --record benches/postcopy/traces` wrote
/// them (crates/vmm/examples): kernel and a program that checks and rewrites random pages and reads a file, for 24 of its ticks.
const LINUX: [&[u8]; 2] =
    [include_bytes!("traces/ticker-1.working-set"), include_bytes!("traces/ticker-2.working-set")];
/// Pages of its image: 128 MiB of memory, ROMs and tables.
const LINUX_PAGES: u32 = 32_898;

impl Access {
    pub(crate) const ALL: [Self; 5] =
        [Self::Sequential, Self::HotSet, Self::Random, Self::MicroVm, Self::Linux];

    /// Pages of the guest.
    pub(crate) fn pages(self) -> u32 {
        match self {
            Self::Linux => LINUX_PAGES,
            _ => PAGES,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sequential => "sequential",
            Self::HotSet => "hot set",
            Self::Random => "random",
            Self::MicroVm => "micro-VM, recorded",
            Self::Linux => "Linux guest, recorded",
        }
    }

    /// The pages in the order of their touches; `instance` tells an earlier clone from this one. Nothing where a guest cannot be
    /// recorded.
    pub(crate) fn trace(self, seed: u64, instance: u64) -> Option<Vec<u32>> {
        let mut random = StdRng::seed_from_u64(seed ^ instance.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        // The hot set is a property of the guest, not of the clone.
        let start = u32::try_from(seed % 1_000).ok()?;
        let touches = 0..TOUCHES;
        Some(match self {
            Self::Sequential => (start..).take(TOUCHES).map(|page| page % PAGES).collect(),
            Self::HotSet => touches
                .map(|_| match random.random_range(0..10) {
                    0 => random.random_range(0..PAGES),
                    _ => (start + 7 * random.random_range(0..HOT_PAGES)) % PAGES,
                })
                .collect(),
            Self::Random => touches.map(|_| random.random_range(0..PAGES)).collect(),
            Self::MicroVm => recorded(seed, instance)?,
            Self::Linux => {
                let set = WorkingSet::from_bytes(LINUX[usize::try_from(instance).ok()?], LINUX_PAGES);
                set.expect("a file of this repository").pages().to_vec()
            }
        })
    }
}

/// First touches of the project's own guest after it is restored.
fn recorded(seed: u64, instance: u64) -> Option<Vec<u32>> {
    let workload = Workload { pattern: Pattern::HotSet, step: 64, write_percent: 20, idle_us: 1_000 };
    let config = Config { memory_mib: u64::from(PAGES) / 256, seed, workload, ..Config::default() };
    let mut vm = MicroVm::boot(&config).ok()?;
    vm.console().wait(0, Duration::from_secs(60), |report| matches!(report, Report::Tick { .. }))?;
    vm.pause().ok()?;
    let state = vm.capture().ok()?.to_bytes();
    let set = record_working_set(&state, vm.memory(), Identity(100 + instance), Duration::from_millis(300));
    Some(set.ok()?.pages().to_vec())
}

/// Each page once, in the order of first touches.
pub(crate) fn first_touches(trace: &[u32]) -> Vec<u32> {
    let mut seen = pages::Bitmap::new(trace.iter().max().map_or(0, |page| page + 1));
    trace.iter().copied().filter(|page| seen.set(*page)).collect()
}
