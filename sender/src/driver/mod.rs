//! A transfer with real threads and sockets: this thread runs the session, seals and sends; others encode and talk to
//! the hosts.

mod cancel;
mod catch_up;
mod circles;
mod config;
mod control;
mod departures;
mod encoders;
mod go_first;
mod guests;
mod happenings;
mod leavers;
mod offers;
mod outcome;
mod queue;
mod steer;
mod todo;
mod transmit;

pub use cancel::{CANCELLED, Vouch};
pub use config::{Schedule, ScheduledChannel, ScheduledSegment, TransferConfig, TransferError};
pub use control::HostTarget;
pub use leavers::{Departure, DepartureFigures, DepartureOutcome};
pub use outcome::{HostOutcome, Outcome, Progress};

use crate::departure::{Pace, Told};
use crate::encode::EncodedBlock;
use crate::handover::journal::Journal;
use crate::prepare::Prepared;
use crate::session::{Phase, Session};
use crate::window::Window;
use cancel::Cancelling;
use catch_up::Again;
use circles::Circles;
use control::{Connections, Link};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use encoders::{Encoded, Encoders, Threads};
use fec::CostModel;
use guests::Guests;
use leavers::Departures;
use offers::{channel_specs, needed_by, offers, segment_specs};
use queue::Queue;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use todo::Stripes;
use transmit::Transmitter;
use wire::control::ToHost;

enum Happening {
    Encoded(Encoded),
    Link { host: usize, link: Link },
    Departure { index: usize, told: Told },
}

/// How often progress is told.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);
/// Messages and blocks taken in between two looks at what is to be sent: a host that floods does not stop the data.
const HAPPENINGS_AT_ONCE: usize = 128;
/// Batches sent between two looks at the other threads.
const BATCHES_AT_ONCE: usize = 8;

/// With guests, stripes handed to each thread: it has work, and what is next is decided late.
const AHEAD_WITH_GUESTS: usize = 2;

