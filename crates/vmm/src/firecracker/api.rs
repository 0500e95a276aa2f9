//! Firecracker's API: HTTP/1.1 with JSON bodies over a unix socket, one request a connection.

use super::{FirecrackerError, Version};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// A Firecracker process by its API socket.
#[derive(Clone, Debug)]
pub struct Api {
    socket: PathBuf,
}

/// What a snapshot holds.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum SnapshotKind {
    /// All memory.
    Full,
    /// Pages changed since the last snapshot, holes for the others: to be merged into a copy of it
    /// ([`merge_diff`](super::merge_diff)). Exact if the VM tracks dirty pages; else Firecracker asks `mincore`.
    Diff,
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

    /// Which Firecracker this is.
    ///
    /// # Errors
    ///
    /// It does not answer, or not as Firecracker does.
    pub fn version(&self) -> Result<Version, FirecrackerError> {
        let answer = self.request("GET", "/version", None)?;
        let text = answer["firecracker_version"].as_str().unwrap_or_default();
        Version::parse(text).ok_or_else(|| FirecrackerError::Answer {
            what: "GET /version".into(),
            answer: answer.to_string(),
        })
    }

    /// Stops the vCPUs.
    ///
    /// # Errors
    ///
    /// Firecracker refuses, with its own words.
    pub fn pause(&self) -> Result<(), FirecrackerError> {
        self.request("PATCH", "/vm", Some(&json!({ "state": "Paused" }))).map(drop)
    }

    /// Lets the vCPUs run.
    ///
    /// # Errors
    ///
    /// As [`pause`](Self::pause).
    pub fn resume(&self) -> Result<(), FirecrackerError> {
        self.request("PATCH", "/vm", Some(&json!({ "state": "Resumed" }))).map(drop)
    }

    /// Replaces what the VM's metadata service tells its guest.
    ///
    /// # Errors
    ///
    /// As [`pause`](Self::pause).
    pub fn put_metadata(&self, metadata: &Value) -> Result<(), FirecrackerError> {
        self.request("PUT", "/mmds", Some(metadata)).map(drop)
    }

    /// Writes a snapshot of the paused VM.
    ///
    /// # Errors
    ///
    /// As [`pause`](Self::pause).
    pub fn create_snapshot(
        &self,
        kind: SnapshotKind,
        vmstate: &Path,
        memory: &Path,
    ) -> Result<(), FirecrackerError> {
        let kind = match kind {
            SnapshotKind::Full => "Full",
            SnapshotKind::Diff => "Diff",
        };
        let body = json!({ "snapshot_type": kind, "snapshot_path": vmstate, "mem_file_path": memory });
        self.request("PUT", "/snapshot/create", Some(&body)).map(drop)
    }

    /// Sends a request and waits for its answer's body, `Null` if it has none.
    ///
    /// # Errors
    ///
    /// The socket, an answer that is no HTTP or no JSON, or [`FirecrackerError::Refused`] with Firecracker's `fault_message`.
    pub fn request(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, FirecrackerError> {
        let what = format!("{method} {path}");
        let io = |source| FirecrackerError::Api { socket: self.socket.clone(), what: what.clone(), source };
        let body = body.map(Value::to_string).unwrap_or_default();
        let (status, answer) = crate::http::request(&self.socket, method, path, &body).map_err(io)?;
        let wrong = |answer: &[u8]| FirecrackerError::Answer {
            what: what.clone(),
            answer: String::from_utf8_lossy(answer).into_owned(),
        };
        let value = match answer.as_slice() {
            [] => Value::Null,
            some => serde_json::from_slice(some).map_err(|_| wrong(some))?,
        };
        match status {
            200..300 => Ok(value),
            _ => {
                let words = value["fault_message"].as_str().map_or_else(|| value.to_string(), str::to_owned);
                Err(FirecrackerError::Refused { what, status, words })
            }
        }
    }
}
