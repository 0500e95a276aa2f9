//! A source, a host, their disks, their VMs of one hand-over, and what may happen to them.

use receiver::handover as host;
use sender::handover as source;
use std::collections::VecDeque;

/// Faults in one history.
pub(super) const FAULTS_MAX: u8 = 3;
/// Steps until everything has settled, once faults stop.
const SETTLE_MAX: usize = 200;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Vm {
    /// There is none.
    None,
    /// It runs.
    Runs,
    /// It stands, and runs on by itself if its process loses its controller (the source's migration is not settled).
    StandsLoosely,
    /// It stands until it is told otherwise.
    Stands,
}

/// From the source to the host.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Down {
    State,
    Decision,
    Withdrawn,
}

/// From the host to the source.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Up {
    Ready,
    Running,
    Complete,
    GoneUnrun,
}

/// Everything that there is: two processes, their disks, their VMs, and the connection.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct World {
    /// `None`: the process is dead.
    pub(super) source: Option<source::State>,
    pub(super) source_disk: bool,
    pub(super) source_vm: Vm,
    pub(super) host: Option<host::State>,
    pub(super) host_disk: bool,
    pub(super) host_vm: Vm,
    /// The host knows state and pages.
    pub(super) loadable: bool,
    pub(super) connected: bool,
    pub(super) down: VecDeque<Down>,
    pub(super) up: VecDeque<Up>,
    /// The next decision cannot be written, at either end.
    pub(super) full: [bool; 2],
    pub(super) faults: u8,
    /// The VM has run at its host and was killed there: no longer this protocol's affair.
    pub(super) killed: bool,
}

/// What may happen next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Event {
    Begin,
    Stop,
    Connect,
    DeliverDown,
    DeliverUp,
    Load,
    Fill,
    StartSource,
    StartHost,
    /// The source repeats its decision now and then.
    Repeat,
    Cut,
    KillSource,
    KillHost,
    KillHostVm,
    FillDisk(usize),
    Cancel,
}

pub(super) const EVENTS: [Event; 17] = [
    Event::StartSource,
    Event::StartHost,
    Event::Connect,
    Event::Begin,
    Event::Stop,
    Event::DeliverDown,
    Event::DeliverUp,
    Event::Load,
    Event::Fill,
    Event::Repeat,
    Event::Cut,
    Event::KillSource,
    Event::KillHost,
    Event::KillHostVm,
    Event::FillDisk(0),
    Event::FillDisk(1),
    Event::Cancel,
];

impl Event {
    fn is_fault(self) -> bool {
        matches!(
            self,
            Self::Cut
                | Self::KillSource
                | Self::KillHost
                | Self::KillHostVm
                | Self::FillDisk(_)
                | Self::Cancel
        )
    }
}

impl World {
    pub(super) fn new() -> Self {
        Self {
            source: Some(source::State::Running),
            source_disk: false,
            source_vm: Vm::Runs,
            host: Some(host::State::Preparing),
            host_disk: false,
            host_vm: Vm::None,
            loadable: false,
            connected: false,
            down: VecDeque::new(),
            up: VecDeque::new(),
            full: [false; 2],
            faults: 0,
            killed: false,
        }
    }

    /// The world after an event, if it can happen.
    pub(super) fn after(&self, event: Event) -> Option<Self> {
        let mut next = self.clone();
        if event.is_fault() {
            if self.faults == FAULTS_MAX {
                return None;
            }
            next.faults += 1;
        }
        next.happen(event).then_some(next)
    }

    fn happen(&mut self, event: Event) -> bool {
        let both = self.source.is_some() && self.host.is_some();
        match event {
            Event::Begin => {
                let begins = self.source == Some(source::State::Running) && self.faults == 0;
                begins && self.source_input(source::Input::Begin)
            }
            Event::Stop if self.source == Some(source::State::Migrating) && self.connected => {
                self.source_vm = Vm::StandsLoosely;
                self.source_input(source::Input::Stopped)
            }
            Event::Connect if both && !self.connected && self.source != Some(source::State::Released) => {
                self.connected = true;
                self.source_input(source::Input::Connected);
                self.host_input(host::Input::Connected)
            }
            Event::DeliverDown => match self.down.pop_front() {
                Some(word) => self.hear_down(word),
                None => false,
            },
            Event::DeliverUp => match self.up.pop_front() {
                Some(word) => self.hear_up(word),
                None => false,
            },
            // The emitter's answer: the device state is loaded.
            Event::Load if self.loadable && self.host == Some(host::State::Preparing) => {
                self.host_vm = Vm::Stands;
                self.loadable = false;
                self.host_input(host::Input::Loaded)
            }
            Event::Fill if self.connected && self.host == Some(host::State::Running) => {
                self.host_input(host::Input::Complete)
            }
            Event::StartSource if self.source.is_none() => self.start_source(),
            Event::StartHost if self.host.is_none() => self.start_host(),
            Event::Repeat if self.connected && self.down.is_empty() && self.up.is_empty() => {
                let again = self.source == Some(source::State::HandedOver);
                again && self.say_down(Down::Decision)
            }
            Event::Cut if self.connected => self.cut(),
            Event::KillSource if self.source.is_some() => {
                self.source = None;
                if self.source_vm == Vm::StandsLoosely {
                    self.source_vm = Vm::Runs;
                }
                self.cut()
            }
            Event::KillHost if self.host.is_some() => {
                self.host = None;
                self.loadable = false;
                if !self.host_disk {
                    // Its keeper sees to that.
                    self.host_vm = Vm::None;
                }
                self.cut()
            }
            Event::KillHostVm if self.host_vm != Vm::None && self.host.is_some() => {
                self.killed |= self.host_vm == Vm::Runs;
                self.host_vm = Vm::None;
                self.host_input(host::Input::Died)
            }
            Event::FillDisk(end) if !self.full[end] => {
                self.full[end] = true;
                true
            }
            Event::Cancel if self.source.is_some() => self.source_input(source::Input::Abandon),
            _ => false,
        }
    }

