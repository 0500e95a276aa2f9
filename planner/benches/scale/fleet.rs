//! Seeded fleets whose VMs have in common what real ones have: a kernel, a distribution, a workload, a template.

use planner::inventory::{Apart, Host, Isolation, Multicast, Rack, Source, Target, Topology, Vm};
use planner::{Inventory, SignatureWeight, Signatures};

/// Xorshift64*.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16) % bound
    }
}

/// How many VMs have one thing in common, about, and how many MiB of it, at each level.
struct Level {
    members: usize,
    mib: u64,
    /// Parts that are in a random nine tenths of the members each.
    parts: usize,
}

/// `vms` VMs on `hosts` hosts in racks of 20, which have room for a sixth more.
pub(crate) fn fleet(vms: usize, hosts: usize, seed: u64) -> (Inventory, Signatures) {
    let mut random = Random::new(seed);
    let list: Vec<Vm> = (0..vms).map(|v| vm(v, vms, &mut random)).collect();
    let copies = |vm: &Vm| vm.copies() as u64;
    let memory: u64 = list.iter().map(|vm| vm.memory_mib * copies(vm)).sum();
    let vcpus: u64 = list.iter().map(|vm| u64::from(vm.vcpus) * copies(vm)).sum();
    let room = |sum: u64| sum * 7 / 6 / hosts as u64;
    let racks = hosts.div_ceil(20);
    let host = |h: usize| Host {
        name: format!("h{h}"),
        address: format!("10.{}.{}.{}:47077", h / 62_500, h / 250 % 250, h % 250 + 1),
        memory_mib: room(memory).max(16_384) / 1024 * 1024 + 1024,
        vcpus: u32::try_from(room(vcpus)).expect("few") + 8,
        rate_mbps: 10_000,
        link_cost: 1,
        rack: Some(format!("r{}", h / 20)),
        domain: Some(format!("d{}", h % 4)),
    };
    let rack = |r: usize| Rack { name: format!("r{r}"), uplink_mbps: 40_000, uplink_cost: 2, within: None };
    let inventory = Inventory {
        version: 1,
        name: format!("{vms} VMs, {hosts} hosts, seed {seed}"),
        source: Source { name: "s".to_owned(), address: None, rate_mbps: 40_000, rack: None },
        hosts: (0..hosts).map(host).collect(),
        multicast: Multicast {
            pool: "239.77.0.0/16".to_owned(),
            port: 47077,
            max_groups: 1024,
            memberships_max: 20,
            ttl: 8,
            join_latency_ms: 20,
            leave_tail_ms: 2000,
            superset_permille: 20,
            mtu: 1500,
            loss_ppm: 1000,
        },
        isolation: Isolation::Normal,
        topology: Some(Topology { racks: (0..racks).map(rack).collect() }),
        vms: list,
    };
    let signatures = signatures(&inventory, &mut random);
    (inventory, signatures)
}

/// One in fifty has three clones, one in ten is kept apart from the one before it, one in hundred from it by rack.
fn vm(v: usize, vms: usize, random: &mut Random) -> Vm {
    let clones = if v % 50 == 49 && vms > 100 { 3 } else { 1 };
    Vm {
        name: format!("v{v}"),
        image: format!("v{v}.ram"),
        format: None,
        memory_mib: 1024 << random.below(3),
        vcpus: 1 << u32::try_from(random.below(3)).expect("few"),
        tenant: Some(format!("t{}", v % 7)),
        launch: None,
        to: Target::Clones(clones),
        clones_per_host: 1,
        affinity: if v % 40 == 13 { vec![format!("v{}", v - 1)] } else { Vec::new() },
        anti_affinity: if v % 10 == 1 { vec![format!("v{}", v - 1)] } else { Vec::new() },
        apart: if v % 100 == 1 && vms > 300 { Apart::Rack } else { Apart::Host },
    }
}

fn signatures(inventory: &Inventory, random: &mut Random) -> Signatures {
    let vms = inventory.vms.len();
    let levels = [
        Level { members: vms.div_ceil(3), mib: 40, parts: 6 },
        Level { members: vms.div_ceil(8), mib: 60, parts: 6 },
        Level { members: (vms / 20).clamp(6, 100), mib: 90, parts: 6 },
        Level { members: 8, mib: 120, parts: 4 },
    ];
    let mut sets: std::collections::BTreeMap<Vec<usize>, u64> = std::collections::BTreeMap::new();
    let mut add = |members: Vec<usize>, mib: u64| {
        if !members.is_empty() {
            *sets.entry(members).or_default() += mib * 256;
        }
    };
    for level in levels {
        // What is in common at one level is in no order at another.
        let mut order: Vec<(u64, usize)> = (0..vms).map(|v| (random.below(1 << 40), v)).collect();
        order.sort_unstable();
        for group in order.chunks(level.members) {
            let mut members: Vec<usize> = group.iter().map(|&(_, v)| v).collect();
            members.sort_unstable();
            let part = level.mib / (level.parts as u64 + 1);
            for _ in 0..level.parts {
                let some = members.iter().copied().filter(|_| random.below(10) > 0).collect();
                add(some, part + random.below(part + 1));
            }
            add(members, part);
        }
    }
    for v in 0..vms {
        add(vec![v], 100 + random.below(400));
    }
    let name = |v: usize| inventory.vms[v].name.clone();
    let weights = sets.into_iter().map(|(members, pages)| SignatureWeight {
        vms: members.into_iter().map(name).collect(),
        pages,
        bytes: pages * 4096,
        ..SignatureWeight::default()
    });
    Signatures { version: 1, weights: weights.collect(), ..Default::default() }
}
