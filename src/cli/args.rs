//! The flags of each command.

use super::clones::{LaunchKind, Programs};
pub(crate) use super::planning::{Measure, Plan, Simulate};

use super::parse::{self, EncodingChoice, Rate, SymbolSize};
use clap::{Args, Subcommand, ValueEnum};
use sender::departure::Mode;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// Shows the whole of it on this machine: hosts, keys, plan, transfer with loss, verification, comparison
#[derive(Args, Debug)]
#[command(after_help = "\
Hosts are network namespaces on a multicast-snooping bridge: as root, or in a user namespace that is made for it. Where
neither is allowed, they are processes on the loopback interface, and the demo says so.

Examples:
  scatter demo
  scatter demo --hosts 8 --loss 50 --open
  scatter demo --images target/guests/small --keep /tmp/scatter-demo")]
pub(crate) struct Demo {
    /// Number of receiving hosts
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=32))]
    pub(crate) hosts: u16,
    /// Datagrams lost at each host, in thousandths
    #[arg(long, value_name = "PERMILLE", default_value_t = 10, value_parser = clap::value_parser!(u16).range(0..=500))]
    pub(crate) loss: u16,
    /// Directory of memory images: with a guests.json of examples/guests/make-guests.sh, or any *.ram and *.raw files.
    /// Default: target/guests/small if it is there, else memory is generated
    #[arg(long, value_name = "DIR")]
    pub(crate) images: Option<PathBuf>,
    /// Generates memory even if images of real guests are there
    #[arg(long, conflicts_with = "images")]
    pub(crate) generated: bool,
    /// MiB of each generated image
    #[arg(long, value_name = "MIB", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) size: u32,
    /// Keeps everything made (images, keys, plan, reports) in this directory, which must be new or empty
    #[arg(long, value_name = "DIR")]
    pub(crate) keep: Option<PathBuf>,
    /// Rate of the sender's link and of the transfer, in bit/s
    #[arg(long, value_parser = parse::bits_per_s, default_value = "1G")]
    pub(crate) rate: u64,
    /// Clones of a running micro-VM on each host, where KVM is there; 0 for none
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(0..=64))]
    pub(crate) clones: u32,
    /// Where the HTML report goes
    #[arg(long, value_name = "FILE", default_value = "scatter-demo.html", overrides_with = "html")]
    pub(crate) html: PathBuf,
    /// Opens the HTML report in the browser (xdg-open)
    #[arg(long)]
    pub(crate) open: bool,
    /// Uses the loopback interface even where namespaces are allowed
    #[arg(long)]
    pub(crate) loopback: bool,
}

/// Makes a fleet's CA and the hosts' certificates
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  scatter keys init keys
  scatter keys host keys src --role sender
  scatter keys host keys h1 --address 10.0.0.11
  scatter keys show keys

Bring keys/h1 to host h1 and give it to `scatter receive --keys`. The CA's key, keys/ca.key.pem, stays where it is.")]
pub(crate) struct Keys {
    /// What to do
    #[command(subcommand)]
    pub(crate) command: KeysCommand,
}

/// The commands of `keys`.
#[derive(Subcommand, Debug)]
pub(crate) enum KeysCommand {
    /// Makes a fleet's CA in a directory
    Init {
        /// The directory, made if need be
        dir: PathBuf,
    },
    /// Issues a host's certificate and key, into DIR/NAME
    Host {
        /// Directory of the CA
        dir: PathBuf,
        /// Name of the host as plans have it: letters, digits, hyphens and dots
        name: String,
        /// What the host may do
        #[arg(long, value_enum, default_value_t = RoleChoice::Receiver)]
        role: RoleChoice,
        /// Addresses that the certificate is also valid for
        #[arg(long = "address", value_name = "IP")]
        addresses: Vec<IpAddr>,
        /// Days of validity
        #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3650))]
        days: u32,
    },
    /// Shows what certificates say; never a key
    Show {
        /// A certificate, a host's directory, or the CA's directory
        path: PathBuf,
    },
}

/// `--role`.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum RoleChoice {
    /// May send VMs' memory to hosts
    Sender,
    /// May receive it
    Receiver,
    /// Both
    Both,
}

/// Receives images: runs on each target host
#[derive(Args, Debug)]
#[command(after_help = "\
A finished image is STORE/<vm>.ram, byte-identical to its source, and never there half-done.

Examples:
  scatter receive --name h1 --store /var/lib/scatter --keys keys/h1
  scatter receive --name h1 --listen 10.0.0.11:47078 --interface eth1 --store /srv/vms --keys keys/h1 --once
  scatter receive --config /etc/scatter/receive.toml

