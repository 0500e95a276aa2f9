//! What a lab's network does.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lab::hosts::{Disturbance, Host, HostCounters, Lab, LabError, LabOptions, Loss, Scope, lab_for_test};

const PORT: u16 = 7_411;
const GROUP: Ipv4Addr = Ipv4Addr::new(239, 77, 1, 1);
const GROUP6: Ipv6Addr = Ipv6Addr::new(0xff15, 0, 0, 0, 0, 0, 0x77, 1);
/// Longer than any datagram waits on these links.
const SILENCE: Duration = Duration::from_millis(150);

fn make(hosts: u16) -> Lab {
    Lab::new(LabOptions { hosts, ..LabOptions::default() }).expect("a lab")
}

/// Takes datagrams on a thread of its own: a test's bursts are more than a socket's buffer holds.
struct Receiver {
    numbers: Arc<Mutex<Vec<u64>>>,
    stopped: Arc<AtomicBool>,
}

impl Receiver {
    fn new(socket: UdpSocket) -> Self {
        let receiver = Self { numbers: Arc::default(), stopped: Arc::default() };
        let (numbers, stopped) = (Arc::clone(&receiver.numbers), Arc::clone(&receiver.stopped));
        // Only real root may go beyond the system's limit.
        use nix::sys::socket::{setsockopt, sockopt};
        if setsockopt(&socket, sockopt::RcvBufForce, &(8 << 20)).is_err() {
            setsockopt(&socket, sockopt::RcvBuf, &(8 << 20)).expect("as much as is allowed");
        }
        socket.set_read_timeout(Some(Duration::from_millis(10))).expect("a time-out");
        std::thread::spawn(move || {
            let mut buffer = [0; 10_000];
            while !stopped.load(Ordering::Relaxed) {
                if socket.recv(&mut buffer).is_ok() {
                    let number = u64::from_le_bytes(buffer[..8].try_into().expect("eight bytes"));
                    numbers.lock().expect("no panic").push(number);
                }
            }
        });
        receiver
    }

