//! Step × fault × outcome of a VM's hand-over. One guest hops from place to place; whatever is killed, cut or full, it runs in
//! exactly one afterwards, or is brought there by what its operator is told to do. The table is that of docs/evacuation.md.

use crate::evacuate::Evacuation;
use crate::fleet::PATIENCE;
use crate::qemu::{ticks, wait_for_ticks};
use crate::sending::Sending;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use vmm::qemu::Qmp;

/// Slow enough for a fault in the middle: a guest takes some seconds.
const SLOW: &str = "60M";

/// When the fault comes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Pages are under way, the VM runs at its source.
    Migrating,
    /// It stands at its source, and its host does not answer yet.
    Paused,
    /// It runs at its host, its pages are under way.
    HandedOver,
}

impl Step {
    fn words(self) -> &'static str {
        match self {
            Self::Migrating => "migrating",
            Self::Paused => "paused",
            Self::HandedOver => "handed over",
        }
    }
}

/// What is to be found, and what has been found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Found {
    Stays,
    Moves,
}

struct Hop {
    evacuation: Evacuation,
    plan: PathBuf,
    rows: Vec<String>,
    turn: u32,
}

impl Hop {
    /// The guest leaves from where it is; all that earlier hops left at hosts but their VMs is gone.
    fn begin(&mut self, step: Step) -> Sending {
        self.turn += 1;
        self.evacuation.clear();
        self.evacuation.start_receiver(1);
        self.plan = self.evacuation.plan();
        let mode: &[&str] = match step {
            Step::Migrating => &["--mode", "hybrid"],
            Step::Paused => &["--mode", "hybrid", "--precopy-timeout", "1"],
            Step::HandedOver => &["--mode", "postcopy"],
        };
        let plan = self.plan.clone();
        let mut sending =
            self.evacuation.fleet.send(&plan, &[&["--rate", SLOW, "--timeout", "6"], mode].concat());
        sending.await_sent(if step == Step::HandedOver { 0 } else { 300_000 });
        if step == Step::Paused {
            // It will stand, and its host will not say that it is ready.
            self.evacuation.fleet.receiver(1).signal(Signal::SIGSTOP);
        }
        self.await_state(step, &mut sending);
        sending
    }