    pub(super) fn start_source(&mut self) -> bool {
        let (state, actions) = source::restarted(self.source_disk);
        self.source = Some(state);
        self.source_actions(actions)
    }

    fn start_host(&mut self) -> bool {
        let (state, actions) = host::restarted(self.host_disk, self.host_vm != Vm::None);
        self.host = Some(state);
        self.host_actions(actions)
    }

    fn cut(&mut self) -> bool {
        self.connected = false;
        self.down.clear();
        self.up.clear();
        true
    }

    fn hear_down(&mut self, word: Down) -> bool {
        match word {
            Down::State => {
                self.loadable = true;
                self.host_input(host::Input::StateHere)
            }
            Down::Decision => self.host_input(host::Input::Decision),
            Down::Withdrawn => self.host_input(host::Input::Withdrawn),
        }
    }

    fn hear_up(&mut self, word: Up) -> bool {
        match word {
            Up::Ready => self.source_input(source::Input::Ready),
            Up::Complete => self.source_input(source::Input::Complete),
            Up::GoneUnrun => self.source_input(source::Input::Gone),
            Up::Running => true,
        }
    }

    fn say_down(&mut self, word: Down) -> bool {
        // What is said twice in a row changes nothing: this bounds the model.
        if self.connected && self.down.back() != Some(&word) {
            self.down.push_back(word);
        }
        true
    }

    fn say_up(&mut self, word: Up) -> bool {
        if self.connected && self.up.back() != Some(&word) {
            self.up.push_back(word);
        }
        true
    }

    fn source_input(&mut self, input: source::Input) -> bool {
        let Some(state) = self.source else { return false };
        let Ok((state, actions)) = source::step(state, input) else { return false };
        self.source = Some(state);
        self.source_actions(actions)
    }

    fn source_actions(&mut self, actions: &[source::Action]) -> bool {
        for action in actions {
            match action {
                source::Action::SendState => self.say_down(Down::State),
                source::Action::Settle => {
                    self.source_vm = Vm::Stands;
                    true
                }
                source::Action::Decide if std::mem::take(&mut self.full[0]) => {
                    self.source_input(source::Input::Undecided)
                }
                source::Action::Decide => {
                    self.source_disk = true;
                    self.source_input(source::Input::Decided)
                }
                source::Action::TellDecision => self.say_down(Down::Decision),
                source::Action::TellWithdrawn => self.say_down(Down::Withdrawn),
                source::Action::Resume => {
                    self.source_vm = Vm::Runs;
                    true
                }
                source::Action::Release => {
                    self.source_vm = Vm::None;
                    true
                }
            };
        }
        true
    }

    fn host_input(&mut self, input: host::Input) -> bool {
        let Some(state) = self.host else { return false };
        let (state, actions) = host::step(state, input);
        self.host = Some(state);
        self.host_actions(actions)
    }

    fn host_actions(&mut self, actions: &[host::Action]) -> bool {
        for action in actions {
            match action {
                host::Action::Load => {
                    self.loadable = true;
                    true
                }
                // What cannot be written is asked for again by the source's next word.
                host::Action::Decide if std::mem::take(&mut self.full[1]) => true,
                host::Action::Decide => {
                    self.host_disk = true;
                    self.host_input(host::Input::Decided)
                }
                host::Action::Start => {
                    self.host_vm = Vm::Runs;
                    true
                }
                host::Action::TellReady => self.say_up(Up::Ready),
                host::Action::TellRunning => self.say_up(Up::Running),
                host::Action::TellComplete => self.say_up(Up::Complete),
                host::Action::TellGone => self.host_disk || self.say_up(Up::GoneUnrun),
                host::Action::End => {
                    self.host_vm = Vm::None;
                    true
                }
            };
        }
        true
    }

    pub(super) fn running(&self) -> usize {
        [self.source_vm, self.host_vm].iter().filter(|vm| **vm == Vm::Runs).count()
    }

    /// What must be so at any time.
    pub(super) fn check(&self) {
        assert!(self.running() <= 1, "two run: {self:#?}");
        let runs_there = self.host_vm == Vm::Runs;
        assert!(
            !runs_there || self.source_disk && self.host_disk,
            "started before it was decided: {self:#?}"
        );
        let released = self.source == Some(source::State::Released);
        assert!(!released || runs_there || self.killed, "released, and runs nowhere: {self:#?}");
    }

    /// Goes on without faults, whatever can happen first, until nothing more happens.
    pub(super) fn settled(mut self) -> Self {
        for _ in 0..SETTLE_MAX {
            let calm = EVENTS.iter().filter(|event| !event.is_fault() && **event != Event::Repeat);
            let next = calm.filter_map(|event| self.after(*event)).find(|next| *next != self);
            // Only when nothing else happens, the word is repeated.
            let next = next.or_else(|| self.after(Event::Repeat).filter(|_| !self.is_over()));
            match next {
                Some(next) => self = next,
                None => return self,
            }
            self.check();
        }
        self
    }

    fn is_over(&self) -> bool {
        matches!(self.source, Some(source::State::Released | source::State::Running))
            || self.host == Some(host::State::Over)
    }
}
