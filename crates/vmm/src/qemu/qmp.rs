//! QEMU's monitor: JSON lines over a unix socket (`docs/interop/qmp-spec.rst` of QEMU).

mod events;

pub use events::QmpEvent;

use events::Events;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{ControlMessage, MsgFlags, getsockopt, sendmsg};
use serde_json::{Map, Value, json};
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Longest line that is taken. The longest answers of the commands used here have some 100 KB.
const LINE_BYTES_MAX: usize = 4 << 20;
/// How long a command's answer may take. QEMU's main loop pauses for as long as a device's state takes to load.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// How long the rest of a line may take whose first bytes are here.
const LINE_WITHIN: Duration = Duration::from_secs(2);

/// Why a monitor did not do what it was asked.
#[derive(thiserror::Error, Debug)]
#[non_exhaustive]
pub enum QmpError {
    /// The socket failed or was closed: QEMU ended, or another client holds the monitor.
    #[error("QEMU's monitor {path} is gone, or another client holds it")]
    Io {
        /// The socket.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// What came is no QMP.
    #[error("{path} does not speak QMP: {what}")]
    Protocol {
        /// The socket.
        path: PathBuf,
        /// What came.
        what: String,
    },
    /// QEMU refused.
    #[error("QEMU refuses {command}: {reason}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's own words.
        reason: String,
    },
}

/// A connection to a monitor. A monitor serves one client at a time.
#[derive(Debug)]
pub struct Qmp {
    stream: UnixStream,
    path: PathBuf,
    buffer: Vec<u8>,
    events: Events,
    version: String,
    next_id: u64,
}

