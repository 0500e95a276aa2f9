//! Property tests of the simulated network.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;

use super::*;

const HOSTS: u16 = 4;
const SECOND: Duration = Duration::from_secs(1);

fn micros(value: u64) -> Duration {
    Duration::from_micros(value)
}

/// Everything due until `end`, at the times that the network names.
fn drain(net: &mut SimNet, end: Duration) -> Vec<Delivery> {
    let mut all = Vec::new();
    while let Some(at) = net.next_event_time().filter(|at| *at <= end) {
        while let Some(delivery) = net.poll(at) {
            assert!(delivery.at <= at, "delivered before its time");
            all.push(delivery);
        }
        assert!(net.next_event_time().is_none_or(|next| next > at), "something due was not delivered");
    }
    assert!(net.poll(end).is_none());
    all
}

fn numbered(number: u32, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len.max(4)];
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    bytes
}

fn number(delivery: &Delivery) -> u32 {
    let (DeliveryKind::Datagram { bytes, .. } | DeliveryKind::Control { bytes, .. }) = &delivery.kind else {
        panic!("no bytes in {delivery:?}")
    };
    u32::from_le_bytes(bytes[..4].try_into().expect("four bytes"))
}

#[derive(Clone, Debug)]
enum Act {
    Wait(u64),
    Send(u16, Dest, usize),
    Join(u16, u32),
    Leave(u16, u32),
    Control(u16, u16),
    Cut(u16, u16),
    Open(u16, u16),
    Crash(u16),
    Restart(u16),
    Freeze(u16, u64),
    Profile(LinkId, LinkProfile),
}

fn host() -> impl Strategy<Value = u16> {
    0..HOSTS
}

fn loss() -> impl Strategy<Value = LossModel> {
    prop_oneof![
        Just(LossModel::None),
        (0u32..=1_000_000).prop_map(|ppm| LossModel::Random { ppm }),
        (0u32..=1_000_000, 0u32..=1_000_000, 0u32..=1_000_000, 0u32..=1_000_000).prop_map(
            |(to_bad_ppm, to_good_ppm, loss_good_ppm, loss_bad_ppm)| LossModel::GilbertElliott {
                to_bad_ppm,
                to_good_ppm,
                loss_good_ppm,
                loss_bad_ppm
            }
        ),
        (0u32..9, 0u32..20).prop_map(|(length, every)| LossModel::Burst { length, every }),
    ]
}

fn profile() -> impl Strategy<Value = LinkProfile> {
    (
        prop::option::of(1_000_000u64..1_000_000_000),
        0u64..500,
        0u64..500,
        loss(),
        0u32..=1_000_000,
        0u32..=1_000_000,
        64u32..3_000,
        0u32..20_000,
    )
        .prop_map(|(rate_bps, delay, jitter, loss, duplicate_ppm, corrupt_ppm, mtu, queue_bytes)| {
            LinkProfile {
                rate_bps,
                queue_bytes,
                delay: micros(delay),
                jitter: micros(jitter),
                loss,
                duplicate_ppm,
                corrupt_ppm,
                mtu,
            }
        })
}

fn act() -> impl Strategy<Value = Act> {
    let dest = prop_oneof![host().prop_map(Dest::Unicast), (0u32..3).prop_map(Dest::Group)];
    let link = prop_oneof![host().prop_map(LinkId::Up), host().prop_map(LinkId::Down)];
    prop_oneof![
        4 => (0u64..3_000).prop_map(Act::Wait),
        8 => (host(), dest, 0usize..2_500).prop_map(|(from, dest, len)| Act::Send(from, dest, len)),
        3 => (host(), 0u32..3).prop_map(|(host, group)| Act::Join(host, group)),
        1 => (host(), 0u32..3).prop_map(|(host, group)| Act::Leave(host, group)),
        3 => (host(), host()).prop_map(|(a, b)| Act::Control(a, b)),
        1 => (host(), host()).prop_map(|(a, b)| Act::Cut(a, b)),
        1 => (host(), host()).prop_map(|(a, b)| Act::Open(a, b)),
        1 => host().prop_map(Act::Crash),
        1 => host().prop_map(Act::Restart),
        1 => (host(), 0u64..5_000).prop_map(|(host, time)| Act::Freeze(host, time)),
        1 => (link, profile()).prop_map(|(link, profile)| Act::Profile(link, profile)),
    ]
}

