//! Every image at every host, byte for byte, whatever the network does to the datagrams.

use crate::fleet::Fleet;
use crate::images::{guest_part, guests};
use lab::hosts::{Disturbance, LabOptions, Loss};
use serde_json::json;
use std::time::Duration;

const RATE: [&str; 2] = ["--rate", "500M"];

/// Sends two VMs' images to all hosts and compares them.
fn clone_to_all(fleet: &mut Fleet, what: &str) {
    let images = guests(2, fleet.dir());
    let plan = fleet.clone_plan(&images, fleet.numbers());
    fleet.start_receivers();
    let sent = fleet.send(&plan, &RATE).finish().ok();
    fleet.check_images(&images, fleet.numbers());
    println!(
        "{what}: {} images identical, last host after {:.2} s, {} blocks repaired of {}, {} by unicast",
        images.len() * fleet.numbers().len(),
        sent.last_complete_s(fleet.numbers()),
        sent.network("blocks_repaired"),
        sent.network("blocks"),
        sent.network("catch_up_blocks"),
    );
}

#[test]
fn clones_are_identical_at_5_and_20_percent_loss() {
    let Some(mut fleet) = Fleet::of("clones_are_identical_at_5_and_20_percent_loss", 8) else { return };
    for permille in [50, 200] {
        for host in fleet.numbers() {
            fleet.lab.loss(host, Loss::random(permille)).expect("loss");
        }
        clone_to_all(&mut fleet, &format!("{} % loss", permille / 10));
    }
}

#[test]
fn a_host_of_the_plan_without_a_vm_does_not_hold_up_the_others() {
    let Some(mut fleet) = Fleet::of("a_host_of_the_plan_without_a_vm_does_not_hold_up_the_others", 2) else {
        return;
    };
    let images = [guest_part(8, fleet.dir())];
    let plan = fleet.plan(vec![(&images[0], json!({"hosts": ["h1"]}))], fleet.numbers(), 1 << 20);
    fleet.start_receivers();
    let sent = fleet.send(&plan, &RATE).finish().ok();
    assert_eq!(sent.host(2)["state"], "complete", "{}", sent.said);
    fleet.check_images(&images, 1..2);
    assert_eq!(fleet.finished(2), Vec::<String>::new());
}

#[test]
fn clones_are_identical_under_bursts_and_duplication() {
    let Some(mut fleet) = Fleet::of("clones_are_identical_under_bursts_and_duplication", 8) else { return };
    for host in fleet.numbers() {
        fleet.lab.loss(host, Loss::burst(50, 1_000)).expect("loss");
        fleet.lab.duplicate(host, 20).expect("duplication");
    }
    clone_to_all(&mut fleet, "bursts of 50 in 1,000 and 2 % twice");
    let counters = |host| fleet.lab.counters(host).expect("counters");
    for host in fleet.numbers() {
        assert!(
            counters(host).lost.packets >= 50 && counters(host).duplicated.packets > 0,
            "nothing happened"
        );
    }
}

#[test]
fn clones_are_identical_under_reordering() {
    let Some(mut fleet) = Fleet::of("clones_are_identical_under_reordering", 3) else { return };
    let image = guest_part(48, fleet.dir());
    let disturbance = Disturbance {
        delay: Duration::from_millis(1),
        jitter: Duration::from_millis(2),
        late_permille: 20,
        late_by: Duration::from_millis(30),
        duplicate_permille: 20,
        seed: 5,
    };
    for host in fleet.numbers() {
        fleet.lab.disturb(host, disturbance).expect("a relay");
    }
    let plan = fleet.clone_plan(std::slice::from_ref(&image), fleet.numbers());
    fleet.start_receivers();
    // The relay carries frames one by one, and is not what is measured.
    let sent = fleet.send(&plan, &["--rate", "100M"]).finish().ok();
    fleet.check_images(&[image], fleet.numbers());
    for host in fleet.numbers() {
        let relay = fleet.lab.relay_counters(host).expect("a relay");
        assert!(relay.late > 0 && relay.duplicated > 0, "{relay:?}");
        println!(
            "reordering at h{host}: {relay:?}, last host after {:.2} s",
            sent.last_complete_s(fleet.numbers())
        );
    }
}

#[test]
fn groups_of_ipv6_carry_the_same() {
    let options = LabOptions { hosts: 5, ipv6: true, ..LabOptions::default() };
    let Some(mut fleet) = Fleet::new("groups_of_ipv6_carry_the_same", options) else { return };
    for host in fleet.numbers() {
        fleet.lab.loss(host, Loss::random(10)).expect("loss");
    }
    let image = guest_part(64, fleet.dir());
    let plan = fleet.clone_plan(std::slice::from_ref(&image), fleet.numbers());
    fleet.start_receivers();
    let before = fleet.sender_link();
    let sent = fleet.send(&plan, &RATE).finish().ok();
    let link = fleet.sender_link() - before;
    fleet.check_images(&[image], fleet.numbers());
    let group = sent.report["segments"][0]["group"].as_str().unwrap_or("none");
    assert!(group.starts_with("ff15:"), "a group of the plan's pool: {group}");
    // One copy for all, not one for each: by unicast it would be four times as much.
    let encoded = sent.network("encoded_bytes");
    assert!(link < encoded * 3 / 2, "{link} bytes on the link for {encoded} encoded");
    println!("IPv6, group {group}: {link} bytes on the sender's link for {encoded} encoded");
}