impl Qmp {
    /// Connects to the monitor at a unix socket, waiting up to `within` for it to be there, and enters command mode.
    ///
    /// # Errors
    ///
    /// [`QmpError`], if nobody answers in time or the one who answers is no QEMU.
    pub fn connect(path: impl AsRef<Path>, within: Duration) -> Result<Self, QmpError> {
        let path = path.as_ref();
        let deadline = Instant::now() + within;
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(source) if Instant::now() >= deadline => {
                    return Err(QmpError::Io { path: path.to_owned(), source });
                }
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        };
        let mut qmp = Self {
            stream,
            path: path.to_owned(),
            buffer: Vec::new(),
            events: Events::default(),
            version: String::new(),
            next_id: 0,
        };
        let greeting = qmp.line(deadline.max(Instant::now() + Duration::from_secs(2)))?;
        let version = &greeting["QMP"]["version"];
        let number = |field: &str| version["qemu"][field].as_u64();
        let (Some(major), Some(minor), Some(micro)) = (number("major"), number("minor"), number("micro"))
        else {
            return Err(qmp.protocol(&greeting));
        };
        qmp.version = format!("{major}.{minor}.{micro}");
        let oob = greeting["QMP"]["capabilities"]
            .as_array()
            .is_some_and(|list| list.iter().any(|name| name == "oob"));
        let enable = if oob { json!({"enable": ["oob"]}) } else { Value::Null };
        qmp.execute("qmp_capabilities", enable)?;
        Ok(qmp)
    }

    /// QEMU's version, as `10.0.2`.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The monitor's socket.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its socket has another name now.
    pub(super) fn renamed(&mut self, path: PathBuf) {
        self.path = path;
    }

    /// The process that listens at the socket, if the system tells: QEMU itself, unless somebody else made the socket for it.
    #[must_use]
    pub fn peer(&self) -> Option<u32> {
        let peer = getsockopt(&self.stream, PeerCredentials).ok()?;
        u32::try_from(peer.pid()).ok().filter(|pid| *pid != 0)
    }

    /// Executes a command; its answer. `arguments` is an object, or null for none.
    ///
    /// # Errors
    ///
    /// [`QmpError`].
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.run("execute", command, arguments, ANSWER_WITHIN)
    }

    /// Whether QEMU answers at all within so long, which is less than commands are given.
    ///
    /// # Errors
    ///
    /// [`QmpError`]; if it did not answer, it may still be there, and answer later.
    pub fn answers(&mut self, within: Duration) -> Result<(), QmpError> {
        self.run("execute", "query-name", Value::Null, within).map(drop)
    }

    /// Executes a command out of band: QEMU answers even while its main loop is held up, as by a device that waits for a
    /// page in post-copy. Few commands can be run so; `migrate-recover` is one.
    ///
    /// # Errors
    ///
    /// [`QmpError`].
    pub fn execute_out_of_band(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.run("exec-oob", command, arguments, ANSWER_WITHIN)
    }

    fn run(
        &mut self,
        how: &str,
        command: &str,
        arguments: Value,
        within: Duration,
    ) -> Result<Value, QmpError> {
        self.next_id += 1;
        let id = self.next_id;
        let mut line = Map::new();
        line.insert(how.into(), command.into());
        line.insert("id".into(), id.into());
        if !arguments.is_null() {
            line.insert("arguments".into(), arguments);
        }
        let line = Value::Object(line).to_string() + "\n";
        self.stream.write_all(line.as_bytes()).map_err(|source| self.io(source))?;
        let deadline = Instant::now() + within;
        loop {
            let mut answer = self.line(deadline)?;
            if answer["event"].is_string() {
                self.events.keep(&answer);
            } else if answer["id"].as_u64().is_some_and(|other| other < id) {
                // The answer to a command that was given up.
            } else if answer["id"] == id && answer.get("return").is_some() {
                return Ok(answer["return"].take());
            } else if let Some(reason) = answer["error"]["desc"].as_str() {
                return Err(QmpError::Refused { command: command.into(), reason: reason.into() });
            } else {
                return Err(self.protocol(&answer));
            }
        }
    }

    /// Hands a descriptor to QEMU under a name; `fd:NAME` is then an address for `migrate` and `migrate-incoming`. No path
    /// on any file system is needed, so neither confinement nor mount namespaces stand in the way.
    ///
    /// # Errors
    ///
    /// [`QmpError`].
    pub fn send_fd(&mut self, name: &str, fd: impl AsFd) -> Result<(), QmpError> {
        self.with_fd(fd, "getfd", json!({"fdname": name})).map(drop)
    }

    /// Executes a command that takes a descriptor along, as `getfd` or `add-fd`.
    ///
    /// # Errors
    ///
    /// [`QmpError`].
    pub fn with_fd(&mut self, fd: impl AsFd, command: &str, arguments: Value) -> Result<Value, QmpError> {
        // QEMU takes the descriptor that came last before the command was read; a blank is no command.
        let fds = [fd.as_fd().as_raw_fd()];
        let message = [ControlMessage::ScmRights(&fds)];
        let socket = self.stream.as_raw_fd();
        let sent = sendmsg::<()>(socket, &[IoSlice::new(b" ")], &message, MsgFlags::MSG_NOSIGNAL, None);
        sent.map_err(|error| self.io(error.into()))?;
        self.execute(command, arguments)
    }

    /// The next event of one of these names, among those kept and those to come; earlier events of other names are
    /// dropped. `None`: it did not come in time.
    ///
    /// # Errors
    ///
    /// [`QmpError`], if the monitor is gone.
    pub fn wait_event(&mut self, names: &[&str], within: Duration) -> Result<Option<QmpEvent>, QmpError> {
        let deadline = Instant::now() + within;
        loop {
            while let Some(event) = self.events.pop() {
                if names.contains(&event.name.as_str()) {
                    return Ok(Some(event));
                }
            }
            match self.line(deadline) {
                Ok(line) if line["event"].is_string() => self.events.keep(&line),
                Ok(line) => return Err(self.protocol(&line)),
                Err(QmpError::Io { source, .. }) if source.kind() == io::ErrorKind::TimedOut => {
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes in what has come by itself so far, without waiting for more; [`take_events`](Self::take_events) has the events then.
    ///
    /// # Errors
    ///
    /// [`QmpError`], if the monitor is gone.
    pub fn note_events(&mut self) -> Result<(), QmpError> {
        while !self.buffer.is_empty() || self.has_more() {
            let line = self.line(Instant::now() + LINE_WITHIN)?;
            // Anything else answers a command that was given up.
            if line["event"].is_string() {
                self.events.keep(&line);
            }
        }
        Ok(())
    }

    /// Whether the socket has bytes, or its end.
    fn has_more(&self) -> bool {
        let mut fds = [PollFd::new(self.stream.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// Takes the events that have come with answers so far, oldest first.
    pub fn take_events(&mut self) -> Vec<QmpEvent> {
        self.events.take()
    }

    /// Turns migration capabilities on or off.
    ///
    /// # Errors
    ///
    /// [`QmpError`]; QEMU refuses capabilities that exclude each other, or that this host has not.
    pub fn set_capabilities(&mut self, capabilities: &[(&str, bool)]) -> Result<(), QmpError> {
        let list: Vec<Value> =
            capabilities.iter().map(|(name, state)| json!({"capability": name, "state": state})).collect();
        self.execute("migrate-set-capabilities", json!({"capabilities": list})).map(drop)
    }

    /// The migration capabilities that this QEMU knows, and whether they are on.
    ///
    /// # Errors
    ///
    /// [`QmpError`].
    pub fn capabilities(&mut self) -> Result<Vec<(String, bool)>, QmpError> {
        let answer = self.execute("query-migrate-capabilities", Value::Null)?;
        let known = |entry: &Value| Some((entry["capability"].as_str()?.into(), entry["state"].as_bool()?));
        Ok(answer.as_array().map(|list| list.iter().filter_map(known).collect()).unwrap_or_default())
    }

    /// One line, as JSON. [`io::ErrorKind::TimedOut`] if none came until `deadline`.
    fn line(&mut self, deadline: Instant) -> Result<Value, QmpError> {
        let mut looked = 0;
        loop {
            if let Some(at) = self.buffer[looked..].iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=looked + at).collect();
                return serde_json::from_slice(&line).map_err(|_| QmpError::Protocol {
                    path: self.path.clone(),
                    what: String::from_utf8_lossy(&line[..line.len().min(120)]).into_owned(),
                });
            }
            looked = self.buffer.len();
            if looked > LINE_BYTES_MAX {
                let what = format!("a line of more than {LINE_BYTES_MAX} bytes");
                return Err(QmpError::Protocol { path: self.path.clone(), what });
            }
            self.read_more(deadline).map_err(|source| self.io(source))?;
        }
    }

    fn read_more(&mut self, deadline: Instant) -> io::Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        let mut chunk = [0; 16 << 10];
        match self.stream.read(&mut chunk) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(len) => {
                self.buffer.extend_from_slice(&chunk[..len]);
                Ok(())
            }
            // The next turn tells whether time is up.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn io(&self, source: io::Error) -> QmpError {
        QmpError::Io { path: self.path.clone(), source }
    }

    fn protocol(&self, answer: &Value) -> QmpError {
        let what = answer.to_string().chars().take(120).collect();
        QmpError::Protocol { path: self.path.clone(), what }
    }
}
