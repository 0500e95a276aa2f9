//! Samples, and the table that they make.

use crate::cases::Case;
use crate::local::Local;
use crate::player::Played;
use sender::driver::Outcome;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::process::Command;
use vmm::uffd::Histogram;

/// Faults that one source answered.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Source {
    pub(crate) faults: u64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
}

impl Source {
    fn of(histogram: &Histogram) -> Self {
        let us = |share| histogram.quantile(share).unwrap_or_default().as_secs_f64() * 1e6;
        Self { faults: histogram.count(), p50_us: us(0.5), p99_us: us(0.99) }
    }
}

/// One guest of one run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Sample {
    pub(crate) case: Case,
    pub(crate) repetition: u32,
    /// Pages that it touched, each once.
    pub(crate) touched: usize,
    /// Network faults by pages touched.
    pub(crate) ratio: f64,
    /// Sum of the times that its touches waited.
    pub(crate) stall_ms: f64,
    pub(crate) wall_ms: f64,
    pub(crate) here: Source,
    pub(crate) block: Source,
    pub(crate) sender: Source,
    pub(crate) peer: Source,
    /// Of all guests of the run: pages answered, sent ahead, brought by a group's block in place of answers, and such that were late.
    pub(crate) answered: u64,
    pub(crate) ahead: u64,
    pub(crate) shared: u64,
    pub(crate) late: u64,
    /// Bytes of answers.
    pub(crate) answer_bytes: u64,
    /// The machine's load before, one minute's average.
    pub(crate) load: String,
}

impl Sample {
    pub(crate) fn new(
        case: Case,
        repetition: u32,
        touched: usize,
        played: &Played,
        outcome: &Outcome,
    ) -> Self {
        let (faults, pages) = (&played.faults, &outcome.pages);
        #[expect(clippy::cast_precision_loss, reason = "thousands of pages")]
        let ratio = faults.network() as f64 / touched as f64;
        Self {
            case,
            repetition,
            touched,
            ratio,
            stall_ms: played.stall.as_secs_f64() * 1e3,
            wall_ms: played.wall.as_secs_f64() * 1e3,
            here: Source::of(&faults.here),
            block: Source::of(&faults.by_block),
            sender: Source::of(&faults.by_sender),
            peer: Source::of(&faults.by_peer),
            answered: pages.answered,
            ahead: pages.ahead,
            shared: pages.shared,
            late: pages.late,
            answer_bytes: pages.bytes,
            load: std::fs::read_to_string("/proc/loadavg").unwrap_or_default(),
        }
    }

    pub(crate) fn line(&self) -> String {
        let Self { case, ratio, stall_ms, sender, block, peer, .. } = self;
        format!(
            "{:20} blocks {:5} {:24} hosts {} shared {:5} peers {:5}: {:5.1} % network faults, stall {stall_ms:7.1} ms; sender {} p50 {:.0} p99 {:.0}; block {} p50 {:.0} p99 {:.0}; peer {} p50 {:.0} p99 {:.0} µs; {} answered, {} shared, {} late",
            case.access.name(),
            case.blocks,
            case.strategy.name(),
            case.hosts,
            case.shared,
            case.peers,
            ratio * 100.0,
            sender.faults,
            sender.p50_us,
            sender.p99_us,
            block.faults,
            block.p50_us,
            block.p99_us,
            peer.faults,
            peer.p50_us,
            peer.p99_us,
            self.answered,
            self.shared,
            self.late,
        )
    }
}

/// Everything measured.
#[derive(Serialize)]
pub(crate) struct Results {
    format: u32,
    command: String,
    commit: String,
    kernel: String,
    cpu: String,
    cpus: usize,
    seed: u64,
    rate_bps: u64,
    repetitions: u32,
    pub(crate) local: Vec<Local>,
    pub(crate) samples: Vec<Sample>,
}

