//! VMs that run on this host while their memory arrives (docs/post-copy.md).
//!
//! ```text
//! Attachment ─▶ attachments ─ all here ─▶ a thread a clone: Launch::run ── faults ──▶ LazyImage::demand
//! blocks ─▶ store ─▶ LazyImage ◀── Pages ── sender ◀── Want ── wants ◀───── next_demand ──┘
//! ```
//!
//! [`Guests`] belongs to a transfer and outlives its connections: a sender that comes back finds the clones waiting.

mod attachments;
mod clone;
mod cloud_hypervisor;
mod ending;
mod error;
mod events;
mod firecracker;
mod launch;
#[cfg(target_arch = "x86_64")]
mod microvm;
mod places;
mod qemu;
mod taking;
mod wants;
mod words;
mod working;

pub use cloud_hypervisor::{CloudHypervisorConfig, CloudHypervisors};
pub use error::GuestError;
pub use firecracker::{FirecrackerConfig, Firecrackers};
pub use launch::{Attached, CloneSpec, Launch, Moves, Ward};
#[cfg(target_arch = "x86_64")]
pub use microvm::MicroVms;
pub use qemu::{BaseDisk, MemoryKind, QemuMachine, Qemus};
pub use taking::HandOvers;
pub use wants::Wants;

use crate::handover::Input;
use crate::store::Intake;
use attachments::Attachments;
use clone::{Clone, Event, State, report};
use crossbeam_channel::{Receiver, Sender, unbounded};
use net::udp::Waker;
use pages::VmId;
use pages::block::{BlockLimits, ContentRun, Scratch, decode_block};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use taking::Taking;
use usage::priority::Raised;
use vmm::lazy::{LazyImage, Origin};
use wire::control::{Attachment, CloneOffer, CloneStatus, FirstTouched, GuestOffer, GuestState, ToSender};
use working::WorkingSet;

/// What a host allows to be started, and how.
#[derive(Clone, Default)]
pub struct GuestConfig {
    /// The programs; an offer of another kind is refused.
    pub launchers: Vec<Arc<dyn Launch>>,
    /// Nice value of this process while VMs move here; `None` leaves it as it is.
    pub nice: Option<i32>,
}

struct GuestVm {
    offer: GuestOffer,
    image: Arc<LazyImage>,
    attachments: Attachments,
    wants: Wants,
    working_set: WorkingSet,
    launcher: Arc<dyn Launch>,
    clones: Vec<Clone>,
    /// It moves here.
    taking: Option<Taking>,
    /// Its clones lacked pages when their transfer was cancelled.
    cancelled: bool,
}

impl GuestVm {
    fn spec(&self, offer: &CloneOffer, attachments: &Arc<[(String, Vec<u8>)]>) -> CloneSpec {
        CloneSpec {
            clone: offer.clone,
            name: offer.name.clone(),
            image: Arc::clone(&self.image),
            attachments: Arc::clone(attachments),
            working_set: self.working_set.whole().unwrap_or_default().into(),
            moves: self
                .taking
                .as_ref()
                .map(|taking| Moves { recover: taking.recover.clone(), outline: None }),
        }
    }

    /// Each clone while its attachments are not here.
    fn early_specs(&self) -> impl Iterator<Item = CloneSpec> {
        let none: Arc<[(String, Vec<u8>)]> = Arc::new([]);
        self.offer.clones.iter().map(move |offer| self.spec(offer, &none))
    }
}

impl Drop for GuestVm {
    fn drop(&mut self) {
        if self.clones.is_empty() {
            self.early_specs().for_each(|spec| self.launcher.abandon(&spec));
        }
    }
}

/// What a VM that moves needs beside its memory.
const STATE: &str = "state";

/// See the module's text.
pub struct Guests {
    vms: Vec<GuestVm>,
    waker: Arc<Waker>,
    out: Sender<Event>,
    events: Receiver<Event>,
    messages: VecDeque<ToSender>,
    notes: HandOvers,
    scratch: Scratch,
    /// Clones that were ended because their transfer was cancelled.
    gone: Vec<CloneStatus>,
    /// While VMs move here.
    raised: Option<Raised>,
}

impl Guests {
    /// Looks whether the host may and can run what is offered; asked before anything is prepared.
    ///
    /// # Errors
    /// [`GuestError::Kind`], [`GuestError::Unfit`].
    pub fn check(offers: &[GuestOffer], config: &GuestConfig) -> Result<(), GuestError> {
        for offer in offers {
            let launcher = launcher(offer, config)?;
            let mut names: Vec<&str> =
                offer.attachments.iter().map(|attachment| attachment.name.as_str()).collect();
            if offer.leaves.is_some() {
                if !launcher.can_move() {
                    let reason = "VMs of this kind are cloned here, but cannot move here".to_owned();
                    return Err(GuestError::Unfit { kind: offer.kind.clone(), reason });
                }
                // Told when it stands.
                names.push(STATE);
            }
            launcher
                .check(&offer.fingerprint, &names)
                .map_err(|reason| GuestError::Unfit { kind: offer.kind.clone(), reason })?;
        }
        Ok(())
    }

