//! What a transfer leaves in writing: `report.json`, its text, and its HTML page.

mod charts;
mod clones;
mod departures;
mod html;
mod text;

pub(crate) use clones::{CaptureReport, CloneReport, ClonesReport, RehearsalReport, capture_words};
pub(crate) use departures::DepartureReport;
pub(crate) use html::page;
pub(crate) use text::text;

use crate::cli::exit::{Coded, Exit, Failure, Outcome};
use crate::commands::{read_text, write_file};
use anyhow::Context;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Version of the format that this release reads and writes.
const VERSION: u32 = 1;

/// A transfer, after it ended. Times in seconds, sizes in bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TransferReport {
    /// Version of this format: 1.
    #[schemars(range(min = 1, max = 1))]
    pub(crate) version: u32,
    /// Version of the `scatter` that sent.
    pub(crate) scatter: String,
    /// Name of the transfer.
    pub(crate) name: String,
    /// Name of the host that sent.
    pub(crate) source: String,
    /// `complete`, `partial` (some hosts failed), `failed` (all did) or `interrupted`.
    pub(crate) state: String,
    /// Start of the transfer, in seconds since 1970.
    pub(crate) started_unix_s: u64,
    /// How it was sent.
    pub(crate) settings: Settings,
    /// The VMs.
    pub(crate) vms: Vec<VmReport>,
    /// Pages by class, of all VMs.
    pub(crate) classes: Vec<ClassReport>,
    /// The hosts, in the plan's order.
    pub(crate) hosts: Vec<HostReport>,
    /// Sum of the images that are complete at hosts.
    pub(crate) delivered_bytes: u64,
    /// What went over the sender's link.
    pub(crate) network: Network,
    /// How long it took.
    pub(crate) times: Times,
    /// What it took of the sending host.
    pub(crate) cost: Cost,
    /// The segments, in the order of sending.
    pub(crate) segments: Vec<SegmentReport>,
    /// VMs that were captured for this transfer, running or from files with their state.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) captures: Vec<CaptureReport>,
    /// Clones that were started while their memory arrived; only from `clone`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) clones: Option<ClonesReport>,
    /// Running VMs that left, or were to; only from `send` of such VMs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) departures: Vec<DepartureReport>,
    /// The plan as it was foreseen, an SVG: links, what VMs have in common, segments and groups in time. A plan that
    /// foresees nothing has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) plan_picture: Option<String>,
    /// Other ways on the same links; only from `demo`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) comparison: Option<Comparison>,
}

/// How it was sent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    /// Interface that sent.
    pub(crate) interface: String,
    /// Its MTU.
    pub(crate) mtu: u32,
    /// Largest symbol.
    pub(crate) symbol_bytes: u16,
    /// Fixed or automatic rate, in words.
    pub(crate) rate: String,
    /// Encoding of contents.
    pub(crate) encoding: String,
    /// Threads that read and encoded.
    pub(crate) threads: usize,
}

/// A VM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct VmReport {
    /// Its name.
    pub(crate) name: String,
    /// Path of its image.
    pub(crate) image: String,
    /// Length of its image.
    pub(crate) bytes: u64,
    /// Names of the hosts that it went to.
    pub(crate) hosts: Vec<String>,
}

/// Pages of one class (docs/cli.md explains the classes).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClassReport {
    /// `zero`, `uniform_nonzero`, `unique`, `repeated_in_one_vm`, `shared_by_vms_of_one_host`, `shared_across_hosts`.
    pub(crate) name: String,
    /// Pages of 4 KiB in all VMs.
    pub(crate) pages: u64,
    /// Different contents among them; each is sent once for each set of hosts.
    pub(crate) contents: u64,
}

/// A host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct HostReport {
    /// Its name.
    pub(crate) name: String,
    /// Address of its control port.
    pub(crate) address: String,
    /// `complete` or `failed`.
    pub(crate) state: String,
    /// Why it failed.
    pub(crate) reason: Option<String>,
    /// From the start of the transfer to its last image.
    pub(crate) complete_s: Option<f64>,
    /// Encoded bytes that it needed.
    pub(crate) needed_bytes: u64,
    /// VMs that are complete there.
    pub(crate) vms: Vec<String>,
    /// What it cost there, if it completed.
    pub(crate) figures: Option<HostFigures>,
}

/// What a transfer cost at a host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct HostFigures {
    /// Datagrams accepted.
    pub(crate) datagrams: u64,
    /// Datagrams dropped as malformed, unknown or not opening.
    pub(crate) rejected: u64,
    /// Datagrams that the kernel dropped for want of buffer.
    pub(crate) kernel_drops: u64,
    /// Symbols that came though they were not needed any more.
    pub(crate) redundant: u64,
    /// Blocks without repair.
    pub(crate) blocks_plain: u64,
    /// Blocks repaired with Cauchy symbols.
    pub(crate) blocks_cauchy: u64,
    /// Blocks repaired with RaptorQ symbols.
    pub(crate) blocks_raptorq: u64,
    /// Blocks that came whole over the control connection.
    pub(crate) blocks_unicast: u64,
    /// Blocks held from an earlier run.
    pub(crate) blocks_held: u64,
    /// Blocks whose digest did not match at first.
    pub(crate) digest_mismatches: u64,
    /// CPU time.
    pub(crate) cpu_s: f64,
    /// Peak resident memory of the process.
    pub(crate) peak_memory_bytes: u64,
}

