//! Making the CA and the hosts' certificates.

use super::{CA_FILE, CA_KEY_FILE, HOST_FILE, HOST_KEY_FILE, PkiError, Role, read};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, date_time_ymd,
};
use std::fs::{DirBuilder, OpenOptions};
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A certificate is valid from this long before it was issued: hosts' clocks differ.
const BACKDATE: Duration = Duration::from_secs(5 * 60);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// Validity of the CA.
const CA_DAYS: u32 = 3650;

/// The files of one host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostFiles {
    /// The directory to bring to the host, for [`super::Identity::load`].
    pub dir: PathBuf,
    /// Its certificate.
    pub certificate: PathBuf,
    /// Its key, readable by the owner alone.
    pub key: PathBuf,
    /// The CA's certificate.
    pub ca: PathBuf,
}

/// Makes a fleet's CA, valid for ten years, in `dir`, which is made if need be.
///
/// # Errors
/// [`PkiError::Exists`] if a CA is there: a new one would make every host's certificate worthless.
pub fn create_ca(dir: &Path) -> Result<(), PkiError> {
    let failed = |source| PkiError::Generate { what: "the fleet's CA".to_owned(), source };
    make_dir(dir)?;
    for file in [CA_FILE, CA_KEY_FILE] {
        let path = dir.join(file);
        if path.symlink_metadata().is_ok() {
            return Err(PkiError::Exists { path });
        }
    }
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    let mut params = CertificateParams::default();
    // A name of its own: so a certificate of another fleet is known by its issuer's name already.
    let number: String =
        params.key_identifier(&key).iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    params.distinguished_name = common_name(&format!("VMScatter fleet CA {number}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params, CA_DAYS);
    let certificate = params.self_signed(&key).map_err(failed)?;
    write_new(&dir.join(CA_KEY_FILE), key.serialize_pem().as_bytes(), 0o600)?;
    write_new(&dir.join(CA_FILE), certificate.pem().as_bytes(), 0o644)
}

/// Issues a host's certificate and key by the CA in `dir`, into `dir/<name>`. It is valid for its name, for
/// `addresses` too, with `roles`, for `days` from now (and five minutes back).
///
/// # Errors
/// [`PkiError::Exists`] if the host has files already; [`PkiError::BadName`], [`PkiError::BadRequest`]; the CA is
/// missing or damaged.
pub fn issue_host(
    dir: &Path,
    name: &str,
    roles: &[Role],
    addresses: &[IpAddr],
    days: u32,
) -> Result<HostFiles, PkiError> {
    check(name, roles, days)?;
    let ca_path = dir.join(CA_FILE);
    let ca_pem = text(&ca_path)?;
    let ca_key_path = dir.join(CA_KEY_FILE);
    let ca_key =
        KeyPair::from_pem(&text(&ca_key_path)?).map_err(|error| parse_error(&ca_key_path, "key", &error))?;
    let issuer = Issuer::from_ca_cert_pem(&ca_pem, ca_key)
        .map_err(|error| parse_error(&ca_path, "CA certificate", &error))?;

    let host_dir = dir.join(name);
    if host_dir.symlink_metadata().is_ok() {
        return Err(PkiError::Exists { path: host_dir });
    }
    let failed = |source| PkiError::Generate { what: format!("the certificate of {name}"), source };
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    let mut params = CertificateParams::new(vec![name.to_owned()]).map_err(failed)?;
    params.distinguished_name = common_name(name);
    params.subject_alt_names.extend(addresses.iter().map(|address| SanType::IpAddress(*address)));
    for role in [Role::Sender, Role::Receiver].into_iter().filter(|role| roles.contains(role)) {
        params.subject_alt_names.push(SanType::URI(role.uri().try_into().map_err(failed)?));
    }
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    set_validity(&mut params, days);
    let certificate = params.signed_by(&key, &issuer).map_err(failed)?;

    let files = HostFiles {
        certificate: host_dir.join(HOST_FILE),
        key: host_dir.join(HOST_KEY_FILE),
        ca: host_dir.join(CA_FILE),
        dir: host_dir,
    };
    let failed = |source| PkiError::Write { path: files.dir.clone(), source };
    DirBuilder::new().mode(0o700).create(&files.dir).map_err(failed)?;
    let written = write_new(&files.key, key.serialize_pem().as_bytes(), 0o600)
        .and_then(|()| write_new(&files.certificate, certificate.pem().as_bytes(), 0o644))
        .and_then(|()| write_new(&files.ca, ca_pem.as_bytes(), 0o644));
    if let Err(error) = written {
        // Half a directory would stand in the way of the next try.
        let _ = std::fs::remove_dir_all(&files.dir);
        return Err(error);
    }
    Ok(files)
}

fn check(name: &str, roles: &[Role], days: u32) -> Result<(), PkiError> {
    // The name becomes a directory and is compared as a DNS name; wildcards would be valid for other hosts.
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let numeric = name.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
    // All-digit last labels are addresses to TLS libraries.
    if name.len() > 120 || !name.split('.').all(label) || numeric {
        return Err(PkiError::BadName { name: name.to_owned() });
    }
    let bad = |what| PkiError::BadRequest { name: name.to_owned(), what };
    if roles.is_empty() {
        return Err(bad("a certificate without any role is of no use"));
    }
    if !(1..=CA_DAYS).contains(&days) {
        return Err(bad("a certificate is valid for 1 to 3650 days"));
    }
    Ok(())
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn set_validity(params: &mut CertificateParams, days: u32) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = Duration::from_secs(now.as_secs());
    params.not_before = date_time_ymd(1970, 1, 1) + now.saturating_sub(BACKDATE);
    params.not_after = date_time_ymd(1970, 1, 1) + now + DAY * days;
}

fn make_dir(dir: &Path) -> Result<(), PkiError> {
    let failed = |source| PkiError::Write { path: dir.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), PkiError> {
    let failed = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::AlreadyExists => PkiError::Exists { path: path.to_owned() },
        _ => PkiError::Write { path: path.to_owned(), source },
    };
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(failed)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed)
}

fn text(path: &Path) -> Result<String, PkiError> {
    let lossy = String::from_utf8(read(path)?);
    lossy.map_err(|error| PkiError::Parse {
        path: path.to_owned(),
        what: "PEM text",
        reason: error.to_string(),
    })
}

fn parse_error(path: &Path, what: &'static str, error: &rcgen::Error) -> PkiError {
    PkiError::Parse { path: path.to_owned(), what, reason: error.to_string() }
}
