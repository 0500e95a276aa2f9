//! What the hosts are told first, and the keys of a session.

use super::circles::Circles;
use super::{HostTarget, Schedule, ScheduledSegment, TransferConfig};
use crate::guests;
use crate::prepare::Prepared;
use crate::session::{ChannelSpec, SegmentSpec};
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

/// What the session is told of a schedule's segments, whose contents are encoded to `ratio` of theirs.
pub(super) fn segment_specs(
    prepared: &Prepared,
    schedule: &Schedule,
    circles: &Circles,
    ratio: f64,
) -> Vec<SegmentSpec> {
    let spec = |scheduled: &ScheduledSegment| SegmentSpec {
        channel: scheduled.channel,
        expected_bytes: prepared.expected_bytes(scheduled.segment, ratio).max(1),
        circle: circles.of_segment(scheduled.segment),
    };
    schedule.segments.iter().map(spec).collect()
}

/// The hosts that need each of a schedule's segments, which may be fewer than its channel has.
pub(super) fn needed_by(prepared: &Prepared, schedule: &Schedule) -> Vec<Vec<usize>> {
    let hosts = |scheduled: &ScheduledSegment| {
        let needing = prepared.segments[scheduled.segment].hosts.iter().map(usize::from);
        let members = &schedule.channels[scheduled.channel].hosts;
        needing.filter(|host| members.contains(host)).collect()
    };
    schedule.segments.iter().map(hosts).collect()
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
