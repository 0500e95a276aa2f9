//! How the command ends: enumerated exit codes, and errors that carry one.

use std::fmt;
use std::process::ExitCode;

/// The exit codes, documented in `scatter --help`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Everything asked for was done.
    Done = 0,
    /// Something that should not happen, or that has no code of its own.
    Internal = 1,
    /// The command line is wrong (clap ends with this code by itself).
    Usage = 2,
    /// A file given cannot be used: inventory, plan, image, keys, configuration, report.
    Input = 3,
    /// A plan does not pass the checker, or there is none for the inventory.
    Plan = 4,
    /// Some hosts failed; the others have every image.
    SomeFailed = 5,
    /// No host has its images.
    AllFailed = 6,
    /// Stopped by a signal, or cancelled.
    Interrupted = 7,
    /// The system does not permit or does not have what is needed.
    System = 8,
    /// `doctor` found a problem.
    Problem = 9,
}

/// Table for `--help` and the documentation.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  internal error
  2  wrong usage
  3  an input file cannot be used (inventory, plan, image, keys, configuration)
  4  the plan does not pass the checker, or no plan is possible
  5  some hosts failed, the others have every image
  6  all hosts failed
  7  interrupted by a signal, or cancelled
  8  not permitted here, or a feature of the system is missing
  9  doctor found a problem";

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// An error with the exit code it ends in.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The code.
    pub(crate) exit: Exit,
    /// What is wrong, with the way out.
    pub(crate) error: anyhow::Error,
}

/// What commands return.
pub(crate) type Outcome<T = Exit> = Result<T, Failure>;

impl Failure {
    /// An error in words.
    pub(crate) fn new(exit: Exit, message: impl fmt::Display) -> Self {
        Self { exit, error: anyhow::anyhow!("{message}") }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self { exit: Exit::Internal, error }
    }
}

/// Gives errors their exit code.
pub(crate) trait Coded<T> {
    /// Ends with `exit` on an error.
    fn or_exit(self, exit: Exit) -> Outcome<T>;
}

impl<T, E: Into<anyhow::Error>> Coded<T> for Result<T, E> {
    fn or_exit(self, exit: Exit) -> Outcome<T> {
        self.map_err(|error| Failure { exit, error: error.into() })
    }
}
