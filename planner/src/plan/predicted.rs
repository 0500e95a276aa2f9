//! What a plan foresees: bytes on every link, times, and what other ways would cost.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::network::LinkKind;

/// Predicted totals of a plan. Unless it says otherwise, bytes are payload, without headers and repair.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Predicted {
    /// Whether the bytes follow from measured images; otherwise each VM counts in full.
    pub measured: bool,
    /// Bytes of all segments, each once: the least that the source can send.
    pub unique_bytes: u64,
    /// Bytes on the source's link.
    pub source_bytes: u64,
    /// Bytes on each host's link, in the order of `hosts`.
    pub host_bytes: Vec<u64>,
    /// Bytes that each host needs, in the order of `hosts`.
    pub host_needed_bytes: Vec<u64>,
    /// Every link: the source's, then those of racks, then those of hosts in the order of `hosts`.
    pub links: Vec<LinkLoad>,
    /// Sum of what hosts need.
    pub placement_bytes: u64,
    /// What the placement minimises: bytes needed behind each link, times the link's cost, summed over all links but
    /// the source's.
    pub placement_cost: u64,
    /// What no placement can bring that cost below, as far as known; the cost itself if it is proved least.
    pub placement_cost_min: u64,
    /// How the placement was found.
    pub placement_method: String,
    /// What other ways of placing would cost, the cheapest first.
    pub placement_alternatives: Vec<Alternative>,
    /// How groups are used.
    pub mode: Mode,
    /// What each way of using groups would cost, the one chosen among them.
    pub modes: Vec<ModeCost>,
    /// Joins of group addresses over all hosts; leaves are as many.
    pub joins: u64,
    /// Hosts that change between successive groups: the cost that the order minimises.
    pub membership_changes: u64,
    /// What no order can bring that cost below, as far as known.
    pub membership_changes_min: u64,
    /// Time spent waiting for joins, in ms, rounded up.
    pub stall_ms: u64,
    /// Time to send, headers and repair included, at the links' rates, in ms, rounded up.
    pub duration_ms: u64,
    /// What no schedule of this placement can go below, in ms, headers and repair included: the time of the busiest
    /// link if each carried what is needed behind it, once.
    pub duration_ms_min: u64,
    /// When each host has everything, in ms from the start, in the order of `hosts`.
    pub host_done_ms: Vec<u64>,
}

/// What a link carries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LinkLoad {
    /// Which sort of link.
    pub kind: LinkKind,
    /// The source, rack or host at its end.
    pub name: String,
    /// Its rate, in Mbit/s (10^6 bit/s).
    pub rate_mbps: u64,
    /// Bytes on it: those needed behind it, by class, and `extra_bytes`.
    pub bytes: u64,
    /// Bytes needed behind it, each content once.
    pub classes: ClassBytes,
    /// Second copies by unicast, and bytes for hosts that do not need them.
    pub extra_bytes: u64,
    /// Bytes with headers of Ethernet, IP, UDP and our own, and the repair expected at `multicast.loss_ppm`.
    pub network_bytes: u64,
    /// Time that it is busy, in ms, rounded up.
    pub busy_ms: u64,
}

/// Bytes by the class of the contents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClassBytes {
    /// Of one VM on one host, once in its memory.
    pub unique: u64,
    /// Of one VM on one host, several times in its memory.
    pub repeated: u64,
    /// Of several VMs, all on one host.
    pub one_host: u64,
    /// Of VMs on several hosts.
    pub several_hosts: u64,
    /// Names of contents, and where they belong, for a host that holds them already. Default: 0.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub named: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
pub(super) const fn is_zero(figure: &u64) -> bool {
    *figure == 0
}

impl ClassBytes {
    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        let parts = [self.unique, self.repeated, self.one_host, self.several_hosts, self.named];
        parts.into_iter().fold(0, u64::saturating_add)
    }

    /// Adds another's bytes.
    pub fn add(&mut self, other: &Self) {
        self.unique = self.unique.saturating_add(other.unique);
        self.repeated = self.repeated.saturating_add(other.repeated);
        self.one_host = self.one_host.saturating_add(other.one_host);
        self.several_hosts = self.several_hosts.saturating_add(other.several_hosts);
        self.named = self.named.saturating_add(other.named);
    }
}

/// Another way of placing, and its cost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Alternative {
    /// The way.
    pub method: String,
    /// Its `placement_cost`.
    pub cost: u64,
}

/// A way of using groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Every host set has a group with an address of its own; slivers by unicast or in a superset's group.
    ExactSets,
    /// Fewer addresses than host sets: each is used by one group after another, hosts join ahead.
    ChurningGroups,
    /// One address for everything: hosts join and leave it between segments.
    OneChurningGroup,
    /// Few groups, each joined once, large enough for several host sets: hosts get bytes that they do not need.
    StaticGroups,
    /// No groups: a copy for each host.
    Unicast,
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::ExactSets => "a group for each host set",
            Self::ChurningGroups => "groups that take turns on fewer addresses",
            Self::OneChurningGroup => "one group that hosts join and leave",
            Self::StaticGroups => "few groups, joined once",
            Self::Unicast => "unicast",
        })
    }
}

/// What a way of using groups costs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModeCost {
    /// The way.
    pub mode: Mode,
    /// Why the inventory's limits do not allow it. Default: they do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// Group addresses used.
    pub addresses: u64,
    /// Groups.
    pub groups: u64,
    /// Joins over all hosts; leaves are as many.
    pub joins: u64,
    /// Bytes on the source's link.
    pub source_bytes: u64,
    /// Bytes on all links.
    pub traffic_bytes: u64,
    /// Bytes that hosts get without needing them, after leaves included.
    pub unwanted_bytes: u64,
    /// Time spent waiting for joins, in ms, rounded up.
    pub stall_ms: u64,
    /// Time to send, headers and repair left out, in ms, rounded up.
    pub duration_ms: u64,
    /// What the ways are compared by, in bytes: traffic times the links' costs, what comes after leaves, and what the
    /// source could have sent while it waited.
    pub cost: u64,
}
