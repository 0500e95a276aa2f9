//! Where signatures come from: what `scatter measure` looked at, and how sure it is.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{SignatureWeight, Signatures};
use crate::FORMAT_VERSION;

/// A measurement's circumstances. Planning does not need them; people do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MeasuredBy {
    /// Encoding whose sizes were sampled for `bytes`.
    pub encoding: String,
    /// One content in so many was kept; 1: all, and every figure is exact.
    pub sample_one_in: u32,
    /// All different contents of all VMs.
    pub contents: u64,
    /// Standard error of `contents`. 0 if all were counted.
    pub contents_standard_error: u64,
    /// Pages and contents by class.
    pub classes: MeasuredClasses,
    /// The hosts, each of which measured its own VMs.
    pub hosts: Vec<MeasuredHost>,
    /// Hosts that could not be measured, and why.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub not_measured: BTreeMap<String, String>,
    /// Bits of a short fingerprint.
    pub fingerprint_bits: u32,
}

/// A host that measured its VMs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MeasuredHost {
    /// Its name.
    pub name: String,
    /// Its VMs.
    pub vms: Vec<MeasuredVm>,
    /// Different contents, as sampled.
    pub contents: u64,
    /// Bytes of control messages, both ways; 0 for the host that asked.
    pub control_bytes: u64,
}

/// A VM that was measured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MeasuredVm {
    /// Its name.
    pub name: String,
    /// Whether this is an image that its host has already, rather than one that the inventory wants moved.
    #[serde(default, skip_serializing_if = "is_false")]
    pub resident: bool,
    /// Pages of its memory.
    pub pages: u64,
    /// Of these, pages of zeroes.
    pub zero_pages: u64,
    /// Of these, pages of one repeated word that is not 0.
    pub uniform_nonzero_pages: u64,
}

/// Pages and contents by class; each page counts in exactly one. Hosts are those on which the VMs were measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MeasuredClasses {
    /// Of zeroes.
    pub zero: MeasuredClass,
    /// Of one 64-bit word, repeated.
    pub uniform_nonzero: MeasuredClass,
    /// Contents that stand nowhere else.
    pub unique: MeasuredClass,
    /// Contents that stand several times in one VM and in no other.
    pub repeated_in_one_vm: MeasuredClass,
    /// Contents of several VMs, all on one host.
    pub shared_by_vms_of_one_host: MeasuredClass,
    /// Contents of VMs on several hosts.
    pub shared_across_hosts: MeasuredClass,
}

impl MeasuredClasses {
    /// Each class with its name.
    #[must_use]
    pub fn by_name(&self) -> [(&'static str, MeasuredClass); 6] {
        [
            ("zero", self.zero),
            ("uniform_nonzero", self.uniform_nonzero),
            ("unique", self.unique),
            ("repeated_in_one_vm", self.repeated_in_one_vm),
            ("shared_by_vms_of_one_host", self.shared_by_vms_of_one_host),
            ("shared_across_hosts", self.shared_across_hosts),
        ]
    }
}

/// A class's share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MeasuredClass {
    /// Different contents; of uniform pages 0, as they are not told apart.
    pub contents: u64,
    /// Pages.
    pub pages: u64,
}

/// A VM set over all hosts that were measured, as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundWeight {
    /// VMs of the inventory, at least none.
    pub vms: Vec<String>,
    /// Hosts that hold the contents already.
    pub resident: Vec<String>,
    /// The rest as in [`SignatureWeight`].
    pub pages: u64,
    /// See [`SignatureWeight::bytes`].
    pub bytes: u64,
    /// See [`SignatureWeight::repeated_pages`].
    pub repeated_pages: u64,
    /// See [`SignatureWeight::standard_error_pages`].
    pub standard_error_pages: u64,
}

impl Signatures {
    /// Signatures of what was found. What no VM of the inventory holds is left out; `vms` names all that were
    /// measured, so that one of uniform pages only is known to be empty.
    #[must_use]
    pub fn of_measurement(found: Vec<FoundWeight>, vms: &[String], measured: MeasuredBy) -> Self {
        let mut sums: BTreeMap<(Vec<String>, Vec<String>), SignatureWeight> = BTreeMap::new();
        for mut weight in found.into_iter().filter(|weight| !weight.vms.is_empty()) {
            for names in [&mut weight.vms, &mut weight.resident] {
                names.sort_unstable();
                names.dedup();
            }
            let sum = sums.entry((weight.vms.clone(), weight.resident.clone())).or_insert_with(|| {
                SignatureWeight { vms: weight.vms, resident: weight.resident, ..SignatureWeight::default() }
            });
            sum.pages = sum.pages.saturating_add(weight.pages);
            sum.bytes = sum.bytes.saturating_add(weight.bytes);
            sum.repeated_pages = sum.repeated_pages.saturating_add(weight.repeated_pages);
            sum.standard_error_pages = hypotenuse(sum.standard_error_pages, weight.standard_error_pages);
        }
        for vm in vms {
            if !sums.keys().any(|(names, _)| names.contains(vm)) {
                let weight = SignatureWeight { vms: vec![vm.clone()], ..SignatureWeight::default() };
                sums.insert((vec![vm.clone()], Vec::new()), weight);
            }
        }
        Self { version: FORMAT_VERSION, weights: sums.into_values().collect(), measured: Some(measured) }
    }
}

/// Standard errors of independent figures add by their squares.
fn hypotenuse(a: u64, b: u64) -> u64 {
    let squares = u128::from(a) * u128::from(a) + u128::from(b) * u128::from(b);
    u64::try_from(squares.isqrt()).unwrap_or(u64::MAX)
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
const fn is_false(flag: &bool) -> bool {
    !*flag
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hosts_hold_already_is_kept_apart() {
        let found = |vms: &[&str], resident: &[&str], pages, error| FoundWeight {
            vms: vms.iter().map(|&name| name.to_owned()).collect(),
            resident: resident.iter().map(|&name| name.to_owned()).collect(),
            pages,
            bytes: pages * 1000,
            repeated_pages: 1,
            standard_error_pages: error,
        };
        let all = vec![
            found(&["b", "a"], &["h1"], 10, 3),
            found(&["a", "b"], &["h1", "h1"], 20, 4),
            found(&["a", "b"], &[], 5, 0),
            found(&[], &["h1"], 100, 0),
        ];
        let names = ["a", "b", "empty"].map(str::to_owned);
        let signatures = Signatures::of_measurement(all, &names, MeasuredBy::default());
        let told: Vec<(String, usize, u64, u64)> = signatures
            .weights
            .iter()
            .map(|w| (w.vms.join(" "), w.resident.len(), w.pages, w.standard_error_pages))
            .collect();
        let expected = [("a b", 0, 5, 0), ("a b", 1, 30, 5), ("empty", 0, 0, 0)];
        assert_eq!(told, expected.map(|(vms, hosts, pages, error)| (vms.to_owned(), hosts, pages, error)));
    }
}
