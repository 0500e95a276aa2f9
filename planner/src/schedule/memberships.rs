//! Addresses of the groups, and when each host joins and leaves.

use std::collections::VecDeque;
use std::time::Duration;

use super::{Channel, GroupLimits, Membership, ScheduledGroup, ScheduledSegment};
use crate::HostSet;

/// Addresses considered for reuse, oldest first.
const REUSE_CONSIDERED: usize = 64;

pub(super) struct Joined {
    pub(super) groups: Vec<ScheduledGroup>,
    pub(super) memberships: Vec<Membership>,
    pub(super) joins: u64,
    pub(super) stall: Duration,
    /// Position and time of each wait.
    pub(super) waits: Vec<(usize, Duration)>,
    pub(super) duration: Duration,
}

/// A group address that has been used.
struct Used {
    address: u32,
    /// The last group that used it.
    group: usize,
    /// When that group's last segment was sent.
    ended: Duration,
}

/// An address that a host has joined.
struct Active {
    address: u32,
    leave_after: usize,
    /// Index of the membership.
    membership: usize,
}

#[derive(Default)]
struct HostState {
    active: Vec<Active>,
    /// Most addresses joined at once so far.
    peak: usize,
}

/// Gives each group an address and each of its members the time to join and to leave. `members` are the groups in
/// order; `costs` the bytes on the source's link of each position of `timeline`.
pub(super) fn memberships(
    members: &[HostSet],
    timeline: &[ScheduledSegment],
    costs: &[u64],
    limits: &GroupLimits,
) -> Joined {
    let mut planner = Timing::new(timeline, costs, limits);
    planner.scarce = members.len() > usize::try_from(limits.addresses()).unwrap_or(usize::MAX);
    let mut position = 0;
    while position < timeline.len() {
        match timeline[position].channel {
            Channel::Unicast => {
                planner.send(position);
                position += 1;
            }
            Channel::Group(group) => {
                let length =
                    timeline[position..].iter().take_while(|s| s.channel == Channel::Group(group)).count();
                planner.group(&members[group], position, position + length - 1);
                position += length;
            }
        }
    }
    planner.joined.duration = planner.clock;
    planner.joined
}

/// A group's turn on an address.
struct Turn {
    group: usize,
    address: u32,
    /// The group that used the address before.
    previous: Option<usize>,
    /// Memberships that ended before this position need no more be known.
    recent: usize,
    /// The latest position to join before that costs no time, but not before the address is free.
    earliest: usize,
    /// Position of the group's last segment.
    last: usize,
}

struct Timing<'a> {
    limits: &'a GroupLimits,
    costs: &'a [u64],
    /// When each position would begin if the source never waited.
    unstalled: Vec<Duration>,
    /// When each position begins.
    begins: Vec<Duration>,
    clock: Duration,
    addresses: u32,
    /// Whether there are more groups than addresses.
    scarce: bool,
    used: VecDeque<Used>,
    hosts: Vec<HostState>,
    joined: Joined,
}

impl<'a> Timing<'a> {
    fn new(timeline: &[ScheduledSegment], costs: &'a [u64], limits: &'a GroupLimits) -> Self {
        let mut sum = 0u64;
        let unstalled = costs.iter().map(|&cost| {
            let begin = limits.time_of(sum);
            sum = sum.saturating_add(cost);
            begin
        });
        Self {
            limits,
            costs,
            unstalled: unstalled.collect(),
            begins: Vec::with_capacity(timeline.len()),
            clock: Duration::ZERO,
            addresses: 0,
            scarce: false,
            used: VecDeque::new(),
            hosts: Vec::new(),
            joined: Joined {
                groups: Vec::new(),
                memberships: Vec::new(),
                joins: 0,
                stall: Duration::ZERO,
                waits: Vec::new(),
                duration: Duration::ZERO,
            },
        }
    }

    /// Sends the next position.
    fn send(&mut self, position: usize) {
        self.begins.push(self.clock);
        self.clock = self.clock.saturating_add(self.limits.time_of(self.costs[position]));
    }

