//! The threads of one transfer: this one reads sockets and runs the session, workers check blocks.
//!
//! Sockets are drained here and pages written by the workers, so that a slow disk fills the sender's window of
//! unacknowledged blocks and not the socket's buffer.

use crate::check::{Checked, Job, check};
use crate::guests::{GuestError, Guests};
use crate::session::{Action, Session, SessionConfig};
use crate::store::Intake;
use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded, unbounded};
use net::udp::{UdpReceiver, Waker};
use pages::VmId;
use pages::block::{BlockLimits, Scratch};
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::UnboundedSender;
use wire::control::{HostStats, Message, Offer, ToHost, ToSender};

/// Jobs that may wait for a worker; the session's bound on bytes in flight is tighter.
const JOBS_MAX: usize = 4096;
/// The receiving thread wakes at least this often.
const IDLE: Duration = Duration::from_millis(200);

/// One end of the connection to a sender, as the driver sees it.
pub struct Link {
    /// Messages of the sender; an `Err` with the reason when the connection is lost.
    pub incoming: Receiver<Result<ToHost, String>>,
    /// Frames to the sender.
    pub outgoing: UnboundedSender<Vec<u8>>,
}

/// How a transfer ended at this host.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Ended {
    /// Every image is complete, and the sender has released the transfer.
    Complete(HostStats),
    /// Every image is complete; the sender was lost before it said that all is over. The journal stays.
    CompleteUnreleased(HostStats),
    /// The connection was lost, or another session of the same transfer took over. What is held stays.
    Interrupted(String),
    /// Cancelled by the sender, or this host could not go on. What is held stays.
    Failed(String),
}

enum WorkerResult {
    Checked(Checked),
    Finished(u16, Result<(), String>),
}

enum Task {
    Check(Box<Job>),
    Finish(u16),
}

/// Everything one transfer needs.
pub struct Driver<'a> {
    /// The sockets.
    pub sockets: &'a mut UdpReceiver,
    /// Wakes this thread out of the sockets' poll.
    pub waker: &'a Arc<Waker>,
    /// The connection to the sender.
    pub link: Link,
    /// The images.
    pub intake: Arc<Intake>,
    /// Threads that check blocks.
    pub workers: usize,
    /// VMs that run while their memory arrives, if there are any.
    pub guests: Option<&'a mut Guests>,
    /// Asked now and then: `Some(reason)` ends the transfer, and what is held stays.
    pub preempted: &'a mut dyn FnMut() -> Option<String>,
}

struct Workers {
    tasks: Option<Sender<Task>>,
    results: Receiver<WorkerResult>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    fn start(count: usize, intake: &Arc<Intake>, waker: &Arc<Waker>) -> Self {
        let (tasks, queue) = bounded::<Task>(JOBS_MAX);
        let (out, results) = unbounded();
        let threads = (0..count.max(1))
            .map(|index| {
                let (queue, out) = (queue.clone(), out.clone());
                let (intake, waker) = (Arc::clone(intake), Arc::clone(waker));
                std::thread::Builder::new()
                    .name(format!("place-{index}"))
                    .spawn(move || {
                        let (limits, mut scratch) = (BlockLimits::default(), Scratch::new());
                        for task in queue {
                            let result = match task {
                                Task::Check(job) => {
                                    WorkerResult::Checked(check(*job, &intake, &limits, &mut scratch))
                                }
                                Task::Finish(vm) => {
                                    let finished =
                                        intake.finish(VmId(vm)).map(|_| ()).map_err(|e| e.to_string());
                                    WorkerResult::Finished(vm, finished)
                                }
                            };
                            if out.send(result).is_err() {
                                return;
                            }
                            waker.wake();
                        }
                    })
                    .expect("the system can start a thread")
            })
            .collect();
        Self { tasks: Some(tasks), results, threads }
    }

    fn submit(&self, task: Task) {
        if let Some(tasks) = &self.tasks {
            tasks.send(task).expect("workers live as long as their queue");
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.tasks = None;
        for thread in self.threads.drain(..) {
            // A panic was reported by the thread; the transfer then ends by the sender's time-out.
            let _ = thread.join();
        }
    }
}

impl Driver<'_> {
    /// Receives until the transfer ends. The session has accepted `offer` already.
    ///
    /// # Errors
    /// The sockets'.
    pub fn run(self, offer: &Offer) -> io::Result<Ended> {
        let start = Instant::now();
        let workers = Workers::start(self.workers, &self.intake, self.waker);
        let session = Session::new(SessionConfig::new(offer.symbol_size_max, offer.vms.len()));
        let vms = offer.vms.iter().map(|vm| vm.vm).collect();
        let cpu_at_start = usage::cpu();
        let mut running =
            Running { driver: self, session, workers, vms, cpu_at_start, placed: false, all_complete: None };
        if let Some(guests) = &mut running.driver.guests {
            guests.handle_connected();
        }
        let complete = complete_vms(&running.driver.intake, &running.vms);
        running.session.handle_complete_vms(&complete);
        loop {
            let drained = running.receive(start)?;
            let now = start.elapsed();
            if let Some(ended) = running.take_results(now) {
                return Ok(ended);
            }
            // What the sender said before it went is heeded first.
            let lost = running.take_messages(now);
            if drained {
                running.session.handle_drained(now);
            }
            running.session.handle_timeout(now);
            if let Some(ended) = running.act() {
                return Ok(ended);
            }
            if running.tell_complete()
                && let Some(ended) = running.act()
            {
                return Ok(ended);
            }
            if let Some(reason) = lost.or_else(|| (running.driver.preempted)()) {
                return Ok(match running.all_complete {
                    Some(stats) => Ended::CompleteUnreleased(stats),
                    None => Ended::Interrupted(reason),
                });
            }
        }
    }
}

