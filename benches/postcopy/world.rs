//! A sender and receivers in this process, over the loopback interface.

use crate::player::{KIND, Played, Players, page_of};
use anyhow::Context;
use net::Interface;
use net::pki::{Identity, Role, create_ca, issue_host};
use net::udp::SenderOptions;
use pages::block::Encoding;
use pages::{IdSet, PAGE_SIZE, PageSource, VmId};
use receiver::guests::{GuestConfig, Launch};
use receiver::service::{Service, ServiceConfig, ServiceEvent};
use sender::driver::{
    HostTarget, Outcome, Progress, Schedule, ScheduledChannel, ScheduledSegment, Transfer, TransferConfig,
};
use sender::encode::EncodePlan;
use sender::guests::GuestInput;
use sender::prepare::{Prepared, VmInput};
use sender::rate::RateConfig;
use sender::session::SessionConfig;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use vmm::image::MappedImage;
use vmm::uffd::PageServer;
use wire::control::Paging;

const SYMBOL_BYTES: u16 = 1424;
const PATIENCE: Duration = Duration::from_secs(120);
static NEXT_PORT: AtomicU16 = AtomicU16::new(0);

/// How guests' pages are brought.
#[derive(Clone, Debug)]
pub(crate) struct Way {
    pub(crate) hosts: usize,
    /// Of each guest.
    pub(crate) pages: u32,
    pub(crate) bytes_per_s: u64,
    pub(crate) working_set: Vec<u32>,
    pub(crate) paging: Paging,
    pub(crate) shared_faults: bool,
    /// The last host starts when the others are done, and the sender is interrupted when its guest runs: peers bring the rest.
    pub(crate) last_is_late: bool,
    /// Guests wait for so long before their first touch.
    pub(crate) delay: Duration,
}

/// Keys and the guests' memory, for all runs.
pub(crate) struct Site {
    dir: tempfile::TempDir,
}

struct Host {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Site {
    pub(crate) fn new(hosts: usize) -> anyhow::Result<Self> {
        let shm = Path::new("/dev/shm");
        let place = if shm.is_dir() { shm.to_path_buf() } else { std::env::temp_dir() };
        let dir = tempfile::Builder::new().prefix("scatter-postcopy-").tempdir_in(place)?;
        let keys = dir.path().join("keys");
        create_ca(&keys)?;
        issue_host(&keys, "src", &[Role::Sender], &[], 1)?;
        for host in 0..hosts {
            issue_host(&keys, &format!("h{host}"), &[Role::Receiver], &[], 1)?;
        }
        Ok(Self { dir })
    }

    /// A guest's memory.
    fn memory(&self, pages: u32) -> anyhow::Result<MappedImage> {
        let path = self.dir.path().join(format!("golden-{pages}.mem"));
        if !path.exists() {
            let memory: Vec<u8> = (0..pages).flat_map(page_of).collect();
            std::fs::write(&path, memory)?;
        }
        Ok(MappedImage::open(path, None)?)
    }

    /// One transfer until each guest has played its trace; what each saw, and the sender's outcome.
    pub(crate) fn run(&self, way: &Way, trace: &[u32]) -> anyhow::Result<(Vec<Played>, Outcome)> {
        let played: Arc<Mutex<Vec<Played>>> = Arc::default();
        let launcher = Arc::new(Players {
            trace: trace.into(),
            server: PageServer::start()?,
            played: Arc::clone(&played),
            delay: way.delay,
        });
        let stores = tempfile::tempdir_in(self.dir.path())?;
        let early = if way.last_is_late { way.hosts - 1 } else { way.hosts };
        let mut hosts = Vec::new();
        let addresses: Vec<SocketAddr> =
            (0..way.hosts).map(|_| free_address()).collect::<anyhow::Result<_>>()?;
        for (host, address) in addresses.iter().enumerate().take(early) {
            hosts.push(self.host(host, *address, stores.path(), &launcher)?);
        }
        let transfer = self.transfer(way, &addresses)?;
        let (interrupt, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(None::<Progress>)));
        let (flag, log) = (Arc::clone(&interrupt), Arc::clone(&seen));
        let sending = std::thread::spawn(move || {
            let mut observe = |progress: &Progress| {
                *log.lock().unwrap_or_else(PoisonError::into_inner) = Some(progress.clone());
            };
            transfer.run(&flag, &mut observe)
        });
        let count = || played.lock().unwrap_or_else(PoisonError::into_inner).len();
        if way.last_is_late {
            let at = |of: fn(&sender::guests::CloneOutcome) -> bool, clones: std::ops::Range<usize>| {
                let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                seen.as_ref().is_some_and(|progress| progress.clones.all()[clones].iter().all(of))
            };
            wait("the first hosts are done", || at(|clone| clone.complete.is_some(), 0..early))?;
            hosts.push(self.host(early, addresses[early], stores.path(), &launcher)?);
            wait("the last guest runs", || at(|clone| clone.running.is_some(), early..way.hosts))?;
            interrupt.store(true, Ordering::Relaxed);
        }
        wait("the guests are through", || count() == way.hosts)?;
        interrupt.store(true, Ordering::Relaxed);
        let outcome = sending.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
        hosts.iter_mut().for_each(Host::end);
        let played = std::mem::take(&mut *played.lock().unwrap_or_else(PoisonError::into_inner));
        Ok((played, outcome))
    }

