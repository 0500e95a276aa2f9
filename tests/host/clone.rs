//! Real virtual machines, cloned while their memory arrives: micro-VMs on KVM, whose guests check every page they touch. Each
//! clone's vCPU faults on memory that is not there yet.

use crate::fleet::{Fleet, PATIENCE, name};
use crate::images::Image;
use lab::hosts::{LabOptions, Loss, Scope};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A machine without `/dev/kvm` has nothing to try this on; one whose device may not be used is a failure where tests
/// are required.
pub(crate) fn kvm_or_skip(test: &str) -> bool {
    match vmm::microvm::available() {
        Ok(()) => true,
        Err(error) => {
            println!("{test} skipped: {error}");
            let required = std::env::var_os("SCATTER_REQUIRE_LAB").is_some();
            assert!(!(Path::new("/dev/kvm").exists() && required), "{test}: /dev/kvm is there, but: {error}");
            false
        }
    }
}

pub(crate) struct Clones {
    pub(crate) fleet: Fleet,
    per_host: u32,
}

impl Clones {
    pub(crate) fn new(test: &str, hosts: u16, per_host: u32, mib: u32) -> Option<Self> {
        if !kvm_or_skip(test) {
            return None;
        }
        let fleet = Fleet::new(test, LabOptions { hosts: hosts + 1, ..LabOptions::default() })?;
        fleet.scatter(&["microvm", "golden", "--size", &mib.to_string(), "--step", "16"]);
        Some(Self { fleet, per_host })
    }

    pub(crate) fn start_receivers(&mut self) {
        self.fleet.stop_receivers();
        for host in self.fleet.numbers() {
            let keys = format!("keys/{}", name(host));
            self.fleet.start_receiver_args(host, &keys, &[], &["--launch", "microvm"]);
        }
    }

    /// A plan that starts so many clones on each host, as the planner makes it of the number of all.
    pub(crate) fn plan(&self) -> PathBuf {
        let hosts = self.fleet.numbers();
        let all = self.per_host as usize * hosts.len();
        let image = Image { name: "golden".into(), path: self.fleet.dir().join("golden/memory") };
        let mut inventory = self.fleet.inventory(&[(&image, json!({ "clones": all }))], hosts, 1 << 20);
        let vm = &mut inventory["vms"][0];
        vm["clones_per_host"] = json!(self.per_host);
        vm["launch"] = json!({"kind": "microvm",
            "attachments": {"state": "golden/state"}, "working_set": "golden/working-set"});
        self.fleet.plan_of(&inventory)
    }

