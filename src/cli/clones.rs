//! The flags of `clone` and `microvm`.

use super::args::Send;
use super::capture::{How, Rehearse};
use super::parse;
use clap::{Args, ValueEnum};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Clones running VMs: each starts at its host while its memory still arrives
#[derive(Args, Debug)]
#[command(after_help = "\
The plan's VMs that are to be started have `launch`; how many clones of each start on a host is told by `instances`:
  \"vms\": [{\"name\": \"golden\", \"image\": \"golden.mem\", \"memory_mib\": 64, \"to\": {\"clones\": 32}, \"clones_per_host\": 4,
           \"launch\": {\"kind\": \"microvm\", \"attachments\": {\"state\": \"golden.state\"}}}]
`launch` may also name a `working_set`: a file of pages in the order in which a guest first touched them, as `scatter microvm`,
`scatter capture --rehearse` and `--record` write it. Its contents are sent before everything else. --rehearse finds it out now.
A VM's image may be qmp:SOCKET, a QEMU that runs: it is captured, and goes on. With its RAM in a shared file it may stand in place of that,
until all clones have it (--way shared-ram-in-place); if this is killed (kill -9) meanwhile, `cont` in its monitor lets it run.
Each host must allow the kind: scatter receive --launch microvm. Device state goes out first; a clone's page faults are answered
ahead of all other data, while multicast brings the rest. It ends when every clone has all of its memory, or is over.

Examples:
  scatter microvm golden --size 64
  scatter clone --group plan.json --keys keys/src
  scatter clone --group plan.json --json | jq 'select(.event == \"clone\")'
  scatter clone --group plan.json --report clones.json
  scatter clone --group plan.json --record . --start at-once --pre-paging off
  scatter clone --group plan.json --from golden=/run/golden.sock
  scatter clone --group plan.json --rehearse machines.toml      # a VM under QEMU that runs")]
pub(crate) struct Clone {
    /// As `scatter send`
    #[command(flatten)]
    pub(crate) send: Send,
    /// Which pages are brought before a guest waits for them, beside multicast
    #[arg(long, value_enum, value_delimiter = ',', value_name = "WAYS", default_values = ["working-set", "around"])]
    pub(crate) pre_paging: Vec<PrePaging>,
    /// How pages come that a guest waits for and several hosts of a group lack
    #[arg(long, value_enum, value_name = "HOW", default_value_t = SharedFaults::Multicast)]
    pub(crate) shared_faults: SharedFaults,
    /// When clones start
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = StartWhen::WorkingSet)]
    pub(crate) start: StartWhen,
    /// Writes a working set for each VM started, DIR/VM.working-set: the one used, and behind it the pages that clones missed when
    /// they touched them, in order
    #[arg(long, value_name = "DIR")]
    pub(crate) record: Option<PathBuf>,
    /// Takes the VM's snapshot first, from the running VM whose hypervisor has its API there (`scatter capture`): its image,
    /// its attachments and the plan are written anew. To take up a transfer that broke off, leave it out. May be given more than once
    #[arg(long, value_name = "VM=SOCKET", value_parser = parse::vm_socket)]
    pub(crate) from: Vec<(String, String)>,
    /// VMs under QEMU that run
    #[command(flatten)]
    pub(crate) capture: How,
    /// Their first touches
    #[command(flatten)]
    pub(crate) rehearse: Rehearse,
    /// Where the memory of VMs that run is put while it is sent; best on a tmpfs
    #[arg(long, value_name = "DIR", default_value = "/dev/shm")]
    pub(crate) capture_dir: PathBuf,
}

/// `--pre-paging`.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum PrePaging {
    /// None: pages come by multicast, or because a guest waits for them
    Off,
    /// 16 missing pages behind each fault and 8 before it, while no blocks come ("bubbling")
    Around,
    /// The recorded working set in first-touch order: its contents are the first blocks, and it is asked for while no blocks come
    WorkingSet,
}

/// `--shared-faults`.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SharedFaults {
    /// Their block goes out next on the group if it is there within 10 ms; by unicast if it is not there 30 ms later
    Multicast,
    /// To each host by itself
    Unicast,
}

/// `--start`.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum StartWhen {
    /// With the device state
    AtOnce,
    /// With device state and recorded working set; at the latest 0.4 s after the device state
    WorkingSet,
}

/// Takes a snapshot of a running VM to clone, through its hypervisor's API; the VM runs on
#[derive(Args, Debug)]
#[command(after_help = "\
DIR gets `memory` (raw), the VM's state, and `launch.json`: the `launch` of a plan's VM whose image is `memory`. The VM stands still while it is
written, so DIR belongs on a tmpfs. Cloud Hypervisor's VMs need memory with shared=on. A hypervisor in a jail must see DIR by the same path.