    fn transfer(&self, way: &Way, addresses: &[SocketAddr]) -> anyhow::Result<Transfer> {
        let all: Vec<usize> = (0..way.hosts).collect();
        let vm = VmInput {
            name: "golden".into(),
            file_len: u64::from(way.pages) * PAGE_SIZE as u64,
            source: Arc::new(self.memory(way.pages)?) as Arc<dyn PageSource>,
            hosts: (0..u16::try_from(way.hosts)?).collect::<IdSet>(),
            domain: 0,
        };
        let mut prepared = Prepared::new(vec![vm], 2);
        let mut schedule = Schedule {
            channels: vec![ScheduledChannel { group: Some([239, 77, 4, 1].into()), hosts: all.clone() }],
            segments: (0..prepared.segments.len())
                .map(|segment| ScheduledSegment { segment, channel: 0 })
                .collect(),
            first: 0,
        };
        schedule.put_first(&prepared.put_first(&[(VmId(0), &way.working_set)]));
        let guest = GuestInput {
            vm: 0,
            kind: KIND.into(),
            fingerprint: String::new(),
            leaves: None,
            attachments: vec![("state".into(), vec![1; 64])],
            clones: all.iter().map(|host| (*host, format!("clone-{host}"))).collect(),
            working_set: way.working_set.clone(),
            paging: way.paging,
            settle: Duration::ZERO,
        };
        let target = |(host, address): (usize, &SocketAddr)| HostTarget {
            name: format!("h{host}"),
            address: *address,
        };
        let config = TransferConfig {
            name: "postcopy".into(),
            hosts: addresses.iter().enumerate().map(target).collect(),
            identity: Arc::new(Identity::load(&self.dir.path().join("keys/src"))?),
            interface: Interface::by_name("lo")?,
            options: SenderOptions::default(),
            multicast_port: 30_000 + NEXT_PORT.fetch_add(1, Ordering::Relaxed) % 10_000,
            ipv6: false,
            session: SessionConfig {
                host_timeout: PATIENCE,
                ..SessionConfig::new(SYMBOL_BYTES, RateConfig::Fixed(way.bytes_per_s))
            },
            encode: EncodePlan::new(Encoding::Raw, 1.0, SYMBOL_BYTES),
            threads: 1,
            shared_faults: way.shared_faults,
            guests: vec![guest],
        };
        Ok(Transfer::start(&Arc::new(prepared), &schedule, config)?)
    }

    fn host(
        &self,
        host: usize,
        listen: SocketAddr,
        stores: &Path,
        launcher: &Arc<Players>,
    ) -> anyhow::Result<Host> {
        let name = format!("h{host}");
        let config = ServiceConfig {
            store: stores.join(&name),
            identity: Arc::new(Identity::load(&self.dir.path().join("keys").join(&name))?),
            name,
            listen,
            interface: Some(Interface::by_name("lo")?),
            rcvbuf_bytes: 32 << 20,
            workers: 1,
            replace: false,
            once: false,
            measurable: Vec::new(),
            guests: GuestConfig { launchers: vec![Arc::clone(launcher) as Arc<dyn Launch>], nice: None },
            orphan_timeout: PATIENCE,
        };
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let service = Service::start(config, &mut |_: ServiceEvent| ())?;
        let thread = std::thread::spawn(move || {
            if let Err(error) = service.run(&flag, &mut |_| ()) {
                eprintln!("a receiver ended: {error}");
            }
        });
        Ok(Host { stop, thread: Some(thread) })
    }
}

/// An address that was free a moment ago: a sender has to know it before its host is there.
fn free_address() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port")?;
    Ok(listener.local_addr()?)
}

fn wait(what: &str, done: impl Fn() -> bool) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        anyhow::ensure!(Instant::now() < deadline, "not in {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

impl Host {
    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic there was reported by the thread.
            let _ = thread.join();
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.end();
    }
}
