//! Running VMs leave their host: real Linux guests under TCG, which check their own memory and tick. Each runs in one place
//! only, whatever is killed, cut or full on the way.

use crate::fleet::{Fleet, PATIENCE, name};
use crate::qemu::{BOOT_WITHIN, Machine, Sweep, linux, taken_warm, ticks, wait_for_ticks};
use crate::sending::{Sending, Sent};
use lab::hosts::{LabOptions, Loss, Scope};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use vmm::qemu::{Identity, Launch, Vm};

/// Nice value of senders and receivers while VMs move; the fleet's processes have another one already.
const URGENT: &str = "-12";

/// The source's VMs, and hosts for them.
pub(crate) struct Evacuation {
    // Dropped in this order: the VMs, whatever the hosts left, the hosts.
    _vms: Vec<Vm>,
    /// Where each VM is now.
    places: Vec<PathBuf>,
    _sweep: Sweep,
    pub(crate) fleet: Fleet,
    launch: Launch,
    mib: u32,
    sweep: usize,
}

impl Evacuation {
    /// Debian guests.
    pub(crate) fn new(test: &str, hosts: u16, vms: u16, mib: u32, work_mib: u32) -> Option<Self> {
        Self::of(test, hosts, vms, linux(test, mib, work_mib)?)
    }

    /// So many VMs of a machine, which tick.
    pub(crate) fn of(test: &str, hosts: u16, vms: u16, machine: Machine) -> Option<Self> {
        let fleet = Fleet::new(test, LabOptions { hosts: hosts + 1, ..LabOptions::default() })?;
        let sweep = Sweep(fleet.dir().to_owned());
        let Machine { launch, mib, sweep: ticks } =
            machine.with(&["-qmp", "unix:{dir}/leave.sock,server=on,wait=off"]);
        may_start(&fleet, &launch, 0);
        let names: Vec<String> = (0..vms).map(|vm| format!("v{vm}")).collect();
        let places: Vec<PathBuf> = names.iter().map(|name| fleet.dir().join(name)).collect();
        let boot = |(name, dir): (String, &PathBuf)| {
            launch.boot(Identity::new(name).expect("random bytes"), dir).expect("QEMU")
        };
        let vms = names.into_iter().zip(&places).map(boot).collect();
        places.iter().for_each(|dir| wait_for_ticks(dir, 3, BOOT_WITHIN));
        Some(Self { _vms: vms, places, _sweep: sweep, fleet, launch, mib, sweep: ticks })
    }

    /// So many QEMUs are to wait at each host for VMs that come, from the next start of its receiver on.
    fn keep_warm(&self, count: usize) {
        may_start(&self.fleet, &self.launch, count);
    }

    pub(crate) fn source_dir(&self, vm: u16) -> PathBuf {
        self.places[usize::from(vm)].clone()
    }

    /// The VMs have arrived: from where they are they can leave again.
    pub(crate) fn settle(&mut self) {
        let vms = 0..u16::try_from(self.places.len()).expect("few");
        self.places = vms.map(|vm| self.target_dir(vm).expect("it has arrived")).collect();
    }

