//! What is to be sent, in order: a plan's schedule as the sender's driver takes it.

use std::collections::BTreeMap;

use crate::{HostSet, Plan};

/// A segment on its way, or its copy for one host.
#[derive(Clone, Debug)]
pub(super) struct Item {
    /// Index in the groups; unicast if there is none.
    pub(super) group: Option<usize>,
    /// The hosts that need it.
    pub(super) hosts: HostSet,
    /// Links that a datagram crosses, each after the one towards the source.
    pub(super) tree: Vec<usize>,
    /// Payload bytes not sent yet.
    pub(super) left: u64,
}

/// A group of the plan.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub(super) members: HostSet,
    /// Number of its address.
    pub(super) address: usize,
    /// Items not sent whole.
    pub(super) items_left: usize,
    /// Units sent and not complete at all hosts.
    pub(super) in_flight: usize,
    pub(super) state: State,
}

/// A group's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Closed,
    /// Hosts are told to join; open from then on.
    Open(u64),
    Left,
}

pub(super) struct Queue {
    pub(super) items: Vec<Item>,
    pub(super) groups: Vec<Group>,
    pub(super) addresses: usize,
}

pub(super) fn queue(plan: &Plan) -> Queue {
    let network = plan.network();
    let index: BTreeMap<&str, u16> = plan.hosts.iter().map(|host| host.name.as_str()).zip(0..).collect();
    let set = |names: &[String]| -> HostSet {
        names.iter().filter_map(|name| index.get(name.as_str()).copied()).collect()
    };
    let mut addresses: BTreeMap<&str, usize> = BTreeMap::new();
    let mut by_id = BTreeMap::new();
    let mut groups = Vec::with_capacity(plan.groups.len());
    for group in &plan.groups {
        let fresh = addresses.len();
        let address = *addresses.entry(&group.address).or_insert(fresh);
        by_id.insert(group.id, groups.len());
        let members = set(&group.hosts);
        groups.push(Group { members, address, items_left: 0, in_flight: 0, state: State::Closed });
    }
    let trees: Vec<Vec<usize>> = groups.iter().map(|group| network.tree(&group.members)).collect();
    let mut items = Vec::new();
    for segment in plan.schedule.iter().filter(|segment| segment.predicted_bytes > 0) {
        let hosts = set(&segment.hosts);
        match segment.group.and_then(|id| by_id.get(&id).copied()) {
            Some(group) => {
                groups[group].items_left += 1;
                let tree = trees[group].clone();
                items.push(Item { group: Some(group), hosts, tree, left: segment.predicted_bytes });
            }
            None => items.extend(hosts.iter().map(|host| {
                let hosts: HostSet = [host].into_iter().collect();
                let tree = network.tree(&hosts);
                Item { group: None, hosts, tree, left: segment.predicted_bytes }
            })),
        }
    }
    Queue { items, groups, addresses: addresses.len() }
}