Examples:
  scatter capture firecracker /run/golden.sock /dev/shm/golden
  scatter capture firecracker /run/golden.sock /dev/shm/later --base /dev/shm/golden/memory
  scatter capture cloud-hypervisor /run/ch.sock /dev/shm/golden
  scatter capture qemu /run/vm/qmp.sock /dev/shm/golden --snapshot-disks /srv/vm")]
pub(crate) struct Capture {
    /// The hypervisor
    #[arg(value_enum)]
    pub(crate) kind: CaptureKind,
    /// Its API's socket
    pub(crate) socket: PathBuf,
    /// The directory, made if need be
    pub(crate) dir: PathBuf,
    /// Only what changed since the VM's last snapshot, whose memory this is, is written by the hypervisor (Firecracker)
    #[arg(long, value_name = "MEMORY")]
    pub(crate) base: Option<PathBuf>,
    /// Its first touches
    #[command(flatten)]
    pub(crate) rehearse: Rehearse,
    /// QEMU
    #[command(flatten)]
    pub(crate) how: How,
}

/// Writes an image for `virsh restore` of what `scatter capture qemu` wrote: a clone of a domain, under another name
#[derive(Args, Debug)]
#[command(after_help = "\
XML is the clone's domain: the source's, as `virsh save-image-dumpxml` or `virsh dumpxml --migratable` writes it, with another <name>, <uuid>, MAC and
disks. Everything else must stay: libvirt starts QEMU with it, and QEMU takes only the memory and devices it had.

Examples:
  virsh save-image-dumpxml golden.save | sed 's/<name>golden</<name>one</; /<uuid>/d' >one.xml
  scatter capture qemu golden.save /dev/shm/golden
  scatter save-image /dev/shm/golden one.xml one.save && virsh restore one.save")]
pub(crate) struct SaveImage {
    /// The directory with `memory` and `state`
    pub(crate) dir: PathBuf,
    /// The domain's definition
    pub(crate) xml: PathBuf,
    /// The image, which must be new
    pub(crate) image: PathBuf,
    /// The domain stands when it is restored
    #[arg(long)]
    pub(crate) paused: bool,
}

/// Hypervisors whose running VMs can be captured; named as [`LaunchKind`].
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum CaptureKind {
    /// Firecracker: pause, snapshot, resume
    Firecracker,
    /// Cloud Hypervisor: a local migration that is not finished
    CloudHypervisor,
    /// Stock QEMU, by its monitor (QMP), while it runs; also a file in mapped-ram format, or an image of `virsh save`
    Qemu,
}

