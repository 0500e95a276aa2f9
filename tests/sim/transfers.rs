//! Whole transfers under loss: byte-identical everywhere, within bounds of bytes and memory.

use crate::world::{MemoryImage, Plan, SYMBOL_SIZE, World};
use lab::sim::{LinkId, LinkProfile, LossModel};
use pages::PAGE_SIZE;
use pages::block::Encoding;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use sender::rate::RateConfig;
use std::time::Duration;

pub(crate) const LIMIT: Duration = Duration::from_secs(60);
pub(crate) const GIGABIT: RateConfig = RateConfig::Fixed(125_000_000);

/// Zero, repeated, shared and unique pages.
pub(crate) fn image(seed: u64, common: u64, pages: usize) -> MemoryImage {
    let mut own = StdRng::seed_from_u64(seed);
    let page = |pick: u64| {
        let mut page = [0; PAGE_SIZE];
        StdRng::seed_from_u64(pick).fill_bytes(&mut page);
        page
    };
    let pages = (0..pages).map(|_| match own.random_range(0..10) {
        0..=3 => [0; PAGE_SIZE],
        4 => page(common ^ own.random_range(0..64)),
        5 => page(seed * 1000 + own.random_range(0..8)),
        6 => [0xee; PAGE_SIZE],
        _ => page(own.random()),
    });
    MemoryImage(pages.collect())
}

pub(crate) fn clone_plan(seed: u64, hosts: u16, pages: usize) -> Plan {
    let vms = vec![(image(seed, 7, pages), (0..hosts).collect())];
    Plan { vms, hosts: hosts.into(), encoding: Encoding::Raw, rate: GIGABIT, tweak: |_| {} }
}

/// Four VMs that share pages, each to its own host, and one to all of them.
fn mixed_plan(seed: u64) -> Plan {
    let mut vms: Vec<_> = (0..4).map(|host| (image(seed + u64::from(host), 7, 600), vec![host])).collect();
    vms.push((image(seed + 9, 7, 600), vec![0, 1, 2, 3]));
    Plan { vms, hosts: 4, encoding: Encoding::Zstd { level: 1 }, rate: GIGABIT, tweak: |_| {} }
}

fn lossy(world: &mut World, hosts: u16, profile: LinkProfile) {
    for host in 1..=hosts {
        world.net.set_profile(LinkId::Down(host), profile);
    }
}

/// Bytes sent for each byte of contents, all headers counted.
fn overhead(world: &World) -> f64 {
    let symbols = world.sent_datagrams as f64 * f64::from(SYMBOL_SIZE + 48 + 42);
    symbols / world.sender.stats().encoded_bytes as f64
}

#[test]
fn without_loss_everything_is_sent_once() {
    for seed in 0..3 {
        let mut world = World::new(seed, clone_plan(seed, 8, 3000));
        world.run(LIMIT, Vec::new());
        world.verify(&[]);
        let stats = world.sender.stats();
        assert_eq!((stats.blocks_repaired, stats.catch_up_blocks), (0, 0), "seed {seed}: {stats:?}");
        assert!(overhead(&world) < 1.075, "seed {seed}: {}", overhead(&world));
    }
}

#[test]
fn one_percent_of_loss_at_each_of_eight_hosts_costs_few_bytes() {
    for seed in 0..3 {
        let mut world = World::new(seed, clone_plan(seed, 8, 3000));
        let loss = LossModel::Random { ppm: 10_000 };
        lossy(&mut world, 8, LinkProfile { loss, ..LinkProfile::default() });
        world.run(LIMIT, Vec::new());
        world.verify(&[]);
        let stats = world.sender.stats();
        assert!(stats.blocks_repaired > 0 && stats.catch_up_blocks == 0, "seed {seed}: {stats:?}");
        assert!(overhead(&world) < 1.12, "seed {seed}: {} {stats:?}", overhead(&world));
    }
}

#[test]
fn survives_heavy_random_loss() {
    for (seed, ppm) in [(1, 50_000), (2, 200_000), (3, 400_000)] {
        let mut world = World::new(seed, clone_plan(seed, 4, 1500));
        lossy(&mut world, 4, LinkProfile { loss: LossModel::Random { ppm }, ..LinkProfile::default() });
        world.run(LIMIT, Vec::new());
        world.verify(&[]);
    }
}

#[test]
fn survives_bursts_reordering_duplication_and_damage() {
    let bursts = LossModel::Burst { length: 50, every: 1000 };
    let states = LossModel::GilbertElliott {
        to_bad_ppm: 2_000,
        to_good_ppm: 50_000,
        loss_good_ppm: 100,
        loss_bad_ppm: 700_000,
    };
    for (seed, loss) in [(1, bursts), (2, states), (3, LossModel::None)] {
        let mut world = World::new(seed, mixed_plan(seed));
        let jitter = Duration::from_micros(800);
        let profile = LinkProfile {
            loss,
            jitter,
            duplicate_ppm: 20_000,
            corrupt_ppm: 10_000,
            ..LinkProfile::default()
        };
        lossy(&mut world, 4, profile);
        world.run(LIMIT, Vec::new());
        world.verify(&[]);
    }
}

#[test]
fn a_host_sees_only_the_channels_of_its_pages() {
    for seed in 0..3 {
        let mut world = World::new(seed, mixed_plan(seed));
        world.run(LIMIT, Vec::new());
        world.verify(&[]);
        assert!(world.sender.stats().joins >= 4, "{:?}", world.sender.stats());
        assert_eq!(world.sender.stats().joins, world.sender.stats().leaves);
    }
}

#[test]
fn the_automatic_rate_finds_the_links_capacity() {
    for seed in 0..2 {
        let mut plan = clone_plan(seed, 4, 40_000);
        plan.rate = RateConfig::AUTO;
        let mut world = World::new(seed, plan);
        let link =
            LinkProfile { rate_bps: Some(1_000_000_000), queue_bytes: 2_500_000, ..LinkProfile::default() };
        lossy(&mut world, 4, link);
        world.run(LIMIT, Vec::new());
        world.verify(&[]);
        let ideal = world.sender.stats().encoded_bytes as f64 * 1.065 / 125e6;
        let took = (0..4).filter_map(|host| world.done_at(host)).max().expect("done").as_secs_f64();
        assert!(took < ideal * 1.2, "seed {seed}: {took} s, ideal {ideal}: {:?}", world.sender.stats());
    }
}

#[test]
fn memory_stays_within_the_window() {
    let mut plan = clone_plan(5, 4, 20_000);
    plan.tweak = |config| config.window_bytes = 4 << 20;
    let mut world = World::new(5, plan);
    lossy(&mut world, 4, LinkProfile { loss: LossModel::Random { ppm: 10_000 }, ..LinkProfile::default() });
    world.run(LIMIT, Vec::new());
    world.verify(&[]);
    // One stripe may be taken in while the window is nearly full.
    let stripe = (sender::prepare::STRIPE_CONTENTS * PAGE_SIZE) as u64;
    assert!(world.sender.stats().window_peak_bytes < (4 << 20) + 2 * stripe);
    assert!((0..4).all(|host| world.in_flight_peak(host) < 2 * stripe));
}
