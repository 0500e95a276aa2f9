//! Samples, their medians and ratios, and the file that keeps them.

use crate::cases::Case;
use crate::machine::Machine;
use crate::options::Options;
use crate::programs::{Program, Run};
use serde::Serialize;
use std::path::Path;

/// One run of one program.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Sample {
    pub(crate) case: Case,
    pub(crate) repetition: u16,
    pub(crate) program: String,
    pub(crate) bytes: u64,
    /// Of the machine before the run, one minute's average.
    pub(crate) load: f64,
    /// From the start of the data phase to the last host's completion.
    pub(crate) data_s: Option<f64>,
    /// From the sender's start to its end, receivers waiting.
    pub(crate) wall_s: Option<f64>,
    /// Of each receiver: the file's bits in `data_s`, if every host has it.
    pub(crate) goodput_gbps: Option<f64>,
    /// The same in `wall_s`.
    pub(crate) wall_goodput_gbps: Option<f64>,
    pub(crate) link_bytes: Option<u64>,
    /// Every host has the file, byte for byte.
    pub(crate) whole: bool,
    pub(crate) trouble: Option<String>,
    /// From scatter's own report.
    pub(crate) report: Option<serde_json::Value>,
}

impl Sample {
    pub(crate) fn new(
        case: Case,
        repetition: u16,
        program: &Program,
        bytes: u64,
        load: f64,
        run: anyhow::Result<Run>,
    ) -> Self {
        let (run, error) = match run {
            Ok(run) => (Some(run), None),
            Err(error) => (None, Some(format!("{error:#}"))),
        };
        let whole = run.as_ref().is_some_and(|run| run.whole && run.trouble.is_none());
        // A file has less than 2⁵³ bytes.
        #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
        let gbps = |seconds: f64| whole.then_some(bytes as f64 * 8e-9 / seconds);
        let data_s = run.as_ref().map(|run| run.data.as_secs_f64());
        let wall_s = run.as_ref().map(|run| run.wall.as_secs_f64());
        Self {
            case,
            repetition,
            program: program.name().to_owned(),
            bytes,
            load,
            data_s,
            wall_s,
            goodput_gbps: data_s.and_then(gbps),
            wall_goodput_gbps: wall_s.and_then(gbps),
            link_bytes: run.as_ref().map(|run| run.link_bytes),
            whole,
            trouble: error.or(run.as_ref().and_then(|run| run.trouble.clone())),
            report: run.and_then(|run| run.report),
        }
    }
}

/// A ratio beside the figure that it should reach.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Ratio {
    /// Median over the repetitions, each within its own; none if either side had no whole run.
    pub(crate) value: Option<f64>,
    pub(crate) required: Option<f64>,
}

impl Ratio {
    /// Nothing where nothing is required or could be compared.
    pub(crate) fn verdict(self) -> Option<bool> {
        Some(self.value? >= self.required?)
    }
}

/// A case's figures for `scatter`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figures {
    pub(crate) case: Case,
    /// Medians of the goodput in Gb/s for each receiver, by program, in the programs' order.
    pub(crate) goodput_gbps: Vec<(String, Option<f64>)>,
    pub(crate) wall_goodput_gbps: Vec<(String, Option<f64>)>,
    pub(crate) to_tcp_write: Ratio,
    pub(crate) to_tcp_sendfile: Ratio,
    /// To the faster of the two that drop what they receive: the hardest case, nothing is required.
    pub(crate) to_tcp_dropped: Ratio,
    pub(crate) to_tls: Ratio,
    /// To the faster of UFTP and udpcast.
    pub(crate) to_multicast: Ratio,
    /// To our own without loss.
    pub(crate) to_lossless: Ratio,
}

/// Everything measured.
#[derive(Serialize)]
pub(crate) struct Results {
    format: u32,
    command: String,
    seed: u64,
    pub(crate) machine: Machine,
    pub(crate) samples: Vec<Sample>,
}

const OURS: &str = "scatter";

impl Results {
    pub(crate) fn new(options: &Options) -> Self {
        Self {
            format: 1,
            command: options.command(),
            seed: options.seed,
            machine: Machine::look(),
            samples: Vec::new(),
        }
    }