A configuration file has the flags' names as keys (TOML, or JSON if it ends in .json):
  name = \"h1\"
  listen = \"0.0.0.0:47078\"
  store = \"/var/lib/scatter\"
  keys = \"/etc/scatter/keys\"")]
pub(crate) struct Receive {
    /// Configuration file, TOML or JSON; flags go before it
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Name of this host, as in plans and in its certificate. Default: the certificate's
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Address and port for senders. Default: 0.0.0.0:47078
    #[arg(long, value_name = "IP:PORT")]
    pub(crate) listen: Option<SocketAddr>,
    /// Interface for the data, by name or address. Default: the one by which the sender came
    #[arg(long, value_name = "NAME|IP")]
    pub(crate) interface: Option<String>,
    /// Directory of images. Default: store
    #[arg(long, value_name = "DIR")]
    pub(crate) store: Option<PathBuf>,
    /// Directory with ca.pem, host.pem and host.key.pem. Default: keys
    #[arg(long, value_name = "DIR", env = "SCATTER_KEYS")]
    pub(crate) keys: Option<PathBuf>,
    /// What senders may have started here (`scatter clone`); may be given more than once. Default: nothing
    #[arg(long, value_enum, value_name = "KIND")]
    pub(crate) launch: Vec<LaunchKind>,
    #[command(flatten)]
    pub(crate) programs: Programs,
    /// Finished images of other transfers may be replaced
    #[arg(long)]
    pub(crate) replace: bool,
    /// Ends after the first complete transfer
    #[arg(long)]
    pub(crate) once: bool,
    /// Threads that verify and place blocks. Default: number of CPUs, at most 8
    #[arg(long)]
    pub(crate) workers: Option<usize>,
    /// Socket buffer in bytes. Default: 33554432 (32 MiB)
    #[arg(long, value_name = "BYTES")]
    pub(crate) rcvbuf: Option<usize>,
    /// Directory whose images (*.ram, *.raw) a sender may have measured; may be given more than once. Default: none, and
    /// `scatter measure` is refused: who measures learns which pages are equal to which
    #[arg(long, value_name = "DIR")]
    pub(crate) measure: Vec<PathBuf>,
    /// Ends when standard input does
    #[arg(long, hide = true)]
    pub(crate) while_stdin: bool,
}

/// Sends VMs' memory as a plan says
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  scatter send --group plan.json --keys keys/src
  scatter send --group plan.json --rate 900M --encoding zstd:1
  scatter send --group plan.json --rate auto:min=100M,max=10G --report transfer.json --report transfer.html
  scatter send --group plan.json --json | jq .
  scatter send --group evacuate.json --mode hybrid

A VM whose `image` is `qmp:PATH`, the monitor of a running QEMU, leaves this host: it goes on at its host, and ends here when it has
all of its memory there. `scatter status` tells where each stands, `scatter cancel` keeps those here that still can be.

