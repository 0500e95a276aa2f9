//! One transfer: `scatter receive --launch microvm` on each host, `scatter clone` on the first, as a user runs them.

use crate::Options;
use anyhow::{Context, bail, ensure};
use lab::hosts::{Lab, LabOptions};
use serde::Serialize;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PORT: u16 = 47_078;
/// Longest transfer.
const TIMEOUT: Duration = Duration::from_secs(120);
/// How long the last clone may take to tick once all of its memory is there.
const TICKS_MAX: Duration = Duration::from_secs(30);
const GLANCE: Duration = Duration::from_millis(50);

/// What one transfer came to. Times from the start of the command.
#[derive(Serialize, Debug, Default)]
pub(crate) struct Sample {
    pub(crate) case: String,
    pub(crate) program: String,
    pub(crate) repetition: u32,
    /// Of the machine, before.
    pub(crate) load: f64,
    clones: usize,
    running: u64,
    /// Clones that ticked on with all of their memory, and found no wrong page.
    right: usize,
    pub(crate) p50_ms: f64,
    p99_ms: f64,
    pub(crate) last_ms: f64,
    /// When the last clone depended on nobody.
    independent_ms: f64,
    pages_answered: u64,
    pages_ahead: u64,
    network_fault_ratio: f64,
    /// Anonymous memory of all receivers (`Pss_Anon`) beyond what they had before the transfer, for each clone: pages that it wrote, page
    /// tables not counted, and its share of what the receiver needs for the transfer.
    own_bytes_per_clone: u64,
    /// Each host's one copy of the image.
    shared_bytes_per_host: u64,
}

impl Sample {
    pub(crate) fn is_right(&self) -> bool {
        self.right == self.clones && self.running == self.clones as u64
    }

    pub(crate) fn print(&self) {
        println!(
            "{:<6} {:<12} {:>3}/{:<3} {:>7.0} {:>7.0} {:>8.0} {:>7.2} s {:>14} {:>5.1}{}",
            self.case,
            self.program,
            self.running,
            self.clones,
            self.p50_ms,
            self.p99_ms,
            self.last_ms,
            self.independent_ms / 1e3,
            self.own_bytes_per_clone >> 10,
            self.load,
            if self.is_right() { "" } else { "  WRONG" },
        );
    }
}

/// A child that is gone when this is.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only for a child that was waited for already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn run(options: &Options, program: &Path, hosts: u16, each: u32) -> anyhow::Result<Sample> {
    let lab = Lab::new(LabOptions { hosts: hosts + 1, ..LabOptions::default() })?;
    let directory = tempfile::Builder::new().prefix("scatter-clone-").tempdir_in(&options.directory)?;
    let dir = directory.path();
    prepare(options, program, &lab, dir, each)?;
    let mut receivers = Vec::new();
    for host in 1..=hosts {
        receivers.push(receiver(program, &lab, host, dir)?);
    }
    receivers.iter_mut().try_for_each(await_listening)?;
    let before: u64 = receivers.iter().map(|receiver| memory(receiver, "Pss_Anon")).sum();
    let mut command = lab.host(0).command(&program.to_string_lossy());
    command.current_dir(dir).args([
        "clone",
        "--group",
        "plan.json",
        "--keys",
        "keys/src",
        "--report",
        "report.json",
    ]);
    command.args(["--rate", &options.rate, "--interface", lab.host(0).interface()]);
    let mut sender = Running(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?);
    let deadline = Instant::now() + TIMEOUT;
    let status = loop {
        match sender.0.try_wait()? {
            Some(status) => break status,
            None if Instant::now() > deadline => bail!("no end in {} s", TIMEOUT.as_secs()),
            None => std::thread::sleep(GLANCE),
        }
    };
    let report: Value = serde_json::from_slice(&std::fs::read(dir.join("report.json"))?)?;
    ensure!(report["clones"].is_object(), "{status}: the report has no clones");
    let mut sample = sample(&report, usize::from(hosts) * each as usize);
    sample.right = ticking(program, &lab, dir, sample.clones)?;
    let after: u64 = receivers.iter().map(|receiver| memory(receiver, "Pss_Anon")).sum();
    sample.own_bytes_per_clone = after.saturating_sub(before) / sample.clones.max(1) as u64;
    let shared: u64 = receivers.iter().map(|receiver| memory(receiver, "Pss_Shmem")).sum();
    sample.shared_bytes_per_host = shared / u64::from(hosts);
    Ok(sample)
}