/// Plays the acts; returns all deliveries and each host's counters.
fn play(seed: u64, acts: &[Act]) -> (Vec<Delivery>, Vec<HostStats>) {
    let mut net = SimNet::new(seed, HOSTS);
    let timing = MulticastTiming { join_latency: micros(300), leave_tail: micros(2_000) };
    net.set_multicast_timing(timing);
    let mut now = Duration::ZERO;
    let mut all = Vec::new();
    for (index, act) in acts.iter().enumerate() {
        let label = u32::try_from(index).expect("few acts");
        match *act {
            Act::Wait(time) => {
                now += micros(time);
                all.extend(drain(&mut net, now));
            }
            Act::Send(from, dest, len) => net.send(now, from, dest, numbered(label, len)),
            Act::Join(host, group) => net.join(now, host, group),
            Act::Leave(host, group) => net.leave(now, host, group),
            Act::Control(a, b) => {
                let _ = net.send_control(now, a, b, numbered(label, 4));
            }
            Act::Cut(a, b) => net.cut_control(now, a, b),
            Act::Open(a, b) => net.open_control(now, a, b),
            Act::Crash(host) => net.crash(now, host),
            Act::Restart(host) => net.restart(now, host),
            Act::Freeze(host, time) => net.freeze(now, host, now + micros(time)),
            Act::Profile(link, profile) => net.set_profile(link, profile),
        }
    }
    all.extend(drain(&mut net, now + 100 * SECOND));
    assert_eq!(net.next_event_time(), None, "the network comes to rest");
    (all, (0..HOSTS).map(|host| net.stats(host)).collect())
}

