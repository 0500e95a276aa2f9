//! One connection to a sender, as a transfer sees it: two queues, each with a bound.

use crossbeam_channel::{Receiver, Sender, unbounded};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wire::control::{Message, ToHost, ToSender};

/// KiB of frames that wait for the transfer; further ones stay in the connection until some are taken: back-pressure, by TCP.
const WAITING_KIB_MAX: u32 = 16 << 10;
/// Frames that wait to be written to the sender: some seconds of reports. A sender that does not read for so long is lost.
const OUTGOING_MAX: usize = 8192;

/// A message of the sender. Its place in the queue is free again when this is dropped.
#[derive(Debug)]
pub struct Heard {
    /// What it says.
    pub message: ToHost,
    _room: OwnedSemaphorePermit,
}

/// The transfer's end of the connection.
pub struct Link {
    /// Messages of the sender; an `Err` with the reason when the connection is lost.
    pub incoming: Receiver<Result<Heard, String>>,
    outgoing: mpsc::Sender<Vec<u8>>,
    deaf: AtomicBool,
}

/// The connection's end of the link.
pub(crate) struct Ends {
    pub(crate) frames: mpsc::Receiver<Vec<u8>>,
    messages: Sender<Result<Heard, String>>,
    room: Arc<Semaphore>,
}

/// A link, and its other ends.
pub(crate) fn link() -> (Link, Ends) {
    let (messages, incoming) = unbounded();
    let (outgoing, frames) = mpsc::channel(OUTGOING_MAX);
    let room = Arc::new(Semaphore::new(WAITING_KIB_MAX as usize));
    (Link { incoming, outgoing, deaf: AtomicBool::new(false) }, Ends { frames, messages, room })
}

impl Link {
    /// Queues a message for the sender. A closed connection shows itself on the incoming side, with its reason.
    pub(crate) fn say(&self, message: &ToSender) {
        if let Err(TrySendError::Full(_)) = self.outgoing.try_send(message.encode()) {
            self.deaf.store(true, Ordering::Relaxed);
        }
    }

    /// Whether the sender has not read for so long that something could not be said.
    pub(crate) fn is_deaf(&self) -> bool {
        self.deaf.load(Ordering::Relaxed)
    }
}

impl Ends {
    /// Room for a frame of so many bytes, as soon as there is some.
    pub(crate) async fn room(&self, bytes: usize) -> OwnedSemaphorePermit {
        let kib = u32::try_from(bytes >> 10).unwrap_or(u32::MAX).saturating_add(1).min(WAITING_KIB_MAX);
        Arc::clone(&self.room).acquire_many_owned(kib).await.expect("never closed")
    }

    /// Hands a message, or the reason why there will be none, to the transfer; `false` if that has ended.
    pub(crate) fn hand_over(&self, heard: Result<(ToHost, OwnedSemaphorePermit), String>) -> bool {
        self.messages.send(heard.map(|(message, room)| Heard { message, _room: room })).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
    }

    #[test]
    fn a_sender_waits_for_room_in_the_queue() {
        let (link, ends) = link();
        runtime().block_on(async {
            let block = || ToHost::BlockData { block: 0, bytes: vec![0; 1 << 20] };
            let mut taken = 0;
            let wait = Duration::from_millis(100);
            while let Ok(room) = tokio::time::timeout(wait, ends.room(1 << 20)).await {
                assert!(ends.hand_over(Ok((block(), room))));
                taken += 1;
                assert!(taken < 100, "no bound");
            }
            assert!((8..=16).contains(&taken), "{taken} MiB waiting");
            drop(link.incoming.try_recv().expect("a message"));
            drop(tokio::time::timeout(wait, ends.room(1 << 20)).await.expect("room again"));
        });
    }

    #[test]
    fn a_sender_that_does_not_read_is_noticed() {
        let (link, ends) = link();
        for _ in 0..OUTGOING_MAX {
            link.say(&ToSender::ProbeReady);
        }
        assert!(!link.is_deaf());
        link.say(&ToSender::ProbeReady);
        assert!(link.is_deaf());
        drop(ends);
    }
}
