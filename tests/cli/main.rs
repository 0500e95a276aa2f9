//! The `scatter` binary from outside: one test executable, a file for each concern.

mod files;
mod help;
mod keys;
mod measure;
mod plan;
mod residents;
mod structure;
mod support;
mod transfer;