impl Results {
    pub(crate) fn new(seed: u64, rate_bps: u64, repetitions: u32) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let cpu = read("/proc/cpuinfo");
        let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
        let commit =
            Command::new("git").args(["rev-parse", "HEAD"]).current_dir(env!("CARGO_MANIFEST_DIR")).output();
        Self {
            format: 1,
            command: format!(
                "cargo bench --bench postcopy -- --seed {seed} --rate {rate_bps} --repetitions {repetitions}"
            ),
            commit: commit
                .map(|out| String::from_utf8_lossy(&out.stdout).trim().to_owned())
                .unwrap_or_default(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            cpu: cpu.trim_start_matches([' ', '\t', ':']).to_owned(),
            cpus: std::thread::available_parallelism().map_or(1, Into::into),
            seed,
            rate_bps,
            repetitions,
            local: Vec::new(),
            samples: Vec::new(),
        }
    }

    pub(crate) fn write(&self, path: &Path) -> anyhow::Result<()> {
        Ok(std::fs::write(path, serde_json::to_string_pretty(self)? + "\n")?)
    }

    /// Medians over repetitions and guests, as Markdown.
    pub(crate) fn table(&self) -> String {
        let mut out =
            String::from("| Handler | Clients | Faults/s | p50 | p99 |\n| --- | --- | --- | --- | --- |\n");
        let mut local: BTreeMap<(usize, &str), Vec<&Local>> = BTreeMap::new();
        for sample in &self.local {
            local.entry((sample.clients, sample.handler)).or_default().push(sample);
        }
        for ((clients, handler), samples) in local {
            let of =
                |figure: fn(&Local) -> f64| median(samples.iter().map(|sample| figure(sample)).collect());
            let (rate, p50, p99) = (of(|s| s.faults_per_s), of(|s| s.p50_us), of(|s| s.p99_us));
            let _ = writeln!(out, "| {handler} | {clients} | {rate:.0} | {p50:.1} µs | {p99:.1} µs |");
        }
        out += "\n| Access | Blocks | Strategy | Hosts | Network faults | Stall | Sender: faults, p50, p99 | Block: faults, p50, p99 | Peer: faults, p50, p99 | Answered, ahead, shared, late |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n";
        let mut cases: BTreeMap<Case, Vec<&Sample>> = BTreeMap::new();
        for sample in &self.samples {
            cases.entry(sample.case).or_default().push(sample);
        }
        for (case, samples) in cases {
            let of = |figure: &dyn Fn(&Sample) -> f64| {
                median(samples.iter().map(|sample| figure(sample)).collect())
            };
            let source = |source: fn(&Sample) -> Source| {
                #[expect(clippy::cast_precision_loss, reason = "thousands of faults")]
                let faults = of(&|sample| source(sample).faults as f64);
                if faults == 0.0 {
                    return "–".to_owned();
                }
                let (p50, p99) = (of(&|sample| source(sample).p50_us), of(&|sample| source(sample).p99_us));
                format!("{faults:.0}, {p50:.0} µs, {p99:.0} µs")
            };
            #[expect(clippy::cast_precision_loss, reason = "thousands of pages")]
            let pages = |figure: fn(&Sample) -> u64| of(&|sample| figure(sample) as f64);
            let how = match (case.peers, case.shared || case.hosts == 1) {
                (true, _) => ", sender lost",
                (_, true) => "",
                (_, false) => ", unicast only",
            };
            let _ = writeln!(
                out,
                "| {} | {} | {}{how} | {} | {:.1} % | {:.0} ms | {} | {} | {} | {:.0}, {:.0}, {:.0}, {:.0} |",
                case.access.name(),
                if case.blocks { "yes" } else { "no" },
                case.strategy.name(),
                case.hosts,
                of(&|sample| sample.ratio * 100.0),
                of(&|sample| sample.stall_ms),
                source(|sample| sample.sender),
                source(|sample| sample.block),
                source(|sample| sample.peer),
                pages(|sample| sample.answered),
                pages(|sample| sample.ahead),
                pages(|sample| sample.shared),
                pages(|sample| sample.late),
            );
        }
        out
    }
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or_default()
}
