//! The kernel's interface (`linux/userfaultfd.h`), as far as it is used: numbers, structures, ioctls.
//!
//! By hand, because the `userfaultfd` crate knows neither `MINOR` on shared memory nor the range flags used here, needs
//! libclang for `CONTINUE`, and reports `EAGAIN` as a count of bytes.

use std::mem::size_of;

pub(super) const API: u64 = 0xaa;

pub(super) const FEATURE_EVENT_REMOVE: u64 = 1 << 3;
pub(super) const FEATURE_MISSING_HUGETLBFS: u64 = 1 << 4;
pub(super) const FEATURE_MISSING_SHMEM: u64 = 1 << 5;
pub(super) const FEATURE_MINOR_SHMEM: u64 = 1 << 10;

pub(super) const REGISTER_MISSING: u64 = 1;
pub(super) const REGISTER_MINOR: u64 = 1 << 2;

pub(super) const EVENT_PAGEFAULT: u8 = 0x12;
pub(super) const EVENT_REMOVE: u8 = 0x15;
pub(super) const EVENT_UNMAP: u8 = 0x16;

#[repr(C)]
#[derive(Copy, Clone, Default)]
pub(super) struct Api {
    pub(super) api: u64,
    pub(super) features: u64,
    pub(super) ioctls: u64,
}

#[repr(C)]
#[derive(Copy, Clone, Default)]
pub(super) struct Range {
    pub(super) start: u64,
    pub(super) len: u64,
}

#[repr(C)]
#[derive(Copy, Clone, Default)]
pub(super) struct Register {
    pub(super) range: Range,
    pub(super) mode: u64,
    pub(super) ioctls: u64,
}

#[repr(C)]
#[derive(Copy, Clone, Default)]
pub(super) struct Copy_ {
    pub(super) dst: u64,
    pub(super) src: u64,
    pub(super) len: u64,
    pub(super) mode: u64,
    /// Bytes copied, or minus the error.
    pub(super) copied: i64,
}

/// `uffdio_zeropage` and `uffdio_continue` alike.
#[repr(C)]
#[derive(Copy, Clone, Default)]
pub(super) struct Fill {
    pub(super) range: Range,
    pub(super) mode: u64,
    /// Bytes filled, or minus the error.
    pub(super) filled: i64,
}

/// `uffd_msg`: packed in the kernel's header, but its fields are aligned anyway.
#[repr(C)]
#[derive(Copy, Clone, Default)]
pub(super) struct Message {
    pub(super) event: u8,
    _reserved: [u8; 7],
    /// Page fault: flags, address. Remove, unmap: start, end.
    pub(super) args: [u64; 3],
}

const _: () = {
    assert!(size_of::<Api>() == 24);
    assert!(size_of::<Register>() == 32);
    assert!(size_of::<Copy_>() == 40);
    assert!(size_of::<Fill>() == 32);
    assert!(size_of::<Message>() == 32);
    // The numbers that the header's macros give.
    assert!(nix::request_code_readwrite!(0xaa, 0x3f, size_of::<Api>()) == 0xc018_aa3f);
    assert!(nix::request_code_readwrite!(0xaa, 0x00, size_of::<Register>()) == 0xc020_aa00);
    assert!(nix::request_code_readwrite!(0xaa, 0x03, size_of::<Copy_>()) == 0xc028_aa03);
};

/// `USERFAULTFD_IOC_NEW`, on `/dev/userfaultfd`.
pub(super) const NEW: nix::sys::ioctl::ioctl_num_type = nix::request_code_none!(0xaa, 0x00);

nix::ioctl_readwrite!(api, 0xaa, 0x3f, Api);
nix::ioctl_readwrite!(register, 0xaa, 0x00, Register);
nix::ioctl_read!(unregister, 0xaa, 0x01, Range);
nix::ioctl_read!(wake, 0xaa, 0x02, Range);
nix::ioctl_readwrite!(copy, 0xaa, 0x03, Copy_);
nix::ioctl_readwrite!(zeropage, 0xaa, 0x04, Fill);
nix::ioctl_readwrite!(continue_, 0xaa, 0x07, Fill);
