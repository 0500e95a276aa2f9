use super::*;
use crate::{Inventory, Signatures, make_plan};
use serde_json::{Value, json};

/// Hosts h0, h1, … of 1 Gbit/s, VMs with weights in bytes.
fn plan(hosts: u16, vms: &[(&str, u32)], weights: &[(&[&str], u64)], change: impl Fn(&mut Value)) -> Plan {
    let host = |n: u16| {
        json!({"name": format!("h{n}"), "address": format!("10.0.{}.{}:47078", n / 250, n % 250 + 1),
            "memory_mib": 1 << 20, "vcpus": 4096, "rate_mbps": 1000})
    };
    let vm = |(name, clones): &(&str, u32)| json!({"name": name, "image": name, "memory_mib": 64, "to": {"clones": clones}});
    let weight = |(vms, bytes): &(&[&str], u64)| json!({"vms": vms, "pages": bytes / 4096, "bytes": bytes});
    let mut inventory = json!({
        "version": 1, "name": "t", "source": {"name": "s", "rate_mbps": 1000},
        "hosts": (0..hosts).map(host).collect::<Vec<_>>(),
        "vms": vms.iter().map(vm).collect::<Vec<_>>(),
        "multicast": {"pool": "239.77.0.0/16"},
    });
    change(&mut inventory);
    let signatures = json!({"version": 1, "weights": weights.iter().map(weight).collect::<Vec<_>>()});
    let inventory = Inventory::from_json(&inventory.to_string()).unwrap();
    make_plan(&inventory, Some(&Signatures::from_json(&signatures.to_string()).unwrap()), 0).unwrap()
}

fn clone_plan(hosts: u16, bytes: u64) -> Plan {
    plan(hosts, &[("a", hosts.into())], &[(&["a"], bytes)], |_| {})
}

fn close(a: u64, b: u64, permille: u64) -> bool {
    a.abs_diff(b) * 1000 <= b * permille
}

#[test]
fn without_loss_links_carry_what_was_predicted() {
    let mixed: &[(&[&str], u64)] =
        &[(&["a", "b", "c"], 40 << 20), (&["a", "b"], 60 << 20), (&["c"], 30 << 20), (&["b"], 5 << 20)];
    for plan in [clone_plan(8, 100 << 20), plan(4, &[("a", 2), ("b", 1), ("c", 3)], mixed, |_| {})] {
        let simulated = simulate(&plan, &Model::of(&plan)).unwrap();
        for link in &simulated.links {
            assert!(close(link.bytes, link.predicted_bytes, 2), "{link:?}");
        }
        let predicted = plan.predicted.as_ref().unwrap();
        assert_eq!(simulated.joins, predicted.joins);
        assert_eq!(simulated.leaves, simulated.joins);
        assert_eq!((simulated.repair_bytes, simulated.catch_up_bytes), (0, 0));
        assert!(
            close(simulated.done_max_us / 1000, predicted.duration_ms, 80),
            "{} ms, foreseen {} ms",
            simulated.done_max_us / 1000,
            predicted.duration_ms
        );
        assert!(simulated.done_max_us / 1000 + 1 >= predicted.duration_ms_min);
        assert!(simulated.eviction_us >= simulated.done_max_us);
    }
}

#[test]
fn losses_are_repaired_at_the_price_that_theory_gives() {
    // ALGORITHMS.md 2 (d): 64 receivers, blocks of 128 symbols: 1.036 at 1 %, 1.011 at 0.1 %.
    for (ppm, permille) in [(10_000, 36), (1_000, 11)] {
        let plan = clone_plan(64, 400 << 20);
        let model = Model { loss_ppm: ppm, ..Model::of(&plan) };
        let simulated = simulate(&plan, &model).unwrap();
        let source = simulated.links[0].bytes;
        let extra = simulated.repair_bytes * 1000 / (source - simulated.repair_bytes);
        // Repairs in rounds cost a little more than symbols one by one.
        assert!(
            (permille - 2..=permille + permille / 3 + 2).contains(&extra),
            "{extra} per mille at {ppm} ppm"
        );
        assert_eq!(simulated.catch_up_bytes, 0);
        assert!(simulated.repairs > 0);
    }
}

