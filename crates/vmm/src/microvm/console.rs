//! What the guest says: lines, read as reports, with the time of their arrival.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Lines that are kept; older ones are forgotten.
const LINES_MAX: usize = 4096;
/// Longest line; what goes beyond is cut.
const LINE_BYTES_MAX: usize = 256;

/// A line of the guest, understood.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Report {
    /// The pattern is written; this many pages.
    Ready {
        /// Pages of the pattern.
        pages: u64,
    },
    /// A tick has passed.
    Tick {
        /// Its number since boot; clones count on from their snapshot.
        number: u64,
        /// No page was ever wrong.
        ok: bool,
        /// The identity that the guest knows.
        clone: u64,
        /// Passes over all pages (sequential pattern only).
        passes: u64,
        /// Pages written anew.
        written: u64,
        /// Pages found wrong since boot.
        bad: u64,
    },
    /// All pages and the guest's own tables were visited since the last such report.
    Pass {
        /// Its number.
        number: u64,
        /// No page was ever wrong.
        ok: bool,
    },
    /// The guest took another identity.
    Clone(u64),
    /// A page is wrong.
    Bad(String),
    /// Something else.
    Other(String),
}

impl Report {
    fn parse(line: &str) -> Self {
        Self::known(line).unwrap_or_else(|| {
            let text = line.to_owned();
            if line.starts_with("BAD") { Self::Bad(text) } else { Self::Other(text) }
        })
    }

    fn known(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let number = |at: usize| words.get(at).and_then(|word| word.parse().ok());
        let after = |name: &str| number(words.iter().position(|word| *word == name)? + 1);
        let ok = |at: usize| match *words.get(at)? {
            "OK" => Some(true),
            "BAD" => Some(false),
            _ => None,
        };
        Some(match *words.first()? {
            "READY" => Self::Ready { pages: after("pages")? },
            "CLONE" => Self::Clone(number(1)?),
            "PASS" => Self::Pass { number: number(1)?, ok: ok(2)? },
            "TICK" => Self::Tick {
                number: number(1)?,
                ok: ok(2)?,
                clone: after("clone")?,
                passes: after("passes")?,
                written: after("written")?,
                bad: after("bad")?,
            },
            _ => return None,
        })
    }
}

/// A report and when it came.
#[derive(Clone, Debug)]
pub struct Seen {
    /// How many came before it since the VM was made.
    pub index: u64,
    /// When its line was complete.
    pub at: Instant,
    /// What it says.
    pub report: Report,
}

#[derive(Debug, Default)]
struct Lines {
    partial: Vec<u8>,
    next: u64,
    kept: VecDeque<Seen>,
    bad: u64,
    /// Why nothing will come any more.
    ended: Option<String>,
}

/// The guest's console: it writes, anyone waits and reads.
#[derive(Debug, Default)]
pub struct Console {
    lines: Mutex<Lines>,
    changed: Condvar,
}

impl Console {
    fn lock(&self) -> MutexGuard<'_, Lines> {
        // Whoever panicked holding it left whole lines: there is no state between.
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write(&self, bytes: &[u8]) {
        let mut lines = self.lock();
        for &byte in bytes {
            if byte != b'\n' {
                if lines.partial.len() < LINE_BYTES_MAX {
                    lines.partial.push(byte);
                }
                continue;
            }
            let line = std::mem::take(&mut lines.partial);
            let report = Report::parse(&String::from_utf8_lossy(&line));
            if matches!(report, Report::Bad(_)) {
                lines.bad += 1;
            }
            let seen = Seen { index: lines.next, at: Instant::now(), report };
            lines.next += 1;
            lines.kept.push_back(seen);
            if lines.kept.len() > LINES_MAX {
                lines.kept.pop_front();
            }
            self.changed.notify_all();
        }
    }

    pub(super) fn end(&self, reason: String) {
        self.lock().ended.get_or_insert(reason);
        self.changed.notify_all();
    }

    /// Why the vCPU has ended, if it has.
    #[must_use]
    pub fn ended(&self) -> Option<String> {
        self.lock().ended.clone()
    }

    /// Number of reports so far: what comes next has this index.
    #[must_use]
    pub fn next_index(&self) -> u64 {
        self.lock().next
    }

    /// Reports of wrong pages so far.
    #[must_use]
    pub fn bad_reports(&self) -> u64 {
        self.lock().bad
    }

    /// The reports from `from` on that are still kept (the last 4,096).
    #[must_use]
    pub fn since(&self, from: u64) -> Vec<Seen> {
        self.lock().kept.iter().filter(|seen| seen.index >= from).cloned().collect()
    }

    /// Waits for the first report with index ≥ `from` that `wanted` takes. `None` when time is up or the VM ended.
    pub fn wait(&self, from: u64, timeout: Duration, wanted: impl Fn(&Report) -> bool) -> Option<Seen> {
        let deadline = Instant::now() + timeout;
        let mut lines = self.lock();
        loop {
            if let Some(seen) = lines.kept.iter().find(|seen| seen.index >= from && wanted(&seen.report)) {
                return Some(seen.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || lines.ended.is_some() {
                return None;
            }
            lines = self.changed.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
