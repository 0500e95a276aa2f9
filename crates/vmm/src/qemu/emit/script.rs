//! What is said to QEMU, in which order.

use super::super::error::QemuError;
use super::super::state::DeviceState;
use super::super::stream::{
    BlockPlan, Command, PAGE_BYTES, PageRange, PostcopyPages, write_command, write_description, write_end,
};
use super::EmitOptions;
use super::drive::{Driver, PING_LOADED};
use super::pages::PageQueue;

/// Ranges in one command.
const RANGES_MAX: usize = 2000;
/// Pages of a working set that go before the VM starts: what its CPUs touch at once. In its main loop QEMU takes a page in 13 µs of both
/// ends' CPU time, and nothing runs meanwhile; behind LISTEN, in a thread, in 9.
const PRELOAD_MAX: usize = 256;
/// Pages that are preloaded at once.
const PRELOAD_STEP: usize = 64;

impl Driver {
    /// Everything before the VM starts.
    pub(super) fn precopy(&mut self, state: &DeviceState) -> Result<(), QemuError> {
        self.begin(state, &[], &BlockPlan::default());
        self.send_pages()?;
        let writer = self.queue.as_ref().expect("made at the beginning").writer().clone();
        // Before the end of RAM, as QEMU has it: what follows that is taken for devices.
        if state.switchover_start {
            write_command(&mut self.out, &Command::SwitchoverStart);
        }
        writer.end(&mut self.out);
        writer.close(&mut self.out);
        self.out.extend_from_slice(&state.devices);
        write_end(&mut self.out);
        write_description(&mut self.out, &state.description);
        self.flush()?;
        self.started();
        self.close_writing()?;
        // QEMU closes the stream once it has read all of it.
        self.await_heard("the end", |heard| heard.end)
    }

    /// The VM first, its pages as it needs them.
    pub(super) fn postcopy(&mut self, state: &DeviceState, options: &EmitOptions) -> Result<(), QemuError> {
        self.advise(state);
        // QEMU uses no huge pages from then on: each page that goes before would take, and clear, one of those.
        self.discard(state);
        let (before, behind) = options.preload.split_at(PRELOAD_MAX.min(options.preload.len()));
        self.preload(before)?;
        self.queue.as_mut().expect("made by advise").put_first(behind);
        self.go(state, options)
    }

    /// As [`begin`](Self::begin), and that post-copy will follow.
    pub(super) fn advise(&mut self, state: &DeviceState) {
        let block_pages = state.blocks.iter().fold(0, |sizes, block| sizes | block.page_size);
        let advice = PostcopyPages { block_pages, target_page: PAGE_BYTES };
        let commands = [Command::OpenReturnPath, Command::Ping(1), Command::PostcopyAdvise(Some(advice))];
        self.begin(state, &commands, &BlockPlan { postcopy: true, ..BlockPlan::default() });
    }

    /// The VM, and whatever of its memory QEMU has not.
    pub(super) fn switch_over(
        &mut self,
        state: &DeviceState,
        options: &EmitOptions,
    ) -> Result<(), QemuError> {
        self.discard(state);
        self.go(state, options)
    }

    /// The devices, and all other pages as they are asked for and come.
    fn go(&mut self, state: &DeviceState, options: &EmitOptions) -> Result<(), QemuError> {
        if state.switchover_start {
            write_command(&mut self.out, &Command::SwitchoverStart);
        }
        self.package(state);
        self.queue.as_mut().expect("made at the beginning").leave_zeros();
        self.hold_back(options);
        self.flush()?;
        self.finish()
    }

    /// On with a VM whose link broke: nothing is repeated, QEMU tells what it has.
    pub(super) fn recover(&mut self, state: &DeviceState) -> Result<(), QemuError> {
        self.queue = Some(PageQueue::new(self.image(), &state.blocks, state.section));
        for (index, block) in state.blocks.iter().enumerate() {
            write_command(&mut self.out, &Command::ReceivedBitmap(block.id.clone()));
            self.flush()?;
            self.await_heard("a bitmap", |heard| heard.bitmaps > index)?;
        }
        write_command(&mut self.out, &Command::PostcopyResume);
        self.flush()?;
        self.await_heard("it resumed", |heard| heard.resume_ack.is_some())?;
        if self.heard.resume_ack != Some(1) {
            let reason = "it refuses to resume".to_owned();
            return Err(QemuError::Migration { status: "not recovered".to_owned(), reason });
        }
        self.started();
        self.queue.as_mut().expect("made above").leave_zeros();
        self.finish()
    }

    /// The stream's head, commands, and the list of blocks; then what is here can be sent.
    fn begin(&mut self, state: &DeviceState, commands: &[Command], plan: &BlockPlan) {
        self.queue = Some(PageQueue::new(self.image(), &state.blocks, state.section));
        self.out.extend_from_slice(&state.prefix);
        commands.iter().for_each(|command| write_command(&mut self.out, command));
        let queue = self.queue.as_ref().expect("made above");
        queue.writer().start(&mut self.out, plan, false);
        self.out.extend_from_slice(&state.early);
        self.hear_news();
    }

    /// Those of these pages that are at hand.
    fn preload(&mut self, pages: &[u32]) -> Result<(), QemuError> {
        for pages in pages.chunks(PRELOAD_STEP) {
            let queue = self.queue.as_mut().expect("made at the beginning");
            queue.write_first(&mut self.out, pages);
            self.flush()?;
        }
        Ok(())
    }

    /// Whatever QEMU has in pages that it was not sent is stale.
    pub(super) fn discard(&mut self, state: &DeviceState) {
        let queue = self.queue.as_ref().expect("made at the beginning");
        for (index, block) in state.blocks.iter().enumerate() {
            for runs in queue.unsent(index).chunks(RANGES_MAX) {
                let bytes = |pages: u32| u64::from(pages) * PAGE_BYTES;
                let range = |run: &std::ops::Range<u32>| PageRange {
                    start: bytes(run.start),
                    len: bytes(run.end - run.start),
                };
                let ranges = runs.iter().map(range).collect();
                write_command(&mut self.out, &Command::RamDiscard { block: block.id.clone(), ranges });
            }
        }
    }

    fn package(&mut self, state: &DeviceState) {
        let mut package = Vec::with_capacity(state.devices.len() + 64);
        write_command(&mut package, &Command::PostcopyListen);
        package.extend_from_slice(&state.devices);
        write_command(&mut package, &Command::Ping(PING_LOADED));
        write_command(&mut package, &Command::PostcopyRun);
        let len = u32::try_from(package.len()).expect("device state is at most 64 MiB");
        write_command(&mut self.out, &Command::Packaged(len));
        self.out.extend_from_slice(&package);
    }

    /// All pages, then the end.
    fn finish(&mut self) -> Result<(), QemuError> {
        self.send_pages()?;
        // Devices that are being loaded may wait for zero pages, which were left out; and QEMU ends nothing before they are.
        while !self.has_started() {
            if self.heard.end {
                return Err(self.broken("QEMU closed it before its devices were loaded"));
            }
            self.turn(true)?;
            self.send_pages()?;
        }
        let writer = self.queue.as_ref().expect("made at the beginning").writer().clone();
        writer.end(&mut self.out);
        writer.close(&mut self.out);
        write_end(&mut self.out);
        self.flush()?;
        self.await_heard("it had everything", |heard| heard.shut.is_some())?;
        match self.heard.shut {
            Some(0) => Ok(()),
            other => {
                let reason = format!("it ended with {}", other.unwrap_or_default());
                Err(QemuError::Migration { status: "failed at the destination".to_owned(), reason })
            }
        }
    }
}
