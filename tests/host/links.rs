//! What transfers put on the links, by the interfaces' counters, every header and the control connections counted.

use crate::fleet::{Fleet, name};
use crate::images::{Image, float, guests, mb};
use lab::hosts::{LabOptions, Loss, Scope};
use serde_json::json;
use std::collections::HashSet;

/// Clones two VMs to 8 hosts without loss and with 1 % at each of them.
fn overhead(test: &str, mtu: u32, limits: [f64; 2]) {
    let Some(mut fleet) = Fleet::new(test, LabOptions { hosts: 9, mtu, ..LabOptions::default() }) else {
        return;
    };
    let images = guests(2, fleet.dir());
    let plan = fleet.clone_plan(&images, fleet.numbers());
    for (permille, limit) in [0, 10].into_iter().zip(limits) {
        for host in fleet.numbers() {
            fleet.lab.loss(host, Loss::random(permille)).expect("loss");
        }
        fleet.start_receivers();
        let before = fleet.sender_link();
        let sent = fleet.send(&plan, &["--rate", "500M"]).finish().ok();
        let link = fleet.sender_link() - before;
        fleet.check_images(&images, fleet.numbers());
        let encoded = sent.network("encoded_bytes");
        let ratio = float(link) / float(encoded);
        println!(
            "MTU {mtu}, {permille} ‰ loss at each of 8: {:.1} MB on the sender's link for {:.1} MB encoded, {ratio:.4} × \
             (limit {limit}); last host after {:.2} s, {} blocks by unicast",
            mb(link),
            mb(encoded),
            sent.last_complete_s(fleet.numbers()),
            sent.network("catch_up_blocks"),
        );
        assert!(ratio <= limit, "{ratio:.4} × is above {limit}:\n{}", sent.said);
    }
}

#[test]
fn one_copy_for_8_hosts_at_an_mtu_of_1500() {
    overhead("one_copy_for_8_hosts_at_an_mtu_of_1500", 1_500, [1.08, 1.13]);
}

#[test]
fn one_copy_for_8_hosts_at_an_mtu_of_9000() {
    overhead("one_copy_for_8_hosts_at_an_mtu_of_9000", 9_000, [1.02, 1.07]);
}

/// Bytes of the different contents of the VMs that the report says a host got.
fn needed(images: &[Image], vms: &serde_json::Value) -> u64 {
    let vms = vms.as_array().expect("VMs");
    let there = images.iter().filter(|image| vms.iter().any(|vm| *vm == image.name));
    let contents: HashSet<[u8; 32]> = there.flat_map(Image::contents).collect();
    contents.len() as u64 * 4096
}

#[test]
fn an_evacuation_brings_each_host_what_it_needs_and_nobody_else_anything() {
    const TEST: &str = "an_evacuation_brings_each_host_what_it_needs_and_nobody_else_anything";
    /// Hosts of the plan; one more is on the switch, outside every group.
    const TARGETS: u16 = 4;
    let Some(mut fleet) = Fleet::of(TEST, TARGETS + 1) else { return };
    let outside = TARGETS + 1;
    let images = guests(4, fleet.dir());
    let targets = 1..TARGETS + 1;
    let vms = images.iter().map(|image| (image, json!({"clones": 1}))).collect();
    // No host can take two VMs, so each gets one; what several VMs share goes to several hosts at once.
    let room = images.iter().map(Image::mib).max().expect("images") + 8;
    let plan = fleet.plan(vms, targets.clone(), room);
    fleet.start_receivers();
    // Counts each datagram to a group that the switch would hand to this host.
    fleet.lab.loss(outside, Loss::random(1_000).of(Scope::Multicast)).expect("a count");
    let before: Vec<u64> = targets.clone().map(|host| fleet.downlink(host)).collect();
    let stray = fleet.lab.counters(outside).expect("counters").lost.packets;
    let sent = fleet.send(&plan, &["--rate", "500M", "--encoding", "raw"]).finish().ok();
    let stray = fleet.lab.counters(outside).expect("counters").lost.packets - stray;
    for (host, before) in targets.zip(before) {
        let link = fleet.downlink(host) - before;
        let got = &sent.host(host)["vms"];
        let needed = needed(&images, got);
        let ratio = float(link) / float(needed);
        println!(
            "{}: {got}, {:.1} MB on its link for {:.1} MB needed, {ratio:.4} ×",
            name(host),
            mb(link),
            mb(needed)
        );
        assert!(ratio <= 1.12, "{ratio:.4} × is above 1.12:\n{}", sent.said);
        let there: Vec<Image> =
            images.iter().filter(|image| got.to_string().contains(&image.name)).cloned().collect();
        assert_eq!(there.len(), 1, "{got}");
        fleet.check_images(&there, std::iter::once(host));
    }
    let (groups, joins, leaves) = (sent.network("groups"), sent.network("joins"), sent.network("leaves"));
    println!("{groups} groups, {joins} joins, {leaves} leaves; {stray} datagrams for the host outside");
    assert!(
        groups > 1 && joins >= 2 * groups && leaves == joins,
        "hosts joined groups, and left all of them"
    );
    assert_eq!(stray, 0, "a host outside every group sees none of their datagrams");
}
