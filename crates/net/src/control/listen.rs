//! The receiver's end.

use super::{Control, ControlError, HANDSHAKE_TIMEOUT, Peer, tls, tune};
use crate::pki::{Identity, Role};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::{TlsAcceptor, TlsStream};

/// Handshakes at once; further callers wait in the kernel's queue.
const HANDSHAKES_MAX: usize = 64;
/// Pause when the system can accept no connection (no descriptors left), lest the caller's loop spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Listens for senders. Handshakes run side by side, so a caller that says nothing delays no other.
#[derive(Debug)]
pub struct Listener {
    tcp: TcpListener,
    addr: SocketAddr,
    identity: Identity,
    handshakes: JoinSet<Result<Control, ControlError>>,
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
        Ok(Self { tcp, addr, identity: identity.clone(), handshakes: JoinSet::new() })
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
                    // A task is neither aborted nor expected to panic.
                    let control = done.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;
                    let name = control.peer.name.clone().unwrap_or_default();
                    return Ok((control, name));
                }
                accepted = self.tcp.accept(), if self.handshakes.len() < HANDSHAKES_MAX => match accepted {
                    Ok((tcp, addr)) => {
                        let identity = self.identity.clone();
                        self.handshakes.spawn(async move { handshake(tcp, addr, &identity).await });
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

async fn handshake(tcp: TcpStream, addr: SocketAddr, identity: &Identity) -> Result<Control, ControlError> {
    let step = "the TLS handshake";
    let unnamed = Peer { name: None, addr };
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, authenticate(tcp, &unnamed, identity, step)).await {
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
    let sender = info.has_role(Role::Sender);
    tls::write_greeting(&mut stream, &peer, identity, sender).await?;
    if !sender {
        return Err(ControlError::WrongRole { peer, role: Role::Sender });
    }
    tls::read_greeting(&mut stream, &peer, identity, Role::Receiver).await?;
    Ok(Control { stream, peer })
}
