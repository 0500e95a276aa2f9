//! Pacing, and the search for the rate that the paths to the hosts can carry.
//!
//! Loss alone does not tell a full queue from a poor cable. So when losses rise, the rate is lowered once to what got
//! through: if losses fall with it, the path is full and the rate stays near there; if not, they are the
//! path's own, and the rate goes back. Receive credit bounds what is under way beside this, so hosts without CPU
//! or buffers slow the sender down without losing anything.

#[cfg(test)]
mod tests;

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::time::Duration;

/// A fixed rate, or the bounds of the search. Bytes per second on the sender's link, all headers counted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RateConfig {
    /// Always this rate.
    Fixed(u64),
    /// Searched for.
    Auto {
        /// Never below.
        min: u64,
        /// First rate.
        init: u64,
        /// Never above.
        max: u64,
    },
}

impl RateConfig {
    /// Searches between 10 Mb/s and 400 Gb/s from 1 Gb/s on: usable at once on any data-centre link.
    pub const AUTO: Self = Self::Auto { min: 1_250_000, init: 125_000_000, max: 50_000_000_000 };
}

/// A late wake-up may be made up for by so much at once: by this many bytes, which switches and hosts have buffers for, but by no
/// more and no less than these times. On a host whose CPUs guests have in use, a thread that sleeps for a millisecond may be back
/// after twenty. A rate that is searched for may be above the path's: its queues are full without bursts.
const SLACK_BYTES: u64 = 512 << 10;
const SLACK_MIN: Duration = Duration::from_millis(2);
const SLACK_MAX: Duration = Duration::from_millis(20);
const SLACK_MAX_SEARCHING: Duration = Duration::from_millis(4);

/// What is sent beside datagrams (answers to page faults, which wait for nothing) holds datagrams up for three of four parts of the time
/// at most: blocks bring pages to all hosts at once, so guests that fault faster than the link can answer must not keep them from it.
const BESIDE_SHARE: f64 = 0.75;
/// Time over which that is balanced.
const BESIDE_WINDOW: Duration = Duration::from_millis(50);

/// Spreads datagrams over time.
#[derive(Debug)]
pub(crate) struct Pacer {
    bytes_per_s: u64,
    next_at: Duration,
    /// Bytes since the beginning.
    spent: u64,
    /// For how long datagrams may still be held up by what is sent beside them, and when that was reckoned.
    beside: (Duration, Duration),
    search: Option<Search>,
}

/// A byte is never priced lower, in nanoseconds, however fast the link: it costs the sender's kernel, the network and
/// every receiver, whether they need it or not (LAB.md: some 1 ns at the sender, and 0.5 ns at each receiver).
const BYTE_NS_MIN: f64 = 12.0;
/// What time on the path is worth against CPU time: the path is shared by all hosts, the CPUs are idle while they wait
/// for it.
const PATH_WEIGHT: f64 = 8.0;

impl Pacer {
    pub(crate) fn new(config: RateConfig) -> Self {
        let (bytes_per_s, search) = match config {
            RateConfig::Fixed(rate) => (rate, None),
            RateConfig::Auto { min, init, max } => (init.clamp(min, max), Some(Search::new(min, max))),
        };
        let beside = (BESIDE_WINDOW.mul_f64(BESIDE_SHARE), Duration::ZERO);
        Self { bytes_per_s: bytes_per_s.max(1), next_at: Duration::ZERO, spent: 0, beside, search }
    }

    pub(crate) fn is_ready(&self, now: Duration) -> bool {
        now >= self.next_at
    }

    pub(crate) fn ready_at(&self, now: Duration) -> Duration {
        self.next_at.max(now)
    }

    pub(crate) fn spend(&mut self, now: Duration, bytes: u64) {
        self.spent += bytes;
        self.hold(now, self.time_of(bytes));
    }

    /// What was sent beside datagrams.
    pub(crate) fn spend_beside(&mut self, now: Duration, bytes: u64) {
        self.spent += bytes;
        let (left, at) = self.beside;
        let refilled = left + now.saturating_sub(at).mul_f64(BESIDE_SHARE);
        let left = refilled.min(BESIDE_WINDOW.mul_f64(BESIDE_SHARE));
        let time = self.time_of(bytes).min(left);
        self.beside = (left - time, now);
        self.hold(now, time);
    }

    fn hold(&mut self, now: Duration, time: Duration) {
        let most = if self.search.is_some() { SLACK_MAX_SEARCHING } else { SLACK_MAX };
        let slack = self.time_of(SLACK_BYTES).clamp(SLACK_MIN, most);
        self.next_at = self.next_at.max(now.saturating_sub(slack)) + time;
    }

