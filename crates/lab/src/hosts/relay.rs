//! Delay, reordering and duplication, by a relay of our own between a bridge port and a host.
//!
//! This kernel and many others lack netem. The relay is a thread in the switch's namespace with a raw packet socket on
//! either side. It carries frames with the kernel's notes on checksums and segmentation (`PACKET_VNET_HDR`, packet(7)):
//! virtual links leave checksums to be filled in by hardware that never comes, and without the notes every frame
//! would seem damaged.

use std::collections::BinaryHeap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, recv, send, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeSpec;

use super::LabError;
use super::namespace::Namespace;
use crate::rng::Rng;

/// What happens to the frames on their way to a host. The frames from it pass at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Disturbance {
    /// Time that every frame takes longer; order is kept.
    pub delay: Duration,
    /// Further time, uniform in `0..=jitter`, drawn for each UDP datagram: these overtake one another.
    pub jitter: Duration,
    /// Thousandths of the UDP datagrams that take `late_by` longer still.
    pub late_permille: u16,
    /// See `late_permille`.
    pub late_by: Duration,
    /// Thousandths of the UDP datagrams that come twice, the second with a jitter of its own.
    pub duplicate_permille: u16,
    /// Which of them: the same for the same frames in the same order.
    pub seed: u64,
}

/// What a relay did to frames towards its host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RelayCounters {
    /// Frames taken from the switch.
    pub frames: u64,
    /// Of these, UDP datagrams made late by [`Disturbance::late_by`].
    pub late: u64,
    /// Second copies made.
    pub duplicated: u64,
    /// Frames lost because more were waiting than the relay keeps, or the interface did not take them.
    pub dropped: u64,
}

#[derive(Default)]
struct Counters {
    frames: AtomicU64,
    late: AtomicU64,
    duplicated: AtomicU64,
    dropped: AtomicU64,
}

/// Most frames that wait in a relay: 100 ms at 1 Gb/s and 1,500 bytes.
const WAITING_MAX: usize = 8_192;

/// Most frames taken from one side before the other is looked after.
const TURN: usize = 256;

/// How long the thread may take to see that it is to end.
const GLANCE: Duration = Duration::from_millis(20);

/// `struct virtio_net_hdr` without its buffer count, and the largest super-packet.
const FRAME_MAX: usize = 10 + (64 << 10) + 18;

/// Bytes of `struct virtio_net_hdr` that the kernel puts in front of a frame.
const NOTES: usize = 10;

/// Bytes of a relay's socket buffers, where they may be set.
const SOCKET_BUFFER: usize = 16 << 20;

/// From linux/if_packet.h, which the crate libc does not have whole.
const PACKET_VNET_HDR: libc::c_int = 15;
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;

/// A running relay; it ends when dropped.
pub(super) struct Relay {
    settings: Arc<Mutex<Disturbance>>,
    counters: Arc<Counters>,
    stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Relay {
    /// Starts a relay between two interfaces of a namespace.
    pub(super) fn start(
        switch: &Namespace,
        inner: &str,
        outer: &str,
        settings: Disturbance,
    ) -> Result<Self, LabError> {
        let open = || io::Result::Ok((raw_socket(inner)?, raw_socket(outer)?));
        let sockets = switch.run(open).and_then(|opened| opened);
        let (inner, outer) = sockets.map_err(|source| LabError::system("open raw packet sockets", source))?;
        let settings = Arc::new(Mutex::new(settings));
        let (counters, stopped) = (Arc::<Counters>::default(), Arc::<AtomicBool>::default());
        let mut worker = Worker {
            inner,
            outer,
            settings: Arc::clone(&settings),
            counters: Arc::clone(&counters),
            rng: None,
            waiting: BinaryHeap::new(),
            sequence: 0,
            buffer: vec![0; FRAME_MAX],
        };
        let stop = Arc::clone(&stopped);
        let thread = std::thread::spawn(move || worker.work(&stop));
        Ok(Self { settings, counters, stopped, thread: Some(thread) })
    }

    pub(super) fn set(&self, settings: Disturbance) {
        *self.settings.lock().unwrap_or_else(PoisonError::into_inner) = settings;
    }

    pub(super) fn counters(&self) -> RelayCounters {
        let Counters { frames, late, duplicated, dropped } = &*self.counters;
        let [frames, late, duplicated, dropped] =
            [frames, late, duplicated, dropped].map(|counter| counter.load(Ordering::Relaxed));
        RelayCounters { frames, late, duplicated, dropped }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        if let Some(Err(error)) = self.thread.take().and_then(|thread| thread.join().ok()) {
            eprintln!("a lab's relay ended early: {error}");
        }
    }
}

/// A frame that waits; the earliest is the greatest, for the heap's sake.
struct Waiting {
    due: Instant,
    sequence: u64,
    frame: Vec<u8>,
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Waiting {}
impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.due, other.sequence).cmp(&(self.due, self.sequence))
    }
}

