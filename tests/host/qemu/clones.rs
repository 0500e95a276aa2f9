//! One running Linux guest becomes many.

use super::{Qemus, how, linux, say, taken_warm, ticks, waited};
use crate::fleet::PATIENCE;
use crate::handover::{assert_ended, qemus};
use lab::hosts::{Loss, Scope};
use nix::sys::signal::{Signal, kill};
use serde_json::json;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
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
fn a_qemu_that_waited_and_died_is_not_used_and_what_a_killed_receiver_left_of_such_is_removed() {
    const TEST: &str =
        "a_qemu_that_waited_and_died_is_not_used_and_what_a_killed_receiver_left_of_such_is_removed";
    let Some(machine) = linux(TEST, 96, 8) else { return };
    let Some(mut qemus_of) = Qemus::new(TEST, 1, machine) else { return };
    let (plan, clones) = (qemus_of.plan(2), qemus_of.clones_dir(1));
    qemus_of.may_start(&json!({ "warm": 2 }));
    let waiting = |clones: &Path| {
        let folders = fs::read_dir(clones).expect("clones").map(|entry| entry.expect("an entry").path());
        folders.filter(|path| waited(path) && !path.is_symlink()).collect::<BTreeSet<_>>()
    };
    qemus_of.start_receivers();
    let [dead, _] = qemus(&clones)[..] else { panic!("two wait: {:?}", qemus(&clones)) };
    kill(dead, Signal::SIGKILL).expect("one of ours");
    let sent = qemus_of.fleet.transfer("clone", &plan, &["--rate", "500M"]).finish().ok();
    assert_eq!(sent.report["clones"]["running"], 2, "{}", sent.said);
    assert_eq!((taken_warm(&clones), waiting(&clones).len()), (1, 0), "one of two was alive");
    let said = qemus_of.fleet.receiver(1).said();
    assert!(said.contains("a QEMU that waited is not used"), "{said}");
    qemus_of.check_guests(2);

    let restart = |qemus_of: &mut Qemus| {
        qemus_of.fleet.receiver(1).kill();
        assert_ended(&clones);
        let left = waiting(&clones);
        qemus_of.start_receiver(1);
        (left, waiting(&clones))
    };
    let (_, first) = restart(&mut qemus_of);
    let (left, second) = restart(&mut qemus_of);
    assert_eq!((&left, second.len()), (&first, 2), "a killed receiver cannot tidy up");
    assert!(second.is_disjoint(&first), "the next one does: {second:?}");
}

/// It costs a VM that comes two seconds, and no more.
#[test]
fn a_qemu_that_waits_and_does_not_answer_is_given_up_for_a_new_one() {
    const TEST: &str = "a_qemu_that_waits_and_does_not_answer_is_given_up_for_a_new_one";
    let Some(machine) = linux(TEST, 96, 8) else { return };
    let Some(mut qemus_of) = Qemus::new(TEST, 1, machine) else { return };
    let (plan, clones) = (qemus_of.plan(1), qemus_of.clones_dir(1));
    qemus_of.may_start(&json!({ "warm": 1 }));
    qemus_of.start_receivers();
    let [hung] = qemus(&clones)[..] else { panic!("one waits: {:?}", qemus(&clones)) };
    kill(hung, Signal::SIGSTOP).expect("one of ours");
    let sent = qemus_of.fleet.transfer("clone", &plan, &["--rate", "500M"]).finish().ok();
    assert_eq!(sent.report["clones"]["running"], 1, "{}", sent.said);
    assert_eq!(taken_warm(&clones), 0);
    let first = sent.report["clones"]["first_instruction_last_s"].as_f64().expect("it runs");
    assert!((2.0..12.0).contains(&first), "{first} s");
    let how = how(&sent);
    assert!(how.contains("in a new QEMU, as one that waited was given up"), "{how}");
    let said = qemus_of.fleet.receiver(1).said();
    assert!(said.contains("a QEMU that waited is not used"), "{said}");
    // Its end was not left to anybody else.
    assert!(!qemus(&clones).contains(&hung));
    qemus_of.check_guests(1);
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
