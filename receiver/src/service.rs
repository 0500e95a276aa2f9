//! `scatter receive`: listens for senders, authenticates them, and runs one transfer at a time.

use crate::driver::{Driver, Ended, Link};
use crate::store::{Store, StoreError, VmSpec};
use crossbeam_channel::{Receiver, Sender, unbounded};
use net::control::Listener;
use net::interface::Interface;
use net::pki::Identity;
use net::udp::{Family, UdpReceiver, Waker};
use pages::VmId;
use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::mpsc::unbounded_channel;
use wire::control::measure::Ask;
use wire::control::{Accept, Message, Offer, RefuseCause, ToHost, ToSender};
use wire::limits;

/// How long a new connection may take to make its offer.
const OFFER_WAIT: Duration = Duration::from_secs(10);
/// How long an idle service waits before it looks at its stop flag again.
const IDLE: Duration = Duration::from_millis(200);

/// A receiving host.
#[derive(Clone)]
pub struct ServiceConfig {
    /// The name under which senders know this host.
    pub name: String,
    /// Where to listen for senders.
    pub listen: SocketAddr,
    /// Where data come in; found by the sender's address if not named.
    pub interface: Option<Interface>,
    /// Directory of images.
    pub store: PathBuf,
    /// This host's certificate and key, and the fleet's CA.
    pub identity: Arc<Identity>,
    /// Socket buffer for datagrams, in bytes.
    pub rcvbuf_bytes: usize,
    /// Threads that verify and place blocks.
    pub workers: usize,
    /// Finished images of other transfers may be replaced.
    pub replace: bool,
    /// Ends after the first transfer that was complete.
    pub once: bool,
    /// Directories whose images a sender may have measured; none refuses it.
    pub measurable: Vec<PathBuf>,
}

/// Why the service cannot run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServiceError {
    /// The store cannot be used.
    #[error("cannot use the store")]
    Store(#[source] StoreError),
    /// The control port cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: Box<net::control::ControlError>,
    },
    /// The system cannot start a thread or runtime.
    #[error("cannot start")]
    Start(#[source] io::Error),
}

/// What happens in a service, for whoever runs it.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ServiceEvent {
    /// Ready for senders at this address.
    Listening(SocketAddr),
    /// A sender was turned away, or could not be authenticated; the reason in words.
    Refused(String),
    /// A transfer was accepted: its name, the sender, and the number of VMs.
    Accepted(String, String, usize),
    /// A note on what was resumed, or why nothing could be.
    Resumed(String),
    /// A transfer ended.
    Ended(String, Ended),
}

/// A connection that has made its offer.
struct Incoming {
    peer: String,
    peer_address: SocketAddr,
    local_address: SocketAddr,
    offer: Offer,
    link: Link,
}

/// See the module's text.
pub struct Service {
    config: ServiceConfig,
    store: Store,
    waker: Arc<Waker>,
    incoming: Receiver<Result<Incoming, String>>,
    waiting: VecDeque<Incoming>,
}

