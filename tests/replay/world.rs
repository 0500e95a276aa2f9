//! A sender and receivers in memory, the real sessions, seals, FEC and stores, and a *tap* through which every frame
//! passes: it sees what goes by, and says what arrives in its place.

use pages::block::{BlockLimits, Encoding, Scratch};
use pages::{IdSet, PAGE_SIZE, Page, PageSource, Pfn, VmId};
use receiver::check::{Place, check};
use receiver::session::{Action, Session as Receiving, SessionConfig as ReceivingConfig};
use receiver::store::{Intake, Store, VmSpec};
use sender::encode::{EncodePlan, encode_stripe};
use sender::prepare::{Prepared, VmInput};
use sender::rate::RateConfig;
use sender::session::{ChannelSpec, Phase, SegmentSpec, Session, SessionConfig};
use sender::window::Window;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use wire::ChannelId;
use wire::control::{Accept, Message, ToHost, ToSender};
use wire::seal::ChannelSecret;

pub(crate) const SYMBOL_SIZE: u16 = 512;
const STEP: Duration = Duration::from_micros(500);
const TIME_MAX: Duration = Duration::from_secs(60);

/// Something on its way, with the host that sends or gets it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Frame {
    ToHost(usize, Vec<u8>),
    ToSender(usize, Vec<u8>),
    Datagram(usize, Vec<u8>),
}

/// What arrives in place of a frame.
pub(crate) type Tap<'a> = &'a mut dyn FnMut(Frame) -> Vec<Frame>;

/// An image in memory.
pub(crate) struct MemoryImage(pub(crate) Vec<Page>);

impl PageSource for MemoryImage {
    fn page_count(&self) -> u32 {
        u32::try_from(self.0.len()).expect("small")
    }

    fn page(&self, pfn: Pfn) -> &Page {
        &self.0[pfn.0 as usize]
    }
}

/// Three VMs that share pages: the first for both hosts, one for each.
pub(crate) fn images() -> Vec<(MemoryImage, Vec<u16>)> {
    let page = |seed: u64| -> Page {
        let mut rng = crate::mutate::Rng(seed);
        std::array::from_fn(|at| if at % 3 == 0 { 7 } else { rng.byte() })
    };
    let image = |vm: u64, own: u64| -> MemoryImage {
        let pages = (0..48).map(|at| match at % 6 {
            0 => [0; PAGE_SIZE],
            1 => [0xcc; PAGE_SIZE],
            2 | 3 => page(at),
            _ => page(1000 * vm + at % own),
        });
        MemoryImage(pages.collect())
    };
    vec![(image(1, 48), vec![0, 1]), (image(2, 20), vec![0]), (image(3, 48), vec![1])]
}

/// A host: its store, and its session while a transfer runs.
pub(crate) struct Host {
    pub(crate) root: TempDir,
    pub(crate) session: Receiving,
    intake: Arc<Intake>,
    scratch: Scratch,
    vms: Vec<u16>,
    /// The sender broke the protocol, as far as this host can see.
    pub(crate) gave_up: bool,
    now: Duration,
}

impl Host {
    pub(crate) fn new(prepared: &Prepared, host: usize) -> Self {
        let root = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory");
        let here = (0..).zip(&prepared.vms).filter(|(_, vm)| vm.hosts.iter().any(|h| usize::from(h) == host));
        let specs: Vec<(VmId, VmSpec)> = here
            .map(|(id, vm)| {
                let spec = VmSpec {
                    name: vm.name.clone(),
                    file_len: vm.file_len,
                    page_count: vm.source.page_count(),
                    content_pages: prepared.content_pages(VmId(id)),
                };
                (VmId(id), spec)
            })
            .collect();
        let store = Store::open(root.path()).expect("a new store");
        let intake = Arc::new(store.begin("replay", &specs, false).expect("an empty store"));
        let session = Receiving::new(ReceivingConfig::new(SYMBOL_SIZE, specs.len()));
        let vms = specs.iter().map(|(vm, _)| vm.0).collect();
        Self { root, session, intake, scratch: Scratch::new(), vms, gave_up: false, now: Duration::ZERO }
    }

