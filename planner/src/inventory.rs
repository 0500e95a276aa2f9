//! `inventory.json`: what there is, and what the operator wants of it.

mod validate;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use validate::{Problem, Problems};

use crate::FORMAT_VERSION;

/// Hosts, VMs, constraints and the multicast range: the input of `scatter plan`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Inventory {
    /// Version of this format: 1.
    #[schemars(range(min = 1, max = 1))]
    pub version: u32,
    /// Name of the transfer, carried into the plan and its reports.
    pub name: String,
    /// The host that the VMs are on.
    pub source: Source,
    /// The target hosts, 1–65,535. Their order is kept in the plan.
    pub hosts: Vec<Host>,
    /// The VMs to move or clone, 1–65,535.
    pub vms: Vec<Vm>,
    /// Multicast addresses and the network's limits.
    pub multicast: Multicast,
    /// How far apart tenants are kept. Default: `normal`.
    #[serde(default)]
    pub isolation: Isolation,
    /// Racks of the target hosts. Default: all in one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topology: Option<Topology>,
}

/// The host that holds the VMs' memory and sends it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Name of the host, for reports.
    pub name: String,
    /// IP address whose interface sends. Default: the interface that routes to the hosts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Rate of its link, in Mbit/s (10^6 bit/s), at least 1.
    pub rate_mbps: u32,
}

/// A target host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// Name: the DNS name in the host's certificate. Letters, digits, `-`, `.` and `_`.
    pub name: String,
    /// Address of its `scatter receive`, `ip:port` (`[ip]:port` with IPv6).
    pub address: String,
    /// Memory for VMs, in MiB.
    pub memory_mib: u64,
    /// Virtual CPUs that VMs may have in all; above the number of cores to overcommit.
    pub vcpus: u32,
    /// Rate of its link, in Mbit/s (10^6 bit/s), at least 1.
    pub rate_mbps: u32,
    /// Name of its rack, one of `topology.racks`. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rack: Option<String>,
}

/// A VM to move or clone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Vm {
    /// Name, and the name of the rebuilt file `STORE/<name>.ram`: no path separators.
    pub name: String,
    /// Path of the memory image on the source host.
    pub image: String,
    /// Format of the image. Default: found by the image's first bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<ImageFormat>,
    /// Memory that it needs on a target host, in MiB, at least 1.
    pub memory_mib: u64,
    /// Virtual CPUs. Default: 1.
    #[serde(default = "one")]
    pub vcpus: u32,
    /// Whom it belongs to. VMs without a tenant belong to one nameless tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// How many copies, or where. Default: one copy, on the host that suits best.
    #[serde(default)]
    pub to: Target,
    /// Names of VMs to be near: each host with a copy of this VM also gets a copy of each of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub affinity: Vec<String>,
    /// Names of VMs to be apart from: no host gets a copy of this VM and of one of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub anti_affinity: Vec<String>,
}

/// Where the copies of a VM go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// This many copies, at least 1, each on a host of its own. One copy is a migration.
    Clones(u32),
    /// One copy on each of the hosts named.
    Hosts(Vec<String>),
}

impl Default for Target {
    fn default() -> Self {
        Self::Clones(1)
    }
}

/// Format of a memory image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ImageFormat {
    /// Guest memory, byte for byte.
    Raw,
    /// QEMU's migration stream with the `mapped-ram` capability.
    QemuMappedRam,
    /// Memory file of a Firecracker snapshot.
    Firecracker,
}

/// The multicast addresses of a transfer, and what the network bears.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Multicast {
    /// Range of group addresses, such as `239.77.0.0/16` (IPv4, /10 to /32) or `ff15::4d00:0/112` (IPv6, /96 to
    /// /128). Two transfers at once need ranges apart.
    pub pool: String,
    /// UDP port of the data, 1–65,535. Default: 47077.
    #[serde(default = "default_port")]
    pub port: u16,
    /// Most group addresses in use; switches hold a limited number. 0: everything by unicast. Default: 1024.
    #[serde(default = "default_max_groups")]
    pub max_groups: u32,
    /// Most group addresses that one host joins at once (Linux: `net.ipv4.igmp_max_memberships`). Default: 20.
    #[serde(default = "default_memberships_max")]
    pub memberships_max: u32,
    /// Time to live, or hop limit, of the datagrams, 1–255: 1 stays within the subnet. Default: 1.
    #[serde(default = "default_ttl")]
    #[schemars(range(min = 1))]
    pub ttl: u8,
    /// Milliseconds from a join to the first datagram. Default: 20 (Linux bridge: 9–20).
    #[serde(default = "default_join_latency_ms")]
    pub join_latency_ms: u32,
    /// Milliseconds for which datagrams still come after a leave. Default: 2000 (no fast-leave: 2030).
    #[serde(default = "default_leave_tail_ms")]
    pub leave_tail_ms: u32,
}