proptest! {
    /// Same seed and calls, same network; time never goes back; counters add up; messages come once, in order.
    #[test]
    fn any_run_is_reproducible_and_consistent(seed: u64, acts in prop::collection::vec(act(), 1..120)) {
        let (deliveries, stats) = play(seed, &acts);
        prop_assert_eq!(&(deliveries.clone(), stats.clone()), &play(seed, &acts));
        prop_assert!(deliveries.is_sorted_by_key(|delivery| delivery.at));
        let mut control: BTreeMap<(u16, u16), u32> = BTreeMap::new();
        let mut datagrams = vec![0u64; usize::from(HOSTS)];
        for delivery in &deliveries {
            match &delivery.kind {
                DeliveryKind::Control { from, .. } => {
                    let last = control.insert((*from, delivery.to), number(delivery));
                    prop_assert!(last.is_none_or(|last| last < number(delivery)), "out of order or twice");
                }
                DeliveryKind::Datagram { from, dest, .. } => {
                    datagrams[usize::from(delivery.to)] += 1;
                    let is_group = matches!(dest, Dest::Group(_));
                    prop_assert!(!is_group || *from != delivery.to, "a group's datagram came back");
                }
                DeliveryKind::ControlClosed { .. } => {}
            }
        }
        for (host, stats) in stats.iter().enumerate() {
            prop_assert_eq!(stats.delivered, datagrams[host]);
            for link in [stats.up, stats.down] {
                prop_assert!(link.too_large + link.queue_dropped + link.lost <= link.datagrams);
                prop_assert!(link.duplicated <= link.datagrams);
            }
        }
    }

    /// A perfect network delivers each datagram to each member, and to nobody else, once and in order.
    #[test]
    fn without_faults_members_get_all_in_order(
        seed: u64,
        members in prop::collection::btree_set(0..HOSTS, 0..4),
        lengths in prop::collection::vec(0usize..1_400, 1..40),
    ) {
        let mut net = SimNet::new(seed, HOSTS);
        for member in &members {
            net.join(Duration::ZERO, *member, 9);
        }
        let start = MulticastTiming::default().join_latency;
        for (index, len) in lengths.iter().enumerate() {
            let label = u32::try_from(index).expect("few");
            net.send(start + micros(index as u64), 0, Dest::Group(9), numbered(label, *len));
        }
        let mut got: BTreeMap<u16, Vec<u32>> = BTreeMap::new();
        for delivery in drain(&mut net, SECOND) {
            got.entry(delivery.to).or_default().push(number(&delivery));
        }
        let wanted: Vec<u32> = (0..u32::try_from(lengths.len()).expect("few")).collect();
        let receivers: BTreeSet<u16> = members.into_iter().filter(|host| *host != 0).collect();
        prop_assert_eq!(got.keys().copied().collect::<BTreeSet<_>>(), receivers);
        prop_assert!(got.values().all(|numbers| *numbers == wanted));
    }

    /// Whatever is sent, a link carries no more than its rate, and no more waits than the queue holds.
    #[test]
    fn a_rate_is_never_exceeded(rate_bps in 1_000_000u64..100_000_000, gaps in prop::collection::vec(0u64..200, 1..200)) {
        let mut net = SimNet::new(1, 2);
        let profile = LinkProfile { rate_bps: Some(rate_bps), queue_bytes: 20_000, ..LinkProfile::default() };
        net.set_profile(LinkId::Up(0), profile);
        let mut now = Duration::ZERO;
        for gap in gaps {
            now += micros(gap);
            net.send(now, 0, Dest::Unicast(1), vec![0; 1_000]);
        }
        let deliveries = drain(&mut net, 1_000 * SECOND);
        let frame_bits = (1_000 + u64::from(WIRE_OVERHEAD)) * 8;
        let spacing = Duration::from_nanos(frame_bits * 1_000_000_000 / rate_bps);
        prop_assert!(deliveries.windows(2).all(|pair| pair[1].at - pair[0].at >= spacing));
        let longest_queue = spacing * (20_000 / 1_042 + 1);
        let end = deliveries.last().expect("the first always finds room").at;
        prop_assert!(end <= now + longest_queue + 2 * profile.delay + spacing);
        prop_assert_eq!(deliveries.len() as u64 + net.stats(0).up.queue_dropped, net.stats(0).up.datagrams);
    }
}

#[test]
fn jitter_reorders_and_duplication_doubles() {
    let mut net = SimNet::new(3, 2);
    let faulty = LinkProfile { jitter: micros(500), duplicate_ppm: 200_000, ..LinkProfile::default() };
    net.set_profile(LinkId::Down(1), faulty);
    for label in 0..1_000 {
        net.send(micros(u64::from(label) * 10), 0, Dest::Unicast(1), numbered(label, 100));
    }
    let numbers: Vec<u32> = drain(&mut net, SECOND).iter().map(number).collect();
    assert!((1_150..1_250).contains(&numbers.len()), "20 % doubled gave {}", numbers.len());
    assert!(!numbers.is_sorted());
    assert_eq!(numbers.iter().collect::<BTreeSet<_>>().len(), 1_000);
}

#[test]
fn gilbert_elliott_loses_its_stationary_share_in_bursts() {
    let mut net = SimNet::new(5, 2);
    // Bad one in 11 of the time, bursts of 10 on average, everything lost when bad: 9.1 %.
    let loss = LossModel::GilbertElliott {
        to_bad_ppm: 10_000,
        to_good_ppm: 100_000,
        loss_good_ppm: 0,
        loss_bad_ppm: 1_000_000,
    };
    net.set_profile(LinkId::Down(1), LinkProfile { loss, ..LinkProfile::default() });
    for label in 0..100_000u32 {
        net.send(micros(u64::from(label)), 0, Dest::Unicast(1), numbered(label, 8));
    }
    let numbers: Vec<u32> = drain(&mut net, SECOND).iter().map(number).collect();
    let lost = 100_000 - numbers.len();
    assert!((8_000..10_200).contains(&lost), "lost {lost}");
    let bursts = numbers.windows(2).filter(|pair| pair[1] - pair[0] > 1).count();
    assert!((8..=12).contains(&(lost / bursts)), "mean burst {}", lost / bursts);
}

