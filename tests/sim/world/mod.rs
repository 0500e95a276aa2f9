//! One sender and N receivers in memory: the real sessions, codecs, seals, FEC and stores on the simulated
//! network, in virtual time. Host 0 of the network is the sender.

mod hosts;
mod sending;

use hosts::Host;
use lab::sim::SimNet;
use pages::block::{Encoding, Scratch};
use pages::{IdSet, PAGE_SIZE, PageSource, Pfn};
use receiver::residents::Residents;
use receiver::store::Store;
use sender::encode::EncodePlan;
use sender::prepare::{Prepared, Stripe, VmInput};
use sender::rate::RateConfig;
use sender::session::{ChannelSpec, Phase, SegmentSpec, Session, SessionConfig};
use sender::window::Window;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use wire::ChannelId;
use wire::control::ToSender;
use wire::seal::ChannelSecret;

pub(crate) const SYMBOL_SIZE: u16 = 1424;
const STEP_MAX: Duration = Duration::from_millis(5);

/// An image in memory.
pub(crate) struct MemoryImage(pub(crate) Vec<[u8; PAGE_SIZE]>);

impl PageSource for MemoryImage {
    fn page_count(&self) -> u32 {
        u32::try_from(self.0.len()).expect("small")
    }

    fn page(&self, pfn: Pfn) -> &[u8; PAGE_SIZE] {
        &self.0[pfn.0 as usize]
    }
}

/// What arrives in place of a host's message.
pub(crate) type Tap = Box<dyn FnMut(Duration, usize, ToSender) -> Vec<ToSender>>;

/// What a test does to the world at a time.
pub(crate) type Fault = Box<dyn FnMut(&mut World)>;

pub(crate) struct World {
    pub(crate) net: SimNet,
    pub(crate) now: Duration,
    pub(crate) sender: Session,
    prepared: Arc<Prepared>,
    plan: EncodePlan,
    window: Window,
    stripes: Vec<Stripe>,
    /// Per segment: stripes not encoded yet.
    todo: Vec<Range<usize>>,
    origins: Vec<(usize, usize)>,
    channels: Vec<ChannelSpec>,
    hosts: Vec<Host>,
    scratch: Scratch,
    /// Datagrams of host 0 by kind of channel.
    pub(crate) sent_datagrams: u64,
    /// Blocks whose contents were named, and had to be sent all the same.
    pub(crate) supplied: u64,
    /// Bytes of blocks sent whole.
    pub(crate) whole_bytes: u64,
    /// Turns of the sender without work and without a time to sleep until.
    pub(crate) spins: u64,
    /// The hosts' phases, each with its beginning.
    pub(crate) phases: Vec<(Duration, usize, Phase)>,
    sender_frozen_until: Duration,
    /// What the sender hears in place of what a host said.
    pub(crate) tap: Option<Tap>,
    /// Hosts whose connection comes up at this time.
    connects: Vec<(Duration, usize)>,
}

/// VMs and where they go, by index of receiver from 0.
pub(crate) struct Plan {
    pub(crate) vms: Vec<(MemoryImage, Vec<u16>)>,
    pub(crate) hosts: usize,
    pub(crate) encoding: Encoding,
    pub(crate) rate: RateConfig,
    pub(crate) tweak: fn(&mut SessionConfig),
}

impl World {
    pub(crate) fn new(seed: u64, plan: Plan) -> Self {
        Self::with(seed, plan, |_| Vec::new())
    }

