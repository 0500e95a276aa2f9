//! Whether transfers are what the planner foresaw, and the simulator says: bytes on every link, joins and leaves, time.
//! The plan knows the VMs by what their hosts measured, not by their images.

use crate::fleet::{Fleet, name};
use crate::images::{Image, float, guests, mb};
use crate::process::Running;
use lab::hosts::Loss;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::{Duration, Instant};

const TARGETS: u16 = 4;
/// The source's link. Slow enough for any machine: the link binds, not the CPUs.
const RATE_MBPS: u32 = 75;
/// The sender offers more than its link takes, as a network card's queue holds it back: if it had to keep the pace by
/// itself, time without a CPU would be lost.
const SEND_RATE: &str = "90M";
/// Hosts' links are a little faster, so that no burst gets lost there.
const HOST_LINK_BPS: u64 = 85_000_000;
/// How far bytes on a link may be off, in either direction.
const BYTES_OFF_MAX: f64 = 0.05;
/// How far times may be off. Other programs only ever make a transfer longer: it may be tried again.
const TIME_OFF_MAX: f64 = 0.15;
const TRIES: u32 = 3;
/// The switch forgets a member soon after it left.
const SETTLED_MAX: Duration = Duration::from_secs(10);

fn read(fleet: &Fleet, name: &str) -> Value {
    let text = fs::read_to_string(fleet.dir().join(name)).expect("written");
    serde_json::from_str(&text).expect("JSON")
}

fn write(fleet: &Fleet, name: &str, value: &Value) {
    fs::write(fleet.dir().join(name), value.to_string()).expect("written");
}

fn off(figure: u64, foreseen: u64) -> f64 {
    float(figure) / float(foreseen.max(1)) - 1.0
}

/// Weights by VM set.
fn weights(signatures: &Value) -> BTreeMap<String, u64> {
    let of = |weight: &Value| (weight["vms"].to_string(), weight["pages"].as_u64().expect("a count"));
    signatures["weights"].as_array().expect("weights").iter().map(of).collect()
}

/// Has each host measure one VM, the source the first; the signatures are those that one host finds by itself.
fn measured(fleet: &mut Fleet, images: &[Image], inventory: &Value) {
    write(fleet, "inventory.json", inventory);
    fleet.scatter(&["measure", "inventory.json", "-o", "here.json"]);
    let mut apart = inventory.clone();
    for (host, image) in (1..).zip(&images[1..]) {
        let dir = fleet.dir().join(format!("images-{}", name(host)));
        fs::create_dir_all(&dir).expect("made");
        fs::copy(&image.path, dir.join(format!("{}.raw", image.name))).expect("copied");
        fleet.start_measurable(host, &dir);
    }
    fleet.start_measurable(TARGETS, &fleet.dir().join("images-h1").clone());
    for vm in apart["vms"].as_array_mut().expect("VMs").iter_mut().skip(1) {
        vm["image"] = json!("elsewhere");
    }
    write(fleet, "apart.json", &apart);
    let before = fleet.sender_link();
    let said = fleet
        .scatter_on(0, &["measure", "--hosts", "apart.json", "--keys", "keys/src", "-o", "signatures.json"]);
    println!("{}", said.trim());
    let sent = fleet.sender_link() - before;
    let signatures = read(fleet, "signatures.json");
    assert_eq!(weights(&signatures), weights(&read(fleet, "here.json")), "over hosts as on one");
    let hosts = signatures["measured"]["hosts"].as_array().expect("hosts");
    assert_eq!(hosts.len(), usize::from(TARGETS) + 1);
    // 24 bytes for each content would be its whole hash and what is said of it.
    let contents: u64 = images[1..].iter().map(|image| image.content_bytes() / 4096).sum();
    println!("measuring {contents} contents at other hosts put {sent} bytes on the coordinator's link");
    assert!(sent < contents * 24);
}

/// What the switch's forwarding table went through: joins, leaves of group addresses by its ports.
struct Table {
    monitor: Running,
}

impl Table {
    fn watch(fleet: &Fleet) -> Self {
        // Written to a file, its lines would come in blocks.
        let mut command = fleet.lab.switch_command("stdbuf");
        command.args(["-oL", "bridge", "monitor", "mdb"]);
        let log = fleet.dir().join(format!("mdb-{:?}.log", Instant::now()));
        Self { monitor: Running::start(command, "bridge monitor", log) }
    }