/// What went over the sender's link.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Network {
    /// Different contents of all VMs, unencoded.
    pub(crate) content_bytes: u64,
    /// The same in blocks, encoded: what every copy-once transfer must carry.
    pub(crate) encoded_bytes: u64,
    /// Datagrams with IP, UDP and Ethernet headers; without the control connections.
    pub(crate) wire_bytes: u64,
    /// Datagrams sent.
    pub(crate) datagrams: u64,
    /// Of these, source symbols for the first time.
    pub(crate) source_datagrams: u64,
    /// Source symbols sent again.
    pub(crate) again_datagrams: u64,
    /// Cauchy repair symbols.
    pub(crate) cauchy_datagrams: u64,
    /// RaptorQ repair symbols.
    pub(crate) raptorq_datagrams: u64,
    /// Blocks.
    pub(crate) blocks: u64,
    /// Blocks that needed repair at some host.
    pub(crate) blocks_repaired: u64,
    /// Blocks that every host held already.
    pub(crate) blocks_skipped: u64,
    /// Blocks sent whole to single hosts over their control connections.
    pub(crate) catch_up_blocks: u64,
    /// Their bytes.
    pub(crate) catch_up_bytes: u64,
    /// Multicast groups.
    pub(crate) groups: u64,
    /// Groups joined, summed over hosts.
    pub(crate) joins: u64,
    /// Groups left, summed over hosts.
    pub(crate) leaves: u64,
}

/// How long it took.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Times {
    /// Reading and merging the images, and scheduling.
    pub(crate) prepare_s: f64,
    /// From the start of the transfer to the first datagram.
    pub(crate) first_datagram_s: Option<f64>,
    /// From the start of the transfer (connecting) to the end of the last host.
    pub(crate) transfer_s: f64,
    /// Both.
    pub(crate) total_s: f64,
}

/// What it took of the sending host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Cost {
    /// CPU time of the process.
    pub(crate) cpu_s: f64,
    /// The same for each GiB of the VMs' memory.
    pub(crate) cpu_s_per_gib: f64,
    /// Peak resident memory, the mapped images counted.
    pub(crate) peak_resident_bytes: u64,
    /// Peak memory beyond the images, looked at every second and at the end.
    pub(crate) peak_anonymous_bytes: u64,
    /// Peak of the merge index.
    pub(crate) index_bytes: u64,
    /// Peak of encoded blocks kept for repair.
    pub(crate) window_bytes: u64,
}

/// Contents of one host set, sent together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SegmentReport {
    /// Names of the hosts that need them.
    pub(crate) hosts: Vec<String>,
    /// Group address, or null for unicast.
    pub(crate) group: Option<String>,
    /// Contents, unencoded.
    pub(crate) content_bytes: u64,
    /// When its first symbol went out, from the start of the transfer; null if nothing of it had to be sent.
    pub(crate) start_s: Option<f64>,
}

/// Other ways to carry the same images over the same links.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Comparison {
    /// Which memory the images hold.
    pub(crate) memory: String,
    /// What the links were.
    pub(crate) links: String,
    /// How bytes on the link were counted.
    pub(crate) counted: String,
    /// This transfer, counted the same way.
    pub(crate) scatter: Alternative,
    /// The others.
    pub(crate) others: Vec<Alternative>,
}

/// One way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Alternative {
    /// Its name.
    pub(crate) name: String,
    /// Bytes on the sender's link.
    pub(crate) link_bytes: u64,
    /// From its start to the last host's last byte; of `scatter` with reading and merging the images.
    pub(crate) seconds: f64,
    /// Every image at every host was compared byte for byte with its source, and is the same.
    pub(crate) verified: bool,
}

impl TransferReport {
    /// The JSON Schema of a report.
    pub(crate) fn schema() -> serde_json::Value {
        schemars::schema_for!(Self).to_value()
    }

    /// Reads a report.
    pub(crate) fn read(path: &Path) -> Outcome<Self> {
        let report: Self = serde_json::from_str(&read_text(path)?)
            .with_context(|| format!("{} is no report (`scatter schema report`)", path.display()))
            .or_exit(Exit::Input)?;
        if report.version != VERSION {
            let message = format!(
                "{}: format version {}, this release reads {VERSION}",
                path.display(),
                report.version
            );
            return Err(Failure::new(Exit::Input, message));
        }
        Ok(report)
    }

    /// Bytes of all VMs' images, each once.
    pub(crate) fn image_bytes(&self) -> u64 {
        self.vms.iter().map(|vm| vm.bytes).sum()
    }

    /// Bytes of all copies: what a stream to each host carries.
    pub(crate) fn copies_bytes(&self) -> u64 {
        self.vms.iter().map(|vm| vm.bytes * vm.hosts.len() as u64).sum()
    }
}

impl HostReport {
    /// Has every image that it should have.
    pub(crate) fn is_complete(&self) -> bool {
        self.state == "complete"
    }
}

/// Writes a report: a page if the name ends in `.html`, else JSON.
pub(crate) fn write(report: &TransferReport, path: &Path) -> Outcome<()> {
    let html = path.extension().is_some_and(|extension| extension == "html" || extension == "htm");
    let text = if html {
        page(report)
    } else {
        serde_json::to_string_pretty(report).or_exit(Exit::Internal)? + "\n"
    };
    write_file(path, &text)
}