    /// What `scatter status` says.
    pub(crate) fn status(&self, plan: &Path) -> String {
        let mut command = self.fleet.lab.host(0).command(env!("CARGO_BIN_EXE_scatter"));
        command.current_dir(self.fleet.dir()).args(["status", "--keys", "keys/src", "--group"]).arg(plan);
        let output = command.output().expect("scatter runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// Every clone goes on ticking and finds its memory right; then the receivers end in order.
    fn check_guests(&mut self) {
        std::thread::sleep(Duration::from_millis(500));
        for host in self.fleet.numbers() {
            let receiver = self.fleet.receiver(host);
            receiver.signal(nix::sys::signal::Signal::SIGTERM);
            receiver.wait(PATIENCE);
            let said = receiver.said();
            let lines = said.lines().filter(|line| line.contains(": independent; tick "));
            let right = lines.filter(|line| line.ends_with(", 0 wrong pages")).count();
            assert_eq!(right, self.per_host as usize, "clones of {}:\n{said}", name(host));
        }
        let memory = std::fs::read(self.fleet.dir().join("golden/memory")).expect("the snapshot");
        for host in self.fleet.numbers() {
            let image = self.fleet.store(host).join("golden.ram");
            assert!(std::fs::read(&image).is_ok_and(|image| image == memory), "{}", image.display());
        }
    }
}

fn figure(report: &Value, name: &str) -> f64 {
    report["clones"][name].as_f64().unwrap_or_else(|| panic!("no {name} in {report}"))
}

fn say(what: &str, report: &Value) {
    println!(
        "{what}: first instruction p50 {:.0} ms, p99 {:.0} ms, last {:.0} ms; {:.0} pages answered, {:.0} ahead, {:.0} suppressed; \
         network faults {:.1} %; {} bytes on the wire, {:.2} s in all",
        figure(report, "first_instruction_p50_s") * 1e3,
        figure(report, "first_instruction_p99_s") * 1e3,
        figure(report, "first_instruction_last_s") * 1e3,
        figure(report, "pages_answered"),
        figure(report, "pages_ahead"),
        figure(report, "wants_suppressed"),
        figure(report, "network_fault_ratio") * 100.0,
        report["network"]["wire_bytes"],
        report["times"]["total_s"].as_f64().unwrap_or_default(),
    );
}

#[test]
fn eight_running_clones_on_four_hosts_without_loss_and_with_five_percent() {
    const TEST: &str = "eight_running_clones_on_four_hosts_without_loss_and_with_five_percent";
    let Some(mut clones) = Clones::new(TEST, 4, 2, 64) else { return };
    let plan = clones.plan();
    for permille in [0, 50] {
        for host in clones.fleet.numbers() {
            clones.fleet.lab.loss(host, Loss::random(permille).of(Scope::Datagrams)).expect("loss");
        }
        clones.start_receivers();
        let sent = clones.fleet.transfer("clone", &plan, &["--rate", "300M"]).finish().ok();
        say(&format!("8 clones on 4 hosts, {permille} ‰ loss"), &sent.report);
        assert_eq!(sent.report["clones"]["running"], 8, "{}", sent.said);
        assert!(
            figure(&sent.report, "pages_answered") > 0.0,
            "no vCPU waited for the sender:\n{}",
            sent.said
        );
        clones.check_guests();
    }
}

#[test]
fn clones_finish_by_unicast_when_multicast_stops_midway() {
    const TEST: &str = "clones_finish_by_unicast_when_multicast_stops_midway";
    let Some(mut clones) = Clones::new(TEST, 4, 2, 64) else { return };
    let plan = clones.plan();
    clones.start_receivers();
    let mut sending = clones.fleet.transfer("clone", &plan, &["--rate", "100M"]);
    sending.await_sent(6 << 20);
    for host in clones.fleet.numbers() {
        clones.fleet.lab.loss(host, Loss::random(1_000).of(Scope::Datagrams)).expect("loss");
    }
    let sent = sending.finish().ok();
    say("multicast stopped midway", &sent.report);
    assert!(sent.network("catch_up_blocks") > 0, "the rest came by unicast:\n{}", sent.said);
    assert_eq!(sent.report["clones"]["running"], 8, "{}", sent.said);
    clones.check_guests();
}

#[test]
fn clones_of_a_killed_sender_wait_and_go_on_when_it_is_started_again() {
    const TEST: &str = "clones_of_a_killed_sender_wait_and_go_on_when_it_is_started_again";
    let Some(mut clones) = Clones::new(TEST, 2, 2, 64) else { return };
    let plan = clones.plan();
    clones.start_receivers();
    let mut sending = clones.fleet.transfer("clone", &plan, &["--rate", "40M"]);
    sending.running.await_words(": running", PATIENCE);
    sending.await_sent(2 << 20);
    sending.running.kill();
    drop(sending);
    for host in clones.fleet.numbers() {
        clones.fleet.receiver(host).await_words("interrupted", PATIENCE);
    }
    std::thread::sleep(Duration::from_millis(500));
    let status = clones.status(&plan);
    println!("{status}");
    assert_eq!(status.matches("NOBODY brings what is missing").count(), 2, "{status}");
    assert_eq!(status.matches(": runs, ").count(), 4, "{status}");
    let sent = clones.fleet.transfer("clone", &plan, &[]).finish().ok();
    say("the sender killed and started again", &sent.report);
    assert_eq!(sent.report["clones"]["running"], 4, "{}", sent.said);
    std::thread::sleep(Duration::from_millis(500));
    let status = clones.status(&plan);
    assert_eq!(status.matches(": independent; tick").count(), 4, "{status}");
    clones.check_guests();
}

#[test]
fn thirty_two_clones_on_eight_hosts() {
    let Some(mut clones) = Clones::new("thirty_two_clones_on_eight_hosts", 8, 4, 64) else { return };
    let plan = clones.plan();
    clones.start_receivers();
    let sent = clones.fleet.transfer("clone", &plan, &["--rate", "500M"]).finish().ok();
    say("32 clones on 8 hosts", &sent.report);
    assert_eq!(sent.report["clones"]["running"], 32, "{}", sent.said);
    // Target: 0.6 s on a quiet machine. A busy one says nothing about that; a clone that needed its whole memory would.
    let last = figure(&sent.report, "first_instruction_last_s");
    assert!(last < 20.0, "{last} s");
    clones.check_guests();
}
