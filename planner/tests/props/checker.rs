//! The checker finds every damage done to a plan.

use planner::inventory::Inventory;
use planner::plan::{ImageStamp, Plan};
use planner::{Violation, check, check_images, make_plan};
use proptest::prelude::*;
use proptest::sample::Index;

use crate::instances::small;

/// Damages a plan; false if this plan cannot be damaged so.
fn damage(plan: &mut Plan, kind: usize, at: Index) -> bool {
    let vm = at.index(plan.vms.len());
    let host = at.index(plan.hosts.len());
    let segment = (!plan.schedule.is_empty()).then(|| at.index(plan.schedule.len()));
    let group = (!plan.groups.is_empty()).then(|| at.index(plan.groups.len()));
    let predicted = plan.predicted.as_mut().expect("made plans predict");
    match (kind, segment, group) {
        (0, ..) => plan.version = 2,
        (1, ..) => plan.vms[vm].hosts.clear(),
        (2, ..) => plan.vms[vm].hosts.push("nowhere".to_owned()),
        (3, ..) => plan.vms[vm].name = "../escape".to_owned(),
        (4, ..) => plan.vms[vm].memory_mib += 1000,
        (5, ..) => plan.vms[vm].vcpus += 1000,
        (6, ..) => plan.hosts[host].memory_mib = plan.hosts[host].memory_mib.wrapping_sub(1),
        (7, ..) => plan.hosts[host].address = "239.1.1.1:5".to_owned(),
        (8, ..) => plan.vms.push(plan.vms[vm].clone()),
        (9, ..) => plan.multicast.pool = "10.0.0.0/16".to_owned(),
        (10, Some(s), _) => drop(plan.schedule.remove(s)),
        (11, Some(s), _) => plan.schedule.push(plan.schedule[s].clone()),
        (12, Some(s), _) => plan.schedule[s].predicted_bytes += 1,
        (13, Some(s), _) => plan.schedule[s].group = Some(9999),
        (14, Some(s), _) if plan.schedule[s].hosts.len() > 1 => drop(plan.schedule[s].hosts.pop()),
        (15, Some(s), _) => plan.schedule[s].hosts.clear(),
        (16, _, Some(g)) => drop(plan.groups[g].hosts.pop()),
        (17, _, Some(g)) => drop(plan.groups.remove(g)),
        (18, _, Some(g)) => plan.groups[g].address = "239.78.0.1".to_owned(),
        (19, _, Some(g)) => plan.groups.push(plan.groups[g].clone()),
        (20, _, Some(_)) => plan.multicast.memberships_max = 0,
        (21, _, Some(_)) => plan.multicast.max_groups = 0,
        (22, Some(s), _) if plan.schedule[s].hosts.len() > 1 && plan.schedule[s].group.is_some() => {
            plan.schedule[s].group = None;
        }
        (23, ..) => predicted.source_bytes ^= 1,
        (24, ..) => drop(predicted.host_bytes.pop()),
        (25, ..) => predicted.duration_ms = 0,
        (26, ..) => plan.vms.remove(vm).hosts.clear(),
        (27, ..) => {
            let other = plan.hosts.iter().find(|h| !plan.vms[vm].hosts.contains(&h.name));
            let Some(other) = other.map(|h| h.name.clone()) else { return false };
            plan.vms[vm].hosts.push(other);
        }
        (28, ..) => predicted.links[0].bytes += 1,
        (29, ..) => drop(predicted.links.pop()),
        (30, ..) => predicted.placement_cost ^= 1,
        (31, ..) => drop(predicted.host_done_ms.pop()),
        (32, ..) => plan.vms[vm].instances.push(0),
        (33, ..) => plan.hosts[host].rack = Some("nowhere".to_owned()),
        (34, ..) => predicted.links[0].busy_ms += 1,
        (35, ..) => predicted.links[0].classes.unique += 1,
        (36, Some(s), _) => plan.schedule[s].named_bytes = plan.schedule[s].predicted_bytes + 1,
        (37, ..) => plan.resident.push("nowhere".to_owned()),
        (38, ..) => plan.hosts[host].rate_mbps = 0,
        _ => return false,
    }
    true
}

const KINDS: usize = 39;

/// Whether a violation is what a damage must be refused for. Others may be found beside it.
fn is_reason(kind: usize, violation: &Violation) -> bool {
    let predicted =
        |wanted: &str| matches!(violation, Violation::Prediction { field, .. } if *field == wanted);
    match kind {
        0 => matches!(violation, Violation::Version { found: 2 }),
        1 | 15 => matches!(violation, Violation::NoHosts { .. }),
        2 | 37 => matches!(violation, Violation::UnknownHost { host, .. } if host == "nowhere"),
        3 => matches!(violation, Violation::Name { kind: "VM", name } if name == "../escape"),
        4..=6 | 26 => matches!(violation, Violation::Stale { .. }),
        7 => matches!(violation, Violation::HostAddress { why: "cannot be connected to", .. }),
        8 => matches!(violation, Violation::Duplicate { kind: "VM", .. }),
        9 => matches!(violation, Violation::Pool { pool, .. } if pool == "10.0.0.0/16"),
        10 | 12 => predicted("unique_bytes"),
        11 => matches!(violation, Violation::SegmentTwice { .. }),
        13 => matches!(violation, Violation::UnknownGroup { group: 9999, .. }),
        14 => predicted("host_needed_bytes"),
        16 => matches!(violation, Violation::NotInGroup { .. }),
        17 => matches!(violation, Violation::UnknownGroup { .. }),
        18 => matches!(violation, Violation::GroupAddress { address, .. } if address == "239.78.0.1"),
        19 => matches!(violation, Violation::Duplicate { kind: "group", .. }),
        20 => matches!(violation, Violation::TooManyMemberships { max: 0, .. }),
        21 => matches!(violation, Violation::TooManyGroups { max: 0, .. }),
        22 | 23 => predicted("source_bytes"),
        24 => predicted("host_bytes"),
        25 => predicted("duration_ms_min"),
        27 => matches!(violation, Violation::Placement { .. }),
        28 | 29 | 34 | 35 => predicted("links"),
        30 => predicted("placement_cost"),
        31 => predicted("host_done_ms"),
        32 => matches!(violation, Violation::Instances { .. }),
        33 => matches!(violation, Violation::Rack { rack, .. } if rack == "nowhere"),
        36 => matches!(violation, Violation::Named { .. }),
        38 => matches!(violation, Violation::Zero { field: "rate_mbps", .. }),
        _ => false,
    }
}

