//! The control channel: frames over TLS 1.3 over TCP, with a certificate of the fleet's CA at both ends.
//!
//! ```text
//! sender (connect)                     receiver (Listener)
//!   TCP, TLS 1.3 handshake: each checks the other's certificate against ca.pem; the sender checks the host name
//!   ◀─────────────────── greeting: verdict on the sender role
//!   greeting: verdict on the receiver role ─▶
//!   ◀────────────────── frames ─────────────▶   u32 little-endian length, then so many bytes
//! ```
//!
//! In TLS 1.3 a client is done before the server has looked at its certificate; the greetings let
//! [`connect`] say why it was refused. What the frames hold is not known here.

mod error;
mod frame;
mod listen;
mod tls;

pub use error::{ControlError, Peer, with_causes};
pub use frame::{FRAME_BYTES_MAX, FrameReader, FrameWriter};
pub use listen::Listener;

use crate::pki::{Identity, PkiError, Role};
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, TlsStream};

/// How long a TCP connection may take to come about.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the handshake and the greetings may take.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection without an acknowledgement for this long while data waits is dead.
const USER_TIMEOUT: Duration = Duration::from_secs(15);
/// An idle connection is probed after this time, then three times at [`KEEPALIVE_INTERVAL`].
const KEEPALIVE_IDLE: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(3);

/// An authenticated connection.
#[derive(Debug)]
pub struct Control {
    stream: TlsStream<TcpStream>,
    peer: Peer,
    caller: Role,
}

impl Control {
    /// As what the end that connected came: a sender, or a receiver that calls another.
    #[must_use]
    pub fn caller(&self) -> Role {
        self.caller
    }

    /// The peer's name, from its certificate, and address.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// This end's address: the one by which this host reaches the peer.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.stream.get_ref().0.local_addr()
    }

    /// Both directions, to be used independently.
    #[must_use]
    pub fn split(self) -> (FrameReader, FrameWriter) {
        let (read, write) = tokio::io::split(self.stream);
        (FrameReader::new(read, self.peer.clone()), FrameWriter::new(write, self.peer))
    }
}

/// Connects to the receiver at `addr` and makes sure that it is `expected_host`, with the receiver role, and that it
/// takes this host's certificate for a sender's. Takes at most [`CONNECT_TIMEOUT`] and [`HANDSHAKE_TIMEOUT`].
///
/// # Errors
/// [`ControlError`], with host, address, cause and way out.
pub async fn connect(
    addr: SocketAddr,
    identity: &Identity,
    expected_host: &str,
) -> Result<Control, ControlError> {
    connect_as(Role::Sender, addr, identity, expected_host).await
}

/// Connects to another receiver, as a receiver: as [`connect`], but the role that this host needs is that one, and the other end is
/// told that no sender calls.
///
/// # Errors
/// [`ControlError`], with host, address, cause and way out.
pub async fn connect_peer(
    addr: SocketAddr,
    identity: &Identity,
    expected_host: &str,
) -> Result<Control, ControlError> {
    connect_as(Role::Receiver, addr, identity, expected_host).await
}

async fn connect_as(
    role: Role,
    addr: SocketAddr,
    identity: &Identity,
    expected_host: &str,
) -> Result<Control, ControlError> {
    identity.require_role(role)?;
    let peer = Peer { name: Some(expected_host.to_owned()), addr };
    let bad_name = || PkiError::BadName { name: expected_host.to_owned() };
    let name = ServerName::try_from(expected_host.to_owned()).map_err(|_| bad_name())?;
    let step = "connecting";
    let tcp = match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(addr)).await {
        Ok(Ok(tcp)) => tcp,
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
            return Err(ControlError::Refused { peer });
        }
        Ok(Err(error)) if error.kind() == io::ErrorKind::TimedOut => {
            return Err(ControlError::TimedOut { peer, step });
        }
        Ok(Err(source)) => return Err(ControlError::Io { peer, step, source }),
        Err(_) => return Err(ControlError::TimedOut { peer, step }),
    };
    tune(&tcp).map_err(|source| ControlError::Io { peer: peer.clone(), step, source })?;
    let handshake = async {
        let config = if role == Role::Sender { identity.client() } else { identity.peer_client() };
        let connector = TlsConnector::from(config);
        let stream = connector
            .connect(name, tcp)
            .await
            .map_err(|error| tls::explain(error, &peer, identity, "the TLS handshake"))?;
        let mut stream = TlsStream::from(stream);
        let info = tls::peer_info(&stream, &peer)?;
        tls::read_greeting(&mut stream, &peer, identity, role).await?;
        tls::write_greeting(&mut stream, &peer, identity, info.has_role(Role::Receiver)).await?;
        if !info.has_role(Role::Receiver) {
            return Err(ControlError::WrongRole { peer: peer.clone(), role: Role::Receiver });
        }
        Ok(stream)
    };
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
        Ok(stream) => Ok(Control { stream: stream?, peer, caller: role }),
        Err(_) => Err(ControlError::TimedOut { peer, step: "the TLS handshake" }),
    }
}

/// No delay for small frames, and a dead peer is noticed in seconds.
fn tune(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    let socket = SockRef::from(tcp);
    let keepalive =
        TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL).with_retries(3);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))
}
