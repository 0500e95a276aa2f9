//! Sending and receiving over loopback.

use crate::namespace;
use net::Interface;
use net::udp::{Family, SenderOptions, UdpError, UdpReceiver, UdpSender, Waker};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

const BUFFER: usize = 4 << 20;
/// Nothing on loopback takes that long; a test that waits this out fails.
const PATIENCE: Duration = Duration::from_secs(5);
/// Long enough for a datagram on loopback that must not come.
const QUIET: Duration = Duration::from_millis(50);

fn lo() -> Interface {
    Interface::by_name("lo").expect("lo")
}

fn group(family: Family, n: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(239, 77, 0, n).into(),
        Family::V6 => Ipv6Addr::new(0xff15, 0, 0, 0, 0, 0, 0x77, n.into()).into(),
    }
}

/// Receives until `count` datagrams are there or patience ends.
fn receive(receiver: &mut UdpReceiver, count: usize) -> Vec<Vec<u8>> {
    let (waker, start) = (Waker::new().expect("eventfd"), Instant::now());
    let mut got = Vec::new();
    while got.len() < count && start.elapsed() < PATIENCE {
        receiver.recv_batch(QUIET, &waker, |_, datagram| got.push(datagram.to_vec())).expect("receive");
    }
    got
}

fn quiet(receiver: &mut UdpReceiver) -> bool {
    let waker = Waker::new().expect("eventfd");
    receiver.recv_batch(QUIET, &waker, |_, _| {}).expect("receive").datagrams == 0
}

/// Datagrams of `size` bytes, each starting with its number, the last one shorter.
fn numbered(count: u32, size: usize) -> Vec<u8> {
    let mut bytes = vec![0x5a; count as usize * size - size / 2];
    for (n, part) in (0_u32..).zip(bytes.chunks_mut(size)) {
        part[..4].copy_from_slice(&n.to_le_bytes());
    }
    bytes
}

#[test]
fn gso_and_fallback_deliver_the_same_datagrams() {
    for gso in [true, false] {
        let mut receiver = UdpReceiver::bind(0, Family::V4, &lo(), BUFFER).expect("bind");
        let mut sender =
            UdpSender::bind(&lo(), Family::V4, SenderOptions { gso, ..SenderOptions::default() })
                .expect("bind");
        assert_eq!(sender.gso(), gso, "loopback takes GSO");
        let dest = SocketAddr::from((Ipv4Addr::LOCALHOST, receiver.unicast_port()));
        for (count, size) in [(1, 8), (2, 8), (64, 1400), (65, 1400), (200, 1344), (3, 30_000), (9, 8192)] {
            let sent = numbered(count, size);
            sender.send_batch(dest, &sent, size).expect("send");
            let got = receive(&mut receiver, count as usize);
            assert!(
                got.iter().map(Vec::as_slice).eq(sent.chunks(size)),
                "{count} datagrams of {size}, GSO {gso}"
            );
        }
        assert!(quiet(&mut receiver));
        let (sent, got) = (sender.stats(), receiver.stats());
        assert_eq!((sent.datagrams, sent.bytes, sent.refused), (got.datagrams, got.bytes, 0));
        assert_eq!(got.dropped, 0);
        if gso {
            assert!(got.packets < got.datagrams / 4, "GRO joined: {got:?}");
            assert!(sent.syscalls < 24, "{sent:?}");
        }
    }
}

#[test]
fn sources_sizes_and_limits() {
    let mut receiver = UdpReceiver::bind(0, Family::V4, &lo(), BUFFER).expect("bind");
    let mut sender = UdpSender::bind(&lo(), Family::V4, SenderOptions::default()).expect("bind");
    let dest = SocketAddr::from((Ipv4Addr::LOCALHOST, receiver.unicast_port()));
    let error = sender.send_batch(dest, &[1], 0).expect_err("segment 0");
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
    sender.send_batch(dest, &[], 8).expect("nothing to send");
    let error = sender.send_batch(dest, &[0; 70_000], 66_000).expect_err("over any MTU");
    assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
    assert!(sender.gso(), "a datagram too long is no reason against GSO");
    sender.send_batch(dest, &[7; 20], 10).expect("send");
    let waker = Waker::new().expect("eventfd");
    let mut sources = Vec::new();
    receiver.recv_batch(PATIENCE, &waker, |source, _| sources.push(source)).expect("receive");
    assert_eq!(sources, vec![sender.local_addr().expect("address"); 2]);
    assert!(receiver.rcvbuf_bytes() > 0 && sender.sndbuf_bytes() > 0);
}

#[test]
fn a_refused_port_does_not_stop_the_sender() {
    let mut sender = UdpSender::bind(&lo(), Family::V4, SenderOptions::default()).expect("bind");
    let mut receiver = UdpReceiver::bind(0, Family::V4, &lo(), BUFFER).expect("bind");
    let closed = {
        let other = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
        other.local_addr().expect("address")
    };
    for _ in 0..100 {
        sender.send_batch(closed, &[1; 64], 16).expect("errors of others are stepped over");
    }
    let dest = SocketAddr::from((Ipv4Addr::LOCALHOST, receiver.unicast_port()));
    sender.send_batch(dest, &[1; 64], 16).expect("send");
    assert_eq!(receive(&mut receiver, 4).len(), 4);
    assert!(sender.stats().icmp_errors > 0);
}

