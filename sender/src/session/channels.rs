//! Channels and segments: joins ahead of need, leaves when no longer needed.

use super::host::Membership;
use super::{ChannelSpec, Event, SegmentSpec, Session};
use std::time::Duration;
use wire::ChannelId;
use wire::control::{Join, ToHost};

/// A channel that is being opened waits so long for the `Joined` of a slower half of its members …
const JOIN_WAIT_MAX: Duration = Duration::from_secs(1);
/// … and so long for that of most, or all of them.
const JOIN_WAIT_MOST_MAX: Duration = Duration::from_secs(4);

pub(super) struct Channel {
    pub(super) spec: ChannelSpec,
    /// The last segment that uses it.
    last_segment: usize,
    pub(super) state: State,
    /// Datagrams sent.
    pub(super) sent: u64,
    /// Bytes of its blocks in the window.
    pub(super) window_used: u64,
    /// When last looked at, a member had no credit left.
    pub(super) blocked: bool,
    /// Not left before: blocks are being recalled on it.
    pub(super) hold_until: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    Closed,
    /// Members were asked to join at this time.
    Opening(Duration),
    /// Data may flow from this time on.
    Open(Duration),
    Left,
}

pub(super) struct Segment {
    pub(super) channel: usize,
    pub(super) circle: u32,
    expected_bytes: u64,
    pub(super) encoded_bytes: u64,
    /// Bytes of its blocks handed out.
    pub(super) sent_bytes: u64,
    /// Blocks not handed out yet.
    pub(super) waiting: std::collections::VecDeque<u64>,
    pub(super) encoded: bool,
    started: bool,
}

impl Channel {
    pub(super) fn new(spec: ChannelSpec, last_segment: usize) -> Self {
        Self {
            spec,
            last_segment,
            state: State::Closed,
            sent: 0,
            window_used: 0,
            blocked: false,
            hold_until: Duration::ZERO,
        }
    }

    pub(super) fn is_ready(&self, now: Duration) -> bool {
        matches!(self.state, State::Open(at) if at <= now)
    }
}

impl Segment {
    pub(super) fn new(spec: &SegmentSpec) -> Self {
        Self {
            channel: spec.channel,
            circle: spec.circle,
            expected_bytes: spec.expected_bytes,
            encoded_bytes: 0,
            sent_bytes: 0,
            waiting: std::collections::VecDeque::new(),
            encoded: false,
            started: false,
        }
    }

    /// Bytes expected and not encoded yet.
    pub(super) fn remaining_bytes(&self) -> u64 {
        self.expected_bytes.saturating_sub(self.encoded_bytes)
    }

    /// All its blocks have been handed out.
    pub(super) fn is_sent(&self) -> bool {
        self.encoded && self.waiting.is_empty()
    }
}

impl Session {
    /// A host answered `Join`.
    pub(super) fn handle_joined(
        &mut self,
        host: usize,
        id: ChannelId,
        result: Result<(), String>,
        now: Duration,
    ) {
        let Some(channel) = self.channels.iter().position(|channel| channel.spec.id == id) else { return };
        if self.hosts[host].membership[channel] != Membership::Joining {
            return;
        }
        match result {
            Ok(()) => {
                let latency = match self.channels[channel].spec.group {
                    Some(_) => self.config.join_latency,
                    None => Duration::ZERO,
                };
                self.hosts[host].membership[channel] = Membership::From(now + latency);
                self.stats.joins += u64::from(self.channels[channel].spec.group.is_some());
            }
            Err(_) => {
                self.hosts[host].membership[channel] = Membership::No;
                self.hosts[host].times_apart = u32::MAX;
                self.serve_apart(host, now);
            }
        }
        self.settle_opening(now);
    }

    /// Opens the channels of the segments whose data are near, in the order of the schedule.
    pub(super) fn open_channels(&mut self, now: Duration) {
        let ahead_bytes = self.pacer.bytes_in(self.config.prejoin);
        let mut before = 0;
        for index in 0..self.segments.len() {
            let segment = &self.segments[index];
            if segment.is_sent() {
                continue;
            }
            if before > ahead_bytes {
                break;
            }
            let channel = segment.channel;
            // A segment that is held up by a slow host does not hold up the next ones.
            if !self.channels[channel].blocked {
                before += segment.expected_bytes.saturating_sub(segment.sent_bytes).max(1);
            }
            if self.channels[channel].state == State::Closed && !self.open(channel, now) {
                break;
            }
        }
        self.settle_opening(now);
    }

    /// Asks the members to join; `false` if one of them has no membership left.
    fn open(&mut self, channel: usize, now: Duration) -> bool {
        let members = self.channels[channel].spec.hosts.clone();
        if !members.iter().all(|host| self.may_join(*host, channel)) {
            return false;
        }
        self.channels[channel].state = State::Opening(now);
        for host in members {
            if self.hosts[host].is_active() {
                self.ask_to_join(host, channel);
            }
        }
        true
    }

