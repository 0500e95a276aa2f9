//! The receiver's end.

use super::{Control, ControlError, Peer, tls, tune};
use crate::pki::{Identity, PEER_PROTOCOL, Role};
use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::{TlsAcceptor, TlsStream};

/// Handshakes at once; a further caller takes the place of the oldest.
const HANDSHAKES_MAX: usize = 64;
/// Handshakes at once with callers of one address; a further one takes the place of the oldest of these.
const HANDSHAKES_PER_PEER_MAX: usize = 16;
/// How long a caller may take: a sender needs a few round trips.
const PATIENCE: Duration = Duration::from_secs(5);
/// Pause when the system can accept no connection (no descriptors left), lest the caller's loop spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Listens for senders. Handshakes run side by side, so a caller that says nothing delays no other; and callers that say
/// nothing are dropped for new ones, so any number of them keeps no sender out for longer than its handshake takes.
#[derive(Debug)]
pub struct Listener {
    tcp: TcpListener,
    addr: SocketAddr,
    identity: Identity,
    handshakes: JoinSet<Result<Control, ControlError>>,
    /// Those that run, oldest first.
    callers: VecDeque<(IpAddr, AbortHandle)>,
}

impl Listener {
    /// Listens on `addr` with a certificate that has the receiver role. To be called within a tokio runtime.
    ///
    /// # Errors
    /// [`ControlError::Listen`], or the certificate lacks the role.
    pub async fn bind(addr: SocketAddr, identity: &Identity) -> Result<Self, ControlError> {
        identity.require_role(Role::Receiver)?;
        let listen = |source| ControlError::Listen { addr, source };
        let tcp = TcpListener::bind(addr).await.map_err(listen)?;
        let addr = tcp.local_addr().map_err(listen)?;
        Ok(Self {
            tcp,
            addr,
            identity: identity.clone(),
            handshakes: JoinSet::new(),
            callers: VecDeque::new(),
        })
    }

    /// The address listened on, with the port that the system chose if none was given.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// The next sender, authenticated, with the name in its certificate. May be cancelled without loss.
    ///
    /// # Errors
    /// [`ControlError`] about one caller, or about accepting at all; either way the listener stays usable.
    pub async fn accept(&mut self) -> Result<(Control, String), ControlError> {
        loop {
            tokio::select! {
                Some(done) = self.handshakes.join_next() => {
                    self.callers.retain(|(_, task)| !task.is_finished());
                    let control = match done {
                        Ok(control) => control?,
                        // Dropped for a newer caller.
                        Err(error) if error.is_cancelled() => continue,
                        Err(error) => std::panic::resume_unwind(error.into_panic()),
                    };
                    let name = control.peer.name.clone().unwrap_or_default();
                    return Ok((control, name));
                }
                accepted = self.tcp.accept() => match accepted {
                    Ok((tcp, addr)) => {
                        self.make_room(addr.ip());
                        let identity = self.identity.clone();
                        let task = self.handshakes.spawn(async move { handshake(tcp, addr, &identity).await });
                        self.callers.push_back((addr.ip(), task));
                    }
                    Err(source) => {
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                        return Err(ControlError::Listen { addr: self.addr, source });
                    }
                },
            }
        }
    }
}

impl Listener {
    /// Drops the oldest handshakes that a new caller's would be one too many beside.
    fn make_room(&mut self, caller: IpAddr) {
        self.callers.retain(|(_, task)| !task.is_finished());
        let same = self.callers.iter().filter(|(address, _)| *address == caller).count();
        let oldest = if same >= HANDSHAKES_PER_PEER_MAX {
            self.callers.iter().position(|(address, _)| *address == caller)
        } else {
            (self.callers.len() >= HANDSHAKES_MAX).then_some(0)
        };
        if let Some((_, task)) = oldest.and_then(|at| self.callers.remove(at)) {
            task.abort();
        }
    }
}

async fn handshake(tcp: TcpStream, addr: SocketAddr, identity: &Identity) -> Result<Control, ControlError> {
    let step = "the TLS handshake";
    let unnamed = Peer { name: None, addr };
    match tokio::time::timeout(PATIENCE, authenticate(tcp, &unnamed, identity, step)).await {
        Ok(result) => result,
        Err(_) => Err(ControlError::TimedOut { peer: unnamed, step }),
    }
}

async fn authenticate(
    tcp: TcpStream,
    unnamed: &Peer,
    identity: &Identity,
    step: &'static str,
) -> Result<Control, ControlError> {
    tune(&tcp).map_err(|source| ControlError::Io { peer: unnamed.clone(), step, source })?;
    let accepted = TlsAcceptor::from(identity.server()).accept(tcp).await;
    let stream = accepted.map_err(|error| tls::explain(error, unnamed, identity, step))?;
    let mut stream = TlsStream::from(stream);
    let info = tls::peer_info(&stream, unnamed)?;
    let peer = Peer { name: Some(info.name().to_owned()), addr: unnamed.addr };
    // What it comes as is told by the protocol that it speaks; whoever listens here lets each say only what it may.
    let calls_a_peer = stream.get_ref().1.alpn_protocol() == Some(PEER_PROTOCOL);
    let caller = if calls_a_peer { Role::Receiver } else { Role::Sender };
    let welcome = info.has_role(caller);
    tls::write_greeting(&mut stream, &peer, identity, welcome).await?;
    if !welcome {
        return Err(ControlError::WrongRole { peer, role: caller });
    }
    tls::read_greeting(&mut stream, &peer, identity, Role::Receiver).await?;
    Ok(Control { stream, peer, caller })
}