impl Service {
    /// Opens the store and starts listening.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub fn start(
        config: ServiceConfig,
        observer: &mut dyn FnMut(ServiceEvent),
    ) -> Result<Self, ServiceError> {
        let store = Store::open(&config.store).map_err(ServiceError::Store)?;
        let waker = Arc::new(Waker::new().map_err(ServiceError::Start)?);
        let (out, incoming) = unbounded();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(ServiceError::Start)?;
        let listener = runtime
            .block_on(Listener::bind(config.listen, &config.identity))
            .map_err(|source| ServiceError::Listen { address: config.listen, source: Box::new(source) })?;
        observer(ServiceEvent::Listening(listener.local_addr()));
        let agent = crate::measure::Agent::new(config.measurable.clone(), config.workers);
        let interface = config.interface.clone();
        let shared = Arc::new(Shared { out, waker: Arc::clone(&waker), interface, agent });
        std::thread::Builder::new()
            .name("control".into())
            .spawn(move || runtime.block_on(listen(listener, shared)))
            .map_err(ServiceError::Start)?;
        Ok(Self { config, store, waker, incoming, waiting: VecDeque::new() })
    }

    /// Serves until `stop` is set, or after the first complete transfer if so configured. Whether the last transfer
    /// was complete.
    ///
    /// # Errors
    /// [`ServiceError::Start`] if sockets fail.
    pub fn run(
        mut self,
        stop: &AtomicBool,
        observer: &mut dyn FnMut(ServiceEvent),
    ) -> Result<bool, ServiceError> {
        let mut complete = false;
        while !stop.load(Ordering::Relaxed) {
            let next = match self.waiting.pop_front() {
                Some(next) => Ok(next),
                None => match self.incoming.recv_timeout(IDLE) {
                    Ok(next) => next,
                    Err(_) => continue,
                },
            };
            let incoming = match next {
                Ok(incoming) => incoming,
                Err(reason) => {
                    observer(ServiceEvent::Refused(reason));
                    continue;
                }
            };
            let transfer = incoming.offer.transfer.clone();
            let Some(ended) = self.transfer(incoming, stop, observer).map_err(ServiceError::Start)? else {
                continue;
            };
            complete = matches!(ended, Ended::Complete(_) | Ended::CompleteUnreleased(_));
            observer(ServiceEvent::Ended(transfer, ended));
            if complete && self.config.once {
                break;
            }
        }
        Ok(complete)
    }

    /// Runs one transfer; nothing if it was refused.
    fn transfer(
        &mut self,
        incoming: Incoming,
        stop: &AtomicBool,
        observer: &mut dyn FnMut(ServiceEvent),
    ) -> io::Result<Option<Ended>> {
        let Incoming { peer, peer_address, local_address, offer, link } = incoming;
        let mut refuse = |cause, reason: String| {
            let refusal = ToSender::Refuse { cause, reason: wire::control::reason(&reason) };
            // The sender may be gone already; then nobody has to be told.
            let _ = link.outgoing.send(refusal.encode());
            observer(ServiceEvent::Refused(format!("{} from {peer}: {reason}", offer.transfer)));
            Ok(None)
        };
        if let Err((cause, reason)) = check_offer(&offer, &self.config.name) {
            return refuse(cause, reason);
        }
        let vms = offer.vms.iter().map(|vm| {
            let spec = VmSpec {
                name: vm.name.clone(),
                file_len: vm.file_len,
                page_count: vm.page_count,
                content_pages: vm.content_pages,
            };
            (VmId(vm.vm), spec)
        });
        let vms: Vec<(VmId, VmSpec)> = vms.collect();
        let intake = match self.store.begin(&offer.transfer, &vms, self.config.replace) {
            Ok(intake) => Arc::new(intake),
            Err(error @ StoreError::ImageExists { .. }) => {
                return refuse(RefuseCause::Exists, error.to_string());
            }
            Err(error) => return refuse(RefuseCause::Store, error.to_string()),
        };
        let (mut sockets, unicast) = match self.sockets(&offer, peer_address, local_address) {
            Ok(bound) => bound,
            Err(reason) => return refuse(RefuseCause::Store, reason),
        };
        observer(ServiceEvent::Accepted(offer.transfer.clone(), peer, offer.vms.len()));
        if let Some(note) = intake.resume_note() {
            observer(ServiceEvent::Resumed(note.to_owned()));
        }
        accept(&intake, &link, unicast, sockets.rcvbuf_bytes());
        let (incoming, waiting) = (&self.incoming, &mut self.waiting);
        let mut preempted = || {
            if stop.load(Ordering::Relaxed) {
                return Some("stopped".to_owned());
            }
            preempt(&offer, incoming, waiting)
        };
        let driver = Driver {
            sockets: &mut sockets,
            waker: &self.waker,
            link,
            intake: Arc::clone(&intake),
            workers: self.config.workers,
            preempted: &mut preempted,
        };
        let ended = driver.run(&offer)?;
        self.close(intake, &ended, observer);
        Ok(Some(ended))
    }

    /// Forgets the journal of a transfer that is over everywhere.
    fn close(
        &self,
        intake: Arc<crate::store::Intake>,
        ended: &Ended,
        observer: &mut dyn FnMut(ServiceEvent),
    ) {
        let Ok(intake) = Arc::try_unwrap(intake) else { return };
        let closed = match ended {
            Ended::Complete(_) => intake.close_transfer(),
            _ => intake.abandon(),
        };
        if let Err(error) = closed {
            observer(ServiceEvent::Resumed(format!("closing the journal: {error}")));
        }
    }

    /// The data sockets, and where unicast datagrams reach this host.
    fn sockets(
        &self,
        offer: &Offer,
        peer: SocketAddr,
        local: SocketAddr,
    ) -> Result<(UdpReceiver, SocketAddr), String> {
        let family = if offer.ipv6 { Family::V6 } else { Family::V4 };
        let interface = match &self.config.interface {
            Some(interface) => interface.clone(),
            None => Interface::for_peer(peer.ip()).map_err(|error| error.to_string())?,
        };
        let address = if Family::of(local.ip()) == family && interface.has(local.ip()) {
            Some(local.ip())
        } else {
            address_of(&interface, family)
        };
        let address = address.ok_or_else(|| {
            let wanted = if offer.ipv6 { "IPv6" } else { "IPv4" };
            format!("interface {} has no {wanted} address for the transfer's groups", interface.name)
        })?;
        let bytes = self.config.rcvbuf_bytes;
        let sockets = UdpReceiver::bind(offer.multicast_port, family, &interface, bytes)
            .map_err(|error| format!("cannot make the data sockets: {error}"))?;
        let unicast = SocketAddr::new(address, sockets.unicast_port());
        Ok((sockets, unicast))
    }
}

