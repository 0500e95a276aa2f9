//! How much of a link a transfer uses.

use crate::fleet::Fleet;
use crate::images::{Image, float, incompressible};
use crate::sending::Sent;
use lab::hosts::LabOptions;
use std::fs;

/// Share of a link that a transfer must use while it sends.
const USED_MIN: f64 = 0.95;
/// Less of the CPUs than this idle means that they, not the link, set the pace: one thread sends, and of two cores nine
/// hosts and a switch take the other.
const IDLE_MIN: f64 = 0.25;
/// On the slower link a transfer is so short that the search for its rate, which starts at 1 Gb/s, shows.
const USED_SLOWER_MIN: f64 = 0.9;

/// Share of the link used between the first and the last thousandth of the bytes, which leaves out the connecting before
/// and the farewells after.
fn share(sent: &Sent, link_bps: f64) -> f64 {
    let all = sent.samples.last().expect("samples").1;
    let first = sent.samples.iter().find(|(_, bytes)| *bytes > all / 1_000).expect("data");
    let last = sent.samples.iter().find(|(_, bytes)| *bytes >= all - all / 1_000).expect("data");
    float(last.1 - first.1) * 8.0 / (last.0 - first.0).as_secs_f64() / link_bps
}

/// Says why nothing can be said. Where the lane must run, that is a failure.
fn cannot_judge(why: &str) {
    let required = std::env::var("SCATTER_REQUIRE_LAB").is_ok_and(|value| value == "1");
    assert!(!required, "the share of the link must be judged (SCATTER_REQUIRE_LAB=1): {why}");
    eprintln!("skipped the share of the link: {why}");
}

/// Idle and all time of the CPUs so far, in ticks (proc(5), `/proc/stat`).
fn cpu_ticks() -> (u64, u64) {
    let stat = fs::read_to_string("/proc/stat").expect("/proc/stat");
    let line = stat.lines().next().expect("the sum of all CPUs");
    let ticks: Vec<u64> =
        line.split_whitespace().skip(1).take(8).map(|tick| tick.parse().expect("ticks")).collect();
    (ticks[3] + ticks[4], ticks.iter().sum())
}

/// Sends at an automatic rate over a link of so many bit/s; the share used, and of the CPUs the share that was idle.
fn measure(fleet: &mut Fleet, image: &Image, link_bps: u64) -> (f64, f64) {
    let plan = fleet.clone_plan(std::slice::from_ref(image), fleet.numbers());
    fleet.lab.shape_egress(0, link_bps).expect("a rate");
    fleet.start_receivers();
    let before = cpu_ticks();
    let sent = fleet.send(&plan, &["--rate", "auto", "--encoding", "raw"]).finish().ok();
    let after = cpu_ticks();
    fleet.check_images(std::slice::from_ref(image), fleet.numbers());
    let share = share(&sent, float(link_bps));
    let idle = float(after.0 - before.0) / float((after.1 - before.1).max(1));
    println!(
        "a link of {} Mb/s: {:.1} % used at an automatic rate; CPUs {:.0} % idle; {} datagrams, {} of them repair, {} \
         blocks by unicast",
        link_bps / 1_000_000,
        share * 100.0,
        idle * 100.0,
        sent.network("datagrams"),
        sent.network("datagrams") - sent.network("source_datagrams"),
        sent.network("catch_up_blocks"),
    );
    (share, idle)
}

/// Where one link is more than the CPUs can fill, the next one asks less of them: larger datagrams, then a slower link.
#[test]
fn an_automatic_rate_fills_the_link_to_8_hosts() {
    for (mtu, link_bps, mib, least) in [
        (1_500, 1_000_000_000, 400, USED_MIN),
        (9_000, 1_000_000_000, 400, USED_MIN),
        (1_500, 100_000_000, 48, USED_SLOWER_MIN),
    ] {
        let options = LabOptions { hosts: 9, mtu, ..LabOptions::default() };
        let Some(mut fleet) = Fleet::new("an_automatic_rate_fills_the_link_to_8_hosts", options) else {
            return;
        };
        // A few seconds on each link.
        let image = incompressible(mib, "image", fleet.dir());
        let (share, idle) = measure(&mut fleet, &image, link_bps);
        if share >= least {
            return;
        }
        assert!(idle < IDLE_MIN, "only {:.1} % of the link was used", share * 100.0);
        println!("the CPUs were the limit, not the link");
    }
    cannot_judge("other programs leave no CPU time, not even for 100 Mb/s");
}
