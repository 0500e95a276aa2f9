//! The files: examples that load, schemas, and refusals that say what to do.

use std::path::PathBuf;

use planner::inventory::{Problem, Target};
use planner::plan::Plan;
use planner::{Inventory, InventoryError, PlanFileError, Signatures, check, make_plan};
use serde_json::{Value, json};

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../examples").join(name)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(path(name)).unwrap_or_else(|error| panic!("examples/{name}: {error}"))
}

fn example_inventory() -> Inventory {
    Inventory::from_json(&read("inventory.json")).unwrap_or_else(|error| panic!("{error}"))
}

pub(crate) fn example_plan() -> Plan {
    let signatures = Signatures::from_json(&read("inventory-signatures.json")).unwrap();
    make_plan(&example_inventory(), Some(&signatures), 0).unwrap_or_else(|error| panic!("{error}"))
}

/// `examples/plan.json` is what `scatter plan` makes of the other two; with PLANNER_BLESS set it is written anew.
#[test]
fn example_plan_is_current() {
    let plan = example_plan();
    if std::env::var_os("PLANNER_BLESS").is_some() {
        std::fs::write(path("plan.json"), plan.to_json()).unwrap();
    }
    let stored = Plan::from_json(&read("plan.json")).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(stored, plan, "run with PLANNER_BLESS=1 and look at the difference");
    check(&stored, Some(&example_inventory())).unwrap();
    assert!(stored.groups.len() > 1, "the example shows groups");
}

#[test]
fn example_of_clones() {
    let inventory =
        Inventory::from_json(&read("inventory-clones.json")).unwrap_or_else(|error| panic!("{error}"));
    let plan = make_plan(&inventory, None, 0).unwrap_or_else(|error| panic!("{error}"));
    let predicted = plan.predicted.as_ref().unwrap();
    assert_eq!(plan.groups.len(), 1);
    assert_eq!(plan.vms[0].hosts.len(), 8);
    assert_eq!(predicted.source_bytes, predicted.unique_bytes);
}

/// Schemas are draft 2020-12, refuse unknown keys and describe every key.
#[test]
fn schemas_document_every_key() {
    for schema in [Inventory::schema(), Plan::schema(), Signatures::schema()] {
        assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
        let objects = schema["$defs"].as_object().into_iter().flat_map(|defs| defs.values()).chain([&schema]);
        for object in objects.filter(|object| object["properties"].is_object()) {
            assert_eq!(object["additionalProperties"], json!(false), "{}", object["title"]);
            for (key, property) in object["properties"].as_object().unwrap() {
                assert!(property["description"].is_string(), "{key} is not described");
            }
        }
    }
}

fn edited(edit: impl FnOnce(&mut Value)) -> Result<Inventory, InventoryError> {
    let mut value: Value = serde_json::from_str(&read("inventory.json")).unwrap();
    edit(&mut value);
    Inventory::from_json(&value.to_string())
}

fn problems(edit: impl FnOnce(&mut Value)) -> Vec<Problem> {
    match edited(edit) {
        Err(InventoryError::Invalid(problems)) => problems.0,
        other => panic!("{other:?}"),
    }
}

#[test]
fn unknown_keys_and_versions_are_refused() {
    let error = edited(|v| v["hosts"][0]["colour"] = json!("red")).unwrap_err();
    assert!(matches!(&error, InventoryError::Json(source) if source.to_string().contains("`colour`")));
    let error = edited(|v| {
        v["version"] = json!(2);
        v["novelty"] = json!(true);
    });
    assert!(matches!(error, Err(InventoryError::Version { found: 2 })));
    let mut plan: Value = serde_json::from_str(&read("plan.json")).unwrap();
    plan["groups"][0]["key"] = json!("secret");
    assert!(matches!(Plan::from_json(&plan.to_string()), Err(PlanFileError::Json(_))));
    plan["version"] = json!(7);
    assert!(matches!(Plan::from_json(&plan.to_string()), Err(PlanFileError::Version { found: 7 })));
}

