//! What it costs to send a host a VM, given what it is sent anyway.

use super::problem::Problem;
use crate::HostSet;
use crate::host_set::host_index;
use crate::signatures::Weight;

/// A set of VMs up to this part of the nodes is counted in a list, a larger one in a table.
const SPARSE_PART: usize = 8;

/// Contents of several VMs or copies, or that some host has already.
pub(super) struct Signature {
    pub(super) bytes: u64,
    pub(super) vms: Vec<u16>,
    pub(super) resident: HostSet,
    /// What a byte of it costs at least, wherever its VMs go.
    pub(super) least: u64,
}

/// The weights, sorted by what placement can do about them.
pub(super) struct Sharing {
    pub(super) signatures: Vec<Signature>,
    /// Signatures of each VM.
    pub(super) of_vm: Vec<Vec<u32>>,
    /// Bytes of each VM of one copy that are no other's and nowhere resident.
    pub(super) own: Vec<u64>,
    /// All bytes of each VM.
    pub(super) all: Vec<u64>,
}

impl Sharing {
    pub(super) fn new(problem: &Problem, weights: &[Weight]) -> Self {
        let mut sharing = Self {
            signatures: Vec::new(),
            of_vm: vec![Vec::new(); problem.vms.len()],
            own: vec![0; problem.vms.len()],
            all: vec![0; problem.vms.len()],
        };
        let least = super::bound::Least::new(problem);
        for weight in weights {
            for &vm in &weight.vms {
                sharing.all[usize::from(vm)] += weight.bytes;
            }
            // Copies of one VM share the links of racks.
            if let ([only], true) = (&weight.vms[..], weight.resident.is_empty())
                && problem.vms[usize::from(*only)].copies == 1
            {
                sharing.own[usize::from(*only)] += weight.bytes;
                continue;
            }
            let number = u32::try_from(sharing.signatures.len()).expect("far fewer signatures than 2^32");
            weight.vms.iter().for_each(|&vm| sharing.of_vm[usize::from(vm)].push(number));
            sharing.signatures.push(Signature {
                bytes: weight.bytes,
                vms: weight.vms.clone(),
                resident: weight.resident.clone(),
                least: least.of(problem, weight),
            });
        }
        sharing
    }

    pub(super) fn is_any(&self) -> bool {
        !self.signatures.is_empty()
    }
}

/// Counters of one signature by node: of VMs at a host's, of nodes below with any at a rack's.
enum Counts {
    /// Ascending by node, none 0.
    Sparse(Vec<(u32, u32)>),
    Dense(Vec<u32>),
}

impl Counts {
    fn get(&self, node: usize) -> u32 {
        match self {
            Self::Sparse(list) => list
                .binary_search_by_key(&u32::try_from(node).expect("few nodes"), |&(at, _)| at)
                .map_or(0, |slot| list[slot].1),
            Self::Dense(table) => table[node],
        }
    }

    /// Counts one more; the count before.
    fn add(&mut self, node: usize) -> u32 {
        match self {
            Self::Sparse(list) => {
                let node = u32::try_from(node).expect("few nodes");
                match list.binary_search_by_key(&node, |&(at, _)| at) {
                    Ok(slot) => {
                        list[slot].1 += 1;
                        list[slot].1 - 1
                    }
                    Err(slot) => {
                        list.insert(slot, (node, 1));
                        0
                    }
                }
            }
            Self::Dense(table) => {
                table[node] += 1;
                table[node] - 1
            }
        }
    }

    /// Counts one less; the count after.
    fn remove(&mut self, node: usize) -> u32 {
        match self {
            Self::Sparse(list) => {
                let node = u32::try_from(node).expect("few nodes");
                let slot =
                    list.binary_search_by_key(&node, |&(at, _)| at).expect("what is removed was counted");
                list[slot].1 -= 1;
                let left = list[slot].1;
                if left == 0 {
                    list.remove(slot);
                }
                left
            }
            Self::Dense(table) => {
                table[node] -= 1;
                table[node]
            }
        }
    }

    fn each(&self, mut of: impl FnMut(usize)) {
        match self {
            Self::Sparse(list) => list.iter().for_each(|&(node, _)| of(node as usize)),
            Self::Dense(table) => {
                table.iter().enumerate().filter(|(_, count)| **count > 0).for_each(|(node, _)| of(node));
            }
        }
    }
}

/// What is sent where, for a partial placement.
pub(super) struct Shares<'a> {
    problem: &'a Problem,
    sharing: &'a Sharing,
    counts: Vec<Counts>,
    /// Cost of a byte of each signature, and of a byte of each VM's own.
    units: Vec<u64>,
    own_units: Vec<u64>,
    /// The least that the own bytes of a VM's copies cost, for each byte.
    own_least: Vec<u64>,
    cost: u64,
    /// Bytes needed behind each node.
    pub(super) load: Vec<u64>,
    way_cost: Vec<u64>,
    /// Scratch of [`Shares::deltas`]: bytes times cost saved at each node, and at single hosts.
    saved: Vec<u64>,
    saved_more: Vec<(usize, u64)>,
}

