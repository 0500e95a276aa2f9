//! Processes that are killed, interrupted and started again: what is held is never sent again, and never half-done.

use crate::fleet::{Fleet, name};
use crate::images::{Image, float, guest_part, mb};
use crate::sending::Sending;
use nix::sys::signal::Signal;
use std::time::Duration;

const STEADY: [&str; 4] = ["--rate", "300M", "--encoding", "raw"];

/// A fleet of 4 in the middle of a transfer; the contents' bytes.
fn midway(test: &str) -> Option<(Fleet, [Image; 1], std::path::PathBuf, Sending, u64)> {
    let mut fleet = Fleet::of(test, 4)?;
    let images = [guest_part(128, fleet.dir())];
    let plan = fleet.clone_plan(&images, fleet.numbers());
    fleet.start_receivers();
    let mut sending = fleet.send(&plan, &STEADY);
    let contents = images[0].content_bytes();
    sending.await_sent(contents / 2);
    Some((fleet, images, plan, sending, contents))
}

/// Blocks that a receiver's log says it held before its last transfer.
fn held(said: &str) -> u64 {
    let line =
        said.lines().rfind(|line| line.contains(": complete")).unwrap_or_else(|| panic!("complete:\n{said}"));
    let before = line.split(" held before").next().and_then(|text| text.split_whitespace().last());
    before.and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("blocks held: {line}"))
}

#[test]
fn a_receiver_that_was_killed_goes_on_with_what_it_holds() {
    const TEST: &str = "a_receiver_that_was_killed_goes_on_with_what_it_holds";
    let Some((mut fleet, images, _, sending, _)) = midway(TEST) else { return };
    fleet.receiver(2).kill();
    assert!(fleet.finished(2).is_empty(), "half an image is not finished");
    std::thread::sleep(Duration::from_millis(200));
    fleet.start_receiver(2);
    let sent = sending.finish().ok();
    fleet.check_images(&images, fleet.numbers());
    fleet.receiver(2).await_words(": complete", Duration::from_secs(5));
    let held = held(&fleet.receiver(2).said());
    println!(
        "killed and started again: {held} of {} blocks held, complete after {:.2} s, the others after {:.2} s",
        sent.network("blocks"),
        sent.complete_s(2),
        sent.last_complete_s([1, 3, 4].into_iter())
    );
    assert!(held > 0, "{}", fleet.receiver(2).said());
}

#[test]
fn a_sender_that_was_killed_sends_only_what_is_lacking() {
    const TEST: &str = "a_sender_that_was_killed_sends_only_what_is_lacking";
    let Some((mut fleet, images, plan, mut sending, contents)) = midway(TEST) else { return };
    sending.running.kill();
    let first = sending.meter.sent();
    drop(sending);
    assert!(fleet.numbers().all(|host| fleet.finished(host).is_empty()), "half an image is not finished");
    let before = fleet.sender_link();
    let sent = fleet.send(&plan, &STEADY).finish().ok();
    let second = fleet.sender_link() - before;
    fleet.check_images(&images, fleet.numbers());
    let ratio = float(first + second) / float(contents);
    println!(
        "killed and started again: {:.1} MB, then {:.1} MB for {:.1} MB of contents, {ratio:.3} × in all; {} of {} blocks \
         were held everywhere",
        mb(first),
        mb(second),
        mb(contents),
        sent.network("blocks_skipped"),
        sent.network("blocks")
    );
    // What was under way when it died is lost; nothing else goes twice.
    assert!(ratio < 1.25, "{ratio:.3} ×:\n{}", sent.said);
    assert!(sent.network("blocks_skipped") > 0);
}

#[test]
fn ctrl_c_stops_the_sender_cleanly_and_no_receiver() {
    const TEST: &str = "ctrl_c_stops_the_sender_cleanly_and_no_receiver";
    let Some((mut fleet, images, plan, sending, _)) = midway(TEST) else { return };
    sending.running.signal(Signal::SIGINT);
    let sent = sending.finish().ended(7);
    assert_eq!(sent.report["state"], "interrupted", "{}", sent.said);
    for host in fleet.numbers() {
        assert!(fleet.finished(host).is_empty(), "half an image is not finished");
        fleet.receiver(host).await_words("what is held stays", Duration::from_secs(5));
        assert!(fleet.receiver(host).is_alive(), "{} runs on", name(host));
    }
    // The same command goes on.
    let sent = fleet.send(&plan, &STEADY).finish().ok();
    fleet.check_images(&images, fleet.numbers());
    println!(
        "interrupted, then completed: {} of {} blocks were held everywhere",
        sent.network("blocks_skipped"),
        sent.network("blocks")
    );
    assert!(sent.network("blocks_skipped") > 0);
}
