//! doctor
use crate::cli::args::Doctor;
use crate::cli::exit::{Exit, Outcome};
pub(crate) fn run(_args: &Doctor) -> Outcome {
    Ok(Exit::Done)
}
