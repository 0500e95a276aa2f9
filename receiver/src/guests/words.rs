//! What launchers tell of their clones' faults.

use std::time::Duration;
use vmm::uffd::{FaultStats, Histogram};
use wire::control::FaultFigures;

/// How often a clone that runs is looked at.
pub(super) const LOOK: Duration = Duration::from_millis(50);

/// An error with its causes.
pub(super) fn words(error: &dyn std::error::Error) -> String {
    net::control::with_causes(error)
}

/// A page server's counters as the sender is told them.
pub(super) fn figures(stats: &FaultStats) -> FaultFigures {
    let mut waited = Histogram::default();
    for part in [&stats.by_block, &stats.by_sender, &stats.by_peer] {
        waited.merge(part);
    }
    let quantile = |share| {
        let us = waited.quantile(share).map_or(0, |time| time.as_micros());
        u32::try_from(us).unwrap_or(u32::MAX)
    };
    FaultFigures {
        here: stats.here.count(),
        block: stats.by_block.count(),
        sender: stats.by_sender.count(),
        peer: stats.by_peer.count(),
        waited_p50_us: quantile(0.5),
        waited_p99_us: quantile(0.99),
    }
}