#[test]
fn bursts_are_exact() {
    let mut net = SimNet::new(5, 2);
    let loss = LossModel::Burst { length: 3, every: 10 };
    net.set_profile(LinkId::Up(0), LinkProfile { loss, ..LinkProfile::default() });
    for label in 0..100 {
        net.send(Duration::ZERO, 0, Dest::Unicast(1), numbered(label, 8));
    }
    let numbers: Vec<u32> = drain(&mut net, SECOND).iter().map(number).collect();
    assert_eq!(numbers, (0..100).filter(|label| label % 10 >= 3).collect::<Vec<_>>());
}

#[test]
fn corruption_flips_a_few_bits_and_always_some() {
    let mut net = SimNet::new(8, 2);
    net.set_profile(LinkId::Up(0), LinkProfile { corrupt_ppm: 1_000_000, ..LinkProfile::default() });
    let sent = vec![0x55u8; 300];
    for _ in 0..200 {
        net.send(Duration::ZERO, 0, Dest::Unicast(1), sent.clone());
    }
    for delivery in drain(&mut net, SECOND) {
        let DeliveryKind::Datagram { bytes, .. } = delivery.kind else { panic!("a datagram") };
        let flipped: u32 = bytes.iter().zip(&sent).map(|(a, b)| (a ^ b).count_ones()).sum();
        assert!(flipped == 1 || flipped == 3, "{flipped} bits");
    }
}

#[test]
fn the_mtu_counts_ip_and_udp_headers() {
    let mut net = SimNet::new(8, 2);
    net.send(Duration::ZERO, 0, Dest::Unicast(1), vec![0; 1_472]);
    net.send(Duration::ZERO, 0, Dest::Unicast(1), vec![0; 1_473]);
    assert_eq!(drain(&mut net, SECOND).len(), 1);
    assert_eq!(net.stats(0).up.too_large, 1);
}

#[test]
fn joins_take_effect_late_and_leaves_later() {
    let mut net = SimNet::new(8, 3);
    let early = MulticastTiming::default().join_latency / 2;
    net.join(Duration::ZERO, 1, 5);
    net.send(early, 0, Dest::Group(5), vec![1]);
    assert!(drain(&mut net, early + micros(100)).is_empty(), "not yet forwarded");
    net.send(2 * early, 0, Dest::Group(5), vec![2]);
    assert_eq!(drain(&mut net, 3 * early).len(), 1);

    net.leave(SECOND, 1, 5);
    net.send(2 * SECOND, 0, Dest::Group(5), vec![3]);
    assert!(drain(&mut net, 2 * SECOND + early).is_empty(), "left");
    assert_eq!(net.stats(1).unwanted, 1, "but its link was used");
    net.join(2 * SECOND + early, 1, 5);
    net.send(2 * SECOND + early, 0, Dest::Group(5), vec![4]);
    assert_eq!(drain(&mut net, 3 * SECOND).len(), 1, "within the tail a join works at once");
    net.leave(3 * SECOND, 1, 5);
    net.send(6 * SECOND, 0, Dest::Group(5), vec![5]);
    assert!(drain(&mut net, 7 * SECOND).is_empty());
    assert_eq!(net.stats(1).unwanted, 1, "after the tail the link is clean");
    assert_eq!(net.stats(2).down, LinkStats::default(), "a host outside sees nothing");
}

