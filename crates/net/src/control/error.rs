//! What can go wrong between two hosts, told apart so that each has its way out.

use crate::pki::{PkiError, Role};
use crate::time::utc;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::SystemTime;

/// The other end.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Peer {
    /// Its host name: the one asked for, or the one in its certificate; `None` before a certificate was seen.
    pub name: Option<String>,
    /// Its address.
    pub addr: SocketAddr,
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.name {
            Some(name) => write!(f, "host {name} at {}", self.addr),
            None => write!(f, "the peer at {}", self.addr),
        }
    }
}

/// Why there is no connection, or no more.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// This host's own certificate will not do.
    #[error(transparent)]
    Identity(#[from] PkiError),
    /// The address to listen on is taken, or not this host's.
    #[error("cannot listen on {addr}")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// The system's word.
        #[source]
        source: io::Error,
    },
    /// Nobody listens there.
    #[error("{peer} refuses connections; is `scatter receive` running there, on this port?")]
    Refused {
        /// The peer.
        peer: Peer,
    },
    /// No answer in time.
    #[error("{peer} did not answer in time ({step}); is it up, and does a firewall let this port through?")]
    TimedOut {
        /// The peer.
        peer: Peer,
        /// What was waited for.
        step: &'static str,
    },
    /// The peer's certificate is not from our CA.
    #[error(
        "{peer} shows a certificate that the CA in {} did not issue; issue its keys with that CA, or give both ends the same ca.pem",
        ca.display()
    )]
    NotOurCa {
        /// The peer.
        peer: Peer,
        /// The CA's file here.
        ca: PathBuf,
    },
    /// The peer's certificate is no longer valid.
    #[error(
        "{peer} shows a certificate that expired{}; this host's clock says {}: issue it a new one, or set the clock",
        at(*not_after),
        utc(*now)
    )]
    Expired {
        /// The peer.
        peer: Peer,
        /// End of validity, if known.
        not_after: Option<SystemTime>,
        /// This host's clock.
        now: SystemTime,
    },
    /// The peer's certificate is not valid yet.
    #[error(
        "{peer} shows a certificate that is not valid yet{}; this host's clock says {}: set the clock of this host or of the one that issued it",
        at(*not_before),
        utc(*now)
    )]
    NotYetValid {
        /// The peer.
        peer: Peer,
        /// Beginning of validity, if known.
        not_before: Option<SystemTime>,
        /// This host's clock.
        now: SystemTime,
    },
    /// Another host answers at that address.
    #[error(
        "{peer} shows the certificate of another host ({}); check the address in the inventory, or the keys on that host",
        names.join(", ")
    )]
    WrongName {
        /// The host expected.
        peer: Peer,
        /// The names in its certificate.
        names: Vec<String>,
    },
    /// The peer's certificate lacks the role that it needs towards us.
    #[error("{peer} shows a certificate without the {role} role; issue it one with that role")]
    WrongRole {
        /// The peer.
        peer: Peer,
        /// The role needed.
        role: Role,
    },
    /// The peer did not take our certificate.
    #[error("{peer} refuses this host's certificate {}: {why}", certificate.display())]
    RefusedUs {
        /// The peer.
        peer: Peer,
        /// Its reason, with the way out.
        why: &'static str,
        /// Our certificate's file.
        certificate: PathBuf,
    },
    /// The peer speaks TLS, but shows no certificate.
    #[error("{peer} shows no certificate")]
    NoCertificate {
        /// The peer.
        peer: Peer,
    },
    /// Something else listens or calls there.
    #[error("{peer} does not speak this protocol; is it `scatter`, of this version, on this port?")]
    NotScatter {
        /// The peer.
        peer: Peer,
    },
    /// TLS failed for another reason.
    #[error("{peer}: TLS failed")]
    Tls {
        /// The peer.
        peer: Peer,
        /// The library's word.
        #[source]
        source: rustls::Error,
    },
    /// The connection broke.
    #[error("{peer}: the connection broke ({step})")]
    Io {
        /// The peer.
        peer: Peer,
        /// What was being done.
        step: &'static str,
        /// The system's word.
        #[source]
        source: io::Error,
    },
    /// The connection ended without a farewell, or within a frame.
    #[error("{peer}: the connection ended abruptly; the process there died, or the host")]
    Lost {
        /// The peer.
        peer: Peer,
    },
    /// A frame longer than any that is sent.
    #[error("{peer}: a frame of {bytes} bytes, more than the {max} allowed", max = super::FRAME_BYTES_MAX)]
    FrameTooLong {
        /// The peer.
        peer: Peer,
        /// The length announced or given.
        bytes: usize,
    },
}

fn at(time: Option<SystemTime>) -> String {
    time.map_or_else(String::new, |time| format!(" ({})", utc(time)))
}

/// An error and its causes in one line, each after a colon: what is told to people and to other hosts.
#[must_use]
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