/// An address of the interface that others can send to.
fn address_of(interface: &Interface, family: Family) -> Option<IpAddr> {
    match family {
        Family::V4 => interface.v4.first().copied().map(IpAddr::V4),
        Family::V6 => interface.v6.iter().copied().find(|v6| !v6.is_unicast_link_local()).map(IpAddr::V6),
    }
}

/// Sends what is held from an earlier run, and the acceptance.
fn accept(intake: &crate::store::Intake, link: &Link, unicast: SocketAddr, rcvbuf_bytes: usize) {
    for digests in intake.held_digests().chunks(limits::DIGESTS_MAX) {
        let held = ToSender::Held { digests: digests.to_vec() };
        // A closed connection shows itself on the incoming side.
        let _ = link.outgoing.send(held.encode());
    }
    // The kernel charges a small datagram's whole buffer; half of the buffer is what surely fits.
    let credit_bytes = (rcvbuf_bytes as u64 / 2).max(64 << 10);
    let accept = Accept { version: wire::VERSION, unicast, credit_bytes };
    let _ = link.outgoing.send(ToSender::Accept(accept).encode());
}

fn check_offer(offer: &Offer, name: &str) -> Result<(), (RefuseCause, String)> {
    if !offer.version_is_spoken() {
        let (theirs, ours) = (offer.version, wire::VERSION);
        let reason =
            format!("the sender speaks protocol version {theirs}, this host {ours}: update the older");
        return Err((RefuseCause::Version, reason));
    }
    if offer.host != name {
        let reason = format!("this host is {name}, the plan expects {} here: check its address", offer.host);
        return Err((RefuseCause::Offer, reason));
    }
    let mut ids: Vec<u16> = offer.vms.iter().map(|vm| vm.vm).collect();
    ids.sort_unstable();
    ids.dedup();
    let lengths = offer.vms.iter().all(|vm| u64::from(vm.page_count) == vm.file_len.div_ceil(4096));
    if ids.len() != offer.vms.len() || !lengths || offer.symbol_size_max < 256 {
        return Err((RefuseCause::Offer, "the offer contradicts itself".into()));
    }
    Ok(())
}

