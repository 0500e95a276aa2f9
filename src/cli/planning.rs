//! The flags of the commands that plan: measure, plan, simulate.

use super::parse;
use clap::Args;
use std::path::PathBuf;

/// Measures what VMs have in common, on this host and on others, for planning
#[derive(Args, Debug)]
#[command(after_help = "\
Pages stay where they are: hosts tell keyed hashes, short ones first, whole ones where others may have the same page.
The result is what `scatter plan --signatures` reads; planning then needs no images at hand.

With --hosts, each host of the inventory is asked; `scatter receive --measure DIR` must be running there.

Examples:
  scatter measure inventory.json -o signatures.json
  scatter measure --hosts inventory.json --keys keys/src -o signatures.json
  scatter measure --hosts inventory.json --sample 64 -o signatures.json
  scatter plan inventory.json --signatures signatures.json -o plan.json")]
pub(crate) struct Measure {
    /// The inventory (`scatter schema inventory`); its images that can be read here are measured here
    pub(crate) inventory: PathBuf,
    /// Where the signatures go. Default: standard output
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Asks each host of the inventory to measure the images that it holds
    #[arg(long)]
    pub(crate) hosts: bool,
    /// Counts pages of the hosts' other images as pages that need not be sent to them; `scatter send` asks these hosts once
    /// more what they hold, and leaves it out
    #[arg(long, requires = "hosts")]
    pub(crate) resident: bool,
    /// Directory with ca.pem, host.pem and host.key.pem of a sender. Default: keys/<the inventory's source>
    #[arg(long, value_name = "DIR", env = "SCATTER_KEYS")]
    pub(crate) keys: Option<PathBuf>,
    /// Keeps one content in N, chosen by its keyed hash: less memory and traffic, for very large fleets. The file has
    /// the error
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) sample: u32,
    /// Encoding whose sizes are sampled: raw, lz4, zstd or zstd:LEVEL
    #[arg(long, default_value = "zstd:1", value_parser = parse::fixed_encoding)]
    pub(crate) encoding: pages::block::Encoding,
    /// Threads that read images here. Default: number of CPUs
    #[arg(long)]
    pub(crate) threads: Option<usize>,
}

/// Makes a plan: who hosts which VM, in which groups, in which order
#[derive(Args, Debug)]
#[command(after_help = "\
Images that can be read here are measured: which pages are equal, and what they take encoded. Others are assumed to be
unlike any other, at full size.

Examples:
  scatter plan inventory.json -o plan.json
  scatter plan inventory.json --no-measure
  scatter plan inventory.json --signatures measured.json -o plan.json
  scatter plan inventory.json --signatures measured.json --explain
  scatter plan inventory.json --signatures measured.json --explain=web3,db
  scatter plan inventory.json --without h3                what if h3 is full, or gone?
  scatter plan inventory.json --apart web1,db             what does it cost to keep them apart?
  scatter plan inventory.json --groups                    how many groups are needed, what would more buy?
  scatter plan inventory.json --signatures measured.json --svg plan.svg")]
pub(crate) struct Plan {
    /// The inventory (`scatter schema inventory`)
    pub(crate) inventory: PathBuf,
    /// Where the plan goes. Default: standard output
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Weights measured earlier, in place of measuring
    #[arg(long, value_name = "FILE")]
    pub(crate) signatures: Option<PathBuf>,
    /// Writes the weights measured, for later plans
    #[arg(long, value_name = "FILE", conflicts_with = "signatures")]
    pub(crate) save_signatures: Option<PathBuf>,
    /// Does not read images
    #[arg(long, conflicts_with_all = ["signatures", "save_signatures"])]
    pub(crate) no_measure: bool,
    /// Says why VMs go where they go, and what other hosts would cost: all, or those named
    #[arg(long, value_name = "VM,…", num_args = 0.., require_equals = true, value_delimiter = ',')]
    pub(crate) explain: Option<Vec<String>>,
    /// What if this host takes no VM, as it is full or gone? The plan is made again, and compared. May be given more than
    /// once, each a question of its own
    #[arg(long, value_name = "HOST")]
    pub(crate) without: Vec<String>,
    /// What does it cost to keep these two VMs apart? As --without
    #[arg(long, value_name = "VM,VM", value_parser = parse::pair)]
    pub(crate) apart: Vec<(String, String)>,
    /// Says how many group addresses are enough, and what more would buy
    #[arg(long)]
    pub(crate) groups: bool,
    /// Draws the plan: the network with its load, what VMs have in common, who is in which group when
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
    /// Seed of the search for an order of groups
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Threads that read images. Default: number of CPUs
    #[arg(long)]
    pub(crate) threads: Option<usize>,
}

/// Runs a plan's schedule on a modelled network: bytes on each link, joins and leaves, times
#[derive(Args, Debug)]
#[command(after_help = "\
Nothing is sent. The model takes links, joins and leaves from the plan; losses, latency, slow hosts and the rate from
here. Bytes are those on links, headers counted, beside those that the plan foresees. Equal seeds give equal results.

Examples:
  scatter simulate plan.json
  scatter simulate plan.json --rate 900M --loss 10
  scatter simulate plan.json --host-loss h3=50 --slow h5=200M --leave-tail-ms 2000
  scatter simulate plan.json --loss 10 --seed 7 --json | jq .done_p99_us")]
pub(crate) struct Simulate {
    /// The plan (`scatter plan`)
    pub(crate) plan: PathBuf,
    /// Rate on the sender's link in bit/s, headers counted. Default: the link's
    #[arg(long, value_parser = parse::bits_per_s)]
    pub(crate) rate: Option<u64>,
    /// Datagrams lost on the way to each host, in thousandths. Default: the plan's multicast.loss_ppm
    #[arg(long, value_name = "PERMILLE", value_parser = clap::value_parser!(u32).range(0..=500))]
    pub(crate) loss: Option<u32>,
    /// Another loss for one host, as h3=50, in thousandths. May be given more than once
    #[arg(long, value_name = "HOST=PERMILLE", value_parser = parse::host_figure)]
    pub(crate) host_loss: Vec<(String, u64)>,
    /// What one host can take in and write, as h3=200M, in bit/s. May be given more than once
    #[arg(long, value_name = "HOST=RATE", value_parser = parse::host_rate)]
    pub(crate) slow: Vec<(String, u64)>,
    /// One way over each link, in µs
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 25, value_parser = clap::value_parser!(u64).range(0..=10_000_000))]
    pub(crate) latency_us: u64,
    /// From a join to the first datagram, in ms. Default: the plan's, and 5 that the sender adds
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(0..=60_000))]
    pub(crate) join_latency_ms: Option<u64>,
    /// For how long datagrams come after a leave, in ms. Default: the plan's
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(0..=600_000))]
    pub(crate) leave_tail_ms: Option<u64>,
    /// Seed of the losses
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// The result as JSON (`scatter schema simulation`)
    #[arg(long)]
    pub(crate) json: bool,
}
