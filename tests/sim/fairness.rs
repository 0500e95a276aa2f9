//! Nobody waits for a host that is slow, late or waiting for its own turn.

use crate::transfers::{GIGABIT, LIMIT, clone_plan, image};
use crate::world::{Plan, Tap, World};
use lab::sim::{LinkId, LinkProfile};
use pages::block::Encoding;
use sender::rate::RateConfig;
use sender::session::Phase;
use std::time::Duration;
use wire::control::ToSender;

/// A VM for each host alone, in the order of the hosts.
fn private_plan(seed: u64, hosts: u16, pages: usize) -> Plan {
    let vms =
        (0..hosts).map(|host| (image(seed * 100 + u64::from(host), 7 + u64::from(host), pages), vec![host]));
    Plan { vms: vms.collect(), hosts: hosts.into(), encoding: Encoding::Raw, rate: GIGABIT, tweak: |_| {} }
}

fn slowest(world: &World, hosts: impl Iterator<Item = usize>) -> Duration {
    hosts.map(|host| world.done_at(host).expect("complete")).max().expect("hosts")
}

/// Whatever host `victim` says of joining a group, it could not.
pub(crate) fn joins_nothing(victims: &'static [usize]) -> Tap {
    Box::new(move |_, host, message| match message {
        ToSender::Joined { channel } if victims.contains(&host) => {
            vec![ToSender::JoinFailed { channel, reason: "no".into() }]
        }
        message => vec![message],
    })
}

/// The slow host's own blocks come first in the schedule and are more than the window holds.
#[test]
fn a_slow_host_with_a_channel_of_its_own_delays_nobody() {
    for seed in 0..2 {
        let run = |slow: bool| {
            let mut plan = private_plan(seed, 4, 6_000);
            plan.tweak = |config| config.window_bytes = 8 << 20;
            let mut world = World::new(seed, plan);
            if slow {
                let link = LinkProfile {
                    rate_bps: Some(30_000_000),
                    queue_bytes: 200_000,
                    ..LinkProfile::default()
                };
                world.net.set_profile(LinkId::Down(1), link);
            }
            world.run(LIMIT, Vec::new());
            world.verify(&[]);
            slowest(&world, 1..4)
        };
        let (with, without) = (run(true), run(false));
        assert!(
            with < without.mul_f64(1.1) + Duration::from_millis(250),
            "seed {seed}: {with:?}, {without:?}"
        );
    }
}

/// At this rate the last host's turn comes after many times its time-out.
#[test]
fn a_host_may_wait_for_its_turn_for_long() {
    let mut plan = private_plan(3, 3, 3_000);
    plan.rate = RateConfig::Fixed(5_000_000);
    plan.tweak = |config| config.host_timeout = Duration::from_millis(900);
    let mut world = World::new(3, plan);
    world.run(LIMIT, Vec::new());
    world.verify(&[]);
    assert!(slowest(&world, 0..3) > 2 * Duration::from_millis(900));
}

/// Its `Joined` never come, of groups or of its own channel; all else it says.
#[test]
fn a_host_that_never_answers_a_join_costs_a_second_once() {
    for seed in 0..2 {
        let mixed = || {
            let mut vms: Vec<_> =
                (0..4).map(|host| (image(seed + u64::from(host), 7, 600), vec![host])).collect();
            vms.extend((0..4_u16).map(|not| {
                let hosts = (0..4).filter(|host| *host != not).collect();
                (image(seed + 90 + u64::from(not), 8 + u64::from(not), 600), hosts)
            }));
            Plan { vms, hosts: 4, encoding: Encoding::Raw, rate: GIGABIT, tweak: |_| {} }
        };
        let mut world = World::new(seed, mixed());
        world.run(LIMIT, Vec::new());
        let without = slowest(&world, 0..3);
        let mut world = World::new(seed, mixed());
        world.tap = Some(Box::new(|_, host, message| match message {
            ToSender::Joined { .. } if host == 3 => Vec::new(),
            message => vec![message],
        }));
        world.run(LIMIT, Vec::new());
        world.verify(&[]);
        let with = slowest(&world, 0..3);
        assert!(with < without + Duration::from_millis(1_400), "seed {seed}: {with:?}, {without:?}");
    }
}