    fn await_state(&self, step: Step, sending: &mut Sending) {
        let deadline = Instant::now() + PATIENCE;
        let arrived = || match step {
            Step::HandedOver => {
                let status = self.evacuation.status(0);
                status["state"] == "handed-over" && !status["figures"]["running"].is_null()
            }
            step => self.evacuation.status(0)["state"] == step.words(),
        };
        while !arrived() {
            let state = self.evacuation.status(0);
            assert!(
                sending.running.is_alive() && Instant::now() < deadline,
                "{state}\n{}",
                sending.running.said()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Goes on with a host that was held up.
    fn go_on(&mut self) {
        self.evacuation.fleet.receiver(1).signal(Signal::SIGCONT);
    }

    fn kill_receiver(&mut self) {
        self.evacuation.fleet.receiver(1).kill();
    }

    /// Kills the receiver while the VM is not its own: nothing of it stays behind.
    fn kill_undecided_receiver(&mut self) {
        let place = self.new_place();
        assert!(!qemus(&place).is_empty(), "a QEMU waits in {}", place.display());
        self.kill_receiver();
        assert_ended(&place);
    }

    /// Ends the QEMU of this directory.
    fn kill_vm(dir: &Path) {
        for pid in qemus(dir) {
            kill(pid, Signal::SIGKILL).expect("a QEMU of this test");
        }
    }

    /// The VM's new place at its host, which may not run yet.
    fn new_place(&self) -> PathBuf {
        let clones = self.evacuation.clones_dir(1);
        let dirs = fs::read_dir(clones).expect("places").flatten().map(|entry| entry.path());
        dirs.filter(|dir| *dir != self.evacuation.source_dir(0)).max().expect("a new place")
    }

    /// What `scatter status` says.
    fn status(&self) -> String {
        self.evacuation.fleet.scatter_on(0, &["status", "--group", "plan.json", "--keys", "keys/src"])
    }

    fn send_again(&mut self) {
        let plan = self.plan.clone();
        self.evacuation.fleet.send(&plan, &["--rate", SLOW, "--mode", "hybrid"]).finish().ok();
    }

    /// Exactly one runs, where it is to; and from there it hops on.
    fn end(&mut self, step: Step, fault: &str, found: Found, outcome: &str) {
        match found {
            Found::Stays => self.evacuation.check_stayed(0),
            Found::Moves => {
                self.evacuation.check_moved(0);
                self.evacuation.settle();
            }
        }
        let row = format!("| {} | {fault} | {outcome} |", step.words());
        println!("{} {row}", self.turn);
        self.rows.push(row);
    }
}

/// A QEMU in post-copy shuts its socket, as if that broke.
fn cut_socket(dir: &Path) {
    let mut qmp = Qmp::connect(dir.join("leave.sock"), PATIENCE).expect("its second monitor");
    let deadline = Instant::now() + PATIENCE;
    // Refused until it is in post-copy.
    while let Err(error) = qmp.execute_out_of_band("migrate-pause", Value::Null) {
        assert!(Instant::now() < deadline, "{error}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// No QEMU has files in this directory any more.
#[track_caller]
pub(crate) fn assert_ended(dir: &Path) {
    let deadline = Instant::now() + PATIENCE;
    while !qemus(dir).is_empty() {
        assert!(Instant::now() < deadline, "{:?} of {} are left", qemus(dir), dir.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Processes of QEMU with files in this directory.
pub(crate) fn qemus(dir: &Path) -> Vec<Pid> {
    let wanted = format!("{}/", dir.display());
    let processes = fs::read_dir("/proc").expect("processes").flatten();
    let of = |process: fs::DirEntry| -> Option<Pid> {
        let pid = process.file_name().to_string_lossy().parse::<i32>().ok()?;
        let line = fs::read(process.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).into_owned();
        (line.starts_with("qemu-system") && line.contains(&wanted)).then(|| Pid::from_raw(pid))
    };
    processes.filter_map(of).collect()
}

#[test]
fn faults_at_each_step_leave_one_running_vm() {
    const TEST: &str = "faults_at_each_step_leave_one_running_vm";
    let Some(evacuation) = Evacuation::new(TEST, 1, 1, 96, 16) else { return };
    let mut hop = Hop { evacuation, plan: PathBuf::new(), rows: Vec::new(), turn: 0 };
    while_it_runs_at_its_source(&mut hop);
    while_it_stands(&mut hop);
    once_it_is_its_hosts(&mut hop);
    let docs = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/evacuation.md"));
    let docs = docs.expect("the page of this table");
    for row in &hop.rows {
        assert!(
            docs.contains(row),
            "docs/evacuation.md lacks this row; its table is:\n{}",
            hop.rows.join("\n")
        );
    }
}

fn while_it_runs_at_its_source(hop: &mut Hop) {
    let step = Step::Migrating;
    let mut sending = hop.begin(step);
    sending.running.kill();
    hop.end(step, "sender killed", Found::Stays, "runs at its source");

    let sending = hop.begin(step);
    hop.kill_undecided_receiver();
    sending.finish().ended(6);
    hop.end(step, "receiver killed", Found::Stays, "runs at its source; the host is named as failed");

    let sending = hop.begin(step);
    Hop::kill_vm(&hop.new_place());
    sending.finish();
    hop.end(step, "the host's waiting QEMU killed", Found::Stays, "runs at its source");

    let sending = hop.begin(step);
    hop.evacuation.fleet.scatter(&["cancel", "--group", "plan.json"]);
    sending.finish();
    hop.end(step, "`scatter cancel`", Found::Stays, "runs at its source");

    let sending = hop.begin(step);
    hop.evacuation.fleet.lab.cut(1).expect("cut");
    std::thread::sleep(Duration::from_secs(1));
    hop.evacuation.fleet.lab.restore(1).expect("restored");
    sending.finish().ok();
    hop.end(step, "link cut for 1 s", Found::Moves, "runs at its host");
}

fn while_it_stands(hop: &mut Hop) {
    let step = Step::Paused;
    let mut sending = hop.begin(step);
    sending.running.kill();
    hop.go_on();
    hop.end(step, "sender killed", Found::Stays, "runs at its source at once, by itself");

    let mut sending = hop.begin(step);
    sending.running.kill();
    hop.go_on();
    // What the host has of it is of another moment: it has run on since.
    hop.evacuation.check_stayed(0);
    hop.send_again();
    hop.end(step, "sender killed and started again", Found::Moves, "runs at its host");

    let sending = hop.begin(step);
    hop.kill_undecided_receiver();
    sending.finish().ended(6);
    hop.end(step, "receiver killed", Found::Stays, "runs at its source");

    let sending = hop.begin(step);
    Hop::kill_vm(&hop.new_place());
    hop.go_on();
    sending.finish();
    hop.end(step, "the host's QEMU killed", Found::Stays, "runs at its source");

    let sending = hop.begin(step);
    hop.evacuation.fleet.scatter(&["cancel", "--group", "plan.json"]);
    hop.go_on();
    sending.finish();
    hop.end(step, "`scatter cancel`", Found::Stays, "runs at its source");

    let sending = hop.begin(step);
    let full = hop.evacuation.fleet.dir().join("plan.json.handover/v0.new");
    fs::create_dir(&full).expect("made");
    hop.go_on();
    sending.finish();
    hop.end(step, "no room for the source's decision", Found::Stays, "runs at its source");

    let sending = hop.begin(step);
    let full = hop.evacuation.fleet.store(1).join(".scatter/host-lane.v0.undecided");
    fs::create_dir(&full).expect("made");
    hop.go_on();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(hop.evacuation.status(0)["state"], "handed-over");
    assert_eq!(ticks(&hop.new_place()), 0, "it was not started");
    fs::remove_dir(&full).expect("removed");
    sending.finish().ok();
    hop.end(
        step,
        "no room for the host's decision",
        Found::Moves,
        "stands until there is room, then runs at its host",
    );
}

fn once_it_is_its_hosts(hop: &mut Hop) {
    let step = Step::HandedOver;
    let mut sending = hop.begin(step);
    sending.running.kill();
    let said = hop.status();
    assert!(said.contains("v0: handed over, to h1; no sender brings its pages"), "{said}");
    hop.send_again();
    hop.end(
        step,
        "sender killed",
        Found::Moves,
        "runs at its host, waits at a missing page; the same `scatter send` brings the rest",
    );

    let sending = hop.begin(step);
    hop.kill_receiver();
    hop.evacuation.start_receiver(1);
    sending.finish().ok();
    hop.end(
        step,
        "receiver killed and started again",
        Found::Moves,
        "runs at its host, by post-copy recovery",
    );

    let sending = hop.begin(step);
    cut_socket(&hop.new_place());
    sending.finish().ok();
    let said = hop.evacuation.fleet.receiver(1).said();
    assert!(said.contains("the link to a VM broke: it is made anew"), "{said}");
    hop.end(
        step,
        "socket between receiver and QEMU cut",
        Found::Moves,
        "runs at its host, by post-copy recovery",
    );

    let sending = hop.begin(step);
    Hop::kill_vm(&hop.evacuation.source_dir(0));
    sending.finish().ok();
    hop.end(step, "the source's QEMU killed", Found::Moves, "runs at its host");

    let sending = hop.begin(step);
    let said = hop.evacuation.fleet.refused(&["cancel", "--group", "plan.json"]);
    assert!(said.contains("cannot stay here"), "{said}");
    let said = hop.status();
    assert!(said.contains("v0: to h1: handed over, stood") && said.contains("pages by themselves"), "{said}");
    sending.finish().ok();
    hop.end(step, "`scatter cancel`", Found::Moves, "refused in words; runs at its host");

    let sending = hop.begin(step);
    hop.evacuation.fleet.lab.cut(1).expect("cut");
    std::thread::sleep(Duration::from_secs(1));
    hop.evacuation.fleet.lab.restore(1).expect("restored");
    sending.finish().ok();
    let dir = hop.evacuation.target_dir(0).expect("it runs");
    wait_for_ticks(&dir, ticks(&dir) + 3, PATIENCE);
    hop.end(step, "link cut for 1 s", Found::Moves, "runs at its host");

    let sending = hop.begin(step);
    hop.evacuation.fleet.lab.cut(1).expect("cut");
    let sent = sending.finish().ended(6);
    assert!(sent.said.contains("v0 → h1: handed over"), "{}", sent.said);
    hop.evacuation.fleet.lab.restore(1).expect("restored");
    hop.send_again();
    hop.end(
        step,
        "link cut until the sender gives up",
        Found::Moves,
        "runs at its host, waits at a missing page; the same `scatter send` brings the rest",
    );
}
