//! The links between the source and the hosts.

use std::collections::BTreeMap;
use std::fmt;

use petgraph::graph::{NodeIndex, UnGraph};
use petgraph::visit::EdgeRef;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::HostSet;
use crate::inventory::{Host, Source, Topology};

/// Which sort of link, seen from the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LinkKind {
    /// The source's, to its switch.
    Source,
    /// From a rack's switch towards the core: of the racks that the source is in.
    RackUp,
    /// From the core, or the rack around it, to a rack's switch.
    RackDown,
    /// From a switch to a host.
    Host,
}

impl fmt::Display for LinkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::RackUp => "rack, up",
            Self::RackDown => "rack, down",
            Self::Host => "host",
        })
    }
}

/// A link, in the direction away from the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Which sort.
    pub kind: LinkKind,
    /// The source, rack or host at its end.
    pub name: String,
    /// Its rate, in bit/s.
    pub rate_bps: u64,
    /// What a byte on it counts when placements are compared. The source's link counts 1; it is the same for all.
    pub cost: u64,
    /// The next link towards the source, which comes before this one; none for the source's.
    pub towards: Option<usize>,
}

/// The links between the source and the hosts, as a tree with the source's at its root.
///
/// A datagram to a group crosses each link once that leads to a member; a unicast datagram crosses the links of its
/// way. Links are full duplex and only data is counted, so one direction of each matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// The source's, those of racks as they are met on the way from it, those of hosts.
    links: Vec<Link>,
    /// The first host's link; the others follow in the order of hosts.
    first_host: usize,
}

/// A node of the network as the inventory draws it.
#[derive(Clone, Copy)]
enum Node {
    Core,
    Source,
    Rack(usize),
    Host(usize),
}

impl Network {
    /// The network of a valid inventory or a checked plan. Racks that the topology lacks, or that hang on themselves,
    /// count as the core.
    #[must_use]
    pub fn new(source: &Source, hosts: &[Host], topology: Option<&Topology>) -> Self {
        let (graph, start) = drawn(source, hosts, topology);
        let racks = topology.map_or(&[][..], |topology| &topology.racks);
        let mut links = vec![Link {
            kind: LinkKind::Source,
            name: source.name.clone(),
            rate_bps: bps(source.rate_mbps),
            cost: 1,
            towards: None,
        }];
        // The switch that each host hangs on, by the link to that switch.
        let mut host_towards = vec![0; hosts.len()];
        let mut open: Vec<(NodeIndex, NodeIndex, usize)> =
            graph.neighbors(start).map(|node| (node, start, 0)).collect();
        while let Some((node, from, towards)) = open.pop() {
            let mut next: Vec<NodeIndex> =
                graph.edges(node).map(|edge| edge.target()).filter(|&other| other != from).collect();
            next.sort_unstable_by(|a, b| b.cmp(a));
            for other in next {
                let rack = |rack: usize, kind| Link {
                    kind,
                    name: racks[rack].name.clone(),
                    rate_bps: bps(racks[rack].uplink_mbps),
                    cost: racks[rack].uplink_cost.into(),
                    towards: Some(towards),
                };
                let link = match (graph[node], graph[other]) {
                    (_, Node::Host(host)) => {
                        host_towards[host] = towards;
                        continue;
                    }
                    // A rack's link to what is around it belongs to the rack that is within.
                    (Node::Rack(inner), Node::Core) => rack(inner, LinkKind::RackUp),
                    (Node::Rack(inner), Node::Rack(outer))
                        if racks[inner].within.as_ref() == Some(&racks[outer].name) =>
                    {
                        rack(inner, LinkKind::RackUp)
                    }
                    (_, Node::Rack(inner)) => rack(inner, LinkKind::RackDown),
                    (_, Node::Core | Node::Source) => continue,
                };
                links.push(link);
                open.push((other, node, links.len() - 1));
            }
        }
        let first_host = links.len();
        links.extend(hosts.iter().zip(host_towards).map(|(host, towards)| Link {
            kind: LinkKind::Host,
            name: host.name.clone(),
            rate_bps: bps(host.rate_mbps),
            cost: host.link_cost.into(),
            towards: Some(towards),
        }));
        Self { links, first_host }
    }

