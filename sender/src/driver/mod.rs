//! A transfer with real threads and sockets: this thread runs the session, seals and sends; others encode and talk to
//! the hosts.

mod catch_up;
mod control;
mod encoders;
mod guests;
mod offers;
mod outcome;
mod queue;
mod transmit;

pub use control::HostTarget;
pub use outcome::{HostOutcome, Outcome, Progress};

use crate::encode::{EncodePlan, EncodedBlock};
use crate::guests::GuestInput;
use crate::prepare::Prepared;
use crate::session::{Event, Phase, SegmentSpec, Session, SessionConfig};
use crate::window::Window;
use catch_up::Again;
use control::{Connections, Link};
use crossbeam_channel::{Receiver, RecvTimeoutError, unbounded};
use encoders::{Encoded, Encoders, scaled};
use fec::{BlockShape, CostModel};
use guests::Guests;
use net::interface::Interface;
use net::pki::Identity;
use net::udp::SenderOptions;
use offers::{channel_specs, offers};
use queue::Queue;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use transmit::Transmitter;
use wire::control::{ToHost, ToSender};

/// A channel of the schedule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ScheduledChannel {
    /// The group; `None` for the unicast channel of one host.
    pub group: Option<IpAddr>,
    /// Indexes of its hosts, ascending.
    pub hosts: Vec<usize>,
}

/// A segment of the schedule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ScheduledSegment {
    /// Index in [`Prepared::segments`]. A segment sent to several hosts by unicast stands here once for each.
    pub segment: usize,
    /// Index of the channel.
    pub channel: usize,
}

/// What is sent where, in which order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Schedule {
    /// Channels, in any order.
    pub channels: Vec<ScheduledChannel>,
    /// Segments, in the order of sending.
    pub segments: Vec<ScheduledSegment>,
}

/// Everything about a transfer but the pages.
#[derive(Clone)]
pub struct TransferConfig {
    /// The plan's name; a later transfer of the same name resumes.
    pub name: String,
    /// The hosts; indexes elsewhere are into this list.
    pub hosts: Vec<HostTarget>,
    /// This sender's certificate and key, and the fleet's CA.
    pub identity: Arc<Identity>,
    /// Where datagrams leave.
    pub interface: Interface,
    /// Time to live and socket options.
    pub options: SenderOptions,
    /// UDP port of the groups.
    pub multicast_port: u16,
    /// The groups are IPv6's.
    pub ipv6: bool,
    /// Bounds and times.
    pub session: SessionConfig,
    /// Encoding and block size.
    pub encode: EncodePlan,
    /// Threads that encode.
    pub threads: usize,
    /// VMs that are started at their hosts while their memory arrives; see [`crate::guests::check`].
    pub guests: Vec<GuestInput>,
}

