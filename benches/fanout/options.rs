//! The flags.

use crate::cases::Case;
use crate::programs::Program;
use anyhow::bail;
use clap::Parser;
use std::path::PathBuf;
use std::time::Duration;

/// Goodput of one host's file to many, beside UFTP, udpcast, TCP and TLS, in one run on the same links
#[derive(Parser, Debug)]
#[command(
    name = "fanout",
    after_help = "\
Cases are named HOSTS/MTU/LOSS%. Examples:
  cargo bench --bench fanout -- --quick
  cargo bench --bench fanout -- --cases '8/1500,16/1500/1' --out benches/results/NAME.json
  cargo bench --bench fanout -- --cases 4/1500/0 --programs scatter,tcp-write --versus before=/tmp/scatter"
)]
pub(crate) struct Options {
    /// One repetition, 1, 4 and 8 hosts, MTU 1500, 0 and 1 % loss, a small file: under a minute
    #[arg(long)]
    quick: bool,
    /// Repetitions. Default: 3, or 1 with --quick
    #[arg(long)]
    repetitions: Option<u16>,
    /// Only these cases: HOSTS/MTU/LOSS, HOSTS/MTU or HOSTS, each part may be *
    #[arg(long, value_delimiter = ',')]
    cases: Vec<String>,
    /// Only these programs
    #[arg(long, value_delimiter = ',')]
    programs: Vec<String>,
    /// Another build of scatter, measured in the same run: LABEL=PATH
    #[arg(long, value_name = "LABEL=PATH")]
    versus: Vec<String>,
    /// MiB of the file. Default: 512 for 1 host, 256 for more; 64 with --quick
    #[arg(long)]
    size: Option<u64>,
    /// MiB of the file for UFTP and udpcast, and for TCP and TLS where links lose frames: they are slow there.
    /// Default: 64; 16 with --quick
    #[arg(long)]
    small_size: Option<u64>,
    /// Seconds after which a run is ended. Default: 40; 8 with --quick
    #[arg(long)]
    timeout: Option<u64>,
    /// The file's bytes follow from it
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Where hosts keep what they receive; a tmpfs keeps disks out of the figures
    #[arg(long, default_value = "/dev/shm")]
    pub(crate) directory: PathBuf,
    /// Writes all samples as JSON, anew after each repetition
    #[arg(long)]
    pub(crate) out: Option<PathBuf>,
    /// As cargo passes it
    #[arg(long, hide = true)]
    bench: bool,
}

impl Options {
    pub(crate) fn repetitions(&self) -> u16 {
        self.repetitions.unwrap_or(if self.quick { 1 } else { 3 })
    }

    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout.unwrap_or(if self.quick { 8 } else { 40 }))
    }

    /// The cases chosen, in order.
    pub(crate) fn cases(&self) -> anyhow::Result<Vec<Case>> {
        let all = Case::all(&[1, 4, 8, 16], &[1_500, 9_000], &[0, 1, 10, 50]);
        let quick =
            |case: &Case| case.hosts <= 8 && case.mtu == 1_500 && [0, 10].contains(&case.loss_permille);
        if let Some(pattern) = self.cases.iter().find(|pattern| !all.iter().any(|case| case.matches(pattern)))
        {
            bail!("no case is {pattern}; cases are {}", names(&all));
        }
        let chosen = |case: &Case| match self.cases.as_slice() {
            [] => !self.quick || quick(case),
            patterns => patterns.iter().any(|pattern| case.matches(pattern)),
        };
        Ok(all.into_iter().filter(chosen).collect())
    }

    /// The programs chosen. Those whose packages are neither here nor to be had are left out, with a word.
    pub(crate) fn programs(&self) -> anyhow::Result<Vec<Program>> {
        let mut programs = Program::all();
        if let Some(name) =
            self.programs.iter().find(|name| !programs.iter().any(|program| program.name() == **name))
        {
            bail!("no program is {name}; programs are {}", names(&programs));
        }
        if !self.programs.is_empty() {
            programs.retain(|program| self.programs.iter().any(|name| *name == program.name()));
        }
        for versus in &self.versus {
            let Some((label, path)) = versus.split_once('=') else {
                bail!("--versus {versus} is not LABEL=PATH")
            };
            programs.push(Program::Scatter { label: format!("scatter-{label}"), path: path.into() });
        }
        crate::programs::unpack_peers(&mut programs);
        Ok(programs)
    }

    /// Bytes of the file that a program carries in a case.
    pub(crate) fn bytes(&self, case: Case, program: &Program) -> u64 {
        let usual = match case.hosts {
            _ if self.quick => 64,
            1 => 512,
            _ => 256,
        };
        let small = self.small_size.unwrap_or(if self.quick { 16 } else { 64 });
        let mib = match program {
            Program::Scatter { .. } => self.size.unwrap_or(usual),
            _ if program.is_multicast() || case.loss_permille > 1 => small,
            _ => self.size.unwrap_or(usual),
        };
        mib << 20
    }

    /// As given, for the results.
    pub(crate) fn command(&self) -> String {
        let arguments: Vec<String> =
            std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
        format!("cargo bench --bench fanout -- {}", arguments.join(" "))
    }
}

fn names(items: &[impl std::fmt::Display]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
