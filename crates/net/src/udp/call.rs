//! The system calls that send, one call each.

use super::sender::SEGMENTS_MAX;
use socket2::{SockAddr, Socket};
use std::io;
use std::os::fd::AsRawFd;

/// Room for one control message with a 16-bit integer, aligned for its header.
#[repr(C, align(8))]
struct SegmentControl([u8; 24]);
// SAFETY: `CMSG_SPACE` is arithmetic.
const _: () = assert!(unsafe { libc::CMSG_SPACE(2) } == 24);

/// Sends `chunk` as one GSO packet of datagrams of `segment` bytes.
pub(super) fn send_gso_once(
    socket: &Socket,
    dest: &SockAddr,
    chunk: &[u8],
    segment: usize,
) -> io::Result<()> {
    let size = u16::try_from(segment).map_err(|_| io::Error::from_raw_os_error(libc::EMSGSIZE))?;
    let mut control = SegmentControl([0; 24]);
    let mut iov = libc::iovec { iov_base: chunk.as_ptr().cast_mut().cast(), iov_len: chunk.len() };
    let mut header = message(dest, &mut iov);
    header.msg_control = (&raw mut control).cast();
    header.msg_controllen = 24;
    // SAFETY: `msg_control` points to 24 writable bytes, `CMSG_SPACE` of a `u16`, aligned to 8: the first header
    // is inside and so are its two data bytes.
    unsafe {
        let cmsg = libc::CMSG_FIRSTHDR(&raw const header);
        (*cmsg).cmsg_level = libc::SOL_UDP;
        (*cmsg).cmsg_type = libc::UDP_SEGMENT;
        (*cmsg).cmsg_len = libc::CMSG_LEN(2) as _;
        libc::CMSG_DATA(cmsg).cast::<u16>().write_unaligned(size);
    }
    // SAFETY: name, iovec and control point to memory of the stated lengths that outlives the call; the kernel
    // only reads it.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const header, libc::MSG_NOSIGNAL) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sends up to [`SEGMENTS_MAX`] datagrams of `segment` bytes from the front of `rest`; returns how many, at least 1.
pub(super) fn send_many_once(
    socket: &Socket,
    dest: &SockAddr,
    rest: &[u8],
    segment: usize,
) -> io::Result<usize> {
    let empty = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
    let mut iovs = [empty; SEGMENTS_MAX];
    let mut headers =
        [libc::mmsghdr { msg_hdr: message(dest, std::ptr::null_mut()), msg_len: 0 }; SEGMENTS_MAX];
    let mut count = 0;
    for ((part, iov), header) in rest.chunks(segment).zip(&mut iovs).zip(&mut headers) {
        *iov = libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() };
        header.msg_hdr.msg_iov = iov;
        header.msg_hdr.msg_iovlen = 1;
        count += 1;
    }
    // SAFETY: the first `count` headers point to `dest` and to their own iovec, which points into `rest`; all
    // outlive the call, which writes only the headers' `msg_len`.
    let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), count, libc::MSG_NOSIGNAL) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// A message header with destination and one piece of payload, none if `iov` is null.
fn message(dest: &SockAddr, iov: *mut libc::iovec) -> libc::msghdr {
    // SAFETY: `msghdr` is integers and pointers; zero is a value of each.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_name = dest.as_ptr().cast_mut().cast();
    header.msg_namelen = dest.len();
    header.msg_iov = iov;
    header.msg_iovlen = usize::from(!iov.is_null()) as _;
    header
}

/// Empties the socket's error queue and returns how many errors it held (at most 64 are taken at once).
pub(super) fn drain_errors(socket: &Socket) -> u32 {
    let mut taken = 0;
    // SAFETY: a header without name, payload and control asks for nothing to be written.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    while taken < 64 {
        let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
        // SAFETY: as above; the call writes at most the header itself.
        if unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) } < 0 {
            break;
        }
        taken += 1;
    }
    taken
}
