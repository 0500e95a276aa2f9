//! Hosts that lie, flood or never end: the others do not notice, and the liar is named.

use crate::fairness::joins_nothing;
use crate::transfers::{LIMIT, clone_plan};
use crate::world::{Fault, Tap, World};
use sender::rate::RateConfig;
use sender::session::{ChannelSpec, Phase, SegmentSpec, Session, SessionConfig};
use std::time::{Duration, Instant};
use wire::ChannelId;
use wire::control::{Accept, BlockRange, Deficit, Report, ToHost, ToSender};
use wire::seal::ChannelSecret;

const PAGES: usize = 8_000;

fn undisturbed(seed: u64) -> Duration {
    let mut world = World::new(seed, clone_plan(seed, 4, PAGES));
    world.run(LIMIT, Vec::new());
    world.verify(&[]);
    others_done(&world)
}

fn others_done(world: &World) -> Duration {
    (0..3).map(|host| world.done_at(host).expect("complete")).max().expect("hosts")
}

fn reason(world: &World, host: usize) -> String {
    match world.sender.phase(host) {
        Phase::Failed { reason } => reason.clone(),
        phase => panic!("host {host} is {phase:?}"),
    }
}

/// Claims to lack a part of every block it ever had, in every report.
fn liar(missing: u128) -> Tap {
    let mut has = std::collections::BTreeSet::new();
    Box::new(move |_, host, message| match message {
        ToSender::Report(mut report) if host == 3 => {
            has.extend(report.done.drain(..).flat_map(|range| range.ids()).map(|id| id.0));
            let lie = |block: &u64| Deficit { block: *block, missing, cauchy: 0, raptorq: 0 };
            report.deficits = has.iter().map(lie).collect();
            vec![ToSender::Report(report)]
        }
        ToSender::AllComplete(_) if host == 3 => Vec::new(),
        message => vec![message],
    })
}

#[test]
fn a_host_that_claims_losses_it_does_not_have_is_served_apart_and_failed() {
    for (seed, missing) in [(0, 0xffff_ffff_ffff), (1, u128::MAX), (2, 1), (3, 0)] {
        let mut world = World::new(seed, clone_plan(seed, 4, PAGES));
        world.tap = Some(liar(missing));
        world.run(LIMIT, Vec::new());
        let (with, without) = (others_done(&world), undisturbed(seed));
        let stats = world.sender.stats().clone();
        assert!(
            with < without.mul_f64(1.3) + Duration::from_millis(400),
            "seed {seed}: {with:?}, {without:?} {stats:?}"
        );
        let again = stats.again_datagrams + stats.cauchy_datagrams + stats.raptorq_datagrams;
        assert!(again < stats.source_datagrams, "seed {seed}: {stats:?}");
        assert!(reason(&world, 3).contains("whole again and again"), "{}", reason(&world, 3));
    }
}

#[test]
fn a_host_that_never_says_complete_is_named() {
    let mut plan = clone_plan(1, 4, 1_000);
    plan.tweak = |config| config.finish_timeout = Duration::from_secs(3);
    let mut world = World::new(1, plan);
    world.tap = Some(Box::new(|_, host, message| match message {
        ToSender::AllComplete(_) if host == 3 => Vec::new(),
        message => vec![message],
    }));
    world.run(LIMIT, Vec::new());
    assert!(reason(&world, 3).contains("does not complete its images"), "{}", reason(&world, 3));
    assert_eq!(*world.sender.phase(0), Phase::Complete);
}

#[test]
fn a_host_that_reconnects_for_ever_is_named() {
    let mut world = World::new(2, clone_plan(2, 4, 1_000));
    world.tap = Some(Box::new(|_, host, message| match message {
        ToSender::Report(mut report) if host == 3 => {
            report.done.clear();
            vec![ToSender::Report(report)]
        }
        ToSender::AllComplete(_) if host == 3 => Vec::new(),
        message => vec![message],
    }));
    let times = (0..100_u64).map(|round| {
        let fault: Fault = Box::new(|world: &mut World| {
            if !matches!(world.sender.phase(3), Phase::Failed { .. }) {
                world.crash(3);
                world.restart(3);
            }
        });
        (Duration::from_millis(100 + 400 * round), fault)
    });
    world.run(LIMIT, times.collect());
    assert!(reason(&world, 3).contains("without getting any further"), "{}", reason(&world, 3));
    assert!(others_done(&world) < Duration::from_secs(3));
}