    /// Takes in one frame; what the host says in return.
    pub(crate) fn take(&mut self, frame: &Frame) -> Vec<ToSender> {
        match frame {
            Frame::Datagram(_, bytes) => self.session.handle_datagram(bytes),
            Frame::ToHost(_, bytes) => {
                let Ok(message) = ToHost::decode(bytes) else {
                    self.gave_up = true;
                    return Vec::new();
                };
                let (intake, vms) = (Arc::clone(&self.intake), self.vms.clone());
                let mut held = |digest: &wire::Digest| {
                    let complete =
                        || vms.iter().copied().filter(|vm| intake.is_complete(VmId(*vm))).collect();
                    intake.confirm_held(digest).then(complete)
                };
                self.gave_up |= self.session.handle_control(self.now, message, &mut held).is_err();
            }
            Frame::ToSender(..) => {}
        }
        self.drain()
    }

    /// Time passes, and the sockets are empty.
    pub(crate) fn pass(&mut self, now: Duration) -> Vec<ToSender> {
        self.now = now;
        self.session.handle_drained(now);
        self.session.handle_timeout(now);
        self.drain()
    }

    fn drain(&mut self) -> Vec<ToSender> {
        let mut said = Vec::new();
        while let Some(action) = self.session.poll_action() {
            match action {
                Action::Send(message) => said.push(message),
                Action::Join { channel, .. } => self.session.joined(channel, Ok(())),
                Action::Check(job) => {
                    let checked = check(
                        *job,
                        Place { intake: &self.intake, residents: None, limits: &BlockLimits::default() },
                        &mut self.scratch,
                    );
                    self.session.handle_checked(self.now, checked);
                }
                Action::FinishVm(vm) => {
                    self.intake.finish(VmId(vm)).expect("a complete image");
                    self.session.handle_finished(vm);
                }
                Action::AllPlaced => drop(self.session.all_complete(Duration::ZERO, 0, 0)),
                Action::Leave { .. } | Action::End { .. } => {}
            }
        }
        said
    }
}

/// The number of images that are there; each must be right.
pub(crate) fn verify(prepared: &Prepared, root: &Path) -> usize {
    let mut finished = 0;
    for vm in &prepared.vms {
        let Ok(bytes) = std::fs::read(root.join(format!("{}.ram", vm.name))) else { continue };
        assert_eq!(bytes.len() as u64, vm.file_len, "{}", vm.name);
        for (pfn, page) in (0..).zip(bytes.chunks(PAGE_SIZE)) {
            assert!(page == vm.source.page(Pfn(pfn)), "{} is wrong at page {pfn}", vm.name);
        }
        finished += 1;
    }
    finished
}

/// The sender and its hosts.
pub(crate) struct World {
    pub(crate) sender: Session,
    pub(crate) prepared: Prepared,
    pub(crate) channels: Vec<ChannelSpec>,
    pub(crate) hosts: Vec<Host>,
    blocks: Vec<Vec<u8>>,
    window: Window,
    now: Duration,
}

impl World {
    pub(crate) fn new() -> Self {
        let inputs = images().into_iter().enumerate().map(|(index, (image, hosts))| VmInput {
            name: format!("vm{index}"),
            file_len: (image.0.len() * PAGE_SIZE) as u64,
            source: Arc::new(image),
            hosts: IdSet::from_iter(hosts),
            domain: 0,
        });
        let prepared = Prepared::new(inputs.collect(), 1);
        let mut channels = Vec::new();
        let mut segments = Vec::new();
        for (index, segment) in (0u8..).zip(&prepared.segments) {
            let hosts: Vec<usize> = segment.hosts.iter().map(usize::from).collect();
            let group = (hosts.len() > 1).then(|| [239, 1, 1, index].into());
            let secret = ChannelSecret { key: [index + 1; 32], salt: [index; 4] };
            channels.push(ChannelSpec { group, hosts, id: ChannelId(100 + u32::from(index)), secret });
            let (channel, expected_bytes) = (usize::from(index), prepared.segment_bytes(index.into()));
            segments.push(SegmentSpec { channel, expected_bytes, circle: 0 });
        }
        let config = SessionConfig::new(SYMBOL_SIZE, RateConfig::Fixed(100_000_000));
        let mut sender = Session::new(config, fec::CostModel::default(), 2, channels.clone(), &segments);
        let mut window = Window::new(&channels);
        let mut blocks = Vec::new();
        let plan = EncodePlan::new(Encoding::Zstd { level: 1 }, 0.7, SYMBOL_SIZE);
        let plan = EncodePlan { block_bytes_max: 24 << 10, ..plan };
        for segment in 0..segments.len() {
            for stripe in prepared.stripes(segment) {
                for block in encode_stripe(&prepared, &stripe, &plan, &mut Scratch::new()) {
                    let len = u32::try_from(block.bytes.len()).expect("small");
                    let id = sender.handle_block(segment, len, block.digest);
                    let shape = fec::BlockShape::for_len(len, SYMBOL_SIZE).expect("it fits");
                    blocks.push(block.bytes.clone());
                    window.keep(id, block.bytes, shape).expect("its own length");
                }
            }
            sender.handle_segment_encoded(segment);
        }
        let hosts = (0..2).map(|host| Host::new(&prepared, host)).collect();
        Self { sender, prepared, channels, hosts, blocks, window, now: Duration::ZERO }
    }

