//! Hosts and cables that fail, while the others go on.

use crate::fleet::{Fleet, name};
use crate::images::{Image, guest_part, mb};
use crate::sending::Sent;
use nix::sys::signal::Signal;
use std::fs::File;
use std::io::Write;
use std::time::Duration;

/// A rate that leaves the CPU time, so that what is compared is the transfers and not the machine's other load. Images as
/// they are, for a transfer of some seconds, of which a tenth is more than a machine's other load.
const STEADY: [&str; 4] = ["--rate", "150M", "--encoding", "raw"];

/// The others' time may be so much longer than undisturbed.
const LONGER: f64 = 1.1;

/// Sends without any trouble.
fn undisturbed(fleet: &mut Fleet, plan: &std::path::Path, images: &[Image]) -> f64 {
    fleet.start_receivers();
    let sent = fleet.send(plan, &STEADY).finish().ok();
    fleet.check_images(images, fleet.numbers());
    sent.last_complete_s(fleet.numbers())
}

/// Asserts that the hosts were as quick as undisturbed, about.
#[track_caller]
fn check_time(what: &str, sent: &Sent, healthy: impl Iterator<Item = u16>, undisturbed: f64) {
    let took = sent.last_complete_s(healthy);
    let limit = undisturbed * LONGER;
    println!("{what}: the others after {took:.2} s, undisturbed {undisturbed:.2} s, limit {limit:.2} s");
    assert!(took <= limit, "{took:.2} s is more than {limit:.2} s:\n{}", sent.said);
}

#[test]
fn the_others_finish_in_time_when_hosts_freeze_fill_up_or_are_strangers() {
    const TEST: &str = "the_others_finish_in_time_when_hosts_freeze_fill_up_or_are_strangers";
    let Some(mut fleet) = Fleet::of(TEST, 8) else { return };
    let images = [guest_part(128, fleet.dir())];
    let plan = fleet.clone_plan(&images, fleet.numbers());
    let contents = images[0].content_bytes();
    let first = undisturbed(&mut fleet, &plan, &images);

    // Frozen in the middle.
    fleet.start_receivers();
    let mut sending = fleet.send(&plan, &[&STEADY[..], &["--timeout", "4"]].concat());
    sending.await_sent(contents / 3);
    fleet.receiver(3).signal(Signal::SIGSTOP);
    let frozen = sending.finish().ended(5);
    println!("frozen: {}\n{}", frozen.reason(3), frozen.said);
    assert!(frozen.reason(3).contains("no answer") || frozen.reason(3).contains("no progress"));
    fleet.check_images(&images, fleet.numbers().filter(|host| *host != 3));
    assert!(fleet.finished(3).is_empty(), "half an image is not finished");

    // A full disk at once, one that fills up midway, and a certificate of another fleet.
    let (full, filling, stranger) = (6, 7, 8);
    fleet.stop_receivers();
    (1..full).for_each(|host| fleet.start_receiver(host));
    start_on_disk(&mut fleet, full, contents / 4);
    start_on_disk(&mut fleet, filling, contents + contents / 8);
    fleet.scatter(&["keys", "init", "strange"]);
    fleet.scatter(&["keys", "host", "strange", &name(stranger)]);
    fleet.start_receiver_with(stranger, &format!("strange/{}", name(stranger)), &[]);
    let mut sending = fleet.send(&plan, &[&STEADY[..], &["--timeout", "5"]].concat());
    sending.await_sent(contents / 3);
    fill_disk(&mut fleet, filling);
    let troubled = sending.finish().ended(5);
    for (host, words) in [(full, "are free"), (filling, "are free"), (stranger, "CA")] {
        println!("{}: {}", name(host), troubled.reason(host));
        assert!(troubled.reason(host).contains(words), "{}", troubled.reason(host));
        let shown = troubled.said.lines().any(|line| line.contains(&name(host)) && line.contains("failed"));
        assert!(shown, "{} is named:\n{}", name(host), troubled.said);
    }
    fleet.check_images(&images, 1..full);

    let undisturbed = first.max(undisturbed(&mut fleet, &plan, &images));
    check_time("one frozen", &frozen, fleet.numbers().filter(|host| *host != 3), undisturbed);
    check_time("two full disks, one stranger", &troubled, 1..full, undisturbed);
}

/// A receiver whose store is a file system of so many bytes, which nobody else sees and which ends with it.
fn start_on_disk(fleet: &mut Fleet, host: u16, bytes: u64) {
    let store = fleet.store(host);
    std::fs::create_dir_all(&store).expect("a directory");
    let mount = format!("mount -t tmpfs -o size={bytes} tmpfs '{}' && exec \"$@\"", store.display());
    let keys = format!("keys/{}", name(host));
    fleet.start_receiver_with(host, &keys, &["unshare", "--mount", "sh", "-c", &mount, "sh"]);
}

/// Writes what the receiver's disk still takes.
fn fill_disk(fleet: &mut Fleet, host: u16) {
    let inside = format!("/proc/{}/root{}/other", fleet.receiver(host).id(), fleet.store(host).display());
    let mut file = File::create(&inside).expect("a file beside the image");
    let chunk = vec![1; 1 << 20];
    let mut written = 0;
    while let Ok(more) = file.write(&chunk) {
        written += more as u64;
        assert!(written < 1 << 30, "the disk has an end");
    }
    println!("{}'s disk was filled with {:.1} MB", name(host), mb(written));
}

#[test]
fn a_cable_that_is_out_for_a_second_costs_no_host() {
    let Some(mut fleet) = Fleet::of("a_cable_that_is_out_for_a_second_costs_no_host", 4) else { return };
    let images = [guest_part(128, fleet.dir())];
    let plan = fleet.clone_plan(&images, fleet.numbers());
    fleet.start_receivers();
    let mut sending = fleet.send(&plan, &STEADY);
    sending.await_sent(images[0].content_bytes() / 4);
    fleet.lab.cut(2).expect("cut");
    std::thread::sleep(Duration::from_secs(1));
    fleet.lab.restore(2).expect("restored");
    let sent = sending.finish().ok();
    fleet.check_images(&images, fleet.numbers());
    let others = sent.last_complete_s(fleet.numbers().filter(|host| *host != 2));
    println!(
        "cut for 1 s: it after {:.2} s, the others after {others:.2} s, {} blocks by unicast",
        sent.complete_s(2),
        sent.network("catch_up_blocks")
    );
}
