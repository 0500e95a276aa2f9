//! Who hosts which VM, in which multicast groups, in which order.
//!
//! The way through the crate: an [`Inventory`] (hosts, VMs, constraints, the multicast range) and, where
//! images were measured, [`Signatures`] (bytes per exact set of VMs) go into [`make_plan`], which
//! [`place`]s the VMs, [`schedule`]s the host sets that follow, [`predict`]s the bytes on every link and
//! returns a [`Plan`] that passed the independent [`check`]. `send` later calls [`schedule`] again with the
//! weights that it measured itself.
//!
//! Everything here is a pure function over explicit values: no I/O, no clock, no global state; randomness
//! comes from a seed that is an argument, so equal inputs give equal plans on every machine.
//!
//! Not here: reading images, opening sockets, choosing a sending rate, compressing pages. Byte counts are
//! payload bytes as given by the caller; headers, sealing and repair come on top.
//!
//! ```
//! use planner::{Inventory, Signatures, make_plan};
//!
//! let inventory = Inventory::from_json(
//!     r#"{
//!         "version": 1, "name": "two clones",
//!         "source": { "name": "s", "rate_mbps": 1000 },
//!         "hosts": [
//!             { "name": "a", "address": "10.0.0.1:47077", "memory_mib": 4096, "vcpus": 4, "rate_mbps": 1000 },
//!             { "name": "b", "address": "10.0.0.2:47077", "memory_mib": 4096, "vcpus": 4, "rate_mbps": 1000 }
//!         ],
//!         "vms": [{ "name": "vm", "image": "vm.ram", "memory_mib": 1024, "to": { "clones": 2 } }],
//!         "multicast": { "pool": "239.77.0.0/16" }
//!     }"#,
//! )?;
//! let signatures = Signatures::from_json(
//!     r#"{ "version": 1, "weights": [{ "vms": ["vm"], "pages": 50000, "bytes": 204800000 }] }"#,
//! )?;
//! let plan = make_plan(&inventory, Some(&signatures), 0)?;
//! assert_eq!(plan.groups.len(), 1);
//! assert_eq!(plan.predicted.expect("made plans predict").source_bytes, 204_800_000);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! `docs/planner.md` explains the cost model and the bounds, `docs/plan-format.md` the two files.
#![forbid(unsafe_code)]
#![cfg_attr(test, expect(clippy::unwrap_used, reason = "a test fails by panicking"))]

pub mod answers;
mod check;
mod host_set;
pub mod inventory;
mod launch;
mod make;
mod network;
pub mod picture;
mod place;
pub mod plan;
mod pool;
mod predict;
mod rng;
mod schedule;
pub mod signatures;
pub mod simulate;

pub use check::{Violation, check, check_images};
pub use host_set::HostSet;
pub use inventory::{Inventory, InventoryError, Isolation};
pub use launch::Launch;
pub use make::{PlanError, make_plan, segment_weights};
pub use network::{Link, LinkKind, Network};
pub use place::{Change, Constraint, Infeasible, Method, PlaceError, Placement, Resource, place, place_by};
pub use plan::{Plan, PlanFileError};
pub use pool::{Pool, PoolError};
pub use predict::{LinkPrediction, Overhead, Prediction, predict};
pub use schedule::{
    Bounds, Channel, CurvePoint, GroupLimits, Membership, ModeSchedule, Schedule, ScheduledGroup,
    ScheduledSegment, SegmentWeight, best_mode, group_curve, groups_needed, schedule, schedule_by,
};
pub use signatures::{SignatureError, SignatureWeight, Signatures};

/// Version of `inventory.json`, `plan.json` and the signatures file that this release reads and writes.
pub const FORMAT_VERSION: u32 = 1;
