//! What is measured: scatter, and those it is compared with.

use crate::cases::Case;
use crate::{scatter, tls};
use anyhow::Context;
use lab::hosts::Lab;
use lab::peers::{Peer, PeerOptions, Stream};
use net::pki::{self, Role};
use rand::{RngCore, SeedableRng};
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// One that carries a file to many hosts.
#[derive(Clone, Debug)]
pub(crate) enum Program {
    /// This project's, sealed and verified.
    Scatter { label: String, path: PathBuf },
    /// UFTP, udpcast or plain TCP.
    Peer(Peer),
    /// A TLS stream to each host, files kept.
    Tls,
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a run did.
#[derive(Clone, Debug, Default)]
pub(crate) struct Run {
    /// From the start of the data phase to the last host's completion.
    pub(crate) data: Duration,
    /// From the start of the sending program, receivers waiting, to its word that all is done.
    pub(crate) wall: Duration,
    /// On the sender's link, all headers counted.
    pub(crate) link_bytes: u64,
    /// Every host has the file, compared byte for byte where it was kept.
    pub(crate) whole: bool,
    /// What went wrong.
    pub(crate) trouble: Option<String>,
    /// The program's own report.
    pub(crate) report: Option<serde_json::Value>,
}

/// Where a run takes place.
pub(crate) struct Stage<'a> {
    pub(crate) lab: &'a Lab,
    pub(crate) case: Case,
    pub(crate) file: &'a Path,
    pub(crate) bytes: u64,
    pub(crate) files: &'a Files,
    pub(crate) timeout: Duration,
}

impl Program {
    pub(crate) fn all() -> Vec<Self> {
        let tcp = |sendfile, keep| Self::Peer(Peer::Tcp(Stream { sendfile, keep }));
        let path = PathBuf::from(env!("CARGO_BIN_EXE_scatter"));
        vec![
            Self::Scatter { label: "scatter".to_owned(), path },
            tcp(false, true),
            tcp(true, true),
            Self::Tls,
            Self::Peer(Peer::Uftp),
            Self::Peer(Peer::Udpcast),
            tcp(false, false),
            tcp(true, false),
        ]
    }

    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Scatter { label, .. } => label,
            Self::Peer(peer) => peer.name(),
            Self::Tls => "tls",
        }
    }

    pub(crate) fn is_multicast(&self) -> bool {
        matches!(self, Self::Peer(Peer::Uftp | Peer::Udpcast))
    }

    /// Carries the file once.
    pub(crate) fn run(&self, stage: &Stage<'_>) -> anyhow::Result<Run> {
        match self {
            Self::Scatter { path, .. } => scatter::run(path, stage),
            Self::Tls => tls::run(stage),
            Self::Peer(peer) => {
                let options = PeerOptions {
                    directory: stage.files.directory.clone(),
                    timeout: stage.timeout,
                    lossy: stage.case.loss_permille > 0,
                };
                let result = peer.run(stage.lab, stage.file, stage.case.hosts, &options)?;
                let failed = result.per_host_ok.iter().filter(|ok| !**ok).count();
                let trouble = match (result.completed, failed) {
                    (true, 0) => None,
                    (true, failed) => Some(format!("said it was done, {failed} hosts are without the file")),
                    (false, failed) => Some(format!("did not end well, {failed} hosts are without the file")),
                };
                Ok(Run {
                    data: result.data,
                    wall: result.wall,
                    link_bytes: result.link_bytes,
                    whole: result.all_ok(),
                    trouble,
                    report: None,
                })
            }
        }
    }
}

/// Files to send, and keys.
pub(crate) struct Files {
    pub(crate) directory: PathBuf,
    /// A CA and certificates for `src`, `h1`, `h2`, …
    pub(crate) keys: PathBuf,
    seed: u64,
}

impl Files {
    pub(crate) fn make(directory: &Path, hosts: u16, seed: u64) -> anyhow::Result<Self> {
        let keys = directory.join("keys");
        pki::create_ca(&keys)?;
        pki::issue_host(&keys, "src", &[Role::Sender], &[], 1)?;
        for host in 1..=hosts {
            pki::issue_host(&keys, &host_name(host), &[Role::Receiver], &[], 1)?;
        }
        Ok(Self { directory: directory.to_owned(), keys, seed })
    }

    /// Writes so many bytes where the hosts will keep theirs, and removes them. On a virtual machine, memory that was
    /// not used for a while is not there: without this, who runs first pays for it with more than the transfer's time.
    pub(crate) fn touch(&self, bytes: u64) -> anyhow::Result<()> {
        let mut file = tempfile::tempfile_in(&self.directory)?;
        let piece = vec![1; 1 << 20];
        for _ in 0..bytes >> 20 {
            file.write_all(&piece)?;
        }
        Ok(())
    }

    /// A file of so many bytes that nothing can shorten.
    pub(crate) fn of(&self, bytes: u64) -> anyhow::Result<PathBuf> {
        let path = self.directory.join(format!("{bytes}.ram"));
        if !path.exists() {
            let mut file = std::fs::File::create(&path).with_context(|| path.display().to_string())?;
            let mut random = rand::rngs::SmallRng::seed_from_u64(self.seed);
            let mut piece = vec![0; 1 << 20];
            for _ in 0..bytes >> 20 {
                random.fill_bytes(&mut piece);
                file.write_all(&piece)?;
            }
        }
        Ok(path)
    }
}

pub(crate) fn host_name(host: u16) -> String {
    format!("h{host}")
}

/// Whether two files are the same, byte for byte; a file that cannot be read is not.
pub(crate) fn same_bytes(a: &Path, b: &Path) -> bool {
    // cmp is in every system's base, and faster than what is worth writing here.
    Command::new("cmp").arg("-s").args([a, b]).status().is_ok_and(|status| status.success())
}

/// Sees to it that UFTP and udpcast are unpacked; leaves out what cannot be had.
pub(crate) fn unpack_peers(programs: &mut Vec<Program>) {
    if !programs.iter().any(Program::is_multicast) {
        return;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/peers.sh");
    let unpacked = Command::new(&script).status().is_ok_and(|status| status.success());
    if !unpacked {
        eprintln!("fanout: without UFTP and udpcast, as {} failed", script.display());
        programs.retain(|program| !program.is_multicast());
    }
}
