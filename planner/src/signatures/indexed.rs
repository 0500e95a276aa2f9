//! Signatures by indexes.

use std::collections::BTreeMap;

use super::{SignatureError, SignatureWeight, Signatures};
use crate::HostSet;
use crate::host_set::host_index;
use crate::inventory::{Inventory, Isolation};
use crate::network::Network;

const PAGE_BYTES: u64 = 4096;

/// Contents that the same VMs hold and the same hosts have already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Weight {
    /// Indexes of the VMs, ascending, at least one.
    pub(crate) vms: Vec<u16>,
    /// Hosts that need not be sent them.
    pub(crate) resident: HostSet,
    /// Bytes to send them once; more than 0.
    pub(crate) bytes: u64,
    /// How many contents.
    pub(crate) pages: u64,
    /// So many of these bytes are of contents that stand several times in one VM.
    pub(crate) repeated: u64,
}

impl Weight {
    /// The hosts that need these contents, and have them or not.
    pub(crate) fn needing(&self, hosts_of_vm: &[HostSet]) -> HostSet {
        let mut union = HostSet::new();
        self.vms.iter().for_each(|&vm| union.union_with(&hosts_of_vm[usize::from(vm)]));
        union
    }

    /// The hosts that must be sent these contents.
    pub(crate) fn hosts(&self, hosts_of_vm: &[HostSet]) -> HostSet {
        let union = self.needing(hosts_of_vm);
        if self.resident.is_empty() { union } else { union.difference(&self.resident) }
    }
}

/// Of contents of one set.
#[derive(Clone, Copy, Default)]
struct Sum {
    bytes: u64,
    repeated: u64,
    pages: u64,
}

type Sets = BTreeMap<(Vec<u16>, HostSet), Sum>;

/// The weights that planning runs on, VM sets ascending. VMs that were not measured count as wholly unique; with strict
/// isolation a signature is split by tenant, since each tenant's copy is sent apart.
pub(crate) fn weights(
    inventory: &Inventory,
    signatures: Option<&Signatures>,
) -> Result<Vec<Weight>, SignatureError> {
    let index = |names: Vec<&'_ str>| -> BTreeMap<String, u16> {
        names.into_iter().enumerate().map(|(i, name)| (name.to_owned(), host_index(i))).collect()
    };
    let vms = index(inventory.vms.iter().map(|vm| vm.name.as_str()).collect());
    let hosts = index(inventory.hosts.iter().map(|host| host.name.as_str()).collect());
    let mut sets: Sets = BTreeMap::new();
    let mut measured = HostSet::new();
    for (position, entry) in signatures.iter().flat_map(|s| &s.weights).enumerate() {
        let set = vm_set(entry, position, &vms)?;
        measured.union_with(&set);
        let resident = entry.resident.iter().map(|host| {
            hosts.get(host).copied().ok_or_else(|| SignatureError::UnknownHost { host: host.clone() })
        });
        let key = (set.iter().collect(), resident.collect::<Result<HostSet, _>>()?);
        let repeated = u128::from(entry.bytes) * u128::from(entry.repeated_pages.min(entry.pages));
        let repeated = repeated.checked_div(u128::from(entry.pages)).unwrap_or(0);
        let repeated = u64::try_from(repeated).expect("a part of the bytes");
        let sum = Sum { bytes: entry.bytes, repeated, pages: entry.pages };
        if sets.insert(key, sum).is_some() {
            return Err(SignatureError::Duplicate { vms: entry.vms.clone() });
        }
    }
    for (i, vm) in inventory.vms.iter().enumerate() {
        if !measured.contains(host_index(i)) {
            let key = (vec![host_index(i)], HostSet::new());
            let bytes = vm.memory_mib.saturating_mul(1 << 20);
            sets.insert(key, Sum { bytes, repeated: 0, pages: bytes / PAGE_BYTES });
        }
    }
    if inventory.isolation == Isolation::Strict {
        sets = split_by_tenant(inventory, sets)?;
    }
    // Every later sum is at most this one times the costs of all links.
    let network = Network::new(&inventory.source, &inventory.hosts, inventory.topology.as_ref());
    let cost: u64 = network.links().iter().map(|link| link.cost.max(1)).sum();
    let room = u64::MAX / cost;
    sets.values()
        .try_fold(0u64, |all, sum| all.checked_add(sum.bytes).filter(|&s| s <= room))
        .ok_or(SignatureError::TooLarge)?;
    let sets = sets.into_iter().filter(|(_, sum)| sum.bytes > 0);
    let weight =
        |((vms, resident), Sum { bytes, repeated, pages })| Weight { vms, resident, bytes, repeated, pages };
    Ok(sets.map(weight).collect())
}

fn vm_set(
    entry: &SignatureWeight,
    position: usize,
    index: &BTreeMap<String, u16>,
) -> Result<HostSet, SignatureError> {
    let mut set = HostSet::new();
    for vm in &entry.vms {
        let &i = index.get(vm).ok_or_else(|| SignatureError::UnknownVm { vm: vm.clone() })?;
        if !set.insert(i) {
            return Err(SignatureError::Malformed { index: position, vm: vm.clone() });
        }
    }
    if set.is_empty() {
        return Err(SignatureError::Malformed { index: position, vm: String::new() });
    }
    Ok(set)
}

fn split_by_tenant(inventory: &Inventory, sets: Sets) -> Result<Sets, SignatureError> {
    let mut split: Sets = BTreeMap::new();
    for ((set, resident), Sum { bytes, repeated, pages }) in sets {
        let mut tenants: BTreeMap<Option<&str>, Vec<u16>> = BTreeMap::new();
        for vm in set {
            tenants.entry(inventory.vms[usize::from(vm)].tenant.as_deref()).or_default().push(vm);
        }
        for part in tenants.into_values() {
            let sum = split.entry((part, resident.clone())).or_default();
            sum.bytes = sum.bytes.checked_add(bytes).ok_or(SignatureError::TooLarge)?;
            sum.repeated = sum.repeated.saturating_add(repeated);
            sum.pages = sum.pages.saturating_add(pages);
        }
    }
    Ok(split)
}
