//! Multicast from one host to 1, 4 and 8 over veth pairs and a snooping bridge, in namespaces that end with the
//! process. Prints Gbit/s of payload per receiver and CPU nanoseconds per KB; needs root, else says so.
//!
//! `cargo bench -p net --bench veth [-- SECONDS]`. Without `--bench` (as `cargo test` runs it) only one case
//! runs, for 20 ms. *wire-like*: no interface carries more than one datagram in a packet, so the kernel cuts and joins as
//! with real links (docs of the lab); *whole*: packets of 64 datagrams pass the virtual links uncut.

use net::Interface;
use net::udp::{Family, SenderOptions, UdpReceiver, UdpSender, Waker};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Barrier, mpsc};
use std::time::{Duration, Instant};

const PORT: u16 = 9977;
const GROUP: IpAddr = IpAddr::V4(Ipv4Addr::new(239, 99, 0, 1));
/// The sender stays at most this far ahead of the slowest receiver, so that nothing is lost.
const WINDOW_BYTES: u64 = 2 << 20;

#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    mtu: u32,
    datagram: usize,
    wire_like: bool,
    gso: bool,
}

const CASES: [Case; 5] = [
    Case { name: "1400 sendmmsg wire-like", mtu: 1500, datagram: 1400, wire_like: true, gso: false },
    Case { name: "1400 GSO wire-like", mtu: 1500, datagram: 1400, wire_like: true, gso: true },
    Case { name: "8900 GSO wire-like", mtu: 9000, datagram: 8900, wire_like: true, gso: true },
    Case { name: "1400 GSO whole", mtu: 1500, datagram: 1400, wire_like: false, gso: true },
    Case { name: "8900 GSO whole", mtu: 9000, datagram: 8900, wire_like: false, gso: true },
];

fn main() {
    let bench = std::env::args().any(|argument| argument == "--bench");
    let seconds = std::env::args().find_map(|argument| argument.parse::<f64>().ok());
    let time = Duration::from_secs_f64(seconds.unwrap_or(if bench { 1.0 } else { 0.02 }));
    if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
        println!("skipped: no network namespaces for this user ({error})");
        return;
    }
    println!(
        "{:<26} {:>4} {:>10} {:>8} {:>14} {:>14}",
        "case", "rx", "Gb/s each", "loss %", "send ns/KB", "recv ns/KB"
    );
    let (cases, receivers): (&[Case], &[usize]) =
        if bench { (&CASES, &[1, 4, 8]) } else { (&CASES[1..2], &[2]) };
    for &case in cases {
        for &receivers in receivers {
            run(case, receivers, time);
        }
    }
}

fn sh(line: &str) {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().expect("a program")).args(words).output().expect("installed");
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Makes the bridge here and a port for each host, whose threads' ids come over the channel.
fn wire(case: Case, hosts: &mpsc::Receiver<(usize, i32)>, count: usize, ready: &Barrier) {
    sh(&format!(
        "ip link add br0 mtu {} type bridge forward_delay 0 mcast_snooping 1 mcast_query_response_interval 10",
        case.mtu
    ));
    sh("ip link set br0 up");
    for _ in 0..count {
        let (index, thread) = hosts.recv().expect("each host reports");
        let mtu = case.mtu;
        sh(&format!("ip link add p{index} mtu {mtu} type veth peer name e0 mtu {mtu} netns {thread}"));
        sh(&format!("ip link set p{index} master br0 up"));
        if case.wire_like {
            sh(&format!("ethtool -K p{index} tso off"));
        }
    }
    sh("ip link set br0 type bridge mcast_querier 1");
    ready.wait();
}

/// A thread of its own in a new namespace, with `e0` configured.
fn enter(case: Case, index: usize, report: &mpsc::Sender<(usize, i32)>, ready: &Barrier) -> Interface {
    unshare(CloneFlags::CLONE_NEWNET).expect("allowed in main");
    report.send((index, nix::unistd::gettid().as_raw())).expect("the switch listens");
    ready.wait();
    sh(&format!("ip addr add 10.99.0.{}/24 dev e0", index + 1));
    sh("ip link set e0 up");
    if case.wire_like {
        sh("ethtool -K e0 tx-udp-segmentation off tso off gro on");
    }
    // The kernel tells the bridge of a link that came up within a second (linkwatch); a join before is lost.
    std::thread::sleep(Duration::from_millis(1100));
    Interface::by_name("e0").expect("made by the switch")
}