/// How far apart tenants are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Isolation {
    /// Equal pages are merged over all VMs; a sliver may travel in a group with hosts that do not need it.
    #[default]
    Normal,
    /// Pages are merged within a tenant only, and each group is exactly the hosts that need its pages.
    Strict,
}

/// The network between the hosts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Topology {
    /// Racks; hosts name theirs in `rack`.
    pub racks: Vec<Rack>,
}

/// Hosts behind one switch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rack {
    /// Name.
    pub name: String,
    /// Rate of the link between the rack's switch and the core, in Mbit/s (10^6 bit/s), at least 1.
    pub uplink_mbps: u32,
}

/// Why an inventory cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InventoryError {
    /// Not JSON, or not of the documented shape: a key is unknown, missing, or of another type.
    #[error("the inventory does not follow its format (`scatter schema inventory` prints it)")]
    Json(#[source] serde_json::Error),
    /// Of a version that this release does not read.
    #[error("the inventory has format version {found}; this release reads version {FORMAT_VERSION}")]
    Version {
        /// The version given.
        found: u64,
    },
    /// Well formed, but some of it cannot be meant.
    #[error("{0}")]
    Invalid(Problems),
}

impl Inventory {
    /// Reads and validates an inventory.
    ///
    /// # Errors
    /// [`InventoryError`]: JSON, version, or all [`Problem`]s at once.
    pub fn from_json(text: &str) -> Result<Self, InventoryError> {
        let found = format_version(text).map_err(InventoryError::Json)?;
        if found != u64::from(FORMAT_VERSION) {
            return Err(InventoryError::Version { found });
        }
        let inventory: Self = serde_json::from_str(text).map_err(InventoryError::Json)?;
        inventory.validate()?;
        Ok(inventory)
    }

    /// Checks what the types alone cannot.
    ///
    /// # Errors
    /// [`InventoryError::Version`] or [`InventoryError::Invalid`] with everything that was found.
    pub fn validate(&self) -> Result<(), InventoryError> {
        if self.version != FORMAT_VERSION {
            return Err(InventoryError::Version { found: self.version.into() });
        }
        let problems = validate::problems(self);
        if problems.is_empty() { Ok(()) } else { Err(InventoryError::Invalid(Problems(problems))) }
    }

    /// The JSON Schema (draft 2020-12) of `inventory.json`.
    #[must_use]
    pub fn schema() -> serde_json::Value {
        schemars::schema_for!(Self).to_value()
    }
}

impl Vm {
    /// Number of copies asked for.
    #[must_use]
    pub fn copies(&self) -> usize {
        match &self.to {
            Target::Clones(copies) => usize::try_from(*copies).unwrap_or(usize::MAX),
            Target::Hosts(hosts) => hosts.len(),
        }
    }
}

/// The `version` of a file of ours, whatever else is in it: a file of a later version should be refused by its
/// version, not by its first unknown key.
pub(crate) fn format_version(text: &str) -> Result<u64, serde_json::Error> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u64,
    }
    serde_json::from_str::<Versioned>(text).map(|file| file.version)
}

const fn one() -> u32 {
    1
}

const fn default_port() -> u16 {
    47077
}

const fn default_max_groups() -> u32 {
    1024
}

const fn default_memberships_max() -> u32 {
    20
}

const fn default_ttl() -> u8 {
    1
}

const fn default_join_latency_ms() -> u32 {
    20
}

const fn default_leave_tail_ms() -> u32 {
    2000
}
