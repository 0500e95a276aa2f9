//! The demo's processes: `scatter receive` on each host, and `scatter send` or `clone`. Whatever happens, they end with the demo:
//! receivers when their standard input does, all of them when they are dropped.

use super::place::Place;
use crate::cli::exit::{Coded, Exit, Failure, Outcome};
use crate::interrupt::Flag;
use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// How long a receiver may take to listen.
const START_MAX: Duration = Duration::from_secs(10);
/// How long a child that was asked to end may take.
const END_MAX: Duration = Duration::from_secs(5);
const GLANCE: Duration = Duration::from_millis(5);

/// A child that is gone when this is.
struct Running(Child);

impl Running {
    fn start(mut command: Command) -> Outcome<Self> {
        let started = command.spawn().with_context(|| format!("cannot run {:?}", command.get_program()));
        started.map(Self).or_exit(Exit::System)
    }

    /// Waits until it ends; asks it to once the demo is interrupted.
    fn wait(&mut self, interrupt: &Flag) -> Outcome<ExitStatus> {
        let mut asked: Option<Instant> = None;
        loop {
            if let Some(status) = self.0.try_wait().or_exit(Exit::Internal)? {
                return Ok(status);
            }
            match asked {
                None if interrupt.load(Ordering::Relaxed) => {
                    asked = Some(Instant::now());
                    self.ask_to_end();
                }
                Some(since) if since.elapsed() > END_MAX => {
                    let _ = self.0.kill();
                }
                _ => {}
            }
            std::thread::sleep(GLANCE);
        }
    }

    fn ask_to_end(&self) {
        if let Ok(pid) = i32::try_from(self.0.id()) {
            // It fails only for a child that has ended.
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only for a child that was waited for already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// This very program, even if its file was replaced since it began.
fn scatter(place: &Place, host: u16) -> Command {
    let mut command = place.command(host, "/proc/self/exe");
    command.arg0("scatter");
    command
}

/// `scatter receive` on one host.
pub(super) struct ReceivingHost {
    name: String,
    running: Running,
    lines: Receiver<String>,
}

/// What a receiving host is given.
pub(super) struct HostSetup<'a> {
    pub(super) name: &'a str,
    pub(super) listen: SocketAddr,
    pub(super) store: PathBuf,
    pub(super) keys: PathBuf,
    /// Further flags.
    pub(super) flags: &'a [&'a str],
}

impl ReceivingHost {
    pub(super) fn start(place: &Place, host: u16, setup: &HostSetup<'_>) -> Outcome<Self> {
        let mut command = scatter(place, host);
        command
            .args(["receive", "--while-stdin", "--name", setup.name])
            .args(["--listen", &setup.listen.to_string(), "--interface", place.interface()])
            .arg("--store")
            .arg(&setup.store)
            .arg("--keys")
            .arg(&setup.keys)
            .args(["--workers", "2"])
            .args(setup.flags)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut running = Running::start(command)?;
        let stdout = running.0.stdout.take().expect("piped just before");
        let (out, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if out.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { name: setup.name.to_owned(), running, lines })
    }

    /// Waits until it listens.
    pub(super) fn ready(&mut self) -> Outcome<()> {
        match self.lines.recv_timeout(START_MAX) {
            Ok(line) if line.contains("listening") => Ok(()),
            Ok(line) => Err(Failure::new(Exit::System, format!("receiver: {line}"))),
            Err(_) => Err(Failure::new(Exit::System, format!("the receiver on {} did not start", self.name))),
        }
    }

    /// Waits for its end; it ends by itself after a complete transfer. What it said last.
    pub(super) fn end(mut self) -> Option<String> {
        self.running.0.stdin = None;
        let deadline = Instant::now() + END_MAX;
        while matches!(self.running.0.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(GLANCE);
        }
        self.lines.try_iter().last()
    }
}

/// Runs `scatter send`, or `clone`, on the sending host, its progress on this terminal.
pub(super) fn send(
    how: &str,
    place: &Place,
    plan: &Path,
    keys: &Path,
    rate_bps: u64,
    report: &Path,
    interrupt: &Flag,
) -> Outcome<ExitStatus> {
    let mut command = scatter(place, 0);
    command
        .args([how, "--interface", place.interface(), "--rate", &rate_bps.to_string()])
        .arg("--group")
        .arg(plan)
        .arg("--keys")
        .arg(keys)
        .arg("--report")
        .arg(report)
        .stdin(Stdio::null());
    Running::start(command)?.wait(interrupt)
}
