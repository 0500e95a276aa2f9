//! The fleet's certificates: one CA, and for each host a certificate with its name and roles.
//!
//! ```text
//! keys/ca.pem  keys/ca.key.pem          the CA; its key stays where certificates are issued
//! keys/<name>/{host.pem,host.key.pem,ca.pem}   what host <name> gets: Identity::load(keys/<name>)
//! ```
//!
//! ECDSA P-256 throughout. A *role* is a subject alternative name of kind URI: `scatter:sender`,
//! `scatter:receiver`. Receivers take memory only from peers with the sender role, so a receiver's stolen key
//! pushes nothing into other hosts.

mod describe;
mod identity;
mod issue;

pub use describe::{CertificateInfo, describe};
pub use identity::Identity;
pub(crate) use identity::PEER_PROTOCOL;
pub(crate) use identity::{Verdict, judge};
pub use issue::{HostFiles, create_ca, issue_host};

use crate::time::utc;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The CA's certificate, in its directory and in each host's.
pub const CA_FILE: &str = "ca.pem";
/// The CA's key.
pub const CA_KEY_FILE: &str = "ca.key.pem";
/// A host's certificate.
pub const HOST_FILE: &str = "host.pem";
/// A host's key.
pub const HOST_KEY_FILE: &str = "host.key.pem";

/// What a certificate entitles to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Role {
    /// May send virtual machines' memory to hosts.
    Sender,
    /// May receive it.
    Receiver,
}

impl Role {
    /// The URI that stands for the role in a certificate.
    #[must_use]
    pub fn uri(self) -> &'static str {
        match self {
            Self::Sender => "scatter:sender",
            Self::Receiver => "scatter:receiver",
        }
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Sender => "sender",
            Self::Receiver => "receiver",
        })
    }
}

/// Why keys were not made, or not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PkiError {
    /// A file is not there or not readable.
    #[error("cannot read {}; `scatter keys` makes the files that a host needs", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's word.
        #[source]
        source: io::Error,
    },
    /// A file or directory cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's word.
        #[source]
        source: io::Error,
    },
    /// Nothing is overwritten.
    #[error("{} is there already; to make it anew, move it away first", path.display())]
    Exists {
        /// The file or directory.
        path: PathBuf,
    },
    /// A host's name must be a DNS name of letters, digits, hyphens and dots.
    #[error("`{name}` cannot be a host's name: letters, digits, hyphens and dots, like web-1.example")]
    BadName {
        /// The name given.
        name: String,
    },
    /// A certificate needs a role and at least a day.
    #[error("host {name}: {what}")]
    BadRequest {
        /// The host.
        name: String,
        /// What is wrong.
        what: &'static str,
    },
    /// A key or certificate could not be made.
    #[error("cannot make {what}")]
    Generate {
        /// What was to be made.
        what: String,
        /// The library's word.
        #[source]
        source: rcgen::Error,
    },
    /// A file holds no certificate or key, or a damaged one.
    #[error("{} holds no usable {what}: {reason}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Certificate or key.
        what: &'static str,
        /// The parser's word.
        reason: String,
    },
    /// The certificate is not from the fleet's CA.
    #[error(
        "{} (host {host}) was not issued by the CA in {}; take both files from the same `scatter keys`",
        file.display(),
        ca.display()
    )]
    NotOurCa {
        /// The certificate's file.
        file: PathBuf,
        /// The host named in it.
        host: String,
        /// The CA's file.
        ca: PathBuf,
    },
    /// The certificate's time is over.
    #[error(
        "{} (host {host}) expired at {}; this host's clock says {}: issue a new one, or set the clock",
        file.display(),
        utc(*not_after),
        utc(*now)
    )]
    Expired {
        /// The certificate's file.
        file: PathBuf,
        /// The host named in it.
        host: String,
        /// End of its validity.
        not_after: SystemTime,
        /// This host's clock.
        now: SystemTime,
    },
    /// The certificate's time has not come.
    #[error(
        "{} (host {host}) is valid only from {}; this host's clock says {}: set the clock",
        file.display(),
        utc(*not_before),
        utc(*now)
    )]
    NotYetValid {
        /// The certificate's file.
        file: PathBuf,
        /// The host named in it.
        host: String,
        /// Beginning of its validity.
        not_before: SystemTime,
        /// This host's clock.
        now: SystemTime,
    },
    /// The certificate is another host's.
    #[error(
        "{} is the certificate of {}, not of {expected}; give the name that it was issued for, or issue one for {expected}",
        file.display(),
        names.join(", ")
    )]
    WrongName {
        /// The certificate's file.
        file: PathBuf,
        /// The name that this host goes by.
        expected: String,
        /// The names in the certificate.
        names: Vec<String>,
    },
    /// The certificate lacks a role.
    #[error("{} (host {host}) lacks the {role} role; issue one with it", file.display())]
    MissingRole {
        /// The certificate's file.
        file: PathBuf,
        /// The host named in it.
        host: String,
        /// The role needed.
        role: Role,
    },
    /// Key and certificate do not belong together.
    #[error("{} is not the key of {}", key.display(), certificate.display())]
    KeyMismatch {
        /// The key's file.
        key: PathBuf,
        /// The certificate's file.
        certificate: PathBuf,
    },
    /// Unusable for another reason.
    #[error("{} cannot be used", file.display())]
    Unusable {
        /// The certificate's file.
        file: PathBuf,
        /// The TLS library's word.
        #[source]
        source: rustls::Error,
    },
}

fn read(path: &Path) -> Result<Vec<u8>, PkiError> {
    std::fs::read(path).map_err(|source| PkiError::Read { path: path.to_owned(), source })
}
