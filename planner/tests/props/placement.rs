//! Placement against brute force.

use std::cell::RefCell;

use planner::inventory::{Inventory, Target};
use planner::{Change, HostSet, Method, PlaceError, Resource, make_plan, place};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::instances::{all_placements, is_within_capacity, keeps_ties, small, traffic};

fn mask(set: &HostSet) -> u32 {
    set.iter().fold(0, |mask, host| mask | 1 << host)
}

/// The change made, or `None` if it is none of the inventory's.
fn changed(inventory: &Inventory, change: &Change) -> Inventory {
    let mut new = inventory.clone();
    let vm =
        |new: &mut Inventory, name: &str| new.vms.iter().position(|v| v.name == name).expect("a VM of it");
    match change {
        Change::Grow { host, resource, more } => {
            let host = new.hosts.iter_mut().find(|h| h.name == *host).expect("a host of it");
            match resource {
                Resource::Memory => host.memory_mib += more,
                Resource::Vcpus => host.vcpus += u32::try_from(*more).expect("small"),
            }
        }
        Change::AddHost { memory_mib, vcpus } => {
            let mut host = new.hosts[0].clone();
            (host.name, host.address) = ("new".to_owned(), "10.0.1.1:1".to_owned());
            (host.memory_mib, host.vcpus) = (*memory_mib, u32::try_from(*vcpus).expect("small"));
            new.hosts.push(host);
        }
        Change::FewerCopies { vm: name, copies } => {
            let v = vm(&mut new, name);
            new.vms[v].to = Target::Clones(u32::try_from(*copies).expect("small"));
        }
        Change::Unpin { vm: name } => {
            let v = vm(&mut new, name);
            new.vms[v].to = Target::Clones(u32::try_from(new.vms[v].copies()).expect("small"));
        }
        Change::DropAffinity { vm: name, other } => {
            let v = vm(&mut new, name);
            new.vms[v].affinity.retain(|o| o != other);
        }
        Change::DropAntiAffinity { vm: name, other } => {
            for v in &mut new.vms {
                let its = v.name.clone();
                v.anti_affinity.retain(|o| !((its == *name && o == other) || (its == *other && o == name)));
            }
        }
        Change::LeaveOut { vm: name } => {
            new.vms.retain(|v| v.name != *name);
            for v in &mut new.vms {
                v.affinity.retain(|o| o != name);
                v.anti_affinity.retain(|o| o != name);
            }
        }
        other => panic!("unknown change {other:?}"),
    }
    new
}

/// Places exactly the feasible instances, keeps every constraint, and is optimal, as it is for so few VMs.
#[test]
fn agrees_with_brute_force() {
    let counts: RefCell<[usize; 6]> = RefCell::default();
    let mut runner = TestRunner::new(Config { cases: 3000, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&small(), |instance| {
        let inventory = instance.inventory();
        let signatures = instance.signatures();
        let all = all_placements(&inventory);
        let with = place(&inventory, Some(&signatures));
        let without = place(&inventory, None);
        prop_assert_eq!(without.is_ok(), !all.is_empty(), "without signatures: {:?}", without);
        let placement = match with {
            Ok(placement) => placement,
            Err(PlaceError::Infeasible(infeasible)) => {
                prop_assert!(all.is_empty(), "said {}", infeasible);
                counts.borrow_mut()[0] += 1;
                counts.borrow_mut()[1] += usize::from(!infeasible.changes.is_empty());
                for change in &infeasible.changes {
                    let new = changed(&inventory, change);
                    prop_assert!(
                        new.vms.is_empty() || !all_placements(&new).is_empty(),
                        "{} does not help",
                        change
                    );
                    if let Change::Grow { host, resource, more } = change {
                        let less = Change::Grow { host: host.clone(), resource: *resource, more: more - 1 };
                        prop_assert!(
                            all_placements(&changed(&inventory, &less)).is_empty(),
                            "{} is too much",
                            change
                        );
                    }
                }
                return Ok(());
            }
            Err(other) => return Err(TestCaseError::fail(other.to_string())),
        };
        let masks: Vec<u32> = placement.hosts_of_vm.iter().map(mask).collect();
        prop_assert!(is_within_capacity(&inventory, &masks) && keeps_ties(&inventory, &masks), "{:?}", masks);
        prop_assert!(all.contains(&masks));
        prop_assert_eq!(placement.cost, traffic(&inventory, &signatures, &masks));
        let best = all.iter().map(|masks| traffic(&inventory, &signatures, masks)).min().unwrap_or(0);
        prop_assert!(placement.cost_min <= best && best <= placement.cost);
        prop_assert_eq!(placement.cost, best, "{:?}", placement.method);
        // Without shared pages all placements cost the same, and the bound may be lower than that.
        prop_assert!(placement.cost_min == best || placement.method == Method::BestFit);
        let method = match placement.method {
            Method::BestFit => 2,
            Method::Greedy => 3,
            Method::MostShared => 4,
            _ => 5,
        };
        counts.borrow_mut()[method] += 1;
        let plan = make_plan(&inventory, Some(&signatures), 1);
        prop_assert!(plan.is_ok(), "{:?}", plan);
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
    let counts = counts.into_inner();
    println!(
        "{} infeasible ({} with a change that helps); optimal: {} best fit, {} greedy, {} most shared, {} branch and bound",
        counts[0], counts[1], counts[2], counts[3], counts[4], counts[5]
    );
    assert!(counts.iter().all(|&count| count > 0), "every outcome occurs: {counts:?}");
}

/// The same inventory gives the same plan, whatever the order of signatures.
#[test]
fn is_deterministic() {
    let mut runner = TestRunner::new(Config { cases: 100, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&small(), |instance| {
        let inventory = instance.inventory();
        let mut signatures = instance.signatures();
        let first = make_plan(&inventory, Some(&signatures), 7).ok();
        signatures.weights.reverse();
        prop_assert_eq!(first, make_plan(&inventory, Some(&signatures), 7).ok());
        Ok(())
    });
    outcome.unwrap();
}
