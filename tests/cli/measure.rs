//! Measuring: here and at other hosts, with the same figures; and what a simulation says of the plan.

use crate::support::{Bench, Host, inventory};
use serde_json::{Value, json};
use std::fs;

fn read(bench: &Bench, name: &str) -> Value {
    let text = fs::read_to_string(bench.path(name)).expect("written");
    serde_json::from_str(&text).expect("JSON")
}

/// VM sets and contents.
fn weights(signatures: &Value) -> Vec<(Vec<String>, u64)> {
    let name = |vm: &Value| vm.as_str().expect("a name").to_owned();
    let weight = |weight: &Value| {
        let vms = weight["vms"].as_array().expect("VMs").iter().map(name).collect();
        (vms, weight["pages"].as_u64().expect("a count"))
    };
    signatures["weights"].as_array().expect("weights").iter().map(weight).collect()
}

#[test]
fn hosts_together_measure_what_one_host_measures() {
    let bench = Bench::new();
    bench.images(3, 4);
    bench.keys(&["h1", "h2"]);
    let vm = |name: &'static str, image: &'static str| (name, image, json!({"clones": 1}));
    let (h1, h2) = (
        Host::start(&bench, "h1", &["--measure", "images-h1"]),
        Host::start(&bench, "h2", &["--measure", "images-h2"]),
    );
    let hosts = [("h1", h1.port), ("h2", h2.port)];
    // All images here: the exact merge of one host's memory.
    let all = [vm("a", "vm0.ram"), vm("b", "vm1.ram"), vm("c", "vm2.ram")];
    bench.write("inventory.json", &inventory(&all, &hosts).to_string());
    bench.run(&["plan", "inventory.json", "-o", "plan.json", "--save-signatures", "merged.json"]).ok();
    bench.run(&["measure", "inventory.json", "-o", "here.json"]).ok();
    let mut merged = weights(&read(&bench, "merged.json"));
    merged.iter_mut().for_each(|(vms, _)| vms.sort());
    merged.sort();
    assert!(merged.iter().any(|(vms, pages)| vms.len() == 3 && *pages > 0), "{merged:?}");
    assert_eq!(weights(&read(&bench, "here.json")), merged);
    // One image here, one at each host; a third host's image stays where it is.
    for (host, image, name) in [("h1", "vm1.ram", "b"), ("h2", "vm2.ram", "c"), ("h2", "vm0.ram", "stays")] {
        fs::create_dir_all(bench.path(&format!("images-{host}"))).expect("made");
        let to = bench.path(&format!("images-{host}/{name}.ram"));
        fs::copy(bench.path(image), to).expect("copied");
    }
    let apart = [vm("a", "vm0.ram"), vm("b", "elsewhere.ram"), vm("c", "elsewhere.ram")];
    bench.write("apart.json", &inventory(&apart, &hosts).to_string());
    let said = bench.run(&["measure", "--hosts", "apart.json", "-o", "apart-signatures.json"]).ok();
    assert!(said.contains("stays"), "{said}");
    let signatures = read(&bench, "apart-signatures.json");
    assert_eq!(weights(&signatures), merged);
    let class = |name: &str| signatures["measured"]["classes"][name]["pages"].as_u64().expect("a count");
    assert!(class("shared_across_hosts") > 0 && class("zero") > 0);
    let control: u64 = (signatures["measured"]["hosts"].as_array().expect("hosts").iter())
        .map(|host| host["control_bytes"].as_u64().expect("a count"))
        .sum();
    // Whole hashes of every content at both hosts would be 16 bytes each, and most contents here are in common.
    let contents: u64 = merged.iter().map(|(_, pages)| pages).sum();
    assert!(control < contents * 3 * 24, "{control} bytes for {contents} contents");
    // What planning makes of it needs no images, and is simulated.
    bench.run(&["plan", "apart.json", "--signatures", "apart-signatures.json", "-o", "apart-plan.json"]).ok();
    let simulated = bench.run(&["simulate", "apart-plan.json", "--loss", "10", "--seed", "3", "--json"]).ok();
    let again = bench.run(&["simulate", "apart-plan.json", "--loss", "10", "--seed", "3", "--json"]).ok();
    assert_eq!(simulated, again);
    let simulated: Value = serde_json::from_str(&simulated).expect("JSON");
    assert_eq!(simulated["host_done_us"].as_array().map(Vec::len), Some(2));
    assert!(simulated["repair_bytes"].as_u64() > Some(0));
}

#[test]
fn a_host_that_will_not_be_measured_is_named() {
    let bench = Bench::new();
    bench.images(2, 1);
    bench.keys(&["h1", "h2", "h3"]);
    bench.run(&["keys", "init", "others"]).ok();
    bench.run(&["keys", "host", "others", "src", "--role", "sender"]).ok();
    let vms = [("a", "vm0.ram", json!({"clones": 1})), ("b", "elsewhere.ram", json!({"clones": 1}))];
    let (closed, open) =
        (Host::start(&bench, "h1", &[]), Host::start(&bench, "h2", &["--measure", "images"]));
    fs::create_dir(bench.path("images")).expect("made");
    fs::copy(bench.path("vm1.ram"), bench.path("images/b.ram")).expect("copied");
    let hosts = [("h1", closed.port), ("h2", open.port), ("h3", 1)];
    bench.write("inventory.json", &inventory(&vms, &hosts).to_string());
    let ran = bench.run(&["measure", "--hosts", "inventory.json", "-o", "signatures.json"]);
    assert_eq!(ran.code, Some(5), "{}\n{}", ran.out, ran.err);
    let signatures = read(&bench, "signatures.json");
    let reason =
        |host: &str| signatures["measured"]["not_measured"][host].as_str().unwrap_or_default().to_owned();
    assert!(reason("h1").contains("--measure"), "{}", reason("h1"));
    assert!(!reason("h3").is_empty() && reason("h2").is_empty());
    assert!(weights(&signatures).iter().any(|(vms, _)| vms == &["a", "b"]), "{signatures}");
    // A stranger is told nothing.
    let ran =
        bench.run(&["measure", "--hosts", "inventory.json", "--keys", "others/src", "-o", "stranger.json"]);
    assert_eq!(ran.code, Some(5), "{}\n{}", ran.out, ran.err);
    assert!(weights(&read(&bench, "stranger.json")).iter().all(|(vms, _)| vms == &["a"]));
    let none = inventory(&vms[1..], &hosts);
    bench.write("none.json", &none.to_string());
    assert!(bench.run(&["measure", "none.json"]).fails(3).contains("--hosts"));
}
