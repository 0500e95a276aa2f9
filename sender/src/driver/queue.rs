//! What is to be said to one host: two queues, of which one goes first.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use wire::control::{Message, ToHost};

/// Frames and bytes written at once: one TLS record and system call for many small messages, and no long wait for an urgent one.
const FRAMES_AT_ONCE: usize = 64;
const BYTES_AT_ONCE: usize = 128 << 10;

/// Bytes that may wait to be written to one host. One that does not read for so long has failed; announcements of a
/// terabyte of memory take 40 MB.
const QUEUE_BYTES_MAX: u64 = 64 << 20;

/// The end that speaks. A host that is gone is noticed at the connection; speaking fails only if a host that is there
/// does not read.
pub(super) struct Queue {
    usual: UnboundedSender<ToHost>,
    urgent: UnboundedSender<Vec<u8>>,
    ahead: Arc<AtomicU64>,
    /// Bytes in `usual`.
    waiting: Arc<AtomicU64>,
}

/// The host does not read what is said to it.
#[derive(Debug)]
pub(super) struct Deaf;

/// The end that writes.
pub(super) struct Queued {
    usual: UnboundedReceiver<ToHost>,
    urgent: UnboundedReceiver<Vec<u8>>,
    ahead: Arc<AtomicU64>,
    waiting: Arc<AtomicU64>,
    /// Taken off the queues and not handed out.
    first: Option<Vec<u8>>,
    next: Option<ToHost>,
    closed: bool,
}

pub(super) fn queue() -> (Queue, Queued) {
    let (usual, usual_out) = unbounded_channel();
    let (urgent, urgent_out) = unbounded_channel();
    let (ahead, waiting) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let queued = Queued {
        usual: usual_out,
        urgent: urgent_out,
        ahead: Arc::clone(&ahead),
        waiting: Arc::clone(&waiting),
        first: None,
        next: None,
        closed: false,
    };
    (Queue { usual, urgent, ahead, waiting }, queued)
}

impl Queue {
    /// In turn.
    pub(super) fn say(&self, message: ToHost) -> Result<(), Deaf> {
        if self.waiting.fetch_add(size(&message), Relaxed) > QUEUE_BYTES_MAX {
            return Err(Deaf);
        }
        // A closed queue shows itself as a broken link.
        let _ = self.usual.send(message);
        Ok(())
    }

    /// Before everything said by [`Queue::say`].
    pub(super) fn say_first(&self, message: &ToHost) {
        let frame = message.encode();
        self.ahead.fetch_add(frame.len() as u64, Relaxed);
        let _ = self.urgent.send(frame);
    }

    /// Bytes said first and not written yet.
    pub(super) fn first_bytes(&self) -> u64 {
        self.ahead.load(Relaxed)
    }
}

/// What a message takes in memory, about. Attachments have a limit of their own, and go out once.
fn size(message: &ToHost) -> u64 {
    let lists = match message {
        ToHost::BlockData { bytes, .. } => bytes.len(),
        ToHost::Announce(announce) => announce.blocks.len() * 36,
        ToHost::Through(through) => (through.blocks.len() + through.sent.len()) * 16,
        _ => 0,
    };
    (lists + size_of::<ToHost>()) as u64
}

impl Queued {
    /// The next frames to write; none when the queue is closed and empty. May be cancelled without loss.
    pub(super) async fn next(&mut self) -> Vec<Vec<u8>> {
        // What is taken off a queue already must go out before anything takes its place.
        if !self.closed && self.first.is_none() && self.next.is_none() {
            tokio::select! {
                biased;
                first = self.urgent.recv() => match first {
                    Some(frame) => self.first = Some(frame),
                    None => self.closed = true,
                },
                message = self.usual.recv() => match message {
                    Some(message) => self.next = Some(message),
                    None => self.closed = true,
                },
            }
        }
        self.batch()
    }

    /// What is there without waiting.
    pub(super) fn rest(&mut self) -> Vec<Vec<u8>> {
        self.batch()
    }

    fn batch(&mut self) -> Vec<Vec<u8>> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while batch.len() < FRAMES_AT_ONCE
            && let Some(frame) = self.first.take().or_else(|| self.urgent.try_recv().ok())
        {
            self.ahead.fetch_sub(frame.len() as u64, Relaxed);
            bytes += frame.len();
            batch.push(frame);
        }
        while batch.len() < FRAMES_AT_ONCE && bytes < BYTES_AT_ONCE {
            let Some(message) = self.next.take().or_else(|| self.usual.try_recv().ok()) else { break };
            self.waiting.fetch_sub(size(&message), Relaxed);
            let frame = message.encode();
            bytes += frame.len();
            batch.push(frame);
        }
        batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cancel(reason: &str) -> ToHost {
        ToHost::Cancel { reason: reason.into() }
    }

    fn said(frames: Vec<Vec<u8>>) -> Vec<ToHost> {
        frames.iter().map(|frame| ToHost::decode(frame).expect("a message")).collect()
    }

    #[test]
    fn what_is_urgent_goes_first_and_bulk_in_small_batches() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let (queue, mut queued) = queue();
        let block = |block| ToHost::BlockData { block, bytes: vec![0; BYTES_AT_ONCE] };
        queue.say(block(1)).expect("room");
        queue.say(block(2)).expect("room");
        queue.say_first(&cancel("now"));
        assert!(queue.first_bytes() > 0);
        assert_eq!(said(runtime.block_on(queued.next())), [cancel("now"), block(1)]);
        assert_eq!(queue.first_bytes(), 0);
        queue.say_first(&cancel("again"));
        assert_eq!(said(runtime.block_on(queued.next())), [cancel("again"), block(2)]);
        queue.say(cancel("last")).expect("room");
        drop(queue);
        assert_eq!(said(runtime.block_on(queued.next())), [cancel("last")]);
        assert!(runtime.block_on(queued.next()).is_empty(), "closed");
    }
    #[test]
    fn a_host_that_does_not_read_is_told_from_one_that_is_slow() {
        let (queue, mut queued) = queue();
        let block = || ToHost::BlockData { block: 1, bytes: vec![0; 1 << 20] };
        let mut said = 0;
        while queue.say(block()).is_ok() {
            said += 1;
        }
        assert!((60..=66).contains(&said), "{said} MiB");
        let (other, mut read) = super::queue();
        for _ in 0..200 {
            other.say(block()).expect("what is read makes room");
            assert_eq!(read.rest().len(), 1);
        }
        assert!(!queued.rest().is_empty());
    }
}
