//! `scatter schema`: the file formats' JSON Schemas.

use crate::cli::args::{Format, Schema};
use crate::cli::exit::{Coded, Exit, Outcome};
use crate::report::TransferReport;
use planner::simulate::Simulation;
use planner::{Inventory, Plan, Signatures};

pub(crate) fn run(args: &Schema) -> Outcome {
    let schema = match args.format {
        Format::Inventory => Inventory::schema(),
        Format::Plan => Plan::schema(),
        Format::Signatures => Signatures::schema(),
        Format::Simulation => Simulation::schema(),
        Format::Report => TransferReport::schema(),
    };
    let text = serde_json::to_string_pretty(&schema).or_exit(Exit::Internal)?;
    println!("{text}");
    Ok(Exit::Done)
}
