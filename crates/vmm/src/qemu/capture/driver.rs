//! A migration's life as its monitor shows it.

use super::super::error::QemuError;
use super::super::qmp::{Qmp, QmpEvent};
use super::{CaptureOptions, settings};
use serde_json::{Value, json};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// How long a migration may take to say how it ended, once its stream has.
const END_WITHIN: Duration = Duration::from_secs(10);

/// How often the monitor is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Deadlines of one capture.
pub(super) struct Clock {
    start: Instant,
    within: Duration,
    converge_at: Instant,
    stopped: bool,
}

impl Clock {
    pub(super) fn start(options: &CaptureOptions<'_>) -> Self {
        let start = Instant::now();
        Self { start, within: options.within, converge_at: start + options.converge_within, stopped: false }
    }

    /// To be called every now and then: ends what takes too long or is cancelled, and stops a source that dirties its
    /// memory faster than it can be read.
    pub(super) fn check(&mut self, qmp: &mut Qmp, cancel: Option<&AtomicBool>) -> Result<(), QemuError> {
        if cancel.is_some_and(|cancel| cancel.load(Relaxed)) {
            let reason = "it was cancelled here".to_owned();
            return Err(QemuError::Migration { status: "cancelled".to_owned(), reason });
        }
        let now = Instant::now();
        if now.duration_since(self.start) > self.within {
            return Err(QemuError::TimedOut { what: "the end of the capture", within: self.within });
        }
        if !self.stopped && now > self.converge_at {
            self.stopped = true;
            // A stopped VM dirties nothing, so what is left is sent once.
            qmp.execute("stop", Value::Null)?;
        }
        Ok(())
    }
}

/// Does `work`, which reads the stream, and looks at the monitor beside it, until `look` says that this is enough. Never one
/// after the other: QEMU writes the last of the stream with its main loop held up, so an answer may come only once
/// the stream is read on. If either fails, the socket is shut, and so ends the other.
pub(super) fn watched<T>(
    qmp: &mut Qmp,
    socket: &UnixStream,
    mut look: impl FnMut(&mut Qmp) -> Result<bool, QemuError> + Send,
    work: impl FnOnce() -> Result<T, QemuError>,
) -> Result<T, QemuError> {
    let done = AtomicBool::new(false);
    let close = || {
        // If it is closed already, all the better.
        let _ = socket.shutdown(std::net::Shutdown::Both);
    };
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            while !done.load(Relaxed) && look(qmp).inspect_err(|_| close())? {
                std::thread::park_timeout(LOOK_EVERY);
            }
            Ok(())
        });
        let outcome = work();
        if outcome.is_err() {
            close();
        }
        done.store(true, Relaxed);
        watcher.thread().unpark();
        let watched: Result<(), QemuError> = watcher.join().expect("the watcher does not panic");
        // What went wrong first at the monitor is the reason why the stream broke off.
        outcome.map_err(|error| watched.err().unwrap_or(error))
    })
}

/// Waits for the migration to be over; it ended well if this does.
pub(super) fn completed(qmp: &mut Qmp) -> Result<(), QemuError> {
    ends_as(qmp, "completed", END_WITHIN)
}

/// Waits for the migration to reach `wanted`, a state at which it rests.
pub(super) fn ends_as(qmp: &mut Qmp, wanted: &str, within: Duration) -> Result<(), QemuError> {
    let deadline = Instant::now() + within;
    loop {
        let answer = qmp.execute("query-migrate", Value::Null)?;
        match answer["status"].as_str() {
            Some(status) if status == wanted => return Ok(()),
            Some(status @ ("failed" | "cancelled" | "completed")) => {
                let reason = answer["error-desc"].as_str().unwrap_or("QEMU does not say why").to_owned();
                return Err(QemuError::Migration { status: status.to_owned(), reason });
            }
            _ if Instant::now() > deadline => {
                return Err(QemuError::TimedOut { what: "the end of QEMU's migration", within });
            }
            _ => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// Ends whatever migration there is and lets the source go on if it ran. Failures are told, but there is nobody who could
/// do more.
pub(super) fn abandon(qmp: &mut Qmp, ran: bool) {
    let outcome = (|| -> Result<(), QemuError> {
        qmp.execute("migrate_cancel", Value::Null)?;
        let deadline = Instant::now() + END_WITHIN;
        loop {
            let status = qmp.execute("query-migrate", Value::Null)?["status"].take();
            if !matches!(status.as_str(), Some("active" | "setup" | "device" | "cancelling")) {
                break;
            }
            if Instant::now() > deadline {
                return Err(QemuError::TimedOut {
                    what: "the end of a cancelled migration",
                    within: END_WITHIN,
                });
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let running = qmp.execute("query-status", Value::Null)?["running"] == true;
        if ran && !running {
            qmp.execute("cont", Value::Null)?;
        }
        Ok(())
    })();
    if let Err(error) = outcome {
        tracing::error!(%error, "the source of a failed capture could not be put right: look at it");
    }
}

/// How long the VM stood, from the events that have come: the last STOP before the last RESUME.
pub(super) fn pause_seen(qmp: &mut Qmp) -> Result<Duration, QemuError> {
    // The answer to any command comes behind the events of what went before.
    qmp.execute("query-name", json!({}))?;
    let events = qmp.take_events();
    let last =
        |name: &str| events.iter().rev().find(|event: &&QmpEvent| event.name == name).map(|event| event.at);
    Ok(match (last("STOP"), last("RESUME")) {
        (Some(stop), Some(resume)) => resume.saturating_sub(stop),
        _ => Duration::ZERO,
    })
}

/// A VM that an earlier process took: its QEMU stands, or has run on by itself.
///
/// # Errors
///
/// The monitor's.
pub fn resume_stopped(qmp: &mut Qmp) -> Result<(), QemuError> {
    abandon(qmp, true);
    settings::forget_ours(qmp);
    let running = qmp.execute("query-status", Value::Null)?["running"] == true;
    if running { Ok(()) } else { Err(QemuError::refused("it does not run on")) }
}
