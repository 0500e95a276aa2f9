//! A source's migration settings, put back after a capture.

use super::super::error::QemuError;
use super::super::qmp::Qmp;
use serde_json::{Value, json};

/// With this bandwidth at a switch-over, in bytes per second, a downtime limit of 1 ms is one byte. Came with QEMU 8.2.
pub(super) const LOOK_BANDWIDTH: (&str, u64) = ("avail-switchover-bandwidth", 1000);
/// Where nobody takes pages: enough for QEMU to stay alive. Bytes per second.
pub(super) const HELD_BANDWIDTH: u64 = 16 << 10;
/// Parameters that a capture changes.
const PARAMETERS: [&str; 3] = ["max-bandwidth", "downtime-limit", LOOK_BANDWIDTH.0];

pub(super) struct Settings {
    capabilities: Vec<(String, bool)>,
    parameters: Value,
}

impl Settings {
    pub(super) fn of(qmp: &mut Qmp) -> Result<Self, QemuError> {
        Ok(Self {
            capabilities: qmp.capabilities()?,
            parameters: qmp.execute("query-migrate-parameters", Value::Null)?,
        })
    }

    /// Whether this QEMU has a parameter of this name.
    pub(super) fn knows(&self, parameter: &str) -> bool {
        !self.parameters[parameter].is_null()
    }

    /// Puts them back as well as it can: QEMU refuses while a migration is active.
    pub(super) fn restore(&self, qmp: &mut Qmp) {
        let mut parameters = serde_json::Map::new();
        for name in PARAMETERS.into_iter().filter(|name| self.knows(name)) {
            parameters.insert(name.to_owned(), self.parameters[name].clone());
        }
        let capabilities: Vec<(&str, bool)> =
            self.capabilities.iter().map(|(name, state)| (name.as_str(), *state)).collect();
        for outcome in [
            qmp.execute("migrate-set-parameters", Value::Object(parameters)).map(drop),
            qmp.set_capabilities(&capabilities),
        ] {
            if let Err(error) = outcome {
                tracing::warn!(%error, "the source's migration settings could not be put back");
            }
        }
    }
}

/// QEMU's own settings in place of those that a process which died has left: nobody knows what they were.
pub(super) fn forget_ours(qmp: &mut Qmp) {
    if let Err(error) = try_to_forget(qmp) {
        tracing::warn!(%error, "a VM's migration settings could not be put right");
    }
}

fn try_to_forget(qmp: &mut Qmp) -> Result<(), QemuError> {
    let now = qmp.execute("query-migrate-parameters", Value::Null)?;
    let is = |name: &str, ours: &[u64]| now[name].as_u64().is_some_and(|value| ours.contains(&value));
    for (name, ours, own) in [
        ("max-bandwidth", &[0, HELD_BANDWIDTH][..], 128 << 20),
        ("downtime-limit", &[0, 1], 300),
        (LOOK_BANDWIDTH.0, &[LOOK_BANDWIDTH.1], 0),
    ] {
        if is(name, ours) {
            qmp.execute("migrate-set-parameters", json!({name: own}))?;
        }
    }
    // A destination that does not know the first would wait for ever to be switched over to.
    if qmp.capabilities()?.contains(&("switchover-ack".to_owned(), true)) {
        qmp.set_capabilities(&[("switchover-ack", false), ("return-path", false)])?;
    }
    Ok(())
}

/// All capabilities off but these and `events`; bandwidth without limit.
pub(super) fn prepare(qmp: &mut Qmp, wanted: &[&str]) -> Result<(), QemuError> {
    let known = qmp.capabilities()?;
    for name in wanted {
        if !known.iter().any(|(known, _)| known == name) {
            return Err(QemuError::refused(format!("QEMU {} has no capability {name}", qmp.version())));
        }
    }
    let on = |name: &str| name == "events" || wanted.contains(&name);
    // Off before on: some exclude each other.
    let off: Vec<(&str, bool)> = known
        .iter()
        .filter(|(name, state)| *state && !on(name))
        .map(|(name, _)| (name.as_str(), false))
        .collect();
    qmp.set_capabilities(&off)?;
    let all: Vec<(&str, bool)> =
        known.iter().filter(|(name, _)| on(name)).map(|(name, _)| (name.as_str(), true)).collect();
    qmp.set_capabilities(&all)?;
    qmp.execute("migrate-set-parameters", json!({"max-bandwidth": 0}))?;
    Ok(())
}
