//! `scatter keys`: the fleet's CA and the hosts' certificates.

use crate::cli::args::{KeysCommand, RoleChoice};
use crate::cli::exit::{Coded, Exit, Failure, Outcome};
use net::pki::{self, CertificateInfo, Role};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

pub(crate) fn run(command: &KeysCommand) -> Outcome {
    match command {
        KeysCommand::Init { dir } => {
            pki::create_ca(dir).or_exit(Exit::Input)?;
            println!("made a CA in {}", dir.display());
            println!("keep {} secret: it stands for the fleet", dir.join(pki::CA_KEY_FILE).display());
            println!("next: scatter keys host {} NAME --role sender|receiver", dir.display());
        }
        KeysCommand::Host { dir, name, role, addresses, days } => {
            let roles: &[Role] = match role {
                RoleChoice::Sender => &[Role::Sender],
                RoleChoice::Receiver => &[Role::Receiver],
                RoleChoice::Both => &[Role::Sender, Role::Receiver],
            };
            let files = pki::issue_host(dir, name, roles, addresses, *days).or_exit(Exit::Input)?;
            println!("made keys of {name} in {}, valid for {days} days", files.dir.display());
        }
        KeysCommand::Show { path } => show(path)?,
    }
    Ok(Exit::Done)
}

/// Shows every certificate at or under `path`.
fn show(path: &Path) -> Outcome<()> {
    let files = if path.is_dir() { certificates(path) } else { vec![path.to_owned()] };
    if files.is_empty() {
        let message = format!("no certificate in {}; `scatter keys init` makes a CA", path.display());
        return Err(Failure::new(Exit::Input, message));
    }
    println!("{:<24} {:<16} {:<18} {:<20} addresses", "file", "name", "roles", "validity");
    for file in files {
        let info = pki::describe(&file).or_exit(Exit::Input)?;
        let shown = file.strip_prefix(path).ok().filter(|rest| !rest.as_os_str().is_empty()).unwrap_or(&file);
        let addresses: Vec<String> = info.addresses.iter().map(ToString::to_string).collect();
        let (name, roles) =
            if info.is_ca { ("(the CA)", "issues".to_owned()) } else { (info.name(), roles(&info)) };
        let validity = validity(&info, SystemTime::now());
        println!("{:<24} {name:<16} {roles:<18} {validity:<20} {}", shown.display(), addresses.join(", "));
    }
    Ok(())
}

/// `ca.pem` and `host.pem` of a directory, and `host.pem` of those in it.
fn certificates(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = [pki::CA_FILE, pki::HOST_FILE].iter().map(|file| dir.join(file)).collect();
    let mut inner: Vec<PathBuf> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join(pki::HOST_FILE))
        .collect();
    inner.sort();
    found.extend(inner);
    found.retain(|file| file.is_file());
    found
}

fn roles(info: &CertificateInfo) -> String {
    let roles: Vec<String> = info.roles.iter().map(ToString::to_string).collect();
    if roles.is_empty() { "none".to_owned() } else { roles.join(", ") }
}

fn validity(info: &CertificateInfo, now: SystemTime) -> String {
    const DAY: u64 = 24 * 3600;
    let days = |time: Duration| time.as_secs().div_ceil(DAY);
    if let Ok(wait) = info.not_before.duration_since(now)
        && !wait.is_zero()
    {
        return format!("in {} days", days(wait));
    }
    match info.not_after.duration_since(now) {
        Ok(left) => format!("{} days left", left.as_secs() / DAY),
        Err(over) => format!("EXPIRED {} days ago", days(over.duration())),
    }
}
