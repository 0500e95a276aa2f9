//! How many bytes each exact set of VMs has in common.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::FORMAT_VERSION;
use crate::inventory::format_version;

mod indexed;
mod measured;

pub(crate) use indexed::{Weight, weights};
pub use measured::{FoundWeight, MeasuredBy, MeasuredClass, MeasuredClasses, MeasuredHost, MeasuredVm};

/// Weights per exact VM set: what measuring images leaves of them for planning.
///
/// A content (the bytes of one page, once) counts in exactly one entry: that of all VMs that hold it and all hosts that
/// have it already. Uniform pages (zero, or one repeated word) do not count: they are no bytes on the network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Signatures {
    /// Version of this format: 1.
    #[schemars(range(min = 1, max = 1))]
    pub version: u32,
    /// The weights; each set of VMs at most once with the same `resident`. A VM in no entry counts as not measured: all of its memory as
    /// unlike any other. An entry with 0 bytes says that a VM was measured and found empty.
    pub weights: Vec<SignatureWeight>,
    /// How the weights came about. Default: not told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<MeasuredBy>,
}

/// Contents held by exactly these VMs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SignatureWeight {
    /// Names of the VMs, at least one, none twice.
    pub vms: Vec<String>,
    /// Number of contents (distinct pages).
    pub pages: u64,
    /// Bytes that they take to send: 4096 a page, or less if their encoded size is known.
    pub bytes: u64,
    /// So many of these contents stand more than once in the memory of one VM; at most `pages`. Default: 0.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub repeated_pages: u64,
    /// Names of the hosts that have these contents already, and need not be sent them. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resident: Vec<String>,
    /// Standard error of `pages`, if they were estimated from a sample: two of three estimates are within it. Default: 0,
    /// all were counted.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub standard_error_pages: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
const fn is_zero(figure: &u64) -> bool {
    *figure == 0
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
    /// An entry names a host that is not in the inventory.
    #[error(
        "the signatures name host `{host}`, which is not in the inventory; measure again, or add it there"
    )]
    UnknownHost {
        /// The host.
        host: String,
    },
    /// An entry names no VM, or one twice.
    #[error("entry {index} of the signatures names {}; measure again", if .vm.is_empty() { "no VM".to_owned() } else { format!("VM `{}` twice", .vm) })]
    Malformed {
        /// Position in `weights`, from 0.
        index: usize,
        /// The VM named twice; empty if the entry names none.
        vm: String,
    },
    /// Two entries have the same VMs and the same `resident`.
    #[error("the signatures have two entries for exactly the VMs {vms:?}; measure again")]
    Duplicate {
        /// The VMs.
        vms: Vec<String>,
    },
    /// The weights, on every link and times the links' costs, exceed 64 bits.
    #[error(
        "the signatures' bytes, on all links and times their costs, add up to more than 2^64; measure again, or make the costs smaller"
    )]
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
