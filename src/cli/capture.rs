//! How VMs under QEMU are captured: flags of `capture` and `clone`.

use clap::{Args, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;

/// How VMs that run are captured.
#[derive(Args, Clone, Default, Debug)]
pub(crate) struct How {
    /// How a QEMU's memory is taken. Default: the best that the VM allows; one that stands is read in place if it can be
    #[arg(long, value_enum, value_name = "WAY")]
    pub(crate) way: Option<WayChoice>,
    /// The VM's disks are frozen while it stands: it goes on with new overlays in this directory, and clones have theirs over
    /// the files that it had
    #[arg(long, value_name = "DIR")]
    pub(crate) snapshot_disks: Option<PathBuf>,
    /// The VM's disks go on changing; clones' disks are taken care of otherwise
    #[arg(long, conflicts_with = "snapshot_disks")]
    pub(crate) ignore_disks: bool,
    /// The VM stays stopped
    #[arg(long)]
    pub(crate) stop: bool,
}

/// `--way`.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum WayChoice {
    /// QEMU's migration stream: any VM
    LiveStream,
    /// From the shared file that its RAM is in
    SharedRam,
    /// Read in that file, without a copy, while it is sent: the VM stands until the transfer is over. Only `clone` of qmp:
    SharedRamInPlace,
    /// By a file that QEMU writes (9.0 or newer)
    MappedRam,
}

/// A VM under QEMU runs once where it was captured, to see what its clones will touch first.
#[derive(Args, Clone, Default, Debug)]
pub(crate) struct Rehearse {
    /// VMs under QEMU: runs each once, here, in a machine of this file (as `receive --qemu` takes it), to see what it touches first:
    /// clones get that at their start, before all else. It is a clone like others: mind what network its machine gives it
    #[arg(long, value_name = "FILE")]
    pub(crate) rehearse: Option<PathBuf>,
    /// For how long it runs then, from its first instruction, in ms of its CPUs' time; by the clock at most four times that
    #[arg(long, value_name = "MS", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=60_000), requires = "rehearse")]
    rehearse_for: u64,
}

impl Rehearse {
    pub(crate) fn time(&self) -> Duration {
        Duration::from_millis(self.rehearse_for)
    }
}
