//! Under KVM, where it can be used: the guest that runs at ring 3, which is all that a KVM without hardware virtualisation below it
//! runs natively.

use super::{Qemus, how, ring_three, say};
use crate::evacuate::{Evacuation, evacuate};
use lab::hosts::{Loss, Scope};
use serde_json::json;

#[test]
fn a_guest_at_ring_three_becomes_eight_on_four_hosts_under_kvm() {
    const TEST: &str = "a_guest_at_ring_three_becomes_eight_on_four_hosts_under_kvm";
    for (kind, memory, permille, words) in [
        ("microvm", "private", 0, "private memory, by post-copy"),
        ("q35", "private", 10, "private memory, by post-copy"),
        ("q35", "shared", 10, "clean pages shared"),
    ] {
        let Some(machine) = ring_three(TEST, kind, 64) else { return };
        let Some(mut qemus) = Qemus::new(TEST, 4, machine) else { return };
        qemus.may_start(&json!({ "memory": memory }));
        for host in qemus.fleet.numbers() {
            qemus.fleet.lab.loss(host, Loss::random(permille).of(Scope::Datagrams)).expect("loss");
        }
        let plan = qemus.plan(2);
        qemus.start_receivers();
        let sent = qemus.fleet.transfer("clone", &plan, &["--rate", "500M"]).finish().ok();
        say(&format!("8 clones on 4 hosts, {kind}, {memory}, {permille} ‰ loss"), &sent.report);
        assert_eq!(sent.report["clones"]["running"], 8, "{}", sent.said);
        assert!(how(&sent).contains(words), "{}", how(&sent));
        qemus.check_guests(2);
    }
}

#[test]
fn six_guests_at_ring_three_move_to_three_hosts_under_kvm() {
    const TEST: &str = "six_guests_at_ring_three_move_to_three_hosts_under_kvm";
    let Some(machine) = ring_three(TEST, "microvm", 48) else { return };
    let Some(mut evacuation) = Evacuation::of(TEST, 3, 6, machine) else { return };
    for (mode, permille) in [("hybrid", 10), ("postcopy", 0), ("precopy", 10)] {
        evacuate(&mut evacuation, mode, permille);
    }
}