fn damaged_is_found(plan: &Plan, inventory: &Inventory, kind: usize, at: Index) -> Result<(), TestCaseError> {
    let mut damaged = plan.clone();
    if !damage(&mut damaged, kind, at) || damaged == *plan {
        return Ok(());
    }
    // A duration of 0 is right if there is nothing to send.
    if kind == 25 && plan.predicted.as_ref().is_some_and(|p| p.duration_ms_min == 0) {
        return Ok(());
    }
    let found = check(&damaged, Some(inventory));
    prop_assert!(found.is_err(), "damage {} is not found", kind);
    let found = found.unwrap_err();
    let reason = found.iter().find(|violation| is_reason(kind, violation));
    prop_assert!(reason.is_some(), "damage {} is refused for something else: {:?}", kind, found);
    prop_assert!(found.iter().all(|violation| !violation.to_string().is_empty()));
    // Most of it is found without the inventory, too.
    if !matches!(kind, 4..=6 | 26 | 27) {
        prop_assert!(check(&damaged, None).is_err(), "damage {} needs the inventory", kind);
        prop_assert!(Plan::from_json(&damaged.to_json()).is_err());
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn finds_damage(instance in small(), at in any::<Index>()) {
        let inventory = instance.inventory();
        if let Ok(plan) = make_plan(&inventory, Some(&instance.signatures()), 3) {
            prop_assert!(check(&plan, None).is_ok());
            prop_assert_eq!(Plan::from_json(&plan.to_json()).unwrap(), plan.clone());
            for kind in 0..KINDS {
                damaged_is_found(&plan, &inventory, kind, at)?;
            }
            // A plan of another inventory is stale.
            let mut other = inventory.clone();
            other.hosts[at.index(inventory.hosts.len())].rate_mbps += 1;
            prop_assert!(check(&plan, Some(&other)).is_err());
        }
    }
}

/// Each kind of damage is refused for what it is.
#[test]
fn images_written_since_are_named() {
    let mut plan = crate::files::example_plan();
    let then = ImageStamp { bytes: 4096, modified_ns: 7 };
    plan.vms[1].stamp = Some(then);
    let mut now = vec![None; plan.vms.len()];
    check_images(&plan, &now).expect("nothing is known");
    now[1] = Some(then);
    check_images(&plan, &now).expect("nothing changed");
    now[1] = Some(ImageStamp { modified_ns: 8, ..then });
    let found = check_images(&plan, &now).unwrap_err();
    assert!(
        matches!(&found[..], [Violation::Stale { why, .. }] if why.contains("written since")),
        "{found:?}"
    );
    now[1] = Some(ImageStamp { bytes: 1, ..then });
    let found = check_images(&plan, &now).unwrap_err();
    assert!(
        matches!(&found[..], [Violation::Stale { why, .. }] if why.contains("had 4096 bytes")),
        "{found:?}"
    );
}

/// What the random instances, with few bytes, do not reach.
#[test]
fn names_each_violation() {
    let mut plan = crate::files::example_plan();
    let group = plan.schedule.iter().find_map(|s| s.group).expect("the example has groups");
    let members = plan.groups.iter().find(|g| g.id == group).expect("it is there").hosts.clone();
    let outside = plan
        .hosts
        .iter()
        .map(|h| h.name.clone())
        .find(|name| !members.contains(name))
        .expect("a host outside");
    let mut wide = plan.clone();
    wide.groups.iter_mut().find(|g| g.id == group).unwrap().hosts.push(outside.clone());
    let found = check(&wide, None).unwrap_err();
    assert!(
        found.iter().any(|v| matches!(v, Violation::Waste { host, .. } if *host == outside)),
        "{found:?}"
    );
    wide.isolation = planner::Isolation::Strict;
    let found = check(&wide, None).unwrap_err();
    assert!(found.iter().any(|v| matches!(v, Violation::NotExact { .. })), "{found:?}");
    // Two groups on one address, one inside the time of the other.
    let first = plan.schedule.iter().position(|s| s.group.is_some()).unwrap();
    let second = plan.schedule.iter().rposition(|s| s.group.is_some()).unwrap();
    assert_ne!(plan.schedule[first].group, plan.schedule[second].group);
    let address = plan.groups[0].address.clone();
    plan.groups.iter_mut().for_each(|g| g.address.clone_from(&address));
    check(&plan, None).expect("one after the other is allowed");
    let mut again = plan.schedule[first].clone();
    again.hosts.truncate(1);
    again.hosts[0].clone_from(&plan.schedule[first].hosts[0]);
    plan.predicted = None;
    plan.schedule.push(again);
    let found = check(&plan, None).unwrap_err();
    assert!(found.iter().any(|v| matches!(v, Violation::AddressShared { .. })), "{found:?}");
}
