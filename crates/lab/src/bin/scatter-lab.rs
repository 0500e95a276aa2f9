//! `scatter-lab`: the lab from a shell.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use clap::{Args, Parser, Subcommand};
use lab::hosts::{
    Lab, LabError, LabOptions, Loss, exec_in_user_namespace, reexec_in_user_namespace_if_needed, sweep,
};
use lab::memory::{Fleet, MemoryError};
use lab::peers::{Peer, PeerError, PeerOptions, Stream};

/// Test hosts in network namespaces, for trying VMScatter out.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    job: Job,
}

#[derive(Subcommand)]
enum Job {
    /// Say what is missing for a lab, if anything
    Check,
    /// Remove labs whose process is dead
    Sweep,
    /// Run a command as root of a user namespace in which labs can be made
    Enter {
        /// The command and its arguments
        #[arg(required = true, trailing_var_arg = true)]
        command: Vec<OsString>,
    },
    /// Make a lab, run a command beside it, remove the lab
    Run {
        #[command(flatten)]
        lab: LabArguments,
        /// The command and its arguments, a shell by default; SCATTER_LAB holds the start of the namespaces' names
        #[arg(trailing_var_arg = true)]
        command: Vec<OsString>,
    },
    /// Time UFTP, udpcast and plain TCP with a file of generated memory
    Peers {
        /// Numbers of receiving hosts
        #[arg(long, value_delimiter = ',', default_values_t = [1, 4, 8])]
        hosts: Vec<u16>,
        /// MiB of the file
        #[arg(long, default_value_t = 256)]
        mib: u32,
        /// Bytes
        #[arg(long, default_value_t = 1_500)]
        mtu: u32,
        /// Thousandths of all datagrams lost at each host
        #[arg(long, default_value_t = 0)]
        loss: u16,
        /// Runs of each; the median is printed
        #[arg(long, default_value_t = 3)]
        runs: usize,
        /// Names of the peers; all by default
        #[arg(long, value_delimiter = ',')]
        only: Vec<String>,
    },
    /// Write generated memory images vm0.ram, vm1.ram, … to a directory
    Images {
        /// The directory
        directory: PathBuf,
        /// Number of VMs
        #[arg(long, default_value_t = Fleet::default().vms)]
        vms: u16,
        /// MiB of each
        #[arg(long, default_value_t = 64)]
        mib: u32,
        /// Number of operating systems
        #[arg(long, default_value_t = Fleet::default().systems)]
        systems: u16,
        /// Everything follows from it
        #[arg(long, default_value_t = Fleet::default().seed)]
        seed: u64,
    },
}

#[derive(Args)]
struct LabArguments {
    /// Number of hosts, the sender counted
    #[arg(long, default_value_t = 3)]
    hosts: u16,
    /// Bytes
    #[arg(long, default_value_t = 1_500)]
    mtu: u32,
    /// Let super-packets through whole: fast, and unlike a wire
    #[arg(long)]
    super_packets: bool,
    /// IPv6 addresses too
    #[arg(long)]
    ipv6: bool,
}

impl LabArguments {
    fn options(&self) -> LabOptions {
        LabOptions {
            hosts: self.hosts,
            mtu: self.mtu,
            wire_like: !self.super_packets,
            ipv6: self.ipv6,
            ..LabOptions::default()
        }
    }
}

