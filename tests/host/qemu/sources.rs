//! What clones can be made of, beside a VM that runs: a file of QEMU's own, a snapshot taken in the same step. And a larger VM that
//! works on its disk and its card all the while.

use super::{Qemus, how, linux, say, ticks, wait_for_ticks};
use crate::fleet::PATIENCE;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::time::Instant;
use vmm::qemu::emit::await_status;

/// QEMU writes its VM into a mapped-ram file, and goes on.
fn map(qemus: &mut Qemus, name: &str) {
    let uri = format!("file:{}", qemus.fleet.dir().join(name).display());
    let qmp = &mut qemus.source.qmp;
    qmp.set_capabilities(&[("mapped-ram", true)]).expect("QEMU 9.0 or newer");
    qmp.execute("migrate", json!({ "uri": uri })).expect("it begins");
    await_status(qmp, &["completed"], PATIENCE).expect("written");
    qmp.set_capabilities(&[("mapped-ram", false)]).expect("as before");
    qmp.execute("cont", Value::Null).expect("it goes on");
}

#[test]
fn a_mapped_ram_file_becomes_eight_that_share_and_a_snapshot_in_the_same_step_two() {
    const TEST: &str = "a_mapped_ram_file_becomes_eight_that_share_and_a_snapshot_in_the_same_step_two";
    let Some(machine) = linux(TEST, 96, 16) else { return };
    let Some(mut qemus) = Qemus::new(TEST, 2, machine) else { return };
    map(&mut qemus, "golden.mapped");
    qemus.may_start(&json!({"memory": "shared"}));
    qemus.start_receivers();
    let plan = qemus.plan_of(4, "golden.mapped", &json!({"kind": "qemu"}));
    let sent = qemus.fleet.transfer("clone", &plan, &["--rate", "500M"]).finish().ok();
    say("8 clones of a mapped-ram file", &sent.report);
    assert_eq!(sent.report["clones"]["running"], 8, "{}", sent.said);
    assert!(how(&sent).contains("clean pages shared"), "{}", how(&sent));
    qemus.check_guests(4);

    qemus.may_start(&json!({}));
    qemus.start_receivers();
    let launch = json!({"kind": "qemu", "attachments": {"state": "snapshot/state"}});
    fs::create_dir(qemus.fleet.dir().join("snapshot")).expect("a directory");
    let plan = qemus.plan_of(1, "snapshot/memory", &launch);
    let args = ["--rate", "500M", "--from", "golden=source/user.sock"];
    let sent = qemus.fleet.transfer("clone", &plan, &args).finish().ok();
    say("2 clones of a snapshot taken in the same step", &sent.report);
    assert_eq!(sent.report["clones"]["running"], 2, "{}", sent.said);
    qemus.check_guests(1);
}

/// Packets that a guest's card has taken in, as the guest told first and last.
fn card(dir: &Path) -> Option<(u64, u64)> {
    let said = String::from_utf8_lossy(&fs::read(dir.join("serial")).unwrap_or_default()).into_owned();
    let told: Vec<u64> =
        said.lines().filter_map(|line| line.strip_prefix("CARD ")?.trim().parse().ok()).collect();
    Some((*told.first()?, *told.last()?))
}

#[test]
fn a_guest_of_2_gib_at_work_on_disk_and_card_is_cloned_with_the_disk_of_that_moment() {
    const TEST: &str = "a_guest_of_2_gib_at_work_on_disk_and_card_is_cloned_with_the_disk_of_that_moment";
    let Some(machine) = linux(TEST, 2048, 64) else { return };
    let drive = [
        "-smp",
        "2",
        "-drive",
        "if=virtio,file={disk},format=qcow2",
        "-nic",
        "user,model=virtio-net-pci,mac={mac}",
    ];
    let Some(mut qemus) = Qemus::new(TEST, 2, machine.with(&drive)) else { return };
    let source = qemus.source_dir().to_owned();
    qemus.may_start(&json!({"disk": {"file": source.join("disk.qcow2"), "format": "qcow2"}}));
    qemus.start_receivers();
    let plan = qemus.plan(1);
    let refused = qemus.fleet.transfer("clone", &plan, &[]).finish();
    assert!(
        refused.code != Some(0) && refused.said.contains("Give --snapshot-disks DIR"),
        "{}",
        refused.said
    );
    assert!(refused.said.contains("disk.qcow2, qcow2"), "{}", refused.said);

    fs::create_dir(qemus.fleet.dir().join("later")).expect("a directory");
    let sent =
        qemus.fleet.transfer("clone", &plan, &["--rate", "500M", "--snapshot-disks", "later"]).finish().ok();
    say("2 clones of a guest of 2 GiB", &sent.report);
    assert_eq!(sent.report["clones"]["running"], 2, "{}", sent.said);
    let disks = sent.report["captures"][0]["disks"].to_string();
    assert!(disks.contains("disk.qcow2"), "{disks}");
    qemus.check_guests(1);
    let deadline = Instant::now() + PATIENCE;
    for dir in qemus.fleet.numbers().flat_map(|host| qemus.clones(host)) {
        while card(&dir).is_none_or(|(first, last)| last <= first) {
            assert!(
                Instant::now() < deadline,
                "{}: its card brings nothing: {:?}",
                dir.display(),
                card(&dir)
            );
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        assert!(dir.join("disk.qcow2").exists(), "a disk of its own");
    }
    // The source writes elsewhere now, and finds what it wrote.
    wait_for_ticks(&source, ticks(&source) + qemus.machine.sweep, PATIENCE);
    assert_eq!(fs::read_dir(qemus.fleet.dir().join("later")).expect("the overlay's place").count(), 1);
}
