//! What would make a transfer fail in silence, found before it starts. Each check is bounded in time and says what
//! it saw and what to do.
//!
//! Checks of one host are here. Whether multicast passes between two hosts is asked over the control channel by the
//! caller, with [`ProbeTally`] and [`probe_payload`].

mod host;
mod igmp;
mod probe;
mod querier;

pub use host::{bridges, buffers, identity, memberships, mtu, rights};
pub use igmp::{IgmpError, IgmpQuery};
pub use probe::{
    PROBE_BYTES, ProbeError, ProbeTally, check_probe, gso_local, probe_payload, probe_payload_sized,
    send_probes,
};
pub use querier::querier;

/// How bad a finding is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Transfers work, but slower or not for ever; or the check could not be made.
    Warning,
    /// Transfers will fail.
    Problem,
}

/// What one check found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// The check's name, fixed, for machines: `igmp-querier`.
    pub check: &'static str,
    /// How bad.
    pub severity: Severity,
    /// What was seen.
    pub what: String,
    /// What to do; empty if nothing.
    pub remedy: String,
}

impl Finding {
    fn ok(check: &'static str, what: impl Into<String>) -> Self {
        Self { check, severity: Severity::Ok, what: what.into(), remedy: String::new() }
    }

    fn warning(check: &'static str, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, severity: Severity::Warning, what: what.into(), remedy: remedy.into() }
    }

    fn problem(check: &'static str, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, severity: Severity::Problem, what: what.into(), remedy: remedy.into() }
    }
}