struct Worker {
    /// Towards the switch.
    inner: OwnedFd,
    /// Towards the host.
    outer: OwnedFd,
    settings: Arc<Mutex<Disturbance>>,
    counters: Arc<Counters>,
    /// With the seed that it was made from.
    rng: Option<(u64, Rng)>,
    waiting: BinaryHeap<Waiting>,
    sequence: u64,
    buffer: Vec<u8>,
}

impl Worker {
    fn work(&mut self, stopped: &AtomicBool) -> io::Result<()> {
        while !stopped.load(Ordering::Relaxed) {
            let next = self.waiting.peek().map(|first| first.due.saturating_duration_since(Instant::now()));
            let timeout = TimeSpec::from_duration(next.unwrap_or(GLANCE).min(GLANCE));
            let mut both = [&self.inner, &self.outer].map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN));
            match ppoll(&mut both, Some(timeout), None) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            self.carry_from_switch();
            self.carry_from_host();
            self.release();
        }
        Ok(())
    }

    fn carry_from_host(&mut self) {
        for _ in 0..TURN {
            let Some(length) = take(&self.outer, &mut self.buffer) else { return };
            // What the switch does not take is lost, as on any wire.
            let _ = send(self.inner.as_raw_fd(), &self.buffer[..length], MsgFlags::empty());
        }
    }

    fn carry_from_switch(&mut self) {
        let settings = *self.settings.lock().unwrap_or_else(PoisonError::into_inner);
        if self.rng.as_ref().is_none_or(|(seed, _)| *seed != settings.seed) {
            self.rng = Some((settings.seed, Rng::of(settings.seed, &[])));
        }
        for _ in 0..TURN {
            let Some(length) = take(&self.inner, &mut self.buffer) else { return };
            self.counters.frames.fetch_add(1, Ordering::Relaxed);
            let due = Instant::now() + settings.delay;
            if !is_udp(&self.buffer[NOTES.min(length)..length]) {
                self.wait(due, length);
                continue;
            }
            let (_, rng) = self.rng.as_mut().expect("made above");
            let mut draw = rng.fork();
            let late = draw.chance_ppm(u32::from(settings.late_permille) * 1_000);
            let twice = draw.chance_ppm(u32::from(settings.duplicate_permille) * 1_000);
            let jitter_nanos = u64::try_from(settings.jitter.as_nanos()).unwrap_or(u64::MAX - 1);
            let mut jitter = || Duration::from_nanos(draw.below(jitter_nanos.saturating_add(1)));
            let first = due + jitter() + if late { settings.late_by } else { Duration::ZERO };
            let second = twice.then(|| due + jitter());
            self.counters.late.fetch_add(late.into(), Ordering::Relaxed);
            self.counters.duplicated.fetch_add(twice.into(), Ordering::Relaxed);
            self.wait(first, length);
            if let Some(second) = second {
                self.wait(second, length);
            }
        }
    }

    /// Keeps the frame in the buffer until it is due.
    fn wait(&mut self, due: Instant, length: usize) {
        if self.waiting.len() >= WAITING_MAX {
            self.counters.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.sequence += 1;
        let frame = self.buffer[..length].to_vec();
        self.waiting.push(Waiting { due, sequence: self.sequence, frame });
    }

    fn release(&mut self) {
        let now = Instant::now();
        while self.waiting.peek().is_some_and(|first| first.due <= now)
            && let Some(Waiting { frame, .. }) = self.waiting.pop()
        {
            if send(self.outer.as_raw_fd(), &frame, MsgFlags::empty()).is_err() {
                self.counters.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// Takes a frame with its notes; `None` if there is none. An interface that is down reports an error once.
fn take(socket: &OwnedFd, buffer: &mut [u8]) -> Option<usize> {
    recv(socket.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT).ok().filter(|length| *length > 0)
}

/// Whether an Ethernet frame holds UDP, over IPv4 or directly over IPv6.
fn is_udp(frame: &[u8]) -> bool {
    const UDP: u8 = 17;
    match frame.get(12..14) {
        Some([0x08, 0x00]) => frame.get(23) == Some(&UDP),
        Some([0x86, 0xdd]) => frame.get(20) == Some(&UDP),
        _ => false,
    }
}

/// A raw socket for all frames that arrive at an interface of the calling thread's namespace, with the kernel's notes.
fn raw_socket(interface: &str) -> io::Result<OwnedFd> {
    let index = nix::net::if_::if_nametoindex(interface)?;
    // Without a protocol, so that it takes nothing before it is bound to its interface.
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
    for option in [PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING] {
        set_packet_option(&socket, option)?;
    }
    // Only the machine's root may force the size; otherwise the default has to do.
    let _ = setsockopt(&socket, sockopt::RcvBufForce, &SOCKET_BUFFER);
    bind(&socket, index)?;
    Ok(socket)
}

/// Switches a packet socket's option on.
fn set_packet_option(socket: &OwnedFd, option: libc::c_int) -> io::Result<()> {
    let on: libc::c_int = 1;
    let length = libc::socklen_t::try_from(size_of::<libc::c_int>()).expect("four bytes");
    // SAFETY: the descriptor is open, as `socket` is borrowed; the pointer is to a live integer of the length
    // given, and the kernel only reads it.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, option, (&raw const on).cast(), length)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn bind(socket: &OwnedFd, interface: libc::c_uint) -> io::Result<()> {
    let protocol = u16::try_from(libc::ETH_P_ALL).expect("a 16-bit number");
    let address = libc::sockaddr_ll {
        sll_family: libc::sa_family_t::try_from(libc::AF_PACKET).expect("a small number"),
        // In network byte order.
        sll_protocol: protocol.to_be(),
        sll_ifindex: libc::c_int::try_from(interface).map_err(io::Error::other)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let length = libc::socklen_t::try_from(size_of_val(&address)).expect("twenty bytes");
    // SAFETY: the descriptor is open, as `socket` is borrowed; the pointer is to a live, initialised socket address
    // of the length given, and the kernel only reads it.
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_udp_is_taken_for_udp() {
        let mut frame = [0; 64];
        frame[12..14].copy_from_slice(&[0x08, 0x00]);
        frame[23] = 17;
        assert!(is_udp(&frame));
        frame[23] = 6;
        assert!(!is_udp(&frame));
        frame[12..14].copy_from_slice(&[0x86, 0xdd]);
        frame[20] = 17;
        assert!(is_udp(&frame));
        assert!(!is_udp(&frame[..14]) && !is_udp(&[]));
        frame[12..14].copy_from_slice(&[0x08, 0x06]);
        assert!(!is_udp(&frame), "ARP");
    }
}
