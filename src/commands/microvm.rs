//! `scatter microvm`: a snapshot of a small guest that checks itself.

use crate::cli::clones::Microvm;
use crate::cli::exit::{Coded, Exit, Failure, Outcome};
use crate::units;
use anyhow::Context;
use std::fs::File;
use std::time::Duration;
use vmm::microvm::{Config, Identity, MicroVm, Pattern, Report, Workload};

/// No clone has it.
const RECORDED: Identity = Identity(1 << 32);
/// The guest writes all of its memory first.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn run(args: &Microvm) -> Outcome {
    let idle_us = args.rest * 1_000;
    let workload = Workload { pattern: Pattern::Random, step: args.step, write_percent: 20, idle_us };
    let config = Config { memory_mib: args.size, seed: args.seed, workload, ..Config::default() };
    let mut vm = MicroVm::boot(&config).or_exit(Exit::System)?;
    let ticked = vm.console().wait(0, PATIENCE, |report| matches!(report, Report::Tick { .. }));
    if ticked.is_none() {
        let ended = vm.console().ended().unwrap_or_else(|| "it said nothing for a minute".into());
        return Err(Failure::new(Exit::System, format!("the guest did not come up: {ended}")));
    }
    vm.pause().or_exit(Exit::System)?;
    let state = vm.capture().or_exit(Exit::System)?.to_bytes();
    std::fs::create_dir_all(&args.dir)
        .with_context(|| format!("cannot make {}", args.dir.display()))
        .or_exit(Exit::Input)?;
    let (memory, to) = (args.dir.join("memory"), args.dir.join("state"));
    let file = File::create(&memory).with_context(|| format!("cannot write {}", memory.display()));
    vm.memory().write_to(&file.or_exit(Exit::Input)?).or_exit(Exit::Input)?;
    std::fs::write(&to, &state)
        .with_context(|| format!("cannot write {}", to.display()))
        .or_exit(Exit::Input)?;
    record(args, &vm, &state);
    println!(
        "{}: {} of memory; {}: {} of state",
        memory.display(),
        units::bytes(args.size << 20),
        to.display(),
        units::bytes(state.len() as u64)
    );
    Ok(Exit::Done)
}

/// Restores the snapshot once and writes the pages that it touches first, in their order. A working set is advice: where it cannot be
/// recorded, that is said, and the snapshot is as good.
fn record(args: &Microvm, vm: &MicroVm, state: &[u8]) {
    if args.record == 0 {
        return;
    }
    let path = args.dir.join("working-set");
    let recorded =
        vmm::microvm::record_working_set(state, vm.memory(), RECORDED, Duration::from_millis(args.record));
    let written = recorded.map_err(anyhow::Error::from).and_then(|set| {
        std::fs::write(&path, set.to_bytes())?;
        Ok(set.pages().len())
    });
    match written {
        Ok(pages) => println!("{}: the {pages} pages touched first", path.display()),
        Err(error) => eprintln!("no working set recorded: {error:#}"),
    }
}
