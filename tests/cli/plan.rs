//! Plans: made from inventories, measured or not, and refused.

use crate::support::{Bench, inventory};
use serde_json::{Value, json};
use std::path::Path;

fn read(bench: &Bench, name: &str) -> Value {
    let text = std::fs::read_to_string(bench.path(name)).expect("written");
    serde_json::from_str(&text).expect("JSON")
}

#[test]
fn images_that_are_here_are_measured() {
    let bench = Bench::new();
    bench.images(2, 4);
    let both = [("a", "vm0.ram", json!({"clones": 2})), ("b", "vm1.ram", json!({"clones": 1}))];
    bench.write("inventory.json", &inventory(&both, &[("h1", 1), ("h2", 2)]).to_string());
    let said =
        bench.run(&["plan", "inventory.json", "-o", "plan.json", "--save-signatures", "weights.json"]).ok();
    assert!(said.contains("measured 2 images"), "{said}");
    let measured = read(&bench, "plan.json");
    assert_eq!(measured["predicted"]["measured"], true);
    let said = bench.run(&["plan", "inventory.json", "-o", "assumed.json", "--no-measure"]).ok();
    assert!(said.contains("assumed"), "{said}");
    let assumed = read(&bench, "assumed.json");
    let unique = |plan: &Value| plan["predicted"]["unique_bytes"].as_u64().expect("a figure");
    // 4 MiB images, 64 MiB of VM memory by the inventory.
    assert_eq!(unique(&assumed), 128 << 20);
    assert!(unique(&measured) < 4 << 20, "{}", unique(&measured));
    // Weights measured earlier give the same plan without the images.
    std::fs::remove_file(bench.path("vm0.ram")).expect("removed");
    std::fs::remove_file(bench.path("vm1.ram")).expect("removed");
    bench.run(&["plan", "inventory.json", "-o", "again.json", "--signatures", "weights.json"]).ok();
    // Only that the images were looked at then tells the two apart.
    let mut without_stamps = measured;
    for vm in without_stamps["vms"].as_array_mut().expect("a list") {
        let stamp = vm.as_object_mut().expect("a VM").remove("stamp").expect("it was looked at");
        assert_eq!(stamp["bytes"], 4 << 20);
    }
    assert_eq!(read(&bench, "again.json"), without_stamps);
    let said = bench.run(&["plan", "inventory.json", "-o", "plan.json"]).ok();
    assert!(said.contains("no image can be read here"), "{said}");
}

#[test]
fn a_plan_elsewhere_finds_the_images() {
    let bench = Bench::new();
    bench.images(1, 1);
    bench.write(
        "inventory.json",
        &inventory(&[("a", "vm0.ram", json!({"clones": 1}))], &[("h1", 1)]).to_string(),
    );
    std::fs::create_dir(bench.path("plans")).expect("made");
    bench.run(&["plan", "inventory.json", "-o", "plans/plan.json"]).ok();
    let image = read(&bench, "plans/plan.json")["vms"][0]["image"].as_str().expect("a path").to_owned();
    assert!(Path::new(&image).is_absolute() && Path::new(&image).is_file(), "{image}");
    bench.run(&["plan", "inventory.json", "-o", "plan.json"]).ok();
    assert_eq!(read(&bench, "plan.json")["vms"][0]["image"], "vm0.ram");
    // Without -o the plan is all of standard output.
    let plan: Value = serde_json::from_str(&bench.run(&["plan", "inventory.json"]).ok()).expect("JSON");
    assert_eq!(plan["name"], "test");
}

#[test]
fn the_example_can_be_planned() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/inventory.json");
    let bench = Bench::new();
    let example = example.to_str().expect("UTF-8");
    bench.run(&["plan", example, "-o", "plan.json"]).ok();
    // A plan is checked before anything else: then it is the keys that are missing.
    let wrong = bench.run(&["send", "--group", "plan.json", "--interface", "lo"]).fails(3);
    assert!(wrong.contains("keys"), "{wrong}");
}

#[test]
fn bad_inventories_are_refused_with_the_way_out() {
    let bench = Bench::new();
    let good = inventory(&[("a", "vm0.ram", json!({"clones": 1}))], &[("h1", 1)]);
    let mut unknown = good.clone();
    unknown["hosts"][0]["memory_gib"] = json!(4);
    bench.write("unknown.json", &unknown.to_string());
    let wrong = bench.run(&["plan", "unknown.json"]).fails(3);
    assert!(wrong.contains("memory_gib") && wrong.contains("schema inventory"), "{wrong}");
    let mut later = good.clone();
    later["version"] = json!(9);
    bench.write("later.json", &later.to_string());
    assert!(bench.run(&["plan", "later.json"]).fails(3).contains("version 9"));
    let mut full = good;
    full["hosts"][0]["memory_mib"] = json!(32);
    bench.write("full.json", &full.to_string());
    let wrong = bench.run(&["plan", "full.json"]).fails(4);
    assert!(wrong.contains("h1") || wrong.contains("memory"), "{wrong}");
    assert!(bench.run(&["plan", "absent.json"]).fails(3).contains("absent.json"));
}