impl<'a> Shares<'a> {
    pub(super) fn new(problem: &'a Problem, sharing: &'a Sharing) -> Self {
        let nodes = problem.nodes.len();
        let counts = |signature: &Signature| {
            if signature.vms.len() * SPARSE_PART < nodes {
                Counts::Sparse(Vec::new())
            } else {
                Counts::Dense(vec![0; nodes])
            }
        };
        let way_cost: Vec<u64> = (0..problem.hosts.len()).map(|host| problem.way_cost(host)).collect();
        let way_cost_min = way_cost.iter().copied().min().unwrap_or(0);
        let own_least: Vec<u64> =
            problem.vms.iter().map(|item| item.hosts_min() as u64 * way_cost_min).collect();
        let own: u64 = sharing.own.iter().zip(&own_least).map(|(own, least)| own * least).sum();
        Self {
            problem,
            sharing,
            counts: sharing.signatures.iter().map(counts).collect(),
            units: vec![0; sharing.signatures.len()],
            own_units: vec![0; problem.vms.len()],
            own_least,
            cost: sharing.signatures.iter().map(|s| s.bytes * s.least).sum::<u64>() + own,
            load: vec![0; nodes],
            way_cost,
            saved: vec![0; nodes],
            saved_more: Vec::new(),
        }
    }

    /// The weights.
    pub(super) fn sharing(&self) -> &'a Sharing {
        self.sharing
    }

    /// What links carry, times their costs; of a partial placement, at least.
    pub(super) fn cost(&self) -> u64 {
        self.cost
    }

    /// A copy of the VM comes to the host. `is_first`: no other is there yet.
    pub(super) fn add(&mut self, vm: usize, host: usize, is_first: bool) {
        if is_first {
            self.change::<true>(vm, host);
        }
    }

    /// A copy of the VM leaves the host. `is_last`: no other stays there.
    pub(super) fn remove(&mut self, vm: usize, host: usize, is_last: bool) {
        if is_last {
            self.change::<false>(vm, host);
        }
    }

    /// The host needs the VM's contents, or no longer.
    fn change<const NEEDS: bool>(&mut self, vm: usize, host: usize) {
        let (problem, sharing) = (self.problem, self.sharing);
        let own = sharing.own[vm];
        problem.way(host).for_each(|node| step::<NEEDS>(&mut self.load[node], own));
        let least = self.own_least[vm];
        let before = self.own_units[vm];
        step::<NEEDS>(&mut self.own_units[vm], self.way_cost[host]);
        let more = self.own_units[vm].max(least).abs_diff(before.max(least));
        step::<NEEDS>(&mut self.cost, own * more);
        for &number in &sharing.of_vm[vm] {
            let number = number as usize;
            let signature = &sharing.signatures[number];
            if signature.resident.contains(host_index(host)) {
                continue;
            }
            let before = self.units[number];
            let mut units = before;
            for node in problem.way(host) {
                let counts = &mut self.counts[number];
                // What other hosts behind the link need goes over it anyway, and over all links before it.
                if (if NEEDS { counts.add(node) } else { counts.remove(node) }) > 0 {
                    break;
                }
                step::<NEEDS>(&mut units, problem.nodes[node].cost);
                step::<NEEDS>(&mut self.load[node], signature.bytes);
            }
            self.units[number] = units;
            let more = units.max(signature.least).abs_diff(before.max(signature.least));
            step::<NEEDS>(&mut self.cost, signature.bytes * more);
        }
    }

    /// What it adds to the cost to send a host a VM that it does not have, beyond what it is sent.
    pub(super) fn delta(&self, vm: usize, host: usize) -> u64 {
        let problem = self.problem;
        let mut sum = self.sharing.own[vm] * self.way_cost[host];
        for &number in &self.sharing.of_vm[vm] {
            let signature = &self.sharing.signatures[number as usize];
            if signature.resident.contains(host_index(host)) {
                continue;
            }
            let counts = &self.counts[number as usize];
            let missing = problem.way(host).take_while(|&node| counts.get(node) == 0);
            sum += signature.bytes * missing.map(|node| problem.nodes[node].cost).sum::<u64>();
        }
        sum
    }

    /// [`Shares::delta`] for every host at once, into `deltas`.
    pub(super) fn deltas(&mut self, vm: usize, deltas: &mut Vec<u64>) {
        let problem = self.problem;
        self.saved.fill(0);
        self.saved_more.clear();
        for &number in &self.sharing.of_vm[vm] {
            let signature = &self.sharing.signatures[number as usize];
            let counts = &self.counts[number as usize];
            let saved = &mut self.saved;
            counts.each(|node| saved[node] += signature.bytes * problem.nodes[node].cost);
            for host in signature.resident.iter().map(usize::from) {
                let missing = problem.way(host).take_while(|&node| counts.get(node) == 0);
                let more = signature.bytes * missing.map(|node| problem.nodes[node].cost).sum::<u64>();
                self.saved_more.push((host, more));
            }
        }
        let all = self.sharing.all[vm];
        deltas.clear();
        deltas.extend((0..problem.hosts.len()).map(|host| {
            all * self.way_cost[host] - problem.way(host).map(|node| self.saved[node]).sum::<u64>()
        }));
        for &(host, more) in &self.saved_more {
            deltas[host] -= more;
        }
    }
}

/// More, or less.
fn step<const MORE: bool>(figure: &mut u64, by: u64) {
    if MORE {
        *figure += by;
    } else {
        *figure -= by;
    }
}
