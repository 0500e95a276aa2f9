//! The system calls that no safe wrapper offers in the needed shape: socket options with plain structures and
//! two interface ioctls.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

/// Types that any bit pattern of their size is a value of, without padding that matters to the kernel.
///
/// # Safety
/// Only for plain integers and `repr(C)` structures of them.
pub(crate) unsafe trait Plain: Copy {}
// SAFETY: a plain integer.
unsafe impl Plain for libc::c_int {}
// SAFETY: nine integers.
unsafe impl Plain for [u32; 9] {}
// SAFETY: `repr(C)`, two addresses and an integer.
unsafe impl Plain for libc::ip_mreqn {}

/// `setsockopt` of one plain value.
pub(crate) fn set_option<T: Plain>(
    fd: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: &T,
) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<T>()).expect("options are small");
    // SAFETY: `value` points to `length` readable bytes for the duration of the call.
    let rc =
        unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, std::ptr::from_ref(value).cast(), length) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `getsockopt` of one plain value; what the kernel leaves out stays zero.
pub(crate) fn get_option<T: Plain>(
    fd: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
) -> io::Result<T> {
    let mut value = MaybeUninit::<T>::zeroed();
    let mut length = libc::socklen_t::try_from(size_of::<T>()).expect("options are small");
    // SAFETY: `value` has room for `length` bytes; the kernel writes no more than that.
    let rc =
        unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &raw mut length) };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroed above, and `Plain` types hold any bit pattern.
    Ok(unsafe { value.assume_init() })
}

fn request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: `ifreq` is a `repr(C)` structure of integers, pointers and unions of these; zero is a value of each.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, &from) in request.ifr_name.iter_mut().zip(name.as_bytes()) {
        *to = libc::c_char::from_byte(from);
    }
    Ok(request)
}

/// `c_char` is signed on some machines and not on others.
trait FromByte {
    fn from_byte(byte: u8) -> Self;
}
impl FromByte for i8 {
    fn from_byte(byte: u8) -> Self {
        byte.cast_signed()
    }
}
impl FromByte for u8 {
    fn from_byte(byte: u8) -> Self {
        byte
    }
}

/// The MTU of a named interface in bytes (netdevice(7), `SIOCGIFMTU`). An ioctl rather than sysfs: sysfs shows
/// the network namespace in which it was mounted, not the caller's.
pub(crate) fn interface_mtu(socket: RawFd, name: &str) -> io::Result<u32> {
    let mut request = request(name)?;
    // SAFETY: `SIOCGIFMTU` reads the name and writes the integer of an `ifreq`.
    let rc = unsafe { libc::ioctl(socket, libc::SIOCGIFMTU as _, &raw mut request) };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the successful call wrote `ifru_mtu`.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    u32::try_from(mtu).map_err(io::Error::other)
}

/// `struct ethtool_cmd` of linux/ethtool.h, as far as it is read here.
#[repr(C)]
#[derive(Default)]
struct EthtoolCommand {
    cmd: u32,
    supported: u32,
    advertising: u32,
    speed_low: u16,
    small: [u8; 6],
    packets: [u32; 2],
    speed_high: u16,
    more: [u8; 2],
    tail: [u32; 3],
}
const _: () = assert!(size_of::<EthtoolCommand>() == 44);
const ETHTOOL_GSET: u32 = 1;

/// The link speed in Mbit/s, if the driver knows one (`ETHTOOL_GSET`, the same figure as sysfs's `speed`).
pub(crate) fn interface_speed_mbps(socket: RawFd, name: &str) -> Option<u32> {
    let mut command = EthtoolCommand { cmd: ETHTOOL_GSET, ..EthtoolCommand::default() };
    let mut request = request(name).ok()?;
    request.ifr_ifru.ifru_data = (&raw mut command).cast();
    // SAFETY: `SIOCETHTOOL` with `ETHTOOL_GSET` reads and writes an `ethtool_cmd`, whose size is asserted above, at
    // `ifru_data`; both structures outlive the call.
    let rc = unsafe { libc::ioctl(socket, libc::SIOCETHTOOL as _, &raw mut request) };
    let speed = u32::from(command.speed_high) << 16 | u32::from(command.speed_low);
    // SPEED_UNKNOWN is all ones, in the low half alone with old drivers.
    (rc == 0 && speed != 0 && speed != u32::MAX && speed != u32::from(u16::MAX)).then_some(speed)
}
