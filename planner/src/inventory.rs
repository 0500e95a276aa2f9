//! `inventory.json`: what there is, and what the operator wants of it.

mod network;
mod validate;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use network::{Host, Isolation, Multicast, Rack, Source, Topology};
pub use validate::{Problem, Problems};

use crate::FORMAT_VERSION;
use crate::launch::Launch;

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
    /// Racks and the links between them. Default: all hosts, and the source, behind one switch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topology: Option<Topology>,
}

/// A VM to move or clone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Vm {
    /// Name, and the name of the rebuilt file `STORE/<name>.ram`: no path separators.
    pub name: String,
    /// Path of the memory image on the source host; `qmp:SOCKET` is a QEMU that runs, which `scatter clone` captures.
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
    /// How it is started at its hosts while its memory arrives, by `scatter clone`. Default: its memory is a file there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub launch: Option<Launch>,
    /// How many copies, or where. Default: one copy, on the host that suits best.
    #[serde(default)]
    pub to: Target,
    /// Most clones on one host, at least 1. A host gets the pages once however many clones it starts from them, but
    /// each clone takes memory and vCPUs. Default: 1.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub clones_per_host: u32,
    /// Names of VMs to be near: each host with a copy of this VM also gets a copy of each of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub affinity: Vec<String>,
    /// Names of VMs to be apart from: no host (rack, failure domain; see `apart`) gets a copy of this VM and of one of
    /// these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub anti_affinity: Vec<String>,
    /// What this VM shares with none of `anti_affinity`, and no two hosts that have clones of it: a host, a rack, or a
    /// failure domain. Default: `host`.
    #[serde(default, skip_serializing_if = "Apart::is_host")]
    pub apart: Apart,
}

/// What VMs that are to be apart must not share.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Apart {
    /// A host.
    #[default]
    Host,
    /// A rack: hosts that name the same `rack`. A host that names none is a rack of its own.
    Rack,
    /// A failure domain: hosts that name the same `domain`. A host that names none is a domain of its own.
    Domain,
}

impl Apart {
    /// Whether it is the default. Takes a reference, as serde wants it.
    fn is_host(&self) -> bool {
        *self == Self::Host
    }
}

/// Where the copies of a VM go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// This many copies, at least 1, at most `clones_per_host` of them on one host. One copy is a migration.
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

    /// A digest of everything in it: BLAKE3 of its JSON, in hexadecimal. Equal inventories have equal ones, however
    /// their files are laid out.
    ///
    /// # Panics
    /// Never: an inventory's keys are strings and its numbers integers.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let json = serde_json::to_vec(self).expect("string keys and integers are valid JSON");
        blake3::hash(&json).to_hex().to_string()
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

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
const fn is_one(figure: &u32) -> bool {
    *figure == 1
}
