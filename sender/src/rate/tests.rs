//! The search for a rate, on paths of known width and loss.

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

/// Who wakes up late makes up for it, but never by more than buffers on the way take.
#[test]
fn late_wake_ups_cost_no_rate_within_bounds() {
    for (bytes_per_s, at_once_ms) in [(1_000_000, 20), (31_250_000, 16), (125_000_000, 4), (1_250_000_000, 2)]
    {
        let mut pacer = Pacer::new(RateConfig::Fixed(bytes_per_s));
        let (mut now, mut sent) = (Duration::from_secs(1), 0);
        for _ in 0..100 {
            // A thread that comes back 3 ms after it may send again, and sends all it may.
            while pacer.is_ready(now) {
                pacer.spend(now, bytes_per_s / 2000);
                sent += bytes_per_s / 2000;
            }
            now = pacer.ready_at(now) + Duration::from_millis(3);
        }
        let share = sent as f64 / bytes_per_s as f64 / (now - Duration::from_secs(1)).as_secs_f64();
        assert!(if at_once_ms > 3 { share > 0.99 } else { share > 0.5 }, "{bytes_per_s}: {share}");
        // After a second of nothing.
        now += Duration::from_secs(1);
        let before = sent;
        while pacer.is_ready(now) {
            pacer.spend(now, 1000);
            sent += 1000;
        }
        let at_once = (sent - before) as f64 / bytes_per_s as f64 * 1e3;
        let most = f64::from(at_once_ms) + 1e6 / bytes_per_s as f64;
        assert!((f64::from(at_once_ms)..=most + 0.8).contains(&at_once), "{bytes_per_s}: {at_once} ms");
    }
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

/// Answers to faults at twice the rate leave a quarter of the time to datagrams; at a tenth of it, all the rest.
#[test]
fn what_is_sent_beside_datagrams_leaves_them_their_share() {
    for (beside, least, most) in [(2_000, 0.2, 0.27), (100, 0.89, 0.91)] {
        let mut pacer = Pacer::new(RateConfig::Fixed(1_000_000));
        let mut sent = 0;
        for ms in 0..1_000 {
            let now = Duration::from_millis(ms);
            pacer.spend_beside(now, beside);
            while pacer.is_ready(now) {
                pacer.spend(now, 100);
                sent += 100;
            }
        }
        let share = f64::from(sent) / 1e6;
        assert!((least..most).contains(&share), "{share} beside {beside} bytes each ms");
    }
}
