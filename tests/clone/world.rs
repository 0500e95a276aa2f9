//! A sender and some receivers in this process, over the loopback interface.

use crate::guest::{KIND, Launcher, PAGES, STATE, Stint, page_of};
use net::Interface;
use net::pki::{Identity, Role, create_ca, issue_host};
use net::udp::SenderOptions;
use pages::block::Encoding;
use pages::{IdSet, PAGE_SIZE, PageSource, VmId};
use receiver::guests::{GuestConfig, Launch};
use receiver::service::{Service, ServiceConfig, ServiceEvent};
use sender::driver::{
    HostTarget, Outcome, Schedule, ScheduledChannel, ScheduledSegment, Transfer, TransferConfig,
};
use sender::encode::EncodePlan;
use sender::guests::GuestInput;
use sender::prepare::{Prepared, VmInput};
use sender::rate::RateConfig;
use sender::session::SessionConfig;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use vmm::image::MappedImage;
use wire::control::Paging;

const SYMBOL_BYTES: u16 = 1424;
const PAGING: Paging = Paging { around: 4, working_set: true, wait_ms: 500 };

/// Ports differ between the tests of this process, and between processes.
static NEXT_PORT: AtomicU16 = AtomicU16::new(0);

pub(crate) struct World {
    hosts: Vec<Receiver>,
    dir: tempfile::TempDir,
    checked: Arc<AtomicU64>,
    early_waits: Arc<AtomicU64>,
    port: u16,
    /// What the sender says that the VM is.
    pub(crate) kind: String,
    /// Its recorded working set, and how it is used.
    pub(crate) working_set: Vec<u32>,
    pub(crate) paging: Paging,
    /// Faults of several hosts are answered by the group.
    pub(crate) shared_faults: bool,
}

struct Receiver {
    config: ServiceConfig,
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    notes: Arc<Mutex<Vec<String>>>,
}

impl World {
    pub(crate) fn new(hosts: usize, stint: Stint) -> Self {
        let place = if std::path::Path::new("/dev/shm").is_dir() {
            PathBuf::from("/dev/shm")
        } else {
            std::env::temp_dir()
        };
        let dir = tempfile::Builder::new().prefix("scatter-clone-").tempdir_in(place).expect("a directory");
        let keys = dir.path().join("keys");
        create_ca(&keys).expect("a CA");
        issue_host(&keys, "src", &[Role::Sender], &[], 1).expect("a certificate");
        let image: Vec<u8> = (0..PAGES).flat_map(page_of).collect();
        std::fs::write(dir.path().join("golden.mem"), image).expect("written");
        let checked = Arc::new(AtomicU64::new(0));
        let seed = u16::try_from(std::process::id() % 20_000).expect("below 20,000");
        let port = 20_000 + seed + NEXT_PORT.fetch_add(37, Ordering::Relaxed);
        let early_waits = Arc::new(AtomicU64::new(0));
        let launcher = Arc::new(Launcher {
            stint,
            checked: Arc::clone(&checked),
            early_waits: Arc::clone(&early_waits),
        });
        let hosts = (0..hosts).map(|host| {
            let name = format!("h{host}");
            issue_host(&keys, &name, &[Role::Receiver], &[], 1).expect("a certificate");
            let config = ServiceConfig {
                store: dir.path().join(&name),
                identity: Arc::new(Identity::load(&keys.join(&name)).expect("keys")),
                name,
                listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
                interface: Some(Interface::by_name("lo").expect("every host has lo")),
                rcvbuf_bytes: 4 << 20,
                workers: 1,
                replace: false,
                once: false,
                measurable: Vec::new(),
                guests: GuestConfig { launchers: vec![Arc::clone(&launcher) as Arc<dyn Launch>], nice: None },
                orphan_timeout: Duration::from_secs(60),
            };
            Receiver::start(config)
        });
        Self {
            hosts: hosts.collect(),
            dir,
            checked,
            early_waits,
            port,
            kind: KIND.into(),
            working_set: Vec::new(),
            paging: PAGING,
            shared_faults: true,
        }
    }

    /// Starts the receivers anew with another time-out.
    pub(crate) fn orphan_timeout(&mut self, orphan_timeout: Duration) {
        for host in &mut self.hosts {
            host.end();
            *host = Receiver::start(ServiceConfig { orphan_timeout, ..host.config.clone() });
        }
    }

    /// Pages that all clones have found right so far.
    pub(crate) fn checked_pages(&self) -> u64 {
        self.checked.load(Ordering::Relaxed)
    }

    /// Pages that clones had to wait for, among the first that each touched.
    pub(crate) fn early_waits(&self) -> u64 {
        self.early_waits.load(Ordering::Relaxed)
    }

    pub(crate) fn await_note(&self, patience: Duration, words: &str) -> String {
        let find = || {
            self.hosts[0].notes.lock().expect("no panic").iter().find(|note| note.contains(words)).cloned()
        };
        wait_until(patience, words, || find().is_some());
        find().expect("found just before")
    }

    /// Every host has the VM's memory, whole.
    pub(crate) fn check_images(&self) {
        let source = std::fs::read(self.dir.path().join("golden.mem")).expect("written before");
        for host in &self.hosts {
            let rebuilt = std::fs::read(host.config.store.join("golden.ram")).expect("a finished image");
            assert!(source == rebuilt, "{} is not its source", host.config.name);
        }
    }

