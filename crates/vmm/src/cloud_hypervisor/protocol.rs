//! Cloud Hypervisor's migration protocol, version 0: fixed little-endian structures of 16 bytes, each request answered.
//!
//! ```text
//! request   u16 command, 6 bytes (Start: u16 version), u64 length of what follows
//! response  u16 status (1 ok, 2 error), 6 bytes, u64 length
//! MemoryFd  u32 slot, with the descriptor in the same message
//! PageFault u64 guest address, u64 length
//! ```
//!
//! A further connection begins with its role, u16. Source: `vm-migration/src/protocol.rs` of Cloud Hypervisor.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

const HEAD_BYTES: usize = 16;
const VERSION: u16 = 0;
const STATUS_OK: u16 = 1;
const STATUS_ERROR: u16 = 2;
/// The role of the connection that carries page faults.
const ROLE_FAULT: u16 = 2;
/// Longest configuration or state; they have some hundred KiB.
const PAYLOAD_BYTES_MAX: u64 = 64 << 20;

/// What one side asks of the other.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// Begins.
    Start,
    /// The VM's configuration, JSON.
    Config,
    /// Its state, JSON; opaque here.
    State,
    /// Memory over the socket: not used here.
    Memory,
    /// The end; the VM runs on the other side.
    Complete,
    /// The end, in failure.
    Abandon,
    /// Memory as a file.
    MemoryFd,
    /// The end; the VM stays paused on the other side. Since v52.
    CompletePaused,
    /// A page is needed. Since v53.
    PageFault,
}

impl Command {
    const ALL: [Self; 9] = [
        Self::Start,
        Self::Config,
        Self::State,
        Self::Memory,
        Self::Complete,
        Self::Abandon,
        Self::MemoryFd,
        Self::CompletePaused,
        Self::PageFault,
    ];

    fn number(self) -> u16 {
        (1..).zip(Self::ALL).find(|(_, command)| *command == self).map_or(0, |(number, _)| number)
    }

    fn of(number: u16) -> Option<Self> {
        Self::ALL.get(usize::from(number.checked_sub(1)?)).copied()
    }
}

/// A request's head.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// What is asked.
    pub command: Command,
    /// Of a `Start`: the protocol's version, which must be 0.
    pub version: u16,
    /// Bytes that follow.
    pub length: u64,
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn head(first: u16, second: u16, length: u64) -> [u8; HEAD_BYTES] {
    let mut bytes = [0; HEAD_BYTES];
    bytes[..2].copy_from_slice(&first.to_le_bytes());
    bytes[2..4].copy_from_slice(&second.to_le_bytes());
    bytes[8..].copy_from_slice(&length.to_le_bytes());
    bytes
}

fn parts(bytes: [u8; HEAD_BYTES]) -> (u16, u16, u64) {
    let [a, b, c, d, _, _, _, _, length @ ..] = bytes;
    (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]), u64::from_le_bytes(length))
}

impl Request {
    /// A request of this version.
    #[must_use]
    pub fn new(command: Command, length: u64) -> Self {
        Self { command, version: VERSION, length }
    }

    /// Reads one.
    ///
    /// # Errors
    ///
    /// The socket ends, or this is none.
    pub fn read(from: &mut impl Read) -> io::Result<Self> {
        let mut bytes = [0; HEAD_BYTES];
        from.read_exact(&mut bytes)?;
        let (number, version, length) = parts(bytes);
        let command = Command::of(number).ok_or_else(|| invalid(format!("command {number} is unknown")))?;
        let version = if command == Command::Start { version } else { VERSION };
        Ok(Self { command, version, length })
    }

    /// Writes it, with what follows, and waits for the answer.
    ///
    /// # Errors
    ///
    /// The socket fails, or the other side answers with an error.
    pub fn ask(command: Command, payload: &[u8], stream: &mut (impl Read + Write)) -> io::Result<()> {
        stream.write_all(&head(command.number(), VERSION, payload.len() as u64))?;
        stream.write_all(payload)?;
        expect_ok(command, stream)
    }

