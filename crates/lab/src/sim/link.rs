//! One direction of a link: rate, queue, loss, jitter, duplication, corruption.

use std::sync::Arc;
use std::time::Duration;

use super::profile::{IP_OVERHEAD, LinkProfile, LossModel, WIRE_OVERHEAD};
use crate::rng::Rng;

/// What a link did so far. `datagrams` = those offered; each is then in at most one of `too_large`,
/// `queue_dropped` and `lost`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkStats {
    /// Datagrams offered to the link.
    pub datagrams: u64,
    /// Bytes put on the link, [`WIRE_OVERHEAD`] counted, lost ones too, duplicates not.
    pub bytes: u64,
    /// Datagrams above the MTU.
    pub too_large: u64,
    /// Datagrams that found the queue full.
    pub queue_dropped: u64,
    /// Datagrams lost by the [`LossModel`].
    pub lost: u64,
    /// Second copies made.
    pub duplicated: u64,
    /// Copies with flipped bits.
    pub corrupted: u64,
}

/// A datagram at the far end of a link.
pub(super) struct Arrival {
    pub(super) at: Duration,
    pub(super) bytes: Arc<[u8]>,
}

pub(super) struct Link {
    pub(super) profile: LinkProfile,
    pub(super) stats: LinkStats,
    rng: Rng,
    free_at: Duration,
    in_bad_state: bool,
    burst_position: u32,
}

impl Link {
    pub(super) fn new(rng: Rng) -> Self {
        Self {
            profile: LinkProfile::default(),
            stats: LinkStats::default(),
            rng,
            free_at: Duration::ZERO,
            in_bad_state: false,
            burst_position: 0,
        }
    }

    /// Sends a datagram at `now`; returns what arrives: nothing, one copy, or two.
    pub(super) fn transmit(&mut self, now: Duration, bytes: &Arc<[u8]>) -> [Option<Arrival>; 2] {
        // One step of the link's generator a datagram, whatever its fate: changing one knob leaves the draws for
        // all later datagrams as they were.
        let mut rng = self.rng.fork();
        self.stats.datagrams += 1;
        let payload = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        if payload.saturating_add(IP_OVERHEAD) > self.profile.mtu {
            self.stats.too_large += 1;
            return [None, None];
        }
        let on_wire = u64::from(payload) + u64::from(WIRE_OVERHEAD);
        let Some(sent_at) = self.serialise(now, on_wire) else {
            self.stats.queue_dropped += 1;
            return [None, None];
        };
        self.stats.bytes += on_wire;
        if self.loses(&mut rng) {
            self.stats.lost += 1;
            return [None, None];
        }
        let twice = rng.chance_ppm(self.profile.duplicate_ppm);
        let first = self.arrival(sent_at, bytes, &mut rng);
        let second = twice.then(|| {
            self.stats.duplicated += 1;
            self.arrival(sent_at, bytes, &mut rng)
        });
        [Some(first), second]
    }

    /// When the last bit leaves, or `None` if the queue is full.
    fn serialise(&mut self, now: Duration, on_wire: u64) -> Option<Duration> {
        let Some(rate_bps) = self.profile.rate_bps else { return Some(now) };
        let rate_bps = rate_bps.max(1);
        let start = now.max(self.free_at);
        let waiting_bits = (start - now).as_nanos() * u128::from(rate_bps) / 1_000_000_000;
        if start > now && waiting_bits / 8 + u128::from(on_wire) > u128::from(self.profile.queue_bytes) {
            return None;
        }
        // Rounded up, so that a link never carries more than its rate.
        let nanos = (u128::from(on_wire) * 8 * 1_000_000_000).div_ceil(u128::from(rate_bps));
        self.free_at = start + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        Some(self.free_at)
    }

    fn loses(&mut self, rng: &mut Rng) -> bool {
        match self.profile.loss {
            LossModel::None => false,
            LossModel::Random { ppm } => rng.chance_ppm(ppm),
            LossModel::GilbertElliott { to_bad_ppm, to_good_ppm, loss_good_ppm, loss_bad_ppm } => {
                let change = if self.in_bad_state { to_good_ppm } else { to_bad_ppm };
                self.in_bad_state ^= rng.chance_ppm(change);
                rng.chance_ppm(if self.in_bad_state { loss_bad_ppm } else { loss_good_ppm })
            }
            LossModel::Burst { length, every } => {
                let position = self.burst_position % every.max(1);
                self.burst_position = position + 1;
                position < length
            }
        }
    }

    fn arrival(&mut self, sent_at: Duration, bytes: &Arc<[u8]>, rng: &mut Rng) -> Arrival {
        let jitter_nanos = u64::try_from(self.profile.jitter.as_nanos()).unwrap_or(u64::MAX - 1);
        let jitter = Duration::from_nanos(rng.below(jitter_nanos.saturating_add(1)));
        let at = sent_at + self.profile.delay + jitter;
        if bytes.is_empty() || !rng.chance_ppm(self.profile.corrupt_ppm) {
            return Arrival { at, bytes: Arc::clone(bytes) };
        }
        self.stats.corrupted += 1;
        let mut damaged = bytes.to_vec();
        // An odd number of flips cannot undo itself: a damaged copy always differs.
        let flips = if rng.chance_ppm(500_000) { 1 } else { 3 };
        for _ in 0..flips {
            let at = rng.index(damaged.len());
            damaged[at] ^= 1 << rng.below(8);
        }
        Arrival { at, bytes: damaged.into() }
    }
}
