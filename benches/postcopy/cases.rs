//! The cases: patterns of access, with and without blocks, under each strategy.

use crate::Options;
use crate::results::{Results, Sample};
use crate::trace::{Access, first_touches};
use crate::world::{Site, Way};
use std::time::Duration;
use wire::control::Paging;

/// Hosts of the runs with several.
const HOSTS: usize = 4;
/// Without blocks: less than one in all of a run.
const NO_BLOCKS_BYTES_PER_S: u64 = 1_000;
/// Hosts find out after a second that no blocks come at all.
const STALL: Duration = Duration::from_millis(1_250);

/// How pages are brought before a guest waits for them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Strategy {
    /// Not at all, beside blocks.
    Off,
    /// 16 pages behind a fault, 8 before it.
    Around,
    /// An earlier clone's first touches, in their order.
    WorkingSet,
    /// The same; the guest starts when they are there.
    WorkingSetFirst,
    /// This clone's own first touches, in their order.
    Oracle,
}

impl Strategy {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Around => "around",
            Self::WorkingSet => "working set",
            Self::WorkingSetFirst => "working set, then start",
            Self::Oracle => "oracle order",
        }
    }
}

/// What a sample is of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, serde::Serialize)]
pub(crate) struct Case {
    pub(crate) access: Access,
    /// Blocks come by multicast beside answers.
    pub(crate) blocks: bool,
    pub(crate) strategy: Strategy,
    pub(crate) hosts: usize,
    /// Faults of several hosts are answered by their group.
    pub(crate) shared: bool,
    /// The sender is interrupted when the last of two guests runs.
    pub(crate) peers: bool,
}

fn all() -> Vec<Case> {
    use Strategy::{Around, Off, Oracle, WorkingSet, WorkingSetFirst};
    let mut cases = Vec::new();
    for access in Access::ALL {
        let case = Case { access, blocks: true, strategy: Off, hosts: 1, shared: true, peers: false };
        cases.extend([Off, WorkingSet, WorkingSetFirst, Oracle].map(|strategy| Case { strategy, ..case }));
        let without = Case { blocks: false, ..case };
        cases.extend([Off, Around, WorkingSet, Oracle].map(|strategy| Case { strategy, ..without }));
    }
    for shared in [false, true] {
        let access = Access::HotSet;
        cases.push(Case { access, blocks: true, strategy: Off, hosts: HOSTS, shared, peers: false });
    }
    let access = Access::Random;
    cases.push(Case { access, blocks: true, strategy: Off, hosts: 2, shared: true, peers: true });
    cases
}

/// Runs every case once.
pub(crate) fn measure(options: &Options, repetition: u32, results: &mut Results) -> anyhow::Result<()> {
    let site = Site::new(HOSTS)?;
    let traces: Vec<(Access, Option<[Vec<u32>; 2]>)> = Access::ALL
        .map(|access| {
            let of = |instance| access.trace(options.seed + u64::from(repetition), instance);
            (access, of(0).zip(of(1)).map(|(own, earlier)| [own, earlier]))
        })
        .into();
    for case in all().into_iter().filter(|case| options.access.contains(&case.access)) {
        let known = traces.iter().find(|(access, _)| *access == case.access);
        let Some([own, earlier]) = known.and_then(|(_, traces)| traces.as_ref()) else {
            eprintln!("no trace of {}: no KVM or userfaultfd here", case.access.name());
            continue;
        };
        let way = way(case, options.rate / 8, own, earlier);
        let (played, outcome) = site.run(&way, own)?;
        for guest in &played[if case.peers { 1 } else { 0 }..] {
            let sample = Sample::new(case, repetition, first_touches(own).len(), guest, &outcome);
            eprintln!("{}", sample.line());
            results.samples.push(sample);
        }
        if let Some(out) = &options.out {
            results.write(out)?;
        }
    }
    Ok(())
}

fn way(case: Case, bytes_per_s: u64, own: &[u32], earlier: &[u32]) -> Way {
    let working_set = match case.strategy {
        Strategy::Off | Strategy::Around => Vec::new(),
        Strategy::WorkingSet | Strategy::WorkingSetFirst => first_touches(earlier),
        Strategy::Oracle => first_touches(own),
    };
    Way {
        hosts: case.hosts,
        pages: case.access.pages(),
        bytes_per_s: if case.blocks { bytes_per_s } else { NO_BLOCKS_BYTES_PER_S },
        paging: Paging {
            around: if case.strategy == Strategy::Around { 16 } else { 0 },
            working_set: !working_set.is_empty(),
            wait_ms: if case.strategy == Strategy::WorkingSetFirst { 1_000 } else { 0 },
        },
        working_set,
        shared_faults: case.shared,
        last_is_late: case.peers,
        delay: if case.blocks { Duration::ZERO } else { STALL },
    }
}
