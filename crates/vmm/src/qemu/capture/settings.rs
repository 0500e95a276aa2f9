//! A source's migration settings, put back after a capture.

use super::super::error::QemuError;
use super::super::qmp::Qmp;
use serde_json::{Value, json};

/// Parameters that a capture changes. The last came with QEMU 8.2.
const PARAMETERS: [&str; 3] = ["max-bandwidth", "downtime-limit", "avail-switchover-bandwidth"];

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