fn groups_beyond_the_limit(family: Family) {
    let mut receiver = UdpReceiver::bind(0, family, &lo(), BUFFER).expect("bind");
    let mut other = UdpReceiver::bind(receiver.port(), family, &lo(), BUFFER).expect("the port is shared");
    let mut sender = UdpSender::bind(&lo(), family, SenderOptions::default()).expect("bind");
    let joined: Vec<u8> = (1..=50).collect();
    for &n in &joined {
        receiver.join(group(family, n)).expect("join");
        receiver.join(group(family, n)).expect("twice is once");
    }
    other.join(group(family, 60)).expect("join");
    if family == Family::V4 {
        assert!(receiver.fds().count() > 3, "20 groups a socket");
    }
    let send = |sender: &mut UdpSender, port, n: u8| {
        sender.send_batch(SocketAddr::new(group(family, n), port), &[n; 24], 8).expect("send");
    };
    for n in 1..=70 {
        send(&mut sender, receiver.port(), n);
    }
    let got = receive(&mut receiver, 150);
    assert!(quiet(&mut receiver), "nothing of groups 51 to 70");
    assert_eq!(got.len(), 150);
    assert_eq!(
        got.iter().map(|datagram| datagram[0]).collect::<BTreeSet<_>>(),
        joined.iter().copied().collect()
    );
    assert!(receive(&mut other, 3).iter().all(|datagram| datagram == &[60; 8]));
    assert!(quiet(&mut other));

    receiver.leave(group(family, 7)).expect("leave");
    receiver.leave(group(family, 7)).expect("twice is once");
    assert_eq!(receiver.groups().count(), 49);
    send(&mut sender, receiver.port(), 7);
    assert!(quiet(&mut receiver), "left");
    let sockets = receiver.fds().count();
    receiver.join(group(family, 70)).expect("join");
    assert_eq!(receiver.fds().count(), sockets, "the free place is used");
    send(&mut sender, receiver.port(), 70);
    assert_eq!(receive(&mut receiver, 3).len(), 3);
}

#[test]
fn many_groups_v4() {
    groups_beyond_the_limit(Family::V4);
}

#[test]
fn many_groups_v6() {
    namespace::run("IPv6 multicast on loopback", || {
        namespace::ip("-6 route add local ff15::/16 dev lo table local");
        groups_beyond_the_limit(Family::V6);
    });
}

#[test]
fn groups_of_other_interfaces_are_not_ours() {
    namespace::run("groups on two interfaces", || {
        namespace::ip("link add a0 type veth peer name b0");
        namespace::ip("addr add 10.9.0.1/24 dev a0");
        namespace::ip("addr add fd09::1/64 dev a0 nodad");
        namespace::ip("link set a0 up");
        namespace::ip("link set b0 up");
        namespace::ip("-6 route add local ff15::/16 dev lo table local");
        let dummy = Interface::by_name("a0").expect("made above");
        // The kernel looks at links that came up once a second.
        let end = Instant::now() + Duration::from_secs(5);
        while Interface::default_multicast().is_err() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
        }
        let dummy = Interface::by_name(&dummy.name).expect("made above");
        assert_eq!(Interface::default_multicast().expect("only one"), dummy);
        for family in [Family::V4, Family::V6] {
            let mut on_dummy = UdpReceiver::bind(0, family, &dummy, BUFFER).expect("bind");
            let mut on_lo = UdpReceiver::bind(on_dummy.port(), family, &lo(), BUFFER).expect("bind");
            on_dummy.join(group(family, 1)).expect("join");
            on_lo.join(group(family, 1)).expect("join");
            let mut sender = UdpSender::bind(&dummy, family, SenderOptions::default()).expect("bind");
            let dest = SocketAddr::new(group(family, 1), on_dummy.port());
            sender.send_batch(dest, &[3; 32], 8).expect("send");
            assert_eq!(receive(&mut on_dummy, 4).len(), 4, "{family:?}");
            assert!(quiet(&mut on_lo), "{family:?}");
        }
    });
}

#[test]
fn only_groups_can_be_joined() {
    let mut receiver = UdpReceiver::bind(0, Family::V4, &lo(), BUFFER).expect("bind");
    for wrong in [IpAddr::from([10, 0, 0, 1]), group(Family::V6, 1)] {
        assert!(matches!(receiver.join(wrong), Err(UdpError::NotAGroup { group }) if group == wrong));
    }
    let gone = Interface { name: "gone0".to_owned(), index: 999_999, ..lo() };
    let mut receiver = UdpReceiver::bind(0, Family::V4, &gone, BUFFER).expect("bind");
    let error = receiver.join(group(Family::V4, 1)).expect_err("no such interface");
    assert!(error.to_string().contains("gone0"), "{error}");
}

