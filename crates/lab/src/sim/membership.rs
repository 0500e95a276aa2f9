//! A host's memberships as the host and the switch see them.

use std::collections::BTreeMap;
use std::time::Duration;

#[derive(Clone, Copy)]
struct Membership {
    /// The host wants the group's datagrams.
    member: bool,
    /// The switch forwards from here …
    from: Duration,
    /// … to here.
    until: Duration,
}

#[derive(Default)]
pub(super) struct Memberships(BTreeMap<u32, Membership>);

impl Memberships {
    pub(super) fn join(&mut self, group: u32, now: Duration, latency: Duration) {
        let forwarded = self.is_forwarded(group, now);
        let entry = self.0.entry(group).or_insert(Membership {
            member: false,
            from: now + latency,
            until: Duration::MAX,
        });
        if entry.member {
            return;
        }
        // Within the tail of an earlier membership the switch forwards still, so nothing has to be waited for.
        let from = if forwarded { entry.from } else { now + latency };
        *entry = Membership { member: true, from, until: Duration::MAX };
    }

    pub(super) fn leave(&mut self, group: u32, now: Duration, tail: Duration) {
        if let Some(entry) = self.0.get_mut(&group)
            && entry.member
        {
            entry.member = false;
            entry.until = now + tail;
        }
    }

    pub(super) fn leave_all(&mut self, now: Duration, tail: Duration) {
        let groups: Vec<u32> = self.0.keys().copied().collect();
        for group in groups {
            self.leave(group, now, tail);
        }
    }

    pub(super) fn is_forwarded(&self, group: u32, at: Duration) -> bool {
        self.0.get(&group).is_some_and(|entry| (entry.from..entry.until).contains(&at))
    }

    pub(super) fn is_member(&self, group: u32) -> bool {
        self.0.get(&group).is_some_and(|entry| entry.member)
    }
}
