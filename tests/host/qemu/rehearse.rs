//! VMs that run once where they were captured, so that their clones are given what they will touch first.

use super::{Qemus, linux, say, ticks, wait_for_ticks};
use crate::fleet::PATIENCE;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::fs;
use std::time::Duration;

/// A machine for rehearsals: the hosts' own, whose files are removed with its folder.
const REHEARSE: [&str; 2] = ["--rehearse", "machine.json"];

fn left_in(qemus: &Qemus, dir: &str) -> usize {
    fs::read_dir(qemus.fleet.dir().join(dir)).expect("a directory").count()
}

/// What the last transfer tells of its rehearsal: the VM, and how many pages it touched.
fn rehearsed(report: &Value) -> (&str, u64) {
    let told = &report["clones"]["rehearsals"];
    assert_eq!(told.as_array().map(Vec::len), Some(1), "{told}");
    (told[0]["vm"].as_str().expect("a name"), told[0]["pages"].as_u64().expect("a number"))
}

#[test]
fn clones_of_a_running_vm_are_given_what_it_touched_in_a_rehearsal() {
    const TEST: &str = "clones_of_a_running_vm_are_given_what_it_touched_in_a_rehearsal";
    let Some(machine) = linux(TEST, 128, 16) else { return };
    let Some(mut qemus) = Qemus::new(TEST, 2, machine) else { return };
    qemus.start_receivers();
    let plan = qemus.plan(1);
    fs::create_dir(qemus.fleet.dir().join("captures")).expect("a directory");
    let args = ["--rate", "500M", "--capture-dir", "captures", "--record", "."];
    let sent = qemus.fleet.transfer("clone", &plan, &[&args[..], &REHEARSE].concat()).finish().ok();
    say("2 clones, rehearsed", &sent.report);
    let (vm, pages) = rehearsed(&sent.report);
    assert!(vm == "golden" && pages > 100, "{pages} pages of {vm}");
    assert!(
        sent.said.contains(&format!("its clones were given {pages} pages at their start")),
        "{}",
        sent.said
    );
    assert_eq!(sent.report["clones"]["running"], 2, "{}", sent.said);
    qemus.check_guests(1);
    assert_eq!(left_in(&qemus, "captures"), 0, "neither memory nor a rehearsal's files stay");
    // They are a segment of their own, in which each content stands once.
    let first = sent.report["segments"][0]["content_bytes"].as_u64().expect("a number") / 4096;
    assert!((pages / 4..=pages).contains(&first), "{first} contents of {pages} pages");
    let recorded = fs::metadata(qemus.fleet.dir().join("golden.working-set")).expect("a working set").len();
    assert!(recorded >= pages * 4, "{recorded} bytes for {pages} pages and those that were missed");

    // A snapshot of before does as well, and so does what its own rehearsal wrote.
    qemus.fleet.scatter(&[&["capture", "qemu", "source/user.sock", "golden"], &REHEARSE[..]].concat());
    let launch = fs::read_to_string(qemus.fleet.dir().join("golden/launch.json")).expect("what a plan needs");
    let launch: Value = serde_json::from_str(&launch).expect("JSON");
    let set = launch["working_set"].as_str().expect("its working set");
    assert!(fs::metadata(set).expect("written").len() > 100 * 4);
    for args in [&REHEARSE[..], &[]] {
        qemus.start_receivers();
        let plan = qemus.plan_of(1, "golden/memory", &launch);
        let sent = qemus.fleet.transfer("clone", &plan, &[&["--rate", "500M"], args].concat()).finish().ok();
        assert_eq!(sent.report["clones"]["rehearsals"].as_array().map_or(0, Vec::len), args.len() / 2);
        qemus.check_guests(1);
    }
}

