//! A VM whose memory is read where its QEMU has it, while it stands.

use super::{Qemus, linux, say, ticks};
use crate::fleet::{Fleet, PATIENCE};
use crate::handover::assert_ended;
use crate::sending::Sending;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

const IN_PLACE: [&str; 4] = ["--way", "shared-ram-in-place", "--capture-dir", "captures"];
const STANDS: &str = "golden stands until this is over";
const MIB: u32 = 128;

/// A source with its RAM in a shared file; its clones have memory of their own.
fn qemus(test: &str) -> Option<Qemus> {
    let shared = [
        "-object",
        &format!("memory-backend-file,id=pc.ram,size={MIB}M,mem-path={{dir}}/ram,share=on"),
        "-machine",
        "memory-backend=pc.ram",
    ];
    let mut qemus = Qemus::new(test, 2, linux(test, MIB, 16)?.with(&shared))?;
    qemus.machine = linux(test, MIB, 16)?;
    qemus.may_start(&json!({}));
    fs::create_dir(qemus.fleet.dir().join("captures")).expect("a directory");
    Some(qemus)
}

impl Qemus {
    /// A clone on each host, in place, at a rate that takes seconds.
    fn clone_in_place(&mut self, more: &[&str]) -> Sending {
        let plan = self.plan(1);
        self.start_receivers();
        self.fleet.transfer("clone", &plan, &[&IN_PLACE, more].concat())
    }

    fn running(&mut self) -> bool {
        self.source.qmp.execute("query-status", Value::Null).expect("an answer")["running"] == true
    }
}

/// The image in the capture directory: its length, and what of it is there.
fn image(fleet: &Fleet) -> Option<(u64, u64)> {
    let mut dirs = fs::read_dir(fleet.dir().join("captures")).expect("a directory");
    let image: PathBuf = dirs.next()?.expect("an entry").path().join("0");
    let metadata = fs::metadata(image).ok()?;
    Some((metadata.len(), metadata.blocks() * 512))
}

fn allocated(path: &Path) -> u64 {
    fs::metadata(path).expect("a file").blocks() * 512
}

#[test]
fn a_vm_is_cloned_from_where_its_memory_lies_and_runs_on() {
    const TEST: &str = "a_vm_is_cloned_from_where_its_memory_lies_and_runs_on";
    let Some(mut qemus) = qemus(TEST) else { return };
    let mut sending = qemus.clone_in_place(&["--rate", "60M"]);
    sending.running.await_words(STANDS, PATIENCE);
    sending.await_sent(1 << 20);
    let dir = qemus.source_dir().to_owned();
    let (ticked, ram) = (ticks(&dir), allocated(&dir.join("ram")));
    sending.await_sent(6 << 20);
    assert_eq!(ticks(&dir), ticked, "it stands");
    assert_eq!(allocated(&dir.join("ram")), ram, "what is read is not put there");
    assert!(ram < 127 << 20, "some of its memory was never touched: {ram}");
    let (len, there) = image(&qemus.fleet).expect("an image");
    assert!(len >= u64::from(MIB) << 20 && there < 4 << 20, "{there} bytes of {len} were written");
    let sent = sending.finish().ok();
    say("2 clones in place", &sent.report);
    let capture = &sent.report["captures"][0];
    assert_eq!((&capture["way"], &capture["because"]), (&json!("shared RAM in place"), &json!("asked for")));
    let (pause, total) = (capture["pause_s"].as_f64(), sent.report["times"]["total_s"].as_f64());
    assert!(pause > Some(0.5) && pause < total, "it stood for {pause:?} of {total:?}");
    assert!(sent.said.contains("and goes on"), "{}", sent.said);
    assert_eq!(sent.report["clones"]["running"], 2, "{}", sent.said);
    // The source, too.
    qemus.check_guests(1);
    assert!(image(&qemus.fleet).is_none());

    // One that stands is read so by itself, and stands afterwards.
    qemus.source.qmp.execute("stop", Value::Null).expect("it stands");
    let plan = qemus.plan(1);
    qemus.start_receivers();
    let sent = qemus.fleet.transfer("clone", &plan, &["--rate", "500M"]).finish().ok();
    say("2 clones of one that stands", &sent.report);
    let capture = &sent.report["captures"][0];
    assert_eq!(capture["way"], "shared RAM in place", "{capture}");
    assert_eq!(capture["because"], "its RAM is in a shared file, and it stands");
    assert_eq!(capture["pause_s"], 0.0);
    assert!(!qemus.running());
    qemus.source.qmp.execute("cont", Value::Null).expect("it runs");
    qemus.check_guests(1);
}

