//! Hosts that die, freeze, come late or are slow: the others do not notice, and nothing is ever wrong.

use crate::transfers::{GIGABIT, LIMIT, clone_plan, image};
use crate::world::{Fault, Plan, World};
use lab::sim::{LinkId, LinkProfile, LossModel};
use pages::block::Encoding;
use sender::session::Phase;
use std::time::Duration;

const PAGES: usize = 20_000;

fn undisturbed(seed: u64) -> Duration {
    let mut world = World::new(seed, clone_plan(seed, 4, PAGES));
    world.run(LIMIT, Vec::new());
    world.verify(&[]);
    slowest(&world, &[0, 1, 2, 3])
}

fn slowest(world: &World, hosts: &[usize]) -> Duration {
    hosts.iter().map(|host| world.done_at(*host).expect("complete")).max().expect("hosts")
}

fn at(ms: u64, fault: impl FnMut(&mut World) + 'static) -> (Duration, Fault) {
    (Duration::from_millis(ms), Box::new(fault))
}

fn disturbed(seed: u64, faults: Vec<(Duration, Fault)>, failed: &[usize]) -> World {
    let mut world = World::new(seed, clone_plan(seed, 4, PAGES));
    world.run(LIMIT, faults);
    world.verify(failed);
    let others: Vec<usize> = (0..3).filter(|host| !failed.contains(host)).collect();
    let (with, without) = (slowest(&world, &others), undisturbed(seed));
    let bound = without.mul_f64(1.1) + Duration::from_millis(250);
    assert!(with < bound, "seed {seed}: {with:?} with the fault, {without:?} without");
    world
}

#[test]
fn a_receiver_killed_and_started_again_resumes() {
    for seed in 0..2 {
        let faults = vec![at(150, |world| world.crash(3)), at(300, |world| world.restart(3))];
        let world = disturbed(seed, faults, &[]);
        let held = world.sender.host_stats(3).expect("complete").blocks_held;
        assert!(held > 0, "seed {seed}: nothing was resumed");
    }
}

#[test]
fn a_receiver_that_dies_is_named_and_the_others_finish() {
    let world = disturbed(1, vec![at(150, |world| world.crash(3))], &[3]);
    let Phase::Failed { reason } = world.sender.phase(3) else { panic!("not failed") };
    assert!(reason.contains("no answer"), "{reason}");
}

#[test]
fn a_frozen_receiver_delays_nobody_and_catches_up() {
    for seed in 0..2 {
        let until = Duration::from_secs(3);
        let world = disturbed(seed, vec![at(150, move |world| world.freeze(3, until))], &[]);
        assert!(world.sender.stats().catch_up_blocks > 0);
    }
}

#[test]
fn a_receiver_frozen_for_ever_is_named() {
    let world = disturbed(2, vec![at(150, |world| world.freeze(3, Duration::from_secs(1000)))], &[3]);
    assert!(matches!(world.sender.phase(3), Phase::Failed { .. }));
}

#[test]
fn a_receiver_that_refuses_is_named_with_its_reason() {
    let mut world = World::new(3, clone_plan(3, 4, PAGES));
    world.refuse(3, "the disk is full");
    world.run(LIMIT, Vec::new());
    world.verify(&[3]);
    assert_eq!(*world.sender.phase(3), Phase::Failed { reason: "the disk is full".into() });
}

#[test]
fn a_late_receiver_gets_everything() {
    let mut world = World::new(4, clone_plan(4, 4, PAGES));
    world.connect_later(3, Duration::from_millis(700));
    world.sender.note(3, "connection refused".into());
    world.run(LIMIT, Vec::new());
    world.verify(&[]);
    assert!(world.sender.stats().catch_up_blocks > 0);
}

#[test]
fn a_slow_link_is_served_apart() {
    let mut world = World::new(5, clone_plan(5, 4, PAGES));
    let slow = LinkProfile { rate_bps: Some(100_000_000), queue_bytes: 500_000, ..LinkProfile::default() };
    world.net.set_profile(LinkId::Down(4), slow);
    world.run(LIMIT, Vec::new());
    world.verify(&[]);
    let bound = undisturbed(5).mul_f64(1.1) + Duration::from_millis(250);
    assert!(slowest(&world, &[0, 1, 2]) < bound);
}

#[test]
fn a_sender_started_again_sends_only_what_is_lacking() {
    let mut world = World::new(6, clone_plan(6, 4, PAGES));
    world.run(Duration::from_secs(10), vec![at(200, |world| world.sender.cancel("killed", world.now))]);
    let mut world = world.next_session(7, clone_plan(6, 4, PAGES));
    world.run(LIMIT, Vec::new());
    world.verify(&[]);
    let stats = world.sender.stats();
    assert!(stats.blocks_skipped > stats.blocks / 8, "{stats:?}");
    assert!(world.sent_datagrams * 1424 < stats.encoded_bytes * 9 / 10, "{stats:?}");
}

#[test]
fn an_image_changed_between_two_sessions_is_never_mixed() {
    let mut world = World::new(8, clone_plan(8, 4, PAGES));
    world.run(Duration::from_secs(10), vec![at(200, |world| world.sender.cancel("killed", world.now))]);
    let other = |seed| {
        let mut changed = image(8, 7, PAGES);
        for page in changed.0.iter_mut().skip(usize::try_from(seed).expect("small")).step_by(97) {
            page[17] ^= 0x55;
        }
        let vms = vec![(changed, (0..4).collect())];
        Plan { vms, hosts: 4, encoding: Encoding::Raw, rate: GIGABIT, tweak: |_| {} }
    };
    let mut world = world.next_session(9, other(5));
    world.run(Duration::from_secs(10), vec![at(220, |world| world.sender.cancel("killed", world.now))]);
    let mut world = world.next_session(10, clone_plan(8, 4, PAGES));
    world.run(LIMIT, Vec::new());
    world.verify(&[]);
}

#[test]
fn an_mtu_that_shrinks_midway_is_survived() {
    let mut world = World::new(11, clone_plan(11, 2, 2_000));
    let small = LinkProfile { mtu: 1_000, ..LinkProfile::default() };
    world.run(LIMIT, vec![at(30, move |world| world.net.set_profile(LinkId::Down(2), small))]);
    world.verify(&[]);
}

#[test]
fn random_faults_under_many_seeds() {
    for seed in 0..12_u64 {
        let mut world = World::new(seed, clone_plan(seed, 4, 4_000));
        for host in 1..=4 {
            let ppm = u32::try_from((seed * 7919 + host * 104_729) % 80_000).expect("small");
            let jitter = Duration::from_micros((seed * 131) % 500);
            let profile = LinkProfile {
                loss: LossModel::Random { ppm },
                jitter,
                corrupt_ppm: 2_000,
                duplicate_ppm: 5_000,
                ..LinkProfile::default()
            };
            world.net.set_profile(LinkId::Down(u16::try_from(host).expect("small")), profile);
        }
        let (victim, other) =
            (usize::try_from(seed % 4).expect("small"), usize::try_from((seed + 1) % 4).expect("small"));
        let (down, up) = (20 + seed * 9, 60 + seed * 17);
        let faults = vec![
            at(down, move |world| world.crash(victim)),
            at(up, move |world| world.restart(victim)),
            at(30 + seed * 5, move |world| {
                let until = world.now + Duration::from_millis(400);
                world.freeze(other, until);
            }),
        ];
        world.run(LIMIT, faults);
        world.verify(&[]);
    }
}