    /// The links; each comes after the one towards the source.
    #[must_use]
    pub fn links(&self) -> &[Link] {
        &self.links
    }

    /// Index of a host's link.
    #[must_use]
    pub fn host_link(&self, host: u16) -> usize {
        self.first_host + usize::from(host)
    }

    /// Number of hosts.
    #[must_use]
    pub fn hosts(&self) -> usize {
        self.links.len() - self.first_host
    }

    /// Indexes of the links from a host to the source, the host's first.
    pub fn way(&self, host: u16) -> impl Iterator<Item = usize> + '_ {
        std::iter::successors(Some(self.host_link(host)), |&link| self.links[link].towards)
    }

    /// Indexes of the links that a datagram to these hosts crosses, ascending; each once.
    #[must_use]
    pub fn tree(&self, hosts: &HostSet) -> Vec<usize> {
        let mut crossed = Crossed::new(self);
        let mut tree = crossed.by(self, hosts).to_vec();
        tree.sort_unstable();
        tree
    }
}

/// Finds the links that datagrams cross, again and again, without allocating.
pub(crate) struct Crossed {
    /// When each link was last met.
    met: Vec<u32>,
    turn: u32,
    links: Vec<usize>,
}

impl Crossed {
    pub(crate) fn new(network: &Network) -> Self {
        Self { met: vec![0; network.links.len()], turn: 0, links: Vec::new() }
    }

    /// The links that a datagram to these hosts crosses, each once, in no order.
    ///
    /// # Panics
    /// If a host is not of the network.
    pub(crate) fn by(&mut self, network: &Network, hosts: &HostSet) -> &[usize] {
        self.turn += 1;
        self.links.clear();
        for host in hosts.iter() {
            for link in network.way(host) {
                if std::mem::replace(&mut self.met[link], self.turn) == self.turn {
                    break;
                }
                self.links.push(link);
            }
        }
        &self.links
    }
}

/// The network as a graph, and the source in it.
fn drawn(source: &Source, hosts: &[Host], topology: Option<&Topology>) -> (UnGraph<Node, ()>, NodeIndex) {
    let racks = topology.map_or(&[][..], |topology| &topology.racks);
    let mut graph = UnGraph::with_capacity(hosts.len() + racks.len() + 2, hosts.len() + racks.len() + 1);
    let core = graph.add_node(Node::Core);
    let switches: Vec<NodeIndex> = (0..racks.len()).map(|rack| graph.add_node(Node::Rack(rack))).collect();
    let by_name: BTreeMap<&str, NodeIndex> =
        racks.iter().map(|rack| rack.name.as_str()).zip(switches.iter().copied()).collect();
    let switch = |name: Option<&String>| name.and_then(|name| by_name.get(name.as_str()).copied());
    let mut joined = petgraph::unionfind::UnionFind::new(racks.len() + 1);
    for (rack, &node) in racks.iter().zip(&switches) {
        // A rack that hangs on itself through others would leave the tree: it hangs on the core instead.
        let around =
            switch(rack.within.as_ref()).filter(|around| !joined.equiv(around.index(), node.index()));
        let around = around.unwrap_or(core);
        joined.union(around.index(), node.index());
        graph.add_edge(node, around, ());
    }
    let start = graph.add_node(Node::Source);
    graph.add_edge(start, switch(source.rack.as_ref()).unwrap_or(core), ());
    for (index, host) in hosts.iter().enumerate() {
        let node = graph.add_node(Node::Host(index));
        graph.add_edge(node, switch(host.rack.as_ref()).unwrap_or(core), ());
    }
    (graph, start)
}

fn bps(mbps: u32) -> u64 {
    u64::from(mbps) * 1_000_000
}
