//! Properties of the planner, against brute force and an oracle of its own.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod checker;
mod files;
mod instances;
mod ordering;
mod placement;
mod scheduling;
