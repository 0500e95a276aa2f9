use super::*;
use crate::{Inventory, Plan, Signatures, make_plan, picture};
use serde_json::{Value, json};

/// web1, web2 and web3 have much in common; db is apart. h4 is too small for another.
fn made(change: impl Fn(&mut Value)) -> (Inventory, Signatures, Plan) {
    let host = |name: &str, memory: u64| json!({"name": name, "address": "10.0.0.1:47078", "memory_mib": memory, "vcpus": 8, "rate_mbps": 1000});
    let vm = |name: &str| json!({"name": name, "image": name, "memory_mib": 1024});
    let mut inventory = json!({
        "version": 1, "name": "t", "source": {"name": "s", "rate_mbps": 1000},
        "hosts": [host("h1", 1024), host("h2", 3072), host("h3", 2048), host("h4", 512)],
        "vms": [vm("web1"), vm("web2"), vm("web3"), vm("db")],
        "multicast": {"pool": "239.77.0.0/16"},
    });
    for (at, host) in inventory["hosts"].as_array_mut().unwrap().iter_mut().enumerate() {
        host["address"] = json!(format!("10.0.0.{}:47078", at + 1));
    }
    change(&mut inventory);
    let mib = 1u64 << 20;
    let weight = |vms: &[&str], size: u64| json!({"vms": vms, "pages": size * 256, "bytes": size * mib});
    let signatures = json!({"version": 1, "weights": [
        weight(&["web1", "web2", "web3"], 84), weight(&["web1"], 20), weight(&["web2"], 20),
        weight(&["web3"], 12), weight(&["db"], 300), weight(&["db", "web3"], 5),
    ]});
    let inventory = Inventory::from_json(&inventory.to_string()).unwrap();
    let signatures = Signatures::from_json(&signatures.to_string()).unwrap();
    let plan = make_plan(&inventory, Some(&signatures), 0).unwrap();
    (inventory, signatures, plan)
}

fn plain(_: &mut Value) {}

#[test]
fn a_reason_names_what_is_shared_what_it_would_cost_and_what_is_short() {
    let (inventory, signatures, plan) = made(plain);
    let reasons = why(&inventory, Some(&signatures), &plan, &["web3".to_owned()]).unwrap();
    let [web3] = &reasons[..] else { panic!("one copy: {reasons:?}") };
    assert_eq!((web3.host.as_str(), web3.shared_bytes), ("h2", 84 << 20));
    let said = web3.to_string();
    assert!(said.starts_with("web3 → h2: shares 84.0 MiB of its 101 MiB with web1, web2 there"), "{said}");
    // db is on h3 or h1; next to it web3 would save the 5 MiB that they share.
    let beside_db = plan.vms[3].hosts[0].clone();
    let cost = |host: &str| web3.alternatives.iter().find(|other| other.host == host).unwrap();
    let other = if beside_db == "h3" { "h1" } else { "h3" };
    assert_eq!(cost(&beside_db).cost_change, (84 - 5) << 20);
    assert_eq!((cost(other).cost_change, cost(other).obstacles.len()), (84 << 20, 0));
    assert_eq!(cost("h4").obstacles, [Obstacle::Memory(512)]);
    assert!(said.contains("on h4: no room: 512 MiB of memory short"), "{said}");
    assert!(said.contains(&format!("on {other} it would cost 84.0 MiB more")), "{said}");
}

/// The change that is told is the change that a plan with that placement has.
#[test]
fn costs_told_are_those_of_plans() {
    let (inventory, signatures, plan) = made(plain);
    let cost = |plan: &Plan| i128::from(plan.predicted.as_ref().unwrap().placement_cost);
    let pinned = |moved: &str, to: &str| {
        made(|inventory| {
            for (vm, planned) in inventory["vms"].as_array_mut().unwrap().iter_mut().zip(&plan.vms) {
                let host = if planned.name == moved { to } else { &planned.hosts[0] };
                vm["to"] = json!({ "hosts": [host] });
            }
        })
        .2
    };
    let mut compared = 0;
    for reason in why(&inventory, Some(&signatures), &plan, &[]).unwrap() {
        for other in reason.alternatives.iter().filter(|other| other.obstacles.is_empty()) {
            let moved = pinned(&reason.vm, &other.host);
            assert_eq!(cost(&moved) - cost(&plan), other.cost_change, "{} to {}", reason.vm, other.host);
            assert!(other.cost_change >= 0, "a plan that is proved best");
            compared += 1;
        }
    }
    assert!(compared >= 4, "{compared}");
}