/// A transfer could not be run at all. Failures of single hosts are in [`Outcome`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// A socket could not be made.
    #[error("cannot make the data socket")]
    Udp(#[source] net::udp::UdpError),
    /// The system cannot start what is needed.
    #[error("cannot start the control connections")]
    Start(#[source] std::io::Error),
    /// Sending failed, and not for a full buffer.
    #[error("cannot send to {dest}")]
    Send {
        /// Group or host.
        dest: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A block outside the code's limits.
    #[error("cannot encode a block for repair")]
    Fec(#[source] fec::FecError),
}

enum Happening {
    Encoded(Encoded),
    Link { host: usize, link: Link },
}

/// How often progress is told.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);
/// Batches sent between two looks at the other threads.
const BATCHES_AT_ONCE: usize = 8;

/// A running transfer.
pub struct Transfer {
    config: TransferConfig,
    session: Session,
    window: Window,
    transmitter: Transmitter,
    encoders: Encoders,
    connections: Option<Connections>,
    happenings: Receiver<Happening>,
    queues: Vec<Option<Queue>>,
    unicast_channel: Vec<Option<usize>>,
    /// For each block, its stripe and its place there.
    origins: Vec<(usize, usize)>,
    stripe_segments: Vec<usize>,
    stripe_bytes: u64,
    again: Again,
    guests: Guests,
    start: Instant,
    complete_at: Vec<Option<Duration>>,
    vm_complete: Vec<Vec<u16>>,
    cpu_at_start: Duration,
    segment_log: Vec<(usize, Duration)>,
}

impl Transfer {
    /// Connects to the hosts and starts encoding.
    ///
    /// # Errors
    /// [`TransferError`] if sockets or threads cannot be made.
    pub fn start(
        prepared: &Arc<Prepared>,
        schedule: &Schedule,
        config: TransferConfig,
    ) -> Result<Self, TransferError> {
        let start = Instant::now();
        let (out, happenings) = unbounded();
        let channels = channel_specs(schedule);
        let dests = channels.iter().map(|spec| Some(SocketAddr::new(spec.group?, config.multicast_port)));
        let transmitter = Transmitter::new(config.interface.clone(), config.options, dests.collect());
        let window = Window::new(&channels);
        let ratio = config.encode.ratio;
        let segments: Vec<SegmentSpec> = (schedule.segments.iter())
            .map(|scheduled| SegmentSpec {
                channel: scheduled.channel,
                expected_bytes: scaled(prepared.segment_bytes(scheduled.segment), ratio),
            })
            .collect();
        let mut stripes = Vec::new();
        let mut stripe_segments = Vec::new();
        for (position, scheduled) in schedule.segments.iter().enumerate() {
            let more = prepared.stripes(scheduled.segment);
            stripe_segments.extend(std::iter::repeat_n(position, more.len()));
            stripes.extend(more);
        }
        let mut unicast_channel = vec![None; config.hosts.len()];
        for (index, channel) in schedule.channels.iter().enumerate() {
            if channel.group.is_none() {
                unicast_channel[channel.hosts[0]] = Some(index);
            }
        }
        let cost_model = CostModel::measure(|| start.elapsed());
        let mut session =
            Session::new(config.session.clone(), cost_model, config.hosts.len(), channels, &segments);
        for position in 0..segments.len() {
            if !stripe_segments.contains(&position) {
                session.handle_segment_encoded(position);
            }
        }
        let offers = offers(prepared, &config);
        let targets = config.hosts.iter().cloned().zip(offers).collect();
        let connections =
            Connections::start(targets, &config.identity, &out).map_err(TransferError::Start)?;
        let encoders = Encoders::start(prepared, stripes, config.encode, config.threads, &out);
        let hosts = config.hosts.len();
        Ok(Self {
            session,
            window,
            transmitter,
            encoders,
            connections: Some(connections),
            happenings,
            queues: (0..hosts).map(|_| None).collect(),
            guests: Guests::new(prepared, &config),
            unicast_channel,
            origins: Vec::new(),
            stripe_segments,
            stripe_bytes: scaled((crate::prepare::STRIPE_CONTENTS * pages::PAGE_SIZE) as u64, ratio),
            again: Again::default(),
            start,
            complete_at: vec![None; hosts],
            vm_complete: vec![Vec::new(); hosts],
            cpu_at_start: usage::cpu(),
            segment_log: Vec::new(),
            config,
        })
    }

    /// Runs until every host is complete or has failed. `interrupt` cancels; `observer` is told of progress.
    ///
    /// # Errors
    /// [`TransferError`] if this host cannot send at all; the hosts then keep what they hold.
    pub fn run(
        mut self,
        interrupt: &AtomicBool,
        observer: &mut dyn FnMut(&Progress),
    ) -> Result<Outcome, TransferError> {
        let mut told = Duration::ZERO;
        loop {
            let now = self.start.elapsed();
            if interrupt.load(Ordering::Relaxed) {
                self.session.cancel("interrupted at the sender", now);
            }
            while let Ok(happening) = self.happenings.try_recv() {
                self.take_in(happening);
            }
            self.feed_encoders();
            let mut sent = 0;
            self.session.handle_timeout(self.start.elapsed());
            while sent < BATCHES_AT_ONCE {
                let Some(transmit) = self.session.poll_transmit(self.start.elapsed()) else { break };
                self.answer_faults();
                // Announcements and questions go out first: the control channel is slower to start.
                self.flush_control();
                if let Some(batch) = self.window.seal(&transmit).map_err(TransferError::Fec)? {
                    self.transmitter.send(transmit.channel, batch)?;
                }
                sent += 1;
            }
            self.answer_faults();
            self.catch_up();
            self.flush_control();
            self.after_steps();
            let now = self.start.elapsed();
            if now >= told + PROGRESS_EVERY {
                told = now;
                observer(&self.progress());
            }
            if self.session.is_over() {
                break;
            }
            if sent < BATCHES_AT_ONCE {
                self.sleep();
            }
        }
        observer(&self.progress());
        Ok(self.finish())
    }

    fn sleep(&mut self) {
        let now = self.start.elapsed();
        let until = self.session.poll_timeout(now).unwrap_or(now).min(now + PROGRESS_EVERY);
        match self.happenings.recv_timeout(until.saturating_sub(now)) {
            Ok(happening) => self.take_in(happening),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        }
    }

    fn take_in(&mut self, happening: Happening) {
        let now = self.start.elapsed();
        match happening {
            Happening::Encoded(encoded) if encoded.again => self.again.keep(encoded),
            Happening::Encoded(encoded) => {
                self.encoders.put(encoded);
                while let Some((stripe, blocks)) = self.encoders.pop() {
                    self.add_blocks(stripe, blocks);
                }
            }
            Happening::Link { host, link } => match link {
                Link::Up(queue) => {
                    self.queues[host] = Some(queue);
                    self.guests.service.handle_connected(host);
                    self.session.handle_connected(host, now);
                }
                Link::Message(message) => self.message(host, message, now),
                Link::Down { reason, fatal } => {
                    self.queues[host] = None;
                    self.session.handle_disconnected(host, now);
                    if fatal {
                        self.session.fail(host, reason, now);
                    } else {
                        self.session.note(host, reason);
                    }
                }
            },
        }
    }

    fn message(&mut self, host: usize, message: ToSender, now: Duration) {
        if let (ToSender::Accept(accept), Some(channel)) = (&message, self.unicast_channel[host]) {
            self.transmitter.set_dest(channel, accept.unicast);
        }
        if let Some(message) = self.guest_message(host, message, now) {
            self.session.handle_control(host, message, now);
        }
    }

    fn add_blocks(&mut self, stripe: usize, blocks: Vec<EncodedBlock>) {
        let segment = self.stripe_segments[stripe];
        for (place, block) in blocks.into_iter().enumerate() {
            let len = u32::try_from(block.bytes.len()).expect("at most 1 MiB");
            let shape = BlockShape::for_len(len, self.config.session.symbol_size_max)
                .expect("the encoder keeps blocks in the limits");
            let id = self.session.handle_block(segment, len, block.digest);
            self.window.keep(id, block.bytes, shape).expect("the shape was made for this length");
            self.origins.push((stripe, place));
        }
        if self.stripe_segments.get(stripe + 1) != Some(&segment) {
            self.session.handle_segment_encoded(segment);
        }
    }

    fn feed_encoders(&mut self) {
        if self.guests.go_first(self.start.elapsed()) {
            return;
        }
        while self.encoders.has_more()
            && self.session.wants_blocks(self.encoders.pending as u64 * self.stripe_bytes)
        {
            self.encoders.start_next();
        }
    }

    fn flush_control(&mut self) {
        while let Some((host, message)) = self.session.poll_control() {
            if let Some(queue) = &self.queues[host] {
                queue.say(message);
            }
        }
    }

    fn after_steps(&mut self) {
        let now = self.start.elapsed();
        while let Some(id) = self.session.poll_release() {
            self.window.release(id);
        }
        while let Some(event) = self.session.poll_event() {
            match event {
                Event::Phase { host, phase } => {
                    tracing::info!(host = %self.config.hosts[host].name, ?phase, "phase");
                    if phase == Phase::Complete {
                        self.complete_at[host] = Some(now);
                    }
                }
                Event::VmComplete { host, vm } if !self.vm_complete[host].contains(&vm) => {
                    self.vm_complete[host].push(vm);
                }
                Event::VmComplete { .. } => {}
                Event::SegmentStarted { segment } => self.segment_log.push((segment, now)),
            }
        }
    }

    /// Releases the hosts that are complete and ends the connections.
    fn finish(mut self) -> Outcome {
        let wall = self.start.elapsed();
        for host in 0..self.config.hosts.len() {
            if *self.session.phase(host) == Phase::Complete
                && let Some(queue) = &self.queues[host]
            {
                // A host that is gone has its images all the same; its journal stays until the next transfer.
                queue.say(ToHost::Release);
            }
        }
        self.queues.clear();
        self.connections = None;
        self.outcome(wall)
    }
}