    /// Ends the receivers, and removes all that earlier transfers left but the VMs.
    pub(crate) fn clear(&mut self) {
        self.fleet.stop_receivers();
        let _ = fs::remove_dir_all(self.fleet.dir().join("plan.json.handover"));
        let clones = self.fleet.numbers().map(|host| self.clones_dir(host));
        for entry in clones.flat_map(|dir| fs::read_dir(dir).into_iter().flatten().flatten()) {
            if !self.places.contains(&entry.path()) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }

    pub(crate) fn start_receivers(&mut self) {
        for host in self.fleet.numbers() {
            self.start_receiver(host);
        }
    }

    pub(crate) fn start_receiver(&mut self, host: u16) {
        let clones = self.clones_dir(host);
        let clones = clones.to_str().expect("a UTF-8 path");
        let args = ["--launch", "qemu", "--qemu", "machine.json", "--clones", clones, "--nice", URGENT];
        self.fleet.start_receiver_args(host, &format!("keys/{}", name(host)), &[], &args);
    }

    pub(crate) fn clones_dir(&self, host: u16) -> PathBuf {
        self.fleet.dir().join(format!("c{host}"))
    }

    /// A plan that takes every VM to the next host in turn.
    pub(crate) fn plan(&self) -> PathBuf {
        let hosts = self.fleet.numbers();
        let mut inventory = self.fleet.inventory(&[], hosts.clone(), 4096);
        let vm = |vm: usize| {
            let host =
                hosts.start + u16::try_from(vm).expect("few") % u16::try_from(hosts.len()).expect("few");
            let monitor = self.source_dir(u16::try_from(vm).expect("few")).join("leave.sock");
            json!({"name": format!("v{vm}"), "image": format!("qmp:{}", monitor.display()), "memory_mib": self.mib,
                "to": {"hosts": [name(host)]}})
        };
        inventory["vms"] = (0..self.places.len()).map(vm).collect();
        let (path, plan) = (self.fleet.dir().join("inventory.json"), self.fleet.dir().join("plan.json"));
        fs::write(path, inventory.to_string()).expect("written");
        self.fleet.scatter(&["plan", "inventory.json", "-o", "plan.json"]);
        plan
    }

    pub(crate) fn send(&mut self, plan: &Path, args: &[&str]) -> Sending {
        self.fleet.send(plan, &[&["--rate", "500M"], args].concat())
    }

    /// What `status.json` says of a VM.
    pub(crate) fn status(&self, vm: u16) -> Value {
        let path = self.fleet.dir().join("plan.json.handover/status.json");
        let text = fs::read_to_string(path).unwrap_or_default();
        let value: Value = serde_json::from_str(&text).unwrap_or_default();
        value["vms"][usize::from(vm)].clone()
    }

    /// Where a VM that arrived has its files, at any host: the newest, if several were begun.
    pub(crate) fn target_dir(&self, vm: u16) -> Option<PathBuf> {
        let hosts = self.fleet.numbers().map(|host| self.clones_dir(host));
        let dirs = hosts.flat_map(|dir| fs::read_dir(dir).into_iter().flatten().flatten());
        let prefix = format!("v{vm}");
        let of = |name: &str| name == prefix || name.starts_with(&format!("{prefix}-"));
        let mut dirs: Vec<PathBuf> = dirs
            .filter(|entry| entry.file_name().to_str().is_some_and(of))
            .map(|entry| entry.path())
            .collect();
        dirs.sort_by_key(|dir| (dir.as_os_str().len(), dir.clone()));
        dirs.into_iter().rfind(|dir| *dir != self.source_dir(vm) && ticks(dir) > 0)
    }

    /// Whether a VM ticks in this directory.
    fn ticks_in(dir: &Path, within: Duration) -> bool {
        let before = ticks(dir);
        let deadline = Instant::now() + within;
        while Instant::now() < deadline {
            if ticks(dir) > before {
                return true;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        false
    }

    /// The VM ticks at its host, over more than a sweep over all of its memory, and nowhere else.
    #[track_caller]
    pub(crate) fn check_moved(&self, vm: u16) {
        let deadline = Instant::now() + PATIENCE;
        let dir = loop {
            if let Some(dir) = self.target_dir(vm) {
                break dir;
            }
            assert!(Instant::now() < deadline, "v{vm} ticks at no host; {}", self.status(vm));
            std::thread::sleep(Duration::from_millis(10));
        };
        wait_for_ticks(&dir, ticks(&dir) + self.sweep, PATIENCE);
        assert!(!Self::ticks_in(&self.source_dir(vm), Duration::from_millis(300)), "v{vm} runs twice");
    }

    /// Nothing of VMs that left is in their source's memory, and not even a directory for it.
    #[track_caller]
    fn check_nothing_left(&self) {
        let memory = fs::read_to_string(self.fleet.dir().join("plan.json.handover/memory")).expect("a note");
        assert!(!Path::new(&memory).exists(), "{memory} is still there");
    }

    /// The VM ticks at its source, and nowhere else.
    #[track_caller]
    pub(crate) fn check_stayed(&self, vm: u16) {
        let dir = self.source_dir(vm);
        wait_for_ticks(&dir, ticks(&dir) + self.sweep, PATIENCE);
        if let Some(target) = self.target_dir(vm) {
            assert!(!Self::ticks_in(&target, Duration::from_millis(300)), "v{vm} runs twice");
        }
    }
}

/// What hosts may start, and how many of it wait.
fn may_start(fleet: &Fleet, launch: &Launch, warm: usize) {
    let machine = json!({"name": "ticker", "args": launch.args, "end-with-receiver": false, "warm": warm});
    let config = json!({ "qemu": [machine] });
    fs::write(fleet.dir().join("machine.json"), config.to_string()).expect("written");
}

fn say(what: &str, status: &Value) {
    let time = |name: &str| {
        let figure = &status["figures"][name];
        figure["secs"].as_f64().unwrap_or(f64::NAN) + figure["nanos"].as_f64().unwrap_or(f64::NAN) / 1e9
    };
    println!(
        "{what}: {} {}: stood {:.0} ms, evicted after {:.2} s, {} stale pages, {} of them late, {} rounds; {}",
        status["vm"],
        status["state"],
        (time("running") - time("stopped")) * 1e3,
        time("released"),
        status["figures"]["stale_pages"],
        status["figures"]["late_pages"],
        status["figures"]["rounds"],
        status["reason"],
    );
}

/// The report has the figures of each VM.
#[track_caller]
fn check_report(sent: &Sent, vms: usize, pages_min: u64) {
    let departures = sent.report["departures"].as_array().expect("departures");
    assert_eq!(departures.len(), vms, "{}", sent.said);
    for departure in departures {
        assert_eq!(departure["state"], "released", "{departure}");
        let number =
            |field: &str| departure[field].as_f64().unwrap_or_else(|| panic!("{field}: {departure}"));
        assert!(number("downtime_s") < number("evicted_s") && number("stopped_s") < number("evicted_s"));
        assert!(number("answered_pages") >= number("stale_pages") && number("answered_bytes") > 0.0);
        assert!(number("dirty_pages_per_s") > 0.0 && number("stale_pages") > 0.0, "{departure}");
        let (late, stale) = (number("late_pages"), number("stale_pages"));
        assert!(if number("rounds") > 0.0 { late <= stale } else { late == stale }, "{departure}");
        let classes = departure["classes"].as_array().expect("classes");
        let pages: u64 = classes.iter().map(|class| class["pages"].as_u64().expect("a number")).sum();
        assert!(pages >= pages_min, "{departure}");
    }
    assert!(sent.report["clones"].is_null(), "none was cloned");
    assert!(sent.said.contains("v0 → h1: released, stood"), "{}", sent.said);
}

/// All VMs leave for the next hosts, where they tick on, and can leave again.
#[track_caller]
pub(crate) fn evacuate(evacuation: &mut Evacuation, mode: &str, permille: u16) {
    let vms = u16::try_from(evacuation.places.len()).expect("few");
    evacuation.clear();
    for host in evacuation.fleet.numbers() {
        evacuation.fleet.lab.loss(host, Loss::random(permille).of(Scope::Datagrams)).expect("loss");
    }
    evacuation.start_receivers();
    let plan = evacuation.plan();
    let start = Instant::now();
    let sent = evacuation.send(&plan, &["--mode", mode, "--downtime-limit", "2000"]).finish();
    (0..vms).for_each(|vm| say(mode, &evacuation.status(vm)));
    let sent = sent.ok();
    println!("{mode}: {:?} in all, {} bytes on the wire", start.elapsed(), sent.network("wire_bytes"));
    check_report(&sent, vms.into(), u64::from(evacuation.mib) << 8);
    (0..vms).for_each(|vm| evacuation.check_moved(vm));
    evacuation.settle();
}

#[test]
fn a_running_vm_moves_in_each_mode_without_loss_and_with_one_percent() {
    const TEST: &str = "a_running_vm_moves_in_each_mode_without_loss_and_with_one_percent";
    let Some(machine) = linux(TEST, 128, 16) else { return };
    // A disk that both ends have, as shared storage is; the guest checks what it wrote there.
    let disk = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a disk");
    disk.as_file().set_len(16 << 20).expect("a disk");
    let drive = format!("if=virtio,format=raw,file={}", disk.path().display());
    let Some(mut evacuation) = Evacuation::of(TEST, 1, 1, machine.with(&["-drive", &drive])) else { return };
    for (mode, permille) in [("postcopy", 0), ("hybrid", 10), ("precopy", 0)] {
        evacuation.clear();
        let loss = Loss::random(permille).of(Scope::Datagrams);
        evacuation.fleet.lab.loss(1, loss).expect("loss");
        evacuation.start_receivers();
        let plan = evacuation.plan();
        let own = evacuation.fleet.receiver(1).nice();
        let args = ["--mode", mode, "--downtime-limit", "2000", "--nice", URGENT];
        let mut sending = evacuation.send(&plan, &args);
        let mut nice = BTreeSet::new();
        while sending.running.is_alive() {
            nice.insert([sending.running.nice(), evacuation.fleet.receiver(1).nice()]);
            std::thread::sleep(Duration::from_millis(5));
        }
        let sent = sending.finish();
        // Both at once: while pages move.
        assert!(nice.contains(&[URGENT.parse().ok(); 2]), "{nice:?}: {}", sent.said);
        say(mode, &evacuation.status(0));
        println!("{}", evacuation.fleet.receiver(1).said());
        let sent = sent.ok();
        check_report(&sent, 1, 128 << 8);
        if mode == "precopy" {
            let leaver = &sent.report["departures"][0];
            let pages = |what: &str| leaver[what].as_u64().expect("a number");
            assert!(
                pages("late_pages") < pages("stale_pages"),
                "what a round brought is not sent again: {leaver}"
            );
        }
        evacuation.check_moved(0);
        evacuation.check_nothing_left();
        let deadline = Instant::now() + PATIENCE;
        while evacuation.fleet.receiver(1).nice() != own {
            assert!(Instant::now() < deadline, "its VM runs on beside a receiver that is more urgent");
            std::thread::sleep(Duration::from_millis(5));
        }
        evacuation.settle();
    }
}

#[test]
fn six_running_vms_move_to_three_hosts_in_each_mode_without_loss_and_with_one_percent() {
    const TEST: &str = "six_running_vms_move_to_three_hosts_in_each_mode_without_loss_and_with_one_percent";
    let Some(mut evacuation) = Evacuation::new(TEST, 3, 6, 96, 8) else { return };
    for (mode, permille, warm) in [("hybrid", 10, 2), ("postcopy", 0, 0), ("precopy", 10, 1)] {
        evacuation.keep_warm(warm);
        evacuate(&mut evacuation, mode, permille);
        for host in evacuation.fleet.numbers() {
            assert_eq!(taken_warm(&evacuation.clones_dir(host)), warm);
        }
    }
}

#[test]
fn a_host_that_was_away_between_rounds_of_precopy_gets_all_that_changed() {
    const TEST: &str = "a_host_that_was_away_between_rounds_of_precopy_gets_all_that_changed";
    /// It writes some hundred pages a second: the first round takes more than half of the limit, the next ones do not.
    const SLOW: &str = "console=ttyS0 quiet ticker.mib=8 ticker.pause=200";
    let Some(machine) = linux(TEST, 96, 8) else { return };
    let Some(mut evacuation) = Evacuation::of(TEST, 1, 1, machine.with(&["-append", SLOW])) else { return };
    evacuation.start_receivers();
    let plan = evacuation.plan();
    let args = ["--mode", "precopy", "--downtime-limit", "400", "--precopy-timeout", "50", "--rate", "40M"];
    let sending = evacuation.fleet.send(&plan, &args);
    let deadline = Instant::now() + PATIENCE;
    while evacuation.status(0)["figures"]["rounds"].as_u64().unwrap_or(0) == 0 {
        assert!(Instant::now() < deadline, "no round; {}", evacuation.status(0));
        std::thread::sleep(Duration::from_millis(2));
    }
    // The system breaks its connection, which both ends find out at once.
    let broken = evacuation.fleet.lab.host(1).command("ss").args(["-K", "state", "established"]).output();
    let broken = broken.expect("ss, of iproute2");
    assert!(String::from_utf8_lossy(&broken.stdout).contains("tcp"), "none was broken: {broken:?}");
    let sent = sending.finish().ok();
    say("precopy", &evacuation.status(0));
    check_report(&sent, 1, 96 << 8);
    let leaver = &sent.report["departures"][0];
    assert!(leaver["rounds"].as_u64() > Some(1), "one more, which told it all: {leaver}");
    evacuation.check_moved(0);
}
