//! Where the demo's hosts are: namespaces on a bridge, or processes on the loopback interface.

use lab::hosts::{Lab, LabError, LabOptions, Loss, Scope, reexec_in_user_namespace_if_needed};
use std::io;
use std::net::Ipv4Addr;
use std::process::Command;

/// The hosts; number 0 sends.
pub(super) enum Place {
    Lab(Box<Lab>),
    Loopback,
}

/// Starts this process again in a user namespace if that is what it takes to make hosts. Returns the reason if there
/// can be none.
pub(super) fn enter() -> Result<(), LabError> {
    reexec_in_user_namespace_if_needed()
}

impl Place {
    /// Hosts on a bridge: the sender's link has a rate, each receiver's loses some of everything.
    pub(super) fn lab(receivers: u16, rate_bps: u64, loss_permille: u16) -> Result<Self, LabError> {
        let lab = Lab::new(LabOptions { hosts: receivers + 1, ..LabOptions::default() })?;
        lab.shape_egress(0, rate_bps)?;
        if loss_permille > 0 {
            for host in lab.receivers() {
                lab.loss(host.index(), Loss::random(loss_permille).of(Scope::DatagramsAndStreams))?;
            }
        }
        Ok(Self::Lab(Box::new(lab)))
    }

    /// A command on a host.
    pub(super) fn command(&self, host: u16, program: &str) -> Command {
        match self {
            Self::Lab(lab) => lab.host(host).command(program),
            Self::Loopback => Command::new(program),
        }
    }

    /// Runs `action` on a host; sockets that it makes stay there.
    pub(super) fn run<T: Send>(&self, host: u16, action: impl FnOnce() -> T + Send) -> io::Result<T> {
        match self {
            Self::Lab(lab) => lab.host(host).run(action),
            Self::Loopback => Ok(action()),
        }
    }

    pub(super) fn address(&self, host: u16) -> Ipv4Addr {
        match self {
            Self::Lab(lab) => lab.host(host).addr(),
            Self::Loopback => Ipv4Addr::LOCALHOST,
        }
    }

    pub(super) fn interface(&self) -> &'static str {
        match self {
            Self::Lab(lab) => lab.host(0).interface(),
            Self::Loopback => "lo",
        }
    }

    /// Bytes that the sender's interface has sent; nothing where all hosts share it.
    pub(super) fn sent_bytes(&self) -> Result<Option<u64>, LabError> {
        match self {
            Self::Lab(lab) => lab.counters(0).map(|counters| Some(counters.host.tx_bytes)),
            Self::Loopback => Ok(None),
        }
    }
}
