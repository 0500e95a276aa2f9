//! `scatter receive` on each host and `scatter send` on the first, as a user runs them.

use crate::programs::{Run, Stage, host_name, same_bytes};
use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

const PORT: u16 = 47_078;
const GROUP_PORT: u16 = 47_077;
const VM: &str = "vm";
const GLANCE: Duration = Duration::from_micros(500);

/// A child that is gone when this is.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only for a child that was waited for already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    /// How it ended, or `None` if it had not until the deadline.
    fn wait_until(&mut self, deadline: Instant) -> Option<ExitStatus> {
        loop {
            match self.0.try_wait() {
                Ok(None) if Instant::now() < deadline => std::thread::sleep(GLANCE),
                Ok(status) => return status,
                Err(_) => return None,
            }
        }
    }
}

pub(crate) fn run(program: &Path, stage: &Stage<'_>) -> anyhow::Result<Run> {
    let directory = tempfile::tempdir_in(&stage.files.directory)?;
    let plan = plan(program, stage, directory.path())?;
    let hosts = 1..=stage.case.hosts;
    let store = |host: u16| directory.path().join(host_name(host));
    let started: anyhow::Result<Vec<Running>> =
        hosts.clone().map(|host| start_receiver(program, stage, host, &store(host))).collect();
    let mut receivers = started?;
    for receiver in &mut receivers {
        await_listening(receiver)?;
    }

    let report = directory.path().join("report.json");
    let before = stage.lab.counters(0)?.host;
    let mut command = stage.lab.host(0).command(&program.to_string_lossy());
    command.args([
        "send",
        "--rate",
        "auto",
        "--encoding",
        "raw",
        "--interface",
        stage.lab.host(0).interface(),
    ]);
    command.arg("--group").arg(&plan).arg("--keys").arg(stage.files.keys.join("src"));
    command.arg("--report").arg(&report);
    let start = Instant::now();
    let mut sender =
        Running(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?);
    let status = sender.wait_until(start + stage.timeout);
    let wall = start.elapsed();
    let link_bytes = (stage.lab.counters(0)?.host - before).tx_bytes;
    let trouble = match status {
        Some(status) if status.success() => None,
        Some(status) => Some(format!("{status}: {}", last_words(&mut sender))),
        None => Some("did not end in time".to_owned()),
    };
    drop(sender);
    end(receivers);
    let whole = hosts.clone().all(|host| same_bytes(stage.file, &store(host).join(format!("{VM}.ram"))));
    let report = std::fs::read_to_string(&report).ok().and_then(|text| serde_json::from_str(&text).ok());
    let data = report.as_ref().and_then(data_phase).unwrap_or(wall);
    let report = report.as_ref().map(gist);
    Ok(Run { data, wall, link_bytes, whole, trouble, report })
}

/// A plan that clones the file to every host.
fn plan(program: &Path, stage: &Stage<'_>, directory: &Path) -> anyhow::Result<PathBuf> {
    const LINK_MBPS: u32 = 10_000;
    let mib = stage.bytes >> 20;
    let host = |host: u16| {
        let address = format!("{}:{PORT}", stage.lab.host(host).addr());
        json!({"name": host_name(host), "address": address, "vcpus": 8, "memory_mib": mib, "rate_mbps": LINK_MBPS})
    };
    let hosts = stage.case.hosts;
    let inventory = json!({
        "version": 1,
        "name": "fanout",
        "source": {"name": "src", "rate_mbps": LINK_MBPS},
        "hosts": (1..=hosts).map(host).collect::<Vec<_>>(),
        "vms": [{"name": VM, "image": stage.file, "memory_mib": mib, "vcpus": 1, "to": {"clones": hosts}}],
        "multicast": {"pool": "239.77.0.0/16", "port": GROUP_PORT},
    });
    let (input, output) = (directory.join("inventory.json"), directory.join("plan.json"));
    std::fs::write(&input, inventory.to_string())?;
    let mut command = Command::new(program);
    let made = command.args(["plan", "--no-measure"]).arg(&input).arg("-o").arg(&output).output()?;
    ensure!(made.status.success(), "scatter plan: {}", String::from_utf8_lossy(&made.stderr).trim());
    Ok(output)
}

fn start_receiver(program: &Path, stage: &Stage<'_>, host: u16, store: &Path) -> anyhow::Result<Running> {
    let here = stage.lab.host(host);
    let mut command = here.command(&program.to_string_lossy());
    command.args(["receive", "--once", "--while-stdin", "--interface", here.interface()]);
    command.args(["--name", &host_name(host), "--listen", &format!("{}:{PORT}", here.addr())]);
    command.arg("--store").arg(store).arg("--keys").arg(stage.files.keys.join(host_name(host)));
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    Ok(Running(command.spawn().with_context(|| format!("cannot run {}", program.display()))?))
}

/// Waits for its first line, then lets a thread read the others, so that it never waits for a reader.
fn await_listening(receiver: &mut Running) -> anyhow::Result<()> {
    let mut lines = BufReader::new(receiver.0.stdout.take().expect("piped when it was started"));
    let mut line = String::new();
    lines.read_line(&mut line)?;
    if !line.contains("listening") {
        bail!("a receiver says {line:?} in place of listening");
    }
    std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
    Ok(())
}

fn last_words(sender: &mut Running) -> String {
    let mut text = String::new();
    if let Some(stderr) = &mut sender.0.stderr {
        // Nothing more to say if it cannot be read.
        let _ = stderr.read_to_string(&mut text);
    }
    text.trim().lines().last().unwrap_or_default().to_owned()
}

/// Receivers end by themselves after a transfer, and when their standard input does.
fn end(receivers: Vec<Running>) {
    let deadline = Instant::now() + Duration::from_secs(5);
    for mut receiver in receivers {
        receiver.0.stdin = None;
        let _ = receiver.wait_until(deadline);
    }
}

/// From the first datagram to the last host's word that its image is verified and has its name.
fn data_phase(report: &Value) -> Option<Duration> {
    let first = report["times"]["first_datagram_s"].as_f64()?;
    let ends: Option<Vec<f64>> =
        report["hosts"].as_array()?.iter().map(|host| host["complete_s"].as_f64()).collect();
    Duration::try_from_secs_f64(ends?.into_iter().fold(0.0, f64::max) - first).ok()
}

/// What of the report helps to understand a figure.
fn gist(report: &Value) -> Value {
    let sum = |field: &str| -> f64 {
        let hosts = report["hosts"].as_array().map_or(&[][..], Vec::as_slice);
        hosts.iter().filter_map(|host| host["figures"][field].as_f64()).sum()
    };
    json!({
        "state": report["state"],
        "times": report["times"],
        "network": report["network"],
        "sender_cpu_s": report["cost"]["cpu_s"],
        "sender_anonymous_bytes": report["cost"]["peak_anonymous_bytes"],
        "receivers_cpu_s": sum("cpu_s"),
        "receivers_kernel_drops": sum("kernel_drops"),
        "receivers_redundant": sum("redundant"),
        "receivers_blocks_cauchy": sum("blocks_cauchy"),
        "receivers_blocks_raptorq": sum("blocks_raptorq"),
        "receivers_blocks_unicast": sum("blocks_unicast"),
    })
}
