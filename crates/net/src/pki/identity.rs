//! This host's certificate and key, checked and ready for TLS.

use super::{CA_FILE, CertificateInfo, HOST_FILE, HOST_KEY_FILE, PkiError, Role, read};
use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{CertificateError, ClientConfig, InconsistentKeys, RootCertStore, ServerConfig};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// The application protocol in the TLS handshake: another version is refused before a word is said.
const PROTOCOL: &[u8] = b"vmscatter/1";
/// The one by which a receiver calls another.
pub(crate) const PEER_PROTOCOL: &[u8] = b"vmscatter-peer/1";

/// Who this host is: its certificate, key and CA.
#[derive(Clone)]
pub struct Identity {
    info: CertificateInfo,
    ca_path: PathBuf,
    certificate_path: PathBuf,
    warnings: Vec<String>,
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

/// What is wrong with a certificate, whoever's it is.
pub(crate) enum Verdict {
    NotOurCa,
    Expired { not_after: Option<SystemTime> },
    NotYetValid { not_before: Option<SystemTime> },
    WrongName { names: Vec<String> },
    Other,
}

pub(crate) fn judge(error: &CertificateError) -> Verdict {
    let time = |time: &UnixTime| Some(UNIX_EPOCH + std::time::Duration::from_secs(time.as_secs()));
    match error {
        // A CA of the same name with another key shows as a bad signature.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => Verdict::NotOurCa,
        CertificateError::Expired => Verdict::Expired { not_after: None },
        CertificateError::ExpiredContext { not_after, .. } => Verdict::Expired { not_after: time(not_after) },
        CertificateError::NotValidYet => Verdict::NotYetValid { not_before: None },
        CertificateError::NotValidYetContext { not_before, .. } => {
            Verdict::NotYetValid { not_before: time(not_before) }
        }
        CertificateError::NotValidForName => Verdict::WrongName { names: Vec::new() },
        CertificateError::NotValidForNameContext { presented, .. } => {
            Verdict::WrongName { names: presented.clone() }
        }
        _ => Verdict::Other,
    }
}

impl Identity {
    /// Loads `ca.pem`, `host.pem` and `host.key.pem` of a directory, as [`super::issue_host`] makes them.
    ///
    /// # Errors
    /// As [`Self::load_files`].
    pub fn load(dir: &Path) -> Result<Self, PkiError> {
        Self::load_files(&dir.join(CA_FILE), &dir.join(HOST_FILE), &dir.join(HOST_KEY_FILE))
    }

    /// Loads the files and checks that the CA issued the certificate, that it is valid now, and that the key is
    /// its key. A key that others can read is a warning ([`Self::warnings`]).
    ///
    /// # Errors
    /// [`PkiError`] with the file: unreadable, damaged, not of this CA, expired, not yet valid, wrong key.
    pub fn load_files(ca: &Path, certificate: &Path, key: &Path) -> Result<Self, PkiError> {
        let roots = Arc::new(roots(ca)?);
        let chain = certificates(certificate)?;
        let info = CertificateInfo::parse(&chain[0]).map_err(|reason| PkiError::Parse {
            path: certificate.to_owned(),
            what: "certificate",
            reason,
        })?;
        let (key_der, warnings) = private_key(key)?;
        let unusable = |source| match source {
            rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                PkiError::KeyMismatch { key: key.to_owned(), certificate: certificate.to_owned() }
            }
            source => PkiError::Unusable { file: certificate.to_owned(), source },
        };
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        check_own(&roots, &provider, &chain, &info, ca, certificate)?;
        let client =
            client_config(&provider, &roots, chain.clone(), key_der.clone_key()).map_err(unusable)?;
        let server = server_config(&provider, &roots, chain, key_der).map_err(unusable)?;
        Ok(Self {
            info,
            ca_path: ca.to_owned(),
            certificate_path: certificate.to_owned(),
            warnings,
            client: Arc::new(client),
            server: Arc::new(server),
        })
    }

    /// What the certificate says.
    #[must_use]
    pub fn info(&self) -> &CertificateInfo {
        &self.info
    }