    /// Reads what follows this request's head.
    ///
    /// # Errors
    ///
    /// It is longer than any configuration or state, or the socket ends.
    pub fn payload(&self, from: &mut impl Read) -> io::Result<Vec<u8>> {
        if self.length > PAYLOAD_BYTES_MAX {
            return Err(invalid(format!("{:?} of {} bytes", self.command, self.length)));
        }
        let mut bytes = Vec::new();
        let read = from.take(self.length).read_to_end(&mut bytes)?;
        if read as u64 == self.length { Ok(bytes) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    /// Checks the version of a `Start`.
    ///
    /// # Errors
    ///
    /// Another version than 0.
    pub fn check_version(&self) -> io::Result<()> {
        if self.version == VERSION {
            Ok(())
        } else {
            Err(invalid(format!("migration protocol version {}; only {VERSION} is known", self.version)))
        }
    }
}

fn expect_ok(command: Command, from: &mut impl Read) -> io::Result<()> {
    let mut bytes = [0; HEAD_BYTES];
    from.read_exact(&mut bytes)?;
    match parts(bytes) {
        (STATUS_OK, _, 0) => Ok(()),
        (STATUS_OK, _, length) => Err(invalid(format!("{command:?} is answered by {length} bytes more"))),
        (status, ..) => Err(invalid(format!("{command:?} is refused (status {status})"))),
    }
}

/// Answers a request.
///
/// # Errors
///
/// The socket fails.
pub fn answer(ok: bool, to: &mut impl Write) -> io::Result<()> {
    to.write_all(&head(if ok { STATUS_OK } else { STATUS_ERROR }, 0, 0))
}

/// Sends memory as a file, and waits for the answer.
///
/// # Errors
///
/// The socket fails, or it is refused.
pub fn send_memory(slot: u32, file: BorrowedFd<'_>, stream: &mut UnixStream) -> io::Result<()> {
    stream.write_all(&head(Command::MemoryFd.number(), 0, 4))?;
    let bytes = slot.to_le_bytes();
    let fds = [file.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&fds)];
    sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(&bytes)], &rights, MsgFlags::MSG_NOSIGNAL, None)?;
    expect_ok(Command::MemoryFd, stream)
}

/// Receives what follows a `MemoryFd`: slot and file.
///
/// # Errors
///
/// The socket fails, or it carries no descriptor.
pub fn receive_memory(request: &Request, stream: &UnixStream) -> io::Result<(u32, OwnedFd)> {
    let mut bytes = [0; 4];
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let mut rights = nix::cmsg_space!([RawFd; 4]);
    let message =
        recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut rights), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = control {
            // SAFETY: the kernel has just made these descriptors for us.
            fds.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    let read = message.bytes;
    match (<[OwnedFd; 1]>::try_from(fds), read, request.length) {
        (Ok([fd]), 4, 4) => Ok((u32::from_le_bytes(bytes), fd)),
        _ => Err(invalid("a MemoryFd without one descriptor and a slot".into())),
    }
}

/// Says that a new connection carries page faults.
///
/// # Errors
///
/// The socket fails.
pub fn open_fault_connection(stream: &mut UnixStream) -> io::Result<()> {
    stream.write_all(&ROLE_FAULT.to_le_bytes())
}

/// Reads the range that follows a `PageFault`: guest address and length.
///
/// # Errors
///
/// The socket ends, or the request's length is another one.
pub fn read_fault(request: &Request, from: &mut impl Read) -> io::Result<(u64, u64)> {
    if request.length != 16 {
        return Err(invalid(format!("a PageFault of {} bytes", request.length)));
    }
    let (mut gpa, mut length) = ([0; 8], [0; 8]);
    from.read_exact(&mut gpa)?;
    from.read_exact(&mut length)?;
    Ok((u64::from_le_bytes(gpa), u64::from_le_bytes(length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_as_cloud_hypervisor_lays_them_out() {
        assert_eq!(head(7, 0, 4), [7, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0]);
        let start = Request::read(&mut &head(1, 3, 0)[..]).expect("a request");
        assert_eq!((start.command, start.version), (Command::Start, 3));
        assert!(start.check_version().is_err());
        for (number, command) in (1..=9).zip(Command::ALL) {
            assert_eq!(command.number(), number);
            assert_eq!(Request::read(&mut &head(number, 0, 5)[..]).ok(), Some(Request::new(command, 5)));
        }
        for number in [0, 10, u16::MAX] {
            assert!(Request::read(&mut &head(number, 0, 0)[..]).is_err(), "{number}");
        }
        let fault = Request::new(Command::PageFault, 16);
        let mut body = [0; 16];
        (body[1], body[9]) = (0x10, 0x10);
        assert_eq!(read_fault(&fault, &mut &body[..]).expect("a range"), (4096, 4096));
        assert!(Request::new(Command::State, 1 << 60).payload(&mut &[][..]).is_err());
        assert!(Request::new(Command::State, 10).payload(&mut &[1, 2][..]).is_err(), "it ends early");
        assert!(expect_ok(Command::State, &mut &head(2, 0, 0)[..]).is_err());
        assert!(expect_ok(Command::State, &mut &head(1, 0, 8)[..]).is_err());
    }
}
