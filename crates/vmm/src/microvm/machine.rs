//! The VM: KVM's objects, the vCPU's thread, and what can be asked of it.

use super::device::{Control, Identity, Workload};
use super::runner::{Command, Reply, Runner, Shared, install_kick};
use super::state::{IRQCHIPS, VmState};
use super::{Console, MicroVmError, guest, kvm, vcpu};
use crate::memory::GuestMemory;
use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_irqchip, kvm_pit_config, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const MEMORY_MIB_MIN: u64 = 9;
const MEMORY_MIB_MAX: u64 = 3072;
/// How long a vCPU may take to answer; only one that waits for a page takes more than milliseconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a page server waits for a vCPU to end.
const END_TIMEOUT: Duration = Duration::from_millis(50);
/// How often a vCPU that has not answered is interrupted again: a signal that arrives just before it enters the
/// guest is lost.
const KICK_INTERVAL: Duration = Duration::from_millis(1);
/// KVM needs three pages for itself on older Intel machines, anywhere outside of the guest's memory.
const TSS_ADDRESS: usize = 0xfffb_d000;

/// A new VM.
#[derive(Copy, Clone, Debug)]
pub struct Config {
    /// Memory in MiB, 9–3,072; the first 8 are the guest's own, the others its pattern.
    pub memory_mib: u64,
    /// Decides the pattern.
    pub seed: u64,
    /// Percent of the pattern's pages that are zero.
    pub zero_percent: u8,
    /// Percent that hold one of 64 contents, the same in all guests.
    pub repeated_percent: u8,
    /// MiB at the end that the guest leaves alone.
    pub unused_mib: u64,
    /// What the guest does.
    pub workload: Workload,
}

impl Default for Config {
    /// 32 MiB, seed 1, 30 % zero and 10 % repeated, the default workload.
    fn default() -> Self {
        Self {
            memory_mib: 32,
            seed: 1,
            zero_percent: 30,
            repeated_percent: 10,
            unused_mib: 0,
            workload: Workload::default(),
        }
    }
}

/// Whether micro-VMs can run here.
///
/// # Errors
///
/// `/dev/kvm` is missing or may not be opened.
pub fn available() -> Result<(), MicroVmError> {
    open_kvm().map(drop)
}

fn open_kvm() -> Result<Kvm, MicroVmError> {
    Kvm::new().map_err(|error| MicroVmError::NoKvm(io::Error::from_raw_os_error(error.errno())))
}

/// A micro-VM. Made paused or by [`boot`](Self::boot) running; ends when dropped.
#[derive(Debug)]
pub struct MicroVm {
    vm: VmFd,
    memory: Arc<GuestMemory>,
    shared: Arc<Shared>,
    commands: Sender<Command>,
    paused: bool,
    thread: Option<JoinHandle<()>>,
}

impl MicroVm {
    /// Makes a VM with anonymous memory and starts the guest.
    ///
    /// # Errors
    ///
    /// No KVM, a memory size out of range, or a call that the system refuses.
    pub fn boot(config: &Config) -> Result<Self, MicroVmError> {
        let bytes = config.memory_mib.saturating_mul(1 << 20);
        Self::boot_on(config, Arc::new(GuestMemory::anonymous(checked_size(bytes)?)?))
    }

    /// As [`boot`](Self::boot), on memory that holds zeros, as a shared file does that is to be handed over. Its length counts,
    /// not the configuration's.
    ///
    /// # Errors
    ///
    /// As `boot`.
    pub fn boot_on(config: &Config, memory: Arc<GuestMemory>) -> Result<Self, MicroVmError> {
        let mib = checked_size(memory.len() as u64)? as u64 >> 20;
        let command_line = format!(
            "mb={} seed={} zero={} dup={}",
            mib.saturating_sub(config.unused_mib),
            config.seed,
            config.zero_percent,
            config.repeated_percent
        );
        let entry = guest::load(&memory, &command_line)?;
        let (kvm_fd, vm) = machine(&memory)?;
        let cpu = vm.create_vcpu(0).map_err(kvm("make a vCPU"))?;
        vcpu::start(&kvm_fd, &cpu, &entry)?;
        let mut made = Self::around(kvm_fd, vm, cpu, memory, Identity(0), config.workload)?;
        made.resume()?;
        Ok(made)
    }

