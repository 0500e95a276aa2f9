//! The hand-over of a VM, at its source (docs/evacuation.md). No I/O and no clock: [`step`] says what follows from what.
//!
//! ```text
//!            Begin             Stopped            Ready: Settle, Decide · Decided             Complete
//! Running ──────────▶ Migrating ──────▶ Paused ────────────────────────────────▶ HandedOver ──────────▶ Released
//!    ▲                   │ Abandon        │ Abandon, Undecided                     │ Abandon: refused
//!    └───────────────────┴────────────────┘                                         └ Connected, Gone: the state again
//! ```
//!
//! **The decision is on disk before the host is told**: [`Action::Decide`] is answered by [`Input::Decided`] only when it is
//! there for good. A process that starts again finds it ([`restarted`]) and goes on; without it, the VM runs on here.

pub mod journal;

/// Where a VM stands at its source.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It runs here, and nothing of it is under way.
    Running,
    /// It runs here, its pages are under way.
    Migrating,
    /// It stands; its host prepares it.
    Paused,
    /// It is its host's. Its pages stay here until they are there.
    HandedOver,
    /// Nothing here is needed any more.
    Released,
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Migrating => "migrating",
            Self::Paused => "paused",
            Self::HandedOver => "handed over",
            Self::Released => "released",
        })
    }
}

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Input {
    /// It is to leave.
    Begin,
    /// It stands, and its newest pages and device state are known.
    Stopped,
    /// Its host is connected, anew or for the first time.
    Connected,
    /// Its host has loaded it and waits.
    Ready,
    /// The decision is on disk.
    Decided,
    /// The decision is surely not on disk.
    Undecided,
    /// Its host could not load it, or lost it before it ran.
    Gone,
    /// Its host has all of its pages.
    Complete,
    /// It is to stay: cancelled, its host has failed, too little time.
    Abandon,
}

/// What is to be done, in this order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Tell the host which pages are stale, and the device state.
    SendState,
    /// Make it stand for good. If this fails, nothing else of the same step is done and [`Input::Undecided`] follows.
    Settle,
    /// Write the decision to disk; [`Input::Decided`] or [`Input::Undecided`] follows.
    Decide,
    /// Tell the host that the VM is its own.
    TellDecision,
    /// Tell the host that the VM stays here.
    TellWithdrawn,
    /// Let it run on here.
    Resume,
    /// Give up everything of it.
    Release,
}

/// It was too late.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("it is {0}: its host may run it already, so it cannot stay here")]
pub struct TooLate(pub State);

/// What follows. Inputs that are late or come twice change nothing.
///
/// # Errors
/// [`TooLate`]: the VM was handed over and cannot be abandoned.
pub fn step(state: State, input: Input) -> Result<(State, &'static [Action]), TooLate> {
    use Action::{Decide, Release, Resume, SendState, Settle, TellDecision, TellWithdrawn};
    use State::{HandedOver, Migrating, Paused, Released, Running};
    Ok(match (state, input) {
        (Running, Input::Begin) => (Migrating, &[]),
        (Migrating, Input::Stopped) => (Paused, &[SendState]),
        (Migrating | Paused, Input::Abandon | Input::Gone) | (Paused, Input::Undecided) => {
            (Running, &[TellWithdrawn, Resume])
        }
        (Paused | HandedOver, Input::Connected) | (HandedOver, Input::Gone) => (state, &[SendState]),
        (Paused, Input::Ready) => (Paused, &[Settle, Decide]),
        (Paused, Input::Decided) => (HandedOver, &[TellDecision]),
        (HandedOver, Input::Ready) => (HandedOver, &[TellDecision]),
        (HandedOver, Input::Complete) => (Released, &[Release]),
        (HandedOver | Released, Input::Abandon) => return Err(TooLate(state)),
        _ => (state, &[]),
    })
}

/// Where a VM stands whose earlier process has died, and what is to be done first.
#[must_use]
pub fn restarted(decided: bool) -> (State, &'static [Action]) {
    if decided { (State::HandedOver, &[]) } else { (State::Running, &[Action::Resume]) }
}
