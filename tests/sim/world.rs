//! One sender and N receivers in memory: the real sessions, codecs, seals, FEC and stores on the simulated
//! network, in virtual time. Host 0 of the network is the sender.

use lab::sim::{DeliveryKind, Dest, SimNet};
use pages::block::{BlockLimits, Encoding, Scratch};
use pages::{IdSet, PAGE_SIZE, PageSource, Pfn, VmId};
use receiver::check::check;
use receiver::session::{Action, Session as Receiving, SessionConfig as ReceivingConfig};
use receiver::store::{Intake, Store, VmSpec};
use sender::encode::{EncodePlan, EncodedBlock, encode_stripe};
use sender::prepare::{Prepared, Stripe, VmInput};
use sender::rate::RateConfig;
use sender::session::{ChannelSpec, Phase, SegmentSpec, Session, SessionConfig};
use sender::window::Window;
use std::sync::Arc;
use std::time::Duration;
use wire::control::{Accept, Message, Offer, ToHost, ToSender, VmOffer};
use wire::datagram::OVERHEAD_BYTES;
use wire::seal::ChannelSecret;
use wire::{BlockId, ChannelId};

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

struct Host {
    store: Option<Store>,
    session: Option<(Receiving, Arc<Intake>)>,
    root: tempfile::TempDir,
    finished: bool,
    /// When it was complete.
    done_at: Option<Duration>,
    in_flight_peak: u64,
    refuses: Option<String>,
}

/// What a test does to the world at a time.
pub(crate) type Fault = Box<dyn FnMut(&mut World)>;

pub(crate) struct World {
    pub(crate) net: SimNet,
    pub(crate) now: Duration,
    pub(crate) sender: Session,
    prepared: Arc<Prepared>,
    plan: EncodePlan,
    window: Window,
    stripes: Vec<(usize, Stripe)>,
    next_stripe: usize,
    origins: Vec<(usize, usize)>,
    channels: Vec<ChannelSpec>,
    hosts: Vec<Host>,
    scratch: Scratch,
    /// Datagrams of host 0 by kind of channel.
    pub(crate) sent_datagrams: u64,
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
        let inputs = plan.vms.into_iter().enumerate().map(|(index, (image, hosts))| VmInput {
            name: format!("vm{index}"),
            file_len: (image.0.len() * PAGE_SIZE) as u64,
            source: Arc::new(image),
            hosts: IdSet::from_iter(hosts),
            domain: 0,
        });
        let prepared = Arc::new(Prepared::new(inputs.collect(), 1));
        let mut config = SessionConfig::new(SYMBOL_SIZE, plan.rate);
        (plan.tweak)(&mut config);
        let encode = EncodePlan::new(plan.encoding, 0.5, SYMBOL_SIZE);
        let mut channels = Vec::new();
        let mut segments = Vec::new();
        let mut stripes = Vec::new();
        for (index, segment) in prepared.segments.iter().enumerate() {
            let hosts: Vec<usize> = segment.hosts.iter().map(usize::from).collect();
            let id = ChannelId(u32::try_from(index).expect("few") + 100);
            let group = (hosts.len() > 1)
                .then(|| std::net::IpAddr::from([239, 1, 1, u8::try_from(index % 250).expect("small")]));
            channels.push(ChannelSpec { group, hosts, id, secret: ChannelSecret::random() });
            segments.push(SegmentSpec { channel: index, expected_bytes: prepared.segment_bytes(index) });
            stripes.extend(prepared.stripes(index).into_iter().map(|stripe| (index, stripe)));
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
            next_stripe: 0,
            origins: Vec::new(),
            channels,
            hosts,
            scratch: Scratch::new(),
            sent_datagrams: 0,
            connects: Vec::new(),
        };
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

    pub(crate) fn freeze(&mut self, host: usize, until: Duration) {
        self.net.freeze(self.now, sim(host), until);
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
        self.drive_sender();
        let next = self.net.next_event_time();
        let sender = self.sender.poll_timeout(self.now);
        let receivers = self.hosts.iter().filter_map(|host| host.session.as_ref()?.0.poll_timeout());
        let connects = self.connects.iter().map(|(at, _)| *at);
        let at = receivers.chain(next).chain(sender).chain(connects).min().unwrap_or(self.now + STEP_MAX);
        let least = self.now + Duration::from_micros(20);
        self.now = at.clamp(least, self.now + STEP_MAX);
    }

