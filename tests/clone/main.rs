//! Clones that run while their memory arrives: sender and receivers as they are, with threads and sockets, over the loopback
//! interface; the guests are stand-ins that touch pages and check every byte (`guest.rs`). Real virtual machines are
//! cloned by `tests/host`.

mod guest;
mod world;

use guest::{EARLY, PAGES, Stint, touched};
use std::time::{Duration, Instant};
use world::{World, wait_until};

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn clones_run_by_their_page_faults_long_before_their_memory_is_there() {
    let mut world = World::new(2, Stint::EveryPage);
    let sending = world.send(3, Some(4_000_000));
    let outcome = sending.finish(PATIENCE);
    assert!(outcome.is_complete(), "{:?}", outcome.hosts);
    assert_eq!(outcome.clones.all().len(), 6);
    for clone in outcome.clones.all() {
        assert_eq!(clone.failed, None, "{}", clone.name);
        assert!(clone.running.is_some(), "{} never ran", clone.name);
        assert!(clone.faults.sender > 0, "{} had no page from the sender: {:?}", clone.name, clone.faults);
    }
    let first = outcome.clones.all().iter().filter_map(|clone| clone.running).max().expect("they ran");
    println!(
        "last of 6 clones ran after {first:?}, all is over after {:?}, {:?}",
        outcome.wall, outcome.pages
    );
    assert!(first < outcome.wall / 2, "they ran after {first:?} of {:?}", outcome.wall);
    // Guests fault faster than this rate can answer, and blocks come all the same: nothing is asked for ahead.
    assert_eq!(outcome.pages.ahead, 0, "blocks come: {:?}", outcome.pages);
    // Each page at most once to each of two hosts.
    assert!(outcome.pages.answered + outcome.pages.spread <= 2 * u64::from(PAGES));
    // Guests go on after the transfer: every one checks all of its memory, once.
    wait_until(PATIENCE, "all pages are checked", || world.checked_pages() >= 6 * u64::from(PAGES));
    assert_eq!(world.checked_pages(), 6 * u64::from(PAGES));
    world.check_images();
}

#[test]
fn a_sender_that_comes_back_finds_the_clones_waiting() {
    let mut world = World::new(2, Stint::EveryPage);
    let sending = world.send(2, Some(1_000_000));
    wait_until(PATIENCE, "the clones run", || world.checked_pages() > 40);
    let outcome = sending.interrupt();
    assert!(!outcome.is_complete());
    let seen = world.checked_pages();
    assert!(seen < 4 * u64::from(PAGES), "nothing was left to wait for");
    let outcome = world.send(2, None).finish(PATIENCE);
    assert!(outcome.is_complete(), "{:?}", outcome.hosts);
    assert!(outcome.clones.all().iter().all(|clone| clone.failed.is_none() && clone.running.is_some()));
    wait_until(PATIENCE, "all pages are checked", || world.checked_pages() >= 4 * u64::from(PAGES));
    assert_eq!(world.checked_pages(), 4 * u64::from(PAGES));
    world.check_images();
}

#[test]
fn clones_of_a_sender_that_never_comes_back_are_ended_by_name() {
    let mut world = World::new(1, Stint::EveryPage);
    world.orphan_timeout(Duration::from_millis(300));
    let sending = world.send(2, Some(1_000_000));
    wait_until(PATIENCE, "the clones run", || world.checked_pages() > 20);
    drop(sending.interrupt());
    let start = Instant::now();
    let note = world.await_note(PATIENCE, "these clones are ended: golden-h0-0, golden-h0-1");
    println!("{note}, after {:?}", start.elapsed());
    world.await_note(PATIENCE, "no clone is running any more");
}

#[test]
fn cancelled_clones_are_ended_by_name_and_their_hosts_keep_nothing() {
    let mut world = World::new(2, Stint::EveryPage);
    let sending = world.send(2, Some(1_000_000));
    wait_until(PATIENCE, "the clones run", || world.checked_pages() > 40);
    let outcome = sending.cancel();
    for host in &outcome.hosts {
        assert!(format!("{:?}", host.phase).contains("cancelled by `scatter cancel`"), "{host:?}");
    }
    for clone in outcome.clones.all() {
        assert_eq!(clone.failed.as_deref(), Some("cancelled by `scatter cancel`"), "{}", clone.name);
    }
    world.await_note(PATIENCE, "these clones are ended: golden-h0-0, golden-h0-1");
    wait_until(PATIENCE, "hosts give back what they held", || world.kept().is_empty());
    let seen = world.checked_pages();
    assert!(seen < 4 * u64::from(PAGES), "nothing was left to cancel");
    // Another transfer of the same name begins anew, from nothing.
    let outcome = world.send(2, None).finish(PATIENCE);
    assert!(outcome.is_complete(), "{:?}", outcome.hosts);
    assert!(outcome.clones.all().iter().all(|clone| clone.failed.is_none() && clone.running.is_some()));
    wait_until(PATIENCE, "all pages are checked", || world.checked_pages() >= seen + 4 * u64::from(PAGES));
    world.check_images();
}

#[test]
fn what_a_host_may_not_start_is_refused_before_anything_is_sent() {
    let mut world = World::new(1, Stint::EveryPage);
    world.kind = "firecracker".into();
    let outcome = world.send(1, None).finish(PATIENCE);
    let reason = format!("{:?}", outcome.hosts[0].phase);
    assert!(reason.contains("this host may not start VMs of kind firecracker"), "{reason}");
    assert_eq!(outcome.stats.source_datagrams, 0);
    assert_eq!(world.checked_pages(), 0);
}

#[test]
fn a_clone_that_cannot_start_is_named_and_the_others_run() {
    let mut world = World::new(1, Stint::FailIfOdd);
    let outcome = world.send(4, None).finish(PATIENCE);
    assert!(outcome.is_complete(), "{:?}", outcome.hosts);
    let failed: Vec<_> = outcome.clones.all().iter().map(|clone| clone.failed.as_deref()).collect();
    assert_eq!(failed, [None, Some("an odd clone"), None, Some("an odd clone")]);
}

#[test]
fn a_recorded_working_set_is_there_before_the_clones_touch_it() {
    let mut waits = Vec::new();
    for recorded in [false, true] {
        let mut world = World::new(1, Stint::EveryPage);
        if recorded {
            world.working_set = (0..EARLY).map(|step| touched(0, step)).collect();
        }
        let outcome = world.send(1, Some(2_000_000)).finish(PATIENCE);
        assert!(outcome.is_complete(), "{:?}", outcome.hosts);
        let faults = &outcome.first_faults[0].1;
        println!(
            "recorded {recorded}: {} of the first {EARLY} touches waited, {} pages were missed in all",
            world.early_waits(),
            faults.len()
        );
        // What a clone missed is recorded in the order of its faults.
        let order = |page: &u32| (0..PAGES).find(|step| touched(0, *step) == *page);
        assert!(faults.is_sorted_by_key(order), "{faults:?}");
        waits.push(world.early_waits());
        world.check_images();
    }
    assert!(waits[0] > u64::from(EARLY) / 2, "without a working set nearly all of them wait: {waits:?}");
    assert!(waits[1] <= 2, "{waits:?}");
}
