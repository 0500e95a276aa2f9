//! From an inventory to a checked plan.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::check::{Violation, check};
use crate::inventory::{Inventory, InventoryError};
use crate::network::{Crossed, Link, Network};
use crate::place::{PlaceError, Placement, place};
use crate::plan::{
    Alternative, ClassBytes, Group, LinkLoad, ModeCost, Origin, Plan, PlannedVm, Predicted, Segment, listed,
};
use crate::pool::{Pool, PoolError};
use crate::predict::{LinkPrediction, Overhead, Prediction, predict, time};
use crate::schedule::{Channel, GroupLimits, Schedule, SegmentWeight, best_mode};
use crate::signatures::{SignatureError, Signatures, Weight, weights};
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

/// What a content takes that is only named to a host that holds it, about: 16 bytes of name, where it belongs, its part of a
/// block's header.
const NAMED_BYTES: u64 = 20;

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
    let placement = place(inventory, signatures, seed)?;
    let weights = weights(inventory, signatures)?;
    let sets = by_host_set(&weights, &placement.hosts_of_vm);
    let HostSets { segments, classes, resident, counted_on } = sets;
    let pool: Pool = inventory.multicast.pool.parse().map_err(PlanError::Pool)?;
    let network = Network::new(&inventory.source, &inventory.hosts, inventory.topology.as_ref());
    let limits = GroupLimits {
        seed,
        ..GroupLimits::new(&inventory.multicast, &pool, inventory.isolation, network.links()[0].rate_bps)
    };
    let mut ways = best_mode(&segments, &limits, &network);
    let modes: Vec<ModeCost> = ways.iter().map(|way| way.cost.clone()).collect();
    let scheduled = ways.swap_remove(0).schedule;
    let predicted = predict(&segments, &scheduled, &network, &Overhead::of(&inventory.multicast));
    let made = Made { placement, segments, classes, resident, network, modes, scheduled, predicted };
    let plan = Plan {
        version: FORMAT_VERSION,
        name: inventory.name.clone(),
        source: inventory.source.clone(),
        hosts: inventory.hosts.clone(),
        vms: planned_vms(inventory, &made.placement),
        multicast: inventory.multicast.clone(),
        isolation: inventory.isolation,
        resident: names(inventory, &counted_on),
        topology: inventory.topology.clone(),
        origin: Some(Origin { inventory: None, fingerprint: inventory.fingerprint(), seed }),
        groups: groups(inventory, &made.scheduled, &pool),
        schedule: segments_in_order(inventory, &made),
        predicted: Some(made.totals(signatures.is_some())),
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
    Ok(by_host_set(&weights(inventory, signatures)?, hosts_of_vm).segments)
}

/// What goes to each host set, sets ascending.
struct HostSets {
    segments: Vec<SegmentWeight>,
    classes: Vec<ClassBytes>,
    /// Hosts whose VMs need some of it, and that have it already.
    resident: Vec<HostSet>,
    /// Hosts that have something already that their VMs need.
    counted_on: HostSet,
}

fn by_host_set(weights: &[Weight], hosts_of_vm: &[HostSet]) -> HostSets {
    let mut by_hosts: BTreeMap<HostSet, (ClassBytes, HostSet)> = BTreeMap::new();
    let mut counted_on = HostSet::new();
    for weight in weights {
        let needing = weight.needing(hosts_of_vm);
        for host in needing.iter().filter(|host| weight.resident.contains(*host)) {
            counted_on.insert(host);
            let named =
                ClassBytes { named: weight.pages.saturating_mul(NAMED_BYTES), ..ClassBytes::default() };
            by_hosts.entry([host].into_iter().collect()).or_default().0.add(&named);
        }
        let hosts = weight.hosts(hosts_of_vm);
        let mut class = ClassBytes::default();
        match (hosts.len(), weight.vms.len()) {
            // Every host that needs these has them.
            (0, _) => continue,
            (1, 1) => (class.repeated, class.unique) = (weight.repeated, weight.bytes - weight.repeated),
            (1, _) => class.one_host = weight.bytes,
            _ => class.several_hosts = weight.bytes,
        }
        let entry = by_hosts.entry(hosts).or_default();
        entry.0.add(&class);
        entry.1.union_with(&weight.resident);
    }
    let segment = |(hosts, (class, _)): (&HostSet, &(ClassBytes, HostSet))| SegmentWeight {
        hosts: hosts.clone(),
        bytes: class.total(),
    };
    HostSets {
        segments: by_hosts.iter().map(segment).collect(),
        classes: by_hosts.values().map(|(class, _)| *class).collect(),
        resident: by_hosts.into_values().map(|(_, resident)| resident).collect(),
        counted_on,
    }
}

