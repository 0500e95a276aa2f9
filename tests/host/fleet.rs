//! A sender and receivers on a lab's hosts, with keys, stores, plans and counters.

use crate::images::{Image, is_same};
use crate::process::Running;
use crate::sending::{Meter, Sending};
use lab::hosts::{Lab, LabOptions, lab_for_test};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const SCATTER: &str = env!("CARGO_BIN_EXE_scatter");
const CONTROL_PORT: u16 = 7_700;
const DATA_PORT: u16 = 7_701;
/// More than any one transfer here takes, on a busy machine too.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// All other tests of this lane may go before.
const TURN_MAX: Duration = Duration::from_secs(900);
/// Directories of tests: memory, not a disk, is under the stores, as disks differ and are not what is tested.
const PREFIX: &str = "scatter-host-";

/// Hosts of a lab: 0 sends, the others receive.
pub(crate) struct Fleet {
    // Dropped in this order: what runs on the hosts, the hosts, the files, and then it is another test's turn.
    receivers: Vec<Option<Running>>,
    pub(crate) lab: Lab,
    dir: tempfile::TempDir,
    started: u32,
    _turn: File,
}

impl Fleet {
    /// `None`, and why is printed, if there can be no lab.
    pub(crate) fn new(test: &str, options: LabOptions) -> Option<Self> {
        if !lab_for_test(test) {
            return None;
        }
        let turn = take_turn();
        println!("--- {test}: {} receivers, MTU {}", options.hosts - 1, options.mtu);
        let place = place();
        sweep(&place);
        let dir = tempfile::Builder::new().prefix(PREFIX).tempdir_in(place).expect("a temporary directory");
        let receivers = (0..options.hosts).map(|_| None).collect();
        let lab = Lab::new(options).expect("a lab");
        let fleet = Self { receivers, lab, dir, started: 0, _turn: turn };
        fleet.scatter(&["keys", "init", "keys"]);
        fleet.scatter(&["keys", "host", "keys", "src", "--role", "sender"]);
        for host in fleet.numbers() {
            fleet.scatter(&["keys", "host", "keys", &name(host)]);
        }
        Some(fleet)
    }

    /// As [`Self::new`], with so many receivers at an MTU of 1,500 and nothing special.
    pub(crate) fn of(test: &str, receivers: u16) -> Option<Self> {
        Self::new(test, LabOptions { hosts: receivers + 1, ..LabOptions::default() })
    }

