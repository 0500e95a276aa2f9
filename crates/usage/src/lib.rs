//! What this process costs: CPU time and memory, for reports; and how urgent it is beside others.

#![forbid(unsafe_code)]

pub mod priority;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use std::time::Duration;

/// CPU time of all threads so far, user and system; zero if the system does not tell.
#[must_use]
pub fn cpu() -> Duration {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else { return Duration::ZERO };
    let time = |t: TimeVal| {
        let micros = t.tv_sec().saturating_mul(1_000_000).saturating_add(t.tv_usec());
        Duration::from_micros(u64::try_from(micros).unwrap_or_default())
    };
    time(usage.user_time()) + time(usage.system_time())
}

/// Memory of this process in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Memory {
    /// Largest resident set so far, mapped files included.
    pub peak_resident: u64,
    /// Resident now and not backed by a file: what this process needs beyond the images that it maps.
    pub anonymous: u64,
}

/// Reads the kernel's accounts; zero what it does not tell.
#[must_use]
pub fn memory() -> Memory {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    let bytes = |name| field(name).unwrap_or_default() * 1024;
    Memory { peak_resident: bytes("VmHWM:"), anonymous: bytes("RssAnon:") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_with_use() {
        let before = (cpu(), memory());
        let block = std::hint::black_box(vec![1_u8; 64 << 20]);
        let sum: u64 = (0..8).map(|_| block.iter().map(|b| u64::from(*b)).sum::<u64>()).sum();
        assert_eq!(sum, 8 * (64 << 20));
        let after = (cpu(), memory());
        assert!(after.0 > before.0, "{after:?}");
        assert!(after.1.anonymous > before.1.anonymous + (60 << 20), "{after:?}");
        assert!(after.1.peak_resident >= after.1.anonymous);
        drop(block);
    }
}