fn names(inventory: &Inventory, hosts: &HostSet) -> Vec<String> {
    hosts.iter().map(|host| inventory.hosts[usize::from(host)].name.clone()).collect()
}

fn planned_vms(inventory: &Inventory, placement: &Placement) -> Vec<PlannedVm> {
    let placed = placement.hosts_of_vm.iter().zip(&placement.instances_of_vm);
    let planned = inventory.vms.iter().zip(placed).map(|(vm, (hosts, instances))| PlannedVm {
        name: vm.name.clone(),
        image: vm.image.clone(),
        format: vm.format,
        memory_mib: vm.memory_mib,
        vcpus: vm.vcpus,
        tenant: vm.tenant.clone(),
        hosts: names(inventory, hosts),
        instances: if instances.iter().all(|&count| count == 1) { Vec::new() } else { instances.clone() },
        stamp: None,
        launch: vm.launch.clone(),
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

fn segments_in_order(inventory: &Inventory, made: &Made) -> Vec<Segment> {
    let in_order = made.scheduled.segments.iter().map(|placed| Segment {
        hosts: names(inventory, &made.segments[placed.segment].hosts),
        group: match placed.channel {
            Channel::Group(group) => Some(u32::try_from(group).expect("far fewer groups than 2^32")),
            Channel::Unicast => None,
        },
        predicted_bytes: made.segments[placed.segment].bytes,
        named_bytes: made.classes[placed.segment].named,
        resident: names(inventory, &made.resident[placed.segment]),
    });
    in_order.collect()
}

/// Everything that a plan is written from.
struct Made {
    placement: Placement,
    segments: Vec<SegmentWeight>,
    /// Of each segment.
    classes: Vec<ClassBytes>,
    resident: Vec<HostSet>,
    network: Network,
    /// The one chosen first.
    modes: Vec<ModeCost>,
    scheduled: Schedule,
    predicted: Prediction,
}

impl Made {
    fn totals(&self, measured: bool) -> Predicted {
        let (placement, scheduled, predicted) = (&self.placement, &self.scheduled, &self.predicted);
        let host_links = self.network.host_link(0)..;
        Predicted {
            measured,
            unique_bytes: predicted.unique_bytes,
            source_bytes: predicted.links[0].bytes,
            host_bytes: predicted.links[host_links].iter().map(|link| link.bytes).collect(),
            host_needed_bytes: predicted.needed_bytes.clone(),
            links: self.link_loads(),
            placement_bytes: predicted.needed_bytes.iter().sum(),
            placement_cost: placement.cost,
            placement_cost_min: placement.cost_min,
            placement_method: placement.method.to_string(),
            placement_alternatives: placement
                .alternatives
                .iter()
                .map(|(method, cost)| Alternative { method: method.to_string(), cost: *cost })
                .collect(),
            mode: self.modes[0].mode,
            modes: self.modes.clone(),
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
            host_done_ms: predicted.done.iter().map(|&done| ms(done)).collect(),
        }
    }

    fn link_loads(&self) -> Vec<LinkLoad> {
        let links = self.network.links();
        let mut classes = vec![ClassBytes::default(); links.len()];
        let mut crossed = Crossed::new(&self.network);
        for (segment, class) in self.segments.iter().zip(&self.classes) {
            for &link in crossed.by(&self.network, &segment.hosts) {
                classes[link].add(class);
            }
        }
        let loads = links.iter().zip(&self.predicted.links).zip(classes);
        let load = |((link, load), classes): ((&Link, &LinkPrediction), ClassBytes)| LinkLoad {
            kind: link.kind,
            name: link.name.clone(),
            rate_mbps: link.rate_bps / 1_000_000,
            bytes: load.bytes,
            classes,
            extra_bytes: load.bytes - load.needed_bytes,
            network_bytes: load.network_bytes,
            busy_ms: ms(time(load.network_bytes, link.rate_bps)),
        };
        loads.map(load).collect()
    }
}

/// Milliseconds, rounded up.
fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}
