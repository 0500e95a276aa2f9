//! `scatter report`: a report as text, or as a page to look at.

use crate::cli::args::Report;
use crate::cli::exit::{Exit, Outcome};
use crate::commands::write_file;
use crate::report::{TransferReport, page, text};

pub(crate) fn run(args: &Report) -> Outcome {
    let report = TransferReport::read(&args.file)?;
    match &args.output {
        Some(path) => {
            write_file(path, &page(&report))?;
            println!("wrote {}", path.display());
        }
        None => println!("{}", text(&report).trim_start()),
    }
    Ok(Exit::Done)
}