#[test]
fn equal_seeds_give_equal_results_and_others_do_not() {
    let plan = clone_plan(5, 50 << 20);
    let with = |seed| simulate(&plan, &Model { loss_ppm: 20_000, seed, ..Model::of(&plan) }).unwrap();
    assert_eq!(with(1), with(1));
    assert_ne!(with(1).repair_bytes, with(2).repair_bytes);
}

#[test]
fn a_slow_host_holds_its_groups_up_and_no_more() {
    let plan = clone_plan(3, 100 << 20);
    let model = Model { slow_hosts: [(1, 100_000_000)].into(), ..Model::of(&plan) };
    let simulated = simulate(&plan, &model).unwrap();
    // 100 MiB at 100 Mbit/s.
    assert!(close(simulated.host_done_us[1], 8_400_000, 20), "{:?}", simulated.host_done_us);
    assert!(simulated.throttled_us > 5_000_000);
    let narrow = clone_plan(3, 100 << 20);
    let even = simulate(&narrow, &Model::of(&narrow)).unwrap();
    assert_eq!(even.throttled_us, 0);
}

#[test]
fn join_latency_shows_where_nothing_hides_it() {
    let plan = clone_plan(2, 20 << 20);
    let model = Model { join_latency: Duration::from_millis(400), ..Model::of(&plan) };
    let simulated = simulate(&plan, &model).unwrap();
    assert!((400_000..402_000).contains(&simulated.stall_us), "{}", simulated.stall_us);
    assert_eq!(simulated.first_datagram_us, simulated.stall_us);
}

#[test]
fn an_address_used_again_brings_unwanted_bytes_after_leaves() {
    // Three sets on one address: who was in the first and not in the second still gets its datagrams.
    let weights: &[(&[&str], u64)] = &[(&["a"], 30 << 20), (&["b"], 30 << 20), (&["c"], 30 << 20)];
    let pin = |inventory: &mut Value| {
        for (vm, hosts) in [(0, ["h0", "h1"]), (1, ["h1", "h2"]), (2, ["h2", "h3"])] {
            inventory["vms"][vm]["to"] = json!({ "hosts": hosts });
        }
        inventory["multicast"]["max_groups"] = json!(1);
        inventory["multicast"]["superset_permille"] = json!(0);
    };
    let plan = plan(4, &[("a", 1), ("b", 1), ("c", 1)], weights, pin);
    let churning = plan.groups.len() > 1;
    let long = simulate(&plan, &Model { leave_tail: Duration::from_secs(2), ..Model::of(&plan) }).unwrap();
    let fast = simulate(&plan, &Model { leave_tail: Duration::ZERO, ..Model::of(&plan) }).unwrap();
    if churning {
        assert!(long.unwanted_bytes > fast.unwanted_bytes, "{} {}", long.unwanted_bytes, fast.unwanted_bytes);
    }
    assert_eq!(fast.joins, fast.leaves);
    assert!(long.joins <= fast.joins, "a short gap is not worth a leave");
}

#[test]
fn refusals_name_what_is_wrong() {
    let good = clone_plan(2, 1 << 20);
    let mut bare = good.clone();
    (bare.schedule, bare.groups, bare.predicted) = (Vec::new(), Vec::new(), None);
    assert_eq!(simulate(&bare, &Model::of(&bare)), Err(SimulateError::NoSchedule));
    let model = Model { loss_ppm: 600_000, ..Model::of(&good) };
    assert_eq!(simulate(&good, &model), Err(SimulateError::Loss { ppm: 600_000 }));
    let model = Model { host_loss_ppm: [(9, 1)].into(), ..Model::of(&good) };
    assert_eq!(simulate(&good, &model), Err(SimulateError::UnknownHost { host: 9, hosts: 2 }));
}

#[test]
fn heavy_loss_ends_too() {
    let plan = clone_plan(3, 4 << 20);
    let model = Model { loss_ppm: 500_000, ..Model::of(&plan) };
    let simulated = simulate(&plan, &model).unwrap();
    assert!(simulated.host_done_us.iter().all(|done| *done > 0));
}
