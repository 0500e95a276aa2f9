//! A VM that stands while its memory is read in place, and a watch over it.
//!
//! Anybody may set it running by another monitor. QEMU writes the event of that to every monitor before a virtual CPU
//! or a device runs (`vm_prepare_start` in `system/cpus.c` and `monitor_flush_locked` in `monitor/monitor.c`; read in QEMU 7.0 and
//! newer, tried with 10.0). So what was read is right if, *after* it was read, the event is not at our end of the socket:
//! [`Standing::disturbed`] looks, by one poll(2).

use super::super::error::QemuError;
use super::super::qmp::{Qmp, QmpError};
use serde_json::Value;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long somebody who is about to end this process waits for a command under way to be done.
const TURN_WITHIN: Duration = Duration::from_secs(2);

/// Why memory that was read in place is not vouched for any more.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Disturbed {
    /// By another monitor, or a debugger.
    #[error("it was set running")]
    Resumed,
    /// Which changes the memory of a VM that stands, too.
    #[error("it was reset")]
    Reset,
    /// QEMU ended, or closed the connection: whatever happens now is not seen.
    #[error("its monitor is gone ({0})")]
    MonitorGone(String),
}

/// A VM that stands for whoever has this. Dropped, the VM runs on if it ran before; so it does after
/// [`PutBack::put_back`]. If this process is killed (`kill -9`), it stands: `cont` in its monitor lets it run, and nothing is lost.
#[derive(Debug)]
pub struct Standing(Arc<Mutex<State>>);

/// Lets a VM run on from elsewhere, as from a signal's thread that is about to end the process.
#[derive(Clone, Debug)]
pub struct PutBack(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    qmp: Qmp,
    /// It ran before, and is to run on.
    resume: bool,
    disturbed: Option<Disturbed>,
    /// By QEMU's clock.
    stopped_at: Option<Duration>,
    resumed_at: Option<Duration>,
    over: bool,
}

impl Standing {
    /// Of a VM that stands, whose events since it began to are in `qmp`. With `resume` it ran before. If this fails, it was put back.
    pub(super) fn begin(qmp: Qmp, resume: bool) -> Result<Self, QemuError> {
        let state = State { qmp, resume, disturbed: None, stopped_at: None, resumed_at: None, over: false };
        let standing = Self(Arc::new(Mutex::new(state)));
        standing.check().map_err(|disturbed| QemuError::refused(disturbed.to_string()))?;
        Ok(standing)
    }

    /// Why memory that was read until this call is not vouched for, if it is not.
    #[must_use]
    pub fn disturbed(&self) -> Option<Disturbed> {
        lock(&self.0).look()
    }

    /// The same, and asks QEMU: it stands, and all that happened until now was seen.
    ///
    /// # Errors
    ///
    /// [`Disturbed`].
    pub fn check(&self) -> Result<(), Disturbed> {
        lock(&self.0).ask()
    }

    /// For somebody else who may have to end it.
    #[must_use]
    pub fn put_back(&self) -> PutBack {
        PutBack(Arc::clone(&self.0))
    }

    /// The VM runs on if it ran before; how long it stood then, by QEMU's own events.
    ///
    /// # Errors
    ///
    /// QEMU's: it stands, or is gone.
    pub fn end(self) -> Result<Duration, QemuError> {
        lock(&self.0).end()
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        lock(&self.0).end_or_say();
    }
}

impl PutBack {
    /// The VM runs on if it ran before, unless that is under way already. Failures are told, but there is nobody who could do more.
    pub fn put_back(&self) {
        let deadline = Instant::now() + TURN_WITHIN;
        while Instant::now() < deadline {
            match self.0.try_lock() {
                Ok(mut state) => return state.end_or_say(),
                Err(std::sync::TryLockError::Poisoned(state)) => return state.into_inner().end_or_say(),
                Err(std::sync::TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(2)),
            }
        }
        tracing::error!("a VM's monitor does not answer: `cont` lets it run");
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // Each step leaves it whole.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn look(&mut self) -> Option<Disturbed> {
        if self.disturbed.is_none() && !self.over {
            let gone = self.qmp.note_events().err();
            self.take_in();
            self.lost(gone);
        }
        self.disturbed.clone()
    }

    fn ask(&mut self) -> Result<(), Disturbed> {
        let status = self.qmp.execute("query-status", Value::Null);
        self.take_in();
        match status {
            Ok(status) if status["running"] == true => {
                self.disturbed.get_or_insert(Disturbed::Resumed);
            }
            Ok(_) => {}
            Err(error) => self.lost(Some(error)),
        }
        self.look().map_or(Ok(()), Err)
    }

    fn lost(&mut self, why: Option<QmpError>) {
        if let Some(error) = why {
            let why =
                std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            self.disturbed.get_or_insert(Disturbed::MonitorGone(why));
        }
    }

    fn take_in(&mut self) {
        for event in self.qmp.take_events() {
            match event.name.as_str() {
                // What comes after it was disturbed does not count for how long it stood.
                "STOP" if self.disturbed.is_none() => self.stopped_at = Some(event.at),
                "RESUME" => {
                    self.resumed_at.get_or_insert(event.at);
                    self.disturbed.get_or_insert(Disturbed::Resumed);
                }
                "RESET" => {
                    self.disturbed.get_or_insert(Disturbed::Reset);
                }
                _ => {}
            }
        }
    }

    fn end(&mut self) -> Result<Duration, QemuError> {
        if !self.over && self.resume {
            self.over = true;
            if self.qmp.execute("query-status", Value::Null)?["running"] != true {
                self.qmp.execute("cont", Value::Null)?;
            }
            self.take_in();
        }
        self.over = true;
        let stood = |(from, to): (Duration, Duration)| to.saturating_sub(from);
        Ok(self.stopped_at.zip(self.resumed_at).filter(|_| self.resume).map_or(Duration::ZERO, stood))
    }

    fn end_or_say(&mut self) {
        if let Err(error) = self.end() {
            tracing::error!(
                monitor = %self.qmp.path().display(), %error,
                "a VM whose memory was read in place could not be put right: look at it; `cont` lets it run"
            );
        }
    }
}