    /// The certificate's main name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.info.name()
    }

    /// The certificate's file.
    #[must_use]
    pub fn certificate_path(&self) -> &Path {
        &self.certificate_path
    }

    /// The CA's file.
    #[must_use]
    pub fn ca_path(&self) -> &Path {
        &self.ca_path
    }

    /// What should be mended though it works.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Checks that the certificate is `name`'s: peers will look for that name in it.
    ///
    /// # Errors
    /// [`PkiError::WrongName`].
    pub fn require_name(&self, name: &str) -> Result<(), PkiError> {
        if self.info.names.iter().any(|own| own.eq_ignore_ascii_case(name)) {
            return Ok(());
        }
        Err(PkiError::WrongName {
            file: self.certificate_path.clone(),
            expected: name.to_owned(),
            names: self.info.names.clone(),
        })
    }

    /// Checks that the certificate entitles to `role`.
    ///
    /// # Errors
    /// [`PkiError::MissingRole`].
    pub fn require_role(&self, role: Role) -> Result<(), PkiError> {
        if self.info.has_role(role) {
            return Ok(());
        }
        let (file, host) = (self.certificate_path.clone(), self.name().to_owned());
        Err(PkiError::MissingRole { file, host, role })
    }

    pub(crate) fn client(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.client)
    }

    /// For calls to other receivers.
    pub(crate) fn peer_client(&self) -> Arc<ClientConfig> {
        let mut config = ClientConfig::clone(&self.client);
        config.alpn_protocols = vec![PEER_PROTOCOL.to_vec()];
        Arc::new(config)
    }

    pub(crate) fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity")
            .field("info", &self.info)
            .field("certificate", &self.certificate_path)
            .field("ca", &self.ca_path)
            .finish_non_exhaustive()
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, PkiError> {
    let failed = |reason| PkiError::Parse { path: path.to_owned(), what: "certificate", reason };
    let pem = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let found = found.map_err(|error| failed(error.to_string()))?;
    if found.is_empty() { Err(failed("no PEM section of that kind".to_owned())) } else { Ok(found) }
}

/// Several CAs are allowed, for a change from one to the next.
fn roots(path: &Path) -> Result<RootCertStore, PkiError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| PkiError::Parse {
            path: path.to_owned(),
            what: "CA certificate",
            reason: error.to_string(),
        })?;
    }
    Ok(roots)
}

fn private_key(path: &Path) -> Result<(PrivateKeyDer<'static>, Vec<String>), PkiError> {
    let key = PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|error| PkiError::Parse {
        path: path.to_owned(),
        what: "key",
        reason: error.to_string(),
    })?;
    let mut warnings = Vec::new();
    let mode = std::fs::metadata(path).map_or(0, |metadata| metadata.permissions().mode());
    if mode & 0o077 != 0 {
        warnings.push(format!(
            "{0} can be read by other users (mode {1:03o}); `chmod 600 {0}`, and issue a new key if any may have",
            path.display(),
            mode & 0o777
        ));
    }
    Ok((key, warnings))
}

/// What peers will check, checked at home first.
fn check_own(
    roots: &Arc<RootCertStore>,
    provider: &Arc<CryptoProvider>,
    chain: &[CertificateDer<'_>],
    info: &CertificateInfo,
    ca: &Path,
    certificate: &Path,
) -> Result<(), PkiError> {
    let file = || certificate.to_owned();
    let host = || info.name().to_owned();
    let name = ServerName::try_from(info.name().to_owned()).map_err(|_| PkiError::Parse {
        path: file(),
        what: "certificate",
        reason: "no host name in it".to_owned(),
    })?;
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider))
        .build()
        .map_err(|error| PkiError::Parse {
            path: ca.to_owned(),
            what: "CA certificate",
            reason: error.to_string(),
        })?;
    let now = SystemTime::now();
    let Err(error) = verifier.verify_server_cert(&chain[0], &chain[1..], &name, &[], UnixTime::now()) else {
        return Ok(());
    };
    let rustls::Error::InvalidCertificate(invalid) = &error else {
        return Err(PkiError::Unusable { file: file(), source: error });
    };
    Err(match judge(invalid) {
        Verdict::NotOurCa => PkiError::NotOurCa { file: file(), host: host(), ca: ca.to_owned() },
        Verdict::Expired { .. } => {
            PkiError::Expired { file: file(), host: host(), not_after: info.not_after, now }
        }
        Verdict::NotYetValid { .. } => {
            PkiError::NotYetValid { file: file(), host: host(), not_before: info.not_before, now }
        }
        Verdict::WrongName { names } => PkiError::WrongName { file: file(), expected: host(), names },
        Verdict::Other => PkiError::Unusable { file: file(), source: error },
    })
}

fn client_config(
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ClientConfig, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(Arc::clone(roots))
        .with_client_auth_cert(chain, key)?;
    // A resumed session would skip the certificates' check.
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    Ok(config)
}

fn server_config(
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, rustls::Error> {
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider))
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = vec![PROTOCOL.to_vec(), PEER_PROTOCOL.to_vec()];
    Ok(config)
}
