//! The `scatter` command: flags, checked configuration, calls.
//!
//! A command's way: [`cli`] says what may be written, a file of [`commands`] turns it into the crates' configuration,
//! calls them, and shows what they return; [`report`] is what a transfer leaves in writing. Nothing is decided here
//! that another program might want: that is in the crates.

#![forbid(unsafe_code)]

mod cli;
mod commands;
mod images;
mod interrupt;
mod report;
mod scratch;
mod units;

use clap::Parser;
use cli::{Cli, Command};
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    trace(cli.verbose);
    let outcome = match cli.command {
        Command::Demo(args) => commands::demo::run(&args),
        Command::Keys(args) => commands::keys::run(&args.command),
        Command::Receive(args) => commands::receive::run(&args),
        Command::Measure(args) => commands::measure::run(&args),
        Command::Plan(args) => commands::plan::run(&args),
        Command::Simulate(args) => commands::simulate::run(&args),
        Command::Send(args) => commands::send::run(&args),
        Command::Clone(args) => commands::send::clone(&args),
        Command::Status(args) => commands::status::run(&args),
        Command::Capture(args) => commands::capture::run(&args),
        Command::SaveImage(args) => commands::save_image::run(&args),
        Command::Cancel(args) => commands::cancel::run(&args),
        Command::Microvm(args) => commands::microvm::run(&args),
        Command::Report(args) => commands::report::run(&args),
        Command::Doctor(args) => commands::doctor::run(&args),
        Command::Schema(args) => commands::schema::run(&args),
        Command::Completions(args) => commands::shell::completions(&args),
        Command::Man(args) => commands::shell::man(&args),
    };
    match outcome {
        Ok(exit) => exit.into(),
        Err(failure) => {
            // The alternate form has the causes, too.
            eprintln!("scatter: {:#}", failure.error);
            failure.exit.into()
        }
    }
}

/// Messages of the crates go to standard error; standard output is the command's own.
fn trace(verbose: u8) {
    let default = match verbose {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    let filter = EnvFilter::try_from_env("SCATTER_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).init();
}