fn cpu() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_THREAD).expect("always allowed");
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Duration::from_micros(micros.try_into().expect("positive"))
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn run(case: Case, receivers: usize, time: Duration) {
    let (report, hosts) = mpsc::channel();
    let (ready, joined) = (Barrier::new(receivers + 2), Barrier::new(receivers + 1));
    let (done, counts) =
        (AtomicBool::new(false), (0..receivers).map(|_| AtomicU64::new(0)).collect::<Vec<_>>());
    std::thread::scope(|scope| {
        // A namespace of its own for each run's switch, so that the runs do not meet.
        let (ready, joined, done, counts, hosts) = (&ready, &joined, &done, &counts, hosts);
        scope.spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("allowed in main");
            wire(case, &hosts, receivers + 1, ready);
            while !done.load(Ordering::Acquire) {
                std::thread::sleep(Duration::from_millis(5));
            }
            sh("ip link del br0");
        });
        let threads: Vec<_> = (0..receivers)
            .map(|index| {
                let report = report.clone();
                scope.spawn(move || {
                    let interface = enter(case, index + 1, &report, ready);
                    receive(&interface, joined, done, &counts[index])
                })
            })
            .collect();
        let sender = scope.spawn(move || {
            let interface = enter(case, 0, &report, ready);
            joined.wait();
            std::thread::sleep(Duration::from_millis(200));
            let result = send(case, &interface, counts, time);
            std::thread::sleep(Duration::from_millis(30));
            done.store(true, Ordering::Release);
            result
        });
        let (sent, elapsed, send_cpu) = sender.join().expect("no panic");
        let recv_cpu: Duration = threads.into_iter().map(|thread| thread.join().expect("no panic")).sum();
        let received: u64 = counts.iter().map(|count| count.load(Ordering::Relaxed)).sum();
        let each = received as f64 / receivers as f64;
        println!(
            "{:<26} {:>4} {:>10.2} {:>8.3} {:>14.0} {:>14.0}",
            case.name,
            receivers,
            each * 8.0 / elapsed.as_secs_f64() / 1e9,
            100.0 * (1.0 - each / sent as f64),
            send_cpu.as_nanos() as f64 / (sent as f64 / 1000.0),
            recv_cpu.as_nanos() as f64 / (received as f64 / 1000.0),
        );
    });
}

fn receive(interface: &Interface, joined: &Barrier, done: &AtomicBool, count: &AtomicU64) -> Duration {
    let mut receiver = UdpReceiver::bind(PORT, Family::V4, interface, 16 << 20).expect("bind");
    receiver.join(GROUP).expect("join");
    let waker = Waker::new().expect("eventfd");
    joined.wait();
    let start = cpu();
    while !done.load(Ordering::Acquire) {
        receiver.recv_batch(Duration::from_millis(10), &waker, |_, _| {}).expect("receive");
        count.store(receiver.stats().bytes, Ordering::Release);
    }
    cpu() - start
}

fn send(
    case: Case,
    interface: &Interface,
    counts: &[AtomicU64],
    time: Duration,
) -> (u64, Duration, Duration) {
    let options = SenderOptions { gso: case.gso, ..SenderOptions::default() };
    let mut sender = UdpSender::bind(interface, Family::V4, options).expect("bind");
    assert_eq!(sender.gso(), case.gso);
    let batch = vec![0x5a; case.datagram * (65_507 / case.datagram).min(64)];
    let dest = SocketAddr::new(GROUP, PORT);
    let (start, cpu_start) = (Instant::now(), cpu());
    let mut given_up = 0;
    while start.elapsed() < time {
        sender.send_batch(dest, &batch, case.datagram).expect("send");
        let waiting = Instant::now();
        loop {
            let slowest = counts.iter().map(|count| count.load(Ordering::Acquire)).min().expect("receivers");
            if sender.stats().bytes <= slowest + given_up + WINDOW_BYTES {
                break;
            }
            if waiting.elapsed() > Duration::from_millis(50) {
                given_up = sender.stats().bytes - slowest;
            }
            std::thread::yield_now();
        }
    }
    (sender.stats().bytes, start.elapsed(), cpu() - cpu_start)
}