    fn time_of(&self, bytes: u64) -> Duration {
        Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / self.bytes_per_s)
    }

    pub(crate) fn bytes_per_s(&self) -> u64 {
        self.bytes_per_s
    }

    pub(crate) fn bytes_in(&self, time: Duration) -> u64 {
        let bytes = u128::from(self.bytes_per_s) * time.as_nanos() / 1_000_000_000;
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }

    /// What sending a byte costs, for weighing bytes against CPU time in repair.
    pub(crate) fn ns_per_byte(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a rate; 53 bits are plenty")]
        let rate = self.bytes_per_s as f64;
        (1e9 / rate * PATH_WEIGHT).max(BYTE_NS_MIN)
    }

    /// This moment, to be kept with a question and given back in a [`Sample`].
    pub(crate) fn mark(&self, now: Duration) -> Mark {
        Mark { at: now, spent: self.spent }
    }

    /// A host told what became of what was sent between two questions. Whether the rate is another one now: then the next
    /// sample should begin here, so hosts should be asked.
    pub(crate) fn observe(&mut self, host: usize, sample: Sample, now: Duration) -> bool {
        let Some(search) = &mut self.search else { return false };
        let sample = Sample { lost: sample.lost.min(sample.sent), ..sample };
        let before = self.bytes_per_s;
        self.bytes_per_s = search.observe(host, sample, now, before);
        self.bytes_per_s > before && matches!(search.state, State::Startup)
    }
}

/// A moment, and the bytes spent until then.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Mark {
    pub(crate) at: Duration,
    spent: u64,
}

/// What became of the datagrams that went to a host between two moments.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub(crate) since: Mark,
    pub(crate) until: Mark,
    /// Datagrams sent, and how many of them did not arrive.
    pub(crate) sent: u64,
    pub(crate) lost: u64,
}

/// The search for the rate, an epoch at a time.
#[derive(Debug)]
struct Search {
    min: u64,
    max: u64,
    /// Loss that does not depend on the rate.
    floor: f64,
    state: State,
    /// What was sent before says nothing about the present rate.
    epoch_start: Duration,
    /// From the first sample's beginning to the last one's end.
    epoch: Option<(Mark, Mark)>,
    /// Per host: datagrams sent and lost in this epoch.
    counts: BTreeMap<usize, (u64, u64)>,
    /// Hosts in the last epoch.
    hosts: usize,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Growing fast until losses rise.
    Startup,
    /// Lowered from `rate`, where `loss` was seen, to see whether losses fall.
    Test { rate: u64, loss: f64, startup: bool },
    /// Near what the path carries; a little more is tried from time to time.
    Cruise { probe_at: Duration },
    /// A little more than `rate` is being tried.
    Probe { rate: u64 },
}

const EPOCH: Duration = Duration::from_millis(25);
/// While growing fast nothing finer has to be told than a queue that overflows, at twice what the path carries: by so
/// many datagrams, in so short a time. From 1 Gb/s to 16 it takes four times so long, and an answer each.
const STARTUP_EPOCH: Duration = Duration::from_millis(8);
const STARTUP_DATAGRAMS_MIN: u64 = 100;
/// After the rate was lowered the path's queues are as full as before for so long.
const SETTLE: Duration = Duration::from_millis(30);
/// Fewer datagrams tell a loss of a few percent from chance too badly.
const EPOCH_DATAGRAMS_MIN: u64 = 1500;
/// Losses may rise by so much before the rate is suspected.
const TOLERANCE: f64 = 0.02;
/// So much more loss needs no full epoch to be believed.
const FLOOD: f64 = 0.2;
const PROBE_EVERY: Duration = Duration::from_millis(250);
const PROBE_GAIN: f64 = 1.04;
const STARTUP_GAIN: f64 = 2.0;
const DRAIN: f64 = 0.98;

impl Search {
    fn new(min: u64, max: u64) -> Self {
        let (state, epoch_start) = (State::Startup, Duration::ZERO);
        Self { min, max, floor: 0.0, state, epoch_start, epoch: None, counts: BTreeMap::new(), hosts: 0 }
    }