    /// The receivers' numbers.
    pub(crate) fn numbers(&self) -> std::ops::Range<u16> {
        1..self.lab.options().hosts
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn store(&self, host: u16) -> PathBuf {
        self.dir().join(format!("store-{}", name(host)))
    }

    /// Runs a command of the binary here, to its good end.
    #[track_caller]
    pub(crate) fn scatter(&self, args: &[&str]) {
        let mut command = Command::new(SCATTER);
        let ran = command.current_dir(self.dir()).args(args).env_remove("SCATTER_KEYS").output();
        let ran = ran.expect("scatter runs");
        assert!(ran.status.success(), "{args:?}: {}", String::from_utf8_lossy(&ran.stderr));
    }

    /// Runs a command of the binary here, which is to fail; what it said.
    #[track_caller]
    pub(crate) fn refused(&self, args: &[&str]) -> String {
        let mut command = Command::new(SCATTER);
        let ran = command.current_dir(self.dir()).args(args).env_remove("SCATTER_KEYS").output();
        let ran = ran.expect("scatter runs");
        assert!(!ran.status.success(), "{args:?} did not fail");
        [ran.stdout, ran.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat()
    }

    /// The binary on a host. Whatever else keeps the machine busy must not look like a slow host, so it goes first where
    /// that is allowed; `wrapper` runs it, if there is one.
    fn command(&self, host: u16, wrapper: &[&str]) -> Command {
        let mut command = self.lab.host(host).command("nice");
        command.args(["-n", "-10"]).args(wrapper).arg(SCATTER).current_dir(self.dir());
        command.env_remove("SCATTER_KEYS").env_remove("SCATTER_LOG");
        command
    }

    /// Receivers on all hosts, with empty stores.
    pub(crate) fn start_receivers(&mut self) {
        self.stop_receivers();
        self.numbers().for_each(|host| self.start_receiver(host));
    }

    /// A receiver with its usual keys and whatever its store holds.
    pub(crate) fn start_receiver(&mut self, host: u16) {
        let keys = format!("keys/{}", name(host));
        self.start_receiver_with(host, &keys, &[]);
    }

    /// A receiver with these keys, run by `wrapper`. Waits until it listens.
    pub(crate) fn start_receiver_with(&mut self, host: u16, keys: &str, wrapper: &[&str]) {
        self.start_receiver_args(host, keys, wrapper, &[]);
    }

    /// A receiver whose images in this directory may be measured.
    pub(crate) fn start_measurable(&mut self, host: u16, images: &Path) {
        let images = images.to_str().expect("a UTF-8 path");
        self.start_receiver_args(host, &format!("keys/{}", name(host)), &[], &["--measure", images]);
    }

    /// The same, with further flags.
    pub(crate) fn start_receiver_args(&mut self, host: u16, keys: &str, wrapper: &[&str], args: &[&str]) {
        self.started += 1;
        let log = self.dir().join(format!("{}-{}.log", name(host), self.started));
        let mut command = self.command(host, wrapper);
        command
            .args(["receive", "--while-stdin", "--interface", self.lab.host(host).interface()])
            .args(["--name", &name(host), "--listen", &self.address(host).to_string(), "--keys", keys])
            .args(["--workers", "2", "--store"])
            .arg(self.store(host))
            .args(args);
        let mut running = Running::start(command, &name(host), log);
        running.await_words("listening", PATIENCE);
        self.receivers[usize::from(host)] = Some(running);
    }

    pub(crate) fn receiver(&mut self, host: u16) -> &mut Running {
        self.receivers[usize::from(host)].as_mut().expect("started")
    }

    /// Ends all receivers and removes their stores.
    pub(crate) fn stop_receivers(&mut self) {
        self.receivers.iter_mut().for_each(|receiver| *receiver = None);
        for host in self.numbers() {
            match fs::remove_dir_all(self.store(host)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => panic!("{error}"),
                _ => {}
            }
        }
    }

    fn address(&self, host: u16) -> SocketAddr {
        let host = self.lab.host(host);
        let address = host.addr6().map_or(IpAddr::V4(host.addr()), IpAddr::V6);
        SocketAddr::new(address, CONTROL_PORT)
    }

    /// A plan that clones each image to all of `hosts`.
    pub(crate) fn clone_plan(&self, images: &[Image], hosts: std::ops::Range<u16>) -> PathBuf {
        let copies = hosts.len();
        let vms = images.iter().map(|image| (image, json!({ "clones": copies })));
        self.plan(vms.collect(), hosts, 1 << 20)
    }

    /// A plan for images with their targets, on `hosts` with so much memory each.
    pub(crate) fn plan(
        &self,
        vms: Vec<(&Image, Value)>,
        hosts: std::ops::Range<u16>,
        memory_mib: u64,
    ) -> PathBuf {
        self.plan_of(&self.inventory(&vms, hosts, memory_mib))
    }

    /// The plan of an inventory.
    pub(crate) fn plan_of(&self, inventory: &Value) -> PathBuf {
        fs::write(self.dir().join("inventory.json"), inventory.to_string()).expect("written");
        self.scatter(&["plan", "inventory.json", "-o", "plan.json"]);
        self.dir().join("plan.json")
    }

    /// The inventory of such a plan.
    pub(crate) fn inventory(
        &self,
        vms: &[(&Image, Value)],
        hosts: std::ops::Range<u16>,
        memory_mib: u64,
    ) -> Value {
        let vm = |(image, to): &(&Image, Value)| json!({"name": image.name, "image": image.path, "memory_mib": image.mib(), "to": to});
        let host = |host: u16| {
            json!({"name": name(host), "address": self.address(host).to_string(), "memory_mib": memory_mib,
                "vcpus": 64, "rate_mbps": 1000})
        };
        let pool = if self.lab.options().ipv6 { "ff15::4d00:0/112" } else { "239.77.0.0/16" };
        json!({
            "version": 1,
            "name": "host-lane",
            "source": {"name": "src", "rate_mbps": 1000},
            "hosts": hosts.map(host).collect::<Vec<_>>(),
            "vms": vms.iter().map(vm).collect::<Vec<_>>(),
            "multicast": {"pool": pool, "port": DATA_PORT},
        })
    }

    /// Runs the binary on a host, to its good end; what it said.
    #[track_caller]
    pub(crate) fn scatter_on(&self, host: u16, args: &[&str]) -> String {
        let ran = self.command(host, &[]).args(args).output().expect("scatter runs");
        assert!(ran.status.success(), "{args:?}: {}", String::from_utf8_lossy(&ran.stderr));
        String::from_utf8_lossy(&ran.stdout).into_owned()
    }

    /// Starts sending a plan.
    pub(crate) fn send(&mut self, plan: &Path, args: &[&str]) -> Sending {
        self.transfer("send", plan, args)
    }

    /// Starts `send` or `clone` with a plan.
    pub(crate) fn transfer(&mut self, how: &str, plan: &Path, args: &[&str]) -> Sending {
        self.started += 1;
        let report = self.dir().join(format!("report-{}.json", self.started));
        let log = self.dir().join(format!("send-{}.log", self.started));
        let mut command = self.command(0, &[]);
        command.args([how, "--keys", "keys/src", "--interface", self.lab.host(0).interface()]).args(args);
        command.arg("--group").arg(plan).arg("--report").arg(&report);
        let meter = Meter::start(&self.lab);
        Sending { running: Running::start(command, "scatter send", log), report, meter }
    }

    /// Checks that hosts have exactly these images, whole, and nothing half-done.
    #[track_caller]
    pub(crate) fn check_images(&self, images: &[Image], hosts: impl Iterator<Item = u16> + Clone) {
        for image in images {
            let source = fs::read(&image.path).expect("an image");
            for host in hosts.clone() {
                let rebuilt = self.store(host).join(format!("{}.ram", image.name));
                assert!(rebuilt.exists(), "{} is missing", rebuilt.display());
                assert!(is_same(&source, &rebuilt), "{} is not its source", rebuilt.display());
            }
        }
        for host in hosts {
            let mut there = self.finished(host);
            there.sort();
            let mut wanted: Vec<String> = images.iter().map(|image| image.name.clone()).collect();
            wanted.sort();
            assert_eq!(there, wanted, "finished images of {}", name(host));
        }
    }

    /// Names of the finished images of a host.
    pub(crate) fn finished(&self, host: u16) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.store(host)) else { return Vec::new() };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        names.filter_map(|name| name.strip_suffix(".ram").map(str::to_owned)).collect()
    }

    /// All bytes that the sender's interface sent so far, headers counted.
    pub(crate) fn sender_link(&self) -> u64 {
        self.lab.counters(0).expect("counters").host.tx_bytes
    }

    /// All bytes that the switch sent to a host so far.
    pub(crate) fn downlink(&self, host: u16) -> u64 {
        self.lab.counters(host).expect("counters").port.tx_bytes
    }
}

/// A host's name.
pub(crate) fn name(host: u16) -> String {
    format!("h{host}")
}

/// Waits until no other test of this lane runs, in this process or another.
fn take_turn() -> File {
    let path = std::env::temp_dir().join("scatter-host-lane.lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path).expect("a lock file");
    let deadline = Instant::now() + TURN_MAX;
    while file.try_lock().is_err() {
        assert!(Instant::now() < deadline, "{} is locked for more than {TURN_MAX:?}", path.display());
        std::thread::sleep(Duration::from_millis(50));
    }
    file
}

fn place() -> PathBuf {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() }
}

/// Removes what killed tests left: it is nobody else's turn.
fn sweep(place: &Path) {
    for entry in fs::read_dir(place).expect("a directory").flatten() {
        if entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX)) {
            // Another user's stays.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
