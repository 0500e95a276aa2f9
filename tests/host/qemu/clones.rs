//! One running Linux guest becomes many.

use super::{Qemus, how, linux, say, taken_warm, ticks};
use crate::fleet::PATIENCE;
use crate::handover::{assert_ended, qemus};
use lab::hosts::{Loss, Scope};
use serde_json::json;
use std::time::{Duration, Instant};

#[test]
fn a_running_linux_guest_becomes_eight_on_four_hosts_without_loss_and_with_one_percent() {
    const TEST: &str = "a_running_linux_guest_becomes_eight_on_four_hosts_without_loss_and_with_one_percent";
    let Some(machine) = linux(TEST, 128, 16) else { return };
    let Some(mut qemus) = Qemus::new(TEST, 4, machine) else { return };
    for permille in [0, 10] {
        for host in qemus.fleet.numbers() {
            qemus.fleet.lab.loss(host, Loss::random(permille).of(Scope::Datagrams)).expect("loss");
        }
        // With loss, one of a host's two is started before anybody asks for it.
        let warm = usize::from(permille > 0);
        qemus.may_start(&json!({ "warm": warm }));
        let start = Instant::now();
        let plan = qemus.plan(2);
        qemus.start_receivers();
        let sent = qemus.fleet.transfer("clone", &plan, &["--rate", "500M"]).finish().ok();
        say(&format!("8 clones on 4 hosts, {permille} ‰ loss"), &sent.report);
        assert_eq!(sent.report["clones"]["running"], 8, "{}", sent.said);
        let (wire, encoded) = (sent.network("wire_bytes"), sent.network("encoded_bytes"));
        assert!(wire < encoded * 6 / 5, "{wire} bytes for one encoded copy of {encoded}");
        assert!(sent.said.contains("golden captured by live stream"), "{}", sent.said);
        let how = how(&sent);
        assert!(how.contains("private memory, by post-copy") && how.contains("vmgenid"), "{how}");
        qemus.check_guests(2);
        for host in qemus.fleet.numbers() {
            assert_eq!(taken_warm(&qemus.clones_dir(host)), warm);
        }
        println!("all ticked 70 times after {:?}", start.elapsed());
    }
}

#[test]
fn clones_of_a_killed_receiver_do_not_wait_for_pages_that_nobody_brings() {
    const TEST: &str = "clones_of_a_killed_receiver_do_not_wait_for_pages_that_nobody_brings";
    let Some(machine) = linux(TEST, 96, 8) else { return };
    let Some(mut qemus_of) = Qemus::new(TEST, 1, machine) else { return };
    let plan = qemus_of.plan(2);
    qemus_of.start_receivers();
    let mut sending = qemus_of.fleet.transfer("clone", &plan, &["--rate", "20M", "--timeout", "4"]);
    let clones = qemus_of.clones_dir(1);
    let deadline = Instant::now() + PATIENCE;
    while qemus(&clones).len() < 2 || qemus_of.clones(1).iter().any(|clone| ticks(clone) == 0) {
        assert!(sending.running.is_alive() && Instant::now() < deadline, "{}", sending.running.said());
        std::thread::sleep(Duration::from_millis(5));
    }
    qemus_of.fleet.receiver(1).kill();
    assert_ended(&clones);
    let sent = sending.finish().ended(6);
    for clone in 0..2 {
        let clone = &sent.report["clones"]["clones"][clone];
        assert!(
            clone["first_instruction_s"].is_number() && clone["independent_s"].is_null(),
            "{}",
            sent.said
        );
    }
}
