//! What a VM needs, beside its memory, to be started at its hosts while the memory arrives.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A VM that `scatter clone` starts. The planner passes this on; `scatter send` does not look at it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Launch {
    /// What runs it, as hosts allow it by `scatter receive --launch`: `microvm`, `firecracker`, `qemu`.
    pub kind: String,
    /// Files of device state and settings, by the name that the kind knows them by: `{"state": "golden.state"}`. Relative paths
    /// start at the plan. May be left out where the image itself has them: a QEMU that runs (`qmp:SOCKET`), a mapped-ram file, an image
    /// of `virsh save`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attachments: BTreeMap<String, String>,
    /// What the host's program must be able to run (version, machine, CPU), for kinds that compare it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub fingerprint: String,
    /// File of its recorded working set (`scatter microvm`, `scatter clone --record`): pages in the order in which a guest first
    /// touched them, which are sent first. Relative paths start at the plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_set: Option<String>,
}
