//! What a certificate says.

use super::{PkiError, Role, read};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use x509_parser::extensions::GeneralName;

/// A certificate's content, for people and for checks; nothing of it is verified here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CertificateInfo {
    /// Host names, the main one first.
    pub names: Vec<String>,
    /// Addresses that it is also valid for.
    pub addresses: Vec<IpAddr>,
    /// Roles, without repetition.
    pub roles: Vec<Role>,
    /// Beginning of its validity.
    pub not_before: SystemTime,
    /// End of its validity.
    pub not_after: SystemTime,
    /// Is a CA's.
    pub is_ca: bool,
}

impl CertificateInfo {
    pub(crate) fn parse(der: &[u8]) -> Result<Self, String> {
        let (_, certificate) = x509_parser::parse_x509_certificate(der).map_err(|error| error.to_string())?;
        let mut info = Self {
            names: Vec::new(),
            addresses: Vec::new(),
            roles: Vec::new(),
            not_before: system_time(certificate.validity().not_before.timestamp()),
            not_after: system_time(certificate.validity().not_after.timestamp()),
            is_ca: certificate.is_ca(),
        };
        let alternative = certificate.subject_alternative_name().map_err(|error| error.to_string())?;
        for name in alternative.iter().flat_map(|extension| &extension.value.general_names) {
            match name {
                GeneralName::DNSName(name) => info.names.push((*name).to_owned()),
                GeneralName::IPAddress(bytes) => info.addresses.extend(address(bytes)),
                GeneralName::URI(uri) => {
                    let role = [Role::Sender, Role::Receiver].into_iter().find(|role| role.uri() == *uri);
                    info.roles.extend(role.filter(|role| !info.roles.contains(role)));
                }
                _ => {}
            }
        }
        Ok(info)
    }

    /// The main name; "unnamed" without any.
    #[must_use]
    pub fn name(&self) -> &str {
        self.names.first().map_or("unnamed", String::as_str)
    }

    /// Whether it entitles to `role`.
    #[must_use]
    pub fn has_role(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }
}

/// What the first certificate in a PEM file says.
///
/// # Errors
/// [`PkiError::Read`], [`PkiError::Parse`].
pub fn describe(path: &Path) -> Result<CertificateInfo, PkiError> {
    let failed = |reason| PkiError::Parse { path: path.to_owned(), what: "certificate", reason };
    let der = CertificateDer::from_pem_slice(&read(path)?).map_err(|error| failed(error.to_string()))?;
    CertificateInfo::parse(&der).map_err(failed)
}

/// Times before 1970 become 1970: as far back as anything here looks.
fn system_time(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(|octets| Ipv4Addr::from(octets).into());
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(|octets| Ipv6Addr::from(octets).into())).ok()
}
