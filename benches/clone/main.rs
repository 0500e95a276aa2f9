//! Running micro-VMs, cloned to hosts in namespaces: when they execute their first instruction, and what each needs beyond what they share.
//!
//! `cargo bench --bench clone -- --help`; benches/README.md says what is measured. Needs KVM and what the lab needs.

#![forbid(unsafe_code)]

#[path = "../fanout/machine.rs"]
mod machine;
mod run;

use anyhow::Context;
use clap::Parser;
use lab::hosts::reexec_in_user_namespace_if_needed;
use machine::{Machine, load};
use run::Sample;
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;

/// Clones of a running micro-VM on hosts in namespaces: first instructions, memory
#[derive(Parser, Debug)]
#[command(
    name = "clone",
    after_help = "\
Cases are named HOSTSxCLONES-ON-EACH. Examples:
  cargo bench --bench clone
  cargo bench --bench clone -- --cases 8x4,8x16 --repetitions 9 --out benches/results/clone/NAME.json
  cargo bench --bench clone -- --cases 8x16 --rest 200 --repetitions 3
  cargo bench --bench clone -- --cases 8x4 --versus before=/tmp/scatter-before"
)]
pub(crate) struct Options {
    /// The cases
    #[arg(long, value_delimiter = ',', default_values = ["4x2", "8x4"])]
    cases: Vec<String>,
    /// Repetitions
    #[arg(long, default_value_t = 5)]
    repetitions: u32,
    /// MiB of each guest
    #[arg(long, default_value_t = 64)]
    pub(crate) size: u64,
    /// Pages that each guest checks between two rests
    #[arg(long, default_value_t = 16)]
    pub(crate) step: u32,
    /// Milliseconds that each guest rests after that
    #[arg(long, default_value_t = 2)]
    pub(crate) rest: u32,
    /// Bits per second of the transfer
    #[arg(long, default_value = "500M")]
    pub(crate) rate: String,
    /// Another build of scatter, measured in the same run: LABEL=PATH
    #[arg(long, value_name = "LABEL=PATH")]
    versus: Vec<String>,
    /// Where hosts keep what they receive
    #[arg(long, default_value = "/dev/shm")]
    pub(crate) directory: PathBuf,
    /// Writes all samples as JSON, anew after each
    #[arg(long)]
    out: Option<PathBuf>,
    /// As cargo passes it
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Serialize)]
struct Results {
    machine: Machine,
    command: Vec<String>,
    samples: Vec<Sample>,
}

fn main() -> ExitCode {
    // Before any thread or file is made: this may start the program anew.
    let entered = reexec_in_user_namespace_if_needed();
    let options = Options::parse();
    match entered.map_err(anyhow::Error::from).and_then(|()| measure(&options)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("clone: a clone did not run, or found a wrong page");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("clone: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all clones were right.
fn measure(options: &Options) -> anyhow::Result<bool> {
    vmm::microvm::available()?;
    let mut programs = vec![("scatter".to_owned(), PathBuf::from(env!("CARGO_BIN_EXE_scatter")))];
    for versus in &options.versus {
        let (label, path) = versus.split_once('=').context("--versus needs LABEL=PATH")?;
        programs.push((label.to_owned(), path.into()));
    }
    let machine = Machine::look();
    println!("{}", machine.words());
    let mut results = Results { machine, command: std::env::args().collect(), samples: Vec::new() };
    println!("case   program      running  p50 ms  p99 ms  last ms  all there  own KiB/clone  load");
    for repetition in 0..options.repetitions {
        for case in &options.cases {
            let numbers = case
                .split_once('x')
                .and_then(|(hosts, each)| Some((hosts.parse().ok()?, each.parse().ok()?)));
            let (hosts, each) = numbers.with_context(|| format!("`{case}` is no HOSTSxCLONES"))?;
            for turn in 0..programs.len() {
                let (label, program) = &programs[(turn + repetition as usize) % programs.len()];
                let load = load();
                let mut sample = run::run(options, program, hosts, each)
                    .with_context(|| format!("{label}, {case}, repetition {repetition}"))?;
                (sample.program, sample.case, sample.repetition, sample.load) =
                    (label.clone(), case.clone(), repetition, load);
                sample.print();
                results.samples.push(sample);
                if let Some(out) = &options.out {
                    let text = serde_json::to_string_pretty(&results)? + "\n";
                    std::fs::write(out, text).with_context(|| format!("cannot write {}", out.display()))?;
                }
            }
        }
    }
    medians(&results.samples);
    Ok(results.samples.iter().all(Sample::is_right))
}

fn medians(samples: &[Sample]) {
    let mut keys: Vec<(&str, &str)> =
        samples.iter().map(|sample| (sample.case.as_str(), sample.program.as_str())).collect();
    keys.sort_unstable();
    keys.dedup();
    println!("medians (and worst) of first instructions:");
    for (case, program) in keys {
        let of = |value: fn(&Sample) -> f64| {
            let mut values: Vec<f64> = samples
                .iter()
                .filter(|sample| sample.case == case && sample.program == program)
                .map(value)
                .collect();
            values.sort_by(f64::total_cmp);
            (values[values.len() / 2], values[values.len() - 1])
        };
        let (p50, last) = (of(|sample| sample.p50_ms), of(|sample| sample.last_ms));
        println!(
            "{case:<6} {program:<12} half {:>5.0} ({:.0}) ms, last {:>5.0} ({:.0}) ms",
            p50.0, p50.1, last.0, last.1
        );
    }
}
