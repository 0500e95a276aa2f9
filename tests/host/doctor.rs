//! What `scatter doctor` says of networks on which a transfer would fail in silence, before any transfer.

use crate::fleet::Fleet;
use crate::images::guest_part;
use lab::hosts::{LabOptions, Loss, Scope};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// Exit code of `doctor` that found a problem.
const PROBLEM: i32 = 9;

/// What doctor found: a list of findings.
struct Findings(Vec<Value>);

impl Findings {
    /// Severities of a check, of the findings that speak of `host`.
    fn of(&self, check: &str, host: &str) -> Vec<&str> {
        let about = |finding: &&Value| {
            finding["check"] == check && finding["what"].as_str().is_some_and(|what| what.contains(host))
        };
        let found = self.0.iter().filter(about);
        found.map(|finding| finding["severity"].as_str().expect("a severity")).collect()
    }

    /// All that are problems, as `check: what`.
    fn problems(&self) -> Vec<String> {
        let problems = self.0.iter().filter(|finding| finding["severity"] == "problem");
        problems.map(|finding| format!("{}: {}", finding["check"], finding["what"])).collect()
    }
}

/// Runs doctor on the sender.
fn doctor(fleet: &Fleet, plan: &Path, code: i32) -> Findings {
    let mut command = fleet.lab.host(0).command(env!("CARGO_BIN_EXE_scatter"));
    command.current_dir(fleet.dir()).env_remove("SCATTER_KEYS");
    command.args(["doctor", "--json", "--keys", "keys/src", "--plan"]).arg(plan);
    let ran = command.output().expect("doctor runs");
    let said = String::from_utf8_lossy(&ran.stdout);
    println!("{said}");
    assert_eq!(ran.status.code(), Some(code), "{said}\n{}", String::from_utf8_lossy(&ran.stderr));
    Findings(serde_json::from_str(&said).expect("a JSON list"))
}

fn run(mut command: Command, args: &[&str]) {
    let ran = command.args(args).output().expect("it runs");
    assert!(ran.status.success(), "{args:?}: {}", String::from_utf8_lossy(&ran.stderr));
}

#[test]
fn doctor_names_the_hosts_that_multicast_does_not_reach() {
    const TEST: &str = "doctor_names_the_hosts_that_multicast_does_not_reach";
    let Some(mut fleet) = Fleet::of(TEST, 4) else { return };
    let image = guest_part(1, fleet.dir());
    let plan = fleet.clone_plan(std::slice::from_ref(&image), fleet.numbers());
    fleet.start_receivers();

    let well = doctor(&fleet, &plan, 0);
    for host in ["h1", "h2", "h3", "h4"] {
        for check in ["multicast", "multicast-mtu", "multicast-gso"] {
            assert_eq!(well.of(check, &format!("→ {host} ")), ["ok"], "{check} of {host}");
        }
    }

    // No datagram of a group reaches h1; a link on the way to h2 carries less than all others; nobody is on h3.
    fleet.lab.loss(1, Loss::random(1_000).of(Scope::Multicast)).expect("loss");
    run(fleet.lab.switch_command("ip"), &["link", "set", "p2", "mtu", "1400"]);
    fleet.receiver(3).kill();
    let ill = doctor(&fleet, &plan, PROBLEM);
    assert_eq!(ill.of("multicast", "→ h1 "), ["problem"]);
    assert_eq!(ill.of("host", "h1 at"), ["ok"], "it is reached, only not by multicast");
    assert_eq!(ill.of("multicast", "→ h2 "), ["ok"], "small datagrams pass");
    assert_eq!(ill.of("multicast-mtu", "→ h2 "), ["problem"]);
    assert_eq!(ill.of("host", "10.77.0.4"), ["problem"], "{:?}", ill.problems());
    assert_eq!(ill.of("multicast-gso", "→ h4 "), ["ok"]);
    assert_eq!(ill.problems().len(), 3, "{:?}", ill.problems());
}

#[test]
fn doctor_misses_a_querier() {
    let options = LabOptions { hosts: 2, ..LabOptions::default() };
    let Some(fleet) = Fleet::new("doctor_misses_a_querier", options) else { return };
    let image = guest_part(1, fleet.dir());
    let plan = fleet.clone_plan(std::slice::from_ref(&image), fleet.numbers());
    // A switch with fast-leave asks nobody whether others are left: it would be silent either way.
    run(fleet.lab.switch_command("ip"), &["link", "set", "p0", "type", "bridge_slave", "fastleave", "off"]);
    let heard = doctor(&fleet, &plan, PROBLEM);
    assert_eq!(heard.of("igmp-querier", ""), ["ok"]);
    run(fleet.lab.switch_command("ip"), &["link", "set", "br0", "type", "bridge", "mcast_querier", "0"]);
    let silent = doctor(&fleet, &plan, PROBLEM);
    assert_eq!(silent.of("igmp-querier", ""), ["warning"]);
}
