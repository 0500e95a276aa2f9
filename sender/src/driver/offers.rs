//! What the hosts are told first, and the keys of a session.

use super::circles::Circles;
use super::{HostTarget, Schedule, TransferConfig};
use crate::guests;
use crate::prepare::Prepared;
use crate::session::ChannelSpec;
use std::collections::HashSet;
use wire::ChannelId;
use wire::control::{Offer, ToHost, VmOffer};
use wire::seal::ChannelSecret;

/// Ids and keys for the channels of a schedule.
pub(super) fn channel_specs(schedule: &Schedule) -> Vec<ChannelSpec> {
    let mut used = HashSet::new();
    let specs = schedule.channels.iter().map(|channel| {
        let id = loop {
            let random = ChannelSecret::random();
            let id = u32::from_le_bytes(random.salt);
            if used.insert(id) {
                break ChannelId(id);
            }
        };
        ChannelSpec {
            group: channel.group,
            hosts: channel.hosts.clone(),
            id,
            secret: ChannelSecret::random(),
        }
    });
    specs.collect()
}

/// Each host's offer: the VMs that go there.
pub(super) fn offers(prepared: &Prepared, config: &TransferConfig, circles: &Circles) -> Vec<ToHost> {
    let session = u64::from_le_bytes(std::array::from_fn({
        let random = ChannelSecret::random();
        move |at| random.key[at]
    }));
    let offer = |(host, target): (usize, &HostTarget)| {
        let vms = (0..).zip(&prepared.vms).filter(|(_, vm)| vm.hosts.iter().any(|h| usize::from(h) == host));
        let vms = vms.map(|(id, vm)| VmOffer {
            vm: id,
            name: vm.name.clone(),
            file_len: vm.file_len,
            page_count: vm.source.page_count(),
            content_pages: prepared.content_pages(pages::VmId(id)),
        });
        let (peers, circles) = circles.of_host(host, config);
        ToHost::Offer(Offer {
            version: wire::VERSION,
            session,
            transfer: config.name.clone(),
            host: target.name.clone(),
            symbol_size_max: config.session.symbol_size_max,
            multicast_port: config.multicast_port,
            ipv6: config.ipv6,
            vms: vms.collect(),
            guests: guests::offers(&config.guests, host),
            peers,
            circles,
        })
    };
    config.hosts.iter().enumerate().map(offer).collect()
}
