//! The simulation's loop: whatever can be sent first is sent first.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use super::queue::{Group, Queue, State, queue};
use super::units::Unit;
use super::{BURSTS_MAX, Model, SimulatedLink, Simulation};
use crate::rng::Rng;
use crate::{HostSet, Network, Overhead, Plan};

/// Source symbols of a block.
pub(super) const BLOCK_SYMBOLS: u64 = 128;
/// How far the sender looks ahead in the order for groups to open and segments whose group is open.
const LOOKAHEAD: usize = 512;
/// What a link may have waiting before the sender waits, too: the receivers' credit, in time.
const BACKLOG_NS: u64 = 20_000_000;
/// What a host may have received and not written: half of the default socket buffer.
const CREDIT_BYTES: u64 = 16 << 20;

pub(super) struct Engine<'a> {
    pub(super) model: &'a Model,
    pub(super) network: Network,
    pub(super) overhead: Overhead,
    pub(super) queue: Queue,
    pub(super) rng: Rng,
    pub(super) rate_bps: u64,
    pub(super) unit_bytes: u64,
    pub(super) now: u64,
    /// The first item that is not sent whole.
    pub(super) head: usize,
    /// When each link has sent all that it was given.
    pub(super) link_free: Vec<u64>,
    pub(super) link_bytes: Vec<u64>,
    pub(super) link_busy: Vec<u64>,
    /// When each host has written all that it was given.
    pub(super) host_free: Vec<u64>,
    /// Units that each host still needs.
    pub(super) host_left: Vec<u64>,
    pub(super) host_done: Vec<u64>,
    pub(super) host_memberships: Vec<u64>,
    memberships_max: u64,
    /// For each address, the hosts that left it and until when they still get its datagrams.
    pub(super) tails: Vec<Vec<(u16, u64)>>,
    /// When the units that are waited for can be repaired, and which.
    pub(super) repairs: BinaryHeap<Reverse<(u64, usize)>>,
    pub(super) open_repairs: Vec<Option<Unit>>,
    pub(super) first_sent: Option<u64>,
    pub(super) totals: Simulation,
}

pub(super) fn run(plan: &Plan, model: &Model) -> Simulation {
    let mut engine = Engine::new(plan, model);
    while engine.step() {}
    engine.finish(plan)
}

pub(super) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX / 4).min(u64::MAX / 4)
}

/// Time of so many bytes at a rate; 0 if the rate is.
pub(super) fn time(bytes: u64, bps: u64) -> u64 {
    let nanos = (u128::from(bytes) * 8_000_000_000).checked_div(u128::from(bps)).unwrap_or(0);
    u64::try_from(nanos).unwrap_or(u64::MAX / 4)
}

impl<'a> Engine<'a> {
    fn new(plan: &Plan, model: &'a Model) -> Self {
        let network = plan.network();
        let queue = queue(plan);
        let multicast = &plan.multicast;
        let overhead = Overhead::new(multicast.mtu, 0, multicast.pool.contains(':'));
        let block = BLOCK_SYMBOLS * overhead.symbol_bytes();
        let blocks: u64 = queue.items.iter().map(|item| item.left.div_ceil(block)).sum();
        let unit_bytes = block * blocks.div_ceil(BURSTS_MAX).max(1);
        let mut host_left = vec![0; plan.hosts.len()];
        for item in &queue.items {
            item.hosts.iter().for_each(|host| host_left[usize::from(host)] += item.left.div_ceil(unit_bytes));
        }
        let link_bps = network.links()[0].rate_bps;
        let rate_bps = if model.rate_bps == 0 { link_bps } else { model.rate_bps.min(link_bps) };
        let (links, hosts) = (network.links().len(), plan.hosts.len());
        Self {
            rng: Rng::new(model.seed),
            tails: vec![Vec::new(); queue.addresses],
            totals: Simulation {
                seed: model.seed,
                blocks_per_unit: unit_bytes / block,
                ..Simulation::default()
            },
            model,
            network,
            overhead,
            queue,
            rate_bps,
            unit_bytes,
            now: 0,
            head: 0,
            link_free: vec![0; links],
            link_bytes: vec![0; links],
            link_busy: vec![0; links],
            host_free: vec![0; hosts],
            host_left,
            host_done: vec![0; hosts],
            host_memberships: vec![0; hosts],
            memberships_max: plan.multicast.memberships_max.into(),
            repairs: BinaryHeap::new(),
            open_repairs: Vec::new(),
            first_sent: None,
        }
    }

