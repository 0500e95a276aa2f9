//! The reused buffer of `recvmmsg` and what the kernel says beside each packet.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};

/// Packets taken by one call; each can be up to 64 datagrams that GRO joined.
pub(super) const PACKETS: usize = 32;
/// The largest IP packet, so that no packet is cut.
const PACKET_BYTES: usize = 65_536;
/// Distance between two packets' memory. Not a power of two: else all packets' beginnings would compete for the
/// same cache lines.
const STRIDE: usize = PACKET_BYTES + 2048 + 192;
/// Room for any address.
#[expect(clippy::cast_possible_truncation, reason = "128 bytes")]
const NAME_BYTES: libc::socklen_t = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
/// Room for the segment size and the drop counter: `2 * CMSG_SPACE(4)`.
const CONTROL_BYTES: usize = 48;
// SAFETY: `CMSG_SPACE` is arithmetic.
const _: () = assert!(2 * unsafe { libc::CMSG_SPACE(4) } == 48);

#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; CONTROL_BYTES]);

/// One packet, as the kernel handed it over.
pub(super) struct Packet<'a> {
    pub(super) source: SocketAddr,
    pub(super) payload: &'a [u8],
    /// Length of each datagram in `payload` but the last, if GRO joined several.
    pub(super) segment: Option<usize>,
    /// Datagrams that this socket has dropped so far, modulo 2^32, if any.
    pub(super) drops: Option<u32>,
    /// The packet was longer than the buffer.
    pub(super) cut: bool,
}

/// Memory for [`PACKETS`] packets, allocated once.
pub(super) struct Batch {
    /// Owned through raw pointers in `headers`; never resized.
    bytes: Box<[u8]>,
    names: Box<[libc::sockaddr_storage; PACKETS]>,
    controls: Box<[Control; PACKETS]>,
    /// Held only because `headers` point to it.
    _iovs: Box<[libc::iovec; PACKETS]>,
    headers: Box<[libc::mmsghdr; PACKETS]>,
    /// Headers that the last call filled, to be reset before the next.
    used: usize,
}

// SAFETY: the raw pointers point only into boxes that the structure owns, and are followed only through `&mut self`
// (the kernel) or not at all.
unsafe impl Send for Batch {}

impl Batch {
    pub(super) fn new() -> Self {
        let mut bytes = vec![0_u8; PACKETS * STRIDE].into_boxed_slice();
        // SAFETY: `sockaddr_storage` is integers; zero is a value of each.
        let mut names = Box::new([unsafe { std::mem::zeroed::<libc::sockaddr_storage>() }; PACKETS]);
        let mut controls = Box::new([Control([0; CONTROL_BYTES]); PACKETS]);
        let mut iovs = Box::new([libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; PACKETS]);
        // SAFETY: `mmsghdr` is integers and pointers; zero is a value of each.
        let mut headers = Box::new([unsafe { std::mem::zeroed::<libc::mmsghdr>() }; PACKETS]);
        for (index, header) in headers.iter_mut().enumerate() {
            let part = &mut bytes[index * STRIDE..][..PACKET_BYTES];
            iovs[index] = libc::iovec { iov_base: part.as_mut_ptr().cast(), iov_len: PACKET_BYTES };
            header.msg_hdr.msg_iov = &raw mut iovs[index];
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_name = (&raw mut names[index]).cast();
            header.msg_hdr.msg_control = (&raw mut controls[index]).cast();
        }
        Self { bytes, names, controls, _iovs: iovs, headers, used: PACKETS }
    }

