//! Stock QEMU: real Linux guests under TCG, which check their own memory and tick, cloned to hosts in namespaces while their
//! memory arrives.

use crate::fleet::{Fleet, PATIENCE, name};
use crate::handover::{assert_ended, qemus};
use lab::hosts::{LabOptions, Loss, Scope};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use vmm::qemu::{Identity, Launch, Vm};

/// A guest boots in some seconds; a loaded machine may take ten times as long.
pub(crate) const BOOT_WITHIN: Duration = Duration::from_secs(120);

struct Qemus {
    // Dropped in this order: the source, whatever the hosts left, the hosts.
    _source: Vm,
    _sweep: Sweep,
    fleet: Fleet,
    mib: u32,
}

/// Ends QEMUs that a test which failed, or a receiver which was killed, left behind: those with files in the test's directory.
pub(crate) struct Sweep(pub(crate) PathBuf);

impl Drop for Sweep {
    fn drop(&mut self) {
        let Ok(processes) = fs::read_dir("/proc") else { return };
        for process in processes.flatten() {
            let Ok(pid) = process.file_name().to_string_lossy().parse::<i32>() else { continue };
            let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line);
            if line.starts_with("qemu-system") && line.contains(&*self.0.to_string_lossy()) {
                // It may have ended just now.
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }
}

/// The guest's kernel and initramfs, or why there are none.
fn guest() -> Result<[PathBuf; 2], String> {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target"), PathBuf::from);
    let files = ["vmlinuz", "initrd"].map(|file| target.join("guests/ticker").join(file));
    if files.iter().any(|file| !file.exists()) {
        return Err(format!("{} is missing: examples/guests/make-ticker.sh makes it", files[0].display()));
    }
    let version = std::process::Command::new("qemu-system-x86_64").arg("--version").output();
    version.map(|_| files).map_err(|error| format!("qemu-system-x86_64: {error}"))
}

/// A machine with a guest that works on `work_mib` of its memory.
pub(crate) fn machine(test: &str, mib: u32, work_mib: u32) -> Option<Launch> {
    let files = match guest() {
        Ok(files) => files.map(|file| file.to_string_lossy().replace('{', "{{").replace('}', "}}")),
        Err(why) => {
            assert!(std::env::var_os("SCATTER_REQUIRE_LAB").is_none(), "{test} must run: {why}");
            println!("{test} skipped: {why}");
            return None;
        }
    };
    let fixed = "-accel tcg -cpu max -nodefaults -no-reboot -display none -machine q35,vmport=off -device vmgenid,guid={vmgenid} \
                 -serial file:{dir}/serial -qmp unix:{dir}/user.sock,server=on,wait=off";
    let mut args: Vec<String> = fixed.split(' ').map(str::to_owned).collect();
    let append = format!("console=ttyS0 quiet ticker.mib={work_mib} ticker.pause=20");
    let [kernel, initrd] = files;
    args.extend(["-m".into(), mib.to_string(), "-kernel".into(), kernel]);
    args.extend(["-initrd".into(), initrd, "-append".into(), append]);
    Some(Launch { program: "qemu-system-x86_64".into(), args })
}

impl Qemus {
    fn new(test: &str, hosts: u16, mib: u32, work_mib: u32) -> Option<Self> {
        let machine = machine(test, mib, work_mib)?;
        let fleet = Fleet::new(test, LabOptions { hosts: hosts + 1, ..LabOptions::default() })?;
        let sweep = Sweep(fleet.dir().to_owned());
        let dir = fleet.dir().join("source");
        let mut source = machine.boot(Identity::new("source").expect("random bytes"), &dir).expect("QEMU");
        wait_for_ticks(&dir, 3, BOOT_WITHIN);
        source.check().expect("it runs");
        let config = json!({"qemu": [{"name": "ticker", "args": machine.args, "end-with-receiver": true}]});
        fs::write(fleet.dir().join("machine.json"), config.to_string()).expect("written");
        Some(Self { _source: source, _sweep: sweep, fleet, mib })
    }

    fn start_receivers(&mut self) {
        self.fleet.stop_receivers();
        for host in self.fleet.numbers() {
            let keys = format!("keys/{}", name(host));
            let clones = self.clones_dir(host);
            let _ = fs::remove_dir_all(&clones);
            let clones = clones.to_str().expect("a UTF-8 path");
            let args = ["--launch", "qemu", "--qemu", "machine.json", "--clones", clones];
            self.fleet.start_receiver_args(host, &keys, &[], &args);
        }
    }

    /// A plan that starts so many clones on each host.
    fn plan(&self, per_host: u64) -> PathBuf {
        let hosts = self.fleet.numbers().len() as u64;
        let vm = json!({"name": "golden", "image": "qmp:source/user.sock", "memory_mib": self.mib, "to": {"clones": hosts * per_host}, "clones_per_host": per_host,
            "launch": {"kind": "qemu"}});
        let mut inventory = self.fleet.inventory(&[], self.fleet.numbers(), 1 << 20);
        inventory["vms"] = json!([vm]);
        fs::write(self.fleet.dir().join("inventory.json"), inventory.to_string()).expect("written");
        self.fleet.scatter(&["plan", "inventory.json", "-o", "plan.json"]);
        self.fleet.dir().join("plan.json")
    }