#[test]
fn obstacles_are_constraints() {
    let (inventory, signatures, plan) = made(|inventory| {
        inventory["vms"][3]["anti_affinity"] = json!(["web3"]);
        inventory["vms"][0]["affinity"] = json!(["web2"]);
        inventory["vms"][1]["to"] = json!({"clones": 2});
    });
    let reasons = why(&inventory, Some(&signatures), &plan, &[]).unwrap();
    let obstacles = |vm: &str, host: &str| -> Vec<Obstacle> {
        let of = reasons.iter().filter(|reason| reason.vm == vm).flat_map(|reason| &reason.alternatives);
        of.filter(|other| other.host == host).flat_map(|other| other.obstacles.clone()).collect()
    };
    let db = &plan.vms[3].hosts[0];
    assert!(obstacles("web3", db).contains(&Obstacle::Apart("db".to_owned())), "{reasons:?}");
    assert!(obstacles("web1", "h4").contains(&Obstacle::Needs("web2".to_owned())), "{reasons:?}");
    let both = &plan.vms[0].hosts[0];
    let of_web2 = reasons.iter().find(|reason| reason.vm == "web2" && reason.host == *both).unwrap();
    assert!(
        of_web2
            .alternatives
            .iter()
            .all(|other| other.obstacles.contains(&Obstacle::NeededBy("web1".to_owned())))
    );
    assert!(reasons.iter().any(|reason| reason.to_string().contains("its other copies: ")));
}

#[test]
fn what_ifs_are_plans_compared() {
    let (inventory, signatures, plan) = made(plain);
    let ask = |question: &Question| what_if(&inventory, Some(&signatures), &plan, 0, question);
    let apart = ask(&Question::Apart("web1".to_owned(), "web2".to_owned())).unwrap();
    assert!(
        apart.contains("so it costs") && apart.contains("more") && apart.contains("go elsewhere"),
        "{apart}"
    );
    let same = ask(&Question::Without("h4".to_owned())).unwrap();
    assert!(same.contains("every VM goes where it goes now") && same.contains("nothing more"), "{same}");
    let none = ask(&Question::Without("h2".to_owned()));
    assert!(matches!(none, Err(QuestionError::Plan(crate::PlanError::Place(_)))), "{none:?}");
    assert!(matches!(ask(&Question::Without("h9".to_owned())), Err(QuestionError::UnknownHost(_))));
    assert!(matches!(
        ask(&Question::Apart("db".to_owned(), "x".to_owned())),
        Err(QuestionError::UnknownVm(_))
    ));
    assert!(matches!(ask(&Question::Apart("db".to_owned(), "db".to_owned())), Err(QuestionError::Itself(_))));
}

#[test]
fn the_table_of_groups_says_how_many_are_enough() {
    let (_, _, plan) = made(|inventory| {
        inventory["vms"][0]["to"] = json!({"clones": 2});
        inventory["vms"][3]["to"] = json!({"clones": 2});
        inventory["hosts"][3]["memory_mib"] = json!(4096);
    });
    let table = groups_table(&plan).unwrap();
    assert!(table.contains("unicast") && table.contains("enough"), "{table}");
    assert!(table.lines().count() >= 4, "{table}");
}

#[test]
fn a_picture_is_well_formed_and_names_everything() {
    let (inventory, signatures, mut plan) = made(plain);
    plan.name = "<&\">".to_owned();
    let svg = picture::svg(&plan, Some(&picture::Sharing::measured(&inventory, &signatures).unwrap()));
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n") && svg.contains("&lt;&amp;&quot;&gt;"));
    for name in ["web1", "web2", "web3", "db", "h1", "h2", "h3", "h4"] {
        assert!(svg.contains(&format!(">{name}<")), "{name} is not written");
    }
    assert_eq!(svg.matches("<text ").count(), svg.matches("</text>").count());
    assert!(!svg.contains("NaN") && !svg.contains("inf"));
    // Without measured images there is no matrix.
    assert!(!picture::svg(&plan, None).contains("in common"));
}