    fn observe(&mut self, host: usize, sample: Sample, now: Duration, rate: u64) -> u64 {
        let Sample { since, until, sent, lost } = sample;
        if since.at < self.epoch_start {
            return rate;
        }
        let entry = self.counts.entry(host).or_default();
        entry.0 += sent;
        entry.1 += lost;
        let (first, last) = self.epoch.unwrap_or((since, until));
        let first = if since.at < first.at { since } else { first };
        let last = if until.at > last.at { until } else { last };
        self.epoch = Some((first, last));
        let datagrams = self.counts.values().map(|(sent, _)| *sent).max().unwrap_or(0);
        let loss = self.group_loss();
        let took = last.at.saturating_sub(first.at);
        let enough = took >= EPOCH && datagrams >= EPOCH_DATAGRAMS_MIN;
        // A flood is told from chance by fewer datagrams.
        let flood = datagrams >= EPOCH_DATAGRAMS_MIN / 5 && loss > self.floor + FLOOD;
        let grows = matches!(self.state, State::Startup)
            && took >= STARTUP_EPOCH
            && datagrams >= STARTUP_DATAGRAMS_MIN
            && self.counts.len() * 2 >= self.hosts
            && !self.is_high(loss, datagrams);
        if !enough && !flood && !grows {
            return rate;
        }
        let used = is_used(rate, first, last);
        let new = self.step(loss, datagrams, now, rate, used).clamp(self.min, self.max);
        self.hosts = self.counts.len().max(self.hosts / 2);
        self.counts.clear();
        self.epoch = None;
        self.epoch_start = match new.cmp(&rate) {
            Ordering::Less => now + SETTLE,
            Ordering::Equal => self.epoch_start,
            Ordering::Greater => now,
        };
        new
    }

    /// Whether losses are above what does not depend on the rate, by more than chance.
    fn is_high(&self, loss: f64, datagrams: u64) -> bool {
        loss > self.floor + TOLERANCE + chance(loss, datagrams.min(EPOCH_DATAGRAMS_MIN))
    }

    /// The loss that three quarters of the hosts do not exceed, and all but one of two or three: a bad link is no reason
    /// to slow all down, its host is served apart.
    fn group_loss(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "counts of datagrams in one epoch")]
        let mut losses: Vec<f64> =
            self.counts.values().map(|(sent, lost)| *lost as f64 / (*sent).max(1) as f64).collect();
        losses.sort_by(f64::total_cmp);
        let quarters = (losses.len() * 3).div_ceil(4) - 1;
        losses[quarters.min(losses.len().saturating_sub(2))]
    }

    fn step(&mut self, loss: f64, datagrams: u64, now: Duration, rate: u64, used: bool) -> u64 {
        let high = self.is_high(loss, datagrams);
        let cruise = State::Cruise { probe_at: now + PROBE_EVERY };
        match self.state {
            State::Startup if !high && used => scaled(rate, STARTUP_GAIN),
            State::Startup | State::Cruise { .. } if high => {
                let startup = matches!(self.state, State::Startup);
                self.state = State::Test { rate, loss, startup };
                scaled(rate, (1.0 - loss) * DRAIN)
            }
            State::Test { rate: before, loss: seen, startup } => {
                if loss < seen * 0.6 {
                    self.floor = self.floor.min(loss);
                    self.state = cruise;
                    return rate;
                }
                self.floor = loss.min(seen);
                self.state = if startup { State::Startup } else { cruise };
                before
            }
            State::Cruise { probe_at } if now >= probe_at && used => {
                self.state = State::Probe { rate };
                scaled(rate, PROBE_GAIN)
            }
            State::Probe { rate: before } => {
                self.state = cruise;
                if high { scaled(before, DRAIN) } else { rate }
            }
            State::Startup | State::Cruise { .. } => {
                self.floor += (loss - self.floor).min(0.0) * 0.1;
                rate
            }
        }
    }
}

/// Whether the rate was made use of in this time. If encoding, credit or the end of the data held the sender back, that
/// no losses rose says nothing about a higher rate (RFC 7661 has the same of TCP's window).
fn is_used(rate: u64, first: Mark, last: Mark) -> bool {
    let could = u128::from(rate) * last.at.saturating_sub(first.at).as_nanos() / 1_000_000_000;
    u128::from(last.spent - first.spent) * 4 >= could * 3
}

/// How far chance alone moves the loss measured of so many datagrams: two standard deviations.
fn chance(loss: f64, datagrams: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a small count")]
    let datagrams = datagrams as f64;
    2.0 * (loss * (1.0 - loss) / datagrams).sqrt()
}

fn scaled(rate: u64, factor: f64) -> u64 {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rate times a small positive factor"
    )]
    let scaled = (rate as f64 * factor) as u64;
    scaled
}
