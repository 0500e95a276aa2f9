//! Whole transfers over multicast on the loopback interface.

use crate::support::{Bench, Host, Running, inventory, same_file};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

/// More than any of these transfers takes, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(30);

/// A plan of three VMs: one cloned to both hosts, one to each.
fn plan(bench: &Bench, hosts: &[&Host]) {
    bench.images(3, 4);
    let vms = [
        ("both", "vm0.ram", json!({"clones": 2})),
        ("one", "vm1.ram", json!({"hosts": ["h1"]})),
        ("two", "vm2.ram", json!({"hosts": ["h2"]})),
    ];
    let hosts: Vec<(&str, u16)> = hosts.iter().map(|host| (host.name, host.port)).collect();
    bench.write("inventory.json", &inventory(&vms, &hosts).to_string());
    bench.run(&["plan", "inventory.json", "-o", "plan.json"]).ok();
}

const SEND: [&str; 5] = ["send", "--group", "plan.json", "--keys", "keys/src"];

#[test]
fn two_hosts_get_what_the_plan_says_byte_for_byte() {
    let bench = Bench::new();
    bench.keys(&["h1", "h2"]);
    let (mut h1, mut h2) = (Host::start(&bench, "h1", &["--once"]), Host::start(&bench, "h2", &["--once"]));
    plan(&bench, &[&h1, &h2]);
    let report = ["--report", "report.json", "--report", "report.html", "--timeout", "10"];
    let said = bench.run(&[&SEND[..], &report[..]].concat()).ok();
    assert!(
        said.contains("h1") && said.contains("complete") && said.contains("shared across hosts"),
        "{said}"
    );
    for (source, target) in [("vm0.ram", "both.ram"), ("vm1.ram", "one.ram")] {
        same_file(&bench.path(source), &h1.store.join(target));
    }
    for (source, target) in [("vm0.ram", "both.ram"), ("vm2.ram", "two.ram")] {
        same_file(&bench.path(source), &h2.store.join(target));
    }
    assert!(!h1.store.join("two.ram").exists() && !h2.store.join("one.ram").exists());
    assert_eq!((h1.running.wait(PATIENCE), h2.running.wait(PATIENCE)), (Some(0), Some(0)), "--once ends");
    let report: Value =
        serde_json::from_str(&fs::read_to_string(bench.path("report.json")).expect("written")).expect("JSON");
    assert_eq!(report["state"], "complete");
    let pages: u64 = report["classes"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|class| class["pages"].as_u64().unwrap_or(0))
        .sum();
    assert_eq!(pages, 3 * 4 * 256, "every page is in one class");
    let encoded = report["network"]["encoded_bytes"].as_u64().expect("a figure");
    assert!(
        encoded > 0 && encoded < report["network"]["content_bytes"].as_u64().expect("a figure") * 11 / 10
    );
    let page = fs::read_to_string(bench.path("report.html")).expect("written");
    assert!(page.contains("<svg") && !page.contains("<script") && !page.contains("src="), "self-contained");
    // The report's own command makes the same page.
    bench.run(&["report", "report.json", "-o", "again.html"]).ok();
    assert_eq!(fs::read_to_string(bench.path("again.html")).expect("written"), page);
    assert!(bench.run(&["report", "report.json"]).ok().contains("pages by class"));
}

#[test]
fn json_lines_are_json_and_end_with_the_report_whatever_the_encoding() {
    let bench = Bench::new();
    bench.keys(&["h1", "h2"]);
    for encoding in ["raw", "lz4", "zstd:3"] {
        let (h1, h2) = (Host::start(&bench, "h1", &["--replace"]), Host::start(&bench, "h2", &["--replace"]));
        plan(&bench, &[&h1, &h2]);
        let args = ["--json", "--encoding", encoding, "--rate", "400M", "--symbol-size", "1424"];
        let out = bench.run(&[&SEND[..], &args[..]].concat()).ok();
        let events: Vec<Value> =
            out.lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect();
        let of = |kind: &str| events.iter().filter(|event| event["event"] == kind).count();
        assert!(of("reading") == 1 && of("prepared") == 1 && of("report") == 1, "{out}");
        for host in ["h1", "h2"] {
            // A short transfer may be over before other phases were looked at.
            let complete = |event: &&Value| event["host"] == host && event["phase"] == "complete";
            assert_eq!(events.iter().filter(complete).count(), 1, "{out}");
        }
        let last = events.last().expect("events");
        assert_eq!(last["report"]["settings"]["encoding"], encoding);
        assert_eq!(last["report"]["settings"]["symbol_bytes"], 1424);
        same_file(&bench.path("vm2.ram"), &h2.store.join("two.ram"));
        fs::remove_dir_all(&h1.store).expect("removed");
        fs::remove_dir_all(&h2.store).expect("removed");
    }
}

