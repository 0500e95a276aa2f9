//! Why there is no lab.

use std::io;
use std::path::PathBuf;

/// Why a lab could not be made, changed or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LabError {
    /// A program is not installed.
    #[error("the lab needs `{program}`: install the package {package} (scripts/setup.sh does)")]
    MissingProgram {
        /// Its name.
        program: &'static str,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// This process may not make network namespaces.
    #[error("the lab needs the right to make network namespaces: {reason}")]
    MissingRight {
        /// What is missing and what helps.
        reason: String,
    },
    /// The options make no lab.
    #[error("no lab can be made so: {reason}")]
    Options {
        /// What is wrong with them.
        reason: String,
    },
    /// A lab of that name runs already.
    #[error("a lab with the prefix `{prefix}` is running already")]
    PrefixTaken {
        /// The prefix.
        prefix: String,
    },
    /// A command of the system failed.
    #[error("`{command}` failed ({status}): {message}")]
    Command {
        /// The command with its arguments.
        command: String,
        /// How it ended.
        status: String,
        /// What it wrote to its standard error.
        message: String,
    },
    /// A system call failed.
    #[error("cannot {action}")]
    System {
        /// What was tried.
        action: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A file could not be read, made or removed.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The kernel or a program printed what is not understood.
    #[error("cannot read {what}: {text}")]
    Format {
        /// What was to be read.
        what: &'static str,
        /// The text.
        text: String,
    },
}

impl LabError {
    pub(super) fn system(action: impl Into<String>, source: io::Error) -> Self {
        Self::System { action: action.into(), source }
    }
}