/// A transfer under way.
struct Running<'a> {
    driver: Driver<'a>,
    session: Session,
    workers: Workers,
    vms: Vec<u16>,
    cpu_at_start: Duration,
    /// Every image has its final name.
    placed: bool,
    /// The sender has been told that all is complete.
    all_complete: Option<HostStats>,
}

impl Running<'_> {
    /// Waits for datagrams or a wake-up and takes in one batch; whether the sockets are empty.
    fn receive(&mut self, start: Instant) -> io::Result<bool> {
        let Self { driver, session, .. } = self;
        let timeout = session.poll_timeout().map_or(IDLE, |at| at.saturating_sub(start.elapsed()).min(IDLE));
        let received = driver
            .sockets
            .recv_batch(timeout, driver.waker, |_, datagram| session.handle_datagram(datagram))?;
        Ok(received.datagrams == 0)
    }

    fn take_results(&mut self, now: Duration) -> Option<Ended> {
        for result in self.workers.results.try_iter() {
            match result {
                WorkerResult::Checked(checked) => self.session.handle_checked(now, checked),
                WorkerResult::Finished(vm, Ok(())) => self.session.handle_finished(vm),
                WorkerResult::Finished(_, Err(reason)) => {
                    self.driver.send(&ToSender::Failed { reason: wire::control::reason(&reason) });
                    return Some(Ended::Failed(reason));
                }
            }
        }
        None
    }

    /// Takes in what the sender said; the reason if it cannot say more.
    fn take_messages(&mut self, now: Duration) -> Option<String> {
        let (intake, vms) = (&self.driver.intake, &self.vms);
        let mut held = |digest: &wire::Digest| intake.confirm_held(digest).then(|| complete_vms(intake, vms));
        loop {
            match self.driver.link.incoming.try_recv() {
                Ok(Ok(ToHost::Attachment(part))) => {
                    if let Err(reason) =
                        guest_word(&mut self.driver.guests, |guests| guests.handle_attachment(part))
                    {
                        return Some(reason);
                    }
                }
                Ok(Ok(ToHost::Pages { body })) => {
                    if let Err(reason) =
                        guest_word(&mut self.driver.guests, |guests| guests.handle_pages(&body))
                    {
                        self.driver.send(&ToSender::Failed { reason: wire::control::reason(&reason) });
                        return Some(reason);
                    }
                }
                Ok(Ok(message)) => {
                    if let Err(error) = self.session.handle_control(now, message, &mut held) {
                        return Some(format!("the sender broke the protocol: {error}"));
                    }
                }
                Ok(Err(reason)) => return Some(reason),
                Err(TryRecvError::Empty) => return None,
                Err(TryRecvError::Disconnected) => return Some("connection closed".into()),
            }
        }
    }

    /// Does what the session wants done.
    fn act(&mut self) -> Option<Ended> {
        while let Some(action) = self.session.poll_action() {
            match action {
                Action::Send(message) => self.driver.send(&message),
                Action::Join { channel, group } => {
                    let joined = self.driver.sockets.join(group).map_err(|error| error.to_string());
                    self.session.joined(channel, joined);
                }
                Action::Leave { group } => {
                    if let Err(error) = self.driver.sockets.leave(group) {
                        tracing::warn!(%group, %error, "cannot leave a group");
                    }
                }
                Action::Check(job) => self.workers.submit(Task::Check(job)),
                Action::FinishVm(vm) => self.workers.submit(Task::Finish(vm)),
                Action::AllPlaced => (self.placed, self.all_complete) = (true, None),
                Action::End { released: true, .. } => {
                    return Some(Ended::Complete(self.all_complete.take().unwrap_or_default()));
                }
                Action::End { reason, .. } => {
                    return Some(Ended::Failed(reason.unwrap_or_else(|| "cancelled".into())));
                }
            }
        }
        None
    }
}

impl Running<'_> {
    /// Passes on what guests need and tell; and tells that all is complete here, once no guest depends on the sender.
    /// Whether it did so just now.
    fn tell_complete(&mut self) -> bool {
        if let Some(guests) = &mut self.driver.guests {
            while let Some(message) = guests.poll() {
                // A closed connection shows itself on the incoming side, with its reason.
                let _ = self.driver.link.outgoing.send(message.encode());
            }
            if !guests.is_independent() {
                return false;
            }
        }
        let due = self.placed && self.all_complete.is_none();
        if due {
            let drops = self.driver.sockets.refresh_drops().unwrap_or_default();
            let cpu = usage::cpu().saturating_sub(self.cpu_at_start);
            let stats = self.session.all_complete(cpu, usage::memory().peak_resident, drops);
            self.all_complete = Some(stats);
        }
        due
    }
}

/// Hands a word for guests to them; the reason to end the connection if there are none, or it makes no sense.
fn guest_word(
    guests: &mut Option<&mut Guests>,
    hear: impl FnOnce(&mut Guests) -> Result<(), GuestError>,
) -> Result<(), String> {
    let Some(guests) = guests else {
        return Err("the sender broke the protocol: no guest was offered".into());
    };
    hear(guests).map_err(|error| describe(&error))
}

/// The error and its causes in one line.
pub(crate) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

impl Driver<'_> {
    fn send(&self, message: &ToSender) {
        // A closed connection shows itself on the incoming side, with its reason.
        let _ = self.link.outgoing.send(message.encode());
    }
}

fn complete_vms(intake: &Intake, vms: &[u16]) -> Vec<u16> {
    vms.iter().copied().filter(|vm| intake.is_complete(VmId(*vm))).collect()
}
