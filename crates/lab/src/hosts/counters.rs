//! What the interfaces counted.

use std::ops::Sub;

use super::LabError;

/// Counters of one network interface. Bytes are those of whole Ethernet frames without
/// preamble and checksum: UDP over IPv4 adds 42 to each payload. On a lab that is not wire-like, a super-packet counts
/// as one packet and its headers once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkCounters {
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Packets that arrived and were dropped: mostly, that the receiving side had no room in its ring.
    pub rx_dropped: u64,
    /// Of the received packets, those sent to a group. The kernel counts them on few kinds of interfaces.
    pub rx_multicast: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Packets that could not be sent.
    pub tx_dropped: u64,
}

/// Packets and their bytes (on the bridge: without the Ethernet header).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// All counters of a host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostCounters {
    /// The host's interface: `tx` is its uplink, `rx` its downlink.
    pub host: LinkCounters,
    /// The switch's port towards the host: `tx` is the host's downlink.
    pub port: LinkCounters,
    /// What [`Lab::loss`](super::Lab::loss) dropped in front of the port; in no other counter.
    pub lost: Tally,
    /// Second copies that [`Lab::duplicate`](super::Lab::duplicate) made.
    pub duplicated: Tally,
}

/// Bytes of an Ethernet header.
const ETHERNET_HEADER: u64 = 14;

impl HostCounters {
    /// A veth device that does GRO counts frames after their Ethernet header was taken off, one without GRO
    /// before: of a wire-like lab's links, the host's received bytes and those that the port reports as sent to it lack
    /// the headers. This adds them, so that all four figures mean the same.
    pub(super) const fn add_ethernet_headers(mut self) -> Self {
        self.host.rx_bytes += ETHERNET_HEADER * self.host.rx_packets;
        self.port.tx_bytes += ETHERNET_HEADER * self.port.tx_packets;
        self
    }
}

impl Sub for LinkCounters {
    type Output = Self;

    /// What was counted since `earlier`.
    fn sub(self, earlier: Self) -> Self {
        Self {
            rx_bytes: self.rx_bytes - earlier.rx_bytes,
            rx_packets: self.rx_packets - earlier.rx_packets,
            rx_dropped: self.rx_dropped - earlier.rx_dropped,
            rx_multicast: self.rx_multicast - earlier.rx_multicast,
            tx_bytes: self.tx_bytes - earlier.tx_bytes,
            tx_packets: self.tx_packets - earlier.tx_packets,
            tx_dropped: self.tx_dropped - earlier.tx_dropped,
        }
    }
}

impl Sub for Tally {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self { packets: self.packets - earlier.packets, bytes: self.bytes - earlier.bytes }
    }
}

impl Sub for HostCounters {
    type Output = Self;

    /// What was counted since `earlier`.
    fn sub(self, earlier: Self) -> Self {
        Self {
            host: self.host - earlier.host,
            port: self.port - earlier.port,
            lost: self.lost - earlier.lost,
            duplicated: self.duplicated - earlier.duplicated,
        }
    }
}

/// The calling thread's namespace's table of interfaces (proc(5), `/proc/net/dev`). `/proc/net` would be that
/// of the process's first thread.
pub(super) const TABLE: &str = "/proc/thread-self/net/dev";

/// Reads one interface's line of the table.
pub(super) fn parse_table(table: &str, interface: &str) -> Result<LinkCounters, LabError> {
    let unreadable = || LabError::Format { what: "/proc/net/dev", text: table.to_owned() };
    let line = table.lines().find_map(|line| line.trim_start().strip_prefix(interface)?.strip_prefix(':'));
    let fields: Result<Vec<u64>, _> =
        line.ok_or_else(unreadable)?.split_whitespace().map(str::parse).collect();
    match fields.as_deref() {
        Ok(
            [
                rx_bytes,
                rx_packets,
                _,
                rx_dropped,
                _,
                _,
                _,
                rx_multicast,
                tx_bytes,
                tx_packets,
                _,
                tx_dropped,
                ..,
            ],
        ) => Ok(LinkCounters {
            rx_bytes: *rx_bytes,
            rx_packets: *rx_packets,
            rx_dropped: *rx_dropped,
            rx_multicast: *rx_multicast,
            tx_bytes: *tx_bytes,
            tx_packets: *tx_packets,
            tx_dropped: *tx_dropped,
        }),
        _ => Err(unreadable()),
    }
}

/// Reads a named counter from what `nft -j list counters` printed; zero if it is not there (yet).
pub(super) fn parse_tally(listing: &str, name: &str) -> Result<Tally, LabError> {
    let unreadable = || LabError::Format { what: "nft's counters", text: listing.to_owned() };
    let parsed: serde_json::Value = serde_json::from_str(listing).map_err(|_| unreadable())?;
    let objects = parsed["nftables"].as_array().ok_or_else(unreadable)?;
    let Some(counter) =
        objects.iter().map(|object| &object["counter"]).find(|counter| counter["name"] == name)
    else {
        return Ok(Tally::default());
    };
    match (counter["packets"].as_u64(), counter["bytes"].as_u64()) {
        (Some(packets), Some(bytes)) => Ok(Tally { packets, bytes }),
        _ => Err(unreadable()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEV: &str = "Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:       0       0    0    0    0     0          0         0        1       2    0    0    0     0       0          0
   p1: 101 102 103 104 105 106 107 108 109 110 111 112 113 114 115 116
  p10: 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1
";

    #[test]
    fn a_line_of_the_table_is_read() {
        let counters = parse_table(DEV, "p1").expect("a good table");
        let wanted = LinkCounters {
            rx_bytes: 101,
            rx_packets: 102,
            rx_dropped: 104,
            rx_multicast: 108,
            tx_bytes: 109,
            tx_packets: 110,
            tx_dropped: 112,
        };
        assert_eq!(counters, wanted);
        assert!(matches!(parse_table(DEV, "p2"), Err(LabError::Format { .. })));
        assert!(matches!(parse_table("p1: 1 x", "p1"), Err(LabError::Format { .. })));
    }

    #[test]
    fn a_named_counter_is_read() {
        let listing = r#"{"nftables": [{"metainfo": {"version": "1.0.6"}},
            {"counter": {"family": "bridge", "name": "lost1", "table": "lab", "handle": 1, "packets": 555, "bytes": 86580}}]}"#;
        assert_eq!(parse_tally(listing, "lost1").expect("good"), Tally { packets: 555, bytes: 86_580 });
        assert_eq!(parse_tally(listing, "lost2").expect("good"), Tally::default());
        assert!(parse_tally("", "lost1").is_err());
    }
}
