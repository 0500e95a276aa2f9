//! The network of an inventory: hosts, racks, links, multicast.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{is_one, one};

/// The host that holds the VMs' memory and sends it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Name of the host, for reports.
    pub name: String,
    /// IP address whose interface sends. Default: the interface that routes to the hosts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Rate of its link, in Mbit/s (10^6 bit/s), at least 1.
    pub rate_mbps: u32,
    /// Name of its rack, one of `topology.racks`. Default: at the core.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rack: Option<String>,
}

/// A target host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// Name: the DNS name in the host's certificate. Letters, digits, `-`, `.` and `_`.
    pub name: String,
    /// Address of its `scatter receive`, `ip:port` (`[ip]:port` with IPv6).
    pub address: String,
    /// Memory for VMs, in MiB.
    pub memory_mib: u64,
    /// Virtual CPUs that VMs may have in all; above the number of cores to overcommit.
    pub vcpus: u32,
    /// Rate of its link, in Mbit/s (10^6 bit/s), at least 1.
    pub rate_mbps: u32,
    /// What a byte on its link counts when placements are compared, 0–1,000,000. Default: 1.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub link_cost: u32,
    /// Name of its rack, one of `topology.racks`. Default: at the core.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rack: Option<String>,
    /// Name of its failure domain (a power feed, a room): what fails together. Default: a domain of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
}

/// The network between source and hosts: a tree of switches, the core at its root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Topology {
    /// Racks; hosts and the source name theirs in `rack`.
    pub racks: Vec<Rack>,
}

/// Hosts behind one switch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rack {
    /// Name.
    pub name: String,
    /// Rate of the link between the rack's switch and the core (or `within`), each way, in Mbit/s (10^6 bit/s), at
    /// least 1.
    pub uplink_mbps: u32,
    /// What a byte on that link counts when placements are compared, 0–1,000,000. Default: 1.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub uplink_cost: u32,
    /// Name of the rack (a pod, a row) whose switch its own hangs on. Default: the core.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within: Option<String>,
}

/// The multicast addresses of a transfer, and what the network bears.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Multicast {
    /// Range of group addresses, such as `239.77.0.0/16` (IPv4, /10 to /32) or `ff15::4d00:0/112` (IPv6, /96 to
    /// /128). Two transfers at once need ranges apart.
    pub pool: String,
    /// UDP port of the data, 1–65,535. Default: 47077.
    #[serde(default = "default_port")]
    pub port: u16,
    /// Most group addresses in use; switches hold a limited number. 0: everything by unicast. Default: 1024.
    #[serde(default = "default_max_groups")]
    pub max_groups: u32,
    /// Most group addresses that one host joins at once (Linux: `net.ipv4.igmp_max_memberships`). Default: 20.
    #[serde(default = "default_memberships_max")]
    pub memberships_max: u32,
    /// Time to live, or hop limit, of the datagrams, 1–255: 1 stays within the subnet. Default: 1.
    #[serde(default = "default_ttl")]
    #[schemars(range(min = 1))]
    pub ttl: u8,
    /// Milliseconds from a join to the first datagram. Default: 20 (Linux bridge: 9–20).
    #[serde(default = "default_join_latency_ms")]
    pub join_latency_ms: u32,
    /// Milliseconds for which datagrams still come after a leave. Default: 2000 (no fast-leave: 2030).
    #[serde(default = "default_leave_tail_ms")]
    pub leave_tail_ms: u32,
    /// Most bytes that a host may get without needing them, in groups that hold more hosts than a segment has, in
    /// thousandths of its need, 0–1000. With strict isolation none. Default: 20.
    #[serde(default = "default_superset_permille")]
    #[schemars(range(max = 1000))]
    pub superset_permille: u32,
    /// Bytes of an IP packet on the path, 576–65,535; for predictions. Default: 1500.
    #[serde(default = "default_mtu")]
    #[schemars(range(min = 576, max = 65_535))]
    pub mtu: u32,
    /// Packets lost on the way to a host, in millionths, 0–500,000; for predictions. Default: 0.
    #[serde(default)]
    #[schemars(range(max = 500_000))]
    pub loss_ppm: u32,
}

/// How far apart tenants are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Isolation {
    /// Equal pages are merged over all VMs; a sliver may travel in a group with hosts that do not need it.
    #[default]
    Normal,
    /// Pages are merged within a tenant only, and each group is exactly the hosts that need its pages.
    Strict,
}

const fn default_port() -> u16 {
    47077
}

const fn default_max_groups() -> u32 {
    1024
}

const fn default_memberships_max() -> u32 {
    20
}

const fn default_ttl() -> u8 {
    1
}

const fn default_join_latency_ms() -> u32 {
    20
}

const fn default_leave_tail_ms() -> u32 {
    2000
}

const fn default_superset_permille() -> u32 {
    20
}

const fn default_mtu() -> u32 {
    1500
}