    /// Joins and leaves so far, and how many are joined. A report that refreshes a membership is no join.
    fn changes(&self) -> (u64, u64, usize) {
        let (mut joins, mut leaves, mut joined) = (0, 0, BTreeSet::new());
        for line in self.monitor.said().lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let after = |key: &str| {
                let at = words.iter().position(|word| *word == key)?;
                words.get(at + 1).map(|word| (*word).to_owned())
            };
            let (Some(port), Some(group)) = (after("port"), after("grp")) else { continue };
            if !group.starts_with("239.77.") {
                continue;
            }
            if line.starts_with("Deleted") {
                leaves += u64::from(joined.remove(&(port, group)));
            } else {
                joins += u64::from(joined.insert((port, group)));
            }
        }
        (joins, leaves, joined.len())
    }

    /// Joins and leaves, when nobody is joined any more.
    fn settled(&self) -> (u64, u64) {
        let deadline = Instant::now() + SETTLED_MAX;
        loop {
            let (joins, leaves, joined) = self.changes();
            if joined == 0 || Instant::now() > deadline {
                return (joins, leaves);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// One transfer, compared in bytes and joins, and if `judge` in time; whether the time was as foreseen.
fn transfer(fleet: &mut Fleet, plan: &Value, loss_permille: u16, judge: bool) -> bool {
    let predicted = &plan["predicted"];
    let simulate = ["simulate", "plan.json", "--seed", "1", "--json"];
    let simulated: Value = serde_json::from_str(&fleet.scatter_on(0, &simulate)).expect("JSON");
    fleet.start_receivers();
    let table = Table::watch(fleet);
    std::thread::sleep(Duration::from_millis(100));
    let links = |fleet: &Fleet| -> Vec<u64> {
        std::iter::once(fleet.sender_link()).chain(fleet.numbers().map(|host| fleet.downlink(host))).collect()
    };
    let before = links(fleet);
    let path = fleet.dir().join("plan.json");
    let sent = fleet.send(&path, &["--rate", SEND_RATE, "--encoding", "zstd:1"]).finish().ok();
    let after = links(fleet);
    for (at, (before, after)) in before.iter().zip(&after).enumerate() {
        let carried = after - before;
        let foreseen = predicted["links"][at]["network_bytes"].as_u64().expect("a prediction");
        let simulated = simulated["links"][at]["bytes"].as_u64().expect("a count");
        let (from_plan, from_simulation) = (off(carried, foreseen), off(carried, simulated));
        println!(
            "  link of {}: {:.2} MB; foreseen {:.2} ({:+.1} %), simulated {:.2} ({:+.1} %)",
            predicted["links"][at]["name"],
            mb(carried),
            mb(foreseen),
            from_plan * 100.0,
            mb(simulated),
            from_simulation * 100.0
        );
        assert!(from_plan.abs() <= BYTES_OFF_MAX && from_simulation.abs() <= BYTES_OFF_MAX, "{}", sent.said);
    }
    let (joins, leaves) = table.settled();
    let foreseen = predicted["joins"].as_u64().expect("a count");
    println!(
        "  joins {joins}, leaves {leaves} seen by the switch; foreseen {foreseen}, simulated {}",
        simulated["joins"]
    );
    assert_eq!((joins, leaves), (foreseen, foreseen), "{}", sent.said);
    assert_eq!((simulated["joins"].as_u64(), simulated["leaves"].as_u64()), (Some(joins), Some(leaves)));
    let took = sent.last_complete_s(fleet.numbers());
    let foreseen = float(predicted["duration_ms"].as_u64().expect("a time")) / 1e3;
    let micros = |key: &str| float(simulated[key].as_u64().expect("a time")) / 1e6;
    let simulated = micros("done_max_us") - micros("first_datagram_us");
    println!(
        "  {took:.2} s at {loss_permille} ‰ loss; foreseen {foreseen:.2} ({:+.1} %), simulated {simulated:.2} ({:+.1} %)",
        (took / foreseen - 1.0) * 100.0,
        (took / simulated - 1.0) * 100.0
    );
    let good = [foreseen, simulated].iter().all(|time| (took / time - 1.0).abs() <= TIME_OFF_MAX);
    assert!(good || !judge, "took {took:.2} s:\n{}", sent.said);
    good
}

#[test]
fn a_planned_transfer_is_what_was_foreseen() {
    let Some(mut fleet) = Fleet::of("a_planned_transfer_is_what_was_foreseen", TARGETS) else { return };
    let images = guests(TARGETS, fleet.dir());
    // One VM is cloned to three hosts, another to two; no host has room for all.
    let clones = [3, 2, 1, 1];
    let vms: Vec<(&Image, Value)> =
        images.iter().zip(clones).map(|(image, n)| (image, json!({"clones": n}))).collect();
    let room = 2 * images.iter().map(Image::mib).max().expect("images") + 8;
    let mut inventory = fleet.inventory(&vms, fleet.numbers(), room);
    inventory["source"]["rate_mbps"] = json!(RATE_MBPS);
    for host in inventory["hosts"].as_array_mut().expect("hosts") {
        host["rate_mbps"] = json!(RATE_MBPS);
    }
    measured(&mut fleet, &images, &inventory);
    fleet.lab.shape_egress(0, u64::from(RATE_MBPS) * 1_000_000).expect("a rate");
    for host in fleet.numbers() {
        fleet.lab.shape(host, HOST_LINK_BPS).expect("a rate");
    }
    for permille in [0u16, 10] {
        inventory["multicast"]["loss_ppm"] = json!(u32::from(permille) * 1000);
        write(&fleet, "inventory.json", &inventory);
        fleet.scatter(&["plan", "inventory.json", "--signatures", "signatures.json", "-o", "plan.json"]);
        let plan = read(&fleet, "plan.json");
        for host in fleet.numbers() {
            fleet.lab.loss(host, Loss::random(permille)).expect("loss");
        }
        let good = (1..=TRIES).any(|attempt| transfer(&mut fleet, &plan, permille, attempt == TRIES));
        assert!(good);
    }
}
