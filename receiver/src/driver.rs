//! The threads of one transfer: this one reads sockets and runs the session, workers check blocks.
//!
//! Sockets come first here and pages are written by whoever has time ([`crate::workers`]), so that a slow disk fills
//! the sender's window of unacknowledged blocks and not the socket's buffer.

use crate::guests::{GuestError, Guests};
use crate::link::Link;
use crate::residents::Residents;
use crate::session::{Action, Session, SessionConfig};
use crate::shelf::Shelf;
use crate::store::Intake;
use crate::workers::{Done, Workers};
use crossbeam_channel::TryRecvError;
use net::control::with_causes;
use net::udp::{UdpReceiver, Waker};
use pages::VmId;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use wire::control::{HostStats, Offer, ToHost, ToSender};

/// Messages of the sender taken in between two looks at the sockets.
const MESSAGES_AT_ONCE: usize = 64;
/// How often guests are told of.
const TELL_EVERY: Duration = Duration::from_millis(200);
/// While clones are about to start, the receiving thread wakes at least this often …
const STARTING: Duration = Duration::from_millis(5);
/// … and else this often.
const IDLE: Duration = Duration::from_millis(200);
/// Clones that are ended are waited for so long, before their sender is told that all is over.
const END_WITHIN: Duration = Duration::from_secs(3);

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
    /// Ended by the sender, or this host could not go on. What is held stays.
    Failed(String),
    /// Cancelled: clones that lacked pages are over, and nothing of it is to be kept for another run.
    Cancelled(String),
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
    /// Contents that were here before, if the sender was told of any.
    pub residents: Option<Arc<Residents>>,
    /// Threads that check blocks.
    pub workers: usize,
    /// What is known of blocks that other hosts of the transfer need too, if it has guests.
    pub shelf: Option<Arc<Shelf>>,
    /// VMs that run while their memory arrives, if there are any.
    pub guests: Option<&'a mut Guests>,
    /// Called some times a second with the guests.
    pub tell: &'a mut dyn FnMut(&Guests),
    /// Asked now and then: `Some(reason)` ends the transfer, and what is held stays.
    pub preempted: &'a mut dyn FnMut() -> Option<String>,
    /// Asked now and then: `Some(reason)` ends the clones that lack pages, and the transfer.
    pub cancelled: &'a mut dyn FnMut() -> Option<String>,
}

