//! How much of a link a transfer uses.

use crate::fleet::Fleet;
use crate::images::{Image, float, incompressible};
use crate::sending::Sent;
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

#[test]
fn an_automatic_rate_fills_the_link_to_8_hosts() {
    let Some(mut fleet) = Fleet::of("an_automatic_rate_fills_the_link_to_8_hosts", 8) else { return };
    // A few seconds on each link.
    let image = incompressible(400, "large", fleet.dir());
    let (share, idle) = measure(&mut fleet, &image, 1_000_000_000);
    if share < USED_MIN && idle < IDLE_MIN {
        println!("the CPUs were the limit, not the link: once more with a slower one");
        let image = incompressible(48, "small", fleet.dir());
        let (slower, idle) = measure(&mut fleet, &image, 100_000_000);
        if slower < USED_SLOWER_MIN && idle < IDLE_MIN {
            cannot_judge("other programs leave no CPU time, not even for 100 Mb/s");
            return;
        }
        assert!(slower >= USED_SLOWER_MIN, "only {:.1} % of the slower link was used", slower * 100.0);
        return;
    }
    assert!(share >= USED_MIN, "only {:.1} % of the link was used", share * 100.0);
}