    /// Schedules the next group, whose segments are at `first..=last`.
    fn group(&mut self, members: &HostSet, first: usize, last: usize) {
        let latency = self.limits.join_latency;
        let ahead =
            self.unstalled.partition_point(|&begin| begin.saturating_add(latency) <= self.unstalled[first]);
        let wanted = ahead.saturating_sub(1).min(first);
        let (address, previous) = self.address(members, first, last, wanted);
        let earliest = previous.map_or(wanted, |group| wanted.max(self.joined.groups[group].last + 1));
        let index = self.joined.groups.len();
        // No later group wants to join before this one does, so what ended by then counts no more, unless its
        // address comes back within a leave's tail.
        let tail_begin = self.clock.saturating_sub(self.limits.leave_tail);
        let in_tail = if self.scarce { self.begins.partition_point(|&b| b < tail_begin) } else { wanted };
        let turn = Turn { group: index, address, previous, recent: wanted.min(in_tail), earliest, last };
        let mut ready = self.clock;
        for host in members.iter() {
            let join = self.join(host, &turn);
            if let Some(join) = join {
                self.joined.joins += 1;
                ready = ready.max(self.begins.get(join).unwrap_or(&self.clock).saturating_add(latency));
            }
        }
        // At rate 0 nothing is known of times.
        if self.limits.rate_bps > 0 {
            let wait = ready - self.clock;
            self.joined.stall = self.joined.stall.saturating_add(wait);
            if !wait.is_zero() {
                self.joined.waits.push((first, wait));
            }
            self.clock = ready;
        }
        for position in first..=last {
            self.send(position);
        }
        self.joined.groups.push(ScheduledGroup { hosts: members.clone(), address, first, last });
        self.used.push_back(Used { address, group: index, ended: self.clock });
    }

    /// Notes a host's time in a group; returns the position before which it has to join the address, or `None` if it
    /// stayed joined to it.
    fn join(&mut self, host: u16, turn: &Turn) -> Option<usize> {
        let &Turn { group, address, previous, earliest, last, .. } = turn;
        let index = usize::from(host);
        if index >= self.hosts.len() {
            self.hosts.resize_with(index + 1, HostState::default);
        }
        let state = &mut self.hosts[index];
        let same =
            state.active.iter().position(|a| a.address == address).map(|slot| state.active.swap_remove(slot));
        state.active.retain(|a| a.leave_after >= turn.recent);
        let max = usize::try_from(self.limits.memberships_max).unwrap_or(usize::MAX);
        let still_joined =
            |at: usize| state.active.iter().map(|a| a.leave_after).filter(move |&leave| leave >= at);
        let mut join = earliest;
        let mut count = still_joined(join).count();
        if count >= max {
            let mut leaves: Vec<usize> = still_joined(join).collect();
            leaves.sort_unstable();
            join = leaves[count - max] + 1;
            count = still_joined(join).count();
        }
        state.peak = state.peak.max(count + 1);
        let mut stays = false;
        if let Some(before) = same {
            let gap = before.leave_after + 1..join;
            let time = self.unstalled[join].saturating_sub(self.unstalled[gap.start.min(join)]);
            // While another group used the address, staying would have brought its bytes.
            stays = previous == Some(self.joined.memberships[before.membership].group)
                && (gap.is_empty() || (time < self.limits.leave_tail && state.peak < max));
            if stays {
                state.peak += usize::from(!gap.is_empty());
                self.joined.memberships[before.membership].leave_after = join;
            }
        }
        state.active.push(Active { address, leave_after: last, membership: self.joined.memberships.len() });
        self.joined.memberships.push(Membership { host, group, join_before: join, leave_after: last });
        (!stays).then_some(join)
    }

    /// An address for a group: one never used, else the one whose reuse costs least. Also the group that had it.
    fn address(
        &mut self,
        members: &HostSet,
        first: usize,
        last: usize,
        wanted: usize,
    ) -> (u32, Option<usize>) {
        if self.addresses < self.limits.addresses() {
            self.addresses += 1;
            return (self.addresses - 1, None);
        }
        let bytes: u64 = self.costs[first..=last].iter().fold(0, |sum, &cost| sum.saturating_add(cost));
        let considered = self.used.iter().take(REUSE_CONSIDERED).enumerate();
        let (slot, _) = considered
            .min_by_key(|(slot, used)| {
                let had = &self.joined.groups[used.group];
                let late = (had.last + 1).saturating_sub(wanted);
                (self.unwanted(used, members, bytes), late, members.distance(&had.hosts), *slot)
            })
            .expect("limits that allow no address have no groups");
        let used = self.used.remove(slot).expect("it was found there");
        (used.address, Some(used.group))
    }

    /// Bytes of a new group that hosts would still get which left the address too short a time ago.
    fn unwanted(&self, used: &Used, members: &HostSet, bytes: u64) -> u64 {
        let tail = used.ended.saturating_add(self.limits.leave_tail).saturating_sub(self.clock);
        if tail.is_zero() {
            return 0;
        }
        let gone = self.joined.groups[used.group].hosts.difference(members).len() as u64;
        gone.saturating_mul(bytes.min(self.limits.bytes_in(tail)))
    }
}
