//! From an inventory to a checked plan.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::check::{Violation, check};
use crate::inventory::{Inventory, InventoryError};
use crate::place::{PlaceError, Placement, place};
use crate::plan::{Group, Plan, PlannedVm, Predicted, Segment, listed};
use crate::pool::{Pool, PoolError};
use crate::predict::{LinkRates, Prediction, predict};
use crate::schedule::{Channel, GroupLimits, Schedule, SegmentWeight, schedule};
use crate::signatures::{SignatureError, Signatures, weights};
use crate::{FORMAT_VERSION, HostSet};

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// The inventory cannot be used.
    #[error(transparent)]
    Inventory(#[from] InventoryError),
    /// The signatures cannot be used.
    #[error(transparent)]
    Signatures(#[from] SignatureError),
    /// The VMs cannot be placed.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The multicast range cannot be used.
    #[error("multicast pool: {0}")]
    Pool(PoolError),
    /// The checker refused the plan that was made.
    #[error("the plan that was made does not hold; please report this:{}", listed(.0))]
    Refused(Vec<Violation>),
}

/// Makes a plan: places, schedules, predicts, and has the checker look at the result.
///
/// Without `signatures` each VM counts in full, as unlike any other. Equal arguments give equal plans.
///
/// # Errors
/// [`PlanError`].
pub fn make_plan(
    inventory: &Inventory,
    signatures: Option<&Signatures>,
    seed: u64,
) -> Result<Plan, PlanError> {
    let placement = place(inventory, signatures)?;
    let segments = segment_weights(inventory, signatures, &placement.hosts_of_vm)?;
    let pool: Pool = inventory.multicast.pool.parse().map_err(PlanError::Pool)?;
    let source_bps = bps(inventory.source.rate_mbps);
    let limits = GroupLimits {
        seed,
        ..GroupLimits::new(&inventory.multicast, &pool, inventory.isolation, source_bps)
    };
    let scheduled = schedule(&segments, &limits);
    let rates =
        LinkRates { source_bps, host_bps: inventory.hosts.iter().map(|h| bps(h.rate_mbps)).collect() };
    let predicted = predict(&segments, &scheduled, &rates);
    let plan = Plan {
        version: FORMAT_VERSION,
        name: inventory.name.clone(),
        source: inventory.source.clone(),
        hosts: inventory.hosts.clone(),
        vms: planned_vms(inventory, &placement),
        multicast: inventory.multicast.clone(),
        isolation: inventory.isolation,
        groups: groups(inventory, &scheduled, &pool),
        schedule: segments_in_order(inventory, &segments, &scheduled),
        predicted: Some(totals(&placement, &scheduled, &predicted, signatures.is_some())),
    };
    check(&plan, Some(inventory)).map_err(PlanError::Refused)?;
    Ok(plan)
}

/// The segments that follow from a placement: the bytes of each host set, sets ascending, none twice.
///
/// `hosts_of_vm` is by VM index of the inventory. With strict isolation, contents that several tenants share count
/// once for each.
///
/// # Errors
/// [`SignatureError`] if the signatures do not fit the inventory.
///
/// # Panics
/// If `hosts_of_vm` has fewer entries than the inventory has VMs.
pub fn segment_weights(
    inventory: &Inventory,
    signatures: Option<&Signatures>,
    hosts_of_vm: &[HostSet],
) -> Result<Vec<SegmentWeight>, SignatureError> {
    let mut by_hosts: BTreeMap<HostSet, u64> = BTreeMap::new();
    for (vms, bytes) in weights(inventory, signatures)? {
        let mut hosts = HostSet::new();
        for vm in vms {
            hosts.union_with(&hosts_of_vm[usize::from(vm)]);
        }
        *by_hosts.entry(hosts).or_default() += bytes;
    }
    Ok(by_hosts.into_iter().map(|(hosts, bytes)| SegmentWeight { hosts, bytes }).collect())
}

fn bps(mbps: u32) -> u64 {
    u64::from(mbps) * 1_000_000
}

fn names(inventory: &Inventory, hosts: &HostSet) -> Vec<String> {
    hosts.iter().map(|host| inventory.hosts[usize::from(host)].name.clone()).collect()
}

fn planned_vms(inventory: &Inventory, placement: &Placement) -> Vec<PlannedVm> {
    let planned = inventory.vms.iter().zip(&placement.hosts_of_vm).map(|(vm, hosts)| PlannedVm {
        name: vm.name.clone(),
        image: vm.image.clone(),
        format: vm.format,
        memory_mib: vm.memory_mib,
        vcpus: vm.vcpus,
        tenant: vm.tenant.clone(),
        hosts: names(inventory, hosts),
    });
    planned.collect()
}

fn groups(inventory: &Inventory, scheduled: &Schedule, pool: &Pool) -> Vec<Group> {
    let groups = (0u32..).zip(&scheduled.groups).map(|(id, group)| Group {
        id,
        address: pool.nth(group.address).expect("schedules stay within the pool's size").to_string(),
        hosts: names(inventory, &group.hosts),
    });
    groups.collect()
}

fn segments_in_order(
    inventory: &Inventory,
    segments: &[SegmentWeight],
    scheduled: &Schedule,
) -> Vec<Segment> {
    let in_order = scheduled.segments.iter().map(|placed| Segment {
        hosts: names(inventory, &segments[placed.segment].hosts),
        group: match placed.channel {
            Channel::Group(group) => Some(u32::try_from(group).expect("far fewer groups than 2^32")),
            Channel::Unicast => None,
        },
        predicted_bytes: segments[placed.segment].bytes,
    });
    in_order.collect()
}

fn totals(placement: &Placement, scheduled: &Schedule, predicted: &Prediction, measured: bool) -> Predicted {
    Predicted {
        measured,
        unique_bytes: predicted.unique_bytes,
        source_bytes: predicted.source_bytes,
        host_bytes: predicted.hosts.iter().map(|host| host.received_bytes).collect(),
        host_needed_bytes: predicted.hosts.iter().map(|host| host.needed_bytes).collect(),
        placement_bytes: placement.bytes,
        placement_bytes_min: placement.bytes_min,
        joins: scheduled.joins,
        membership_changes: scheduled.changes,
        membership_changes_min: if scheduled.bounds.optimal {
            scheduled.changes
        } else {
            scheduled.bounds.best()
        },
        stall_ms: ms(scheduled.stall),
        duration_ms: ms(predicted.duration),
        duration_ms_min: ms(predicted.lower_bound),
    }
}

/// Milliseconds, rounded up.
fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}