    /// As `new`; `held` says what hosts hold already, and leaves it out.
    pub(crate) fn with(
        seed: u64,
        plan: Plan,
        held: impl FnOnce(&mut Prepared) -> Vec<Option<Residents>>,
    ) -> Self {
        let inputs = plan.vms.into_iter().enumerate().map(|(index, (image, hosts))| VmInput {
            name: format!("vm{index}"),
            file_len: (image.0.len() * PAGE_SIZE) as u64,
            source: Arc::new(image),
            hosts: IdSet::from_iter(hosts),
            domain: 0,
        });
        let mut prepared = Prepared::new(inputs.collect(), 1);
        let held = held(&mut prepared);
        let prepared = Arc::new(prepared);
        let mut config = SessionConfig::new(SYMBOL_SIZE, plan.rate);
        (plan.tweak)(&mut config);
        let encode = EncodePlan::new(plan.encoding, 0.5, SYMBOL_SIZE);
        let mut channels = Vec::new();
        let mut segments = Vec::new();
        let (mut stripes, mut todo) = (Vec::new(), Vec::new());
        for (index, segment) in prepared.segments.iter().enumerate() {
            let hosts: Vec<usize> = segment.hosts.iter().map(usize::from).collect();
            let id = ChannelId(u32::try_from(index).expect("few") + 100);
            let group = (hosts.len() > 1)
                .then(|| std::net::IpAddr::from([239, 1, 1, u8::try_from(index % 250).expect("small")]));
            channels.push(ChannelSpec { group, hosts, id, secret: ChannelSecret::random() });
            segments.push(SegmentSpec {
                channel: index,
                expected_bytes: prepared.segment_bytes(index),
                circle: 0,
            });
            let first = stripes.len();
            stripes.extend(prepared.stripes(index));
            todo.push(first..stripes.len());
        }
        let sender = Session::new(config, fec::CostModel::default(), plan.hosts, channels.clone(), &segments);
        let hosts = (0..plan.hosts).map(|_| {
            let root = tempfile::tempdir_in("/dev/shm").expect("tmpfs");
            let store = Some(Store::open(root.path()).expect("store"));
            Host {
                store,
                session: None,
                root,
                finished: false,
                done_at: None,
                in_flight_peak: 0,
                refuses: None,
                residents: None,
            }
        });
        let hosts: Vec<Host> = hosts.collect();
        let mut world = Self {
            net: SimNet::new(seed, u16::try_from(plan.hosts).expect("few") + 1),
            now: Duration::ZERO,
            sender,
            prepared,
            plan: encode,
            window: Window::new(&channels),
            stripes,
            todo,
            origins: Vec::new(),
            channels,
            hosts,
            scratch: Scratch::new(),
            sent_datagrams: 0,
            supplied: 0,
            whole_bytes: 0,
            spins: 0,
            phases: Vec::new(),
            sender_frozen_until: Duration::ZERO,
            tap: None,
            connects: Vec::new(),
        };
        for (host, residents) in world.hosts.iter_mut().zip(held) {
            host.residents = residents;
        }
        for host in 0..world.hosts.len() {
            world.connects.push((Duration::ZERO, host));
        }
        world
    }

    /// The same hosts with what they hold, and a new sender with other images.
    pub(crate) fn next_session(mut self, seed: u64, plan: Plan) -> Self {
        for host in &mut self.hosts {
            host.session = None;
            host.finished = false;
            host.done_at = None;
        }
        let mut next = Self::new(seed, plan);
        next.hosts = self.hosts;
        next
    }

    pub(crate) fn connect_later(&mut self, host: usize, at: Duration) {
        self.connects.retain(|(_, other)| *other != host);
        self.connects.push((at, host));
    }

    pub(crate) fn crash(&mut self, host: usize) {
        self.hosts[host].session = None;
        self.hosts[host].store = None;
        self.net.crash(self.now, sim(host));
        self.sender.handle_disconnected(host, self.now);
    }

    pub(crate) fn restart(&mut self, host: usize) {
        self.net.restart(self.now, sim(host));
        self.hosts[host].store = Some(Store::open(self.hosts[host].root.path()).expect("store"));
        self.connect_later(host, self.now + Duration::from_millis(5));
    }

    /// The store of this host refuses the offer with these words.
    pub(crate) fn refuse(&mut self, host: usize, reason: &str) {
        self.hosts[host].refuses = Some(reason.into());
    }

    /// What this host held of other images is gone.
    pub(crate) fn forget_residents(&mut self, host: usize) {
        self.hosts[host].residents = None;
    }