    /// Sends one unit or repair, or waits for what comes next. False when all is done.
    fn step(&mut self) -> bool {
        while self.queue.items.get(self.head).is_some_and(|item| item.left == 0) {
            self.head += 1;
        }
        self.open_groups();
        if let Some(&Reverse((ready, unit))) = self.repairs.peek().filter(|entry| entry.0.0 <= self.now) {
            debug_assert!(ready <= self.now);
            self.repairs.pop();
            self.repair(unit);
            return true;
        }
        if let Some(at) = self.ready_item() {
            self.send(at);
            return true;
        }
        let repair = self.repairs.peek().map(|entry| entry.0.0);
        let opening =
            self.ahead().filter_map(|at| match self.queue.groups[self.queue.items[at].group?].state {
                State::Open(at) if at > self.now => Some(at),
                _ => None,
            });
        let Some(next) = opening.chain(repair).min() else {
            return self.force_open();
        };
        if self.head < self.queue.items.len() {
            self.totals.stall_us += next - self.now;
        }
        self.now = next;
        true
    }

    /// Items that the sender looks at.
    fn ahead(&self) -> std::ops::Range<usize> {
        self.head..self.queue.items.len().min(self.head + LOOKAHEAD)
    }

    /// The first item whose channel is open.
    fn ready_item(&self) -> Option<usize> {
        self.ahead().find(|&at| {
            let item = &self.queue.items[at];
            let open =
                |group: usize| matches!(self.queue.groups[group].state, State::Open(at) if at <= self.now);
            item.left > 0 && item.group.is_none_or(open)
        })
    }

    /// Has hosts join the groups whose data are near.
    fn open_groups(&mut self) {
        let prejoin = nanos(self.model.prejoin);
        let mut before = 0u64;
        for at in self.ahead() {
            let item = &self.queue.items[at];
            if before > prejoin {
                break;
            }
            before = before.saturating_add(time(self.overhead.bytes(item.left, 1), self.rate_bps));
            let Some(group) = item.group else { continue };
            if self.queue.groups[group].state == State::Closed && self.may_open(group) {
                self.join(group);
            }
        }
    }

    /// Nothing is under way, and something is left: its group waits for memberships that other groups keep. The sender
    /// goes on without the limit then, as hosts that cannot join get their blocks otherwise. False if nothing is left.
    fn force_open(&mut self) -> bool {
        let head = self.queue.items.get(self.head).and_then(|item| item.group);
        let closed = head.filter(|group| self.queue.groups[*group].state == State::Closed);
        closed.map(|group| self.join(group)).is_some()
    }

    /// Whether the address is free, as one group at a time uses it, and every member may join another.
    fn may_open(&self, group: usize) -> bool {
        let Group { members, address, .. } = &self.queue.groups[group];
        let full = |host: u16| self.host_memberships[usize::from(host)] >= self.memberships_max;
        let stays = |host: u16| self.tails[*address].contains(&(host, u64::MAX));
        if members.iter().any(|host| full(host) && !stays(host)) {
            return false;
        }
        !self
            .queue
            .groups
            .iter()
            .any(|other| other.address == *address && matches!(other.state, State::Open(_)))
    }

    fn join(&mut self, group: usize) {
        let way = nanos(self.model.link_latency) * 4;
        let Group { members, address, .. } = &self.queue.groups[group];
        for host in members.iter() {
            // Who was on the address until now stays.
            let tails = &mut self.tails[*address];
            let stays = tails.iter().position(|tail| *tail == (host, u64::MAX));
            if let Some(at) = stays {
                tails.swap_remove(at);
                continue;
            }
            tails.retain(|tail| tail.0 != host);
            self.totals.joins += 1;
            let memberships = &mut self.host_memberships[usize::from(host)];
            *memberships += 1;
            self.totals.memberships_peak = self.totals.memberships_peak.max(*memberships);
        }
        self.queue.groups[group].state = State::Open(self.now + way + nanos(self.model.join_latency));
    }

    /// Sends the next unit of an item.
    fn send(&mut self, at: usize) {
        let item = &mut self.queue.items[at];
        let payload = item.left.min(self.unit_bytes);
        item.left -= payload;
        let (tree, hosts, group) = (std::mem::take(&mut item.tree), item.hosts.clone(), item.group);
        if let Some(group) = group {
            let group = &mut self.queue.groups[group];
            group.in_flight += 1;
            group.items_left -= usize::from(self.queue.items[at].left == 0);
        }
        self.throttle(&tree, &hosts);
        let bytes = self.overhead.bytes(payload, 1);
        let arrived = self.transmit(&tree, group, &hosts, bytes);
        self.receive(
            Unit { group, tree: tree.clone(), hosts, deficits: Vec::new(), blocks: 0, payload, round: 0 },
            &arrived,
        );
        self.queue.items[at].tree = tree;
    }

