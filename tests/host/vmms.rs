//! Running VMs of other hypervisors, captured and cloned by the command: `scatter capture`, `receive --launch`, `clone --from`. With the
//! stand-ins of `crates/vmm/tests/standins` always, and also with real binaries that the environment names.

use crate::clone::kvm_or_skip;
use crate::fleet::{Fleet, PATIENCE, name};
use crate::images::Image;
use crate::sending::Sent;
use lab::hosts::{LabOptions, Loss, Scope};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use vmm::{cloud_hypervisor, firecracker};

const MEMORY_MIB: u64 = 48;

/// A stand-in, which the workspace's tests build beside the command.
fn standin(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_scatter")).with_file_name(name);
    assert!(path.exists(), "{} is missing: cargo build --release -p vmm --bins", path.display());
    path
}

/// The stand-in, and the real one if the environment names it.
fn binaries(name: &str, variable: &str) -> Vec<(PathBuf, bool)> {
    let real = std::env::var_os(variable).map(|path| (PathBuf::from(path), false));
    println!(
        "{name}: {}",
        real.as_ref().map_or("the stand-in alone".into(), |it| it.0.display().to_string())
    );
    [Some((standin(name), true)), real].into_iter().flatten().collect()
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} does not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Right ticks on a guest's console; a wrong page fails the test.
fn ticks(console: &Path) -> usize {
    let text = String::from_utf8_lossy(&std::fs::read(console).unwrap_or_default()).into_owned();
    assert!(!text.contains("BAD"), "{}: {text}", console.display());
    text.lines().filter(|line| line.starts_with("TICK ") && line.contains(" OK ")).count()
}

/// A running VM at the source.
struct Source {
    child: Child,
    socket: PathBuf,
    console: PathBuf,
}