/// A block every second: progress, but the end of the transfer would be weeks away.
#[test]
fn a_host_that_trickles_is_named() {
    let mut plan = clone_plan(3, 4, PAGES);
    plan.tweak = |config| {
        config.useful_window = Duration::from_secs(4);
        config.useful_bytes_per_s = 400_000;
    };
    let mut world = World::new(3, plan);
    let mut joins_nothing = joins_nothing(&[3]);
    let mut last = Duration::ZERO;
    world.tap = Some(Box::new(move |now, host, message| match message {
        ToSender::Report(mut report) if host == 3 => {
            let first = report.done.first().copied().filter(|_| now > last + Duration::from_secs(1));
            report.done = first.map(|range| BlockRange { count: 1, ..range }).into_iter().collect();
            if first.is_some() {
                last = now;
            }
            vec![ToSender::Report(report)]
        }
        ToSender::AllComplete(_) if host == 3 => Vec::new(),
        message => joins_nothing(now, host, message),
    }));
    world.run(LIMIT, Vec::new());
    assert!(reason(&world, 3).contains("too slow to be waited for"), "{}", reason(&world, 3));
    assert!(others_done(&world) < undisturbed(3) + Duration::from_millis(400));
}

#[test]
fn a_second_accept_ends_the_hosts_part() {
    let mut world = World::new(4, clone_plan(4, 4, PAGES));
    let unicast = ([127, 0, 0, 1], 9).into();
    let accept = ToSender::Accept(Accept { version: wire::VERSION, unicast, credit_bytes: 8 << 20 });
    let again: Fault =
        Box::new(move |world: &mut World| world.sender.handle_control(3, accept.clone(), world.now));
    world.run(LIMIT, vec![(Duration::from_millis(60), again)]);
    assert!(reason(&world, 3).contains("no place in a transfer"), "{}", reason(&world, 3));
    assert!(others_done(&world) < Duration::from_secs(3));
}

/// A session with so many small blocks for two hosts that have accepted.
fn session(blocks: u64) -> Session {
    let channel = |id: u32| ChannelSpec {
        group: Some([239, 1, 1, 1].into()),
        hosts: vec![0, 1],
        id: ChannelId(id),
        secret: ChannelSecret::random(),
    };
    let segments = [SegmentSpec { channel: 0, expected_bytes: 1000 * blocks, circle: 0 }];
    let config = SessionConfig::new(1424, RateConfig::Fixed(1 << 40));
    let mut session = Session::new(config, fec::CostModel::default(), 2, vec![channel(1)], &segments);
    let unicast = ([127, 0, 0, 1], 9).into();
    for host in 0..2 {
        session.handle_connected(host, Duration::ZERO);
        let digests = (0..blocks).map(digest).collect();
        session.handle_control(host, ToSender::Held { digests }, Duration::ZERO);
        let accept = Accept { version: wire::VERSION, unicast, credit_bytes: 8 << 20 };
        session.handle_control(host, ToSender::Accept(accept), Duration::ZERO);
    }
    for block in 0..blocks {
        session.handle_block(0, 1000, digest(block));
    }
    session.handle_segment_encoded(0);
    session
}

fn digest(block: u64) -> wire::Digest {
    let mut digest = [0; 32];
    digest[..8].copy_from_slice(&block.to_le_bytes());
    digest
}

/// What costs a host some bytes must not cost the sender milliseconds.
#[test]
fn claims_of_millions_of_blocks_are_cheap() {
    let mut session = session(1000);
    let done = vec![BlockRange { first: 0, count: 1 << 22 }];
    let began = Instant::now();
    for _ in 0..2_000 {
        let report = Report { done: done.clone(), ..Report::default() };
        session.handle_control(0, ToSender::Report(report), Duration::ZERO);
    }
    assert_eq!(session.progress(0).0, 1_000_000);
    // A hundredth of what it costs to look at each block named.
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}

/// Both hosts seem to hold everything: all of it is asked about, in questions that they can take.
#[test]
fn questions_keep_within_the_limits_of_a_message() {
    let mut session = session(3 * wire::limits::RANGES_MAX as u64);
    let (mut now, mut asked) = (Duration::ZERO, 0);
    for _ in 0..2_000 {
        now += Duration::from_millis(1);
        session.handle_timeout(now);
        while session.poll_transmit(now).is_some() {}
        while let Some((host, message)) = session.poll_control() {
            <ToHost as wire::control::Message>::check(&message).expect("within the limits");
            match message {
                ToHost::Join(join) => {
                    session.handle_control(host, ToSender::Joined { channel: join.channel }, now);
                }
                ToHost::Through(through) => {
                    let blocks: usize = through.blocks.iter().map(|range| range.count as usize).sum();
                    assert!(blocks <= wire::limits::DEFICITS_MAX);
                    asked += blocks;
                    // All but every second one is there, so that the rest makes as many ranges as it can.
                    let done = through.blocks.iter().flat_map(|range| range.ids());
                    let done = wire::control::ranges(done.filter(|id| id.0 % 2 == 0));
                    let report = Report { seq: through.seq, done, ..Report::default() };
                    session.handle_control(host, ToSender::Report(report), now);
                }
                _ => {}
            }
        }
    }
    assert!(asked >= 2 * 3 * wire::limits::RANGES_MAX, "{asked}");
}