#[test]
fn a_host_that_is_not_there_fails_by_name_and_the_others_complete() {
    let bench = Bench::new();
    bench.keys(&["h1", "h2"]);
    let h1 = Host::start(&bench, "h1", &[]);
    let absent = Host::start(&bench, "h2", &[]);
    plan(&bench, &[&h1, &absent]);
    drop(absent);
    let ran = bench.run(&[&SEND[..], &["--timeout", "4"]].concat());
    assert_eq!(ran.code, Some(5), "{}\n{}", ran.out, ran.err);
    let failed = ran
        .out
        .lines()
        .find(|line| line.starts_with("h2 ") && line.contains("failed"))
        .expect("in the table");
    assert!(failed.contains("scatter receive"), "says what to do: {failed}");
    same_file(&bench.path("vm0.ram"), &h1.store.join("both.ram"));
    drop(h1);
    let ran = bench.run(&[&SEND[..], &["--timeout", "4"]].concat());
    assert_eq!(ran.code, Some(6), "{}\n{}", ran.out, ran.err);
}

#[test]
fn a_receiver_of_another_fleet_is_refused() {
    let bench = Bench::new();
    let other = Bench::new();
    bench.keys(&["h1", "h2"]);
    other.keys(&["h2"]);
    let (h1, h2) = (Host::start(&bench, "h1", &[]), Host::start(&other, "h2", &[]));
    plan(&bench, &[&h1, &h2]);
    let ran = bench.run(&[&SEND[..], &["--timeout", "3"]].concat());
    assert_eq!(ran.code, Some(5), "{}\n{}", ran.out, ran.err);
    let failed = ran.out.lines().find(|line| line.starts_with("h2 ")).expect("in the table");
    assert!(failed.contains("CA"), "{failed}");
    assert!(!h2.store.join("both.ram").exists());
}

#[test]
fn an_interrupted_transfer_is_finished_by_the_same_command() {
    let bench = Bench::new();
    bench.keys(&["h1", "h2"]);
    let (h1, h2) = (Host::start(&bench, "h1", &[]), Host::start(&bench, "h2", &[]));
    plan(&bench, &[&h1, &h2]);
    let mut slow = bench.scatter();
    // Some 3 MB at 2 Mbit/s: more than ten seconds.
    slow.args(SEND).args(["--rate", "2M", "--encoding", "raw", "--json"]).stdout(Stdio::piped());
    let mut slow = Running(slow.spawn().expect("scatter runs"));
    let out = BufReader::new(slow.0.stdout.take().expect("piped"));
    let mut lines = out.lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("\"progress\"")), "it is under way");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(slow.0.id()).expect("a pid"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("it runs");
    let last = lines.last().expect("the report");
    assert_eq!(slow.wait(PATIENCE), Some(7));
    let report: Value = serde_json::from_str(&last).expect("a JSON line");
    assert_eq!(report["report"]["state"], "interrupted", "{last}");
    assert!(!h1.store.join("both.ram").exists(), "nothing is there half-done");
    h1.await_line("interrupted");
    bench.run(&SEND).ok();
    same_file(&bench.path("vm0.ram"), &h1.store.join("both.ram"));
    same_file(&bench.path("vm2.ram"), &h2.store.join("two.ram"));
}

#[test]
fn receivers_stop_when_asked() {
    let bench = Bench::new();
    bench.keys(&["h1"]);
    // Who waits for one transfer is told that there was none; a service has done its work.
    for (more, code) in [(&["--once"][..], 7), (&[], 0)] {
        let mut host = Host::start(&bench, "h1", more);
        let pid = nix::unistd::Pid::from_raw(i32::try_from(host.running.0.id()).expect("a pid"));
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("it runs");
        assert_eq!(host.running.wait(PATIENCE), Some(code));
        assert!(host.said().contains("stopped"), "{}", host.said());
    }
}

#[test]
fn doctor_probes_the_hosts_of_a_plan() {
    let bench = Bench::new();
    bench.keys(&["h1", "h2"]);
    let (h1, h2) = (Host::start(&bench, "h1", &[]), Host::start(&bench, "h2", &[]));
    plan(&bench, &[&h1, &h2]);
    let args = ["doctor", "--plan", "plan.json", "--keys", "keys/src", "--json"];
    let ran = bench.run(&args);
    let findings: Vec<Value> = serde_json::from_str(&ran.out).expect("JSON");
    let severity = |check: &str, word: &str| {
        let found = findings.iter().find(|finding| {
            finding["check"] == check && finding["what"].as_str().is_some_and(|what| what.contains(word))
        });
        found.map(|finding| finding["severity"].as_str().unwrap_or("").to_owned())
    };
    for host in ["h1", "h2"] {
        for check in ["host", "clock", "multicast", "multicast-mtu", "multicast-gso"] {
            assert_eq!(severity(check, host).as_deref(), Some("ok"), "{check} of {host}: {}", ran.out);
        }
    }
    drop(h2);
    let ran = bench.run(&args);
    assert_eq!(ran.code, Some(9), "{}", ran.out);
    assert!(ran.out.contains("refuses connections"), "{}", ran.out);
}