/// A running transfer.
pub struct Transfer {
    config: TransferConfig,
    prepared: Arc<Prepared>,
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
    stripes: Stripes,
    schedule: Schedule,
    /// Per channel: stripes being encoded.
    encoding: Vec<usize>,
    /// Per segment: the hosts that need it, which may be fewer than its channel has.
    needed_by: Vec<Vec<usize>>,
    /// Per host: encoded bytes that it needs.
    needed_bytes: Vec<u64>,
    again: Again,
    guests: Guests,
    departures: Departures,
    cancelling: Cancelling,
    out: Sender<Happening>,
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
        let circles = Circles::new(prepared, &config);
        let segments = segment_specs(prepared, schedule, &circles, config.encode.ratio);
        let (stripes, kept) = Stripes::cut(prepared, schedule, &config);
        let cost_model = CostModel::measure(|| start.elapsed());
        let mut session =
            Session::new(config.session.clone(), cost_model, config.hosts.len(), channels, &segments);
        for (position, _) in kept.todo.iter().enumerate().filter(|(_, todo)| todo.is_done()) {
            session.handle_segment_encoded(position);
        }
        let offers = offers(prepared, &config, &circles);
        let targets = config.hosts.iter().cloned().zip(offers).collect();
        let connections =
            Connections::start(targets, &config.identity, &out).map_err(TransferError::Start)?;
        let clones = config.guests.iter().any(|guest| guest.leaves.is_none());
        let with = Threads { count: config.threads, yields: clones };
        let encoders = Encoders::start(prepared, stripes, config.encode, with, &out);
        let hosts = config.hosts.len();
        Ok(Self {
            prepared: Arc::clone(prepared),
            session,
            window,
            transmitter,
            encoders,
            connections: Some(connections),
            happenings,
            queues: (0..hosts).map(|_| None).collect(),
            guests: Guests::new(
                prepared,
                &config,
                segments.iter().map(|segment| segment.expected_bytes).sum(),
            ),
            departures: Departures::default(),
            cancelling: Cancelling::default(),
            out,
            unicast_channel: (0..hosts).map(|host| schedule.unicast_channel(host)).collect(),
            origins: Vec::new(),
            stripes: kept,
            encoding: vec![0; schedule.channels.len()],
            needed_by: needed_by(prepared, schedule),
            schedule: schedule.clone(),
            needed_bytes: vec![0; hosts],
            again: Again::default(),
            start,
            complete_at: vec![None; hosts],
            vm_complete: vec![Vec::new(); hosts],
            cpu_at_start: usage::cpu(),
            segment_log: Vec::new(),
            config,
        })
    }

    /// VMs of the plan that run here, and leave; before [`run`](Self::run). Once `cancel` is set, those that can stay do.
    ///
    /// # Errors
    /// [`TransferError::Start`] if no thread can be made: they run on.
    pub fn depart(
        &mut self,
        departures: Vec<Departure>,
        journal: Journal,
        pace: Pace,
        cancel: Arc<AtomicBool>,
    ) -> Result<(), TransferError> {
        self.departures =
            Departures::start(departures, journal, pace, &self.out).map_err(TransferError::Start)?;
        self.departures.cancel = cancel;
        Ok(())
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
                self.abandon_all("interrupted at the sender");
                if self.departures.may_leave() {
                    self.session.cancel("interrupted at the sender", now);
                }
            }
            for happening in self.happenings.clone().try_iter().take(HAPPENINGS_AT_ONCE) {
                self.take_in(happening);
            }
            self.steer_departures();
            self.steer_cancel();
            self.feed_encoders();
            let mut sent = 0;
            self.session.handle_timeout(self.start.elapsed());
            while sent < BATCHES_AT_ONCE {
                let Some(transmit) = self.session.poll_transmit(self.start.elapsed()) else { break };
                self.answer_faults();
                // Announcements and questions go out first: the control channel is slower to start.
                self.flush_control();
                if let Some(batch) = self.window.seal(&transmit).map_err(TransferError::Fec)? {
                    let sent = self.transmitter.send(transmit.channel, batch);
                    self.check_sent(transmit.channel, sent)?;
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
        self.finish_departures();
        observer(&self.progress());
        Ok(self.finish())
    }

    /// What cannot be sent to a group ends the transfer; what cannot be sent to one host, that host's part in it.
    fn check_sent(&mut self, channel: usize, sent: Result<(), TransferError>) -> Result<(), TransferError> {
        let host = self.unicast_channel.iter().position(|own| *own == Some(channel));
        match (sent, host) {
            (Err(TransferError::Send { dest, source }), Some(host)) => {
                let now = self.start.elapsed();
                self.session.fail(host, format!("cannot send to {dest}: {source}"), now);
                Ok(())
            }
            (sent, _) => sent,
        }
    }

    fn sleep(&mut self) {
        let now = self.start.elapsed();
        let until = self.session.poll_timeout(now).unwrap_or(now).min(now + PROGRESS_EVERY);
        let until = self.guests.service.poll_timeout().map_or(until, |due| due.min(until));
        match self.happenings.recv_timeout(until.saturating_sub(now)) {
            Ok(happening) => self.take_in(happening),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        }
    }

    fn add_blocks(&mut self, stripe: usize, blocks: Vec<EncodedBlock>) {
        if self.cancelling.is_broken() {
            return;
        }
        let segment = self.stripes.segment_of(stripe);
        self.encoding[self.schedule.segments[segment].channel] -= 1;
        for (place, block) in blocks.into_iter().enumerate() {
            let len = u32::try_from(block.bytes.len()).expect("at most 1 MiB");
            let id = self.session.handle_block(segment, len, block.digest);
            let scheduled = &self.schedule.segments[segment];
            if self.schedule.channels[scheduled.channel].group.is_some() {
                let contents = &self.prepared.segments[scheduled.segment].contents;
                self.guests.note_block(id, &contents[block.contents.clone()]);
            }
            self.keep(id, block.bytes);
            self.origins.push((stripe, place));
            for host in &self.needed_by[segment] {
                self.needed_bytes[*host] += u64::from(len);
            }
        }
        if !self.config.guests.is_empty() {
            self.session.announce_now();
        }
        self.stripes.todo[segment].end();
        if self.stripes.todo[segment].is_done() {
            self.session.handle_segment_encoded(segment);
        }
    }

    /// In the order of the schedule, but a segment whose channel is held up does not hold up the next ones.
    fn feed_encoders(&mut self) {
        if self.departures.go_first() {
            return;
        }
        // Working sets are what clones wait for; the rest would keep them waiting.
        let end = match self.guests.go_first(self.start.elapsed()) {
            true => self.schedule.first,
            false => self.stripes.todo.len(),
        };
        while let Some(segment) = (0..end).find(|segment| self.wants(*segment)) {
            if let Some(stripe) = self.stripes.todo[segment].begin() {
                self.encoders.start_on(stripe);
                self.encoding[self.schedule.segments[segment].channel] += 1;
            }
        }
    }

    fn wants(&self, segment: usize) -> bool {
        if self.stripes.todo[segment].is_begun() {
            return false;
        }
        let pending = |stripes: usize| stripes as u64 * self.stripes.bytes;
        let channel = self.schedule.segments[segment].channel;
        let all = self.encoding.iter().sum();
        if !self.config.guests.is_empty() && all >= self.config.threads.max(1) * AHEAD_WITH_GUESTS {
            return false;
        }
        self.session.wants_blocks(segment, pending(self.encoding[channel]), pending(all))
    }

    /// Releases the hosts that are complete and ends the connections. After an interruption none is released whose blocks
    /// guests of other hosts may need.
    fn finish(mut self) -> Outcome {
        let wall = self.start.elapsed();
        let with_guests: BTreeSet<usize> =
            self.config.guests.iter().flat_map(|guest| &guest.clones).map(|(host, _)| *host).collect();
        let waiting = with_guests.iter().any(|host| *self.session.phase(*host) != Phase::Complete);
        let needed = self.session.is_cancelled() && waiting;
        for host in 0..self.config.hosts.len() {
            if *self.session.phase(host) == Phase::Complete
                && !(needed && with_guests.contains(&host))
                && let Some(queue) = &self.queues[host]
            {
                // A host that is gone has its images all the same; its journal stays until the next transfer.
                let _ = queue.say(ToHost::Release);
            }
        }
        self.queues.clear();
        self.connections = None;
        self.outcome(wall)
    }
}
