//! From the TLS library's errors to ours, and the greetings.

use super::{ControlError, Peer};
use crate::pki::{CertificateInfo, Identity, Role, Verdict, judge};
use rustls::{AlertDescription, PeerIncompatible};
use std::io;
use std::time::SystemTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

/// Greeting: magic and version, then a verdict.
const GREETING: &[u8; 5] = b"VSCT\x01";
const WELCOME: u8 = 0;
const ROLE_MISSING: u8 = 1;

/// Names the cause of a failed handshake, read or write.
pub(super) fn explain(
    error: io::Error,
    peer: &Peer,
    identity: &Identity,
    step: &'static str,
) -> ControlError {
    let peer = peer.clone();
    let now = SystemTime::now();
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()).cloned();
    match tls {
        Some(rustls::Error::InvalidCertificate(invalid)) => match judge(&invalid) {
            Verdict::NotOurCa => ControlError::NotOurCa { peer, ca: identity.ca_path().to_owned() },
            Verdict::Expired { not_after } => ControlError::Expired { peer, not_after, now },
            Verdict::NotYetValid { not_before } => ControlError::NotYetValid { peer, not_before, now },
            Verdict::WrongName { names } => ControlError::WrongName { peer, names },
            Verdict::Other => ControlError::Tls { peer, source: rustls::Error::InvalidCertificate(invalid) },
        },
        Some(rustls::Error::NoCertificatesPresented) => ControlError::NoCertificate { peer },
        Some(
            rustls::Error::InvalidMessage(_)
            | rustls::Error::NoApplicationProtocol
            | rustls::Error::AlertReceived(
                AlertDescription::NoApplicationProtocol | AlertDescription::ProtocolVersion,
            )
            | rustls::Error::PeerIncompatible(
                PeerIncompatible::SupportedVersionsExtensionRequired
                | PeerIncompatible::Tls13RequiredForQuic
                | PeerIncompatible::ServerDoesNotSupportTls12Or13
                | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig,
            ),
        ) => ControlError::NotScatter { peer },
        Some(rustls::Error::AlertReceived(alert)) => match refusal(alert) {
            Some(why) => {
                ControlError::RefusedUs { peer, why, certificate: identity.certificate_path().to_owned() }
            }
            None => ControlError::Tls { peer, source: rustls::Error::AlertReceived(alert) },
        },
        Some(source) => ControlError::Tls { peer, source },
        None => broken(error, peer, step),
    }
}

/// An error of the connection itself.
pub(super) fn broken(error: io::Error, peer: Peer, step: &'static str) -> ControlError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
            ControlError::Lost { peer }
        }
        io::ErrorKind::TimedOut => ControlError::TimedOut { peer, step },
        _ => ControlError::Io { peer, step, source: error },
    }
}

/// What a peer that sends this alert holds against our certificate.
fn refusal(alert: AlertDescription) -> Option<&'static str> {
    Some(match alert {
        AlertDescription::UnknownCA => {
            "another CA issued it than the one in that host's ca.pem; give both ends keys of the same CA"
        }
        // A peer also sends this for a certificate that is not valid yet.
        AlertDescription::CertificateExpired => {
            "by that host's clock it is expired or not valid yet; compare the clocks, or issue a new one"
        }
        AlertDescription::CertificateRequired => "it got none",
        AlertDescription::BadCertificate => {
            "it is not valid for this host's name; compare the inventory's name and address with the certificate"
        }
        AlertDescription::DecryptError => "its signature is wrong; give both ends keys of the same CA",
        AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::CertificateRevoked
        | AlertDescription::AccessDenied => "it is not one that `scatter keys` issues",
        _ => return None,
    })
}

/// What the peer's certificate says; it was verified in the handshake.
pub(super) fn peer_info(stream: &TlsStream<TcpStream>, peer: &Peer) -> Result<CertificateInfo, ControlError> {
    let certificates = stream.get_ref().1.peer_certificates();
    let first = certificates.and_then(<[_]>::first);
    let first = first.ok_or_else(|| ControlError::NoCertificate { peer: peer.clone() })?;
    CertificateInfo::parse(first)
        .map_err(|reason| ControlError::Tls { peer: peer.clone(), source: rustls::Error::General(reason) })
}

/// Tells the peer whether its certificate has the role that it needs.
pub(super) async fn write_greeting(
    stream: &mut TlsStream<TcpStream>,
    peer: &Peer,
    identity: &Identity,
    welcome: bool,
) -> Result<(), ControlError> {
    let mut greeting = [0; GREETING.len() + 1];
    greeting[..GREETING.len()].copy_from_slice(GREETING);
    greeting[GREETING.len()] = if welcome { WELCOME } else { ROLE_MISSING };
    let step = "the greeting";
    let written = async {
        stream.write_all(&greeting).await?;
        stream.flush().await?;
        if welcome { Ok(()) } else { stream.shutdown().await }
    };
    written.await.map_err(|error| explain(error, peer, identity, step))
}

/// Reads the peer's verdict on this host, which calls as `role`.
pub(super) async fn read_greeting(
    stream: &mut TlsStream<TcpStream>,
    peer: &Peer,
    identity: &Identity,
    role: Role,
) -> Result<(), ControlError> {
    let mut greeting = [0; GREETING.len() + 1];
    let read = stream.read_exact(&mut greeting).await;
    read.map_err(|error| explain(error, peer, identity, "the greeting"))?;
    let peer = peer.clone();
    match (greeting.strip_prefix(GREETING), role) {
        (Some([WELCOME]), _) => Ok(()),
        (Some([ROLE_MISSING]), Role::Sender) => Err(ControlError::RefusedUs {
            peer,
            why: "it lacks the sender role; issue one with that role",
            certificate: identity.certificate_path().to_owned(),
        }),
        (Some([ROLE_MISSING]), Role::Receiver) => Err(ControlError::RefusedUs {
            peer,
            why: "it lacks the receiver role; issue one with that role",
            certificate: identity.certificate_path().to_owned(),
        }),
        _ => Err(ControlError::NotScatter { peer }),
    }
}
