//! Fewer groups than host sets: which sets share one (channelization).

use super::SegmentWeight;
use super::channels::{Assignment, GroupSegments};
use crate::HostSet;

/// Most groups to begin with: the matrix of what merging two costs is searched for each merge.
pub(super) const GROUPS_MAX: usize = 3_000;

/// A group under construction.
struct Merged {
    hosts: HostSet,
    /// Bytes that every member gets.
    bytes: u64,
    parts: Vec<usize>,
    /// The cheapest partner after this one, and what merging costs in bytes that hosts get without need.
    partner: Option<(u64, usize)>,
}

/// Merges groups until `count` are left, always the two whose union brings fewest bytes to hosts that do not need them:
/// `b_a |B ∖ A| + b_b |A ∖ B|` (ALGORITHMS.md 2 (c); the problem is NP-complete). O(K^2) to O(K^3) time for K groups, in
/// practice near the former. `None` above 3,000 groups.
pub(super) fn merged(
    segments: &[SegmentWeight],
    assignment: &Assignment,
    count: usize,
) -> Option<Assignment> {
    if assignment.groups.len() > GROUPS_MAX || count == 0 {
        return None;
    }
    let bytes = |group: &GroupSegments| {
        group.own.iter().chain(&group.riders).fold(0u64, |sum, &s| sum.saturating_add(segments[s].bytes))
    };
    let mut all: Vec<Option<Merged>> = assignment
        .groups
        .iter()
        .enumerate()
        .map(|(number, group)| {
            let (hosts, bytes) = (group.hosts.clone(), bytes(group));
            Some(Merged { hosts, bytes, parts: vec![number], partner: None })
        })
        .collect();
    for slot in 0..all.len() {
        find_partner(&mut all, slot);
    }
    for _ in count..assignment.groups.len() {
        let best =
            all.iter().enumerate().filter_map(|(slot, group)| Some((group.as_ref()?.partner?, slot))).min();
        let Some(((_, other), slot)) = best else { break };
        let gone = all[other].take().expect("partners are there");
        let group = all[slot].as_mut().expect("it has a partner");
        group.hosts.union_with(&gone.hosts);
        group.bytes = group.bytes.saturating_add(gone.bytes);
        group.parts.extend(gone.parts);
        for at in 0..all.len() {
            let is_stale = |group: &Merged| group.partner.is_some_and(|(_, p)| p == slot || p == other);
            if at == slot || all[at].as_ref().is_some_and(is_stale) {
                find_partner(&mut all, at);
            } else if at < slot {
                offer(&mut all, at, slot);
            }
        }
    }
    let group = |merged: Merged| {
        let of = |list: fn(&GroupSegments) -> &Vec<usize>| {
            let parts = merged.parts.iter().flat_map(|&part| list(&assignment.groups[part]).iter().copied());
            parts.collect::<Vec<_>>()
        };
        GroupSegments { own: of(|g| &g.own), riders: of(|g| &g.riders), hosts: merged.hosts.clone() }
    };
    let groups = all.into_iter().flatten().map(group).collect();
    Some(Assignment { groups, unicast: assignment.unicast.clone() })
}

/// What merging two costs.
fn waste(a: &Merged, b: &Merged) -> u64 {
    let only = |one: &HostSet, other: &HostSet| one.difference(other).len() as u64;
    let of_a = a.bytes.saturating_mul(only(&b.hosts, &a.hosts));
    of_a.saturating_add(b.bytes.saturating_mul(only(&a.hosts, &b.hosts)))
}

fn find_partner(all: &mut [Option<Merged>], slot: usize) {
    let Some(group) = &all[slot] else { return };
    let later = all.iter().enumerate().skip(slot + 1);
    let best = later.filter_map(|(at, other)| Some((waste(group, other.as_ref()?), at))).min();
    if let Some(group) = &mut all[slot] {
        group.partner = best;
    }
}

/// Lets one group take another that changed for its partner, if that is cheaper.
fn offer(all: &mut [Option<Merged>], at: usize, changed: usize) {
    let (Some(group), Some(other)) = (&all[at], &all[changed]) else { return };
    let offered = (waste(group, other), changed);
    if let Some(group) = &mut all[at]
        && group.partner.is_none_or(|partner| offered < partner)
    {
        group.partner = Some(offered);
    }
}
