//! Feeding a QEMU while its VM still runs elsewhere: what it has when the VM comes need not come then.
//!
//! ```text
//! prefix · ADVISE · RAM START · pages as they come … [switch: the device state is here] … DISCARD · PACKAGED · …
//! ```
//!
//! Until the switch QEMU takes any page any number of times. At the switch, whatever the image was given in newer versions
//! ([`LazyImage::renew`]) is taken back: discarded there, and sent again when it has come.

use super::super::error::QemuError;
use super::super::qmp::Qmp;
use super::super::state::DeviceState;
use super::drive::Driver;
use super::{EmitMode, EmitOptions, Emitter, open};
use crate::lazy::LazyImage;
use std::sync::{Arc, Mutex, PoisonError};

/// Where the device state is put when it comes.
#[derive(Debug)]
pub(super) struct Switch {
    image: Arc<LazyImage>,
    state: Mutex<Option<Arc<DeviceState>>>,
}

impl Switch {
    fn take(&self) -> Option<Arc<DeviceState>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Emitter {
    /// As [`start`](Self::start) in post-copy, but for the device state, which comes by [`switch`](Self::switch). `outline` has all
    /// that a QEMU tells of it before: its pieces but devices and description.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub fn start_ahead(
        qmp: &mut Qmp,
        image: Arc<LazyImage>,
        outline: Arc<DeviceState>,
        options: EmitOptions,
    ) -> Result<Self, QemuError> {
        let socket = open(qmp, &image, &outline, EmitMode::Postcopy)?;
        let switch = Arc::new(Switch { image: Arc::clone(&image), state: Mutex::new(None) });
        let awaited = Arc::clone(&switch);
        let stall_within = options.stall_within;
        let script = move |driver: &mut Driver| driver.ahead(&outline, &awaited, &options);
        let mut emitter = Self::run(socket, qmp.path(), script, image, stall_within)?;
        emitter.switch = Some(switch);
        Ok(emitter)
    }

    /// The device state of a VM that was fed ahead: it can run. Its image has been told which pages have newer versions.
    pub fn switch(&self, state: Arc<DeviceState>) {
        if let Some(switch) = &self.switch {
            *switch.state.lock().unwrap_or_else(PoisonError::into_inner) = Some(state);
            switch.image.wake_listeners();
        }
    }
}

impl Driver {
    fn ahead(
        &mut self,
        outline: &DeviceState,
        switch: &Switch,
        options: &EmitOptions,
    ) -> Result<(), QemuError> {
        self.advise(outline);
        // As for a clone: no huge pages to be cleared for pages that come in any order.
        self.discard(outline);
        let state = self.feed(switch)?;
        if (&state.prefix, state.section, &state.early, &state.blocks)
            != (&outline.prefix, outline.section, &outline.early, &outline.blocks)
        {
            return Err(QemuError::refused("its state is not of the VM that was announced"));
        }
        let renewed = self.image().renewed();
        self.listen_anew()?;
        self.queue.as_mut().expect("made at the beginning").take_back(&renewed);
        self.switch_over(&state, options)
    }

    /// Pages as they come, until the state does.
    fn feed(&mut self, switch: &Switch) -> Result<Arc<DeviceState>, QemuError> {
        self.queue.as_mut().expect("made at the beginning").copy_pages(true);
        loop {
            if let Some(state) = switch.take() {
                self.flush()?;
                self.queue.as_mut().expect("made at the beginning").copy_pages(false);
                return Ok(state);
            }
            if self.heard.end {
                return Err(self.broken("QEMU closed it before its VM came"));
            }
            self.send_ahead()?;
        }
    }
}