    /// Waits until no link on the way, and no host, is too far behind.
    fn throttle(&mut self, tree: &[usize], hosts: &HostSet) {
        let links = tree.iter().map(|&link| self.link_free[link].saturating_sub(BACKLOG_NS));
        let hosts = hosts.iter().map(|host| {
            let credit = time(CREDIT_BYTES, self.host_bps(host));
            self.host_free[usize::from(host)].saturating_sub(credit.max(BACKLOG_NS))
        });
        let until = links.chain(hosts).max().unwrap_or(0);
        if until > self.now {
            self.totals.throttled_us += until - self.now;
            self.now = until;
        }
    }

    pub(super) fn host_bps(&self, host: u16) -> u64 {
        self.model.slow_hosts.get(&host).copied().unwrap_or(self.model.host_bps)
    }

    /// Bytes go over the links of a tree, and to those who left the address lately. When the last of them are at the
    /// far end of each link of the tree, in its order.
    pub(super) fn transmit(
        &mut self,
        tree: &[usize],
        group: Option<usize>,
        hosts: &HostSet,
        bytes: u64,
    ) -> Vec<u64> {
        self.first_sent.get_or_insert(self.now);
        let start = self.now;
        self.now += time(bytes, self.rate_bps);
        let latency = nanos(self.model.link_latency);
        let mut arrived: Vec<u64> = Vec::with_capacity(tree.len());
        for &link in tree {
            let of = &self.network.links()[link];
            let busy = time(bytes, of.rate_bps);
            // The link towards the source is in the tree, before this one.
            let before =
                of.towards.and_then(|towards| tree.binary_search(&towards).ok()).map(|at| arrived[at]);
            let end = before.unwrap_or(self.now).max(self.link_free[link].max(start) + busy) + latency;
            self.link_free[link] = end - latency;
            self.link_bytes[link] += bytes;
            self.link_busy[link] += busy;
            arrived.push(end);
        }
        self.unwanted(group, hosts, bytes);
        arrived
    }

    /// Counts what comes to hosts that do not need it.
    fn unwanted(&mut self, group: Option<usize>, hosts: &HostSet, bytes: u64) {
        let Some(group) = group else { return };
        let Group { members, address, .. } = &self.queue.groups[group];
        let more = (members.len() - hosts.len().min(members.len())) as u64;
        self.totals.unwanted_bytes += more * bytes;
        let now = self.now;
        self.tails[*address].retain(|tail| tail.1 > now);
        for &(host, _) in &self.tails[*address] {
            // A host's own link only: links of racks carry it for others, mostly.
            let link = self.network.host_link(host);
            self.link_bytes[link] += bytes;
            self.totals.unwanted_bytes += bytes;
        }
    }

    fn finish(self, plan: &Plan) -> Simulation {
        debug_assert!(self.host_left.iter().all(|left| *left == 0), "every host got everything");
        let micros = |nanos: u64| nanos / 1000;
        let predicted = plan.predicted.as_ref();
        let links = self.network.links().iter().enumerate().map(|(at, link)| SimulatedLink {
            kind: link.kind,
            name: link.name.clone(),
            rate_mbps: link.rate_bps / 1_000_000,
            bytes: self.link_bytes[at],
            predicted_bytes: predicted.and_then(|p| p.links.get(at)).map_or(0, |load| load.network_bytes),
            busy_us: micros(self.link_busy[at]),
        });
        let mut done: Vec<u64> =
            self.host_done.iter().copied().filter(|done| *done > 0).map(micros).collect();
        done.sort_unstable();
        let rank = |percent: usize| {
            done.get((done.len() * percent).div_ceil(100).saturating_sub(1)).copied().unwrap_or(0)
        };
        Simulation {
            links: links.collect(),
            stall_us: micros(self.totals.stall_us),
            throttled_us: micros(self.totals.throttled_us),
            first_datagram_us: micros(self.first_sent.unwrap_or(0)),
            host_done_us: self.host_done.iter().map(|done| micros(*done)).collect(),
            done_p50_us: rank(50),
            done_p99_us: rank(99),
            done_max_us: rank(100),
            eviction_us: micros(self.now).max(rank(100)),
            ..self.totals
        }
    }
}