    /// Prepares the memory of the offered guests. `waker` is woken when they need or tell something.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn prepare(
        offers: &[GuestOffer],
        config: &GuestConfig,
        intake: &Intake,
        waker: &Arc<Waker>,
        notes: HandOvers,
    ) -> Result<Self, GuestError> {
        let (out, events) = unbounded();
        let moves = offers.iter().any(|offer| offer.leaves.is_some());
        let raised = config.nice.filter(|_| moves).and_then(|nice| {
            let words =
                "this receiver is no more urgent than guests: VMs take longer to move here beside busy ones";
            Raised::to(nice).inspect_err(|error| tracing::warn!(%error, nice, "{words}")).ok()
        });
        let mut vms: Vec<GuestVm> = Vec::with_capacity(offers.len());
        for offer in offers {
            if vms.iter().any(|vm| vm.offer.vm == offer.vm) {
                return Err(GuestError::Offer { vm: offer.vm });
            }
            let (image, beside) = intake.lazy_image(VmId(offer.vm)).map_err(GuestError::Memory)?;
            if beside {
                tracing::warn!(
                    vm = offer.vm,
                    "the store is not on a tmpfs: guests' memory stands beside it, written twice"
                );
            }
            let wake = Arc::clone(waker);
            image.on_demand(move || wake.wake());
            let vm = GuestVm {
                offer: offer.clone(),
                attachments: Attachments::new(&offer.attachments),
                wants: Wants::new(offer.vm, image.page_count(), offer.paging),
                working_set: WorkingSet::new(offer),
                launcher: launcher(offer, config)?,
                image,
                clones: Vec::new(),
                taking: Taking::find(offer, &notes)?,
                cancelled: false,
            };
            vm.early_specs().for_each(|spec| vm.launcher.prepare(&offer.fingerprint, &spec));
            vms.push(vm);
        }
        let (waker, messages, scratch) = (Arc::clone(waker), VecDeque::new(), Scratch::new());
        let mut guests = Self { vms, waker, out, events, messages, notes, scratch, gone: Vec::new(), raised };
        guests.feed_ahead();
        Ok(guests)
    }

    /// What was offered.
    pub fn offers(&self) -> impl Iterator<Item = &GuestOffer> {
        self.vms.iter().map(|vm| &vm.offer)
    }

    /// Another sender goes on with the same guests, in this order: what it offers may have another working set, and other advice.
    pub(crate) fn take_up(&mut self, offers: &[GuestOffer]) {
        for (vm, offer) in self.vms.iter_mut().zip(offers) {
            (vm.offer.working_set, vm.offer.paging) = (offer.working_set, offer.paging);
            vm.working_set = WorkingSet::new(offer);
            vm.wants.set_paging(offer.paging);
        }
    }

    /// A connection begins, `now` on the clock of [`Guests::poll`]: its sender knows nothing of what was asked for and told on the one before.
    pub fn handle_connected(&mut self, now: Duration) {
        self.messages.clear();
        for vm in &mut self.vms {
            vm.attachments.restart();
            vm.wants.restart(&vm.image, now);
            vm.working_set.restart();
            for clone in &mut vm.clones {
                clone.told_complete = false;
                if clone.state == State::Running {
                    let report = report(clone, GuestState::Running);
                    self.messages.push_back(report);
                }
            }
        }
        for at in 0..self.vms.len() {
            if self.vms[at].taking.is_some() {
                self.input(at, Input::Connected);
            }
        }
    }

    /// Takes in a part of an attachment; when all of a VM are here, its clones start.
    ///
    /// # Errors
    /// [`GuestError::Protocol`].
    pub fn handle_attachment(&mut self, part: Attachment) -> Result<(), GuestError> {
        guest(&mut self.vms, part.vm)?.attachments.take(part).map_err(GuestError::Protocol)
    }

    /// Takes in a part of a recorded working set.
    ///
    /// # Errors
    /// [`GuestError::Protocol`].
    pub fn handle_first_touched(&mut self, part: &FirstTouched) -> Result<(), GuestError> {
        let vm = guest(&mut self.vms, part.vm)?;
        vm.working_set.take(part, vm.image.page_count()).map_err(GuestError::Protocol)?;
        if let Some(pages) = vm.working_set.whole() {
            vm.wants.set_working_set(pages);
        }
        Ok(())
    }

    /// Whether clones wait for their working set: then [`Guests::poll`] is due soon, whatever happens.
    #[must_use]
    pub fn is_waiting_to_start(&self) -> bool {
        self.vms.iter().any(|vm| vm.clones.is_empty() && vm.working_set.is_awaited())
    }

    /// Places an answer to page faults.
    ///
    /// # Errors
    /// [`GuestError::Protocol`], [`GuestError::Place`].
    pub fn handle_pages(&mut self, body: &[u8]) -> Result<(), GuestError> {
        let decoded = decode_block(body, &BlockLimits::default(), &mut self.scratch)
            .map_err(|error| GuestError::Protocol(format!("an answer cannot be read: {error}")))?;
        let contents = decoded.contents.as_ref();
        for run in &decoded.runs {
            let ContentRun { vm, pfn, content, count } = *run;
            let from = content as usize * pages::PAGE_SIZE;
            let bytes = &contents[from..from + count as usize * pages::PAGE_SIZE];
            let placed = image(&self.vms, vm)?.place(pfn.0, bytes, Origin::Sender);
            placed.map_err(|source| GuestError::Place { vm: vm.0, source })?;
        }
        for placed in &decoded.uniform {
            let (vm, run) = (placed.vm, &placed.run);
            let placed = image(&self.vms, vm)?.place_word(run.first.0, run.count, run.word, Origin::Sender);
            placed.map_err(|source| GuestError::Place { vm: vm.0, source })?;
        }
        decoded.recycle(&mut self.scratch);
        Ok(())
    }

    /// The next message to the sender.
    pub fn poll(&mut self, now: Duration) -> Option<ToSender> {
        self.take_events();
        self.start_ready(now);
        // What guests wait for goes before what is told of them.
        let want = self.vms.iter_mut().find_map(|vm| vm.wants.poll(&vm.image, now));
        if let Some(want) = want {
            return Some(ToSender::Want(want));
        }
        self.find_complete();
        self.messages.pop_front()
    }

    /// Whether every clone runs on memory that is whole, or is over: nobody depends on the sender any more.
    #[must_use]
    pub fn is_independent(&self) -> bool {
        self.vms.iter().all(|vm| {
            if let Some(taking) = &vm.taking {
                return taking.is_settled(vm.image.is_complete());
            }
            vm.clones.len() == vm.offer.clones.len()
                && vm.clones.iter().all(|clone| match clone.state {
                    State::Starting => false,
                    State::Running => vm.image.is_complete(),
                    State::Over => true,
                })
        })
    }

    /// Whether a clone is starting or running.
    #[must_use]
    pub fn any_alive(&self) -> bool {
        self.vms.iter().flat_map(|vm| &vm.clones).any(|clone| clone.state != State::Over)
    }

    /// Whether a VM was to move here and is still its source's.
    #[must_use]
    pub fn any_undecided(&self) -> bool {
        self.vms
            .iter()
            .filter_map(|vm| vm.taking.as_ref())
            .any(|taking| !taking.is_ours() && !taking.is_over())
    }

    /// Pages that are missing will never come: clones that need them are ended by their programs.
    ///
    /// VMs that were handed over to this host wait on: their pages are at their source, however long it takes.
    pub fn lose(&self, reason: &str) {
        let ours = |vm: &&GuestVm| vm.taking.as_ref().is_some_and(Taking::is_ours);
        let lost = self.vms.iter().filter(|vm| !vm.image.is_complete() && !ours(vm));
        lost.for_each(|vm| vm.image.lose(reason));
    }

    /// Their transfer is over: this process is no more urgent than they are.
    pub fn settle_down(&mut self) {
        self.raised = None;
    }

    /// Takes in what became of clones, with no sender to tell.
    pub fn tend(&mut self) {
        self.take_events();
        self.messages.clear();
    }
}

