//! Flags: what may be written on the command line, and how it ends.

pub(crate) mod args;
pub(crate) mod capture;
pub(crate) mod clones;
pub(crate) mod exit;
pub(crate) mod parse;
pub(crate) mod planning;

use clap::{ArgAction, Parser, Subcommand};

/// What `scatter --help` ends with.
const EXAMPLES: &str = "\
Examples:
  scatter demo                                    see it work, without root and without arguments
  scatter keys init keys                          a fleet's CA; then keys for each host
  scatter receive --name h1 --keys keys/h1        on each target host
  scatter plan inventory.json -o plan.json        who hosts what, in which groups
  scatter simulate plan.json --loss 10            what it would take
  scatter doctor --plan plan.json --keys keys/src what would make the transfer fail
  scatter send --group plan.json --keys keys/src  the transfer";

fn after_help() -> String {
    format!("{EXAMPLES}\n\n{}", exit::EXIT_CODES)
}

/// Clones or migrates the memory of many virtual machines from one host to many hosts at once.
///
/// Pages of all VMs are merged, compressed, sealed and sent by multicast, once for all hosts that need them; lost
/// datagrams are repaired by forward error correction; every block is verified before a page of it is placed.
#[derive(Parser, Debug)]
#[command(name = "scatter", version, after_help = after_help(), propagate_version = true)]
pub(crate) struct Cli {
    /// More messages on standard error; twice for still more. SCATTER_LOG takes filters such as `sender=debug`
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub(crate) verbose: u8,
    /// What to do
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The commands.
#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    Demo(args::Demo),
    Keys(args::Keys),
    Receive(args::Receive),
    Measure(args::Measure),
    Plan(args::Plan),
    Simulate(args::Simulate),
    Send(Box<args::Send>),
    Clone(Box<clones::Clone>),
    Capture(clones::Capture),
    SaveImage(clones::SaveImage),
    Microvm(clones::Microvm),
    Status(clones::Status),
    Cancel(clones::Cancel),
    Report(args::Report),
    Doctor(args::Doctor),
    Schema(args::Schema),
    Completions(args::Completions),
    Man(args::Man),
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