/// Keys, a snapshot, a plan.
fn prepare(options: &Options, program: &Path, lab: &Lab, dir: &Path, each: u32) -> anyhow::Result<()> {
    let hosts = lab.options().hosts - 1;
    let host = |host: u16| {
        json!({"name": format!("h{host}"), "address": format!("{}:{PORT}", lab.host(host).addr()), "vcpus": 1_024,
            "memory_mib": u64::from(each) * options.size, "rate_mbps": 1_000})
    };
    let inventory = json!({
        "version": 1,
        "name": "clone",
        "source": {"name": "src", "rate_mbps": 1_000},
        "hosts": (1..=hosts).map(host).collect::<Vec<_>>(),
        "vms": [{
            "name": "golden", "image": "golden/memory", "memory_mib": options.size,
            "to": {"clones": u32::from(hosts) * each}, "clones_per_host": each,
            "launch": {"kind": "microvm", "attachments": {"state": "golden/state"}},
        }],
        "multicast": {"pool": "239.77.0.0/16", "port": 47_077},
    });
    std::fs::write(dir.join("inventory.json"), inventory.to_string())?;
    let [size, step, rest] =
        [options.size, options.step.into(), options.rest.into()].map(|of: u64| of.to_string());
    let mut microvm = vec!["microvm", "golden", "--size", &size, "--step", &step];
    // Builds from before it was there, for `--versus`, rest for 2 ms too.
    if options.rest != 2 {
        microvm.extend(["--rest", &rest]);
    }
    scatter(program, dir, &microvm)?;
    scatter(program, dir, &["keys", "init", "keys"])?;
    scatter(program, dir, &["keys", "host", "keys", "src", "--role", "sender"])?;
    for host in 1..=hosts {
        scatter(program, dir, &["keys", "host", "keys", &format!("h{host}")])?;
    }
    scatter(program, dir, &["plan", "inventory.json", "-o", "plan.json"])
}

fn scatter(program: &Path, dir: &Path, args: &[&str]) -> anyhow::Result<()> {
    let ran = Command::new(program).current_dir(dir).args(args).output()?;
    ensure!(ran.status.success(), "{args:?}: {}", String::from_utf8_lossy(&ran.stderr).trim());
    Ok(())
}

fn receiver(program: &Path, lab: &Lab, host: u16, dir: &Path) -> anyhow::Result<Running> {
    let (here, name) = (lab.host(host), format!("h{host}"));
    let mut command = here.command(&program.to_string_lossy());
    command.current_dir(dir).args([
        "receive",
        "--while-stdin",
        "--interface",
        here.interface(),
        "--launch",
        "microvm",
    ]);
    command.args(["--name", &name, "--listen", &format!("{}:{PORT}", here.addr()), "--workers", "2"]);
    command.args(["--store", &format!("store-{name}"), "--keys", &format!("keys/{name}")]);
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    Ok(Running(command.spawn().with_context(|| format!("cannot run {}", program.display()))?))
}

/// Waits for its first line, then lets a thread read the others, so that it never waits for a reader.
fn await_listening(receiver: &mut Running) -> anyhow::Result<()> {
    let mut lines = BufReader::new(receiver.0.stdout.take().expect("piped when it was started"));
    let mut line = String::new();
    lines.read_line(&mut line)?;
    ensure!(line.contains("listening"), "a receiver says {line:?} in place of listening");
    std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
    Ok(())
}

/// A figure of a process's memory (proc(5), `smaps_rollup`), in bytes; 0 if it cannot be read.
fn memory(process: &Running, name: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", process.0.id())).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

fn sample(report: &Value, clones: usize) -> Sample {
    let of = &report["clones"];
    let ms = |name: &str| of[name].as_f64().unwrap_or(0.0) * 1e3;
    let count = |name: &str| of[name].as_u64().unwrap_or(0);
    let each = of["clones"].as_array().map(Vec::as_slice).unwrap_or_default();
    let independent = each.iter().filter_map(|clone| clone["independent_s"].as_f64()).fold(0.0, f64::max);
    Sample {
        clones,
        running: count("running"),
        p50_ms: ms("first_instruction_p50_s"),
        p99_ms: ms("first_instruction_p99_s"),
        last_ms: ms("first_instruction_last_s"),
        independent_ms: independent * 1e3,
        pages_answered: count("pages_answered"),
        pages_ahead: count("pages_ahead"),
        network_fault_ratio: of["network_fault_ratio"].as_f64().unwrap_or(0.0),
        ..Sample::default()
    }
}

/// How many clones tick on with all of their memory, and found no wrong page, as their hosts tell.
fn ticking(program: &Path, lab: &Lab, dir: &Path, clones: usize) -> anyhow::Result<usize> {
    let deadline = Instant::now() + TICKS_MAX;
    loop {
        let mut command = lab.host(0).command(&program.to_string_lossy());
        let told = command
            .current_dir(dir)
            .args(["status", "--keys", "keys/src", "--group", "plan.json"])
            .output()?;
        let told = String::from_utf8_lossy(&told.stdout).into_owned();
        let right = |line: &&str| line.contains(": independent; tick ") && line.contains(", 0 wrong pages");
        let right = told.lines().filter(right).count();
        if right == clones || Instant::now() > deadline {
            return Ok(right);
        }
        std::thread::sleep(GLANCE);
    }
}
