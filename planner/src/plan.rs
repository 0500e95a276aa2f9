//! `plan.json`: who goes where, in which groups, in which order.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::check::{Violation, check};
use crate::host_set::host_index;
use crate::inventory::{Host, ImageFormat, Isolation, Multicast, Source, Topology, format_version};
use crate::launch::Launch;
use crate::pool::{Pool, PoolError};
use crate::{FORMAT_VERSION, GroupLimits, HostSet, Network, SegmentWeight};

mod predicted;

pub use predicted::{Alternative, ClassBytes, LinkLoad, Mode, ModeCost, Predicted};

/// A plan: what `scatter plan` writes and `scatter send --group plan.json` runs.
///
/// `groups`, `schedule` and `predicted` are what was foreseen; `send` schedules again with what it measures. A plan
/// written by hand may leave all three out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Version of this format: 1.
    #[schemars(range(min = 1, max = 1))]
    pub version: u32,
    /// Name of the transfer.
    pub name: String,
    /// The host that sends.
    pub source: Source,
    /// The target hosts. Their order gives the host indexes.
    pub hosts: Vec<Host>,
    /// The VMs and the hosts that each goes to. Their order gives the VM indexes.
    pub vms: Vec<PlannedVm>,
    /// Multicast addresses, port and limits; groups not foreseen take addresses of the same pool.
    pub multicast: Multicast,
    /// How far apart tenants are kept.
    #[serde(default)]
    pub isolation: Isolation,
    /// Names of the hosts that hold contents already which their VMs need: `send` asks them which. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resident: Vec<String>,
    /// Racks and the links between them. Default: all hosts, and the source, behind one switch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topology: Option<Topology>,
    /// What the plan was made from, so that a stale one is known. A plan written by hand has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// The groups, in the order of their first segments.
    #[serde(default)]
    pub groups: Vec<Group>,
    /// The segments in the order of sending; each host set at most once.
    #[serde(default)]
    pub schedule: Vec<Segment>,
    /// Predicted totals. Bytes are payload, without headers and repair.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predicted: Option<Predicted>,
}

/// A VM and where it goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PlannedVm {
    /// Name, and the name of the rebuilt file `STORE/<name>.ram`.
    pub name: String,
    /// Path of the memory image on the source host; `qmp:SOCKET` is a QEMU that runs, which `scatter clone` captures.
    pub image: String,
    /// Format of the image. Default: found by the image's first bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<ImageFormat>,
    /// Memory that it needs on a target host, in MiB.
    pub memory_mib: u64,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Whom it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Names of the hosts that get a copy, at least one, none twice.
    pub hosts: Vec<String>,
    /// How many clones each of `hosts` starts from its copy, each at least 1. Default: one on each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub instances: Vec<u32>,
    /// The image as it was when the plan was made. Default: it was not looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stamp: Option<ImageStamp>,
    /// How it is started at its hosts while its memory arrives, by `scatter clone`. Default: its memory is a file there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub launch: Option<Launch>,
}

/// What tells an image that was written since from one that was not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageStamp {
    /// Bytes of the file.
    pub bytes: u64,
    /// When it was last written, in nanoseconds since 1970.
    pub modified_ns: u64,
}

/// What a plan was made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// Path of the inventory. Default: it was no file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inventory: Option<String>,
    /// [`crate::Inventory::fingerprint`] of the inventory.
    pub fingerprint: String,
    /// Seed of the searches.
    pub seed: u64,
}

/// A multicast group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// Number that the schedule names it by; no other group has it.
    pub id: u32,
    /// Its multicast address, of the pool. Groups share one only if all segments of one come before those of the other.
    pub address: String,
    /// Names of its members, at least one, none twice.
    pub hosts: Vec<String>,
}

/// Contents of one host set, sent together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Segment {
    /// Names of the hosts that need the contents, at least one, none twice.
    pub hosts: Vec<String>,
    /// Id of the group that carries them, or null for unicast to each host.
    pub group: Option<u32>,
    /// Predicted bytes of the contents, each counted once.
    pub predicted_bytes: u64,
    /// Of these, what names contents to the one host, which holds them already. Default: 0.
    #[serde(default, skip_serializing_if = "predicted::is_zero")]
    pub named_bytes: u64,
    /// Names of hosts whose VMs need some of the contents and that have them already. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resident: Vec<String>,
}

