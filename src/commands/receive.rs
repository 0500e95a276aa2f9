//! `scatter receive`: the process on a target host.

use crate::cli::args::Receive;
use crate::cli::clones::{LaunchKind, Programs};
use crate::cli::exit::{Coded, Exit, Failure, Outcome};
use crate::commands::{launchers, load_keys, read_text};
use crate::{interrupt, units};
use anyhow::Context;
use net::Interface;
use receiver::driver::Ended;
use receiver::guests::GuestConfig;
use receiver::service::{Service, ServiceConfig, ServiceError, ServiceEvent};
use serde::Deserialize;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use wire::control::HostStats;

/// Where senders are awaited if nothing else is said.
const LISTEN: &str = "0.0.0.0:47078";
/// Socket buffer: a few milliseconds of a fast link, however busy the CPU is.
const RCVBUF_BYTES: usize = 32 << 20;
/// How long clones wait for a sender that is gone.
const ORPHAN_TIMEOUT: Duration = Duration::from_secs(60);
/// More workers than this only wait for each other's disk.
const WORKERS_MAX: usize = 8;

/// The configuration file.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct File {
    name: Option<String>,
    listen: Option<SocketAddr>,
    interface: Option<String>,
    store: Option<PathBuf>,
    keys: Option<PathBuf>,
    #[serde(default)]
    launch: Vec<LaunchKind>,
    #[serde(default)]
    programs: Programs,
    #[serde(default)]
    replace: bool,
    #[serde(default)]
    once: bool,
    workers: Option<usize>,
    rcvbuf: Option<usize>,
    #[serde(default)]
    measure: Vec<PathBuf>,
}

pub(crate) fn run(args: &Receive) -> Outcome {
    let config = configure(args)?;
    let stop = interrupt::install().or_exit(Exit::System)?;
    if args.while_stdin {
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || {
            // Whatever is written there, and however it ends.
            let _ = std::io::copy(&mut std::io::stdin().lock().by_ref(), &mut std::io::sink());
            stop.store(true, Ordering::Relaxed);
        });
    }
    let (name, store, once) = (config.name.clone(), config.store.clone(), config.once);
    let mut observe = |event| tell(&name, &store, &event);
    let service = Service::start(config, &mut observe).map_err(failure)?;
    let complete = service.run(&stop, &mut observe).map_err(failure)?;
    if !stop.load(Ordering::Relaxed) {
        return Ok(Exit::Done);
    }
    say(&format!("{name}: stopped"));
    // A service that is stopped has done what was asked of it; who waits for one transfer wants to know.
    Ok(if once && !complete { Exit::Interrupted } else { Exit::Done })
}

fn failure(error: ServiceError) -> Failure {
    let exit = match error {
        ServiceError::Store(_) => Exit::Input,
        _ => Exit::System,
    };
    Failure { exit, error: error.into() }
}

fn configure(args: &Receive) -> Outcome<ServiceConfig> {
    let file = args.config.as_deref().map(read_file).transpose()?.unwrap_or_default();
    let keys = args.keys.clone().or(file.keys).unwrap_or_else(|| PathBuf::from("keys"));
    let identity = load_keys(&keys)?;
    let name = args.name.clone().or(file.name).unwrap_or_else(|| identity.name().to_owned());
    identity.require_name(&name).or_exit(Exit::Input)?;
    identity.require_role(net::pki::Role::Receiver).or_exit(Exit::Input)?;
    let interface = args.interface.clone().or(file.interface);
    let interface = interface.map(|wanted| Interface::find(&wanted)).transpose().or_exit(Exit::System)?;
    let workers = args.workers.or(file.workers).unwrap_or_else(|| super::threads(None).min(WORKERS_MAX));
    let listen = args.listen.or(file.listen);
    let base = args.config.as_deref().and_then(Path::parent).unwrap_or(Path::new(""));
    let programs = args.programs.clone().or(file.programs, base);
    let store = args.store.clone().or(file.store).unwrap_or_else(|| PathBuf::from("store"));
    let kinds = if args.launch.is_empty() { file.launch } else { args.launch.clone() };
    Ok(ServiceConfig {
        name,
        listen: listen.unwrap_or_else(|| LISTEN.parse().expect("a constant address")),
        interface,
        guests: GuestConfig {
            launchers: launchers::launchers(&kinds, &programs, &store)?,
            nice: Some(programs.nice.unwrap_or(usage::priority::MOVING)),
        },
        store,
        identity: Arc::new(identity),
        rcvbuf_bytes: args.rcvbuf.or(file.rcvbuf).unwrap_or(RCVBUF_BYTES),
        workers: workers.max(1),
        replace: args.replace || file.replace,
        once: args.once || file.once,
        measurable: if args.measure.is_empty() { file.measure } else { args.measure.clone() },
        orphan_timeout: ORPHAN_TIMEOUT,
    })
}

