//! Post-copy on this machine: which pages a guest waits for under each pre-paging strategy, for how long, and from where; and what a
//! page server's thread answers beside a bare handler.
//!
//! `cargo bench --bench postcopy -- --help`; docs/post-copy.md has the table. Everything is real but the network, which is the
//! loopback interface: sender, receivers, userfaultfd, memory. A guest is a thread that touches its memory as a trace says
//! ([`player`]); traces are drawn, or recorded from a micro-VM ([`trace`]).

#![forbid(unsafe_code)]

mod cases;
#[path = "../../crates/vmm/benches/handlers/mod.rs"]
mod handlers;
mod local;
mod player;
mod results;
mod trace;
mod world;

use clap::Parser;
use results::Results;
use std::path::PathBuf;
use std::process::ExitCode;

/// See the module's text.
#[derive(Parser, Debug)]
struct Options {
    /// Runs of each case
    #[arg(long, default_value_t = 3)]
    repetitions: u32,
    /// Which accesses
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["sequential", "hot-set", "random", "micro-vm", "linux"])]
    access: Vec<trace::Access>,
    /// Decides traces
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Rate of blocks, in bit/s
    #[arg(long, default_value_t = 300_000_000)]
    rate: u64,
    /// Where samples go, as JSON, anew after each case
    #[arg(long)]
    out: Option<PathBuf>,
    /// What `cargo bench` gives
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options) {
        Ok(results) => {
            print!("{}", results.table());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("postcopy: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> anyhow::Result<Results> {
    let mut results = Results::new(options.seed, options.rate, options.repetitions);
    for repetition in 0..options.repetitions {
        results.local.extend(local::measure(repetition)?);
        cases::measure(options, repetition, &mut results)?;
    }
    Ok(results)
}