    /// Whether every transfer of ours brought every host its image, byte for byte.
    pub(crate) fn ours_is_whole(&self) -> bool {
        self.samples.iter().filter(|sample| sample.program.starts_with(OURS)).all(|sample| sample.whole)
    }

    /// Programs in the order of their first run.
    pub(crate) fn programs(&self) -> Vec<String> {
        let mut programs: Vec<String> = Vec::new();
        for known in Program::all() {
            if self.samples.iter().any(|sample| sample.program == known.name()) {
                programs.push(known.name().to_owned());
            }
        }
        for sample in &self.samples {
            if !programs.contains(&sample.program) {
                programs.push(sample.program.clone());
            }
        }
        programs
    }

    /// A line of figures for each case.
    pub(crate) fn figures(&self) -> Vec<Figures> {
        let mut cases: Vec<Case> = self.samples.iter().map(|sample| sample.case).collect();
        cases.sort_unstable();
        cases.dedup();
        cases.into_iter().map(|case| self.figures_of(case)).collect()
    }

    fn figures_of(&self, case: Case) -> Figures {
        let of_each = |figure: fn(&Sample) -> Option<f64>| -> Vec<(String, Option<f64>)> {
            let median_of = |program: String| {
                let samples = self.samples.iter().filter(|s| s.case == case && s.program == program);
                let median = median(samples.filter_map(figure).collect());
                (program, median)
            };
            self.programs().into_iter().map(median_of).collect()
        };
        let ratio = |others: &[&str], required| Ratio { value: self.ratio(case, case, others), required };
        let tcp = Some(case.required_of_tcp());
        let lossless = self.ratio(case, case.without_loss(), &[OURS]);
        Figures {
            case,
            goodput_gbps: of_each(|sample| sample.goodput_gbps),
            wall_goodput_gbps: of_each(|sample| sample.wall_goodput_gbps),
            to_tcp_write: ratio(&["tcp-write"], tcp),
            to_tcp_sendfile: ratio(&["tcp-sendfile"], tcp),
            to_tcp_dropped: ratio(&["tcp-write-dropped", "tcp-sendfile-dropped"], None),
            to_tls: ratio(&["tls"], case.required_of_tls()),
            to_multicast: ratio(&["uftp", "udpcast"], Some(Case::required_of_multicast())),
            to_lossless: Ratio {
                value: lossless.filter(|_| case.loss_permille > 0),
                required: case.required_of_ours(),
            },
        }
    }

    /// Our goodput in `case` by the best one's of `others` in `other_case`: the median of the repetitions' ratios, so that a
    /// machine that is slower for a while does not count.
    fn ratio(&self, case: Case, other_case: Case, others: &[&str]) -> Option<f64> {
        let best = |case: Case, repetition: u16, programs: &[&str]| {
            let samples =
                self.samples.iter().filter(|sample| sample.case == case && sample.repetition == repetition);
            let figures = samples.filter(|sample| programs.contains(&sample.program.as_str()));
            figures.filter_map(|sample| sample.goodput_gbps).reduce(f64::max)
        };
        let repetitions = self.samples.iter().map(|sample| sample.repetition).max()?;
        let ratios = (0..=repetitions).filter_map(|repetition| {
            Some(best(case, repetition, &[OURS])? / best(other_case, repetition, others)?)
        });
        median(ratios.collect())
    }

    pub(crate) fn write(&self, path: &Path) -> anyhow::Result<()> {
        #[derive(Serialize)]
        struct Whole<'a> {
            #[serde(flatten)]
            results: &'a Results,
            figures: Vec<Figures>,
        }
        let whole = Whole { results: self, figures: self.figures() };
        std::fs::write(path, serde_json::to_string_pretty(&whole)? + "\n")?;
        Ok(())
    }
}

fn median(mut figures: Vec<f64>) -> Option<f64> {
    figures.sort_by(f64::total_cmp);
    let middle = figures.len() / 2;
    match figures.len() {
        0 => None,
        length if length % 2 == 1 => Some(figures[middle]),
        _ => Some((figures[middle - 1] + figures[middle]) / 2.0),
    }
}