/// Reads a file of settings, TOML or JSON.
pub(super) fn parse<T: serde::de::DeserializeOwned>(path: &Path) -> Outcome<T> {
    let text = read_text(path)?;
    let json = path.extension().is_some_and(|extension| extension == "json");
    let parsed: anyhow::Result<T> = if json {
        serde_json::from_str(&text).map_err(Into::into)
    } else {
        toml::from_str(&text).map_err(Into::into)
    };
    parsed.with_context(|| format!("configuration {}", path.display())).or_exit(Exit::Input)
}

/// Reads the configuration; its relative paths start at the file.
fn read_file(path: &Path) -> Outcome<File> {
    let mut file: File = parse(path)?;
    let base = path.parent().unwrap_or(Path::new(""));
    for path in [&mut file.store, &mut file.keys].into_iter().flatten().chain(&mut file.measure) {
        *path = base.join(&*path);
    }
    Ok(file)
}

/// A line for each event, flushed: whoever reads a pipe waits for it.
fn tell(name: &str, store: &Path, event: &ServiceEvent) {
    let line = match event {
        ServiceEvent::Listening(address) => {
            format!("listening on {address}, store {}", store.display())
        }
        ServiceEvent::Refused(reason) => format!("refused {reason}"),
        ServiceEvent::Accepted(transfer, sender, vms) => format!("{transfer}: {vms} VMs from {sender}"),
        ServiceEvent::Resumed(note) => format!("resuming: {note}"),
        ServiceEvent::Guests(note) => note.clone(),
        ServiceEvent::Ended(transfer, ended) => format!("{transfer}: {}", ending(ended)),
        _ => return,
    };
    say(&format!("{name}: {line}"));
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // Nobody reads any more: no reason to stop receiving.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn ending(ended: &Ended) -> String {
    match ended {
        Ended::Complete(stats) => format!("complete; {}", summary(stats)),
        Ended::CompleteUnreleased(stats) => {
            format!(
                "complete, though the sender was lost before it said that all is over; {}",
                summary(stats)
            )
        }
        Ended::Interrupted(reason) => format!("interrupted, what is held stays for a later run: {reason}"),
        Ended::Failed(reason) => format!("failed, what is held stays for a later run: {reason}"),
        Ended::Cancelled(reason) => {
            format!("{reason}: clones that lacked pages are over, and nothing of it is kept")
        }
        _ => "ended".to_owned(),
    }
}

fn summary(stats: &HostStats) -> String {
    let blocks = stats.blocks_plain + stats.blocks_cauchy + stats.blocks_raptorq + stats.blocks_unicast;
    format!(
        "{} datagrams, {blocks} blocks ({} by Cauchy, {} by RaptorQ, {} by unicast), {} held before, CPU {}, peak memory {}",
        stats.datagrams,
        stats.blocks_cauchy,
        stats.blocks_raptorq,
        stats.blocks_unicast,
        stats.blocks_held,
        units::time(units::float(stats.cpu_us) / 1e6),
        units::bytes(stats.peak_memory_bytes),
    )
}
