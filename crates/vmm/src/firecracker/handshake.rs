//! How Firecracker introduces itself to a page-fault handler: one message, JSON and a userfaultfd.

use super::FirecrackerError;
use crate::uffd::{Backing, PidFd, Region, Uffd};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use pages::PAGE_SIZE;
use serde::Deserialize;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

/// Longest introduction; one region has some 150 bytes, and a VM has a few.
const MESSAGE_BYTES_MAX: usize = 64 << 10;

/// Between connecting and introducing itself a Firecracker does nothing else; on a busy machine it may take a while.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);

/// A region as Firecracker tells it (`GuestRegionUffdMapping` there).
#[derive(Deserialize, Debug)]
struct Mapping {
    base_host_virt_addr: u64,
    size: u64,
    offset: u64,
    /// Bytes. Since 1.12.
    page_size: Option<u64>,
    /// Bytes, too, whatever it is called. From 1.7 until 2.0.
    page_size_kib: Option<u64>,
}

/// A Firecracker that wants its faults answered.
#[derive(Debug)]
pub struct Introduction {
    /// Its faults.
    pub uffd: Uffd,
    /// Its memory: where, and what of the memory file stands there.
    pub regions: Vec<Region>,
    /// Huge pages, or anonymous memory.
    pub backing: Backing,
    /// Itself.
    pub process: PidFd,
    /// Kept open as long as it is served: up to 1.11 Firecracker closes its own end at once.
    pub socket: UnixStream,
}

/// Waits for the next Firecracker on a socket, for at most `timeout`; one that has connected has ten seconds to introduce itself.
///
/// # Errors
///
/// Nobody came, or what came is no introduction.
pub fn accept(listener: &UnixListener, timeout: Duration) -> Result<Introduction, FirecrackerError> {
    let deadline = Instant::now() + timeout;
    let io = |source| FirecrackerError::Handshake { reason: "the socket fails", source };
    listener.set_nonblocking(true).map_err(io)?;
    let socket = loop {
        match listener.accept() {
            Ok((socket, _)) => break socket,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                wait(listener, deadline).map_err(io)?
            }
            Err(error) => return Err(io(error)),
        }
    };
    // Who has connected is about to introduce itself, however short the caller's patience is for one to come.
    wait(&socket, Instant::now() + MESSAGE_TIMEOUT).map_err(io)?;
    introduction(socket)
}

fn wait(fd: &impl AsFd, deadline: Instant) -> io::Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
    match poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], timeout) {
        Ok(0) => Err(io::ErrorKind::TimedOut.into()),
        Ok(_) | Err(nix::Error::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn introduction(socket: UnixStream) -> Result<Introduction, FirecrackerError> {
    let io = |reason| move |source: io::Error| FirecrackerError::Handshake { reason, source };
    let odd = |reason| FirecrackerError::Handshake { reason, source: io::ErrorKind::InvalidData.into() };
    let mut bytes = vec![0; MESSAGE_BYTES_MAX];
    let mut rights = nix::cmsg_space!([RawFd; 4]);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let message = recvmsg::<()>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut rights),
        MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT,
    )
    .map_err(|error| io("its message cannot be read")(error.into()))?;
    let mut fds = Vec::new();
    let controls = message.cmsgs().map_err(|error| io("its descriptors cannot be read")(error.into()))?;
    for control in controls {
        if let ControlMessageOwned::ScmRights(received) = control {
            // SAFETY: the kernel has just made these descriptors for us.
            fds.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    let len = message.bytes;
    let Ok([fd]) = <[OwnedFd; 1]>::try_from(fds) else {
        return Err(odd("it does not send one descriptor (before 1.12 it may close too early: load again)"));
    };
    let mappings: Vec<Mapping> =
        serde_json::from_slice(&bytes[..len]).map_err(|_| odd("its regions cannot be read"))?;
    let mut regions = Vec::with_capacity(mappings.len());
    for mapping in mappings {
        let page_bytes = mapping.page_size.or(mapping.page_size_kib).unwrap_or(PAGE_SIZE as u64);
        regions.push(Region {
            address: mapping.base_host_virt_addr,
            len: mapping.size,
            image_offset: mapping.offset,
            page_bytes,
        });
    }
    let huge = regions.iter().any(|region| region.page_bytes != PAGE_SIZE as u64);
    let backing = if huge { Backing::Huge } else { Backing::Anonymous };
    let uffd = Uffd::from_owned(fd)?;
    let process = PidFd::of_peer(&socket)?;
    Ok(Introduction { uffd, regions, backing, process, socket })
}
