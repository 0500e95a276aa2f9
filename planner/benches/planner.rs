//! Time to schedule and to place.
#![forbid(unsafe_code)]

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use planner::inventory::{Apart, Host, Multicast, Source, Target, Vm};
use planner::{
    GroupLimits, HostSet, Inventory, Isolation, SegmentWeight, SignatureWeight, Signatures, check, make_plan,
    place, schedule,
};

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

fn segments(hosts: u64, count: usize) -> Vec<SegmentWeight> {
    let mut random = Random(7);
    let mut sets = std::collections::BTreeSet::new();
    while sets.len() < count {
        let set: HostSet = (0..hosts)
            .filter(|_| random.below(2) == 1)
            .map(|h| u16::try_from(h).expect("few hosts"))
            .collect();
        if set.len() > 1 {
            sets.insert(set);
        }
    }
    sets.into_iter()
        .map(|hosts| SegmentWeight { hosts, bytes: 1_000_000 + random.below(50_000_000) })
        .collect()
}

fn bench_schedule(c: &mut Criterion) {
    let mut group = c.benchmark_group("schedule");
    group.sample_size(10);
    for (hosts, count) in
        [(8, 12), (8, 40), (10, 100), (16, 60), (12, 500), (16, 2_000), (64, 2_000), (1_000, 2_000)]
    {
        let segments = segments(hosts, count);
        let name = BenchmarkId::from_parameter(format!("{hosts} hosts, {count} segments"));
        group.bench_function(name, |b| b.iter(|| schedule(&segments, &GroupLimits::default())));
    }
    group.finish();
}

/// VMs in families that share pages; memory for them all with a fifth to spare.
fn fleet(hosts: usize, vms: usize) -> (Inventory, Signatures) {
    let mut random = Random(11);
    let families = (vms / 10).max(2) as u64;
    let vm = |v: usize, random: &mut Random| Vm {
        name: format!("v{v}"),
        image: format!("v{v}.ram"),
        format: None,
        memory_mib: 512 << random.below(4),
        vcpus: 1,
        tenant: None,
        launch: None,
        to: Target::Clones(1),
        affinity: Vec::new(),
        anti_affinity: if v % 20 == 1 { vec![format!("v{}", v - 1)] } else { Vec::new() },
        clones_per_host: 1,
        apart: Apart::Host,
    };
    let list: Vec<Vm> = (0..vms).map(|v| vm(v, &mut random)).collect();
    let total: u64 = list.iter().map(|v| v.memory_mib).sum();
    let host = |h: usize| Host {
        name: format!("h{h}"),
        address: format!("10.0.{}.{}:1", h / 250, h % 250 + 1),
        memory_mib: total * 6 / 5 / hosts as u64 + 4096,
        vcpus: u32::try_from(vms).expect("few VMs"),
        rate_mbps: 10_000,
        link_cost: 1,
        rack: None,
        domain: None,
    };
    let mut sets: std::collections::BTreeMap<Vec<String>, u64> = std::collections::BTreeMap::new();
    for v in &list {
        sets.insert(vec![v.name.clone()], 100_000);
    }
    for _ in 0..vms * 10 {
        let family = random.below(families);
        let members: Vec<String> = (0..vms)
            .filter(|&v| v as u64 % families == family && random.below(2) == 1)
            .map(|v| format!("v{v}"))
            .collect();
        if members.len() > 1 {
            *sets.entry(members).or_default() += random.below(10_000) + 1;
        }
    }
    let weights = sets
        .into_iter()
        .map(|(vms, pages)| SignatureWeight { vms, pages, bytes: pages * 4096, ..SignatureWeight::default() })
        .collect();
    let inventory = Inventory {
        version: 1,
        name: "fleet".to_owned(),
        source: Source { name: "s".to_owned(), address: None, rate_mbps: 10_000, rack: None },
        hosts: (0..hosts).map(host).collect(),
        vms: list,
        multicast: Multicast {
            pool: "239.77.0.0/16".to_owned(),
            port: 1,
            max_groups: 1024,
            memberships_max: 20,
            ttl: 1,
            join_latency_ms: 20,
            leave_tail_ms: 2000,
            superset_permille: 20,
            mtu: 1500,
            loss_ppm: 0,
        },
        isolation: Isolation::Normal,
        topology: None,
    };
    (inventory, Signatures { version: 1, weights, ..Default::default() })
}

fn bench_place(c: &mut Criterion) {
    let mut group = c.benchmark_group("place");
    group.sample_size(10);
    for (hosts, vms) in [(4, 12), (20, 100), (50, 400)] {
        let (inventory, signatures) = fleet(hosts, vms);
        let name = format!("{vms} VMs on {hosts} hosts");
        group.bench_function(BenchmarkId::new("shared pages", &name), |b| {
            b.iter(|| place(&inventory, Some(&signatures), 1))
        });
        group.bench_function(BenchmarkId::new("best fit", &name), |b| b.iter(|| place(&inventory, None, 1)));
        let plan = make_plan(&inventory, Some(&signatures), 0).expect("there is room");
        group.bench_function(BenchmarkId::new("check", &name), |b| b.iter(|| check(&plan, Some(&inventory))));
    }
    group.finish();
}

criterion_group!(benches, bench_schedule, bench_place);
criterion_main!(benches);