impl CaptureKind {
    /// As it is given.
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// Says where VMs that leave stand, which clones run at a plan's hosts, and who they depend on
#[derive(Args, Debug)]
#[command(after_help = "\
A clone with missing pages depends on the sender that is connected: it must stay. One that nobody feeds waits at its next missing page;
the same `scatter clone` again feeds it. Exit code 5 or 6 if hosts cannot be asked.

Examples:
  scatter status --group plan.json --keys keys/src
  scatter status --group plan.json --json | jq .")]
pub(crate) struct Status {
    /// The plan
    #[arg(long, value_name = "PLAN")]
    pub(crate) group: PathBuf,
    /// Directory with this host's keys. Default: keys/<the plan's source>
    #[arg(long, value_name = "DIR", env = "SCATTER_KEYS")]
    pub(crate) keys: Option<PathBuf>,
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Keeps VMs that leave this host, as far as they still can be kept; ends clones that lack pages
#[derive(Args, Debug)]
#[command(after_help = "\
VMs that leave: a VM that was not handed over runs on here, and its host forgets it. One that was handed over may run at its host already: that is
refused in words, and its sender goes on. Without a sender, as after a crash, VMs that it left standing are set running again.
Exit code 5 or 6 if it was too late for some or all.

Clones of a `scatter clone`: those that have all of their memory run on. The others are ended, by name, and their hosts give back what
they held; the sender ends with code 7. If no sender runs here, the hosts are asked: they turn away the one that had begun, wherever it
runs. Exit code 5 or 6 if hosts cannot be asked.

Examples:
  scatter cancel --group evacuate.json
  scatter cancel --group plan.json --keys keys/src")]
pub(crate) struct Cancel {
    /// The plan that `scatter send` or `scatter clone` runs, or ran
    #[arg(long, value_name = "PLAN")]
    pub(crate) group: PathBuf,
    /// Directory with this host's keys, to ask hosts of clones. Default: keys/<the plan's source>
    #[arg(long, value_name = "DIR", env = "SCATTER_KEYS")]
    pub(crate) keys: Option<PathBuf>,
}

/// Makes a snapshot to clone: a small self-checking guest on KVM, for trials and never a product
#[derive(Args, Debug)]
#[command(after_help = "\
DIR gets `memory` (raw) and `state`: the image and the attachment of a plan's VM with `launch` kind `microvm`; and `working-set`,
the pages that the guest touched first when it was restored once.

Examples:
  scatter microvm golden
  scatter microvm golden --size 256 --seed 7
  scatter microvm golden --step 16 --rest 200       # for a hundred clones on a small machine")]
pub(crate) struct Microvm {
    /// The directory, made if need be
    pub(crate) dir: PathBuf,
    /// MiB of memory
    #[arg(long, value_name = "MIB", default_value_t = 32, value_parser = clap::value_parser!(u64).range(16..=3072))]
    pub(crate) size: u64,
    /// Decides the memory's contents
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Pages that the guest checks between two of its reports
    #[arg(long, value_name = "PAGES", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) step: u32,
    /// Milliseconds that the guest, and every clone of it, rests after each of its reports. Where many clones share few CPUs, 2 asks for
    /// more than there is: 128 on two CPUs want some 200
    #[arg(long, value_name = "MS", default_value_t = 2, value_parser = clap::value_parser!(u32).range(0..=999))]
    pub(crate) rest: u32,
    /// Milliseconds that the snapshot runs for, restored, to record its working set; 0 records none
    #[arg(long, value_name = "MS", default_value_t = 200, value_parser = clap::value_parser!(u64).range(0..=10_000))]
    pub(crate) record: u64,
}

/// `scatter receive --launch`: what senders may have started on a host.
#[derive(ValueEnum, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LaunchKind {
    /// The project's own micro-VM on KVM, in this process: for trials
    Microvm,
    /// Firecracker
    Firecracker,
    /// Cloud Hypervisor
    CloudHypervisor,
    /// Stock QEMU, with the machines of --qemu
    Qemu,
}

impl LaunchKind {
    /// As it is given.
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// The programs that run clones, and what is this host's own: `[programs]` in the configuration file.
#[derive(Args, Deserialize, Clone, Default, Debug)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Programs {
    /// Firecracker's binary, for `--launch firecracker`. Default: `firecracker` in PATH
    #[arg(long, value_name = "FILE", env = "SCATTER_FIRECRACKER")]
    pub(crate) firecracker: Option<PathBuf>,
    /// Cloud Hypervisor's binary, for `--launch cloud-hypervisor`. Default: `cloud-hypervisor` in PATH
    #[arg(long, value_name = "FILE", env = "SCATTER_CLOUD_HYPERVISOR")]
    pub(crate) cloud_hypervisor: Option<PathBuf>,
    /// Directory in which clones that are processes of their own have a folder each: API socket, console, log. Its path must be
    /// short. Default: clones, in the store
    #[arg(long, value_name = "DIR")]
    pub(crate) clones: Option<PathBuf>,
    /// Tap device of a clone's network interface: {slot} is the smallest number that no other clone here has, from 0, {iface} the
    /// interface's id. Default: as in the snapshot
    #[arg(long, value_name = "NAME")]
    pub(crate) tap: Option<String>,
    /// File of machines for `--launch qemu` (TOML, or JSON if it ends in .json; docs/qemu.md); may be given more than once
    #[arg(long, value_name = "FILE")]
    pub(crate) qemu: Vec<PathBuf>,
    /// Nice value of this receiver while VMs move here, not of their QEMUs: 0 if it shall not be more urgent than guests. Default:
    /// -5, where that is allowed
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(i32).range(-20..=19))]
    pub(crate) nice: Option<i32>,
}

impl Programs {
    /// What was given as flags, else what the file has; its relative paths start at `base`.
    pub(crate) fn or(self, file: Self, base: &Path) -> Self {
        let beside = |path: Option<PathBuf>| path.map(|path| base.join(path));
        // A bare name is one to look up, not a file beside.
        let program = |path: Option<PathBuf>| {
            path.map(|path| if path.components().count() == 1 { path } else { base.join(path) })
        };
        Self {
            firecracker: self.firecracker.or(program(file.firecracker)),
            cloud_hypervisor: self.cloud_hypervisor.or(program(file.cloud_hypervisor)),
            clones: self.clones.or(beside(file.clones)),
            tap: self.tap.or(file.tap),
            qemu: if self.qemu.is_empty() {
                file.qemu.into_iter().map(|path| base.join(path)).collect()
            } else {
                self.qemu
            },
            nice: self.nice.or(file.nice),
        }
    }
}
