//! Is there an IGMP querier? With snooping switches and none, multicast stops after minutes, or floods.

use super::{Finding, IgmpQuery};
use crate::interface::Interface;
use crate::udp::{Family, UdpReceiver};
use pnet::datalink::{self, Channel, DataLinkReceiver};
use std::io;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

const CHECK: &str = "igmp-querier";
/// Joined and left again, to make a querier ask who is left.
const PROBE_GROUP: Ipv4Addr = Ipv4Addr::new(239, 255, 118, 115);
/// From joining to leaving: the report must have reached the switch.
const MEMBER_TIME: Duration = Duration::from_millis(200);
const READ_TIMEOUT: Duration = Duration::from_millis(50);

/// Listens on `interface` for IGMP queries for at most `wait`, and provokes one by joining and leaving a group
/// (ports with fast-leave do not ask then). A general query comes every 125 s by default: only a `wait` longer
/// than that proves that there is no querier. Needs CAP_NET_RAW.
#[must_use]
pub fn querier(interface: &Interface, wait: Duration) -> Finding {
    let mut capture = match open(interface) {
        Ok(capture) => capture,
        Err(error) => {
            return Finding::warning(
                CHECK,
                format!("cannot listen for IGMP queries on {}: {error}", interface.name),
                "run as root or with CAP_NET_RAW (`setcap cap_net_raw+ep`)",
            );
        }
    };
    let start = Instant::now();
    let mut member = UdpReceiver::bind(0, Family::V4, interface, 64 << 10).ok();
    let mut joined = member.as_mut().is_some_and(|member| member.join(PROBE_GROUP.into()).is_ok());
    while start.elapsed() < wait {
        if joined && start.elapsed() >= MEMBER_TIME {
            joined = false;
            // A failure leaves only the general queries to hear.
            let _ = member.as_mut().map(|member| member.leave(PROBE_GROUP.into()));
        }
        match capture.next() {
            Ok(frame) => {
                if let Ok(query) = IgmpQuery::from_frame(frame) {
                    return heard(interface, query, start.elapsed());
                }
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::Interrupted) => {}
            Err(error) => {
                let what = format!("listening for IGMP queries on {} failed: {error}", interface.name);
                return Finding::warning(CHECK, what, "is the interface up?");
            }
        }
    }
    Finding::warning(
        CHECK,
        format!("no IGMP querier heard on {} within {:.1} s", interface.name, start.elapsed().as_secs_f64()),
        "switch an IGMP (snooping) querier on, on one switch or router of this network; on a Linux bridge: `ip link \
         set BRIDGE type bridge mcast_querier 1`. Without one, snooping switches flood multicast or stop passing it \
         after some minutes. Queries can be 125 s apart: to be sure, listen for longer",
    )
}

fn heard(interface: &Interface, query: IgmpQuery, after: Duration) -> Finding {
    let who = if query.source.is_unspecified() { "a bridge".to_owned() } else { query.source.to_string() };
    let interval =
        query.interval.map_or_else(String::new, |time| format!(", which asks every {} s", time.as_secs()));
    let what = format!(
        "IGMPv{} querier on {}: {who}{interval}; heard after {:.1} s",
        query.version,
        interface.name,
        after.as_secs_f64()
    );
    Finding::ok(CHECK, what)
}

fn open(interface: &Interface) -> io::Result<Box<dyn DataLinkReceiver>> {
    let found = datalink::interfaces().into_iter().find(|candidate| candidate.index == interface.index);
    let found = found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the interface is gone"))?;
    let config = datalink::Config {
        read_timeout: Some(READ_TIMEOUT),
        promiscuous: false,
        ..datalink::Config::default()
    };
    match datalink::channel(&found, config)? {
        Channel::Ethernet(_, receiver) => Ok(receiver),
        _ => Err(io::Error::other("not an Ethernet-like interface")),
    }
}