    /// On a host, for what is sent to it, and to the group if `member`.
    fn on(host: &Host, member: bool) -> Self {
        let open = || {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT))?;
            if member {
                socket.join_multicast_v4(&GROUP, &host.addr())?;
            }
            std::io::Result::Ok(socket)
        };
        Self::new(host.run(open).expect("entered").expect("a socket"))
    }

    /// All that came, once nothing more comes.
    fn take(&self) -> Vec<u64> {
        let mut length = usize::MAX;
        loop {
            std::thread::sleep(SILENCE);
            let mut numbers = self.numbers.lock().expect("no panic");
            if numbers.len() == length || numbers.is_empty() {
                return std::mem::take(&mut numbers);
            }
            length = numbers.len();
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}

/// Sends numbered datagrams of 200 bytes in bursts that no ring overflows at.
fn send(host: &Host, to: impl Into<IpAddr>, numbers: std::ops::Range<u64>) {
    let to = SocketAddr::new(to.into(), PORT);
    let open = || UdpSocket::bind((host.addr(), 0));
    let socket = host.run(open).expect("entered").expect("a socket");
    for number in numbers {
        let mut payload = [0xab; 200];
        payload[..8].copy_from_slice(&number.to_le_bytes());
        socket.send_to(&payload, to).expect("sent");
        if number % 16 == 15 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Waits until the switch knows members of the group at exactly these ports.
fn await_members(lab: &Lab, ports: &[&str]) {
    let group = GROUP.to_string();
    let mut table = String::new();
    for _ in 0..500 {
        let output = lab.switch_command("bridge").args(["mdb", "show"]).output().expect("bridge runs");
        table = String::from_utf8_lossy(&output.stdout).into_owned();
        let lines = table.lines().filter(|line| line.contains(&group));
        let mut known: Vec<&str> = lines
            .filter_map(|line| line.split_whitespace().skip_while(|word| *word != "port").nth(1))
            .collect();
        known.sort_unstable();
        if known == ports {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("the members are not at {ports:?} but:\n{table}");
}

fn counted(lab: &Lab, host: u16) -> HostCounters {
    lab.counters(host).expect("counters")
}

#[test]
fn groups_reach_their_members_only() {
    if !lab_for_test("groups_reach_their_members_only") {
        return;
    }
    let lab = make(4);
    lab.host(0).command("ip").args(["route", "add", "224.0.0.0/4", "dev", "e0"]).status().expect("a route");
    let sockets =
        [Receiver::on(lab.host(1), true), Receiver::on(lab.host(2), true), Receiver::on(lab.host(3), false)];
    await_members(&lab, &["p1", "p2"]);
    let before = [counted(&lab, 0), counted(&lab, 1), counted(&lab, 3)];
    send(lab.host(0), GROUP, 0..1_000);
    let numbers: Vec<_> = sockets.iter().map(Receiver::take).collect();
    assert_eq!(numbers[0], (0..1_000).collect::<Vec<_>>());
    assert_eq!(numbers[1], numbers[0]);
    assert!(numbers[2].is_empty());
    let (sender, member) = (counted(&lab, 0) - before[0], counted(&lab, 1) - before[1]);
    assert!((1_000..1_010).contains(&member.port.tx_packets), "{member:?}");
    // 200 bytes of payload and 42 of headers; IGMP's few packets besides.
    for bytes in [sender.host.tx_bytes, sender.port.rx_bytes, member.port.tx_bytes, member.host.rx_bytes] {
        assert!((242_000..243_000).contains(&bytes), "{sender:?} {member:?}");
    }
    assert!((counted(&lab, 3) - before[2]).port.tx_packets < 10, "a host outside the group sees nothing");
}

#[test]
fn ipv6_groups_reach_their_members_only() {
    if !lab_for_test("ipv6_groups_reach_their_members_only") {
        return;
    }
    let lab = Lab::new(LabOptions { hosts: 3, ipv6: true, ..LabOptions::default() }).expect("a lab");
    let index = |host: &Host| host.run(|| nix::net::if_::if_nametoindex("e0")).expect("entered").expect("e0");
    let open = || {
        let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, PORT))?;
        socket.join_multicast_v6(&GROUP6, index(lab.host(1)))?;
        std::io::Result::Ok(socket)
    };
    let socket = Receiver::new(lab.host(1).run(open).expect("entered").expect("a socket"));
    std::thread::sleep(SILENCE);
    let before = counted(&lab, 2);
    let address = lab.host(0).addr6().expect("a lab with IPv6");
    let sender = lab.host(0).run(|| UdpSocket::bind((address, 0))).expect("entered").expect("a socket");
    let scope = index(lab.host(0));
    for number in 0..500u64 {
        let to = std::net::SocketAddrV6::new(GROUP6, PORT, 0, scope);
        sender.send_to(&[&number.to_le_bytes()[..], &[0; 192]].concat(), to).expect("sent");
        if number % 16 == 15 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    assert_eq!(socket.take().len(), 500);
    assert!((counted(&lab, 2) - before).port.tx_packets < 20, "a host outside the group sees nothing");
}

#[test]
fn losses_are_counted_apart_and_can_be_repeated() {
    if !lab_for_test("losses_are_counted_apart_and_can_be_repeated") {
        return;
    }
    let lab = make(2);
    let socket = Receiver::on(lab.host(1), false);
    let to = lab.host(1).addr();
    let lost_of = |loss: Loss, count: u64| {
        lab.loss(1, loss).expect("a loss");
        let before = counted(&lab, 1);
        send(lab.host(0), to, 0..count);
        let numbers: BTreeSet<u64> = socket.take().into_iter().collect();
        let lost: Vec<u64> = (0..count).filter(|number| !numbers.contains(number)).collect();
        assert_eq!((counted(&lab, 1) - before).lost.packets, lost.len() as u64, "{loss:?}");
        lost
    };
    assert!(lost_of(Loss::random(0), 100).is_empty());
    let random = lost_of(Loss::random(100), 2_000);
    assert!((140..260).contains(&random.len()), "10 % of 2,000: {}", random.len());
    let seeded = lost_of(Loss::deterministic(100, 7), 2_000);
    assert!((140..260).contains(&seeded.len()), "10 % of 2,000: {}", seeded.len());
    assert_eq!(seeded, lost_of(Loss::deterministic(100, 7), 2_000), "the same losses again");
    assert_ne!(seeded, lost_of(Loss::deterministic(100, 8), 2_000), "others under another seed");
    let burst = lost_of(Loss::burst(5, 50), 500);
    assert_eq!(burst, (0..500).filter(|number| number % 50 < 5).collect::<Vec<_>>());
    lab.clear(1).expect("cleared");
    let before = counted(&lab, 1).lost;
    send(lab.host(0), to, 0..500);
    assert_eq!(socket.take().len(), 500);
    assert_eq!(counted(&lab, 1).lost, before);
}

#[test]
fn loss_of_datagrams_spares_streams() {
    if !lab_for_test("loss_of_datagrams_spares_streams") {
        return;
    }
    let lab = make(2);
    let connects = || {
        let (address, port) = (lab.host(1).addr(), PORT);
        let listener =
            lab.host(1).run(|| TcpListener::bind((address, port))).expect("entered").expect("listening");
        let wait = Duration::from_millis(300);
        let connect = || TcpStream::connect_timeout(&SocketAddr::new(address.into(), port), wait).is_ok();
        let done = lab.host(0).run(connect).expect("entered");
        drop(listener);
        done
    };
    lab.loss(1, Loss::random(1_000)).expect("a loss");
    assert!(connects(), "TCP is not asked for");
    let socket = Receiver::on(lab.host(1), false);
    send(lab.host(0), lab.host(1).addr(), 0..50);
    assert!(socket.take().is_empty(), "UDP is");
    lab.loss(1, Loss::random(1_000).of(Scope::Multicast)).expect("a loss");
    send(lab.host(0), lab.host(1).addr(), 0..50);
    assert_eq!(socket.take().len(), 50, "not to one host");
    lab.loss(1, Loss::random(1_000).of(Scope::DatagramsAndStreams)).expect("a loss");
    assert!(!connects(), "TCP now is");
    assert!(matches!(lab.loss(1, Loss::random(1_001)), Err(LabError::Options { .. })));
}

#[test]
fn datagrams_can_arrive_twice() {
    if !lab_for_test("datagrams_can_arrive_twice") {
        return;
    }
    let lab = make(2);
    let socket = Receiver::on(lab.host(1), false);
    lab.duplicate(1, 1_000).expect("all of them");
    send(lab.host(0), lab.host(1).addr(), 0..200);
    assert_eq!(socket.take().len(), 400, "each twice, none more often");
    lab.duplicate(1, 200).expect("a fifth");
    let before = counted(&lab, 1);
    send(lab.host(0), lab.host(1).addr(), 0..1_000);
    let numbers = socket.take();
    assert!((1_130..1_270).contains(&numbers.len()), "{}", numbers.len());
    assert_eq!(numbers.iter().collect::<BTreeSet<_>>().len(), 1_000);
    assert_eq!((counted(&lab, 1) - before).duplicated.packets, numbers.len() as u64 - 1_000);
}

/// How long a stream of 4 MB from the sender to host 1 takes.
fn stream_time(lab: &Lab) -> Duration {
    const BYTES: usize = 4_000_000;
    let (address, port) = (lab.host(1).addr(), PORT);
    let listener =
        lab.host(1).run(|| TcpListener::bind((address, port))).expect("entered").expect("listening");
    let sender = lab.host(0).spawn(move || {
        TcpStream::connect((address, port)).expect("connected").write_all(&vec![1; BYTES]).expect("sent");
    });
    let (mut stream, _) = listener.accept().expect("accepted");
    let start = Instant::now();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("received");
    assert_eq!(bytes.len(), BYTES);
    sender.join().expect("no panic").expect("entered");
    start.elapsed()
}

#[test]
fn rates_hold_in_both_directions() {
    if !lab_for_test("rates_hold_in_both_directions") {
        return;
    }
    let lab = make(2);
    // 4 MB and its headers at 100 Mb/s take 0.34 s.
    let shaped = Duration::from_millis(300)..Duration::from_millis(900);
    lab.shape(1, 100_000_000).expect("a downlink's rate");
    let time = stream_time(&lab);
    assert!(shaped.contains(&time), "{time:?}");
    lab.clear(1).expect("cleared");
    lab.shape_egress(0, 100_000_000).expect("an uplink's rate");
    let time = stream_time(&lab);
    assert!(shaped.contains(&time), "{time:?}");
    lab.clear(0).expect("cleared");
    let time = stream_time(&lab);
    assert!(time < Duration::from_millis(200), "{time:?}");
}

#[test]
fn a_cut_host_gets_nothing_and_its_groups_come_back() {
    if !lab_for_test("a_cut_host_gets_nothing_and_its_groups_come_back") {
        return;
    }
    let lab = make(2);
    lab.host(0).command("ip").args(["route", "add", "224.0.0.0/4", "dev", "e0"]).status().expect("a route");
    let socket = Receiver::on(lab.host(1), true);
    await_members(&lab, &["p1"]);
    lab.cut(1).expect("cut");
    await_members(&lab, &[]);
    send(lab.host(0), GROUP, 0..100);
    assert!(socket.take().is_empty());
    lab.restore(1).expect("restored");
    await_members(&lab, &["p1"]);
    send(lab.host(0), GROUP, 0..100);
    assert_eq!(socket.take().len(), 100);
}

#[test]
fn jumbo_frames_pass_whole() {
    if !lab_for_test("jumbo_frames_pass_whole") {
        return;
    }
    let lab = Lab::new(LabOptions { hosts: 2, mtu: 9_000, ..LabOptions::default() }).expect("a lab");
    let before = counted(&lab, 1);
    let socket = Receiver::on(lab.host(1), false);
    let sender =
        lab.host(0).run(|| UdpSocket::bind((lab.host(0).addr(), 0))).expect("entered").expect("a socket");
    sender.send_to(&[0; 8_972], (lab.host(1).addr(), PORT)).expect("sent");
    assert_eq!(socket.take(), [0]);
    let jumbo = (counted(&lab, 1) - before).host;
    assert!(jumbo.rx_bytes >= 9_014 && jumbo.rx_packets < 4, "one frame, and ARP's: {jumbo:?}");
}

#[test]
fn a_relay_reorders_doubles_and_goes_again() {
    if !lab_for_test("a_relay_reorders_doubles_and_goes_again") {
        return;
    }
    let lab = make(2);
    lab.host(0).command("ip").args(["route", "add", "224.0.0.0/4", "dev", "e0"]).status().expect("a route");
    let socket = Receiver::on(lab.host(1), true);
    let delay = Duration::from_millis(5);
    let late = Disturbance {
        late_permille: 100,
        late_by: delay,
        duplicate_permille: 50,
        seed: 3,
        ..Default::default()
    };
    lab.disturb(1, Disturbance { delay, ..late }).expect("a relay");
    lab.loss(1, Loss::burst(1, 10)).expect("loss goes on");
    await_members(&lab, &["b1"]);
    for to in [GROUP, lab.host(1).addr()] {
        let before = lab.relay_counters(1).expect("a relay");
        send(lab.host(0), to, 0..1_000);
        let numbers = socket.take();
        let after = lab.relay_counters(1).expect("a relay");
        assert_eq!(after.dropped, 0);
        assert!((60..140).contains(&(after.late - before.late)), "10 % of 900: {before:?} {after:?}");
        let doubled = usize::try_from(after.duplicated - before.duplicated).expect("few");
        assert!((20..80).contains(&doubled), "5 % of 900: {doubled}");
        assert_eq!(numbers.len(), 900 + doubled);
        assert_eq!(numbers.iter().collect::<BTreeSet<_>>().len(), 900, "the loss of 10 % in front of it");
        let steps_back = numbers.windows(2).filter(|pair| pair[0] > pair[1]).count();
        // Mostly some 80; on a busy machine the relay takes many frames at once, whose late ones then come in a row.
        assert!(steps_back > 0, "nothing was overtaken");
    }
    lab.disturb(1, Disturbance { delay, ..Disturbance::default() }).expect("changed");
    lab.loss(1, Loss::random(0)).expect("no loss");
    let time = stream_time(&lab);
    assert!(time > 3 * delay, "a stream passes, and waits: {time:?}");

    lab.cut(1).expect("cut");
    send(lab.host(0), GROUP, 0..50);
    assert!(socket.take().is_empty());
    lab.restore(1).expect("restored");
    await_members(&lab, &["b1"]);
    send(lab.host(0), GROUP, 0..50);
    assert_eq!(socket.take().len(), 50);

    lab.clear(1).expect("cleared");
    assert_eq!(lab.relay_counters(1), None);
    await_members(&lab, &["p1"]);
    send(lab.host(0), GROUP, 0..200);
    assert_eq!(socket.take(), (0..200).collect::<Vec<_>>());
    assert!(lab.disturb(1, Disturbance { late_permille: 1_001, ..late }).is_err());
}
