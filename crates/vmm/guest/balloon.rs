//! A driver for a virtio balloon (virtio 1.2, sections 4.2 and 5.5), polled: at ring 3 no interrupt is taken.
//!
//! It gives the hypervisor as many pages as that asks for, and when it takes them back looks whether they are zeros, which is what
//! memory that was given back reads as.

use core::ptr::{addr_of_mut, read_volatile, write_volatile};
use core::sync::atomic::{Ordering, fence};

const MAGIC: u32 = 0x7472_6976;
const BALLOON: u32 = 5;
/// Entries of each queue; one is used at a time.
const QUEUE_LEN: u16 = 4;
/// Page numbers in one buffer: more are refused by some hypervisors.
pub(crate) const BATCH: usize = 256;
/// Status bits: acknowledged, driver, driver ready, features chosen.
const STATUS: [u32; 4] = [1, 3, 11, 15];
const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;

#[repr(C)]
#[derive(Clone, Copy)]
struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

/// A split virtqueue (section 2.7).
#[repr(C, align(4096))]
struct Queue {
    descriptors: [Descriptor; QUEUE_LEN as usize],
    available_flags: u16,
    available: u16,
    ring: [u16; QUEUE_LEN as usize],
    unused: [u16; 2],
    used_flags: u16,
    used: u16,
    used_ring: [u64; QUEUE_LEN as usize],
    pages: [u32; BATCH],
}

const NO_DESCRIPTOR: Descriptor = Descriptor { address: 0, len: 0, flags: 0, next: 0 };
const EMPTY: Queue = Queue {
    descriptors: [NO_DESCRIPTOR; QUEUE_LEN as usize],
    available_flags: 0,
    available: 0,
    ring: [0; QUEUE_LEN as usize],
    unused: [0; 2],
    used_flags: 0,
    used: 0,
    used_ring: [0; QUEUE_LEN as usize],
    pages: [0; BATCH],
};

static mut QUEUES: [Queue; 2] = [EMPTY; 2];

/// The device's registers.
pub(crate) struct Balloon(u64);

impl Balloon {
    /// Looks at each `virtio_mmio.device=SIZE@0xADDRESS:IRQ` of a zero-terminated command line for a balloon, and starts it.
    pub(crate) fn find(line: *const u8) -> Option<Self> {
        if line.is_null() {
            return None;
        }
        let mut at = line;
        loop {
            // SAFETY: the boot protocol ends the line by a zero, and no byte past it is read.
            let byte = |offset: usize| unsafe { *at.add(offset) };
            if byte(0) == 0 {
                return None;
            }
            let name = b"virtio_mmio.device=";
            if (0..name.len()).all(|i| byte(i) == name[i]) {
                let mut i = name.len();
                while byte(i) != b'@' && byte(i) > b' ' {
                    i += 1;
                }
                // Behind "@0x".
                let mut address = 0u64;
                if byte(i) == b'@' && byte(i + 1) == b'0' && byte(i + 2) == b'x' {
                    i += 3;
                    while let Some(digit) = (byte(i) as char).to_digit(16) {
                        address = address << 4 | u64::from(digit);
                        i += 1;
                    }
                }
                let device = Self(address);
                if address != 0 && device.read(0) == MAGIC && device.read(8) == BALLOON {
                    return device.start();
                }
            }
            // SAFETY: this byte was no zero, so the next one is still of the line.
            at = unsafe { at.add(1) };
        }
    }

    fn read(&self, register: u64) -> u32 {
        // SAFETY: the command line says that a device's registers stand there, below 4 GiB, identity-mapped and no memory.
        unsafe { read_volatile((self.0 + register) as *const u32) }
    }

    fn write(&self, register: u64, value: u32) {
        // SAFETY: as above.
        unsafe { write_volatile((self.0 + register) as *mut u32, value) }
    }

    fn start(self) -> Option<Self> {
        self.write(0x70, 0);
        self.write(0x70, STATUS[0]);
        self.write(0x70, STATUS[1]);
        // Of all features, that the device is a modern one.
        for (select, features) in [(0, 0), (1, 1)] {
            self.write(0x24, select);
            self.write(0x20, features);
        }
        self.write(0x70, STATUS[2]);
        for queue in [INFLATE, DEFLATE] {
            self.write(0x30, u32::from(queue));
            self.write(0x38, u32::from(QUEUE_LEN));
            let of = Self::queue(queue);
            // SAFETY: addresses of fields of a static are made, and nothing is read.
            let parts = unsafe {
                [(0x80, &raw mut (*of).descriptors as u64), (0x90, &raw mut (*of).available_flags as u64),
                 (0xa0, &raw mut (*of).used_flags as u64)]
            };
            for (register, address) in parts {
                self.write(register, address as u32);
                self.write(register + 4, (address >> 32) as u32);
            }
            self.write(0x44, 1);
        }
        self.write(0x70, STATUS[3]);
        (self.read(0x70) == STATUS[3]).then_some(self)
    }

    fn queue(queue: u16) -> *mut Queue {
        // SAFETY: `queue` is 0 or 1.
        unsafe { addr_of_mut!(QUEUES).cast::<Queue>().add(usize::from(queue)) }
    }

    /// Pages that the hypervisor wants.
    pub(crate) fn wanted(&self) -> u32 {
        self.read(0x100)
    }

    /// Tells how many it has.
    pub(crate) fn tell(&self, pages: u32) {
        self.write(0x104, pages);
    }

    /// The place of a page's number in the buffer of pages to give, or to take back.
    fn place(give: bool, at: usize) -> *mut u32 {
        let of = Self::queue(if give { INFLATE } else { DEFLATE });
        // SAFETY: `at` is brought below the array's length.
        unsafe { (&raw mut (*of).pages).cast::<u32>().add(at % BATCH) }
    }

    /// Puts a page's number into a buffer.
    pub(crate) fn put(&self, give: bool, at: usize, page: u32) {
        // SAFETY: this is the only CPU, and the device reads the buffer in `pass` only.
        unsafe { write_volatile(Self::place(give, at), page) }
    }

    /// What was put there.
    pub(crate) fn at(&self, give: bool, at: usize) -> u32 {
        // SAFETY: as in `put`; the device never writes there.
        unsafe { read_volatile(Self::place(give, at)) }
    }

    /// Gives the first pages of the buffer, or takes them back; waits until the hypervisor has seen that.
    pub(crate) fn pass(&self, give: bool, count: usize) {
        let queue = if give { INFLATE } else { DEFLATE };
        let of = Self::queue(queue);
        // SAFETY: this is the only CPU, the static is used here only and one call at a time, and the device, which reads and writes it too,
        // does so between the announcement of `available` and that of `used`.
        unsafe {
            let len = count.min(BATCH) as u32 * 4;
            let address = &raw mut (*of).pages as u64;
            let descriptor = Descriptor { address, len, flags: 0, next: 0 };
            write_volatile((&raw mut (*of).descriptors).cast::<Descriptor>(), descriptor);
            let index = read_volatile(&raw const (*of).available);
            write_volatile((&raw mut (*of).ring).cast::<u16>().add(usize::from(index % QUEUE_LEN)), 0);
            fence(Ordering::SeqCst);
            let next = index.wrapping_add(1);
            write_volatile(&raw mut (*of).available, next);
            fence(Ordering::SeqCst);
            self.write(0x50, u32::from(queue));
            while read_volatile(&raw const (*of).used) != next {
                core::hint::spin_loop();
            }
            fence(Ordering::SeqCst);
        }
    }
}
