//! A transfer while it runs, and when it is over.

use crate::fleet::{PATIENCE, name};
use crate::process::Running;
use lab::hosts::Lab;
use serde_json::Value;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A transfer under way.
pub(crate) struct Sending {
    pub(crate) running: Running,
    pub(crate) report: PathBuf,
    pub(crate) meter: Meter,
}

impl Sending {
    /// Waits until the sender's link has carried so many bytes since the start.
    #[track_caller]
    pub(crate) fn await_sent(&mut self, bytes: u64) {
        let deadline = Instant::now() + PATIENCE;
        while self.meter.sent() < bytes {
            let going = self.running.is_alive() && Instant::now() < deadline;
            assert!(going, "only {} of {bytes} bytes were sent:\n{}", self.meter.sent(), self.running.said());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits for its end.
    #[track_caller]
    pub(crate) fn finish(mut self) -> Sent {
        let status = self.running.wait(PATIENCE);
        let report = fs::read_to_string(&self.report).ok();
        let report = report.map_or(Value::Null, |text| serde_json::from_str(&text).expect("a JSON report"));
        Sent { code: status.code(), said: self.running.said(), report, samples: self.meter.stop() }
    }
}

/// Times, and bytes sent until then.
type Samples = Vec<(Instant, u64)>;

/// A transfer that is over.
pub(crate) struct Sent {
    pub(crate) code: Option<i32>,
    pub(crate) said: String,
    pub(crate) report: Value,
    /// Bytes on the sender's link since the start, every few milliseconds.
    pub(crate) samples: Samples,
}

impl Sent {
    /// Asserts that everything was done.
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        self.ended(0)
    }

    /// Asserts that it ended with this exit code.
    #[track_caller]
    pub(crate) fn ended(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{}", self.said);
        self
    }

    /// A figure of the report's `network`.
    pub(crate) fn network(&self, figure: &str) -> u64 {
        self.report["network"][figure].as_u64().unwrap_or_else(|| panic!("no {figure} in {}", self.report))
    }

    /// A host's part of the report.
    pub(crate) fn host(&self, host: u16) -> &Value {
        let hosts = self.report["hosts"].as_array().expect("hosts in the report");
        hosts.iter().find(|entry| entry["name"] == name(host)).expect("a host of the plan")
    }

    /// Why a host failed.
    #[track_caller]
    pub(crate) fn reason(&self, host: u16) -> &str {
        assert_eq!(self.host(host)["state"], "failed", "{}", self.said);
        self.host(host)["reason"].as_str().expect("a failed host has a reason")
    }

    /// Seconds from the first datagram until a host was complete.
    #[track_caller]
    pub(crate) fn complete_s(&self, host: u16) -> f64 {
        let complete = self.host(host)["complete_s"].as_f64();
        let first = self.report["times"]["first_datagram_s"].as_f64().expect("datagrams were sent");
        complete.unwrap_or_else(|| panic!("{} is not complete:\n{}", name(host), self.said)) - first
    }

    /// When the last of these hosts was complete.
    #[track_caller]
    pub(crate) fn last_complete_s(&self, hosts: impl Iterator<Item = u16>) -> f64 {
        hosts.map(|host| self.complete_s(host)).fold(0.0, f64::max)
    }
}

/// Reads the sender's interface's counter every few milliseconds, on its host.
pub(crate) struct Meter {
    sent: Arc<AtomicU64>,
    stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<Samples>>>,
}

impl Meter {
    pub(crate) fn start(lab: &Lab) -> Self {
        let (sent, stopped) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (out, end) = (Arc::clone(&sent), Arc::clone(&stopped));
        let (interface, before) = (lab.host(0).interface(), lab.counters(0).expect("counters").host.tx_bytes);
        let read = move || {
            let mut samples = Vec::new();
            while !end.load(Ordering::Relaxed) {
                let bytes = tx_bytes(interface) - before;
                out.store(bytes, Ordering::Relaxed);
                samples.push((Instant::now(), bytes));
                std::thread::sleep(Duration::from_millis(3));
            }
            samples
        };
        Self { sent, stopped, thread: Some(lab.host(0).spawn(read)) }
    }

    /// Bytes sent since the start.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    fn stop(mut self) -> Samples {
        self.stopped.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("stopped once");
        thread.join().expect("it does not panic").expect("entered")
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}

/// Bytes sent by an interface of the calling thread's network (proc(5), `/proc/net/dev`).
fn tx_bytes(interface: &str) -> u64 {
    let table = fs::read_to_string("/proc/thread-self/net/dev").expect("a table of interfaces");
    let line = table.lines().find_map(|line| line.trim_start().strip_prefix(interface)?.strip_prefix(':'));
    let field = line.and_then(|line| line.split_whitespace().nth(8)).expect("the interface's line");
    field.parse().expect("a number")
}