/// A plan by hand: no groups, no schedule, no predictions.
#[test]
fn plans_may_be_short() {
    let mut plan: Value = serde_json::from_str(&read("plan.json")).unwrap();
    for key in ["groups", "schedule", "predicted", "isolation"] {
        plan.as_object_mut().unwrap().remove(key);
    }
    let plan = Plan::from_json(&plan.to_string()).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(plan.hosts_of_vms().len(), plan.vms.len());
    assert_eq!(plan.group_limits(1_000_000_000).unwrap().memberships_max, 20);
}

/// Each mistake is found, and the message names the thing and a way out.
#[test]
fn mistakes_are_named() {
    type Edit = fn(&mut Value);
    let cases: [(Edit, &str); 17] = [
        (|v| v["hosts"] = json!([]), "`hosts` is empty"),
        (|v| v["hosts"][1]["name"] = v["hosts"][0]["name"].clone(), "two hosts are called `h1`"),
        (|v| v["hosts"][1]["address"] = v["hosts"][0]["address"].clone(), "`h1` and `h2` both have address"),
        (|v| v["hosts"][0]["address"] = json!("10.0.0.1"), "such as 10.0.0.7:47077"),
        (|v| v["hosts"][0]["memory_mib"] = json!(0), "host `h1`: `memory_mib` is 0"),
        (|v| v["hosts"][0]["rack"] = json!("rack-8"), "did you mean `rack-a`?"),
        (|v| v["vms"][0]["name"] = json!("../web"), "holds a path separator"),
        (|v| v["vms"][0]["image"] = json!(""), "`image` is empty"),
        (|v| v["vms"][0]["to"] = json!({"clones": 0}), "`to.clones` is 0"),
        (|v| v["vms"][0]["to"] = json!({"hosts": ["h11"]}), "did you mean `h1`?"),
        (|v| v["vms"][0]["to"] = json!({"hosts": ["h1", "h1"]}), "`to.hosts` names `h1` twice"),
        (
            |v| v["vms"][0]["affinity"] = json!(["nobody-at-all"]),
            "names VM `nobody-at-all`, which is not in `vms`; add it",
        ),
        (|v| v["vms"][0]["anti_affinity"] = json!([v["vms"][0]["name"]]), ", the VM itself"),
        (
            |v| {
                v["vms"][0]["anti_affinity"] = json!([v["vms"][1]["name"]]);
                v["vms"][1]["affinity"] = json!([v["vms"][0]["name"]]);
            },
            "with and apart from",
        ),
        (|v| v["multicast"]["pool"] = json!("10.0.0.0/8"), "is not multicast; take a range"),
        (|v| v["multicast"]["ttl"] = json!(0), "multicast: `ttl` is 0"),
        (|v| v["source"]["address"] = json!("10.0.0.1:80"), "without a port"),
    ];
    for (edit, says) in cases {
        let found = problems(edit);
        assert!(found.iter().any(|p| p.to_string().contains(says)), "expected `{says}`: {found:?}");
    }
    let several = problems(|v| {
        v["hosts"][0]["rate_mbps"] = json!(0);
        v["vms"][0]["vcpus"] = json!(0);
    });
    assert_eq!(several.len(), 2, "all are told at once");
}

#[test]
fn defaults() {
    let inventory = edited(|v| {
        v["vms"][0]
            .as_object_mut()
            .unwrap()
            .retain(|key, _| ["name", "image", "memory_mib"].contains(&key.as_str()));
        v["multicast"] = json!({"pool": "ff15::4d00:0/112"});
    })
    .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((&inventory.vms[0].to, inventory.vms[0].vcpus), (&Target::Clones(1), 1));
    let multicast = &inventory.multicast;
    assert_eq!((multicast.memberships_max, multicast.max_groups, multicast.ttl), (20, 1024, 1));
    assert_eq!((multicast.join_latency_ms, multicast.leave_tail_ms, multicast.port), (20, 2000, 47077));
    assert!(make_plan(&inventory, None, 0).is_ok());
}
