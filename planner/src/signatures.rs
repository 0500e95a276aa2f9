//! How many bytes each exact set of VMs has in common.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::inventory::{Inventory, Isolation, format_version};
use crate::{FORMAT_VERSION, HostSet, host_set::host_index};

/// Weights per exact VM set: what measuring images leaves of them for planning.
///
/// A content (the bytes of one page, once) counts in exactly one entry: that of all VMs that hold it. Uniform
/// pages (zero, or one repeated word) do not count: they are no bytes on the network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Signatures {
    /// Version of this format: 1.
    #[schemars(range(min = 1, max = 1))]
    pub version: u32,
    /// The weights; each set of VMs at most once. A VM in no entry counts as not measured: all of its memory as
    /// unlike any other. An entry with 0 bytes says that a VM was measured and found empty.
    pub weights: Vec<SignatureWeight>,
}

/// Contents held by exactly these VMs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SignatureWeight {
    /// Names of the VMs, at least one, none twice.
    pub vms: Vec<String>,
    /// Number of contents (distinct pages).
    pub pages: u64,
    /// Bytes that they take to send: 4096 a page, or less if their encoded size is known.
    pub bytes: u64,
}

/// Why signatures cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SignatureError {
    /// Not JSON, or not of the documented shape.
    #[error("the signatures do not follow their format (`scatter schema signatures` prints it)")]
    Json(#[source] serde_json::Error),
    /// Of a version that this release does not read.
    #[error("the signatures have format version {found}; this release reads version {FORMAT_VERSION}")]
    Version {
        /// The version given.
        found: u64,
    },
    /// An entry names a VM that is not in the inventory.
    #[error("the signatures name VM `{vm}`, which is not in the inventory; measure again, or add it there")]
    UnknownVm {
        /// The VM.
        vm: String,
    },
    /// An entry names no VM, or one twice.
    #[error("entry {index} of the signatures names {}; measure again", if .vm.is_empty() { "no VM".to_owned() } else { format!("VM `{}` twice", .vm) })]
    Malformed {
        /// Position in `weights`, from 0.
        index: usize,
        /// The VM named twice; empty if the entry names none.
        vm: String,
    },
    /// Two entries have the same VMs.
    #[error("the signatures have two entries for exactly the VMs {vms:?}; measure again")]
    Duplicate {
        /// The VMs.
        vms: Vec<String>,
    },
    /// The weights exceed 64 bits.
    #[error("the signatures' bytes add up to more than 2^64; measure again")]
    TooLarge,
}

impl Signatures {
    /// Reads signatures.
    ///
    /// # Errors
    /// [`SignatureError::Json`] and [`SignatureError::Version`]. The rest is found when they meet an inventory.
    pub fn from_json(text: &str) -> Result<Self, SignatureError> {
        let found = format_version(text).map_err(SignatureError::Json)?;
        if found != u64::from(FORMAT_VERSION) {
            return Err(SignatureError::Version { found });
        }
        serde_json::from_str(text).map_err(SignatureError::Json)
    }

    /// The JSON Schema (draft 2020-12) of the signatures file.
    #[must_use]
    pub fn schema() -> serde_json::Value {
        schemars::schema_for!(Self).to_value()
    }
}

/// Signatures by VM index: ascending sets of VM indexes, each with its bytes, sets ascending and distinct.
pub(crate) type Weights = Vec<(Vec<u16>, u64)>;

/// The weights that planning runs on. VMs that were not measured count as wholly unique; with strict isolation a
/// signature is split by tenant, since each tenant's copy is sent apart.
pub(crate) fn weights(
    inventory: &Inventory,
    signatures: Option<&Signatures>,
) -> Result<Weights, SignatureError> {
    let index: BTreeMap<&str, u16> =
        inventory.vms.iter().enumerate().map(|(i, vm)| (vm.name.as_str(), host_index(i))).collect();
    let mut sets: BTreeMap<Vec<u16>, u64> = BTreeMap::new();
    let mut measured = HostSet::new();
    for (position, entry) in signatures.iter().flat_map(|s| &s.weights).enumerate() {
        let set = vm_set(entry, position, &index)?;
        measured.union_with(&set);
        if sets.insert(set.iter().collect(), entry.bytes).is_some() {
            return Err(SignatureError::Duplicate { vms: entry.vms.clone() });
        }
    }
    for (i, vm) in inventory.vms.iter().enumerate() {
        if !measured.contains(host_index(i)) {
            sets.insert(vec![host_index(i)], vm.memory_mib.saturating_mul(1 << 20));
        }
    }
    if inventory.isolation == Isolation::Strict {
        sets = split_by_tenant(inventory, sets)?;
    }
    // Every later sum is at most this one times the number of hosts.
    let room = u64::MAX / u64::try_from(inventory.hosts.len().max(1)).expect("usize fits 64 bits");
    sets.values()
        .try_fold(0u64, |sum, &b| sum.checked_add(b).filter(|&s| s <= room))
        .ok_or(SignatureError::TooLarge)?;
    Ok(sets.into_iter().filter(|&(_, bytes)| bytes > 0).collect())
}

fn vm_set(
    entry: &SignatureWeight,
    position: usize,
    index: &BTreeMap<&str, u16>,
) -> Result<HostSet, SignatureError> {
    let mut set = HostSet::new();
    for vm in &entry.vms {
        let &i = index.get(vm.as_str()).ok_or_else(|| SignatureError::UnknownVm { vm: vm.clone() })?;
        if !set.insert(i) {
            return Err(SignatureError::Malformed { index: position, vm: vm.clone() });
        }
    }
    if set.is_empty() {
        return Err(SignatureError::Malformed { index: position, vm: String::new() });
    }
    Ok(set)
}

fn split_by_tenant(
    inventory: &Inventory,
    sets: BTreeMap<Vec<u16>, u64>,
) -> Result<BTreeMap<Vec<u16>, u64>, SignatureError> {
    let mut split: BTreeMap<Vec<u16>, u64> = BTreeMap::new();
    for (set, bytes) in sets {
        let mut tenants: BTreeMap<Option<&str>, Vec<u16>> = BTreeMap::new();
        for vm in set {
            tenants.entry(inventory.vms[usize::from(vm)].tenant.as_deref()).or_default().push(vm);
        }
        for part in tenants.into_values() {
            let sum = split.entry(part).or_default();
            *sum = sum.checked_add(bytes).ok_or(SignatureError::TooLarge)?;
        }
    }
    Ok(split)
}
