//! The checks against real settings, on loopback and a bridge of their own.

use crate::namespace::{self, ip};
use net::Interface;
use net::doctor::{self, ProbeTally, Severity};
use net::pki::{Role, create_ca, issue_host};
use net::udp::{Family, SenderOptions, UdpReceiver, UdpSender, Waker};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

/// A bridge with one port, whose other end `e0` is this namespace's too.
fn bridge(querier: bool) -> Interface {
    ip("link add br0 type bridge forward_delay 0 mcast_snooping 1 mcast_query_response_interval 10");
    ip("link set br0 up");
    ip("link add p0 type veth peer name e0");
    ip("link set p0 master br0 up");
    ip("addr add 10.98.0.1/24 dev e0");
    ip("link set e0 up");
    if querier {
        // The kernel tells the bridge of the new link within a second.
        std::thread::sleep(Duration::from_millis(1100));
        ip(
            "link set br0 type bridge mcast_querier 1 mcast_last_member_count 2 mcast_last_member_interval 10",
        );
    }
    Interface::by_name("e0").expect("made above")
}

#[test]
fn a_querier_is_heard_and_a_missing_one_missed() {
    namespace::run("the querier check", || {
        let finding = doctor::querier(&bridge(true), Duration::from_secs(4));
        assert_eq!(finding.severity, Severity::Ok, "{finding:?}");
        assert!(finding.what.contains("querier on e0"), "{finding:?}");
    });
    namespace::run("the querier check", || {
        let interface = bridge(false);
        let start = Instant::now();
        let finding = doctor::querier(&interface, Duration::from_millis(500));
        assert_eq!(finding.severity, Severity::Warning, "{finding:?}");
        assert!(finding.remedy.contains("mcast_querier 1"));
        assert!(start.elapsed() < Duration::from_secs(2), "bounded");
    });
}

#[test]
fn gso_comes_back_whole() {
    let lo = Interface::by_name("lo").expect("lo");
    let finding = doctor::gso_local(&lo, Family::V4, Duration::from_secs(5));
    assert_eq!(finding.severity, Severity::Ok, "{finding:?}");
    namespace::run("GSO through a veth", || {
        let finding = doctor::gso_local(&bridge(false), Family::V4, Duration::from_secs(5));
        assert_eq!(finding.severity, Severity::Ok, "{finding:?}");
    });
}

#[test]
fn probes_between_two_sockets() {
    let lo = Interface::by_name("lo").expect("lo");
    let mut receiver = UdpReceiver::bind(0, Family::V4, &lo, 1 << 20).expect("bind");
    let mut sender = UdpSender::bind(&lo, Family::V4, SenderOptions::default()).expect("bind");
    let dest = SocketAddr::from((Ipv4Addr::LOCALHOST, receiver.unicast_port()));
    doctor::send_probes(&mut sender, dest, 100, 1400).expect("send");
    let (mut tally, waker) = (ProbeTally::new(100), Waker::new().expect("eventfd"));
    let start = Instant::now();
    while !tally.is_complete() && start.elapsed() < Duration::from_secs(5) {
        let wait = Duration::from_millis(100);
        receiver.recv_batch(wait, &waker, |_, datagram| tally.count(datagram)).expect("receive");
    }
    assert_eq!(tally.finding("probe", "lo", true).severity, Severity::Ok);
}

#[test]
fn settings_of_this_host() {
    let lo = Interface::by_name("lo").expect("lo");
    let small = doctor::buffers(&lo, 64 << 10, 64 << 10);
    assert!(small.iter().all(|finding| finding.severity == Severity::Ok), "{small:?}");
    assert_eq!(doctor::rights().len(), 2);
    for finding in doctor::bridges() {
        assert!(finding.severity == Severity::Ok || !finding.remedy.is_empty(), "{finding:?}");
    }
}

#[test]
fn certificates_that_end_soon_or_are_not_there() {
    let dir = tempfile::tempdir().expect("temporary directory");
    create_ca(dir.path()).expect("CA");
    let severities =
        |path| -> Vec<Severity> { doctor::identity(path).iter().map(|finding| finding.severity).collect() };
    let long = issue_host(dir.path(), "long", &[Role::Receiver], &[], 60).expect("issue");
    assert_eq!(severities(&long.dir), [Severity::Ok]);
    let short = issue_host(dir.path(), "short", &[Role::Receiver], &[], 7).expect("issue");
    assert_eq!(severities(&short.dir), [Severity::Warning]);
    assert_eq!(severities(&dir.path().join("none")), [Severity::Problem]);
}
