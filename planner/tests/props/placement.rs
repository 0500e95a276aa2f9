//! Placement against brute force.

use std::cell::RefCell;
use std::hash::{BuildHasher, RandomState};

use planner::inventory::{Apart, Inventory, Target};
use planner::{Change, HostSet, Method, PlaceError, Placement, Resource, make_plan, place, place_by};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::instances::{
    Counts, Small, all_placements, is_within_capacity, keeps_ties, small, traffic, twelve,
};

/// Copies of each VM on each host.
fn counts(inventory: &Inventory, placement: &Placement) -> Counts {
    let on = |(hosts, instances): (&HostSet, &Vec<u32>)| {
        let mut counts = vec![0; inventory.hosts.len()];
        assert_eq!(hosts.len(), instances.len());
        hosts.iter().zip(instances).for_each(|(host, &count)| counts[usize::from(host)] = count);
        counts
    };
    placement.hosts_of_vm.iter().zip(&placement.instances_of_vm).map(on).collect()
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
            (host.rack, host.domain) = (None, None);
            (host.memory_mib, host.vcpus) = (*memory_mib, u32::try_from(*vcpus).expect("small"));
            new.hosts.push(host);
        }
        Change::FewerCopies { vm: name, copies } => {
            let v = vm(&mut new, name);
            new.vms[v].to = Target::Clones(u32::try_from(*copies).expect("small"));
        }
        Change::ApartByHost { vm: name } => {
            let v = vm(&mut new, name);
            new.vms[v].apart = Apart::Host;
        }
        Change::MorePerHost { vm: name, clones } => {
            let v = vm(&mut new, name);
            new.vms[v].clones_per_host = u32::try_from(*clones).expect("small");
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
    let tally: RefCell<[usize; 6]> = RefCell::default();
    let gaps: RefCell<Vec<f64>> = RefCell::default();
    let mut runner = TestRunner::new(Config { cases: 3000, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&small(), |instance| {
        let inventory = instance.inventory();
        let signatures = instance.signatures();
        let all = all_placements(&inventory);
        let with = place(&inventory, Some(&signatures), 1);
        let without = place(&inventory, None, 1);
        prop_assert_eq!(without.is_ok(), !all.is_empty(), "without signatures: {:?}", without);
        let placement = match with {
            Ok(placement) => placement,
            Err(PlaceError::Infeasible(infeasible)) => {
                prop_assert!(all.is_empty(), "said {}", infeasible);
                tally.borrow_mut()[0] += 1;
                tally.borrow_mut()[1] += usize::from(!infeasible.changes.is_empty());
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
        let masks = counts(&inventory, &placement);
        prop_assert!(is_within_capacity(&inventory, &masks) && keeps_ties(&inventory, &masks), "{:?}", masks);
        prop_assert!(all.contains(&masks));
        let best = all.iter().map(|masks| traffic(&inventory, &signatures, masks)).min().unwrap_or_default();
        let found = traffic(&inventory, &signatures, &masks);
        prop_assert_eq!(placement.cost, found.0);
        prop_assert_eq!(found.0, best.0, "{:?}", placement.method);
        prop_assert!(placement.cost_min <= best.0);
        let slot = match placement.method {
            Method::Exact => {
                // Of the cheapest, the fastest. Rounding is per link, and the same.
                prop_assert_eq!(found.1, best.1, "{:?}", masks);
                2
            }
            Method::LocalSearch => 3,
            Method::BranchAndBound => 4,
            _ => 5,
        };
        tally.borrow_mut()[slot] += 1;
        // What large instances get, against the optimum.
        let large = place_by(Method::LocalSearch, &inventory, Some(&signatures), 1);
        let large = large.expect("it is feasible").expect("local search finds what there is");
        prop_assert!(large.cost_min <= best.0, "a bound of {} above {}", large.cost_min, best.0);
        if best.0 > 0 {
            gaps.borrow_mut().push(large.cost as f64 / best.0 as f64 - 1.0);
        }
        let plan = make_plan(&inventory, Some(&signatures), 1);
        prop_assert!(plan.is_ok(), "{:?}", plan);
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
    let tally = tally.into_inner();
    let gaps = gaps.into_inner();
    let mean = gaps.iter().sum::<f64>() / gaps.len() as f64 * 100.0;
    let worst = gaps.iter().fold(0.0f64, |a, &b| a.max(b)) * 100.0;
    println!(
        "{} infeasible ({} with a change that helps); {} by dynamic programming, {} by local search proved, {} by branch \
         and bound, {} otherwise; local search alone: {mean:.3} % above the optimum on average, {worst:.2} % at worst",
        tally[0], tally[1], tally[2], tally[3], tally[4], tally[5]
    );
    assert!(tally[..4].iter().all(|&count| count > 0), "every outcome occurs: {tally:?}");
    assert!(mean < 2.0 && worst <= 5.0, "{mean}, {worst}");
}

/// The number in an environment variable, to search for hard instances and to see one again.
fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

/// The instance of a seed.
fn seeded(seed: u64) -> Small {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    twelve().new_tree(&mut TestRunner::new_with_rng(Config::default(), rng)).unwrap().current()
}

/// What large instances get, against the optimum of instances that are as large as the optimum can be had. They are new in
/// each run: PLANNER_SEED has those from that seed on again, PLANNER_CASES more or fewer than 1,000.
#[test]
fn local_search_is_near_the_optimum_of_twelve_vms() {
    let first = number("PLANNER_SEED").unwrap_or_else(|| RandomState::new().hash_one(0) >> 16);
    let cases = number("PLANNER_CASES").unwrap_or(1000);
    let (mut gaps, mut infeasible, mut of_twelve) = (Vec::new(), 0, 0);
    for seed in first..first + cases {
        let instance = seeded(seed);
        let (inventory, signatures) = (instance.inventory(), instance.signatures());
        let exact = place_by(Method::Exact, &inventory, Some(&signatures), 1).expect("sound");
        let found = match place_by(Method::LocalSearch, &inventory, Some(&signatures), 1) {
            Ok(found) => found.expect("local search finds what there is"),
            Err(PlaceError::Infeasible(_)) => {
                assert!(exact.is_none(), "seed {seed}: the optimum is a placement");
                infeasible += 1;
                continue;
            }
            Err(other) => panic!("seed {seed}: {other}"),
        };
        let exact = exact.unwrap_or_else(|| panic!("seed {seed}: the exact way finds none"));
        assert!(exact.cost <= found.cost && found.cost_min <= exact.cost, "seed {seed}");
        if exact.cost > 0 {
            gaps.push((found.cost as f64 / exact.cost as f64 - 1.0, seed));
        }
        of_twelve += usize::from(inventory.vms.len() == 12);
    }
    let mean = gaps.iter().map(|(gap, _)| gap).sum::<f64>() / gaps.len() as f64 * 100.0;
    gaps.sort_by(|a, b| b.0.total_cmp(&a.0));
    let missed: Vec<String> = gaps
        .iter()
        .take_while(|(gap, _)| *gap > 0.0)
        .map(|(gap, seed)| format!("{:.2} % (seed {seed})", gap * 100.0))
        .collect();
    println!(
        "{} instances of 7 to 12 VMs placed ({of_twelve} of 12), {infeasible} infeasible; local search {mean:.4} % above the \
         optimum on average, above it in {}: {}",
        gaps.len(),
        missed.len(),
        missed.join(", ")
    );
    let counts = [gaps.len() as u64 * 3, infeasible * 20, of_twelve as u64 * 33];
    assert!(counts.iter().all(|&count| count > cases), "{counts:?} of {cases}");
    assert!(mean <= 2.0 && gaps[0].0 <= 0.05, "{mean} % on average, {:?} at worst", gaps[0]);
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
