//! Pages that hosts hold already, between tenants.

use crate::support::{Bench, Host, inventory, same_file};
use serde_json::{Value, json};
use std::fs;

/// How a transfer went to a host that holds what the first VM is made of.
struct Went {
    /// Contents that measuring found at the host already.
    measured: u64,
    /// Contents that the host named, and was not sent.
    named: u64,
    /// Bytes of blocks sent.
    sent: u64,
}

/// Sends VM `a` of one tenant, which is `vm0.ram`, and VM `b` of another, which has nothing in common with it. The host has
/// copies of `vm0.ram` under these names.
fn transfer(isolation: &str, held: &[&str]) -> Went {
    let bench = Bench::new();
    bench.images(1, 2);
    bench.keys(&["h1"]);
    let noise: Vec<u8> =
        (0..1u32 << 18).flat_map(|word| word.wrapping_mul(0x9E37_79B1).to_le_bytes()).collect();
    fs::write(bench.path("noise.ram"), &noise).expect("written");
    fs::create_dir(bench.path("images")).expect("made");
    for name in held {
        fs::copy(bench.path("vm0.ram"), bench.path(&format!("images/{name}.ram"))).expect("copied");
    }
    let h1 = Host::start(&bench, "h1", &["--measure", "images"]);
    let vms = [("a", "vm0.ram", json!({"clones": 1})), ("b", "noise.ram", json!({"clones": 1}))];
    let mut inventory = inventory(&vms, &[("h1", h1.port)]);
    inventory["isolation"] = json!(isolation);
    (inventory["vms"][0]["tenant"], inventory["vms"][1]["tenant"]) = (json!("red"), json!("blue"));
    bench.write("inventory.json", &inventory.to_string());
    bench.run(&["measure", "--hosts", "--resident", "inventory.json", "-o", "measured.json"]).ok();
    bench.run(&["plan", "inventory.json", "--signatures", "measured.json", "-o", "plan.json"]).ok();
    let read = |name: &str| -> Value {
        serde_json::from_str(&fs::read_to_string(bench.path(name)).expect("written")).expect("JSON")
    };
    let weights = read("measured.json")["weights"].as_array().expect("weights").clone();
    let resident =
        weights.iter().filter(|weight| weight["resident"].as_array().is_some_and(|at| !at.is_empty()));
    let measured = resident.map(|weight| weight["pages"].as_u64().expect("a count")).sum();
    // The host is asked in any case, as by a plan that was made under other rules.
    let mut plan = read("plan.json");
    plan["resident"] = json!(["h1"]);
    bench.write("plan.json", &plan.to_string());
    let send = [
        "send",
        "--group",
        "plan.json",
        "--keys",
        "keys/src",
        "--timeout",
        "20",
        "--json",
        "--report",
        "report.json",
    ];
    let said = bench.run(&send).ok();
    let events = said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let asked: Vec<Value> = events.filter(|event| event["event"] == "residents").collect();
    let [asked] = &asked[..] else { panic!("asked once: {said}") };
    assert_eq!(asked["failed"], json!([]), "{said}");
    same_file(&bench.path("vm0.ram"), &h1.store.join("a.ram"));
    same_file(&bench.path("noise.ram"), &h1.store.join("b.ram"));
    Went {
        measured,
        named: asked["told"][0]["contents"].as_u64().expect("a count"),
        sent: read("report.json")["network"]["encoded_bytes"].as_u64().expect("a figure"),
    }
}

#[test]
fn strict_isolation_names_no_pages_of_other_tenants_images() {
    // Whoever's the images at the host are, what is in them is not sent.
    let normal = transfer("normal", &["b", "stays"]);
    assert!(normal.measured > 100 && normal.named == normal.measured, "{} {}", normal.measured, normal.named);
    // With tenants apart, neither the other tenant's image counts, nor one of nobody knows whom.
    let strict = transfer("strict", &["b", "stays"]);
    assert_eq!((strict.measured, strict.named), (0, 0));
    assert!(strict.sent > normal.sent + normal.named * 100, "{} {}", strict.sent, normal.sent);
    // The tenant's own older image does.
    let own = transfer("strict", &["a", "b", "stays"]);
    assert_eq!((own.measured, own.named), (normal.measured, normal.named));
    assert!(own.sent < strict.sent, "{} {}", own.sent, strict.sent);
}
