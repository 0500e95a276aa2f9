//! demo
use crate::cli::args::Demo;
use crate::cli::exit::{Exit, Outcome};
pub(crate) fn run(_args: &Demo) -> Outcome {
    Ok(Exit::Done)
}