/// Why a plan cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlanFileError {
    /// Not JSON, or not of the documented shape: a key is unknown, missing, or of another type.
    #[error("the plan does not follow its format (`scatter schema plan` prints it)")]
    Json(#[source] serde_json::Error),
    /// Of a version that this release does not read.
    #[error("the plan has format version {found}; this release reads version {FORMAT_VERSION}")]
    Version {
        /// The version given.
        found: u64,
    },
    /// The checker refuses it.
    #[error("the plan does not hold; make it again with `scatter plan`:{}", listed(.0))]
    Refused(Vec<Violation>),
}

pub(crate) fn listed(violations: &[Violation]) -> String {
    violations.iter().map(|violation| format!("\n- {violation}")).collect()
}

impl Plan {
    /// Reads a plan and runs the checker on it.
    ///
    /// # Errors
    /// [`PlanFileError`]: JSON, version, or all [`Violation`]s at once.
    pub fn from_json(text: &str) -> Result<Self, PlanFileError> {
        let found = format_version(text).map_err(PlanFileError::Json)?;
        if found != u64::from(FORMAT_VERSION) {
            return Err(PlanFileError::Version { found });
        }
        let plan: Self = serde_json::from_str(text).map_err(PlanFileError::Json)?;
        check(&plan, None).map_err(PlanFileError::Refused)?;
        Ok(plan)
    }

    /// The plan as indented JSON, ending in a newline.
    ///
    /// # Panics
    /// Never: a plan's keys are strings and its numbers integers.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("string keys and integers are valid JSON");
        text.push('\n');
        text
    }

    /// The JSON Schema (draft 2020-12) of `plan.json`.
    #[must_use]
    pub fn schema() -> serde_json::Value {
        schemars::schema_for!(Self).to_value()
    }

    /// The host set of each VM, by VM index. Names of hosts that the plan lacks are skipped; a checked plan has none.
    #[must_use]
    pub fn hosts_of_vms(&self) -> Vec<HostSet> {
        let index: BTreeMap<&str, u16> =
            self.hosts.iter().enumerate().map(|(i, host)| (host.name.as_str(), host_index(i))).collect();
        let set =
            |vm: &PlannedVm| vm.hosts.iter().filter_map(|name| index.get(name.as_str()).copied()).collect();
        self.vms.iter().map(set).collect()
    }

    /// How many clones of each VM each host starts: by VM index, host index and count, hosts in the plan's order.
    #[must_use]
    pub fn instances_of_vms(&self) -> Vec<Vec<(u16, u32)>> {
        let index: BTreeMap<&str, u16> =
            self.hosts.iter().enumerate().map(|(i, host)| (host.name.as_str(), host_index(i))).collect();
        let counts = |vm: &PlannedVm| {
            let of = |(i, name): (usize, &String)| {
                Some((*index.get(name.as_str())?, vm.instances.get(i).copied().unwrap_or(1)))
            };
            vm.hosts.iter().enumerate().filter_map(of).collect()
        };
        self.vms.iter().map(counts).collect()
    }

    /// The links from the source to the hosts.
    #[must_use]
    pub fn network(&self) -> Network {
        Network::new(&self.source, &self.hosts, self.topology.as_ref())
    }

    /// The predicted segments, in the order of `schedule`. Names of hosts that the plan lacks are skipped.
    #[must_use]
    pub fn segment_weights(&self) -> Vec<SegmentWeight> {
        let index: BTreeMap<&str, u16> =
            self.hosts.iter().enumerate().map(|(i, host)| (host.name.as_str(), host_index(i))).collect();
        let weight = |segment: &Segment| SegmentWeight {
            hosts: segment.hosts.iter().filter_map(|name| index.get(name.as_str()).copied()).collect(),
            bytes: segment.predicted_bytes,
        };
        self.schedule.iter().map(weight).collect()
    }

    /// The range of group addresses.
    ///
    /// # Errors
    /// [`PoolError`]; never for a checked plan.
    pub fn pool(&self) -> Result<Pool, PoolError> {
        self.multicast.pool.parse()
    }

    /// Limits for [`crate::schedule`] when sending at `rate_bps` (bit/s).
    ///
    /// # Errors
    /// [`PoolError`]; never for a checked plan.
    pub fn group_limits(&self, rate_bps: u64) -> Result<GroupLimits, PoolError> {
        Ok(GroupLimits::new(&self.multicast, &self.pool()?, self.isolation, rate_bps))
    }
}