#[test]
fn drops_are_counted() {
    let mut receiver = UdpReceiver::bind(0, Family::V4, &lo(), 64 << 10).expect("bind");
    let options = SenderOptions { gso: false, ..SenderOptions::default() };
    let mut sender = UdpSender::bind(&lo(), Family::V4, options).expect("bind");
    let dest = SocketAddr::from((Ipv4Addr::LOCALHOST, receiver.unicast_port()));
    sender.send_batch(dest, &vec![1; 1000 * 1000], 1000).expect("send");
    let dropped = receiver.refresh_drops().expect("ask");
    assert!(dropped > 0);
    let mut got = Vec::new();
    while !quiet_into(&mut receiver, &mut got) {}
    sender.send_batch(dest, &[2; 2], 1).expect("send");
    while !quiet_into(&mut receiver, &mut got) {}
    assert_eq!(got.len() as u64 + receiver.stats().dropped, 1002);
}

fn quiet_into(receiver: &mut UdpReceiver, got: &mut Vec<usize>) -> bool {
    let waker = Waker::new().expect("eventfd");
    receiver.recv_batch(QUIET, &waker, |_, datagram| got.push(datagram.len())).expect("receive").datagrams
        == 0
}

#[test]
fn a_waker_ends_the_wait() {
    let mut receiver = UdpReceiver::bind(0, Family::V4, &lo(), BUFFER).expect("bind");
    let waker = Arc::new(Waker::new().expect("eventfd"));
    for _ in 0..3 {
        let other = Arc::clone(&waker);
        let start = Instant::now();
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(10));
            other.wake();
        });
        let received = receiver.recv_batch(PATIENCE, &waker, |_, _| {}).expect("receive");
        assert!(received.woken && received.datagrams == 0 && start.elapsed() < PATIENCE);
        thread.join().expect("no panic");
    }
    let start = Instant::now();
    assert!(!receiver.recv_batch(QUIET, &waker, |_, _| {}).expect("receive").woken, "reported once");
    assert!(start.elapsed() >= QUIET);
}

#[test]
fn a_firewalls_refusal_is_loss() {
    namespace::run("a firewall's drop", || {
        for rule in ["add table ip t", "add chain ip t o { type filter hook output priority 0; }"] {
            nft(rule);
        }
        nft("add rule ip t o udp dport 7777 drop");
        for gso in [true, false] {
            let options = SenderOptions { gso, ..SenderOptions::default() };
            let mut sender = UdpSender::bind(&lo(), Family::V4, options).expect("bind");
            let dest = SocketAddr::from((Ipv4Addr::LOCALHOST, 7777));
            sender.send_batch(dest, &[0; 1000], 100).expect("counted, not fatal");
            let stats = sender.stats();
            assert_eq!((stats.refused, stats.datagrams), (10, 0));
            assert_eq!(sender.gso(), gso);
        }
    });
}

fn nft(rule: &str) {
    let status = std::process::Command::new("nft").arg(rule).status().expect("nftables is installed");
    assert!(status.success(), "nft {rule}");
}

#[test]
fn a_full_device_queue_is_waited_for() {
    namespace::run("a shaped link", || {
        namespace::ip("link add a0 type veth peer name b0");
        namespace::ip("addr add 10.9.0.1/24 dev a0");
        namespace::ip("addr add 10.9.1.1/24 dev b0");
        for setting in ["accept_local", "rp_filter"] {
            for device in ["all", "b0"] {
                let value = if setting == "rp_filter" { "0" } else { "1" };
                let path = format!("/proc/sys/net/ipv4/conf/{device}/{setting}");
                std::fs::write(path, value).expect("own namespace");
            }
        }
        namespace::ip("link set a0 up");
        namespace::ip("link set b0 up");
        // A queue much smaller than the socket's buffer: the kernel says ENOBUFS.
        let shape = "qdisc add dev a0 root tbf rate 200mbit burst 128kb limit 192kb";
        let status = std::process::Command::new("tc").args(shape.split(' ')).status().expect("iproute2");
        assert!(status.success());
        let (a0, b0) = (Interface::by_name("a0").expect("made"), Interface::by_name("b0").expect("made"));
        for gso in [true, false] {
            let mut receiver = UdpReceiver::bind(0, Family::V4, &b0, 8 << 20).expect("bind");
            receiver.join(group(Family::V4, 1)).expect("join");
            let options = SenderOptions { gso, loopback: false, ..SenderOptions::default() };
            let mut sender = UdpSender::bind(&a0, Family::V4, options).expect("bind");
            let dest = SocketAddr::new(group(Family::V4, 1), receiver.port());
            let sent = numbered(2000, 1000);
            let start = Instant::now();
            sender.send_batch(dest, &sent, 1000).expect("waits");
            assert!(start.elapsed() > Duration::from_millis(40), "2 MB at 200 Mbit/s");
            assert!(sender.stats().waits > 0 && sender.gso() == gso, "{:?}", sender.stats());
            let got = receive(&mut receiver, 2000);
            assert!(got.iter().map(Vec::as_slice).eq(sent.chunks(1000)), "{} came, GSO {gso}", got.len());
        }
    });
}