/// Why a job failed.
#[derive(Debug, thiserror::Error)]
enum JobError {
    #[error(transparent)]
    Lab(#[from] LabError),
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Peer(#[from] PeerError),
    #[error("cannot write {}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("cannot run {}", program.display())]
    Run { program: OsString, source: std::io::Error },
    #[error("{mib} MiB are more than a VM's 32-bit page numbers reach")]
    Size { mib: u32 },
}

fn main() -> ExitCode {
    match perform(Arguments::parse().job) {
        Ok(code) => code,
        Err(error) => {
            let mut message = error.to_string();
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                message = format!("{message}: {cause}");
                source = cause.source();
            }
            eprintln!("scatter-lab: {message}");
            ExitCode::FAILURE
        }
    }
}

fn perform(job: Job) -> Result<ExitCode, JobError> {
    match job {
        Job::Check => {
            Lab::available()?;
            println!("labs can be made here");
        }
        Job::Sweep => {
            for prefix in sweep()? {
                println!("removed {prefix}");
            }
        }
        Job::Enter { command } => return Err(exec_in_user_namespace(&command).into()),
        Job::Run { lab, command } => return run(&lab, command),
        Job::Peers { hosts, mib, mtu, loss, runs, only } => {
            reexec_in_user_namespace_if_needed()?;
            time_peers(&hosts, mib, mtu, loss, runs.max(1), &only)?;
        }
        Job::Images { directory, vms, mib, systems, seed } => {
            let pages = mib.checked_mul(256).ok_or(JobError::Size { mib })?;
            for path in (Fleet { seed, vms, pages, systems, ..Fleet::default() }).write_images(&directory)? {
                println!("{}", path.display());
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints a line for each peer and number of hosts.
fn time_peers(
    hosts: &[u16],
    mib: u32,
    mtu: u32,
    loss: u16,
    runs: usize,
    only: &[String],
) -> Result<(), JobError> {
    let options = PeerOptions { lossy: loss > 0, ..PeerOptions::default() };
    let image = TemporaryFile(options.directory.join(format!("scatter-lab-{}", std::process::id())));
    let fail = |source| JobError::File { path: image.0.clone(), source };
    let fleet = Fleet { pages: mib.checked_mul(256).ok_or(JobError::Size { mib })?, ..Fleet::default() };
    let mut out = BufWriter::with_capacity(1 << 20, File::create(&image.0).map_err(fail)?);
    fleet.write_image(0, &mut out).and_then(|()| out.flush()).map_err(fail)?;
    let is_wanted = |peer: &Peer| only.is_empty() || only.iter().any(|name| name == peer.name());
    println!("{:<22}{:>6}{:>12}{:>12}{:>14}  whole at", "peer", "hosts", "Mbit/s", "seconds", "link/file");
    for count in hosts {
        let lab = Lab::new(LabOptions { hosts: count + 1, mtu, ..LabOptions::default() })?;
        for host in lab.receivers().iter().filter(|_| loss > 0) {
            lab.loss(host.index(), Loss::random(loss))?;
        }
        let dropped = [true, false].map(|sendfile| Peer::Tcp(Stream { sendfile, keep: false }));
        for peer in Peer::ALL.into_iter().chain(dropped).filter(is_wanted) {
            let results = (0..runs).map(|_| peer.run(&lab, &image.0, *count, &options));
            let mut results = results.collect::<Result<Vec<_>, _>>()?;
            results.sort_by_key(|result| result.wall);
            let median = &results[runs / 2];
            let whole: usize =
                results.iter().flat_map(|result| &result.per_host_ok).map(|ok| usize::from(*ok)).sum();
            println!(
                "{:<22}{count:>6}{:>12.0}{:>12.3}{:>13}%  {whole} of {} hosts{}",
                peer.name(),
                median.goodput_bps() / 1e6,
                median.wall.as_secs_f64(),
                median.link_bytes * 100 / median.bytes.max(1),
                usize::from(*count) * runs,
                if results.iter().all(|result| result.completed) { "" } else { ", a run failed" },
            );
        }
    }
    Ok(())
}

/// Removed when dropped.
struct TemporaryFile(PathBuf);

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn run(arguments: &LabArguments, mut command: Vec<OsString>) -> Result<ExitCode, JobError> {
    reexec_in_user_namespace_if_needed()?;
    let lab = Lab::new(arguments.options())?;
    for host in lab.hosts() {
        eprintln!("{} {}", host.namespace(), host.addr());
    }
    if command.is_empty() {
        command.push(std::env::var_os("SHELL").unwrap_or_else(|| "sh".into()));
    }
    let program = command.remove(0);
    let status = Command::new(&program).args(command).env("SCATTER_LAB", lab.prefix()).status();
    let status = status.map_err(|source| JobError::Run { program, source })?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}
