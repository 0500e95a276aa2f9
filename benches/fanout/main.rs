//! Goodput to 1, 4, 8 and 16 hosts, beside UFTP, udpcast, TCP and TLS on the same links in the same run.
//!
//! `cargo bench --bench fanout -- --help`; benches/README.md says what is measured and how to read it.
//!
//! A [`cases::Case`] is a lab; in it each [`programs::Program`] runs once a repetition, one after the other, in an order
//! that turns from repetition to repetition. [`results`] makes medians and ratios of the samples.

#![forbid(unsafe_code)]

mod cases;
mod machine;
mod options;
mod programs;
mod results;
mod scatter;
mod table;
mod tls;

use anyhow::Context;
use cases::Case;
use clap::Parser;
use lab::hosts::{Lab, LabOptions, Loss, Scope, reexec_in_user_namespace_if_needed};
use options::Options;
use programs::{Files, Program, Stage};
use results::{Results, Sample};
use std::process::ExitCode;

fn main() -> ExitCode {
    // Before any thread or file is made: this may start the program anew.
    let entered = reexec_in_user_namespace_if_needed();
    let options = Options::parse();
    match entered.map_err(anyhow::Error::from).and_then(|()| run(&options)) {
        Ok(results) if results.ours_is_whole() => ExitCode::SUCCESS,
        Ok(_) => {
            eprintln!("fanout: a transfer of scatter's failed, or an image differs from its source");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("fanout: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> anyhow::Result<Results> {
    let cases = options.cases()?;
    let programs = options.programs()?;
    let directory = tempfile::Builder::new()
        .prefix("scatter-fanout-")
        .tempdir_in(&options.directory)
        .with_context(|| format!("cannot make a directory in {}", options.directory.display()))?;
    let hosts_max = cases.iter().map(|case| case.hosts).max().context("no case was chosen")?;
    let files = Files::make(directory.path(), hosts_max, options.seed)?;
    let mut results = Results::new(options);
    for repetition in 0..options.repetitions() {
        let mut turn = usize::from(repetition);
        for same_links in cases.chunk_by(|a, b| (a.hosts, a.mtu) == (b.hosts, b.mtu)) {
            for case in same_links {
                let lab = lab(*case)?;
                measure(options, *case, repetition, turn, &programs, &lab, &files, &mut results)?;
                turn += 1;
            }
        }
        if let Some(out) = &options.out {
            results.write(out)?;
        }
    }
    print!("{}", table::text(&results));
    Ok(results)
}

/// Wire-like links, all with the rule that loses frames, also where its chance is 0: it costs time of the sender's CPU
/// here, which a bad cable does not.
fn lab(case: Case) -> anyhow::Result<Lab> {
    let lab = Lab::new(LabOptions { hosts: case.hosts + 1, mtu: case.mtu, ..LabOptions::default() })?;
    for host in lab.receivers() {
        lab.loss(host.index(), Loss::random(case.loss_permille).of(Scope::DatagramsAndStreams))?;
    }
    Ok(lab)
}

#[expect(clippy::too_many_arguments, reason = "the loops' variables")]
fn measure(
    options: &Options,
    case: Case,
    repetition: u16,
    turn: usize,
    programs: &[Program],
    lab: &Lab,
    files: &Files,
    results: &mut Results,
) -> anyhow::Result<()> {
    for at in 0..programs.len() {
        let program = &programs[(at + turn) % programs.len()];
        let bytes = options.bytes(case, program);
        let file = files.of(bytes)?;
        files.touch(bytes * u64::from(case.hosts))?;
        let load = machine::load();
        let stage = Stage { lab, case, file: &file, bytes, files, timeout: options.timeout() };
        let run = program.run(&stage);
        let sample = Sample::new(case, repetition, program, bytes, load, run);
        eprintln!("{}", table::line(&sample));
        results.samples.push(sample);
    }
    Ok(())
}