#[test]
fn a_vm_that_is_set_running_by_others_fails_the_transfer_by_name() {
    const TEST: &str = "a_vm_that_is_set_running_by_others_fails_the_transfer_by_name";
    let Some(mut qemus) = qemus(TEST) else { return };
    let mut sending = qemus.clone_in_place(&["--rate", "20M"]);
    for clone in ["golden-h1-1 on h1: running", "golden-h2-1 on h2: running"] {
        sending.running.await_words(clone, PATIENCE);
    }
    let ticked = ticks(qemus.source_dir());
    qemus.source.qmp.execute("cont", Value::Null).expect("it runs");
    let sent = sending.finish().ended(3);
    const REASON: &str = "VM golden: it was set running while its memory was read in place";
    assert!(sent.said.contains(&format!("scatter: {REASON}")), "{}", sent.said);
    assert!(sent.said.contains("--way live-stream"), "the way out: {}", sent.said);
    assert!(sent.said.contains("lacked pages and are ended: golden-h1-1, golden-h2-1"), "{}", sent.said);
    assert_eq!(sent.report["state"], "failed");
    assert_eq!(sent.report["captures"][0]["disturbed"], "it was set running");
    for clone in sent.report["clones"]["clones"].as_array().expect("clones") {
        assert!(clone["first_instruction_s"].is_number() && clone["independent_s"].is_null(), "{clone}");
        assert!(clone["failed"].as_str().is_some_and(|why| why.contains(REASON)), "{clone}");
    }
    for host in qemus.fleet.numbers() {
        assert_ended(&qemus.clones_dir(host));
    }
    super::wait_for_ticks(qemus.source_dir(), ticked + qemus.machine.sweep, PATIENCE);
}

/// Whatever ends the transfer before it is over, the source runs on.
#[test]
fn a_vm_runs_on_after_a_transfer_that_was_cut_short() {
    const TEST: &str = "a_vm_runs_on_after_a_transfer_that_was_cut_short";
    let Some(mut qemus) = qemus(TEST) else { return };
    let end = |qemus: &mut Qemus, how: &dyn Fn(&Fleet, &mut Sending), code: i32| {
        let mut sending = qemus.clone_in_place(&["--rate", "20M"]);
        sending.running.await_words("golden-h1-1 on h1: running", PATIENCE);
        assert!(!qemus.running(), "it stands");
        how(&qemus.fleet, &mut sending);
        let sent = sending.finish().ended(code);
        assert!(qemus.running(), "{}", sent.said);
        let ticked = ticks(qemus.source_dir());
        super::wait_for_ticks(qemus.source_dir(), ticked + 3, PATIENCE);
    };
    let signal = |signal: Signal| move |_: &Fleet, sending: &mut Sending| sending.running.signal(signal);
    end(&mut qemus, &signal(Signal::SIGINT), 7);
    end(&mut qemus, &signal(Signal::SIGHUP), 7);
    let in_a_hurry = |_: &Fleet, sending: &mut Sending| {
        // Twice, and the first time nobody heeds it yet.
        sending.running.signal(Signal::SIGINT);
        sending.running.signal(Signal::SIGTERM);
    };
    end(&mut qemus, &in_a_hurry, 7);
    let cancel = |fleet: &Fleet, _: &mut Sending| {
        fleet.scatter_on(0, &["cancel", "--keys", "keys/src", "--group", "plan.json"]);
    };
    end(&mut qemus, &cancel, 7);

    // Somebody is in a hurry while it is captured, or about to be.
    qemus.fleet.stop_receivers();
    let plan = qemus.plan(1);
    let (mut cut, mut before) = (0, 0);
    for after_ms in (0..40).chain((40..100).step_by(10)) {
        let sending = qemus.fleet.transfer("clone", &plan, &[&IN_PLACE[..], &["--timeout", "30"]].concat());
        std::thread::sleep(Duration::from_millis(after_ms));
        sending.running.signal(Signal::SIGINT);
        sending.running.signal(Signal::SIGTERM);
        let sent = sending.finish();
        assert!(qemus.running(), "after {after_ms} ms: {}", sent.said);
        // Until it listens for signals they end it at once, and the VM has not been touched.
        before += u32::from(sent.code.is_none());
        cut += u32::from(sent.code == Some(7) && !sent.said.contains(STANDS));
        assert!(matches!(sent.code, None | Some(7)), "{:?} after {after_ms} ms: {}", sent.code, sent.said);
    }
    println!("cut short {before} times before, {cut} times until it was captured");

    // Before anything was sent: nobody takes it.
    qemus.fleet.stop_receivers();
    let plan = qemus.plan(1);
    let sending = qemus.fleet.transfer("clone", &plan, &[&IN_PLACE[..], &["--timeout", "2"]].concat());
    let sent = sending.finish().ended(6);
    assert!(sent.said.contains(STANDS) && qemus.running(), "{}", sent.said);

    // Killed, it cannot let the VM run; whoever looks after the VM can, and nothing is lost.
    let mut sending = qemus.clone_in_place(&["--rate", "20M"]);
    sending.running.await_words("golden-h1-1 on h1: running", PATIENCE);
    sending.running.kill();
    std::thread::sleep(Duration::from_millis(300));
    assert!(!qemus.running());
    qemus.source.qmp.execute("cont", Value::Null).expect("it runs");
    let ticked = ticks(qemus.source_dir());
    super::wait_for_ticks(qemus.source_dir(), ticked + qemus.machine.sweep, PATIENCE);
}
