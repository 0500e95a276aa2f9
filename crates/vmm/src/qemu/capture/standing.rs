//! A VM that stands while its memory is read in place, and a watch over it.
//!
//! Anybody may set it running by another monitor. QEMU writes the event of that to every monitor before a virtual CPU
//! or a device runs (`vm_prepare_start` in `system/cpus.c` and `monitor_flush_locked` in `monitor/monitor.c`; read in QEMU 7.0 and
//! newer, tried with 10.0). So what was read is right if, *after* it was read, the event is not at our end of the socket:
//! [`Standing::disturbed`] looks, by one poll(2).

use super::super::error::QemuError;
use super::super::qmp::{Qmp, QmpError};
use serde_json::Value;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
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
    /// Its [`Standing`] was ended: it runs on, or nobody looks any more.
    #[error("it was let go")]
    Over,
}

/// A VM that stands for whoever has this. Dropped, the VM runs on if it ran before; so it does after
/// [`PutBack::put_back`]. If this process is killed (`kill -9`), it stands: `cont` in its monitor lets it run, and nothing is lost.
#[derive(Debug)]
pub struct Standing(Arc<Mutex<State>>);

/// Lets a VM run on from elsewhere, as from a signal's thread that is about to end the process.
#[derive(Clone, Debug)]
pub struct PutBack(Arc<Mutex<State>>);

/// Looks whether a VM was disturbed, for whoever reads its memory. It keeps neither the VM standing nor its monitor busy.
#[derive(Clone, Debug)]
pub struct Watch(Weak<Mutex<State>>);

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
    /// Of a VM that stands, whose events since it began to are in `qmp`. `ran`: before; with `resume` it is to do so again. If this
    /// fails, it runs if it ran.
    pub(super) fn begin(qmp: Qmp, ran: bool, resume: bool) -> Result<Self, QemuError> {
        let (disturbed, stopped_at, resumed_at) = (None, None, None);
        let state = State { qmp, resume: ran, disturbed, stopped_at, resumed_at, over: false };
        let standing = Self(Arc::new(Mutex::new(state)));
        // Until this is known it is put back as it was, whatever is wanted afterwards.
        standing.check().map_err(|disturbed| QemuError::refused(disturbed.to_string()))?;
        lock(&standing.0).resume = ran && resume;
        Ok(standing)
    }

    /// Why memory that was read until this call is not vouched for, if it is not.
    #[must_use]
    pub fn disturbed(&self) -> Option<Disturbed> {
        lock(&self.0).look()
    }

    /// For whoever reads its memory elsewhere, for as long as he likes: [`end`](Self::end) waits for nobody.
    #[must_use]
    pub fn watch(&self) -> Watch {
        Watch(Arc::downgrade(&self.0))
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

impl Watch {
    /// As [`Standing::disturbed`]; [`Disturbed::Over`] once that was ended, however it was.
    #[must_use]
    pub fn disturbed(&self) -> Option<Disturbed> {
        self.0.upgrade().map_or(Some(Disturbed::Over), |state| lock(&state).look())
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
        if self.over {
            // What was read since may be wrong, and whether it is was not looked at.
            return Some(self.disturbed.clone().unwrap_or(Disturbed::Over));
        }
        if self.disturbed.is_none() {
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
            Ok(status) if status["running"] == true && !self.over => {
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
                    // Once it is over, this is our own `cont`.
                    if !self.over {
                        self.disturbed.get_or_insert(Disturbed::Resumed);
                    }
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