    /// Makes a paused VM that continues `state` on the given memory, under a new identity.
    ///
    /// The memory needs to hold nothing yet: pages are touched when the guest touches them, so it may be behind a
    /// userfaultfd.
    ///
    /// # Errors
    ///
    /// No KVM, memory of another length than the state's, or a state that this host's KVM does not take.
    pub fn restore(
        state: &VmState,
        memory: Arc<GuestMemory>,
        identity: Identity,
    ) -> Result<Self, MicroVmError> {
        let given = memory.len() as u64;
        if given != state.memory_bytes {
            return Err(MicroVmError::MemoryMismatch { state: state.memory_bytes, given });
        }
        checked_size(given)?;
        let (kvm_fd, vm) = machine(&memory)?;
        for chip in &state.irqchips {
            vm.set_irqchip(chip).map_err(kvm("set an interrupt controller"))?;
        }
        vm.set_pit2(&state.pit).map_err(kvm("set the timer"))?;
        // The flags say how the clock was read; only its value is written.
        let clock = kvm_bindings::kvm_clock_data { flags: 0, ..state.clock };
        vm.set_clock(&clock).map_err(kvm("set the clock"))?;
        let cpu = vm.create_vcpu(0).map_err(kvm("make a vCPU"))?;
        vcpu::restore(&cpu, &state.vcpu)?;
        Self::around(kvm_fd, vm, cpu, memory, identity, state.workload)
    }

    fn around(
        kvm_fd: Kvm,
        vm: VmFd,
        cpu: VcpuFd,
        memory: Arc<GuestMemory>,
        identity: Identity,
        workload: Workload,
    ) -> Result<Self, MicroVmError> {
        install_kick()?;
        // Another epoch than any that the captured guest has seen, so that it looks at its identity.
        let epoch = fresh_epoch();
        let shared = Arc::new(Shared {
            console: Console::default(),
            control: Mutex::new(Control { identity, workload, epoch }),
            attention: AtomicBool::new(false),
            first_exit: Mutex::new(None),
            exits: AtomicU64::new(0),
            thread: Mutex::new(None),
        });
        let (commands, received) = mpsc::channel();
        let runner = Runner {
            kvm: kvm_fd,
            cpu,
            shared: shared.clone(),
            received,
            running: false,
            rest_us: None,
            memory: memory.clone(),
        };
        let thread = std::thread::Builder::new()
            .name(format!("vcpu-{}", identity.0))
            .spawn(move || runner.run())
            .map_err(|source| MicroVmError::Kvm { action: "start the vCPU's thread", source })?;
        Ok(Self { vm, memory, shared, commands, paused: true, thread: Some(thread) })
    }

    /// Lets the vCPU run. Nothing happens if it runs.
    ///
    /// # Errors
    ///
    /// The VM has ended.
    pub fn resume(&mut self) -> Result<(), MicroVmError> {
        *self.shared.first_exit.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.ask("run", Command::Resume)?;
        self.paused = false;
        Ok(())
    }

    /// Stops the vCPU between two instructions, its last port access completed.
    ///
    /// # Errors
    ///
    /// It has ended, or does not answer for ten seconds, as one that waits for a page.
    pub fn pause(&mut self) -> Result<(), MicroVmError> {
        self.ask("pause", Command::Pause)?;
        self.paused = true;
        Ok(())
    }

    /// Takes the state of the paused VM. Its memory is [`memory`](Self::memory).
    ///
    /// # Errors
    ///
    /// It runs, has ended, or KVM does not give its state.
    pub fn capture(&self) -> Result<VmState, MicroVmError> {
        if !self.paused {
            return Err(MicroVmError::Running);
        }
        let vcpu = *self.ask("give its state", Command::Capture)?;
        let mut irqchips = [kvm_irqchip::default(); IRQCHIPS];
        for (chip, id) in irqchips.iter_mut().zip(0..) {
            chip.chip_id = id;
            self.vm.get_irqchip(chip).map_err(kvm("read an interrupt controller"))?;
        }
        Ok(VmState {
            memory_bytes: self.memory.len() as u64,
            workload: self.workload(),
            vcpu,
            irqchips,
            pit: self.vm.get_pit2().map_err(kvm("read the timer"))?,
            clock: self.vm.get_clock().map_err(kvm("read the clock"))?,
        })
    }

    /// What the guest says.
    #[must_use]
    pub fn console(&self) -> &Console {
        &self.shared.console
    }

    /// Its memory.
    #[must_use]
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// What the guest was told to do.
    #[must_use]
    pub fn workload(&self) -> Workload {
        self.shared.control.lock().unwrap_or_else(PoisonError::into_inner).workload
    }

    /// Tells the guest to do something else; it looks after each tick.
    pub fn set_workload(&self, workload: Workload) {
        let mut control = self.shared.control.lock().unwrap_or_else(PoisonError::into_inner);
        control.workload = workload;
        control.epoch = control.epoch.wrapping_add(1);
    }