    /// A short path, as sockets are in it.
    fn clones_dir(&self, host: u16) -> PathBuf {
        self.fleet.dir().join(format!("c{host}"))
    }

    /// Files of a host's clones.
    fn clones(&self, host: u16) -> Vec<PathBuf> {
        let clones = fs::read_dir(self.clones_dir(host)).expect("clones");
        clones.map(|entry| entry.expect("an entry").path()).collect()
    }

    /// Every clone goes on ticking, over more than a sweep over all of its memory, and finds it right.
    fn check_guests(&self, per_host: usize) {
        for host in self.fleet.numbers() {
            let clones = self.clones(host);
            assert_eq!(clones.len(), per_host, "{clones:?}");
            for clone in clones {
                wait_for_ticks(&clone, 70, PATIENCE);
            }
        }
    }
}

/// The ticks that a guest has told on its serial port since it was started here. Fails if one is BAD.
pub(crate) fn ticks(dir: &Path) -> usize {
    let said = fs::read(dir.join("serial")).unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    assert!(!said.contains("BAD"), "{}: {}", dir.display(), &said[said.len().saturating_sub(800)..]);
    said.lines().filter(|line| line.starts_with("TICK ") && line.contains(" OK ")).count()
}

pub(crate) fn wait_for_ticks(dir: &Path, count: usize, within: Duration) {
    let deadline = Instant::now() + within;
    while ticks(dir) < count {
        assert!(Instant::now() < deadline, "{}: {} ticks of {count}", dir.display(), ticks(dir));
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn say(what: &str, report: &Value) {
    let seconds = |value: &Value| value.as_f64().unwrap_or_default();
    let (capture, clones) = (&report["captures"][0], &report["clones"]);
    println!(
        "{what}: captured in {:.0} ms, the source stood for {:.1} ms; first instruction p50 {:.0} ms, last {:.0} ms; {} pages answered; {} \
         bytes on the wire for {} encoded; {:.2} s in all",
        seconds(&capture["total_s"]) * 1e3,
        seconds(&capture["pause_s"]) * 1e3,
        seconds(&clones["first_instruction_p50_s"]) * 1e3,
        seconds(&clones["first_instruction_last_s"]) * 1e3,
        clones["pages_answered"],
        report["network"]["wire_bytes"],
        report["network"]["encoded_bytes"],
        seconds(&report["times"]["total_s"]),
    );
}

#[test]
fn a_running_linux_guest_becomes_eight_on_four_hosts_without_loss_and_with_one_percent() {
    const TEST: &str = "a_running_linux_guest_becomes_eight_on_four_hosts_without_loss_and_with_one_percent";
    let Some(mut qemus) = Qemus::new(TEST, 4, 128, 16) else { return };
    for permille in [0, 10] {
        for host in qemus.fleet.numbers() {
            qemus.fleet.lab.loss(host, Loss::random(permille).of(Scope::Datagrams)).expect("loss");
        }
        let start = Instant::now();
        let plan = qemus.plan(2);
        qemus.start_receivers();
        let sent = qemus.fleet.transfer("clone", &plan, &["--rate", "500M"]).finish().ok();
        say(&format!("8 clones on 4 hosts, {permille} ‰ loss"), &sent.report);
        assert_eq!(sent.report["clones"]["running"], 8, "{}", sent.said);
        let (wire, encoded) = (sent.network("wire_bytes"), sent.network("encoded_bytes"));
        assert!(wire < encoded * 6 / 5, "{wire} bytes for one encoded copy of {encoded}");
        assert!(sent.said.contains("golden captured by live stream"), "{}", sent.said);
        let how = sent.report["clones"]["clones"][0]["how"].as_str().expect("how it runs");
        assert!(how.contains("private memory, by post-copy") && how.contains("vmgenid"), "{how}");
        qemus.check_guests(2);
        println!("all ticked 70 times after {:?}", start.elapsed());
        let before = ticks(&qemus.fleet.dir().join("source"));
        wait_for_ticks(&qemus.fleet.dir().join("source"), before + 3, PATIENCE);
    }
}

#[test]
fn clones_of_a_killed_receiver_do_not_wait_for_pages_that_nobody_brings() {
    const TEST: &str = "clones_of_a_killed_receiver_do_not_wait_for_pages_that_nobody_brings";
    let Some(mut qemus_of) = Qemus::new(TEST, 1, 96, 8) else { return };
    let plan = qemus_of.plan(2);
    qemus_of.start_receivers();
    let mut sending = qemus_of.fleet.transfer("clone", &plan, &["--rate", "20M", "--timeout", "4"]);
    let clones = qemus_of.clones_dir(1);
    let deadline = Instant::now() + PATIENCE;
    while qemus(&clones).len() < 2 || qemus_of.clones(1).iter().any(|clone| ticks(clone) == 0) {
        assert!(sending.running.is_alive() && Instant::now() < deadline, "{}", sending.running.said());
        std::thread::sleep(Duration::from_millis(5));
    }
    qemus_of.fleet.receiver(1).kill();
    assert_ended(&clones);
    let sent = sending.finish().ended(6);
    for clone in 0..2 {
        let clone = &sent.report["clones"]["clones"][clone];
        assert!(
            clone["first_instruction_s"].is_number() && clone["independent_s"].is_null(),
            "{}",
            sent.said
        );
    }
}
