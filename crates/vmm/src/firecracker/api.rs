//! Firecracker's API: HTTP/1.1 with JSON bodies over a unix socket, one request a connection.

use super::{FirecrackerError, Version};
use serde_json::{Value, json};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a request may take: a full snapshot of many GiB is written during one.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(600);
/// Longest answer; they have some hundred bytes.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Headers of an answer; they have four.
const HEADERS_MAX: usize = 32;

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
        let mut stream = UnixStream::connect(&self.socket).map_err(io)?;
        stream.set_read_timeout(Some(REQUEST_TIMEOUT)).map_err(io)?;
        stream.set_write_timeout(Some(REQUEST_TIMEOUT)).map_err(io)?;
        let body = body.map(Value::to_string).unwrap_or_default();
        let mut head = format!("{what} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n");
        if !body.is_empty() {
            head.push_str(&format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()));
        }
        stream.write_all(format!("{head}\r\n{body}").as_bytes()).map_err(io)?;
        let (status, answer) = read_answer(&mut stream).map_err(io)?;
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

/// Reads one answer: status and body.
fn read_answer(stream: &mut impl Read) -> io::Result<(u16, Vec<u8>)> {
    let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let mut bytes = Vec::new();
    let mut part = [0; 4096];
    let (status, body_at, length) = loop {
        let read = stream.read(&mut part)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        bytes.extend_from_slice(&part[..read]);
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut response = httparse::Response::new(&mut headers);
        match response.parse(&bytes) {
            Ok(httparse::Status::Complete(body_at)) => {
                let length = response
                    .headers
                    .iter()
                    .find(|header| header.name.eq_ignore_ascii_case("content-length"))
                    .map_or(Some(0), |header| std::str::from_utf8(header.value).ok()?.trim().parse().ok());
                let length: usize = length.ok_or_else(|| invalid("its Content-Length is no number"))?;
                break (response.code.unwrap_or(0), body_at, length);
            }
            Ok(httparse::Status::Partial) if bytes.len() <= ANSWER_BYTES_MAX => {}
            _ => return Err(invalid("this is no HTTP answer")),
        }
    };
    if length > ANSWER_BYTES_MAX {
        return Err(invalid("its answer is too long"));
    }
    while bytes.len() < body_at + length {
        let read = stream.read(&mut part)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        bytes.extend_from_slice(&part[..read]);
    }
    Ok((status, bytes[body_at..body_at + length].to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives a byte at a time.
    struct Slow<'a>(&'a [u8]);

    impl Read for Slow<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let Some((first, rest)) = self.0.split_first() else { return Ok(0) };
            (into[0], self.0) = (*first, rest);
            Ok(1)
        }
    }

    #[test]
    fn answers_are_read_whole_or_refused() {
        let answer = b"HTTP/1.1 400 \r\nServer: Firecracker API\r\nContent-length: 2\r\n\r\n{}HTTP/1.1 200";
        assert_eq!(read_answer(&mut Slow(answer)).expect("whole"), (400, b"{}".to_vec()));
        assert_eq!(read_answer(&mut &answer[..]).expect("whole"), (400, b"{}".to_vec()));
        assert_eq!(read_answer(&mut &b"HTTP/1.1 204 \r\n\r\n"[..]).expect("whole"), (204, Vec::new()));
        for odd in [
            &b"HTTP/1.1 200 \r\nContent-Length: 5\r\n\r\n{}"[..],
            b"HTTP/1.1 200 \r\nContent-Length: -5\r\n\r\n{}",
            b"HTTP/1.1 200 \r\nContent-Length: 99999999999\r\n\r\n{}",
            b"SSH-2.0-OpenSSH\r\n\r\n",
            b"",
        ] {
            assert!(read_answer(&mut Slow(odd)).is_err(), "{odd:?}");
        }
    }
}
