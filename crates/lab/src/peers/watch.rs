//! When a program's data begin to flow, seen from outside: by the counters of the sender's link.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::hosts::Lab;

/// More than any program's handshake with some tens of hosts, and less than a millisecond of data on a fast link.
const HANDSHAKE_BYTES: u64 = 128 << 10;

const GLANCE: Duration = Duration::from_micros(500);

/// Looks at the link until data flow; costs nothing from then on.
pub(super) struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<std::io::Result<Option<Instant>>>,
}

impl Watch {
    pub(super) fn start(lab: &Lab) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let interface = lab.host(0).interface();
        let thread = lab.host(0).spawn(move || {
            let before = sent_bytes(interface)?;
            while !stopped.load(Ordering::Relaxed) {
                if sent_bytes(interface)? >= before + HANDSHAKE_BYTES {
                    return Some(Instant::now());
                }
                std::thread::sleep(GLANCE);
            }
            None
        });
        Self { stop, thread }
    }

    /// When data began to flow, if they did.
    pub(super) fn began(self) -> Option<Instant> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().ok()?.ok()?
    }
}

fn sent_bytes(interface: &str) -> Option<u64> {
    sent_in(&std::fs::read_to_string("/proc/thread-self/net/dev").ok()?, interface)
}

/// The ninth figure behind the interface's name (proc_pid_net(5)).
fn sent_in(table: &str, interface: &str) -> Option<u64> {
    let figures = |line: &str| Some(line.trim_start().strip_prefix(interface)?.strip_prefix(':')?.to_owned());
    table.lines().find_map(figures)?.split_whitespace().nth(8)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sent_bytes_are_the_ninth_figure() {
        let table = "Inter-|   Receive\n face |bytes\n    lo: 1 2 3 4 5 6 7 8 9 10\n  e0:11 12 13 14 15 16 17 18 19 20\n";
        assert_eq!(sent_in(table, "e0"), Some(19));
        assert_eq!(sent_in(table, "lo"), Some(9));
        assert_eq!(sent_in(table, "e"), None);
    }
}
