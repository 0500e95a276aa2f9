//! A file for each command.

pub(crate) mod answers;
pub(crate) mod cancel;
pub(crate) mod capture;
pub(crate) mod demo;
pub(crate) mod doctor;
pub(crate) mod keys;
mod launchers;
pub(crate) mod measure;
pub(crate) mod microvm;
pub(crate) mod plan;
pub(crate) mod qemu_capture;
pub(crate) mod receive;
pub(crate) mod report;
pub(crate) mod save_image;
pub(crate) mod schema;
pub(crate) mod send;
pub(crate) mod shell;
pub(crate) mod simulate;
mod stale;
pub(crate) mod status;

use crate::cli::exit::{Coded, Exit, Failure, Outcome};
use anyhow::Context;
use net::Interface;
use net::pki::Identity;
use planner::{Plan, PlanFileError};
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// A text file of the user's.
pub(crate) fn read_text(path: &Path) -> Outcome<String> {
    std::fs::read_to_string(path)
        .with_context(|| format!("cannot read {}", path.display()))
        .or_exit(Exit::Input)
}

/// Writes a result: all of it or nothing.
pub(crate) fn write_file(path: &Path, text: &str) -> Outcome<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let write = || -> std::io::Result<()> {
        // Devices such as /dev/stdout cannot be replaced.
        if path.exists() && !path.is_file() {
            return std::fs::write(path, text);
        }
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        file.write_all(text.as_bytes())?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        file.as_file().set_permissions(mode)?;
        file.persist(path).map(drop).map_err(|error| error.error)
    };
    write().with_context(|| format!("cannot write {}", path.display())).or_exit(Exit::Input)
}

/// Reads and checks a plan.
pub(crate) fn read_plan(path: &Path) -> Outcome<Plan> {
    let plan = Plan::from_json(&read_text(path)?);
    plan.map_err(|error| {
        let exit = if matches!(error, PlanFileError::Refused(_)) { Exit::Plan } else { Exit::Input };
        Failure { exit, error: anyhow::Error::new(error).context(path.display().to_string()) }
    })
}

/// Loads keys, and passes warnings on.
pub(crate) fn load_keys(dir: &Path) -> Outcome<Identity> {
    let identity = Identity::load(dir).or_exit(Exit::Input)?;
    for warning in identity.warnings() {
        eprintln!("scatter: warning: {warning}");
    }
    Ok(identity)
}

/// The sender's keys: those named, or those of the plan's source under `keys/`.
pub(crate) fn sender_keys(named: Option<&PathBuf>, plan: &Plan) -> PathBuf {
    named.cloned().unwrap_or_else(|| Path::new("keys").join(&plan.source.name))
}

/// The hosts' addresses, in the plan's order.
pub(crate) fn host_addresses(plan: &Plan) -> Outcome<Vec<SocketAddr>> {
    let parse = |host: &planner::inventory::Host| {
        let address: Result<SocketAddr, _> = host.address.parse();
        address
            .with_context(|| format!("host {}: `{}` is no ip:port", host.name, host.address))
            .or_exit(Exit::Input)
    };
    plan.hosts.iter().map(parse).collect()
}

/// The interface that sends: named by the user, by the plan, or by the route to the first host.
pub(crate) fn sending_interface(named: Option<&str>, plan: &Plan) -> Outcome<Interface> {
    if let Some(named) = named.or(plan.source.address.as_deref()) {
        return Interface::find(named).or_exit(Exit::System);
    }
    let first = host_addresses(plan)?[0];
    Interface::for_peer(first.ip()).or_exit(Exit::System)
}

/// A number of threads: as given, else one for each CPU.
pub(crate) fn threads(given: Option<usize>) -> usize {
    given.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)).max(1)
}