#[test]
fn clones_whose_sender_was_killed_are_taken_up_with_another_working_set() {
    const TEST: &str = "clones_whose_sender_was_killed_are_taken_up_with_another_working_set";
    let Some(machine) = linux(TEST, 128, 16) else { return };
    let Some(mut qemus) = Qemus::new(TEST, 2, machine) else { return };
    qemus.start_receivers();
    qemus.fleet.scatter(&["capture", "qemu", "source/user.sock", "golden"]);
    let plan =
        qemus.plan_of(1, "golden/memory", &json!({"kind": "qemu", "attachments": {"state": "golden/state"}}));
    let mut sending = qemus.fleet.transfer("clone", &plan, &["--rate", "40M"]);
    for clone in ["golden-h1-1 on h1: running", "golden-h2-1 on h2: running"] {
        sending.running.await_words(clone, PATIENCE);
    }
    sending.running.kill();
    drop(sending);
    for host in qemus.fleet.numbers() {
        qemus.fleet.receiver(host).await_words("interrupted", PATIENCE);
    }
    let sent =
        qemus.fleet.transfer("clone", &plan, &[&["--rate", "500M"], &REHEARSE[..]].concat()).finish().ok();
    assert!(rehearsed(&sent.report).1 > 100);
    qemus.check_guests(1);
}

#[test]
fn what_cannot_be_rehearsed_is_refused_before_anything_is_sent() {
    const TEST: &str = "what_cannot_be_rehearsed_is_refused_before_anything_is_sent";
    let Some(machine) = linux(TEST, 96, 8) else { return };
    let Some(mut qemus) = Qemus::new(TEST, 1, machine) else { return };
    qemus.start_receivers();
    let plan = qemus.plan(1);
    let smaller = machine_with(&qemus, 64);
    fs::create_dir(qemus.fleet.dir().join("captures")).expect("a directory");
    fs::write(qemus.fleet.dir().join("empty.json"), r#"{"qemu": []}"#).expect("written");
    fs::write(qemus.fleet.dir().join("smaller.json"), smaller.to_string()).expect("written");
    let mut refused = |code, args: &[&str], words: &str| {
        let sent = qemus.fleet.transfer("clone", &plan, args).finish();
        assert!(sent.code == Some(code) && sent.said.contains(words), "{:?}: {}", sent.code, sent.said);
    };
    refused(2, &[&REHEARSE[..], &["--pre-paging", "off"]].concat(), "--pre-paging does not have sent");
    refused(2, &[&REHEARSE[..], &["--way", "shared-ram-in-place"]].concat(), "--way shared-ram copies it");
    refused(2, &[&REHEARSE[..], &["--way", "mapped-ram"]].concat(), "only raw memory is rehearsed");
    refused(3, &[&REHEARSE[..], &["--capture-dir", "/proc"]].concat(), "/proc is not on a tmpfs");
    refused(3, &["--rehearse", "empty.json"], "empty.json has no [[qemu]]");
    let there = ["--capture-dir", "captures"];
    let args = [&["--rehearse", "smaller.json"], &there[..]].concat();
    refused(8, &args, "--rehearse: VM golden: machine smaller: ");
    refused(3, &["--rehearse", "none.json"], "cannot read none.json");
    // Before anything is captured.
    let args = ["--from", "golden=source/user.sock", "--rehearse", "none.json"];
    refused(3, &args, "cannot read none.json");
    let said =
        qemus.fleet.refused(&["capture", "qemu", "source/user.sock", "early", "--rehearse", "empty.json"]);
    assert!(said.contains("empty.json has no [[qemu]]"), "{said}");
    assert!(!qemus.fleet.dir().join("early/memory").exists());
    // Nor is one that takes long in the way of who interrupts it.
    let args = [&REHEARSE[..], &["--rehearse-for", "60000"], &there].concat();
    let mut sending = qemus.fleet.transfer("clone", &plan, &args);
    sending.running.await_words("reading 1 images", PATIENCE);
    sending.running.signal(Signal::SIGINT);
    let status = sending.running.wait(Duration::from_secs(10));
    assert_eq!(status.code(), Some(7), "{}", sending.running.said());
    assert_eq!(left_in(&qemus, "captures"), 0, "of a rehearsal that failed, and one that was interrupted");
    // The source went on each time.
    wait_for_ticks(qemus.source_dir(), ticks(qemus.source_dir()) + 3, PATIENCE);
}

/// The source's machine with another amount of memory.
fn machine_with(qemus: &Qemus, mib: u32) -> Value {
    let mut args = qemus.machine.launch.args.clone();
    let at = args.iter().position(|arg| arg == "-m").expect("memory");
    args[at + 1] = mib.to_string();
    json!({"qemu": [{"name": "smaller", "args": args}]})
}
