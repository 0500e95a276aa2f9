//! Poor cables: which hosts are taken off their groups for what they lack, by which of the two judges, and what becomes of the
//! blocks that they owe then.

use crate::transfers::{LIMIT, clone_plan};
use crate::world::{Fault, World};
use lab::sim::{LinkId, LinkProfile, LossModel};
use sender::rate::RateConfig;
use sender::session::Phase;
use std::time::Duration;

const PAGES: usize = 20_000;

/// From `ms` on these hosts' cables lose so much.
fn lose(ms: u64, hosts: &'static [u16], ppm: u32) -> (Duration, Fault) {
    let profile = LinkProfile { loss: LossModel::Random { ppm }, ..LinkProfile::default() };
    let fault = move |world: &mut World| {
        hosts.iter().for_each(|host| world.net.set_profile(LinkId::Down(host + 1), profile));
    };
    (Duration::from_millis(ms), Box::new(fault))
}

/// Four hosts, for two seconds.
fn slowly(seed: u64, faults: Vec<(Duration, Fault)>) -> World {
    let mut plan = clone_plan(seed, 4, PAGES);
    plan.rate = RateConfig::Fixed(25_000_000);
    let mut world = World::new(seed, plan);
    world.run(LIMIT, faults);
    world.verify(&[]);
    world
}

/// When a host was taken off its groups.
fn taken_off(world: &World, host: usize) -> Vec<Duration> {
    let phases = world.phases.iter();
    phases.filter(|(_, of, phase)| *of == host && *phase == Phase::Unicast).map(|(at, _, _)| *at).collect()
}

fn slowest(world: &World, hosts: std::ops::Range<usize>) -> Duration {
    hosts.map(|host| world.done_at(host).expect("complete")).max().expect("hosts")
}

/// Two hosts miss most of each block for a while and owe it; the group carries it again for them, but not before the
/// others, which lack a little of it, are done with it.
#[test]
fn a_block_recalled_for_two_is_not_lost_for_the_others() {
    let mut recalled = 0;
    for seed in 0..4 {
        let mut world = World::new(seed, clone_plan(seed, 8, PAGES));
        let faults =
            vec![lose(0, &[0, 1, 2, 3, 4, 5], 60_000), lose(150, &[6, 7], 700_000), lose(330, &[6, 7], 0)];
        world.run(LIMIT, faults);
        world.verify(&[]);
        recalled += world.sender.stats().recalled_blocks;
    }
    assert!(recalled > 0, "the scenario did not come about");
}

/// One cable is as good as cut for a second: both judges see it, the greedy hosts' first, as it judges every 400 ms and the
/// others lack nothing. The others notice nothing, and once the cable is well nobody remembers what it lost.
#[test]
fn a_dead_cable_is_tried_again_and_forgotten_when_it_is_well() {
    for seed in 0..3 {
        let without = slowest(&slowly(seed, Vec::new()), 0..3);
        let world = slowly(seed, vec![lose(200, &[3], 970_000), lose(1_200, &[3], 0)]);
        let with = slowest(&world, 0..3);
        assert!(
            with < without.mul_f64(1.1) + Duration::from_millis(250),
            "seed {seed}: {with:?}, {without:?}"
        );
        let off = taken_off(&world, 3);
        assert!((1..=3).contains(&off.len()), "seed {seed}: {off:?}");
        assert!(off.iter().all(|at| *at < Duration::from_millis(1_700)), "seed {seed}: {off:?}");
        assert!((0..3).all(|host| taken_off(&world, host).is_empty()), "seed {seed}: {:?}", world.phases);
    }
}

/// For 400 ms one host does not answer. What it got meanwhile it has; what was lost on the way to it the group carries, however
/// long the others are done with these blocks: nothing goes whole.
#[test]
fn a_host_silent_for_a_moment_lacks_little() {
    let mut recalled = 0;
    for (seed, ppm) in [(0, 0), (1, 0), (2, 20_000), (3, 20_000)] {
        let freeze: Fault = Box::new(|world: &mut World| {
            world.net.set_receive_buffer(4, 16 << 20);
            world.freeze(3, Duration::from_millis(600));
        });
        let faults = vec![lose(0, &[3], ppm), (Duration::from_millis(200), freeze)];
        let world = slowly(seed, faults);
        let silent = world.phases.iter().any(|(_, host, phase)| *host == 3 && *phase == Phase::Suspended);
        assert!(silent, "the scenario did not come about");
        let stats = world.sender.stats();
        assert_eq!(stats.catch_up_blocks, 0, "seed {seed}: {stats:?}");
        recalled += stats.recalled_blocks;
    }
    assert!(recalled > 0, "the scenario did not come about");
}

/// The whole machine stands still for 400 ms, and one host runs again a little later than the sender: that no answer came
/// meanwhile is not its silence.
#[test]
fn nobody_is_silent_while_the_sender_does_not_listen() {
    for seed in 0..2 {
        // Before the sender, so that it has asked.
        let one: Fault = Box::new(|world: &mut World| world.freeze(3, Duration::from_millis(620)));
        let others: Fault = Box::new(|world: &mut World| {
            world.freeze_sender(Duration::from_millis(600));
            (0..3).for_each(|host| world.freeze(host, Duration::from_millis(590)));
        });
        let faults = vec![(Duration::from_millis(170), one), (Duration::from_millis(200), others)];
        let world = slowly(seed, faults);
        let silent = world.phases.iter().any(|(_, _, phase)| *phase == Phase::Suspended);
        assert!(!silent, "seed {seed}: {:?}", world.phases);
    }
}

/// If most hosts lack most, slow is normal and nobody is greedy; but what next to nothing reaches is deaf, however many
/// they are.
#[test]
fn hosts_that_nothing_reaches_are_served_apart_however_many() {
    for (seed, hosts) in [(0, &[1, 2, 3][..]), (1, &[0, 1, 2, 3])] {
        let world = slowly(seed, vec![lose(200, hosts, 1_000_000)]);
        for host in hosts.iter().map(|host| usize::from(*host)) {
            assert!(!taken_off(&world, host).is_empty(), "host {host}: {:?}", world.phases);
        }
        let whole = world.sender.stats().catch_up_blocks;
        assert!(whole > 0, "seed {seed}");
    }
}

/// Losses that a code repairs well are nobody's fault, if all have them: neither judge acts.
#[test]
fn equal_losses_take_nobody_off() {
    for seed in 0..2 {
        let world = slowly(seed, vec![lose(0, &[0, 1, 2, 3], 350_000)]);
        for host in 0..4 {
            assert!(taken_off(&world, host).is_empty(), "host {host}: {:?}", world.phases);
        }
    }
}
