//! The vCPU's thread: enters the guest, answers its port accesses, and obeys the VM's owner.

use super::device::{self, Control};
use super::state::VcpuState;
use super::{Console, MicroVmError, vcpu};
use crate::memory::GuestMemory;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, Once, OnceLock, PoisonError};
use std::time::Instant;

const CONSOLE_PORT: u16 = 0x3f8;

pub(super) type Reply<T> = Sender<Result<T, MicroVmError>>;

pub(super) enum Command {
    Resume(Reply<()>),
    Pause(Reply<()>),
    Capture(Reply<Box<VcpuState>>),
    /// Ends the vCPU, for this reason.
    Stop(String),
}

/// What the vCPU's thread and the VM's owner both see.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) console: Console,
    pub(super) control: Mutex<Control>,
    /// A command waits.
    pub(super) attention: AtomicBool,
    /// The first exit after the latest [`MicroVm::resume`]: the guest has run.
    pub(super) first_exit: Mutex<Option<Instant>>,
    pub(super) exits: AtomicU64,
    /// The vCPU's thread, as long as it lives.
    pub(super) thread: Mutex<Option<libc::pthread_t>>,
}

impl Shared {
    /// Takes the vCPU out of the guest, so that it looks at its commands. The signal is lost if it is just about to enter:
    /// call again until it has answered.
    pub(super) fn kick(&self) {
        self.attention.store(true, Ordering::SeqCst);
        if let Some(thread) = *self.thread.lock().unwrap_or_else(PoisonError::into_inner) {
            // SAFETY: the thread takes its id out before it ends, and cannot while the lock is held; the signal has a
            // handler that does nothing.
            unsafe { libc::pthread_kill(thread, kick_signal()) };
        }
    }
}

/// The vCPU's thread.
pub(super) struct Runner {
    pub(super) kvm: Kvm,
    pub(super) cpu: VcpuFd,
    pub(super) shared: Arc<Shared>,
    pub(super) received: Receiver<Command>,
    pub(super) running: bool,
    /// The guest wants to rest, for so many microseconds.
    pub(super) rest_us: Option<u32>,
    /// Held so that it stays mapped as long as a vCPU can run on it.
    #[expect(dead_code, reason = "it is there to be held")]
    pub(super) memory: Arc<GuestMemory>,
}

impl Runner {
    pub(super) fn run(mut self) {
        // SAFETY: has no preconditions.
        let this = unsafe { libc::pthread_self() };
        *self.shared.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(this);
        let reason = loop {
            if !self.running || self.shared.attention.swap(false, Ordering::SeqCst) {
                match self.obey() {
                    Ok(()) => continue,
                    Err(reason) => break reason,
                }
            }
            self.rest();
            if let Err(reason) = self.enter() {
                break reason;
            }
        };
        *self.shared.thread.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.shared.console.end(reason);
    }

    /// Carries out commands: all that are there, and if the vCPU does not run, waits for one.
    fn obey(&mut self) -> Result<(), String> {
        let first = if self.running {
            match self.received.try_recv() {
                Ok(command) => command,
                Err(mpsc::TryRecvError::Empty) => return Ok(()),
                Err(mpsc::TryRecvError::Disconnected) => return Err("its owner is gone".into()),
            }
        } else {
            self.received.recv().map_err(|_| "its owner is gone")?
        };
        match first {
            Command::Resume(reply) => {
                self.running = true;
                let _ = reply.send(Ok(()));
            }
            Command::Pause(reply) => {
                if self.running {
                    self.complete_io()?;
                }
                self.running = false;
                let _ = reply.send(Ok(()));
            }
            Command::Capture(reply) => {
                let _ = reply.send(vcpu::capture(&self.kvm, &self.cpu).map(Box::new));
            }
            Command::Stop(reason) => return Err(reason),
        }
        Ok(())
    }

    /// What the guest asked for instead of HLT. A kick ends it early.
    fn rest(&mut self) {
        let Some(us) = self.rest_us.take() else { return };
        if self.shared.attention.load(Ordering::SeqCst) {
            return;
        }
        let nanos = libc::c_long::from(us.min(device::REST_US_MAX - 1).cast_signed()) * 1000;
        let time = libc::timespec { tv_sec: 0, tv_nsec: nanos };
        // SAFETY: reads one timespec; an early end by a signal is what it is for.
        unsafe { libc::nanosleep(&raw const time, std::ptr::null_mut()) };
    }

    /// A port access is carried out in KVM when the vCPU is entered next: without this, a captured vCPU would do
    /// it again, or never see what it read.
    fn complete_io(&mut self) -> Result<(), String> {
        self.cpu.set_kvm_immediate_exit(1);
        let result = self.enter();
        self.cpu.set_kvm_immediate_exit(0);
        result
    }

    fn enter(&mut self) -> Result<(), String> {
        let exit = self.cpu.run();
        match exit {
            Ok(VcpuExit::IoOut(CONSOLE_PORT, bytes)) => self.shared.console.write(bytes),
            Ok(VcpuExit::IoIn(port, into)) => {
                let control = *self.shared.control.lock().unwrap_or_else(PoisonError::into_inner);
                let value = control.read(port).to_le_bytes();
                for (byte, value) in into.iter_mut().zip(value) {
                    *byte = value;
                }
            }
            Ok(VcpuExit::IoOut(device::REST, bytes)) => {
                self.rest_us = bytes.first_chunk().map(|us| u32::from_le_bytes(*us))
            }
            // Ports and addresses without a device: writes are lost.
            Ok(VcpuExit::IoOut(..) | VcpuExit::MmioWrite(..)) => {}
            Ok(VcpuExit::MmioRead(_, into)) => into.fill(0xff),
            Ok(VcpuExit::Intr) => return Ok(()),
            Ok(exit) => return Err(format!("the vCPU left the guest for good: {exit:?}")),
            Err(error) if [libc::EINTR, libc::EAGAIN].contains(&error.errno()) => return Ok(()),
            Err(error) => return Err(format!("KVM_RUN: {error}")),
        }
        if self.shared.exits.fetch_add(1, Ordering::Relaxed) == 0 || self.first_exit_is_unset() {
            *self.shared.first_exit.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        }
        Ok(())
    }

    fn first_exit_is_unset(&self) -> bool {
        self.shared.first_exit.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }
}

/// The signal that takes a vCPU out of the guest.
fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN() + 5
}

extern "C" fn ignore(_: libc::c_int) {}

/// Gives the kick signal a handler that does nothing, without restart of system calls: that is all KVM_RUN needs.
pub(super) fn install_kick() -> Result<(), MicroVmError> {
    static ONCE: Once = Once::new();
    static FAILED: OnceLock<i32> = OnceLock::new();
    ONCE.call_once(|| {
        // SAFETY: an all-zero sigaction is a valid one: no flags, an empty mask.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = ignore as *const () as usize;
        // SAFETY: `action` is initialised, its handler is a function that touches nothing.
        if unsafe { libc::sigaction(kick_signal(), &action, std::ptr::null_mut()) } != 0 {
            let _ = FAILED.set(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL));
        }
    });
    match FAILED.get() {
        None => Ok(()),
        Some(&error) => Err(MicroVmError::Kvm {
            action: "handle the vCPU's signal",
            source: io::Error::from_raw_os_error(error),
        }),
    }
}