    /// When the guest first left guest mode after the latest resume: from then on it has run for certain.
    #[must_use]
    pub fn first_exit(&self) -> Option<Instant> {
        *self.shared.first_exit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often the vCPU left guest mode for this program since the VM was made.
    #[must_use]
    pub fn exits(&self) -> u64 {
        self.shared.exits.load(Ordering::Relaxed)
    }

    /// What ends this VM from any thread, for a reason that its console tells: no vCPU enters the guest any more when the
    /// call returns, even if it waits for a page.
    pub fn ender(&self) -> impl FnOnce(&str) + Send + 'static {
        let (shared, commands) = (self.shared.clone(), self.commands.clone());
        move |reason| {
            // A thread that is gone has ended already.
            let _ = commands.send(Command::Stop(reason.to_owned()));
            let since = Instant::now();
            while shared.console.ended().is_none() && since.elapsed() < END_TIMEOUT {
                // One that waits for a page where signals do not reach it finds this one before it enters the guest.
                shared.kick();
                std::thread::sleep(KICK_INTERVAL);
            }
        }
    }

    fn ask<T>(
        &self,
        action: &'static str,
        command: impl FnOnce(Reply<T>) -> Command,
    ) -> Result<T, MicroVmError> {
        let (reply, answer) = mpsc::channel();
        let since = Instant::now();
        // A thread that is gone has said why on the console.
        let _ = self.commands.send(command(reply));
        loop {
            self.shared.kick();
            match answer.recv_timeout(KICK_INTERVAL) {
                Ok(result) => return result,
                Err(RecvTimeoutError::Disconnected) => {
                    let reason = self.console().ended().unwrap_or_else(|| "its thread panicked".into());
                    return Err(MicroVmError::Ended { reason });
                }
                Err(RecvTimeoutError::Timeout) if since.elapsed() > ANSWER_TIMEOUT => {
                    return Err(MicroVmError::NoAnswer { action, waited: since.elapsed() });
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}

impl Drop for MicroVm {
    fn drop(&mut self) {
        let _ = self.commands.send(Command::Stop("it was stopped".into()));
        let since = Instant::now();
        let Some(thread) = &self.thread else { return };
        while !thread.is_finished() && since.elapsed() < ANSWER_TIMEOUT {
            self.shared.kick();
            std::thread::sleep(KICK_INTERVAL);
        }
        // One that still waits for a page is left to it: its thread holds the memory.
        if self.thread.as_ref().is_some_and(JoinHandle::is_finished)
            && let Some(thread) = self.thread.take()
        {
            // A panic in it was reported by the panic handler already.
            let _ = thread.join();
        }
    }
}

fn checked_size(bytes: u64) -> Result<usize, MicroVmError> {
    let whole = bytes.is_multiple_of(1 << 20);
    if !whole || !(MEMORY_MIB_MIN..=MEMORY_MIB_MAX).contains(&(bytes >> 20)) {
        return Err(MicroVmError::MemorySize { bytes, min: MEMORY_MIB_MIN, max: MEMORY_MIB_MAX });
    }
    Ok(usize::try_from(bytes).expect("3 GiB fit into an address"))
}

/// A VM with interrupt controllers, timer and memory, but no vCPU yet.
fn machine(memory: &GuestMemory) -> Result<(Kvm, VmFd), MicroVmError> {
    let kvm_fd = open_kvm()?;
    let vm = kvm_fd.create_vm().map_err(kvm("make a VM"))?;
    vm.set_tss_address(TSS_ADDRESS).map_err(kvm("place its task state"))?;
    vm.create_irq_chip().map_err(kvm("make interrupt controllers"))?;
    let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..kvm_pit_config::default() };
    vm.create_pit2(pit).map_err(kvm("make a timer"))?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: memory.len() as u64,
        userspace_addr: memory.address(),
    };
    // SAFETY: the region is a mapping of this length, and `MicroVm` holds it until its vCPU has ended.
    unsafe { vm.set_user_memory_region(region) }.map_err(kvm("take the guest's memory"))?;
    Ok((kvm_fd, vm))
}

/// Differs between any two VMs of a process, and almost surely between processes.
fn fresh_epoch() -> u32 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let count = NEXT.fetch_add(1, Ordering::Relaxed).to_le_bytes();
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |now| now.subsec_nanos());
    let process = std::process::id();
    now.rotate_left(7)
        ^ process.rotate_left(16)
        ^ u32::from_le_bytes([count[0], count[1], count[2], count[3]])
}