Interrupted (Ctrl-C) or broken transfers are resumed by the same command: hosts keep what they verified.")]
pub(crate) struct Send {
    /// The plan (`scatter plan`, `scatter schema plan`)
    #[arg(long, value_name = "PLAN")]
    pub(crate) group: PathBuf,
    /// Directory with ca.pem, host.pem and host.key.pem of a sender. Default: keys/<the plan's source>
    #[arg(long, value_name = "DIR", env = "SCATTER_KEYS")]
    pub(crate) keys: Option<PathBuf>,
    /// Interface that sends, by name or address. Default: the plan's source address, else the route to the hosts
    #[arg(long, value_name = "NAME|IP")]
    pub(crate) interface: Option<String>,
    /// Rate on the sender's link in bit/s, headers counted: 900M, 2.5G; or auto, auto:min=…,init=…,max=…
    #[arg(long, default_value = "auto", value_parser = parse::rate)]
    pub(crate) rate: Rate,
    /// auto, raw, lz4, zstd or zstd:LEVEL; auto measures what is fastest on this link with these images
    #[arg(long, default_value = "auto", value_parser = parse::encoding)]
    pub(crate) encoding: EncodingChoice,
    /// Bytes of a symbol, one in each datagram: 1424 fits an MTU of 1500, 8920 one of 9000; auto takes the paths' MTU
    #[arg(long, visible_alias = "mtu", default_value = "auto", value_parser = parse::symbol_size)]
    pub(crate) symbol_size: SymbolSize,
    /// Writes a JSON line for each event and the report to standard output
    #[arg(long)]
    pub(crate) json: bool,
    /// Writes a report: JSON, or HTML if it ends in .html. May be given twice
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Vec<PathBuf>,
    /// Seconds without any progress after which a host has failed
    #[arg(long, default_value = "20", value_parser = parse::seconds, value_name = "SECONDS")]
    pub(crate) timeout: Duration,
    /// Seconds that hosts which cannot be reached are waited for before the others start
    #[arg(long, default_value = "0.5", value_parser = parse::seconds, value_name = "SECONDS")]
    pub(crate) grace: Duration,
    /// Threads that read and encode. Default: number of CPUs
    #[arg(long)]
    pub(crate) threads: Option<usize>,
    /// MiB of encoded blocks kept for repair
    #[arg(long, default_value_t = 64, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=65536))]
    pub(crate) window: u64,
    /// VMs that run here: pre-copy (all of it while it runs here), post-copy (all of it while it runs there), or hybrid
    #[arg(long, default_value = "hybrid", value_parser = parse::mode, value_name = "precopy|postcopy|hybrid")]
    pub(crate) mode: Mode,
    /// Pre-copy: milliseconds for which a VM may stand; it stops when what changed could be brought in half of them
    #[arg(long, default_value = "300", value_parser = parse::milliseconds, value_name = "MS")]
    pub(crate) downtime_limit: Duration,
    /// Seconds of pre-copy: then a VM moves as it is (hybrid), or stays (pre-copy)
    #[arg(long, default_value = "300", value_parser = parse::seconds, value_name = "SECONDS")]
    pub(crate) precopy_timeout: Duration,
    /// Where the memory of VMs that run here is kept meanwhile, on a tmpfs. Default: /dev/shm
    #[arg(long, value_name = "DIR")]
    pub(crate) memory: Option<PathBuf>,
    /// Nice value of this sender while VMs that run here leave: 0 if it shall not be more urgent than guests
    #[arg(long, value_name = "N", default_value_t = usage::priority::MOVING, allow_negative_numbers = true,
          value_parser = clap::value_parser!(i32).range(-20..=19))]
    pub(crate) nice: i32,
}

/// Makes an HTML page of a report
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  scatter report transfer.json
  scatter report transfer.json -o transfer.html")]
pub(crate) struct Report {
    /// The report that `send --report` or `demo` wrote
    pub(crate) file: PathBuf,
    /// Where the page goes. Default: the report as text on standard output
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

/// Says what would make a transfer fail, before it does
#[derive(Args, Debug)]
#[command(after_help = "\
Multicast fails in silence: no querier, no snooping, a firewall, an MTU, a small socket buffer. With a plan, a probe goes
to each of its hosts, where `scatter receive` must be running.

Examples:
  scatter doctor
  scatter doctor --interface eth1 --keys keys/src
  scatter doctor --plan plan.json --keys keys/src")]
pub(crate) struct Doctor {
    /// Interface to look at, by name or address
    #[arg(long, value_name = "NAME|IP")]
    pub(crate) interface: Option<String>,
    /// Directory with this host's keys. Default with a plan: keys/<the plan's source>
    #[arg(long, value_name = "DIR", env = "SCATTER_KEYS")]
    pub(crate) keys: Option<PathBuf>,
    /// Probes every host of this plan
    #[arg(long, value_name = "PLAN")]
    pub(crate) plan: Option<PathBuf>,
    /// Findings as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Prints the JSON Schema of a file format
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  scatter schema inventory
  scatter schema plan > plan.schema.json")]
pub(crate) struct Schema {
    /// The format
    #[arg(value_enum)]
    pub(crate) format: Format,
}

/// File formats with a schema.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Format {
    /// Input of `scatter plan`
    Inventory,
    /// Output of `scatter plan`, input of `scatter send`
    Plan,
    /// Output of `scatter measure`, input of `scatter plan --signatures`
    Signatures,
    /// `scatter simulate --json`
    Simulation,
    /// `scatter send --report`
    Report,
}

/// Prints a completion script for a shell
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  scatter completions bash > /etc/bash_completion.d/scatter
  scatter completions zsh > ~/.zfunc/_scatter")]
pub(crate) struct Completions {
    /// The shell
    #[arg(value_enum)]
    pub(crate) shell: clap_complete::Shell,
}

/// Prints the manual page, or writes all of them
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  scatter man | man -l -
  scatter man --dir /usr/local/share/man/man1")]
pub(crate) struct Man {
    /// Writes a page for each command to this directory
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
}