    /// Names of what hosts keep on disk, but for the lock.
    pub(crate) fn kept(&self) -> Vec<String> {
        let mut kept = Vec::new();
        for host in &self.hosts {
            for dir in [host.config.store.clone(), host.config.store.join(".scatter")] {
                for entry in std::fs::read_dir(dir).expect("a store") {
                    let name = entry.expect("an entry").file_name().into_string().expect("UTF-8");
                    if name != ".scatter" && name != "lock" {
                        kept.push(name);
                    }
                }
            }
        }
        kept
    }

    /// Starts a transfer that makes so many clones on each host, at so many bytes a second.
    pub(crate) fn send(&mut self, clones: usize, bytes_per_s: Option<u64>) -> Sending {
        let image = MappedImage::open(self.dir.path().join("golden.mem"), None).expect("an image");
        let all: Vec<usize> = (0..self.hosts.len()).collect();
        let hosts: IdSet = all.iter().map(|host| u16::try_from(*host).expect("few")).collect();
        let vm = VmInput {
            name: "golden".into(),
            file_len: u64::from(PAGES) * PAGE_SIZE as u64,
            source: Arc::new(image) as Arc<dyn PageSource>,
            hosts,
            domain: 0,
        };
        let mut prepared = Prepared::new(vec![vm], 1);
        let clones = all
            .iter()
            .flat_map(|host| (0..clones).map(move |clone| (*host, format!("golden-h{host}-{clone}"))));
        let guest = GuestInput {
            leaves: None,
            vm: 0,
            kind: self.kind.clone(),
            fingerprint: "any".into(),
            attachments: vec![("state".into(), STATE.to_vec())],
            clones: clones.collect(),
            working_set: self.working_set.clone(),
            paging: self.paging,
            settle: Duration::ZERO,
        };
        let rate = RateConfig::Fixed(bytes_per_s.unwrap_or(100_000_000));
        let target = |host: &Receiver| HostTarget { name: host.config.name.clone(), address: host.address };
        let config = TransferConfig {
            name: "clones".into(),
            hosts: self.hosts.iter().map(target).collect(),
            identity: Arc::new(Identity::load(&self.dir.path().join("keys/src")).expect("keys")),
            interface: Interface::by_name("lo").expect("every host has lo"),
            options: SenderOptions::default(),
            multicast_port: self.port,
            ipv6: false,
            session: SessionConfig {
                host_timeout: Duration::from_secs(40),
                ..SessionConfig::new(SYMBOL_BYTES, rate)
            },
            encode: EncodePlan::new(Encoding::Lz4, 1.0, SYMBOL_BYTES),
            threads: 1,
            shared_faults: self.shared_faults,
            guests: vec![guest],
        };
        let group = Some([239, 77, 3, 1].into());
        let mut schedule = Schedule {
            channels: vec![ScheduledChannel { group, hosts: all }],
            segments: (0..prepared.segments.len())
                .map(|segment| ScheduledSegment { segment, channel: 0 })
                .collect(),
            first: 0,
        };
        schedule.put_first(&prepared.put_first(&[(VmId(0), &self.working_set)]));
        let prepared = Arc::new(prepared);
        let mut transfer = Transfer::start(&prepared, &schedule, config).expect("sockets");
        let interrupt = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&interrupt);
        let cancel = Arc::new(AtomicBool::new(false));
        transfer.cancel_when(Arc::clone(&cancel));
        let thread =
            std::thread::spawn(move || transfer.run(&flag, &mut |_| ()).expect("this host can send"));
        Sending { thread, interrupt, cancel }
    }
}

/// A transfer under way.
pub(crate) struct Sending {
    thread: JoinHandle<Outcome>,
    interrupt: Arc<AtomicBool>,
    cancel: Arc<AtomicBool>,
}

impl Sending {
    pub(crate) fn finish(self, patience: Duration) -> Outcome {
        wait_until(patience, "the transfer ends", || self.thread.is_finished());
        self.thread.join().expect("no panic")
    }

    pub(crate) fn interrupt(self) -> Outcome {
        self.interrupt.store(true, Ordering::Relaxed);
        self.finish(Duration::from_secs(20))
    }

    pub(crate) fn cancel(self) -> Outcome {
        self.cancel.store(true, Ordering::Relaxed);
        self.finish(Duration::from_secs(20))
    }
}

impl Receiver {
    fn start(config: ServiceConfig) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let notes: Arc<Mutex<Vec<String>>> = Arc::default();
        let mut address = None;
        let mut observe = |event| {
            if let ServiceEvent::Listening(at) = event {
                address = Some(at);
            }
        };
        let service = Service::start(config.clone(), &mut observe).expect("a service");
        let (flag, log) = (Arc::clone(&stop), Arc::clone(&notes));
        let thread = std::thread::spawn(move || {
            let mut observe = |event| log.lock().expect("no panic").push(format!("{event:?}"));
            service.run(&flag, &mut observe).expect("it serves");
        });
        Self { config, address: address.expect("it listens"), stop, thread: Some(thread), notes }
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("no panic");
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Its panic was reported by the thread; this may run while another unwinds.
            let _ = thread.join();
        }
    }
}

pub(crate) fn wait_until(patience: Duration, what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !done() {
        assert!(Instant::now() < deadline, "not in {patience:?}: {what}");
        std::thread::sleep(Duration::from_millis(3));
    }
}