    /// Runs until the session is over, every frame through the tap.
    pub(crate) fn run(&mut self, tap: Tap<'_>) {
        for host in 0..self.hosts.len() {
            self.sender.handle_connected(host, self.now);
            let unicast = ([127, 0, 0, 1], 9).into();
            let accept = Accept { version: wire::VERSION, unicast, credit_bytes: 1 << 20 };
            self.pass(Frame::ToSender(host, ToSender::Accept(accept).encode()), tap);
        }
        while !self.sender.is_over() {
            assert!(self.now < TIME_MAX, "not over: {:?}, {:?}", self.sender.phase(0), self.sender.phase(1));
            self.step(tap);
        }
        self.flush_control(tap);
    }

    fn step(&mut self, tap: Tap<'_>) {
        self.now += STEP;
        for host in 0..self.hosts.len() {
            let said = self.hosts[host].pass(self.now);
            self.hear(host, said, tap);
        }
        self.sender.handle_timeout(self.now);
        self.flush_control(tap);
        while let Some(transmit) = self.sender.poll_transmit(self.now) {
            self.flush_control(tap);
            let hosts = self.channels[transmit.channel].hosts.clone();
            let Some(batch) = self.window.seal(&transmit).expect("symbols of the code") else { continue };
            let datagrams: Vec<Vec<u8>> = batch.bytes.chunks(batch.datagram).map(<[u8]>::to_vec).collect();
            for datagram in datagrams {
                for host in &hosts {
                    self.pass(Frame::Datagram(*host, datagram.clone()), tap);
                }
            }
        }
        while let Some((host, id)) = self.sender.poll_catch_up(self.now) {
            let bytes = self.blocks[usize::try_from(id.0).expect("small")].clone();
            self.flush_control(tap);
            self.pass(Frame::ToHost(host, ToHost::BlockData { block: id.0, bytes }.encode()), tap);
        }
        while let Some(id) = self.sender.poll_recall() {
            if self.sender.handle_recalled(id) {
                let bytes = self.blocks[usize::try_from(id.0).expect("small")].clone();
                let len = u32::try_from(bytes.len()).expect("small");
                let shape = fec::BlockShape::for_len(len, SYMBOL_SIZE).expect("it fits");
                self.window.keep(id, bytes, shape).expect("its own length");
            }
        }
        self.flush_control(tap);
        while let Some(id) = self.sender.poll_release() {
            self.window.release(id);
        }
        while self.sender.poll_event().is_some() {}
    }

    fn flush_control(&mut self, tap: Tap<'_>) {
        while let Some((host, message)) = self.sender.poll_control() {
            self.pass(Frame::ToHost(host, message.encode()), tap);
        }
    }

    fn hear(&mut self, host: usize, said: Vec<ToSender>, tap: Tap<'_>) {
        for message in said {
            self.pass(Frame::ToSender(host, message.encode()), tap);
        }
    }

    fn pass(&mut self, frame: Frame, tap: Tap<'_>) {
        for frame in tap(frame) {
            match &frame {
                Frame::ToHost(host, _) | Frame::Datagram(host, _) => {
                    let said = self.hosts[*host].take(&frame);
                    self.hear(*host, said, tap);
                }
                Frame::ToSender(host, bytes) => match ToSender::decode(bytes) {
                    Ok(message) => self.sender.handle_control(*host, message, self.now),
                    // The driver closes the connection then, and does not find the host again here.
                    Err(_) => self.sender.fail(*host, "malformed", self.now),
                },
            }
        }
    }

    /// Whether this host has everything, which is right.
    pub(crate) fn assert_complete(&self, host: usize) {
        assert_eq!(*self.sender.phase(host), Phase::Complete, "host {host}");
        assert_eq!(verify(&self.prepared, self.hosts[host].root.path()), 2, "images of host {host}");
    }
}