impl Drop for Guests {
    /// Ends the clones, and waits for their threads: their programs look at their wards some times a second.
    fn drop(&mut self) {
        self.lose("the receiver ends");
        let clones = || self.vms.iter().flat_map(|vm| &vm.clones);
        clones().for_each(|clone| clone.ward.stop());
        self.vms.iter_mut().for_each(GuestVm::join);
    }
}

fn launcher(offer: &GuestOffer, config: &GuestConfig) -> Result<Arc<dyn Launch>, GuestError> {
    let launcher = config.launchers.iter().find(|launcher| launcher.kind() == offer.kind);
    launcher.cloned().ok_or_else(|| GuestError::Kind { kind: offer.kind.clone() })
}

fn guest(vms: &mut [GuestVm], vm: u16) -> Result<&mut GuestVm, GuestError> {
    let found = vms.iter_mut().find(|guest| guest.offer.vm == vm);
    found.ok_or_else(|| GuestError::Protocol(format!("a word for VM {vm}, which is no guest")))
}

fn image(vms: &[GuestVm], vm: VmId) -> Result<&LazyImage, GuestError> {
    let found = vms.iter().find(|guest| guest.offer.vm == vm.0).map(|guest| &*guest.image);
    found.ok_or_else(|| GuestError::Protocol(format!("pages of VM {}, which is no guest", vm.0)))
}
