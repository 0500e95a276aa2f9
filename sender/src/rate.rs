//! Pacing, and the search for the rate that the paths to the hosts can carry.
//!
//! Loss alone does not tell a full queue from a poor cable. So when losses rise, the rate is lowered once to what got
//! through: if losses fall with it, the path is full and the rate stays near there; if not, they are the
//! path's own, and the rate goes back. Receive credit bounds what is under way beside this, so hosts without CPU
//! or buffers slow the sender down without losing anything.

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

/// A late wake-up may be made up for by so much at once.
const SLACK: Duration = Duration::from_millis(2);

/// Spreads datagrams over time.
#[derive(Debug)]
pub(crate) struct Pacer {
    bytes_per_s: u64,
    next_at: Duration,
    /// Bytes since the beginning.
    spent: u64,
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
        Self { bytes_per_s: bytes_per_s.max(1), next_at: Duration::ZERO, spent: 0, search }
    }

    pub(crate) fn is_ready(&self, now: Duration) -> bool {
        now >= self.next_at
    }

    pub(crate) fn ready_at(&self, now: Duration) -> Duration {
        self.next_at.max(now)
    }

    pub(crate) fn spend(&mut self, now: Duration, bytes: u64) {
        self.spent += bytes;
        let from = self.next_at.max(now.saturating_sub(SLACK));
        self.next_at = from + Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / self.bytes_per_s);
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A host asked at these moments, and told what became of `sent` datagrams between them.
    fn tell(pacer: &mut Pacer, host: usize, (since, until): (Mark, Mark), sent: u64, lost: u64) {
        pacer.observe(host, Sample { since, until, sent, lost }, until.at);
    }

    /// Runs the search against a path of `capacity` bytes/s that loses `random` besides.
    fn settle(capacity: f64, random: f64, hosts: usize) -> f64 {
        let mut pacer = Pacer::new(RateConfig::AUTO);
        let mut now = Duration::ZERO;
        let mut sum = 0.0;
        for step in 0..2_000 {
            let since = pacer.mark(now);
            now += Duration::from_millis(5);
            let rate = pacer.bytes_per_s() as f64;
            let through = (capacity / rate).min(1.0) * (1.0 - random);
            let sent = (rate * 0.005 / 1500.0).max(1.0);
            pacer.spend(now, scaled(1, rate * 0.005));
            let until = pacer.mark(now);
            for host in 0..hosts {
                tell(&mut pacer, host, (since, until), scaled(1, sent), scaled(1, sent * (1.0 - through)));
            }
            if step >= 1_000 {
                sum += rate / 1_000.0;
            }
        }
        sum
    }

    /// On a fast path a tenth of a second is enough for the rate to be no limit any more.
    #[test]
    fn a_fast_path_is_used_soon() {
        let mut pacer = Pacer::new(RateConfig::AUTO);
        let mut now = Duration::ZERO;
        while pacer.bytes_per_s() < 2_500_000_000 {
            let since = pacer.mark(now);
            now += Duration::from_millis(10);
            pacer.spend(now, scaled(pacer.bytes_per_s(), 0.01));
            let until = pacer.mark(now);
            let datagrams = scaled(pacer.bytes_per_s(), 0.01 / 9000.0);
            (0..8).for_each(|host| tell(&mut pacer, host, (since, until), datagrams, 0));
            assert!(now <= Duration::from_millis(100), "{} after {now:?}", pacer.bytes_per_s());
        }
    }

    /// What was sent before the rate changed says nothing about it.
    #[test]
    fn only_what_was_sent_at_the_present_rate_counts() {
        let mut pacer = Pacer::new(RateConfig::AUTO);
        let start = pacer.mark(Duration::ZERO);
        pacer.spend(Duration::ZERO, 1_250_000);
        let first = pacer.mark(Duration::from_millis(10));
        tell(&mut pacer, 0, (start, first), 800, 0);
        let doubled = pacer.bytes_per_s();
        assert_eq!(doubled, 250_000_000);
        pacer.spend(first.at, 2_500_000);
        let second = pacer.mark(Duration::from_millis(20));
        tell(&mut pacer, 1, (start, second), 2400, 0);
        assert_eq!(pacer.bytes_per_s(), doubled);
        tell(&mut pacer, 1, (first, second), 1600, 0);
        assert_eq!(pacer.bytes_per_s(), 2 * doubled);
    }

    #[test]
    fn finds_the_capacity_whatever_the_random_loss() {
        for random in [0.0, 0.01, 0.05, 0.2] {
            for capacity in [12.5e6, 125e6, 1.25e9] {
                let found = settle(capacity, random, 8) / capacity;
                assert!((0.93..1.08).contains(&found), "{found} of {capacity} at {random}");
            }
        }
    }

    #[test]
    fn a_rate_that_is_not_used_does_not_grow() {
        for start in [1_000_000, 125_000_000] {
            let mut pacer = Pacer::new(RateConfig::Auto { min: 1, init: start, max: u64::MAX });
            let mut now = Duration::ZERO;
            for _ in 0..2_000 {
                let since = pacer.mark(now);
                now += Duration::from_millis(5);
                // A third of what it may.
                pacer.spend(now, scaled(pacer.bytes_per_s(), 0.005 / 3.0));
                let until = pacer.mark(now);
                tell(&mut pacer, 0, (since, until), 500, 0);
            }
            assert!(pacer.bytes_per_s() <= start, "{} from {start}", pacer.bytes_per_s());
        }
    }

    #[test]
    fn losses_beyond_what_was_sent_are_not_believed() {
        let mut pacer = Pacer::new(RateConfig::AUTO);
        for _ in 0..2 {
            let at = pacer.mark(Duration::from_secs(1));
            tell(&mut pacer, 0, (at, at), 100, u64::MAX);
        }
        let search = pacer.search.as_ref().expect("automatic");
        assert_eq!(search.counts[&0], (200, 200));
    }

    /// Of two or three hosts, one with a bad cable (or that lies) does not set the rate of the others.
    #[test]
    fn one_lossy_host_does_not_set_the_rate() {
        for hosts in [2, 3, 4, 8] {
            let mut search = Search::new(1, u64::MAX);
            search.counts = (0..hosts).map(|host| (host, (1000, if host == 1 { 400 } else { 5 }))).collect();
            assert!(search.group_loss() < 0.01, "{hosts} hosts: {}", search.group_loss());
        }
        let mut search = Search::new(1, u64::MAX);
        search.counts.insert(0, (1000, 400));
        assert!(search.group_loss() > 0.3, "a single host's losses are all there are");
    }

    #[test]
    fn paces_in_time() {
        let mut pacer = Pacer::new(RateConfig::Fixed(1_000_000));
        let (mut now, mut sent) = (Duration::ZERO, 0);
        while now < Duration::from_secs(1) {
            if pacer.is_ready(now) {
                pacer.spend(now, 10_000);
                sent += 10_000;
            }
            now += Duration::from_micros(100);
        }
        assert!((990_000..=1_020_000).contains(&sent), "{sent}");
    }
}
