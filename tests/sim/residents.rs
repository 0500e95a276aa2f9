//! Contents that hosts hold already: named to them, copied there if they still are what they were, else sent.

use crate::transfers::{GIGABIT, LIMIT, image};
use crate::world::{Fault, Plan, World};
use lab::sim::{LinkId, LinkProfile, LossModel};
use pages::block::Encoding;
use pages::names::name_of;
use pages::{ContentId, PAGE_SIZE};
use receiver::residents::Residents as Held;
use sender::prepare::Prepared;
use sender::residents::Residents;
use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

const KEY: [u8; 32] = [9; 32];
const HOSTS: u16 = 4;

/// One VM to all hosts, and one that the first two get.
fn plan(seed: u64) -> Plan {
    let vms = vec![(image(seed, 7, 1200), (0..HOSTS).collect()), (image(seed + 1, 7, 800), vec![0, 1])];
    Plan { vms, hosts: HOSTS.into(), encoding: Encoding::Zstd { level: 1 }, rate: GIGABIT, tweak: |_| {} }
}

/// Gives the first host every second content of the VMs, in a file, and the second every third; the others hold nothing.
fn give(prepared: &mut Prepared, files: &[File]) -> Vec<Option<Held>> {
    let page = |content: ContentId| {
        let (vm, pfn) = prepared.index.representative(content);
        *prepared.vms[usize::from(vm.0)].source.page(pfn)
    };
    let names: Vec<u128> = prepared.index.contents().map(|content| name_of(&KEY, &page(content))).collect();
    let (mut told, mut held) = (Vec::new(), Vec::new());
    for (host, file) in (0u16..).zip(files) {
        let every = 2 + u32::from(host);
        let mut here = Vec::new();
        for (place, content) in (0..).zip(prepared.index.contents().filter(|content| content.0 % every == 0))
        {
            file.write_all_at(&page(content), u64::from(place) * PAGE_SIZE as u64).expect("written");
            here.push((names[content.0 as usize], 0, place));
        }
        told.push((host, here.iter().map(|(name, _, _)| *name).collect::<HashSet<u128>>()));
        held.push(Some(Held::new(vec![(file.try_clone().expect("a handle"), KEY)], here)));
    }
    let needed = |host: u16, content: ContentId| {
        let signature = prepared.index.signature(prepared.index.signature_of(content));
        signature.iter().any(|vm| prepared.vms[usize::from(vm)].hosts.contains(host))
    };
    let residents = Residents::new(names, &told, needed);
    prepared.leave_out(residents);
    held
}

fn world(seed: u64, files: &[File]) -> World {
    let mut world = World::with(seed, plan(seed), |prepared| give(prepared, files));
    for host in 1..=HOSTS {
        let loss = LossModel::Random { ppm: 20_000 };
        world.net.set_profile(LinkId::Down(host), LinkProfile { loss, ..LinkProfile::default() });
    }
    world
}

fn files() -> [File; 2] {
    std::array::from_fn(|_| tempfile::tempfile().expect("a file"))
}

#[test]
fn what_hosts_hold_is_copied_there() {
    for seed in 0..3 {
        println!("seed {seed}");
        let mut plain = World::new(seed, plan(seed));
        plain.run(LIMIT, Vec::new());
        let mut world = world(seed, &files());
        world.run(LIMIT, Vec::new());
        world.verify(&[]);
        assert_eq!(world.supplied, 0);
        let (left, all) = (world.sender.progress(0).1, plain.sender.progress(0).1);
        assert!(left * 10 < all * 6, "the first host has half: {left} bytes of {all}");
    }
}

#[test]
fn what_changed_or_vanished_meanwhile_is_sent() {
    for seed in 0..3 {
        println!("seed {seed}");
        let files = files();
        let mut world = world(seed, &files);
        // Some pages of one image are written to, and the other ends early.
        for place in (0..300).step_by(7) {
            files[0].write_all_at(&[1, 2, 3], place * PAGE_SIZE as u64 + 99).expect("written");
        }
        files[1].set_len(PAGE_SIZE as u64 * 20 + 5).expect("cut");
        world.run(LIMIT, Vec::new());
        world.verify(&[]);
        assert!(world.supplied > 0);
    }
}

#[test]
fn a_host_that_forgot_everything_is_sent_what_was_only_named() {
    for seed in 0..3 {
        println!("seed {seed}");
        let mut world = world(seed, &files());
        let crash: Fault = Box::new(|world| {
            world.crash(0);
            world.forget_residents(0);
        });
        let restart: Fault = Box::new(|world| world.restart(0));
        // What was copied before is held, and not asked for again.
        world.run(LIMIT, vec![(Duration::from_millis(12), crash), (Duration::from_millis(300), restart)]);
        world.verify(&[]);
    }
}

#[test]
fn a_host_with_nothing_at_all_is_sent_everything() {
    let mut world = world(5, &files());
    world.forget_residents(0);
    world.forget_residents(1);
    world.run(LIMIT, Vec::new());
    world.verify(&[]);
    assert!(world.supplied > 4, "{}", world.supplied);
}
