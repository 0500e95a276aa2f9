//! What a transfer did, gathered for its report.

use crate::report::{
    CaptureReport, ClassReport, Cost, DepartureReport, HostFigures, HostReport, Network, RehearsalReport,
    SegmentReport, Settings, Times, TransferReport, VmReport,
};
use crate::units;
use pages::merge::{ClassCount, ClassCounts};
use planner::Plan;
use sender::driver::{self, DepartureOutcome, HostOutcome, Schedule};
use sender::prepare::Prepared;
use sender::session::Phase;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use wire::control::HostStats;

/// IPv4, UDP and Ethernet headers of a datagram; IPv6's are 20 bytes longer.
const HEADERS_V4_BYTES: u64 = 20 + 8 + 14;
const HEADERS_V6_BYTES: u64 = 40 + 8 + 14;

/// A transfer, from its plan to its outcome.
pub(super) struct Sent<'a> {
    plan: &'a Plan,
    prepared: &'a Arc<Prepared>,
    schedule: &'a Schedule,
    settings: Settings,
    prepare: Duration,
    anonymous_peak: u64,
    pub(super) started_at: SystemTime,
    pub(super) outcome: Option<driver::Outcome>,
    pub(super) captures: Vec<CaptureReport>,
    pub(super) rehearsals: Vec<RehearsalReport>,
    /// What clones were given first, by VM.
    pub(super) working_sets: BTreeMap<u16, Vec<u32>>,
}

impl<'a> Sent<'a> {
    pub(super) fn new(
        plan: &'a Plan,
        prepared: &'a Arc<Prepared>,
        schedule: &'a Schedule,
        settings: Settings,
        prepare: Duration,
    ) -> Self {
        let (started_at, outcome) = (SystemTime::now(), None);
        Self {
            plan,
            prepared,
            schedule,
            settings,
            prepare,
            anonymous_peak: 0,
            started_at,
            outcome,
            captures: Vec::new(),
            rehearsals: Vec::new(),
            working_sets: BTreeMap::new(),
        }
    }

    /// Pages of a VM.
    pub(super) fn page_count(&self, vm: u16) -> u32 {
        self.prepared.index.page_count(pages::VmId(vm))
    }

    /// Memory beyond the images is not kept as a peak by the kernel.
    pub(super) fn look_at_memory(&mut self) {
        self.anonymous_peak = self.anonymous_peak.max(usage::memory().anonymous);
    }

    pub(super) fn report(mut self, interrupted: bool) -> TransferReport {
        self.look_at_memory();
        let outcome = self.outcome.take().expect("reported after the transfer");
        let hosts: Vec<HostReport> =
            self.plan.hosts.iter().zip(&outcome.hosts).map(|(host, end)| self.host(host, end)).collect();
        let complete = hosts.iter().filter(|host| host.is_complete()).count();
        let vouched = self.captures.iter().all(|capture| capture.disturbed.is_none());
        let state = match complete {
            _ if !vouched => "failed",
            count if count == hosts.len() => "complete",
            _ if interrupted => "interrupted",
            0 => "failed",
            _ => "partial",
        };
        let images = |host: &HostReport| -> u64 {
            let there =
                self.plan.vms.iter().zip(&self.prepared.vms).filter(|(vm, _)| host.vms.contains(&vm.name));
            there.map(|(_, input)| input.file_len).sum()
        };
        let delivered_bytes = hosts.iter().map(images).sum();
        let plan_picture = self.plan_picture();
        TransferReport {
            version: 1,
            scatter: env!("CARGO_PKG_VERSION").to_owned(),
            name: self.plan.name.clone(),
            source: self.plan.source.name.clone(),
            state: state.to_owned(),
            started_unix_s: self.started_at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            vms: self.vms(),
            captures: self.captures.clone(),
            clones: super::clones::report(
                self.plan,
                &outcome,
                self.prepare,
                std::mem::take(&mut self.rehearsals),
            ),
            departures: self.departures(&outcome),
            classes: self.classes(),
            delivered_bytes,
            network: self.network(&outcome),
            times: Times {
                prepare_s: self.prepare.as_secs_f64(),
                first_datagram_s: outcome.started.map(|started| started.as_secs_f64()),
                transfer_s: outcome.wall.as_secs_f64(),
                total_s: (self.prepare + outcome.wall).as_secs_f64(),
            },
            cost: self.cost(&outcome),
            segments: self.segments(&outcome),
            hosts,
            settings: self.settings,
            plan_picture,
            comparison: None,
        }
    }

    /// What VMs have in common is drawn as it was found.
    fn plan_picture(&self) -> Option<String> {
        self.plan.predicted.as_ref()?;
        let index = &self.prepared.index;
        let bytes = |contents: u64| contents * pages::PAGE_SIZE as u64;
        let sets = index.signatures().iter().zip(index.signature_weights());
        let sets = sets.map(|(vms, contents)| (vms.iter().collect(), bytes(contents))).collect();
        Some(planner::picture::svg(self.plan, Some(&planner::picture::Sharing { sets })))
    }

    fn host(&self, host: &planner::inventory::Host, end: &HostOutcome) -> HostReport {
        let reason = match &end.phase {
            Phase::Failed { reason } => Some(reason.clone()),
            _ => None,
        };
        HostReport {
            name: host.name.clone(),
            address: host.address.clone(),
            state: if end.phase == Phase::Complete { "complete" } else { "failed" }.to_owned(),
            reason,
            complete_s: end.complete_s,
            needed_bytes: end.needed_bytes,
            vms: end
                .vms
                .iter()
                .filter_map(|vm| Some(self.plan.vms.get(usize::from(*vm))?.name.clone()))
                .collect(),
            figures: end.stats.as_ref().map(figures),
        }
    }

