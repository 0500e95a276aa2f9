//! The control connections: a task a host that connects, offers, and passes messages both ways; connections that
//! break are tried again until the transfer is over.

use super::Happening;
use super::queue::{Queue, Queued, queue};
use crossbeam_channel::Sender;
use net::control::{ControlError, connect, with_causes};
use net::pki::Identity;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use wire::control::{Message, ToHost, ToSender};

const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(2);
/// A connection that lasted so long was a good one: the next attempt after it does not wait.
const GOOD_CONNECTION: Duration = Duration::from_secs(10);
/// Messages of one host that wait for the session; further ones stay in its connection until some are taken.
const MESSAGES_MAX: usize = 64;

/// A host's name and where its `scatter receive` listens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostTarget {
    /// Its name, as in its certificate.
    pub name: String,
    /// Address of its control port.
    pub address: SocketAddr,
}

/// What a connection task tells the transfer.
pub(super) enum Link {
    /// Connected and authenticated; the offer is on its way. Messages go to this queue.
    Up(Queue),
    /// A message of the host; the permit is given back once it was dealt with.
    Message(Box<ToSender>, OwnedSemaphorePermit),
    /// Broken, or could not be made; tried again unless `fatal`.
    Down {
        reason: String,
        /// No attempt will ever succeed: a certificate that is not right.
        fatal: bool,
    },
}

/// The thread with all connection tasks.
pub(super) struct Connections {
    stop: watch::Sender<bool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Connections {
    /// Starts connecting to every host, each with its offer.
    pub(super) fn start(
        targets: Vec<(HostTarget, ToHost)>,
        identity: &Arc<Identity>,
        out: &Sender<Happening>,
    ) -> std::io::Result<Self> {
        let (stop, stopped) = watch::channel(false);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (identity, out) = (Arc::clone(identity), out.clone());
        let thread = std::thread::Builder::new().name("control".into()).spawn(move || {
            runtime.block_on(async move {
                let mut tasks = tokio::task::JoinSet::new();
                for (host, (target, offer)) in targets.into_iter().enumerate() {
                    let task = Task {
                        host,
                        target,
                        offer,
                        identity: Arc::clone(&identity),
                        out: out.clone(),
                        stopped: stopped.clone(),
                    };
                    tasks.spawn(task.run());
                }
                while tasks.join_next().await.is_some() {}
            });
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Connections {
    /// Lets the tasks write what is queued, then ends them.
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            // A panic there was reported by the thread.
            let _ = thread.join();
        }
    }
}

struct Task {
    host: usize,
    target: HostTarget,
    offer: ToHost,
    identity: Arc<Identity>,
    out: Sender<Happening>,
    stopped: watch::Receiver<bool>,
}

impl Task {
    async fn run(mut self) {
        let mut wait = RETRY_FIRST;
        loop {
            let mut stopped = self.stopped.clone();
            let attempt = tokio::select! {
                _ = stopped.wait_for(|stopped| *stopped) => return,
                attempt = connect(self.target.address, &self.identity, &self.target.name) => attempt,
            };
            let (reason, fatal) = match attempt {
                Ok(control) => {
                    let since = Instant::now();
                    let Some(reason) = self.converse(control).await else { return };
                    if since.elapsed() > GOOD_CONNECTION {
                        wait = RETRY_FIRST;
                    }
                    (reason, false)
                }
                Err(error) => (with_causes(&error), is_final(&error)),
            };
            self.tell(Link::Down { reason, fatal });
            if fatal {
                return;
            }
            tokio::select! {
                _ = stopped.wait_for(|stopped| *stopped) => return,
                () = tokio::time::sleep(wait) => {}
            }
            wait = (wait * 2).min(RETRY_MAX);
        }
    }

    /// Passes messages until the connection breaks (the reason) or the transfer is over (nothing).
    async fn converse(&mut self, control: net::control::Control) -> Option<String> {
        let (mut reader, mut writer) = control.split();
        if let Err(error) = writer.write_frame(&self.offer.encode()).await {
            return Some(with_causes(&error));
        }
        let (queue, mut queued) = queue();
        self.tell(Link::Up(queue));
        let room = Arc::new(Semaphore::new(MESSAGES_MAX));
        let reading = async {
            loop {
                let permit = Arc::clone(&room).acquire_owned().await.expect("never closed");
                match reader.read_frame().await {
                    Ok(Some(frame)) => match ToSender::decode(&frame) {
                        Ok(message) => self.tell(Link::Message(Box::new(message), permit)),
                        Err(error) => return error.to_string(),
                    },
                    Ok(None) => return "the host closed the connection".to_owned(),
                    Err(error) => return with_causes(&error),
                }
            }
        };
        let mut stopped = self.stopped.clone();
        tokio::select! {
            reason = reading => Some(reason),
            reason = write_queue(&mut writer, &mut queued, &mut stopped) => reason,
        }
    }

    fn tell(&self, link: Link) {
        // The transfer has ended if nobody listens; the watch ends this task.
        let _ = self.out.send(Happening::Link { host: self.host, link });
    }
}

/// Writes what is queued until the queue closes or the transfer is over.
async fn write_queue(
    writer: &mut net::control::FrameWriter,
    queued: &mut Queued,
    stopped: &mut watch::Receiver<bool>,
) -> Option<String> {
    loop {
        let over = *stopped.borrow();
        let frames = tokio::select! {
            biased;
            frames = queued.next() => frames,
            _ = stopped.changed(), if !over => continue,
            () = std::future::ready(()), if over => queued.rest(),
        };
        if frames.is_empty() {
            // Over, and nothing is left to say. A peer that is gone already needs no farewell.
            let _ = writer.shutdown().await;
            return None;
        }
        let slices: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
        if let Err(error) = writer.write_frames(&slices).await {
            return Some(with_causes(&error));
        }
    }
}

/// Whether no later attempt can succeed without somebody's help: certificates and roles do not mend themselves.
fn is_final(error: &ControlError) -> bool {
    matches!(
        error,
        ControlError::Identity(_)
            | ControlError::NotOurCa { .. }
            | ControlError::Expired { .. }
            | ControlError::WrongName { .. }
            | ControlError::WrongRole { .. }
            | ControlError::RefusedUs { .. }
            | ControlError::NoCertificate { .. }
            | ControlError::NotScatter { .. }
    )
}