    /// Takes up to [`PACKETS`] waiting packets; 0 if none waits. They stay readable until the next call.
    pub(super) fn receive(&mut self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        for header in &mut self.headers[..self.used] {
            header.msg_hdr.msg_namelen = NAME_BYTES;
            header.msg_hdr.msg_controllen = CONTROL_BYTES as _;
            header.msg_hdr.msg_flags = 0;
        }
        self.used = 0;
        let packets = libc::c_uint::try_from(PACKETS).expect("small");
        // SAFETY: each header points to a name, a control buffer and an iovec in boxes of `self`, the iovecs to
        // disjoint parts of `self.bytes`, all of the lengths stated; `&mut self` keeps others away.
        let received = unsafe {
            libc::recvmmsg(
                fd.as_raw_fd(),
                self.headers.as_mut_ptr(),
                packets,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        match usize::try_from(received) {
            Ok(received) => {
                self.used = received;
                Ok(received)
            }
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
                error if error.kind() == io::ErrorKind::Interrupted => Ok(0),
                error => Err(error),
            },
        }
    }

    /// A packet of the last call; `index` below its result.
    pub(super) fn packet(&self, index: usize) -> Packet<'_> {
        assert!(index < self.used, "only packets of the last call are read");
        let header = &self.headers[index];
        let length = usize::try_from(header.msg_len).expect("32 bits fit").min(PACKET_BYTES);
        let (segment, drops) = self.ancillary(index);
        Packet {
            source: source(&self.names[index]),
            payload: &self.bytes[index * STRIDE..][..length],
            segment,
            drops,
            cut: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
        }
    }

    /// GRO's segment size and the drop counter.
    fn ancillary(&self, index: usize) -> (Option<usize>, Option<u32>) {
        let (mut segment, mut drops) = (None, None);
        let header = &raw const self.headers[index].msg_hdr;
        debug_assert_eq!(
            self.headers[index].msg_hdr.msg_control,
            (&raw const self.controls[index]).cast_mut().cast()
        );
        // SAFETY: the header was filled by the kernel and points to this packet's control buffer.
        let mut cmsg = unsafe { libc::CMSG_FIRSTHDR(header) };
        while !cmsg.is_null() {
            // SAFETY: `CMSG_FIRSTHDR` and `CMSG_NXTHDR` return null or a whole header inside the control buffer,
            // which the kernel wrote, aligned to 8.
            let found = unsafe { *cmsg };
            // SAFETY: as above; the pointer is only computed here.
            let data = unsafe { libc::CMSG_DATA(cmsg) };
            // SAFETY: `CMSG_LEN` is arithmetic.
            let integer = found.cmsg_len as usize >= unsafe { libc::CMSG_LEN(4) } as usize;
            match (found.cmsg_level, found.cmsg_type) {
                (libc::SOL_UDP, libc::UDP_GRO) if integer => {
                    // SAFETY: the message's length says that four bytes of data follow its header.
                    let size = unsafe { data.cast::<libc::c_int>().read_unaligned() };
                    segment = usize::try_from(size).ok().filter(|&size| size > 0);
                }
                (libc::SOL_SOCKET, libc::SO_RXQ_OVFL) if integer => {
                    // SAFETY: as above.
                    drops = Some(unsafe { data.cast::<u32>().read_unaligned() });
                }
                _ => {}
            }
            // SAFETY: `cmsg` is a header inside the control buffer of `header`.
            cmsg = unsafe { libc::CMSG_NXTHDR(header, cmsg) };
        }
        (segment, drops)
    }
}

fn source(name: &libc::sockaddr_storage) -> SocketAddr {
    let at = std::ptr::from_ref(name);
    if i32::from(name.ss_family) == libc::AF_INET6 {
        // SAFETY: a `sockaddr_storage` has room and alignment for each kind of address, and the family says which.
        let v6 = unsafe { *at.cast::<libc::sockaddr_in6>() };
        let address = Ipv6Addr::from(v6.sin6_addr.s6_addr);
        let port = u16::from_be(v6.sin6_port);
        return SocketAddr::V6(SocketAddrV6::new(address, port, v6.sin6_flowinfo, v6.sin6_scope_id));
    }
    // SAFETY: as above; sockets of this crate are IPv4 or IPv6.
    let v4 = unsafe { *at.cast::<libc::sockaddr_in>() };
    let address = Ipv4Addr::from_bits(u32::from_be(v4.sin_addr.s_addr));
    SocketAddr::V4(SocketAddrV4::new(address, u16::from_be(v4.sin_port)))
}
