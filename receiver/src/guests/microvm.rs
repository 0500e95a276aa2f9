//! Clones of the project's own micro-VM ([`vmm::microvm`]): for trials and tests, in this process.

use super::words::{LOOK, figures, words};
use super::{CloneSpec, Launch, Ward};
use nix::sys::stat::fstat;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vmm::lazy::LazyImage;
use vmm::memory::GuestMemory;
use vmm::microvm::{Identity, MicroVm, Report, VmState, available};
use vmm::uffd::{
    Attachment, Backing, Guard, PageServer, Region, ServedVm, Uffd, VmStatus, private_views_are_safe,
};

/// How often a clone that has just been resumed is looked at.
const GLANCE: Duration = Duration::from_millis(1);
/// The first instruction may wait for the network.
const FIRST_EXIT_MAX: Duration = Duration::from_secs(30);

/// Launches micro-VMs. One page server answers the faults of all of them.
pub struct MicroVms {
    server: PageServer,
}

impl MicroVms {
    /// A launcher, if this machine has KVM and userfaultfd.
    ///
    /// # Errors
    /// In words, what is missing.
    pub fn new() -> Result<Self, String> {
        available().map_err(|error| words(&error))?;
        Uffd::open(Backing::Anonymous).map_err(|error| words(&error))?;
        Ok(Self { server: PageServer::start().map_err(|error| words(&error))? })
    }

    fn start(&self, spec: &CloneSpec) -> Result<(MicroVm, ServedVm), String> {
        let state = spec.attachment("state").ok_or("it has no attachment `state`")?;
        let state = VmState::from_bytes(state).map_err(|error| words(&error))?;
        let len = spec.image.page_count() as usize * pages::PAGE_SIZE;
        let backing = backing(&spec.image);
        let memory = match backing {
            Backing::PrivateView => GuestMemory::private_file(spec.image.file(), len),
            _ => GuestMemory::anonymous(len),
        };
        let memory = Arc::new(memory.map_err(|error| words(&error))?);
        // Before KVM sees the memory: nothing of it may be touched unserved.
        let uffd = Uffd::for_memory(&memory, backing).map_err(|error| words(&error))?;
        // 0 is the original.
        let identity = Identity(u64::from(spec.clone) + 1);
        let mut vm =
            MicroVm::restore(&state, Arc::clone(&memory), identity).map_err(|error| words(&error))?;
        let mut attachment = Attachment::new(
            &spec.name,
            uffd,
            Arc::clone(&spec.image),
            vec![Region::whole(&memory)],
            backing,
            Guard::Hook(Box::new(vm.ender())),
        );
        attachment.first = spec.working_set.to_vec();
        let served = self.server.attach(attachment).map_err(|error| words(&error))?;
        vm.resume().map_err(|error| words(&error))?;
        Ok((vm, served))
    }
}

impl Launch for MicroVms {
    fn kind(&self) -> &'static str {
        "microvm"
    }

    fn check(&self, _fingerprint: &str, attachments: &[&str]) -> Result<(), String> {
        // The state says itself whether this CPU can take it, when it is restored.
        if attachments == ["state"] {
            return Ok(());
        }
        Err(format!(
            "it needs the attachment `state` and no other; these are offered: {}",
            attachments.join(", ")
        ))
    }

    fn run(&self, spec: &CloneSpec, ward: &Ward) -> Result<(), String> {
        let (vm, served) = self.start(spec)?;
        let resumed = Instant::now();
        let mut told = false;
        while !ward.is_stopped() {
            if let VmStatus::Ended(reason) = served.status() {
                return Err(reason);
            }
            if let Some(reason) = vm.console().ended() {
                return Err(reason);
            }
            let bad = vm.console().bad_reports();
            if bad > 0 {
                return Err(format!("its guest found {bad} wrong pages in its memory"));
            }
            if !told && vm.first_exit().is_some() {
                told = true;
                ward.running();
            }
            if !told && resumed.elapsed() > FIRST_EXIT_MAX {
                return Err(format!("no instruction for {} s", FIRST_EXIT_MAX.as_secs()));
            }
            ward.note_faults(figures(&served.stats()));
            ward.note_status(status(&vm));
            std::thread::sleep(if told { LOOK } else { GLANCE });
        }
        Ok(())
    }
}

/// Clones of a host share clean pages, where shared memory surely comes in small pages.
fn backing(image: &LazyImage) -> Backing {
    match private_views_are_safe() {
        Ok(()) if !is_on_huge_tmpfs(image) => Backing::PrivateView,
        _ => Backing::Anonymous,
    }
}

/// Whether the image's file is on a tmpfs that was mounted to use huge pages (proc(5), `mountinfo`; tmpfs(5)).
fn is_on_huge_tmpfs(image: &LazyImage) -> bool {
    let Ok(at) = fstat(image.file()) else { return true };
    let device = format!("{}:{}", nix::sys::stat::major(at.st_dev), nix::sys::stat::minor(at.st_dev));
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    // A memfd is on the kernel's own mount, which no list has; its settings were looked at before.
    let mut options = mounts.lines().filter_map(|line| {
        let of = line.split(' ').nth(2)?;
        (of == device).then(|| line.rsplit(' ').next().unwrap_or_default())
    });
    options
        .any(|options| options.split(',').any(|option| option.starts_with("huge=") && option != "huge=never"))
}

fn status(vm: &MicroVm) -> String {
    let console = vm.console();
    let ticks = console.since(console.next_index().saturating_sub(1)).into_iter().rev().find_map(|seen| {
        match seen.report {
            Report::Tick { number, .. } => Some(number),
            _ => None,
        }
    });
    match ticks {
        Some(number) => format!("tick {number}, {} wrong pages", console.bad_reports()),
        None => "no tick yet".to_owned(),
    }
}
