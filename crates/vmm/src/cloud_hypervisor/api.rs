//! Cloud Hypervisor's API: HTTP with JSON over a unix socket; and what its versions can do.

use super::CloudHypervisorError;
use serde_json::{Value, json};
use std::fmt;
use std::path::{Path, PathBuf};

/// A Cloud Hypervisor process by its API socket.
#[derive(Clone, Debug)]
pub struct Api {
    socket: PathBuf,
}

/// A version, as `54.0.0`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Version {
    major: u32,
    text: String,
}

impl Version {
    /// Reads a version's text.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim().trim_start_matches('v');
        let major = text.split('.').next()?.parse().ok()?;
        Some(Self { major, text: text.to_owned() })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What can restore a VM: compared before anything is sent. The same major version, to be safe: state may change with each.
#[must_use]
pub fn fingerprint(version: &Version) -> String {
    format!("cloud-hypervisor {}", version.major)
}

/// Whether this version can restore by page faults on this machine.
///
/// # Errors
///
/// [`CloudHypervisorError::Version`]. 53 has it, but relies on every missing page to fault, which huge pages of shared memory
/// prevent (cloud-hypervisor#8663 there: guests with triple faults).
pub fn post_copy_is_safe(version: &Version) -> Result<(), CloudHypervisorError> {
    let refuse = |reason| Err(CloudHypervisorError::Version { version: version.clone(), reason });
    let setting = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
    let never = std::fs::read_to_string(setting)
        .map_or(true, |text| text.contains("[never]") || text.contains("[deny]"));
    match version.major {
        ..53 => refuse("version 53 or later is needed"),
        53 if !never => refuse(
            "version 53 loses pages where shared memory comes in huge ones: \
             set /sys/kernel/mm/transparent_hugepage/shmem_enabled to never, or take version 54",
        ),
        _ => Ok(()),
    }
}

impl Api {
    /// An API socket, which need not be there yet.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// The socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Which version this is.
    ///
    /// # Errors
    ///
    /// It does not answer, or not as Cloud Hypervisor does.
    pub fn version(&self) -> Result<Version, CloudHypervisorError> {
        let answer = self.request("GET", "vmm.ping", None)?;
        Version::parse(answer["version"].as_str().unwrap_or_default()).ok_or_else(|| {
            CloudHypervisorError::Answer { what: "vmm.ping".into(), answer: answer.to_string() }
        })
    }

    /// Stops the vCPUs.
    ///
    /// # Errors
    ///
    /// It refuses.
    pub fn pause(&self) -> Result<(), CloudHypervisorError> {
        self.request("PUT", "vm.pause", None).map(drop)
    }

    /// Lets the vCPUs run.
    ///
    /// # Errors
    ///
    /// It refuses.
    pub fn resume(&self) -> Result<(), CloudHypervisorError> {
        self.request("PUT", "vm.resume", None).map(drop)
    }

    /// Writes the paused VM's snapshot into an existing, empty folder.
    ///
    /// # Errors
    ///
    /// It refuses.
    pub fn snapshot(&self, dir: &Path) -> Result<(), CloudHypervisorError> {
        let url = format!("file://{}", dir.display());
        self.request("PUT", "vm.snapshot", Some(&json!({ "destination_url": url }))).map(drop)
    }

    /// Restores a snapshot from a folder, copying its memory first; the VM stays paused.
    ///
    /// # Errors
    ///
    /// It refuses.
    pub fn restore(&self, dir: &Path) -> Result<(), CloudHypervisorError> {
        let url = format!("file://{}", dir.display());
        self.request("PUT", "vm.restore", Some(&json!({ "source_url": url }))).map(drop)
    }

    /// Sends a request and waits for its answer's body, `Null` if it has none or is no JSON.
    ///
    /// # Errors
    ///
    /// The socket fails, or [`CloudHypervisorError::Refused`] in its own words.
    pub fn request(
        &self,
        method: &str,
        name: &str,
        body: Option<&Value>,
    ) -> Result<Value, CloudHypervisorError> {
        let path = format!("/api/v1/{name}");
        let what = format!("{method} {path}");
        let body = body.map(Value::to_string).unwrap_or_default();
        let (status, answer) =
            crate::http::request(&self.socket, method, &path, &body).map_err(|source| {
                CloudHypervisorError::Api { socket: self.socket.clone(), what: what.clone(), source }
            })?;
        if (200..300).contains(&status) {
            return Ok(serde_json::from_slice(&answer).unwrap_or(Value::Null));
        }
        let words = String::from_utf8_lossy(&answer).into_owned();
        Err(CloudHypervisorError::Refused { what, status, words })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_gated() {
        let version = |text| Version::parse(text).expect("a version");
        assert!(post_copy_is_safe(&version("54.0.0")).is_ok());
        assert!(post_copy_is_safe(&version("v52.1")).is_err());
        assert_eq!(fingerprint(&version("54.0.0")), fingerprint(&version("v54.1-dirty")));
        assert_eq!(Version::parse("next"), None);
    }
}
