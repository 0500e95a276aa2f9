//! Stock QEMU: guests which check their own memory and tick, cloned to hosts in namespaces while their memory arrives.

mod clones;
mod guest;
mod in_place;
mod kvm;
mod libvirt;
mod rehearse;
mod sources;

pub(crate) use guest::{BOOT_WITHIN, Machine, Sweep, linux, ring_three, ticks, wait_for_ticks};

use crate::fleet::{Fleet, PATIENCE, name};
use crate::sending::Sent;
use lab::hosts::LabOptions;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use vmm::qemu::launch::make_overlay;
use vmm::qemu::{Identity, Vm};

/// A source that runs, and hosts whose receivers may start its machine.
struct Qemus {
    // Dropped in this order: the source, whatever the hosts left, the hosts.
    source: Vm,
    _sweep: Sweep,
    fleet: Fleet,
    machine: Machine,
}

impl Qemus {
    fn new(test: &str, hosts: u16, machine: Machine) -> Option<Self> {
        let fleet = Fleet::new(test, LabOptions { hosts: hosts + 1, ..LabOptions::default() })?;
        let sweep = Sweep(fleet.dir().to_owned());
        let dir = fleet.dir().join("source");
        let mut source = Identity::new("source").expect("random bytes");
        if machine.launch.args.iter().any(|arg| arg.contains("{disk}")) {
            let base = fleet.dir().join("base.img");
            File::create(&base).and_then(|file| file.set_len(16 << 20)).expect("a disk");
            fs::create_dir(&dir).expect("a directory");
            let disk = dir.join("disk.qcow2");
            make_overlay(&base, "raw", &disk).expect("qemu-img");
            source.disk = Some(disk);
        }
        let mut source = machine.launch.boot(source, &dir).expect("QEMU");
        wait_for_ticks(&dir, 3, BOOT_WITHIN);
        source.check().expect("it runs");
        let qemus = Self { source, _sweep: sweep, fleet, machine };
        qemus.may_start(&json!({}));
        Some(qemus)
    }

    /// The hosts may start the source's machine; `with` is the rest of what is told of it.
    fn may_start(&self, with: &Value) {
        let mut machine =
            json!({"name": "ticker", "args": self.machine.launch.args, "end-with-receiver": true});
        let fields = with.as_object().expect("a table").clone();
        machine.as_object_mut().expect("a table").extend(fields);
        let config = json!({ "qemu": [machine] });
        fs::write(self.fleet.dir().join("machine.json"), config.to_string()).expect("written");
    }

    fn start_receivers(&mut self) {
        self.fleet.stop_receivers();
        for host in self.fleet.numbers() {
            let clones = self.clones_dir(host);
            let _ = fs::remove_dir_all(&clones);
            self.start_receiver(host);
        }
    }

    /// Beside whatever an earlier one left.
    fn start_receiver(&mut self, host: u16) {
        let (keys, clones) = (format!("keys/{}", name(host)), self.clones_dir(host));
        let clones = clones.to_str().expect("a UTF-8 path");
        let args = ["--launch", "qemu", "--qemu", "machine.json", "--clones", clones];
        self.fleet.start_receiver_args(host, &keys, &[], &args);
    }

    /// A plan that starts so many clones of the running source on each host.
    fn plan(&self, per_host: u64) -> PathBuf {
        self.plan_of(per_host, "qmp:source/user.sock", &json!({"kind": "qemu"}))
    }

    /// The same, of any image.
    fn plan_of(&self, per_host: u64, image: &str, launch: &Value) -> PathBuf {
        let hosts = self.fleet.numbers().len() as u64;
        let vm = json!({"name": "golden", "image": image, "memory_mib": self.machine.mib, "to": {"clones": hosts * per_host},
            "clones_per_host": per_host, "launch": launch});
        let mut inventory = self.fleet.inventory(&[], self.fleet.numbers(), 1 << 20);
        inventory["vms"] = json!([vm]);
        self.fleet.plan_of(&inventory)
    }

    /// A short path, as sockets are in it.
    fn clones_dir(&self, host: u16) -> PathBuf {
        self.fleet.dir().join(format!("c{host}"))
    }

    /// Files of a host's clones.
    fn clones(&self, host: u16) -> Vec<PathBuf> {
        let clones = fs::read_dir(self.clones_dir(host)).expect("clones");
        let clones = clones.map(|entry| entry.expect("an entry").path());
        clones.filter(|path| !waited(path)).collect()
    }

    fn source_dir(&self) -> &Path {
        self.source.dir()
    }

    /// Every clone goes on ticking, over more than a sweep over all of its memory, and finds it right; and so does the source.
    #[track_caller]
    fn check_guests(&self, per_host: usize) {
        for host in self.fleet.numbers() {
            let clones = self.clones(host);
            assert_eq!(clones.len(), per_host, "{clones:?}");
            for clone in clones {
                wait_for_ticks(&clone, self.machine.sweep, PATIENCE);
            }
        }
        wait_for_ticks(self.source_dir(), ticks(self.source_dir()) + 3, PATIENCE);
    }
}

/// Whether a folder is that of a QEMU that waits, or waited, for whoever comes.
pub(crate) fn waited(path: &Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(".warm-"))
}

/// How many QEMUs of a host waited when a VM came, and are that VM's now.
pub(crate) fn taken_warm(clones: &Path) -> usize {
    let links = fs::read_dir(clones).expect("clones").map(|entry| entry.expect("an entry").path());
    links.filter(|path| waited(path) && path.is_symlink() && path.join("qmp.sock").exists()).count()
}

/// How the first clone runs, in the report's words.
fn how(sent: &Sent) -> &str {
    sent.report["clones"]["clones"][0]["how"].as_str().expect("how it runs")
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
