//! On what it was measured.

use serde::Serialize;
use std::process::Command;

/// What a figure depends on beside the program.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    kernel: String,
    cpu: String,
    cpus: usize,
    memory_mib: u64,
    /// Of the project.
    commit: String,
    /// Files differed from the commit.
    modified: bool,
    rustc: String,
    unix_s: u64,
}

impl Machine {
    pub(crate) fn look() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            line.and_then(|line| Some(line.split_once(':')?.1.trim().to_owned())).unwrap_or_default()
        };
        let memory_kib =
            field(&read("/proc/meminfo"), "MemTotal").trim_end_matches(" kB").parse().unwrap_or(0);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            cpu: field(&read("/proc/cpuinfo"), "model name"),
            cpus: std::thread::available_parallelism().map_or(1, Into::into),
            memory_mib: memory_kib / 1_024,
            commit: said("git", &["rev-parse", "HEAD"]),
            modified: !said("git", &["status", "--porcelain", "--untracked-files=no"]).is_empty(),
            rustc: said("rustc", &["--version"]),
            unix_s: now.as_secs(),
        }
    }

    /// In a line.
    pub(crate) fn words(&self) -> String {
        let Self { cpu, cpus, kernel, commit, modified, .. } = self;
        let modified = if *modified { ", modified" } else { "" };
        format!("{cpus} CPUs ({cpu}), kernel {kernel}, commit {commit:.12}{modified}")
    }
}

fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}

/// Processes that ran or waited for a CPU, on average of the last minute.
pub(crate) fn load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|figure| figure.parse().ok()).unwrap_or(0.0)
}