    fn vms(&self) -> Vec<VmReport> {
        let vm = |(planned, input): (&planner::plan::PlannedVm, &sender::prepare::VmInput)| VmReport {
            name: planned.name.clone(),
            image: planned.image.clone(),
            bytes: input.file_len,
            hosts: planned.hosts.clone(),
        };
        self.plan.vms.iter().zip(&self.prepared.vms).map(vm).collect()
    }

    /// VMs that left, each with its own pages.
    fn departures(&self, outcome: &driver::Outcome) -> Vec<DepartureReport> {
        if outcome.departures.is_empty() {
            return Vec::new();
        }
        let classes = self.prepared.classes_by_vm();
        let classes = |name: &str| {
            let at = self.plan.vms.iter().position(|vm| vm.name == name);
            at.map(|at| named(&classes[at])).unwrap_or_default()
        };
        let report = |of: &DepartureOutcome| DepartureReport::of(of, self.prepare, classes(&of.vm));
        outcome.departures.iter().map(report).collect()
    }

    fn classes(&self) -> Vec<ClassReport> {
        named(&self.prepared.classes)
    }

    fn network(&self, outcome: &driver::Outcome) -> Network {
        let ipv6 = self.plan.pool().ok().and_then(|pool| pool.nth(0)).is_some_and(|group| group.is_ipv6());
        let headers = if ipv6 { HEADERS_V6_BYTES } else { HEADERS_V4_BYTES };
        let (stats, sockets) = (&outcome.stats, &outcome.sockets);
        Network {
            content_bytes: u64::from(self.prepared.index.content_count()) * pages::PAGE_SIZE as u64,
            encoded_bytes: stats.encoded_bytes,
            wire_bytes: sockets.bytes + sockets.datagrams * headers,
            datagrams: sockets.datagrams,
            source_datagrams: stats.source_datagrams,
            again_datagrams: stats.again_datagrams,
            cauchy_datagrams: stats.cauchy_datagrams,
            raptorq_datagrams: stats.raptorq_datagrams,
            blocks: stats.blocks,
            blocks_repaired: stats.blocks_repaired,
            blocks_skipped: stats.blocks_skipped,
            catch_up_blocks: stats.catch_up_blocks,
            catch_up_bytes: stats.catch_up_bytes,
            groups: self.schedule.channels.iter().filter(|channel| channel.group.is_some()).count() as u64,
            joins: stats.joins,
            leaves: stats.leaves,
        }
    }

    fn cost(&self, outcome: &driver::Outcome) -> Cost {
        let images: u64 = self.prepared.vms.iter().map(|vm| vm.file_len).sum();
        let cpu_s = usage::cpu().as_secs_f64();
        const GIB: f64 = (1_u64 << 30) as f64;
        Cost {
            cpu_s,
            cpu_s_per_gib: cpu_s / (units::float(images.max(1)) / GIB),
            peak_resident_bytes: usage::memory().peak_resident,
            peak_anonymous_bytes: self.anonymous_peak,
            index_bytes: self.prepared.index.peak_bytes() as u64,
            window_bytes: outcome.stats.window_peak_bytes,
        }
    }

    fn segments(&self, outcome: &driver::Outcome) -> Vec<SegmentReport> {
        let names = |hosts: &mut dyn Iterator<Item = usize>| -> Vec<String> {
            hosts.map(|host| self.plan.hosts[host].name.clone()).collect()
        };
        let segment = |(position, placed): (usize, &driver::ScheduledSegment)| {
            let channel = &self.schedule.channels[placed.channel];
            let start = outcome.segments.iter().find(|(logged, _)| *logged == position);
            let own = self.prepared.segments[placed.segment].hosts.iter().map(usize::from);
            let hosts = match channel.group {
                Some(_) => names(&mut own.into_iter()),
                None => names(&mut channel.hosts.iter().copied()),
            };
            SegmentReport {
                hosts,
                group: channel.group.map(|group| group.to_string()),
                content_bytes: self.prepared.segment_bytes(placed.segment),
                start_s: start.map(|(_, at)| at.as_secs_f64()),
            }
        };
        self.schedule.segments.iter().enumerate().map(segment).collect()
    }
}

fn named(classes: &ClassCounts) -> Vec<ClassReport> {
    let class = |(name, count): (&str, ClassCount)| ClassReport {
        name: name.to_owned(),
        pages: count.pages,
        contents: count.contents,
    };
    classes.by_name().into_iter().map(class).collect()
}

fn figures(stats: &HostStats) -> HostFigures {
    HostFigures {
        datagrams: stats.datagrams,
        rejected: stats.rejected,
        kernel_drops: stats.kernel_drops,
        redundant: stats.redundant,
        blocks_plain: stats.blocks_plain,
        blocks_cauchy: stats.blocks_cauchy,
        blocks_raptorq: stats.blocks_raptorq,
        blocks_unicast: stats.blocks_unicast,
        blocks_held: stats.blocks_held,
        digest_mismatches: stats.digest_mismatches,
        cpu_s: units::float(stats.cpu_us) / 1e6,
        peak_memory_bytes: stats.peak_memory_bytes,
    }
}
