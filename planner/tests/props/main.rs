//! Properties of the planner, against brute force and an oracle of its own.
#![forbid(unsafe_code)]

mod checker;
mod files;
mod instances;
mod ordering;
mod placement;
mod scheduling;
