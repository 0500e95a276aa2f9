//! Clones under stock QEMU ([`vmm::qemu`]): which machines a host may start is told by its own configuration; a sender only
//! brings memory and device state.
//!
//! ```text
//! offer ── check: does a machine fit the fingerprint? ──▶ prepare: QEMU -incoming defer ──┐ waits
//! attachment `state` ─────────────────────────────────▶ run: Emitter (or template) ◀──────┘ faults ─▶ LazyImage::demand
//! ```

mod machine;
mod moving;
mod rehearse;
mod run;
mod waiting;

pub use machine::{BaseDisk, MemoryKind, QemuMachine};

use super::places::Places;
use super::words::words;
use super::{CloneSpec, Launch, Ward};
use machine::Machine;
use moving::{Hypervisor, Moving};
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use vmm::lazy::LazyImage;
use vmm::qemu::emit::TemplateVm;
use vmm::qemu::stream::Block;
use vmm::qemu::{DeviceState, Fingerprint, Qmp};
use waiting::{Ready, Stock};

/// What is needed beside the memory: [`vmm::qemu::DeviceState::encode`].
const STATE: &str = "state";

/// How long the monitor of a QEMU that an earlier receiver left may take to answer.
const ANSWERS_WITHIN: std::time::Duration = std::time::Duration::from_secs(5);

/// A QEMU that is being started, and waits then.
type Warm = JoinHandle<Result<Ready, String>>;

/// Launches VMs under QEMU.
pub struct Qemus {
    /// Before the machines, as it stocks their shelves until it is dropped.
    stock: Option<Stock>,
    machines: Vec<Arc<Machine>>,
    places: Places,
    /// QEMUs that wait, by their image's address and their clone's number: several transfers may be under way.
    warm: Mutex<HashMap<(usize, u32), Warm>>,
}

impl Qemus {
    /// A launcher of these machines. Each is started once, to learn what it can take and that it can be started at all.
    /// Clones' files go to folders of their own in `clones`, which stay: a guest's disk may be there.
    ///
    /// # Errors
    /// In words: the machine, and what QEMU said.
    pub fn new(machines: &[QemuMachine], clones: &Path) -> Result<Self, String> {
        Self::of(machines, clones, Machine::probe)
    }

    fn of(
        machines: &[QemuMachine],
        clones: &Path,
        probe: fn(&QemuMachine, &Path) -> Result<Machine, String>,
    ) -> Result<Self, String> {
        if machines.is_empty() {
            return Err("no machine is told: `--qemu FILE` has QEMU's arguments (docs/qemu.md)".into());
        }
        let places = Places::new(clones)?;
        waiting::sweep(places.root());
        let probed = machines.iter().map(|machine| probe(machine, clones).map(Arc::new));
        Ok(Self { stock: None, machines: probed.collect::<Result<_, _>>()?, places, warm: Mutex::default() })
    }

    /// Has as many QEMUs wait as the machines want ([`QemuMachine::warm`]), from now on.
    ///
    /// # Errors
    /// In words: one does not start.
    pub fn keep_warm(&mut self) -> Result<(), String> {
        if self.stock.is_none() && self.machines.iter().any(|machine| machine.wanted() > 0) {
            self.stock = Some(Stock::keep(self.machines.clone(), self.places.root())?);
        }
        Ok(())
    }

    /// The first machine that can take the VM.
    fn machine_for(&self, fingerprint: &str) -> Result<&Arc<Machine>, String> {
        let offered = Fingerprint::of_offer(fingerprint).map_err(|error| words(&error))?;
        let mut reasons = Vec::new();
        for machine in &self.machines {
            match machine.fits(&offered) {
                Ok(()) => return Ok(machine),
                Err(reason) => reasons.push(format!("machine {}: {reason}", machine.name())),
            }
        }
        Err(reasons.join("; "))
    }

    fn warm(&self) -> MutexGuard<'_, HashMap<(usize, u32), Warm>> {
        self.warm.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_warm(&self, spec: &CloneSpec) -> Option<Warm> {
        self.warm().remove(&key(spec))
    }

