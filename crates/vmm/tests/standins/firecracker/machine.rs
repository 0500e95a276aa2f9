//! The machine behind the API.

use crate::api::{BackendType, CreateSnapshot, LoadSnapshot, SnapshotType};
use crate::common::{print, words};
use crate::devices::Devices;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use pages::PAGE_SIZE;
use serde_json::json;
use std::fs::File;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use vmm::memory::GuestMemory;
use vmm::microvm::{Config, Identity, MicroVm, VmState, Workload};
use vmm::uffd::{Backing, Uffd};

/// At the end of memory, what the guest does not use: the balloon takes from there. It holds bytes that must not come back.
const BALLOON_MIB: u64 = 8;
const STALE: [u8; PAGE_SIZE] = [0x5a; PAGE_SIZE];
const PAGES_PER_MIB: usize = 256;

#[derive(Default)]
pub(crate) struct Machine {
    pub(crate) devices: Devices,
    pub(crate) memory_mib: u64,
    pub(crate) boot_args: String,
    vm: Option<Arc<std::sync::Mutex<MicroVm>>>,
    memory: Option<Arc<GuestMemory>>,
    /// Held for the process's life, as Firecracker does: the handler's death alone wakes nobody.
    uffd: Option<Uffd>,
    /// The memory as the last snapshot saw it, page by page.
    last: Option<Vec<blake3::Hash>>,
}

impl Machine {
    pub(crate) fn boot(&mut self) -> Result<(), String> {
        let argument = |name: &str, default: u64| {
            let of = |word: &str| word.strip_prefix(name)?.strip_prefix('=')?.parse().ok();
            self.boot_args.split(' ').find_map(of).unwrap_or(default)
        };
        let config = Config {
            memory_mib: self.memory_mib,
            seed: argument("seed", 1),
            unused_mib: BALLOON_MIB,
            workload: Workload { idle_us: 5_000, ..Workload::default() },
            ..Config::default()
        };
        let vm = MicroVm::boot(&config).map_err(words)?;
        let memory = vm.memory().clone();
        for page in 0..BALLOON_MIB * PAGES_PER_MIB as u64 {
            let at = memory.len() as u64 - (page + 1) * PAGE_SIZE as u64;
            memory.write(at, &STALE).map_err(words)?;
        }
        self.run(vm, memory);
        Ok(())
    }

    /// Takes the VM, and writes what its guest says on our standard output.
    fn run(&mut self, vm: MicroVm, memory: Arc<GuestMemory>) {
        let vm = Arc::new(std::sync::Mutex::new(vm));
        print(vm.clone(), std::io::stdout());
        (self.vm, self.memory) = (Some(vm), Some(memory));
    }

