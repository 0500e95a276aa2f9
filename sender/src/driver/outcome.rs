//! What a transfer tells while it runs and when it is over.

use super::{DepartureOutcome, Transfer};
use crate::guests::Clones;
use crate::page_service::PageStats;
use crate::session::{Phase, SessionStats};
use net::udp::SenderStats;
use std::time::Duration;
use wire::control::HostStats;

/// A moment of a transfer.
#[derive(Clone, Debug)]
pub struct Progress {
    /// Since the start.
    pub elapsed: Duration,
    /// Data flow; before, hosts are being connected to.
    pub started: bool,
    /// Each host's phase, encoded bytes that it has, and those known to be needed.
    pub hosts: Vec<(Phase, u64, u64)>,
    /// Encoded bytes expected for each host in all.
    pub expected_bytes: Vec<u64>,
    /// Pacing rate in bytes per second.
    pub rate_bytes_per_s: u64,
    /// Counters.
    pub stats: SessionStats,
    /// Clones that are to be started, by number.
    pub clones: Clones,
    /// Pages answered to guests.
    pub pages: PageStats,
    /// VMs that leave.
    pub departures: Vec<DepartureOutcome>,
}

/// What became of one host.
#[derive(Clone, Debug, serde::Serialize)]
pub struct HostOutcome {
    /// Its name.
    pub name: String,
    /// `complete`, or `failed` with the reason.
    #[serde(flatten)]
    pub phase: Phase,
    /// From the start to its last image, in seconds.
    pub complete_s: Option<f64>,
    /// Indexes of VMs that are complete there.
    pub vms: Vec<u16>,
    /// Encoded bytes that it needed, as far as they were encoded: not those that its groups carried for others.
    pub needed_bytes: u64,
    /// What it cost there; only of complete hosts.
    #[serde(skip)]
    pub stats: Option<HostStats>,
}

/// What a transfer did.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Each host.
    pub hosts: Vec<HostOutcome>,
    /// Counters.
    pub stats: SessionStats,
    /// What the data sockets sent.
    pub sockets: SenderStats,
    /// From the start to the last host's end.
    pub wall: Duration,
    /// From the start to the first datagram.
    pub started: Option<Duration>,
    /// CPU time of this process.
    pub cpu: Duration,
    /// When each segment's first symbol went out.
    pub segments: Vec<(usize, Duration)>,
    /// Clones that were to be started, by number.
    pub clones: Clones,
    /// Pages answered to guests.
    pub pages: PageStats,
    /// For each VM that was started: pages that its clones missed when they touched them, in the order of the first faults.
    pub first_faults: Vec<(u16, Vec<u32>)>,
    /// VMs that left, or were to.
    pub departures: Vec<DepartureOutcome>,
}

impl Outcome {
    /// Whether every host has every image.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.hosts.iter().all(|host| host.phase == Phase::Complete)
    }
}

impl Transfer {
    pub(super) fn progress(&self) -> Progress {
        let hosts = 0..self.config.hosts.len();
        Progress {
            elapsed: self.start.elapsed(),
            started: self.session.started_at().is_some(),
            hosts: hosts
                .clone()
                .map(|host| (self.session.phase(host).clone(), self.session.progress(host)))
                .map(|(phase, (done, known))| (phase, done, known))
                .collect(),
            expected_bytes: hosts.map(|host| self.session.expected_bytes(host)).collect(),
            rate_bytes_per_s: self.session.rate_bytes_per_s(),
            stats: self.session.stats().clone(),
            clones: self.guests.clones.clone(),
            pages: self.guests.service.stats(),
            departures: self.departures.outcomes(&self.guests.clones),
        }
    }

    pub(super) fn outcome(self, wall: Duration) -> Outcome {
        let host = |(host, target): (usize, &super::HostTarget)| HostOutcome {
            name: target.name.clone(),
            phase: self.session.phase(host).clone(),
            complete_s: self.complete_at[host].map(|at| at.as_secs_f64()),
            vms: self.vm_complete[host].clone(),
            needed_bytes: self.needed_bytes[host],
            stats: self.session.host_stats(host).cloned(),
        };
        Outcome {
            hosts: self.config.hosts.iter().enumerate().map(host).collect(),
            stats: self.session.stats().clone(),
            sockets: self.transmitter.stats(),
            wall,
            started: self.session.started_at(),
            cpu: usage::cpu().saturating_sub(self.cpu_at_start),
            segments: self.segment_log.clone(),
            clones: self.guests.clones.clone(),
            pages: self.guests.service.stats(),
            first_faults: (self.config.guests.iter())
                .map(|guest| (guest.vm, self.guests.service.first_faults(guest.vm).to_vec()))
                .collect(),
            departures: self.departures.outcomes(&self.guests.clones),
        }
    }
}