/// Images and inventories that changed after a plan was made of them make it stale.
#[test]
fn stale_plans_are_not_sent() {
    let bench = Bench::new();
    bench.images(2, 1);
    let both = [("a", "vm0.ram", json!({"clones": 1})), ("b", "vm1.ram", json!({"clones": 1}))];
    let mut wanted = inventory(&both, &[("h1", 1), ("h2", 2)]);
    bench.write("inventory.json", &wanted.to_string());
    bench.run(&["plan", "inventory.json", "-o", "plan.json"]).ok();
    let sent = || bench.run(&["send", "--group", "plan.json", "--interface", "lo"]);
    // Fresh: then it is the keys that are missing.
    assert!(sent().fails(3).contains("keys"));
    // What the plan does not depend on may change; what it breaks may not.
    wanted["hosts"][0]["memory_mib"] = json!(1 << 20);
    bench.write("inventory.json", &wanted.to_string());
    let wrong = sent().fails(4);
    assert!(wrong.contains("stale: host `h1` changed: `memory_mib` was"), "{wrong}");
    std::fs::remove_file(bench.path("inventory.json")).expect("removed");
    assert!(sent().fails(3).contains("keys"));
    let image = std::fs::OpenOptions::new().write(true).open(bench.path("vm1.ram")).expect("opened");
    image.set_modified(std::time::UNIX_EPOCH).expect("set");
    let wrong = sent().fails(4);
    assert!(wrong.contains("stale: VM `b`: image vm1.ram was written since"), "{wrong}");
    image.set_len(4096).expect("cut");
    let wrong = sent().fails(4);
    assert!(wrong.contains("had 1048576 bytes when the plan was made, and has 4096"), "{wrong}");
}

#[test]
fn plans_that_do_not_hold_are_not_sent() {
    let bench = Bench::new();
    bench.images(1, 1);
    bench.keys(&["h1"]);
    let good = inventory(&[("a", "vm0.ram", json!({"clones": 2}))], &[("h1", 1), ("h2", 2)]);
    bench.write("inventory.json", &good.to_string());
    bench.run(&["plan", "inventory.json", "-o", "plan.json"]).ok();
    let plan = read(&bench, "plan.json");
    let refused = |change: &dyn Fn(&mut Value), code: i32, word: &str| {
        let mut bad = plan.clone();
        change(&mut bad);
        bench.write("bad.json", &bad.to_string());
        let wrong = bench.run(&["send", "--group", "bad.json"]).fails(code);
        assert!(wrong.contains(word), "`{word}` is not in: {wrong}");
    };
    refused(&|plan| plan["vms"][0]["hosts"][0] = json!("h9"), 4, "h9");
    refused(&|plan| plan["vms"][0]["name"] = json!("../../etc/passwd"), 4, "file name");
    refused(&|plan| plan["groups"][0]["address"] = json!("10.0.0.1"), 4, "10.0.0.1");
    refused(&|plan| plan["hosts"][1]["name"] = json!("h1"), 4, "h1");
    refused(&|plan| plan["surprise"] = json!(1), 3, "surprise");
    refused(&|plan| plan["version"] = json!(2), 3, "version 2");
    refused(&|plan| plan["vms"][0]["image"] = json!("absent.ram"), 3, "absent.ram");
    refused(&|plan| plan["source"]["address"] = json!("203.0.113.9"), 8, "203.0.113.9");
}

#[test]
fn an_operators_questions_have_answers() {
    let bench = Bench::new();
    bench.images(3, 4);
    let vms = [
        ("a", "vm0.ram", json!({"clones": 1})),
        ("b", "vm1.ram", json!({"clones": 1})),
        ("c", "vm2.ram", json!({"clones": 2})),
    ];
    bench.write("inventory.json", &inventory(&vms, &[("h1", 1), ("h2", 2)]).to_string());
    let said = bench.run(&["plan", "inventory.json", "--explain"]).ok();
    for vm in ["a", "b", "c"] {
        assert!(said.contains(&format!("\n{vm} → h")), "{said}");
    }
    assert!(said.contains("it would cost"), "{said}");
    let said = bench.run(&["plan", "inventory.json", "--explain=b"]).ok();
    assert!(said.contains("\nb → h") && !said.contains("\na → h"), "{said}");
    assert!(bench.run(&["plan", "inventory.json", "--explain=x"]).fails(2).contains("no VM `x`"));
    let said = bench.run(&["plan", "inventory.json", "--apart", "a,b", "--groups"]).ok();
    assert!(said.contains("with a and b apart:") && said.contains("so it costs"), "{said}");
    assert!(said.contains("addresses") && said.contains("enough"), "{said}");
    // c wants two hosts: without one of them there is no plan, which is an answer.
    let ran = bench.run(&["plan", "inventory.json", "--without", "h2"]);
    assert_eq!(ran.code, Some(4), "{}\n{}", ran.out, ran.err);
    assert!(ran.out.contains("without h2: there is no plan"), "{}", ran.out);
    assert!(bench.run(&["plan", "inventory.json", "--without", "h9"]).fails(2).contains("h9"));
    let said = bench.run(&["plan", "inventory.json", "-o", "plan.json", "--svg", "plan.svg"]).ok();
    assert!(said.contains("drew plan.svg") && bench.path("plan.json").is_file(), "{said}");
    let svg = std::fs::read_to_string(bench.path("plan.svg")).expect("drawn");
    assert!(svg.starts_with("<svg ") && svg.contains(">h2<"));
}