    /// Starts a QEMU that waits for the clone, on a thread; `shared`: with the image for its memory, this block of it.
    fn start_warm(
        &self,
        machine: &Arc<Machine>,
        spec: &CloneSpec,
        shared: Option<Block>,
    ) -> Result<Warm, String> {
        let place = self.places.take(&spec.name)?;
        let (id, dir) = (place.id.clone(), place.dir.clone());
        let (machine, image) = (Arc::clone(machine), Arc::clone(&spec.image));
        let standing = spec.moves.is_some();
        std::thread::Builder::new()
            .name(format!("warm-{}", spec.clone))
            .spawn(move || {
                let shared = shared.as_ref().map(|block| (&*image, block));
                machine.wait_for_vm(&id, &dir, shared, standing)
            })
            .map_err(|error| format!("cannot start a thread: {error}"))
    }
}

/// The device state among a VM's attachments.
fn state_of(attachments: &[(String, Vec<u8>)]) -> Result<DeviceState, String> {
    let found = attachments.iter().find(|(name, _)| name == STATE);
    let (_, state) = found.ok_or_else(|| format!("it has no attachment `{STATE}`"))?;
    DeviceState::decode(state).map_err(|error| words(&error))
}

fn key(spec: &CloneSpec) -> (usize, u32) {
    let image: *const LazyImage = Arc::as_ptr(&spec.image);
    (image.addr(), spec.clone)
}

impl Launch for Qemus {
    fn kind(&self) -> &'static str {
        "qemu"
    }

    fn check(&self, fingerprint: &str, attachments: &[&str]) -> Result<(), String> {
        if attachments != [STATE] {
            let offered = attachments.join(", ");
            return Err(format!(
                "it needs the attachment `{STATE}` and no other; these are offered: {offered}"
            ));
        }
        self.machine_for(fingerprint).map(drop)
    }

    fn can_move(&self) -> bool {
        true
    }

    fn end_undecided(&self, monitor: &str) -> Result<(), String> {
        vmm::qemu::launch::end_listening(Path::new(monitor)).map_err(|error| words(&error))
    }

    fn prepare(&self, fingerprint: &str, spec: &CloneSpec) {
        // What fails here fails again, and is told, when the clone is run.
        if spec.moves.as_ref().is_none_or(|moves| moves.recover.is_none())
            && let Ok(machine) = self.machine_for(fingerprint)
            // Where in the image the memory stands that is to be shared is told by the state.
            && (machine.memory() == MemoryKind::Private || spec.moves.is_some())
            && let Ok(warm) = self.start_warm(machine, spec, None)
        {
            self.warm().insert(key(spec), warm);
        }
    }

    fn abandon(&self, spec: &CloneSpec) {
        if let Some(warm) = self.take_warm(spec) {
            // Dropped, it ends. A panic was reported by the thread.
            drop(warm.join());
        }
    }

    fn run(&self, spec: &CloneSpec, ward: &Ward) -> Result<(), String> {
        let outline = spec.moves.as_ref().and_then(|moves| moves.outline.as_deref());
        let state = match outline {
            Some(outline) => DeviceState::decode(outline).map_err(|error| words(&error))?,
            None => state_of(&spec.attachments)?,
        };
        let machine = self.machine_for(&state.offer())?;
        if let Some(moves) = &spec.moves {
            let vm = match &moves.recover {
                Some(monitor) => {
                    let qmp = Qmp::connect(monitor, ANSWERS_WITHIN);
                    Hypervisor::Left(qmp.map_err(|error| format!("its QEMU is gone: {}", words(&error)))?)
                }
                None => match self.take_warm(spec) {
                    Some(warm) => Hypervisor::own(warm)?,
                    None => Hypervisor::own(self.start_warm(machine, spec, None)?)?,
                },
            };
            return Moving { spec, ward, vm, state: Arc::new(state) }.run();
        }
        let warm = match self.take_warm(spec) {
            Some(warm) => warm,
            None => {
                let shared = machine.memory() == MemoryKind::Shared;
                let block = shared.then(|| TemplateVm::main_block(&state).clone());
                self.start_warm(machine, spec, block)?
            }
        };
        run::run(spec, ward, machine, Arc::new(state), warm)
    }
}