impl Driver<'_> {
    /// Receives until the transfer ends. The session has accepted `offer` already.
    ///
    /// # Errors
    /// The sockets'.
    pub fn run(self, offer: &Offer) -> io::Result<Ended> {
        let start = Instant::now();
        let workers = Workers::start(self.workers, &self.intake, self.residents.clone(), self.waker);
        let session = Session::new(SessionConfig::new(offer.symbol_size_max, offer.vms.len()));
        let vms = offer.vms.iter().map(|vm| vm.vm).collect();
        let cpu_at_start = usage::cpu();
        let mut running = Running {
            driver: self,
            session,
            workers,
            vms,
            cpu_at_start,
            told: Duration::ZERO,
            placed: false,
            all_complete: None,
            cancelled: None,
        };
        if let Some(guests) = &mut running.driver.guests {
            guests.handle_connected(start.elapsed());
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
                running.help(now);
            }
            running.session.handle_timeout(now);
            if let Some(ended) = running.act() {
                return Ok(ended);
            }
            if running.tell_complete(start.elapsed())
                && let Some(ended) = running.act()
            {
                return Ok(ended);
            }
            if let Some(reason) = running.cancelled.take().or_else(|| (running.driver.cancelled)()) {
                return Ok(running.end_clones(reason, start));
            }
            let deaf = running.driver.link.is_deaf().then(|| "the sender does not read".to_owned());
            if let Some(reason) = lost.or(deaf).or_else(|| (running.driver.preempted)()) {
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
    /// When the guests were last told of.
    told: Duration,
    /// Every image has its final name.
    placed: bool,
    /// The sender has been told that all is complete.
    all_complete: Option<HostStats>,
    /// The sender has cancelled the transfer, for this reason.
    cancelled: Option<String>,
}

impl Running<'_> {
    /// Waits for datagrams or a wake-up and takes in one batch; whether the sockets are empty.
    fn receive(&mut self, start: Instant) -> io::Result<bool> {
        let Self { driver, session, workers, .. } = self;
        // A block waits for this thread: look at the sockets, but do not sleep there.
        let starting = driver.guests.as_ref().is_some_and(|guests| guests.is_waiting_to_start());
        let idle = match workers.has_work_here() {
            true => Duration::ZERO,
            false if starting => STARTING,
            false => IDLE,
        };
        let timeout = session.poll_timeout().map_or(idle, |at| at.saturating_sub(start.elapsed()).min(idle));
        let received = driver
            .sockets
            .recv_batch(timeout, driver.waker, |_, datagram| session.handle_datagram(datagram))?;
        Ok(received.datagrams == 0)
    }

    /// Nothing to receive: checks one block that waits.
    fn help(&mut self, now: Duration) {
        if let Some(checked) = self.workers.help() {
            self.session.handle_checked(now, checked);
        }
    }

    fn take_results(&mut self, now: Duration) -> Option<Ended> {
        for result in self.workers.results() {
            match result {
                Done::Checked(checked) => self.session.handle_checked(now, checked),
                Done::Finished(vm, Ok(())) => self.session.handle_finished(vm),
                Done::Finished(_, Err(reason)) => {
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
        for _ in 0..MESSAGES_AT_ONCE {
            let heard = match self.driver.link.incoming.try_recv() {
                Ok(Ok(heard)) => heard,
                Ok(Err(reason)) => return Some(reason),
                Err(TryRecvError::Empty) => return None,
                Err(TryRecvError::Disconnected) => return Some("connection closed".into()),
            };
            match heard.message {
                ToHost::Attachment(part) => {
                    if let Err(reason) =
                        guest_word(&mut self.driver.guests, |guests| guests.handle_attachment(part))
                    {
                        return Some(reason);
                    }
                }
                ToHost::FirstTouched(part) => {
                    if let Err(reason) =
                        guest_word(&mut self.driver.guests, |guests| guests.handle_first_touched(&part))
                    {
                        return Some(reason);
                    }
                }
                ToHost::Pages { body } => {
                    if let Err(reason) =
                        guest_word(&mut self.driver.guests, |guests| guests.handle_pages(&body))
                    {
                        self.driver.send(&ToSender::Failed { reason: wire::control::reason(&reason) });
                        return Some(reason);
                    }
                }
                ToHost::HandOver { vm, word } => {
                    if let Err(reason) =
                        guest_word(&mut self.driver.guests, |guests| guests.handle_hand_over(vm, word))
                    {
                        return Some(reason);
                    }
                }
                ToHost::EndClones(end) => {
                    if self.driver.guests.as_ref().is_none_or(|guests| guests.any_move()) {
                        return Some("the sender broke the protocol: no clone was offered".into());
                    }
                    self.cancelled = Some(end.reason);
                }
                message => {
                    if let (ToHost::Announce(announce), Some(shelf)) = (&message, &self.driver.shelf) {
                        shelf.announce(announce);
                    }
                    if let Err(error) = self.session.handle_control(now, message, &mut held) {
                        return Some(format!("the sender broke the protocol: {error}"));
                    }
                }
            }
        }
        // There may be more.
        self.driver.waker.wake();
        None
    }

    /// Ends the clones that lack pages, and tells the sender which they were.
    fn end_clones(&mut self, reason: String, start: Instant) -> Ended {
        if let Some(stats) = self.all_complete.take() {
            // Nothing is left to end.
            return Ended::CompleteUnreleased(stats);
        }
        let deadline = Instant::now() + END_WITHIN;
        if let Some(guests) = &mut self.driver.guests {
            guests.end(&reason);
            loop {
                while let Some(message) = guests.poll(start.elapsed()) {
                    self.driver.link.say(&message);
                }
                if guests.is_settled() || Instant::now() >= deadline {
                    break;
                }
                std::thread::sleep(STARTING);
            }
        }
        self.driver.send(&ToSender::Failed { reason: wire::control::reason(&reason) });
        Ended::Cancelled(reason)
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
                Action::Check(job) => self.workers.check(job),
                Action::FinishVm(vm) => self.workers.finish(vm),
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
    fn tell_complete(&mut self, now: Duration) -> bool {
        if let Some(guests) = &mut self.driver.guests {
            while let Some(message) = guests.poll(now) {
                self.driver.link.say(&message);
            }
            if now >= self.told + TELL_EVERY {
                self.told = now;
                (self.driver.tell)(guests);
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
    hear(guests).map_err(|error| with_causes(&error))
}

impl Driver<'_> {
    fn send(&self, message: &ToSender) {
        self.link.say(message);
    }
}

fn complete_vms(intake: &Intake, vms: &[u16]) -> Vec<u16> {
    vms.iter().copied().filter(|vm| intake.is_complete(VmId(*vm))).collect()
}
