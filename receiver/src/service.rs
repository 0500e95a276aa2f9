//! `scatter receive`: listens for senders, authenticates them, and runs one transfer at a time.

use crate::arrival::{accept, preempt};
use crate::board::Board;
use crate::driver::{Driver, Ended};
use crate::endings::Endings;
use crate::fetch::{Fetching, Job};
use crate::guests::{GuestConfig, GuestError, Guests, HandOvers};
use crate::listen::{Incoming, Shared, address_of, listen};
use crate::live::{Live, Lives, end_undecided};
use crate::residents::Kept;
use crate::shelf::Shelves;
use crate::store::{Store, StoreError, VmSpec};
use crossbeam_channel::{Receiver, bounded};
use net::control::{Listener, with_causes};
use net::interface::Interface;
use net::pki::Identity;
use net::udp::{Family, UdpReceiver, Waker};
use pages::VmId;
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use wire::control::{Offer, RefuseCause, ToSender};

/// Offers, and refusals to be told, that wait while a transfer runs.
const OFFERS_MAX: usize = 64;
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
    /// Ends after the first transfer that was complete, and the guests that it started.
    pub once: bool,
    /// Directories whose images a sender may have measured; none refuses it.
    pub measurable: Vec<PathBuf>,
    /// What may be started while its memory arrives, and how.
    pub guests: GuestConfig,
    /// How long guests may wait for pages of a sender that is gone, before they are ended by name.
    pub orphan_timeout: Duration,
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
    /// What became of guests.
    Guests(String),
    /// A transfer ended.
    Ended(String, Ended),
}

