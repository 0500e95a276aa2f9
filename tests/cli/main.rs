//! The `scatter` binary from outside: one test executable, a file for each concern.

mod files;
mod help;
mod keys;
mod plan;
mod structure;
mod support;
mod transfer;
