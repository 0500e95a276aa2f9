//! `scatter completions` and `scatter man`: generated from the flags themselves.

use crate::cli::Cli;
use crate::cli::args::{Completions, Man};
use crate::cli::exit::{Coded, Exit, Outcome};
use anyhow::Context;
use clap::CommandFactory;
use std::io::Write;

pub(crate) fn completions(args: &Completions) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "scatter", &mut script);
    print(&script)
}

pub(crate) fn man(args: &Man) -> Outcome {
    let Some(dir) = &args.dir else {
        let mut page = Vec::new();
        clap_mangen::Man::new(Cli::command()).render(&mut page).or_exit(Exit::Internal)?;
        return print(&page);
    };
    let failed = || format!("cannot write manual pages to {}", dir.display());
    std::fs::create_dir_all(dir).with_context(failed).or_exit(Exit::Input)?;
    clap_mangen::generate_to(Cli::command(), dir).with_context(failed).or_exit(Exit::Input)?;
    println!("wrote manual pages to {}", dir.display());
    Ok(Exit::Done)
}

fn print(bytes: &[u8]) -> Outcome {
    match std::io::stdout().write_all(bytes) {
        // A pager that was left early has seen what it wanted.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(Exit::Done),
        result => result.or_exit(Exit::Internal).map(|()| Exit::Done),
    }
}