/// See the module's text.
pub struct Service {
    config: ServiceConfig,
    store: Store,
    waker: Arc<Waker>,
    incoming: Receiver<Result<Incoming, String>>,
    waiting: VecDeque<Incoming>,
    lives: Lives,
    board: Board,
    kept: Arc<Kept>,
    shelves: Shelves,
    endings: Endings,
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
        end_undecided(&store, &config.guests, observer);
        let waker = Arc::new(Waker::new().map_err(ServiceError::Start)?);
        let (out, incoming) = bounded(OFFERS_MAX);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(ServiceError::Start)?;
        let listener = runtime
            .block_on(Listener::bind(config.listen, &config.identity))
            .map_err(|source| ServiceError::Listen { address: config.listen, source: Box::new(source) })?;
        observer(ServiceEvent::Listening(listener.local_addr()));
        let board = Board::default();
        let agent =
            crate::measure::Agent::new(config.measurable.clone(), config.workers, config.store.clone());
        let kept = Arc::clone(&agent.kept);
        let interface = config.interface.clone();
        let (shelves, endings) = (Shelves::default(), Endings::default());
        let shared = Arc::new(Shared {
            out,
            waker: Arc::clone(&waker),
            interface,
            agent,
            board: board.clone(),
            shelves: shelves.clone(),
            endings: endings.clone(),
        });
        std::thread::Builder::new()
            .name("control".into())
            .spawn(move || runtime.block_on(listen(listener, shared)))
            .map_err(ServiceError::Start)?;
        let (waiting, lives) = (VecDeque::new(), Lives::default());
        Ok(Self { config, store, waker, incoming, waiting, lives, board, kept, shelves, endings })
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
            for note in self.lives.tend(self.config.orphan_timeout, &self.board) {
                observer(ServiceEvent::Guests(note));
            }
            self.endings.serve(None, &mut self.lives, observer);
            if complete && self.config.once && self.lives.is_empty() {
                break;
            }
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
        }
        for line in self.lives.status() {
            observer(ServiceEvent::Guests(line));
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
            link.say(&refusal);
            observer(ServiceEvent::Refused(format!("{} from {peer}: {reason}", offer.transfer)));
            Ok(None)
        };
        if let Err((cause, reason)) = crate::offer::check_offer(&offer, &self.config.name) {
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
        let mut live = match self.begin(&offer, &vms) {
            Ok(live) => live,
            Err((cause, reason)) => return refuse(cause, reason),
        };
        let intake = Arc::clone(&live.intake);
        if let Some(shelf) = &live.shelf {
            shelf.handle_offer(&offer);
            self.shelves.put(&offer.transfer, shelf, &intake);
        }
        let (mut sockets, unicast) = match self.sockets(&offer, peer_address, local_address) {
            Ok(bound) => bound,
            Err(reason) => {
                self.lives.keep(offer.transfer.clone(), live, None);
                return refuse(RefuseCause::Store, reason);
            }
        };
        let sender = peer.clone();
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
            intake,
            residents: self.kept.get(&sender, &offer.transfer),
            workers: self.config.workers,
            shelf: live.shelf.clone(),
            guests: live.guests.as_mut(),
            tell: &mut |guests: &Guests| {
                self.board.write(&offer.transfer, Some(&sender), Vec::new(), guests.status());
            },
            preempted: &mut preempted,
            cancelled: &mut || {
                self.endings.serve(Some(&offer), &mut self.lives, observer);
                self.endings.reason(&offer.transfer)
            },
        };
        let ended = driver.run(&offer)?;
        // Whoever lives on comes back to the board when it is tended.
        self.board.remove(&offer.transfer);
        let over = matches!(ended, Ended::Complete(_));
        if over {
            self.kept.forget(&sender, &offer.transfer);
        }
        if let Ended::Cancelled(reason) = &ended {
            self.lives.keep(offer.transfer.clone(), live, None);
            let (_, notes) = self.lives.end(&offer.transfer, reason);
            notes.into_iter().for_each(|note| observer(ServiceEvent::Guests(note)));
            return Ok(Some(ended));
        }
        if live.guests.is_some() && !over {
            // Its clones wait for pages: whoever brings them finds everything as it is. And other hosts may need what is here.
            let fetching = self.fetch(&offer.transfer, &live);
            self.lives.keep(offer.transfer, live, fetching);
            return Ok(Some(ended));
        }
        let Live { intake, guests, .. } = live;
        self.close(intake, &ended, observer);
        if let Some(guests) = guests {
            self.lives.keep_running(offer.transfer, guests);
        }
        Ok(Some(ended))
    }

    /// Asks other hosts for what a transfer without a sender lacks.
    fn fetch(&self, transfer: &str, live: &Live) -> Option<Fetching> {
        Some(Fetching::start(Job {
            transfer: transfer.to_owned(),
            shelf: Arc::clone(live.shelf.as_ref()?),
            intake: Arc::clone(&live.intake),
            identity: Arc::clone(&self.config.identity),
            vms: live.vms(),
            waker: Arc::clone(&self.waker),
        }))
    }

    /// The images of a transfer and its guests: those that wait for it, or new ones.
    fn begin(&mut self, offer: &Offer, vms: &[(VmId, VmSpec)]) -> Result<Live, (RefuseCause, String)> {
        if let Some(live) = self.lives.take(offer) {
            return live;
        }
        let unfit = |error: GuestError| (RefuseCause::Offer, with_causes(&error));
        let config = &self.config.guests;
        Guests::check(&offer.guests, config).map_err(unfit)?;
        let intake = if offer.guests.is_empty() {
            self.store.begin(&offer.transfer, vms, self.config.replace)
        } else {
            self.store.begin_anew(&offer.transfer, vms, self.config.replace)
        };
        let intake = intake.map_err(|error| {
            let exists = matches!(error, StoreError::ImageExists { .. });
            (if exists { RefuseCause::Exists } else { RefuseCause::Store }, error.to_string())
        })?;
        let notes = HandOvers { journal: self.store.hand_overs(), transfer: offer.transfer.clone() };
        let guests = (!offer.guests.is_empty())
            .then(|| Guests::prepare(&offer.guests, config, &intake, &self.waker, notes))
            .transpose()
            .map_err(unfit)?;
        Ok(Live::new(intake, guests, offer))
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
        // A sender trusts no address that the control connection does not prove to be this host's: without one, what only
        // this host needs comes over that connection.
        let port = if local.ip().to_canonical() == address { sockets.unicast_port() } else { 0 };
        let unicast = SocketAddr::new(address, port);
        Ok((sockets, unicast))
    }
}