/// Looks at new connections while a transfer runs: the same transfer again takes over (its sender was started again,
/// or lost this connection), another one is told to come back.
fn preempt(
    offer: &Offer,
    incoming: &Receiver<Result<Incoming, String>>,
    waiting: &mut VecDeque<Incoming>,
) -> Option<String> {
    match incoming.try_recv().ok()? {
        Ok(new) if new.offer.transfer == offer.transfer => {
            waiting.push_back(new);
            Some("the sender connected anew".into())
        }
        Ok(new) => {
            let reason = format!("transfer {} is under way here: try again when it is over", offer.transfer);
            let refusal = ToSender::Refuse { cause: RefuseCause::Busy, reason };
            let _ = new.link.outgoing.send(refusal.encode());
            None
        }
        Err(reason) => {
            tracing::warn!(reason, "a connection was refused");
            None
        }
    }
}

struct Shared {
    out: Sender<Result<Incoming, String>>,
    waker: Arc<Waker>,
    interface: Option<Interface>,
    agent: crate::measure::Agent,
}

async fn listen(mut listener: Listener, shared: Arc<Shared>) {
    loop {
        match listener.accept().await {
            Ok((control, peer)) => {
                tokio::spawn(converse(control, peer, Arc::clone(&shared)));
            }
            Err(error) => {
                if shared.out.send(Err(error.to_string())).is_err() {
                    return;
                }
            }
        }
    }
}

/// One connection: its first message says what it is for.
async fn converse(control: net::control::Control, peer: String, shared: Arc<Shared>) {
    let peer_address = control.peer().addr;
    let Ok(local_address) = control.local_addr() else { return };
    let (mut reader, mut writer) = control.split();
    let first = tokio::time::timeout(OFFER_WAIT, reader.read_frame()).await;
    let first = match first {
        Ok(Ok(Some(frame))) => ToHost::decode(&frame).map_err(|error| error.to_string()),
        Ok(Ok(None)) => return,
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("no offer in time".into()),
    };
    let offer = match first {
        Ok(ToHost::Offer(offer)) => offer,
        Ok(ToHost::Probe(probe)) => {
            crate::probe::serve(probe, peer_address, shared.interface.clone(), &mut writer).await;
            return;
        }
        Ok(ToHost::Measure(Ask::Start(start))) => {
            return crate::measure::serve(start, &shared.agent, &mut reader, &mut writer).await;
        }
        Ok(_) => return refused(&shared, &peer, "its first message is no offer"),
        Err(reason) => return refused(&shared, &peer, &reason),
    };
    let (messages, incoming) = unbounded();
    let (outgoing, mut frames) = unbounded_channel::<Vec<u8>>();
    let link = Link { incoming, outgoing };
    if shared.out.send(Ok(Incoming { peer, peer_address, local_address, offer, link })).is_err() {
        return;
    }
    shared.waker.wake();
    let reading = async {
        let reason = loop {
            match reader.read_frame().await {
                Ok(Some(frame)) => match ToHost::decode(&frame) {
                    Ok(message) => {
                        if messages.send(Ok(message)).is_err() {
                            return;
                        }
                        shared.waker.wake();
                    }
                    Err(error) => break error.to_string(),
                },
                Ok(None) => break "the sender closed the connection".to_owned(),
                Err(error) => break error.to_string(),
            }
        };
        // Nobody listens if the transfer has ended.
        let _ = messages.send(Err(reason));
        shared.waker.wake();
    };
    let writing = async {
        let mut batch = Vec::new();
        while frames.recv_many(&mut batch, 64).await > 0 {
            let slices: Vec<&[u8]> = batch.iter().map(Vec::as_slice).collect();
            if writer.write_frames(&slices).await.is_err() {
                break;
            }
            batch.clear();
        }
        let _ = writer.shutdown().await;
    };
    tokio::join!(reading, writing);
}

fn refused(shared: &Shared, peer: &str, reason: &str) {
    // Nobody listens if the service has ended.
    let _ = shared.out.send(Err(format!("{peer}: {reason}")));
}