    fn connect(&mut self, host: usize) {
        self.net.open_control(self.now, 0, sim(host));
        self.sender.handle_connected(host, self.now);
        let vms = (0..)
            .zip(&self.prepared.vms)
            .filter(|(_, vm)| vm.hosts.contains(u16::try_from(host).expect("few")));
        let vms = vms.map(|(id, vm)| VmOffer {
            vm: id,
            name: vm.name.clone(),
            file_len: vm.file_len,
            page_count: vm.source.page_count(),
            content_pages: self.prepared.content_pages(VmId(id)),
        });
        let offer = ToHost::Offer(Offer {
            version: wire::VERSION,
            session: 1,
            transfer: "sim".into(),
            host: format!("h{host}"),
            symbol_size_max: SYMBOL_SIZE,
            multicast_port: 1,
            ipv6: false,
            vms: vms.collect(),
            guests: Vec::new(),
        });
        self.tell_host(host, &offer);
    }

    /// A message to a host whose connection is down is lost, as on a real one; both ends learn of it.
    fn tell_host(&mut self, host: usize, message: &ToHost) {
        let _ = self.net.send_control(self.now, 0, sim(host), message.encode());
    }

    fn tell_sender(&mut self, host: usize, message: &ToSender) {
        let _ = self.net.send_control(self.now, sim(host), 0, message.encode());
    }

    fn deliver(&mut self, to: u16, kind: DeliveryKind) {
        match (to, kind) {
            (0, DeliveryKind::Control { from, bytes }) => {
                let message = ToSender::decode(&bytes).expect("the receiver speaks the protocol");
                self.sender.handle_control(usize::from(from) - 1, message, self.now);
            }
            (0, DeliveryKind::ControlClosed { peer }) => {
                self.sender.handle_disconnected(usize::from(peer) - 1, self.now);
            }
            (to, DeliveryKind::Datagram { bytes, .. }) if to > 0 => {
                if let Some((session, _)) = &mut self.hosts[usize::from(to) - 1].session {
                    session.handle_datagram(&bytes);
                }
                self.drive_receiver(usize::from(to) - 1, false);
            }
            (to, DeliveryKind::Control { bytes, .. }) => self.receiver_control(usize::from(to) - 1, &bytes),
            (to, DeliveryKind::ControlClosed { peer: 0 }) => self.hosts[usize::from(to) - 1].session = None,
            _ => {}
        }
    }

    fn receiver_control(&mut self, host: usize, bytes: &[u8]) {
        let message = ToHost::decode(bytes).expect("the sender speaks the protocol");
        let now = self.now;
        if let ToHost::Offer(offer) = message {
            return self.offer(host, &offer);
        }
        let Some((session, intake)) = &mut self.hosts[host].session else { return };
        let intake = Arc::clone(intake);
        let vms: Vec<u16> = (0..).take(self.prepared.vms.len()).collect();
        let mut held = |digest: &wire::Digest| {
            intake.confirm_held(digest).then(|| complete(&intake, &vms, host, &self.prepared))
        };
        session.handle_control(now, message, &mut held).expect("protocol");
        self.drive_receiver(host, false);
    }

    fn offer(&mut self, host: usize, offer: &Offer) {
        if let Some(reason) = self.hosts[host].refuses.clone() {
            let refuse = ToSender::Refuse { cause: wire::control::RefuseCause::Store, reason };
            self.tell_sender(host, &refuse);
            return;
        }
        let specs: Vec<(VmId, VmSpec)> = (offer.vms.iter())
            .map(|vm| {
                let (name, file_len) = (vm.name.clone(), vm.file_len);
                (
                    VmId(vm.vm),
                    VmSpec { name, file_len, page_count: vm.page_count, content_pages: vm.content_pages },
                )
            })
            .collect();
        self.hosts[host].session = None;
        let store = self.hosts[host].store.as_ref().expect("running");
        let intake = Arc::new(store.begin("sim", &specs, false).expect("begin"));
        let digests = intake.held_digests();
        let held = ToSender::Held { digests };
        let accept =
            Accept { version: wire::VERSION, unicast: ([127, 0, 0, 1], 9).into(), credit_bytes: 8 << 20 };
        self.tell_sender(host, &held);
        self.tell_sender(host, &ToSender::Accept(accept));
        let mut session = Receiving::new(ReceivingConfig::new(SYMBOL_SIZE, offer.vms.len()));
        let vms: Vec<u16> = offer.vms.iter().map(|vm| vm.vm).collect();
        session.handle_complete_vms(&complete(&intake, &vms, host, &self.prepared));
        self.hosts[host].session = Some((session, intake));
    }