    fn vm(&self) -> Result<std::sync::MutexGuard<'_, MicroVm>, String> {
        let vm = self
            .vm
            .as_ref()
            .ok_or("The requested operation is not supported before starting the microVM.")?;
        Ok(vm.lock().expect("no panic while it is held"))
    }

    pub(crate) fn pause(&self) -> Result<(), String> {
        self.vm()?.pause().map_err(words)
    }

    pub(crate) fn resume(&self) -> Result<(), String> {
        self.vm()?.resume().map_err(words)
    }

    pub(crate) fn create_snapshot(&mut self, params: &CreateSnapshot) -> Result<(), String> {
        let state = self.vm()?.capture().map_err(words)?;
        let memory = self.memory.clone().ok_or("no memory")?;
        // The machine's state, the devices, and how long they are.
        let devices = serde_json::to_vec(&self.devices).map_err(words)?;
        let mut bytes = state.to_bytes();
        bytes.extend(&devices);
        bytes.extend((devices.len() as u64).to_le_bytes());
        std::fs::write(&params.snapshot_path, bytes).map_err(words)?;
        let mut options = File::options();
        let file =
            options.write(true).create(true).truncate(false).open(&params.mem_file_path).map_err(words)?;
        let mut page = [0; PAGE_SIZE];
        let mut hashes = Vec::with_capacity(memory.page_count());
        let diff = params.snapshot_type == SnapshotType::Diff;
        if diff {
            file.set_len(0).map_err(words)?;
        }
        file.set_len(memory.len() as u64).map_err(words)?;
        for i in 0..memory.page_count() {
            memory.read_page(i, &mut page);
            let hash = blake3::hash(&page);
            let changed = self.last.as_ref().is_none_or(|last| last[i] != hash);
            if !diff || changed {
                file.write_all_at(&page, (i * PAGE_SIZE) as u64).map_err(words)?;
            }
            hashes.push(hash);
        }
        self.last = Some(hashes);
        file.sync_all().map_err(words)
    }

    pub(crate) fn load_snapshot(&mut self, params: &LoadSnapshot) -> Result<(), String> {
        if self.vm.is_some() {
            return Err(
                "Loading a microVM snapshot not allowed after configuring boot-specific resources.".into()
            );
        }
        let bytes = std::fs::read(&params.snapshot_path).map_err(words)?;
        let (rest, len) = bytes.split_last_chunk().ok_or("the state is too short")?;
        let devices_at =
            u64::from_le_bytes(*len).try_into().ok().and_then(|len: usize| rest.len().checked_sub(len));
        let (bytes, devices) = rest.split_at(devices_at.ok_or("the state is too short")?);
        let devices: Devices = serde_json::from_slice(devices).map_err(words)?;
        self.devices.restore(devices, &params.network_overrides, params.vsock_override.as_ref())?;
        let state = VmState::from_bytes(bytes).map_err(words)?;
        let len = usize::try_from(state.memory_bytes()).map_err(words)?;
        let memory = if params.mem_backend.backend_type == BackendType::File {
            let file = File::open(&params.mem_backend.backend_path).map_err(words)?;
            GuestMemory::private_file(&file, len)
        } else {
            GuestMemory::anonymous(len)
        };
        let memory = Arc::new(memory.map_err(words)?);
        if params.mem_backend.backend_type == BackendType::Uffd {
            let uffd = Uffd::for_memory(&memory, Backing::Anonymous).map_err(words)?;
            introduce(&params.mem_backend.backend_path, &memory, &uffd)?;
            self.uffd = Some(uffd);
            // Firecracker's devices read their queues while they are restored: faults before the load is answered.
            memory.read_page(0, &mut [0; PAGE_SIZE]);
            memory.read_page(memory.page_count() - 1, &mut [0; PAGE_SIZE]);
        }
        let _ = (params.track_dirty_pages, params.enable_diff_snapshots);
        let identity = Identity(u64::from(std::process::id()));
        let mut vm = MicroVm::restore(&state, memory.clone(), identity).map_err(words)?;
        if params.resume_vm {
            vm.resume().map_err(words)?;
        }
        self.run(vm, memory);
        Ok(())
    }

    /// Gives the last MiBs back, half of them after they were read, and looks that none of them keeps what it held.
    pub(crate) fn balloon(&self, amount_mib: u64) -> Result<(), String> {
        let memory = self.memory.as_ref().ok_or("no memory")?;
        let amount = usize::try_from(amount_mib.min(BALLOON_MIB)).map_err(words)? * PAGES_PER_MIB;
        let first = memory.page_count() - amount;
        let mut page = [0; PAGE_SIZE];
        for i in (first..memory.page_count()).step_by(2) {
            memory.read_page(i, &mut page);
            if page != STALE && page != [0; PAGE_SIZE] {
                return Err(format!("page {i} is wrong before it was given back"));
            }
        }
        // A balloon gives back what the guest finds, in many small ranges.
        for i in (first..memory.page_count()).step_by(16) {
            memory.discard(i, 16.min(memory.page_count() - i)).map_err(words)?;
        }
        for i in first..memory.page_count() {
            memory.read_page(i, &mut page);
            if page != [0; PAGE_SIZE] {
                return Err(format!("page {i} was given back and came again"));
            }
        }
        Ok(())
    }
}

/// The one message to the page-fault handler.
fn introduce(socket: &std::path::Path, memory: &GuestMemory, uffd: &Uffd) -> Result<(), String> {
    let half = memory.len() / 2 / PAGE_SIZE * PAGE_SIZE;
    // Firecracker has as many regions as its guest's address space has parts; here, two.
    let region = |from: usize, to: usize| {
        json!({
            "base_host_virt_addr": memory.address() + from as u64,
            "size": to - from,
            "offset": from,
            "page_size": PAGE_SIZE,
            "page_size_kib": PAGE_SIZE,
        })
    };
    let regions = json!([region(0, half), region(half, memory.len())]).to_string();
    let stream = UnixStream::connect(socket).map_err(words)?;
    let fds = [uffd.as_fd().as_raw_fd()];
    sendmsg::<()>(
        stream.as_raw_fd(),
        &[IoSlice::new(regions.as_bytes())],
        &[ControlMessage::ScmRights(&fds)],
        MsgFlags::empty(),
        None,
    )
    .map_err(words)?;
    std::mem::forget(stream);
    Ok(())
}
