//! What a transfer knows of VMs that leave.

use super::Happening;
use crate::departure::{Actor, Ask, Departing, Pace, Stood};
use crate::guests::Clones;
use crate::handover::State;
use crate::handover::journal::{Journal, Leaving};
use crossbeam_channel::Sender;
use pages::Bitmap;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};
use wire::control::{FaultFigures, PageRange};

/// A VM that runs here, and is to leave; or one that an earlier process handed over.
pub struct Departure {
    /// Index of the VM.
    pub vm: u16,
    /// Index of its host.
    pub host: usize,
    /// What the journal knows of it.
    pub leaving: Leaving,
    /// An earlier process handed it over.
    pub handed_over: bool,
    /// When the first pass over its memory was taken.
    pub taken_at: Instant,
    /// Whoever holds it.
    pub departing: Box<dyn Departing>,
}

/// What a VM's leaving took. Times from the transfer's start.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct DepartureFigures {
    /// When it was told to stop.
    pub stopped: Option<Duration>,
    /// When its host said that it runs there: its downtime is the difference, and at most a round trip less.
    pub running: Option<Duration>,
    /// When nothing of it was needed here any more: its eviction time.
    pub released: Option<Duration>,
    /// Pages that were newer than those in blocks when it stopped.
    pub stale_pages: u32,
    /// Of those, the ones that had changed since they were last brought to its host: what it stood for.
    #[serde(default)]
    pub late_pages: u32,
    /// Looks at what had changed while it ran.
    pub rounds: u32,
    /// Different pages that changed each second: in the last of them, or from the first pass until it stopped.
    pub dirty_pages_per_s: u32,
    /// Pages sent by themselves: stale ones, and answers to its faults.
    pub answered_pages: u64,
    /// Encoded bytes of these.
    pub answered_bytes: u64,
}

/// How a VM that leaves fares.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DepartureOutcome {
    /// Its name.
    pub vm: String,
    /// The host that gets it.
    pub host: String,
    /// Where it stands.
    pub state: State,
    /// Why it stays, or what is wrong.
    pub reason: Option<String>,
    /// What it took.
    pub figures: DepartureFigures,
    /// Its page faults at its host, as last told.
    pub faults: FaultFigures,
}

/// One of them.
pub(super) struct Leaver {
    pub(super) vm: u16,
    pub(super) host: usize,
    pub(super) leaving: Leaving,
    actor: Actor,
    pub(super) state: State,
    pub(super) reason: Option<String>,
    pub(super) stood: Option<Stood>,
    pub(super) epoch: u32,
    /// Its host is connected and has accepted.
    pub(super) accepted: bool,
    /// Its host may not have been told of all looks at what changed, as it was not connected all the while: the next one tells it all.
    pub(super) missed: bool,
    /// What the actor has not answered.
    pub(super) pending: u32,
    pub(super) stopping: bool,
    pub(super) deciding: bool,
    /// When its host was last told of the decision.
    pub(super) told_at: Duration,
    /// When the state is to be sent again.
    pub(super) again_at: Option<Duration>,
    /// When the last look at what changed began.
    pub(super) looked_at: Option<Duration>,
    /// When what it found began to be brought.
    pub(super) brought_from: Option<Duration>,
    pub(super) taken_at: Instant,
    /// It ran at its host, and has ended there.
    pub(super) over: bool,
    pub(super) figures: DepartureFigures,
}

/// All of them.
#[derive(Default)]
pub(super) struct Departures {
    pub(super) list: Vec<Leaver>,
    pub(super) journal: Option<Journal>,
    pub(super) pace: Option<Pace>,
    pub(super) cancel: Arc<AtomicBool>,
    pub(super) cancelled: bool,
}

impl Departures {
    pub(super) fn start(
        departures: Vec<Departure>,
        journal: Journal,
        pace: Pace,
        out: &Sender<Happening>,
    ) -> std::io::Result<Self> {
        let mut list = Vec::with_capacity(departures.len());
        for (index, departure) in departures.into_iter().enumerate() {
            let out = out.clone();
            let tell = move |told| {
                // Nobody listens when the transfer is over.
                let _ = out.send(Happening::Departure { index, told });
            };
            let Departure { vm, host, leaving, handed_over, taken_at, departing } = departure;
            let actor = Actor::start(departing, tell)?;
            let state = if handed_over { State::HandedOver } else { State::Migrating };
            let mut leaver = Leaver {
                vm,
                host,
                leaving,
                actor,
                state,
                reason: None,
                stood: None,
                epoch: 0,
                accepted: false,
                missed: false,
                pending: 0,
                stopping: false,
                deciding: false,
                told_at: Duration::ZERO,
                again_at: None,
                looked_at: None,
                brought_from: None,
                taken_at,
                over: false,
                figures: DepartureFigures::default(),
            };
            if handed_over {
                // It stands already; this tells what it has.
                leaver.ask(Ask::Stop);
            }
            list.push(leaver);
        }
        Ok(Self { list, journal: Some(journal), pace: Some(pace), ..Self::default() })
    }

    /// Notes pages that went to a VM's host by themselves.
    pub(super) fn count_answer(&mut self, vm: u16, pages: usize, bytes: usize) {
        if let Some(leaver) = self.list.iter_mut().find(|leaver| leaver.vm == vm) {
            leaver.figures.answered_pages += pages as u64;
            leaver.figures.answered_bytes += bytes as u64;
        }
    }

    pub(super) fn outcomes(&self, guests: &Clones) -> Vec<DepartureOutcome> {
        let faults = |vm| guests.all().iter().find(|guest| guest.vm == vm).map(|guest| guest.faults);
        let outcome = |leaver: &Leaver| DepartureOutcome {
            vm: leaver.leaving.vm.clone(),
            host: leaver.leaving.host.clone(),
            state: leaver.state,
            reason: leaver.reason.clone(),
            figures: leaver.figures,
            faults: faults(leaver.vm).unwrap_or_default(),
        };
        self.list.iter().map(outcome).collect()
    }

    pub(super) fn handle_disconnected(&mut self, host: usize) {
        self.list.iter_mut().filter(|leaver| leaver.host == host).for_each(|leaver| leaver.accepted = false);
    }

    /// Whether this process may end: what could be put right is, and the journal knows the rest.
    pub(super) fn may_leave(&self) -> bool {
        self.list.iter().all(|leaver| leaver.pending == 0 && !leaver.deciding)
    }
}

impl Leaver {
    /// Once it stands: pages that its host does not have in their newest versions, and has not been told of.
    pub(super) fn late(&self) -> Option<&Bitmap> {
        let newest = &self.stood.as_ref()?.newest;
        Some(if self.missed { &newest.stale } else { &newest.fresh })
    }

    pub(super) fn ask(&mut self, ask: Ask) {
        self.pending += 1;
        self.actor.ask(ask);
    }

    pub(super) fn name(&self) -> &str {
        &self.leaving.vm
    }
}

pub(super) fn ranges(pages: &Bitmap) -> Vec<PageRange> {
    let range = |run: std::ops::Range<u32>| PageRange { first: run.start, count: run.end - run.start };
    pages.iter_set_ranges().map(range).collect()
}
