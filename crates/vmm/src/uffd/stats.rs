//! Counters of a VM's faults, and how long their answers took.

use std::time::Duration;

/// Steps within a power of two: a quantile is at most 1/16 too high.
const STEPS: usize = 16;
/// Powers of two of nanoseconds from 16 on: the last is beyond an hour.
const POWERS: usize = 40;

/// Durations, counted in steps that grow with them.
#[derive(Clone, PartialEq, Eq)]
pub struct Histogram {
    counts: Box<[u64; STEPS * POWERS]>,
    total: u64,
    max_ns: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: Box::new([0; STEPS * POWERS]), total: 0, max_ns: 0 }
    }
}

impl Histogram {
    /// Counts a duration.
    pub fn add(&mut self, duration: Duration) {
        let ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.counts[Self::slot(ns)] += 1;
        self.total += 1;
        self.max_ns = self.max_ns.max(ns);
    }

    fn slot(ns: u64) -> usize {
        let ns = ns.max(STEPS as u64);
        let power = (63 - ns.leading_zeros()) as usize - 4;
        let step = usize::try_from(ns >> power).expect("below 32") - STEPS;
        (power * STEPS + step).min(STEPS * POWERS - 1)
    }

    /// Number of durations.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.total
    }

    /// The longest one.
    #[must_use]
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.max_ns)
    }

    /// An upper bound, at most 1/16 too high, of the given share (0–1) of the durations; `None` if there are none.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        if self.total == 0 {
            return None;
        }
        #[expect(clippy::cast_precision_loss, reason = "a rank within counts below 2^53")]
        let mut left = share.clamp(0.0, 1.0) * self.total as f64;
        for (slot, &count) in self.counts.iter().enumerate() {
            #[expect(clippy::cast_precision_loss, reason = "as above")]
            let here = count as f64;
            left -= here;
            if left <= 0.0 && count > 0 {
                let upper = ((STEPS + slot % STEPS + 1) as u64) << (slot / STEPS);
                return Some(Duration::from_nanos(upper.min(self.max_ns)));
            }
        }
        Some(self.max())
    }

    /// Adds another histogram's counts.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.counts.iter_mut().zip(other.counts.iter()) {
            *mine += theirs;
        }
        self.total += other.total;
        self.max_ns = self.max_ns.max(other.max_ns);
    }
}

impl std::fmt::Debug for Histogram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Histogram")
            .field("count", &self.total)
            .field("p50", &self.quantile(0.5))
            .field("p99", &self.quantile(0.99))
            .field("max", &self.max())
            .finish()
    }
}

/// What a VM's page server did. Latencies run from the reading of a fault to its answer.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct FaultStats {
    /// Faults read.
    pub faults: u64,
    /// Faults on pages that were here when they came.
    pub here: Histogram,
    /// Faults on pages that then came by blocks: multicast, or a template.
    pub by_block: Histogram,
    /// … that the sender was asked for.
    pub by_sender: Histogram,
    /// … that another receiver was asked for.
    pub by_peer: Histogram,
    /// Faults on pages that the guest gave back: answered by zeros.
    pub removed: u64,
    /// Pages put in place before anyone asked.
    pub pushed: u64,
    /// Fills that had to wait for an event to be read (`EAGAIN`).
    pub again: u64,
    /// Pages that were there already (`EEXIST`).
    pub exists: u64,
}

impl FaultStats {
    /// Faults that had to wait for another machine: the *network faults*.
    #[must_use]
    pub fn network(&self) -> u64 {
        self.by_block.count() + self.by_sender.count() + self.by_peer.count()
    }

    /// Adds another VM's.
    pub fn merge(&mut self, other: &Self) {
        self.faults += other.faults;
        self.here.merge(&other.here);
        self.by_block.merge(&other.by_block);
        self.by_sender.merge(&other.by_sender);
        self.by_peer.merge(&other.by_peer);
        self.removed += other.removed;
        self.pushed += other.pushed;
        self.again += other.again;
        self.exists += other.exists;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_upper_bounds_within_a_sixteenth() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), None);
        for us in 1..=1000 {
            histogram.add(Duration::from_micros(us));
        }
        for (share, us) in [(0.5, 500), (0.9, 900), (0.99, 990), (1.0, 1000)] {
            let found = histogram.quantile(share).expect("some");
            let right = Duration::from_micros(us);
            assert!(
                found >= right && found <= right + right / 16 + Duration::from_nanos(1),
                "{share} {found:?}"
            );
        }
        let mut other = Histogram::default();
        other.add(Duration::from_secs(10_000));
        other.add(Duration::ZERO);
        histogram.merge(&other);
        assert_eq!((histogram.count(), histogram.max()), (1002, Duration::from_secs(10_000)));
        assert!(histogram.quantile(0.0).expect("some") <= Duration::from_nanos(32));
    }
}