    fn drive_receiver(&mut self, host: usize, drained: bool) {
        let now = self.now;
        let entry = &mut self.hosts[host];
        let Some((session, intake)) = &mut entry.session else { return };
        if drained {
            session.handle_drained(now);
            session.handle_timeout(now);
        }
        entry.in_flight_peak = entry.in_flight_peak.max(session.in_flight_bytes());
        let mut send = Vec::new();
        while let Some(action) = session.poll_action() {
            match action {
                Action::Send(message) => send.push(message),
                Action::Join { channel, .. } => {
                    self.net.join(now, sim(host), channel.0);
                    session.joined(channel, Ok(()));
                }
                Action::Leave { group } => {
                    let left = self.channels.iter().find(|spec| spec.group == Some(group)).expect("known");
                    self.net.leave(now, sim(host), left.id.0);
                }
                Action::Check(job) => {
                    let checked = check(*job, intake, &BlockLimits::default(), &mut self.scratch);
                    session.handle_checked(now, checked);
                }
                Action::FinishVm(vm) => {
                    intake.finish(VmId(vm)).expect("finish");
                    session.handle_finished(vm);
                }
                Action::AllPlaced => {
                    entry.done_at = Some(now);
                    session.all_complete(Duration::ZERO, 0, 0);
                }
                Action::End { .. } => entry.finished = true,
            }
        }
        for message in send {
            self.tell_sender(host, &message);
        }
    }

    fn drive_sender(&mut self) {
        while self.next_stripe < self.stripes.len() && self.sender.wants_blocks(0) {
            let (segment, stripe) = self.stripes[self.next_stripe].clone();
            for (place, block) in self.encode(self.next_stripe).into_iter().enumerate() {
                let len = u32::try_from(block.bytes.len()).expect("small");
                let id = self.sender.handle_block(segment, len, block.digest);
                let shape = fec::BlockShape::for_len(len, SYMBOL_SIZE).expect("shape");
                self.window.keep(id, block.bytes, shape).expect("length");
                self.origins.push((self.next_stripe, place));
            }
            self.next_stripe += 1;
            if self.stripes.get(self.next_stripe).is_none_or(|(next, _)| *next != stripe.segment) {
                self.sender.handle_segment_encoded(segment);
            }
        }
        self.sender.handle_timeout(self.now);
        self.flush_control();
        while let Some(transmit) = self.sender.poll_transmit(self.now) {
            self.flush_control();
            let spec = &self.channels[transmit.channel];
            let dest = match spec.group {
                Some(_) => Dest::Group(spec.id.0),
                None => Dest::Unicast(sim(spec.hosts[0])),
            };
            if let Some(batch) = self.window.seal(&transmit).expect("seal") {
                assert!(batch.datagram <= usize::from(SYMBOL_SIZE) + OVERHEAD_BYTES);
                for datagram in batch.bytes.chunks(batch.datagram) {
                    self.sent_datagrams += 1;
                    self.net.send(self.now, 0, dest, datagram);
                }
            }
        }
        while let Some((host, id)) = self.sender.poll_catch_up() {
            let bytes = self.block(id);
            let data = ToHost::BlockData { block: id.0, bytes };
            self.flush_control();
            self.tell_host(host, &data);
        }
        self.flush_control();
        while let Some(id) = self.sender.poll_release() {
            self.window.release(id);
        }
        while let Some(event) = self.sender.poll_event() {
            if std::env::var_os("SIM_TRACE").is_some() {
                println!("{:?} {event:?} {}", self.now, self.describe());
            }
        }
    }

    fn encode(&mut self, stripe: usize) -> Vec<EncodedBlock> {
        encode_stripe(&self.prepared, &self.stripes[stripe].1, &self.plan, &mut self.scratch)
    }

    fn block(&mut self, id: BlockId) -> Vec<u8> {
        if let Some(bytes) = self.window.block(id) {
            return bytes.to_vec();
        }
        let (stripe, place) = self.origins[usize::try_from(id.0).expect("small")];
        self.encode(stripe).swap_remove(place).bytes
    }

    fn flush_control(&mut self) {
        while let Some((host, message)) = self.sender.poll_control() {
            self.tell_host(host, &message);
        }
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

fn complete(intake: &Intake, vms: &[u16], host: usize, prepared: &Prepared) -> Vec<u16> {
    let here = |vm: &u16| prepared.vms[usize::from(*vm)].hosts.contains(u16::try_from(host).expect("few"));
    vms.iter().copied().filter(here).filter(|vm| intake.is_complete(VmId(*vm))).collect()
}

fn sim(host: usize) -> u16 {
    u16::try_from(host).expect("few") + 1
}
