//! The hand-over of a VM, at its host (docs/evacuation.md). No I/O and no clock: [`step`] says what follows from what.
//!
//! ```text
//!            Loaded             Decision: Decide · Decided            Complete
//! Preparing ────────▶ Ready ──────────────────────────────▶ Running ──────────▶ Complete
//!   ▲  │ Withdrawn, Died │ Withdrawn, Died                     │ Died
//!   │  ▼                 ▼                                     ▼
//!   └ Gone ◀─────────────┘                                   Over
//!     StateHere
//! ```
//!
//! **Its vCPUs start only once the decision is on this disk, too**: [`Action::Decide`], then [`Input::Decided`].

pub mod journal;

/// Where a VM stands at its host.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum State {
    /// Its hypervisor waits, or loads it.
    Preparing,
    /// It is loaded, and stands.
    Ready,
    /// It runs here; some of its pages may still be at its source.
    Running,
    /// All of it is here.
    Complete,
    /// It never ran here, and nothing of it is left.
    Gone,
    /// It ran here, and has ended.
    Over,
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Preparing => "preparing",
            Self::Ready => "ready",
            Self::Running => "running",
            Self::Complete => "complete",
            Self::Gone => "gone, it never ran here",
            Self::Over => "over, it ran here",
        })
    }
}

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Input {
    /// A connection to the source begins.
    Connected,
    /// Its device state is here, and what is stale is known.
    StateHere,
    /// The hypervisor has loaded it.
    Loaded,
    /// The source has decided.
    Decision,
    /// The decision is on this host's disk.
    Decided,
    /// All of its pages are here.
    Complete,
    /// It stays at its source.
    Withdrawn,
    /// Its hypervisor has ended.
    Died,
}

/// What is to be done, in this order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Have the hypervisor load it, standing.
    Load,
    /// Write the decision to disk; [`Input::Decided`] follows, or nothing, and the source repeats its word.
    Decide,
    /// Start its vCPUs.
    Start,
    /// Tell the source that it is ready.
    TellReady,
    /// … that it runs.
    TellRunning,
    /// … that all of it is here.
    TellComplete,
    /// … that it is gone, and whether it ran.
    TellGone,
    /// End its hypervisor.
    End,
}

/// What follows. Inputs that are late or come twice change nothing.
#[must_use]
pub fn step(state: State, input: Input) -> (State, &'static [Action]) {
    use Action::{Decide, End, Load, Start, TellComplete, TellGone, TellReady, TellRunning};
    use State::{Complete, Gone, Over, Preparing, Ready, Running};
    match (state, input) {
        (Preparing | Gone, Input::StateHere) => (Preparing, &[Load]),
        (Preparing, Input::Loaded) => (Ready, &[TellReady]),
        // The source sends everything again to whom it connects to; what is loaded already is not loaded twice.
        (Ready, Input::StateHere) => (Ready, &[TellReady]),
        (Ready, Input::Decision) => (Ready, &[Decide]),
        (Ready, Input::Decided) => (Running, &[Start, TellRunning]),
        (Running, Input::Connected | Input::Decision) => (Running, &[TellRunning]),
        (Running, Input::Complete) => (Complete, &[TellComplete]),
        (Complete, Input::Connected | Input::Decision) => (Complete, &[TellRunning, TellComplete]),
        (Preparing | Ready, Input::Withdrawn) => (Gone, &[End]),
        (Preparing | Ready, Input::Died) => (Gone, &[TellGone]),
        (Running | Complete, Input::Died) => (Over, &[TellGone]),
        (Over, Input::Connected | Input::Decision | Input::StateHere) => (Over, &[TellGone]),
        _ => (state, &[]),
    }
}

/// Where a VM stands when a receiver starts again: its hypervisor may have outlived the one before.
///
/// Without a decision, whatever is left of it is ended. With one and a hypervisor that is there, it is started, which changes
/// nothing if it runs.
#[must_use]
pub fn restarted(decided: bool, alive: bool) -> (State, &'static [Action]) {
    match (decided, alive) {
        (false, _) => (State::Gone, &[Action::End]),
        (true, true) => (State::Running, &[Action::Start]),
        (true, false) => (State::Over, &[]),
    }
}
