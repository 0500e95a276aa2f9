//! What QEMU says: which pages it waits for, which it has, how far it is.

use super::super::error::QemuError;
use super::super::stream::{ReturnMessage, StreamError, received_bitmap};
use super::drive::{Driver, PING_LOADED};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

impl Driver {
    /// Takes whole messages off the input.
    pub(super) fn hear(&mut self) -> Result<(), QemuError> {
        let mut used = 0;
        loop {
            let rest = &self.input[used..];
            if let Some(block) = self.bitmap_of {
                let queue = self.queue.as_mut().expect("scripts make it first");
                let pages = u64::from(queue.blocks()[block].pages());
                let Some((bitmap, len)) = received_bitmap(rest, pages)? else { break };
                queue.has(block, &bitmap);
                self.bitmap_of = None;
                self.heard.bitmaps += 1;
                used += len;
                continue;
            }
            let Some((message, len)) = ReturnMessage::decode(rest)? else { break };
            used += len;
            self.message(message)?;
        }
        self.input.drain(..used);
        Ok(())
    }

    fn message(&mut self, message: ReturnMessage) -> Result<(), QemuError> {
        match message {
            ReturnMessage::Shut(value) => self.heard.shut = Some(value),
            // It stands in the package behind the devices: they are loaded, and RUN is next.
            ReturnMessage::Pong(PING_LOADED) => self.started(),
            ReturnMessage::Pong(_) => {}
            ReturnMessage::ResumeAck(value) => self.heard.resume_ack = Some(value),
            ReturnMessage::SwitchoverAck => {}
            ReturnMessage::ReceivedBitmap(block) => {
                let queue = self.queue.as_ref().expect("scripts make it first");
                let known = queue.blocks().iter().position(|known| known.id == block);
                self.bitmap_of =
                    Some(known.ok_or(StreamError::Block { id: block, what: "is not of this VM" })?);
            }
            ReturnMessage::RequestPages { start, len, block } => {
                if block.is_some() {
                    self.named = block;
                }
                let damaged = StreamError::Damaged { what: "request for pages", at: start };
                let block = self.named.as_deref().ok_or(damaged.clone())?;
                let queue = self.queue.as_mut().expect("scripts make it first");
                let counts = queue.request(block, start, len.into(), Instant::now());
                let (asked, waited) = counts.ok_or(damaged)?;
                self.requests += asked;
                self.asked = Instant::now();
                self.waited += waited;
                self.progress.requests.store(self.requests, Relaxed);
            }
        }
        Ok(())
    }
}
