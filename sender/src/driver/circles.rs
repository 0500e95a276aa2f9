//! Who may have which blocks from whom, when this sender is gone: told to the hosts while it lives.

use super::TransferConfig;
use crate::prepare::Prepared;
use std::collections::{BTreeMap, BTreeSet};
use wire::control::{Circle, Peer};
use wire::limits;

/// The sets of hosts with guests that need the same blocks.
pub(super) struct Circles {
    /// The hosts of each; a circle's id is its place and one.
    members: Vec<Vec<usize>>,
    /// By segment.
    of_segment: Vec<u32>,
}

impl Circles {
    /// None without guests: nobody depends on the sender then.
    pub(super) fn new(prepared: &Prepared, config: &TransferConfig) -> Self {
        let with_guests: BTreeSet<usize> =
            config.guests.iter().flat_map(|guest| &guest.clones).map(|(host, _)| *host).collect();
        let mut ids: BTreeMap<Vec<usize>, u32> = BTreeMap::new();
        let mut members = Vec::new();
        let of_segment = prepared.segments.iter().map(|segment| {
            let hosts: Vec<usize> =
                segment.hosts.iter().map(usize::from).filter(|host| with_guests.contains(host)).collect();
            if hosts.len() < 2 || hosts.len() > limits::PEERS_MAX {
                return 0;
            }
            *ids.entry(hosts).or_insert_with_key(|hosts| {
                members.push(hosts.clone());
                u32::try_from(members.len()).expect("fewer than segments")
            })
        });
        let of_segment = of_segment.collect();
        Self { members, of_segment }
    }

    pub(super) fn of_segment(&self, segment: usize) -> u32 {
        self.of_segment[segment]
    }

    /// What one host is told: only circles that it is in, and only who is in these.
    pub(super) fn of_host(&self, host: usize, config: &TransferConfig) -> (Vec<Peer>, Vec<Circle>) {
        let mut peers: Vec<usize> = Vec::new();
        let mut circles = Vec::new();
        for (id, members) in (1..).zip(&self.members) {
            if !members.contains(&host) || circles.len() == limits::CIRCLES_MAX {
                continue;
            }
            let mut others = Vec::new();
            for other in members.iter().filter(|other| **other != host) {
                let known = peers.iter().position(|peer| peer == other);
                let place = known.unwrap_or(peers.len());
                if place == limits::PEERS_MAX {
                    continue;
                }
                if known.is_none() {
                    peers.push(*other);
                }
                others.push(u16::try_from(place).expect("at most 1024 peers"));
            }
            circles.push(Circle { id, peers: others });
        }
        let peer = |index: usize| Peer {
            name: config.hosts[index].name.clone(),
            address: config.hosts[index].address,
        };
        (peers.into_iter().map(peer).collect(), circles)
    }
}