impl Drop for Source {
    fn drop(&mut self) {
        // It has ended, or is ours.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Processes of clones that outlive their receivers; killed when dropped.
struct Orphans(Vec<Pid>);

impl Drop for Orphans {
    fn drop(&mut self) {
        for pid in &self.0 {
            let _ = kill(*pid, Signal::SIGKILL);
        }
    }
}

fn is_alive(pid: Pid) -> bool {
    // A zombie has no command line any more.
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
}

/// A Firecracker with a guest that checks its memory; `devices`: also with a network interface, a vsock and metadata.
fn boot_firecracker(fleet: &Fleet, binary: &Path, devices: bool) -> Source {
    let dir = fleet.dir();
    let kernel = dir.join("guest.elf");
    std::fs::write(&kernel, vmm::microvm::guest::ELF).expect("written");
    let (socket, console) = (dir.join("source.sock"), dir.join("source.log"));
    let mut command: Command = fleet.lab.host(0).command(binary.to_str().expect("UTF-8"));
    command.args(["--id", "source", "--api-sock"]).arg(&socket).stdin(Stdio::null());
    let child = command.stdout(std::fs::File::create(&console).expect("made")).spawn().expect("starts");
    let source = Source { child, socket, console };
    let api = firecracker::Api::new(&source.socket);
    until("the API", || api.version().is_ok());
    let put = |path: &str, body: Value| drop(api.request("PUT", path, Some(&body)).expect("taken"));
    put("/machine-config", json!({ "vcpu_count": 1, "mem_size_mib": MEMORY_MIB, "track_dirty_pages": true }));
    let arguments = format!("mb={} seed=5 zero=30 dup=10 idle=2000000 step=64", MEMORY_MIB - 8);
    put("/boot-source", json!({ "kernel_image_path": kernel, "boot_args": arguments }));
    if devices {
        put("/network-interfaces/eth0", json!({ "iface_id": "eth0", "host_dev_name": "tap0" }));
        put("/vsock", json!({ "guest_cid": 3, "uds_path": dir.join("source.vsock") }));
        put("/mmds/config", json!({ "network_interfaces": ["eth0"], "version": "V2" }));
        put("/mmds", json!({ "role": "web" }));
    }
    put("/actions", json!({ "action_type": "InstanceStart" }));
    until("the first ticks", || ticks(&source.console) >= 2);
    source
}

/// Two hosts that may start VMs of a kind, four clones each.
struct Trial {
    fleet: Fleet,
    kind: &'static str,
    binary: PathBuf,
}

impl Trial {
    fn start_receivers(&mut self) {
        self.fleet.stop_receivers();
        let flag = format!("--{}", self.kind);
        for host in self.fleet.numbers() {
            let args = ["--launch", self.kind, &flag, path(&self.binary), "--tap", "fc{slot}-{iface}"];
            self.fleet.start_receiver_args(host, &format!("keys/{}", name(host)), &[], &args);
        }
    }

    /// A plan that starts so many clones on each host of the snapshot in `golden`, which `scatter capture` made.
    fn plan(&self, per_host: u32) -> PathBuf {
        let image = Image { name: "golden".into(), path: self.fleet.dir().join("golden/memory") };
        let plan = self.fleet.clone_plan(&[image], self.fleet.numbers());
        let read = |path: &Path| -> Value {
            serde_json::from_slice(&std::fs::read(path).expect("there")).expect("JSON")
        };
        let mut value = read(&plan);
        value["vms"][0]["instances"] = json!(vec![per_host; self.fleet.numbers().len()]);
        value["vms"][0]["launch"] = read(&self.fleet.dir().join("golden/launch.json"));
        std::fs::write(&plan, value.to_string()).expect("written");
        plan
    }

    fn folder(&self, host: u16, number: u32) -> PathBuf {
        self.fleet.store(host).join(format!("clones/golden-{}-{number}", name(host)))
    }

    /// The processes of the clones that run, as `scatter status` tells them once they are so many.
    fn processes(&self, plan: &Path, count: usize) -> Orphans {
        let mut found = Vec::new();
        until("all clones' processes in the status", || {
            found = self.told_processes(plan);
            found.len() == count
        });
        Orphans(found)
    }

    fn told_processes(&self, plan: &Path) -> Vec<Pid> {
        let said = self
            .fleet
            .scatter_on(0, &["status", "--keys", "keys/src", "--group", plan.to_str().expect("UTF-8")]);
        let pid = |line: &str| {
            let pid = line.split_once("process ")?.1.split(',').next()?.parse().ok()?;
            Some(Pid::from_raw(pid))
        };
        said.lines().filter_map(pid).collect()
    }

    /// Every clone ticks on with its memory right.
    fn check_clones(&self, per_host: u32) {
        let console = if self.kind == "firecracker" { "console.log" } else { "serial.log" };
        for host in self.fleet.numbers() {
            for number in 1..=per_host {
                let console = self.folder(host, number).join(console);
                let before = ticks(&console);
                until("a clone's next ticks", || ticks(&console) >= before + 2);
            }
        }
    }

    /// Clones it, four on each of two hosts: all run, and tick on with their memory right.
    fn clone_eight(&mut self, what: &str, plan: &Path, more: &[&str]) -> Orphans {
        let flags = [&["--rate", "300M"], more].concat();
        let sent = self.fleet.transfer("clone", plan, &flags).finish().ok();
        say(what, &sent);
        assert_eq!(sent.report["clones"]["running"], 8, "{}", sent.said);
        let orphans = self.processes(plan, 8);
        self.check_clones(4);
        orphans
    }

    /// Clones it so slowly that pages are missing when all receivers are killed: no clone stays behind.
    fn end_with_receivers(&mut self, plan: &Path, clones: usize) {
        let mut sending = self.fleet.transfer("clone", plan, &["--rate", "8M"]);
        let orphans = self.processes(plan, clones);
        assert!(orphans.0.iter().all(|pid| is_alive(*pid)));
        self.fleet.numbers().for_each(|host| self.fleet.receiver(host).kill());
        until("the clones' end", || !orphans.0.iter().any(|pid| is_alive(*pid)));
        sending.running.kill();
    }
}

fn say(what: &str, sent: &Sent) {
    let clones = &sent.report["clones"];
    let ms = |name: &str| clones[name].as_f64().unwrap_or_default() * 1e3;
    println!(
        "{what}: first instruction p50 {:.0} ms, last {:.0} ms, from the command's start; {} pages answered; network faults {:.3}",
        ms("first_instruction_p50_s"),
        ms("first_instruction_last_s"),
        clones["pages_answered"],
        clones["network_fault_ratio"].as_f64().unwrap_or_default(),
    );
}

fn path(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
fn eight_firecrackers_are_cloned_from_a_running_one() {
    const TEST: &str = "eight_firecrackers_are_cloned_from_a_running_one";
    if !kvm_or_skip(TEST) {
        return;
    }
    for (binary, devices) in binaries("firecracker-standin", "SCATTER_FIRECRACKER") {
        let Some(fleet) = Fleet::new(TEST, LabOptions { hosts: 3, ..LabOptions::default() }) else { return };
        let mut trial = Trial { fleet, kind: "firecracker", binary };
        let source = boot_firecracker(&trial.fleet, &trial.binary, devices);
        trial.fleet.scatter(&["capture", "firecracker", path(&source.socket), "golden"]);
        // What changed since, merged onto that.
        trial.fleet.scatter(&[
            "capture",
            "firecracker",
            path(&source.socket),
            "golden",
            "--base",
            "golden/memory",
        ]);
        let plan = trial.plan(4);
        for host in trial.fleet.numbers() {
            trial.fleet.lab.loss(host, Loss::random(10).of(Scope::Datagrams)).expect("loss");
        }
        trial.start_receivers();
        let orphans = trial.clone_eight("8 Firecrackers of a merged diff snapshot", &plan, &[]);
        if devices {
            check_devices(&trial);
        }
        // They depend on nobody: not on the sender, which has ended, nor on the receivers.
        for host in trial.fleet.numbers() {
            let receiver = trial.fleet.receiver(host);
            receiver.signal(Signal::SIGTERM);
            receiver.wait(PATIENCE);
        }
        trial.check_clones(4);
        drop(orphans);
        // The source has run on, and is cloned again as it is now, in one step.
        let before = ticks(&source.console);
        until("the source's next tick", || ticks(&source.console) > before);
        trial.start_receivers();
        let from = format!("golden={}", path(&source.socket));
        let _orphans = trial.clone_eight("the same from the running one", &plan, &["--from", &from]);
    }
}

/// Each clone has devices of its own, and knows who it is.
fn check_devices(trial: &Trial) {
    for host in trial.fleet.numbers() {
        let mut taps = Vec::new();
        for number in 1..=4 {
            let folder = trial.folder(host, number);
            let said = std::fs::read_to_string(folder.join("console.log")).expect("a console");
            let tap =
                said.lines().find_map(|line| line.strip_prefix("interface eth0 is tap ")).expect("a tap");
            taps.push(tap.to_owned());
            assert!(said.contains(&format!("vsock 3 is {}/vsock.sock", folder.display())), "{said}");
            let own = format!("\"name\":\"golden-{}-{number}\"", name(host));
            assert!(said.contains("\"role\":\"web\"") && said.contains(&own), "{said}");
        }
        taps.sort();
        assert_eq!(taps, ["fc0-eth0", "fc1-eth0", "fc2-eth0", "fc3-eth0"]);
    }
}

#[test]
fn firecrackers_end_with_a_killed_receiver_and_another_version_is_refused() {
    const TEST: &str = "firecrackers_end_with_a_killed_receiver_and_another_version_is_refused";
    if !kvm_or_skip(TEST) {
        return;
    }
    for (binary, _) in binaries("firecracker-standin", "SCATTER_FIRECRACKER") {
        let Some(fleet) = Fleet::new(TEST, LabOptions { hosts: 2, ..LabOptions::default() }) else { return };
        let mut trial = Trial { fleet, kind: "firecracker", binary };
        let source = boot_firecracker(&trial.fleet, &trial.binary, false);
        trial.fleet.scatter(&["capture", "firecracker", path(&source.socket), "golden"]);
        drop(source);
        let plan = trial.plan(2);
        trial.start_receivers();
        trial.end_with_receivers(&plan, 2);
        // Another version's snapshot is refused before anything is sent.
        let text = std::fs::read_to_string(&plan).expect("a plan");
        let mut value: Value = serde_json::from_str(&text).expect("JSON");
        value["vms"][0]["launch"]["fingerprint"] = json!("firecracker 0.1.0; cpu abacus");
        std::fs::write(&plan, value.to_string()).expect("written");
        trial.start_receivers();
        let sent = trial.fleet.transfer("clone", &plan, &[]).finish().ended(6);
        assert!(sent.reason(1).contains("a snapshot of [firecracker 0.1.0; cpu abacus]"), "{}", sent.said);
        assert_eq!(sent.network("source_datagrams"), 0);
    }
}

/// A Cloud Hypervisor with a guest that checks its memory.
fn boot_cloud_hypervisor(fleet: &Fleet, binary: &Path) -> Source {
    let dir = fleet.dir();
    let kernel = dir.join("guest.elf");
    std::fs::write(&kernel, vmm::microvm::guest::ELF).expect("written");
    let (socket, console) = (dir.join("source.sock"), dir.join("source.log"));
    let mut command: Command = fleet.lab.host(0).command(path(binary));
    command.arg("--api-socket").arg(format!("path={}", socket.display()));
    let child = command.env_remove("RUST_BACKTRACE").stdin(Stdio::null()).spawn().expect("starts");
    let source = Source { child, socket, console };
    let api = cloud_hypervisor::Api::new(&source.socket);
    until("the API", || api.version().is_ok());
    let config = json!({
        "cpus": { "boot_vcpus": 1, "max_vcpus": 1 },
        "memory": { "size": MEMORY_MIB << 20, "shared": true, "thp": false },
        "payload": { "kernel": kernel, "cmdline": format!("mb={} seed=5 zero=30 dup=10 idle=2000000 step=64", MEMORY_MIB - 1) },
        "serial": { "mode": "File", "file": source.console },
        "console": { "mode": "Off" },
    });
    api.request("PUT", "vm.create", Some(&config)).expect("created");
    api.request("PUT", "vm.boot", None).expect("boots");
    until("the first ticks", || ticks(&source.console) >= 2);
    source
}

#[test]
fn cloud_hypervisors_are_cloned_from_a_running_one_and_end_with_a_killed_receiver() {
    const TEST: &str = "cloud_hypervisors_are_cloned_from_a_running_one_and_end_with_a_killed_receiver";
    if !kvm_or_skip(TEST) {
        return;
    }
    for (binary, _) in binaries("cloud-hypervisor-standin", "SCATTER_CLOUD_HYPERVISOR") {
        let Some(fleet) = Fleet::new(TEST, LabOptions { hosts: 3, ..LabOptions::default() }) else { return };
        let mut trial = Trial { fleet, kind: "cloud-hypervisor", binary };
        let source = boot_cloud_hypervisor(&trial.fleet, &trial.binary);
        trial.fleet.scatter(&["capture", "cloud-hypervisor", path(&source.socket), "golden"]);
        let plan = trial.plan(4);
        trial.start_receivers();
        let from = format!("golden={}", path(&source.socket));
        let orphans =
            trial.clone_eight("8 Cloud Hypervisors from the running one", &plan, &["--from", &from]);
        let before = ticks(&source.console);
        until("the source's next tick", || ticks(&source.console) > before);
        drop((orphans, source));
        // Clones whose pages nobody brings any more.
        trial.start_receivers();
        trial.end_with_receivers(&plan, 8);
    }
}