/// Nobody at all answers: there is nothing to wait for.
#[test]
fn a_channel_opens_even_if_no_member_joins() {
    let mut world = World::new(4, clone_plan(4, 2, 600));
    world.tap = Some(Box::new(|_, _, message| match message {
        ToSender::Joined { .. } => Vec::new(),
        message => vec![message],
    }));
    world.run(LIMIT, Vec::new());
    world.verify(&[]);
    assert_eq!(world.sent_datagrams, 0);
}

/// Host 0 takes blocks and never says so; hosts 1 and 2 catch up beside it.
#[test]
fn a_host_that_hoards_its_catch_up_leaves_the_others_theirs() {
    let mut plan = clone_plan(5, 4, 4_000);
    plan.tweak = |config| config.host_timeout = Duration::from_secs(8);
    let mut world = World::new(5, plan);
    let mut joins_nothing = joins_nothing(&[0, 1, 2]);
    world.tap = Some(Box::new(move |now, host, message| match message {
        ToSender::Report(mut report) if host == 0 => {
            report.done.clear();
            vec![ToSender::Report(report)]
        }
        message => joins_nothing(now, host, message),
    }));
    world.run(LIMIT, Vec::new());
    assert!(slowest(&world, 1..4) < Duration::from_secs(3));
    let Phase::Failed { reason } = world.sender.phase(0) else { return };
    assert!(reason.contains("no progress"), "{reason}");
}

/// Two hosts come when half is over, or all of it: what both lack goes to their group once, not to each by TCP.
#[test]
fn late_hosts_share_what_they_lack() {
    for (seed, late_ms) in [(1, 580), (2, 1500)] {
        let mut world = World::new(seed, clone_plan(seed, 4, 12_000));
        for host in [2, 3] {
            world.connect_later(host, Duration::from_millis(late_ms));
            world.sender.note(host, "connection refused".into());
        }
        world.run(LIMIT, Vec::new());
        world.verify(&[]);
        let stats = world.sender.stats();
        let multicast = world.sent_datagrams * u64::from(crate::world::SYMBOL_SIZE);
        let bytes = (multicast + world.whole_bytes) as f64 / stats.encoded_bytes as f64;
        assert!(stats.recalled_blocks > 0, "seed {seed}: {stats:?}");
        // The group's once, the late ones' once, and the first moments by TCP.
        assert!(bytes < 2.4, "seed {seed}: {bytes} of the encoded bytes: {stats:?}");
    }
}

/// It answers everything, a third of a second late: silent and back, again and again.
#[test]
fn a_host_that_is_always_late_is_served_apart() {
    let run = |late: bool| {
        let mut world = World::new(6, clone_plan(6, 4, 40_000));
        if late {
            world.net.set_control_delay(0, 4, Duration::from_millis(170));
        }
        world.run(LIMIT, Vec::new());
        world.verify(&[]);
        slowest(&world, 0..3)
    };
    let (with, without) = (run(true), run(false));
    assert!(with < without + Duration::from_millis(1_500), "{with:?}, {without:?}");
}

/// While it waits, the sender sleeps.
#[test]
fn a_sender_that_waits_does_not_spin() {
    let mut world = World::new(7, private_plan(7, 2, 3_000));
    let link = LinkProfile { rate_bps: Some(20_000_000), queue_bytes: 200_000, ..LinkProfile::default() };
    world.net.set_profile(LinkId::Down(2), link);
    world.connect_later(1, Duration::from_millis(300));
    world.run(LIMIT, Vec::new());
    world.verify(&[]);
    assert!(world.spins < 500, "{} turns for nothing in {:?}", world.spins, world.now);
}
