//! The guest's ports, and what it says on one of them.

use core::arch::asm;

const CONSOLE: u16 = 0x3f8;
const LINE_MAX: usize = 160;

fn out8(port: u16, value: u8) {
    // SAFETY: the TSS allows every port; a write to one reads and writes no memory.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) }
}

pub(crate) fn out32(port: u16, value: u32) {
    // SAFETY: as above.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack)) }
}

pub(crate) fn in32(port: u16) -> u32 {
    let value: u32;
    // SAFETY: as above.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack)) }
    value
}

/// A line of output, sent whole: by one string instruction where the control device takes it.
pub(crate) struct Line {
    bytes: [u8; LINE_MAX],
    len: usize,
    at_once: bool,
}

impl Line {
    pub(crate) fn new(at_once: bool) -> Self {
        Self { bytes: [0; LINE_MAX], len: 0, at_once }
    }

    fn byte(&mut self, byte: u8) {
        if let Some(slot) = self.bytes.get_mut(self.len) {
            *slot = byte;
            self.len += 1;
        }
    }

    pub(crate) fn text(&mut self, text: &str) {
        for byte in text.bytes() {
            self.byte(byte);
        }
    }

    pub(crate) fn number(&mut self, mut n: u64) {
        let mut digits = [0u8; 20];
        let mut len = 0;
        loop {
            digits[len] = b'0' + (n % 10) as u8;
            n /= 10;
            len += 1;
            if n == 0 {
                break;
            }
        }
        while len > 0 {
            len -= 1;
            self.byte(digits[len]);
        }
    }

    pub(crate) fn field(&mut self, name: &str, n: u64) {
        self.text(name);
        self.number(n);
    }

    pub(crate) fn send(&mut self) {
        if self.at_once {
            // SAFETY: reads `len` initialised bytes of the array; the port takes them one by one.
            unsafe {
                asm!("rep outsb", in("dx") CONSOLE, inout("rsi") self.bytes.as_ptr() => _,
                     inout("rcx") self.len => _, options(readonly, nostack));
            }
        } else {
            for &byte in &self.bytes[..self.len] {
                out8(CONSOLE, byte);
            }
        }
        self.len = 0;
    }
}