    /// Opens a channel that was left already for members that owe its blocks; `false` if one has no membership left.
    pub(super) fn reopen(&mut self, channel: usize, members: &[usize], now: Duration) -> bool {
        if !members.iter().all(|host| self.may_join(*host, channel)) {
            return false;
        }
        self.channels[channel].state = State::Opening(now);
        self.channels[channel].hold_until = now + JOIN_WAIT_MOST_MAX;
        for host in members {
            self.ask_to_join(*host, channel);
        }
        true
    }

    /// Whether a host has a membership left for this channel.
    pub(super) fn may_join(&self, host: usize, channel: usize) -> bool {
        self.channels[channel].spec.group.is_none() || self.memberships(host) < self.config.memberships_max
    }

    fn memberships(&self, host: usize) -> usize {
        let joined = self.hosts[host].membership.iter().zip(&self.channels);
        joined.filter(|(m, c)| **m != Membership::No && c.spec.group.is_some()).count()
    }

    pub(super) fn ask_to_join(&mut self, host: usize, channel: usize) {
        let spec = &self.channels[channel].spec;
        if spec.group.is_none() && self.hosts[host].no_unicast {
            return;
        }
        let (key, salt) = (spec.secret.key, spec.secret.salt);
        let join = Join { channel: spec.id.0, key, salt, group: spec.group };
        self.hosts[host].membership[channel] = Membership::Joining;
        // It counts from here.
        self.hosts[host].counted.remove(&join.channel);
        self.say(host, ToHost::Join(join));
    }

    /// Lets a host that came late join the channels that are open, as far as its memberships go.
    pub(super) fn join_open_channels(&mut self, host: usize) {
        for channel in 0..self.channels.len() {
            let open = matches!(self.channels[channel].state, State::Opening(_) | State::Open(_));
            let wanted = open && self.channels[channel].spec.hosts.contains(&host);
            if wanted
                && self.hosts[host].membership[channel] == Membership::No
                && self.may_join(host, channel)
            {
                self.ask_to_join(host, channel);
            }
        }
    }

    /// Opening channels become open once nobody has to be waited for. Who keeps the others waiting is not waited for
    /// again, by any channel, and catches up.
    fn settle_opening(&mut self, now: Duration) {
        for channel in 0..self.channels.len() {
            let State::Opening(since) = self.channels[channel].state else { continue };
            let members = self.channels[channel].spec.hosts.iter().copied();
            let mut ready_at = since;
            let (mut joined, mut joining) = (0, Vec::new());
            for host in members.filter(|host| self.hosts[*host].is_active()) {
                match self.hosts[host].membership[channel] {
                    Membership::Joining if !self.hosts[host].joins_late => joining.push(host),
                    Membership::From(at) => {
                        joined += 1;
                        ready_at = ready_at.max(at);
                    }
                    Membership::Joining | Membership::No => {}
                }
            }
            // If most are late, they are busy: without them, all would be owed everything by unicast. Who is gone, and not
            // only late, is found silent.
            let wait = if joined >= joining.len() { JOIN_WAIT_MAX } else { JOIN_WAIT_MOST_MAX };
            if joining.is_empty() || now >= since + wait {
                self.channels[channel].state = State::Open(ready_at);
                for host in joining {
                    self.hosts[host].joins_late = true;
                }
            }
        }
    }

    /// When a channel that is opening can next become ready.
    pub(super) fn join_due(&self, now: Duration) -> Option<Duration> {
        let due = self.channels.iter().filter_map(|channel| match channel.state {
            State::Opening(since) => Some(since + JOIN_WAIT_MAX),
            State::Open(at) if channel.sent == 0 => Some(at),
            _ => None,
        });
        due.filter(|at| *at > now).min()
    }

    /// Leaves the channels whose segments every host on them has.
    pub(super) fn close_channels(&mut self, now: Duration) {
        for channel in 0..self.channels.len() {
            if !matches!(self.channels[channel].state, State::Open(_)) {
                continue;
            }
            let last = self.channels[channel].last_segment;
            let sent = self.segments[..=last].iter().all(|s| s.channel != channel || s.is_sent());
            let busy = self.in_flight.values().any(|flight| flight.channel == channel);
            if sent && !busy && now >= self.channels[channel].hold_until {
                self.channels[channel].state = State::Left;
                for host in self.channels[channel].spec.hosts.clone() {
                    self.leave(host, channel);
                }
            }
        }
    }

    pub(super) fn leave(&mut self, host: usize, channel: usize) {
        if std::mem::replace(&mut self.hosts[host].membership[channel], Membership::No) == Membership::No {
            return;
        }
        self.hosts[host].counted.remove(&self.channels[channel].spec.id.0);
        self.stats.leaves += u64::from(self.channels[channel].spec.group.is_some());
        let id = self.channels[channel].spec.id.0;
        if self.hosts[host].connected && !self.hosts[host].is_over() {
            self.say(host, ToHost::Leave { channel: id });
        }
    }

    pub(super) fn start_segment(&mut self, segment: usize) {
        if !std::mem::replace(&mut self.segments[segment].started, true) {
            self.events.push_back(Event::SegmentStarted { segment });
        }
    }
}