#[test]
fn a_frozen_host_keeps_what_its_buffer_holds() {
    let mut net = SimNet::new(8, 2);
    net.set_receive_buffer(1, 2_500);
    net.freeze(Duration::ZERO, 1, SECOND);
    for label in 0..10 {
        net.send(Duration::ZERO, 0, Dest::Unicast(1), numbered(label, 1_000));
    }
    net.send_control(Duration::ZERO, 0, 1, numbered(99, 4)).expect("open");
    assert!(drain(&mut net, SECOND - micros(1)).is_empty());
    let late: Vec<u32> = drain(&mut net, SECOND).iter().map(number).collect();
    assert_eq!(late, [0, 1, 99]);
    assert_eq!(net.stats(1).overflowed, 8);
    net.send(SECOND, 0, Dest::Unicast(1), numbered(10, 1_000));
    assert_eq!(drain(&mut net, 2 * SECOND).len(), 1, "the buffer is empty again");
}

#[test]
fn a_freeze_is_not_shortened() {
    let mut net = SimNet::new(8, 2);
    net.freeze(Duration::ZERO, 1, 2 * SECOND);
    net.send_control(Duration::ZERO, 0, 1, numbered(0, 4)).expect("open");
    assert!(drain(&mut net, SECOND / 2).is_empty());
    net.freeze(SECOND / 2, 1, SECOND);
    net.send_control(3 * SECOND / 2, 0, 1, numbered(1, 4)).expect("open");
    let numbers: Vec<u32> = drain(&mut net, 3 * SECOND).iter().map(number).collect();
    assert_eq!(numbers, [0, 1], "in order, though the second arrived after the shorter time");
}

#[test]
fn a_crash_ends_memberships_and_channels_and_a_restart_begins_anew() {
    let mut net = SimNet::new(8, 3);
    net.join(Duration::ZERO, 1, 5);
    net.send(SECOND, 0, Dest::Unicast(1), vec![1]);
    net.send_control(SECOND, 0, 1, vec![1]).expect("open");
    net.crash(SECOND, 1);
    let seen = drain(&mut net, 2 * SECOND);
    let told: Vec<u16> = seen.iter().map(|delivery| delivery.to).collect();
    assert_eq!(told, [0, 2], "only the others, of the closed channels");
    assert!(seen.iter().all(|delivery| delivery.kind == DeliveryKind::ControlClosed { peer: 1 }));
    assert_eq!(net.stats(1).to_crashed, 1);

    net.restart(2 * SECOND, 1);
    assert_eq!(net.send_control(2 * SECOND, 0, 1, vec![2]), Err(ControlDown { from: 0, to: 1 }));
    net.open_control(2 * SECOND, 0, 1);
    net.send_control(2 * SECOND, 0, 1, vec![3]).expect("opened");
    net.send(5 * SECOND, 0, Dest::Group(5), vec![4]);
    let seen = drain(&mut net, 6 * SECOND);
    assert_eq!(seen.len(), 1, "the message, and no datagram of the forgotten group");
    assert_eq!(seen[0].kind, DeliveryKind::Control { from: 0, bytes: vec![3].into() });
}

#[test]
fn a_shorter_delay_does_not_let_a_message_overtake() {
    let mut net = SimNet::new(8, 2);
    net.set_control_delay(0, 1, SECOND);
    net.send_control(Duration::ZERO, 0, 1, numbered(0, 4)).expect("open");
    net.set_control_delay(0, 1, micros(1));
    net.send_control(Duration::ZERO, 0, 1, numbered(1, 4)).expect("open");
    let numbers: Vec<u32> = drain(&mut net, 2 * SECOND).iter().map(number).collect();
    assert_eq!(numbers, [0, 1]);
}

#[test]
#[should_panic(expected = "time went back")]
fn time_does_not_go_back() {
    let mut net = SimNet::new(8, 2);
    net.send(SECOND, 0, Dest::Unicast(1), vec![1]);
    net.send(Duration::ZERO, 0, Dest::Unicast(1), vec![1]);
}
