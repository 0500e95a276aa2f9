//! When pre-copy gives way to post-copy.

use super::super::error::QemuError;
use super::super::qmp::{Qmp, QmpError};
use serde_json::Value;
use std::time::{Duration, Instant};

/// When pre-copy has lasted long enough.
pub(super) struct Patience {
    pub(super) start: Instant,
    pub(super) precopy_for: Duration,
    pub(super) enough_left: u64,
}

impl Patience {
    /// Begins post-copy when pre-copy has had its time, or little is left; whether to look again.
    pub(super) fn look(&self, qmp: &mut Qmp) -> Result<bool, QemuError> {
        let answer = qmp.execute("query-migrate", Value::Null)?;
        match answer["status"].as_str() {
            Some(status @ ("failed" | "cancelled")) => {
                let reason = answer["error-desc"].as_str().unwrap_or("QEMU does not say why").to_owned();
                return Err(QemuError::Migration { status: status.to_owned(), reason });
            }
            Some("active") => {}
            Some("setup" | "none") => return Ok(true),
            // It ends by itself, or has done so.
            _ => return Ok(false),
        }
        // Only when the first pass over the memory has ended, the rest is a measure of anything.
        let passes = answer["ram"]["dirty-sync-count"].as_u64().unwrap_or(0);
        let left = answer["ram"]["remaining"].as_u64().unwrap_or(u64::MAX);
        let little = passes > 1 && left <= self.enough_left;
        if !little && self.start.elapsed() < self.precopy_for {
            return Ok(true);
        }
        match qmp.execute("migrate-start-postcopy", Value::Null) {
            // It may have ended meanwhile, which is as well.
            Ok(_) | Err(QmpError::Refused { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}