    pub(crate) fn freeze(&mut self, host: usize, until: Duration) {
        self.net.freeze(self.now, sim(host), until);
    }

    /// The sender's program does not run.
    pub(crate) fn freeze_sender(&mut self, until: Duration) {
        self.net.freeze(self.now, 0, until);
        self.sender_frozen_until = until;
    }

    pub(crate) fn done_at(&self, host: usize) -> Option<Duration> {
        self.hosts[host].done_at
    }

    pub(crate) fn in_flight_peak(&self, host: usize) -> u64 {
        self.hosts[host].in_flight_peak
    }

    /// Runs until the session is over, with `fault` called once at `fault_at`.
    pub(crate) fn run(&mut self, limit: Duration, mut faults: Vec<(Duration, Fault)>) {
        while !self.sender.is_over() {
            assert!(self.now < limit, "not over after {limit:?}: {}", self.describe());
            let mut due = Vec::new();
            faults.retain_mut(|(at, fault)| {
                let now_due = *at <= self.now;
                if now_due {
                    due.push(std::mem::replace(fault, Box::new(|_| {})));
                }
                !now_due
            });
            for mut fault in due {
                fault(self);
            }
            self.step();
        }
    }

    fn describe(&self) -> String {
        let host = |h: usize| format!("h{h} {:?} {:?}", self.sender.phase(h), self.sender.progress(h));
        let hosts: Vec<String> = (0..self.hosts.len()).map(host).collect();
        format!("{} | {:?}", hosts.join(", "), self.sender.stats())
    }

    fn step(&mut self) {
        let connects = std::mem::take(&mut self.connects);
        let (due, later): (Vec<_>, Vec<_>) = connects.into_iter().partition(|(at, _)| *at <= self.now);
        self.connects = later;
        for (_, host) in due {
            self.connect(host);
        }
        while let Some(delivery) = self.net.poll(self.now) {
            self.deliver(delivery.to, delivery.kind);
        }
        for host in 0..self.hosts.len() {
            self.drive_receiver(host, true);
        }
        if self.now >= self.sender_frozen_until {
            self.drive_sender();
        }
        let next = self.net.next_event_time();
        let sender = self.sender.poll_timeout(self.now).map(|at| at.max(self.sender_frozen_until));
        let receivers = self.hosts.iter().filter_map(|host| host.session.as_ref()?.0.poll_timeout());
        let connects = self.connects.iter().map(|(at, _)| *at);
        let at = receivers.chain(next).chain(sender).chain(connects).min().unwrap_or(self.now + STEP_MAX);
        let least = self.now + Duration::from_micros(20);
        self.now = at.clamp(least, self.now + STEP_MAX);
    }

    /// Compares the images at each host with their sources; `failed` hosts must not show a finished image.
    pub(crate) fn verify(&self, failed: &[usize]) {
        for (host, entry) in self.hosts.iter().enumerate() {
            for vm in
                self.prepared.vms.iter().filter(|vm| vm.hosts.contains(u16::try_from(host).expect("few")))
            {
                let path = entry.root.path().join(format!("{}.ram", vm.name));
                if failed.contains(&host) {
                    assert!(!path.exists(), "h{host} failed, yet {path:?} is there");
                    assert!(
                        matches!(self.sender.phase(host), Phase::Failed { .. }),
                        "{:?}",
                        self.sender.phase(host)
                    );
                    continue;
                }
                assert_eq!(*self.sender.phase(host), Phase::Complete, "h{host}");
                let bytes = std::fs::read(&path).expect("the image is there");
                let count = vm.source.page_count();
                assert_eq!(bytes.len() as u64, vm.file_len);
                for (pfn, page) in (0..count).zip(bytes.chunks(PAGE_SIZE)) {
                    assert_eq!(page, vm.source.page(Pfn(pfn)), "h{host} {} page {pfn}", vm.name);
                }
            }
        }
    }
}

fn sim(host: usize) -> u16 {
    u16::try_from(host).expect("few") + 1
}
