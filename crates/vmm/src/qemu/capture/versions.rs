//! What a departing VM's stream becomes: two files, and which page stands where.

use super::super::error::QemuError;
use super::super::stream::{Command, Event, ReturnMessage};
use super::live::Sink;
use super::ram_file::RamFile;
use pages::Bitmap;

/// Pages by version: the first of each stays, any later one replaces the one before.
pub(super) struct Versions {
    pub(super) sink: Sink,
    pub(super) newer_file: RamFile,
    pub(super) seen: Bitmap,
    pub(super) newer: Bitmap,
    /// As `newer`, since last asked.
    pub(super) fresh: Bitmap,
    pub(super) answers: Vec<u8>,
    /// Pages of any version.
    pub(super) pages: u64,
}

impl Versions {
    /// What has come so far, but for empty sections: grows as long as anything does.
    pub(super) fn taken(&self) -> u64 {
        self.pages + self.sink.tail().len() as u64
    }

    pub(super) fn event(&mut self, event: Event<'_>) -> Result<(), QemuError> {
        self.pages += u64::from(matches!(event, Event::Page(..) | Event::Zero(_)));
        match event {
            Event::Command(Command::Ping(number)) => {
                self.answers.extend(ReturnMessage::Pong(number).encode());
                Ok(())
            }
            Event::Page(page, bytes) if !self.seen.set(page) => {
                self.again(page);
                self.newer_file.page(page, bytes)
            }
            Event::Zero(page) if !self.seen.set(page) => {
                self.again(page);
                self.newer_file.zero(page)
            }
            Event::Blocks { blocks, .. } => {
                let count = blocks.last().map_or(0, |block| block.page_range().end);
                self.seen = Bitmap::new(count);
                self.newer = Bitmap::new(count);
                self.fresh = Bitmap::new(count);
                self.newer_file.set_blocks(blocks)?;
                self.sink.event(event)?;
                // Pages between blocks are in no stream.
                let mut at = 0;
                for block in &self.sink.blocks {
                    let pages = block.page_range();
                    self.seen.set_range(at..pages.start);
                    at = pages.end;
                }
                Ok(())
            }
            event => self.sink.event(event),
        }
    }

    fn again(&mut self, page: u32) {
        self.newer.set(page);
        self.fresh.set(page);
    }
}
