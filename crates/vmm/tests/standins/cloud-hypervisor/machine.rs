//! The machine behind the API, and both sides of its migrations.

use crate::common::{print, words};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use pages::PAGE_SIZE;
use serde_json::{Value, json};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, MutexGuard};
use vmm::cloud_hypervisor::protocol::{self, Command, Request};
use vmm::memory::GuestMemory;
use vmm::microvm::{Config, Identity, MicroVm, VmState, Workload};
use vmm::uffd::{Backing, Uffd};

const SLOT: u32 = 3;

#[derive(Default)]
pub(crate) struct Machine {
    config: Value,
    vm: Option<Arc<Mutex<MicroVm>>>,
    file: Option<File>,
    running: bool,
    /// It runs elsewhere now: this process ends.
    pub(crate) moved: bool,
}

fn memory_bytes(config: &Value) -> Result<usize, String> {
    let bytes = config["memory"]["size"].as_u64().ok_or("memory.size is missing")?;
    usize::try_from(bytes).map_err(words)
}

impl Machine {
    pub(crate) fn create(&mut self, config: &Value) -> Result<(), String> {
        if config["memory"]["shared"] != true {
            return Err("the stand-in hands memory over only if it is shared".into());
        }
        self.config = config.clone();
        Ok(())
    }

    pub(crate) fn boot(&mut self) -> Result<(), String> {
        let bytes = memory_bytes(&self.config)?;
        let file = File::from(memfd_create("ram", MFdFlags::MFD_CLOEXEC).map_err(words)?);
        file.set_len(bytes as u64).map_err(words)?;
        let memory = Arc::new(GuestMemory::shared_file(&file, bytes).map_err(words)?);
        let config =
            Config { workload: Workload { idle_us: 5_000, ..Workload::default() }, ..Config::default() };
        let vm = MicroVm::boot_on(&config, memory).map_err(words)?;
        self.file = Some(file);
        self.take(vm, true)
    }

    fn take(&mut self, vm: MicroVm, running: bool) -> Result<(), String> {
        let vm = Arc::new(Mutex::new(vm));
        let path = self.config["serial"]["file"].as_str().ok_or("serial.file is missing")?;
        print(vm.clone(), File::create(path).map_err(words)?);
        (self.vm, self.running) = (Some(vm), running);
        Ok(())
    }

    fn vm(&self) -> Result<MutexGuard<'_, MicroVm>, String> {
        Ok(self.vm.as_ref().ok_or("VM is not running")?.lock().expect("no panic while it is held"))
    }

    pub(crate) fn pause(&mut self) -> Result<(), String> {
        self.vm()?.pause().map_err(words)?;
        self.running = false;
        Ok(())
    }

    pub(crate) fn resume(&mut self) -> Result<(), String> {
        self.vm()?.resume().map_err(words)?;
        self.running = true;
        Ok(())
    }

    pub(crate) fn send_migration(&mut self, body: &Value) -> Result<(), String> {
        if body["local"] != true {
            return Err("the stand-in migrates locally only".into());
        }
        let url = body["destination_url"].as_str().and_then(|url| url.strip_prefix("unix:"));
        let sent = self.send(url.ok_or("destination_url must be unix:PATH")?);
        match sent {
            Ok(()) => self.moved = true,
            // As Cloud Hypervisor after a failed migration: a VM that was running runs on.
            Err(_) if self.running => self.vm()?.resume().map_err(words)?,
            Err(_) => {}
        }
        sent
    }

    fn send(&self, path: &str) -> Result<(), String> {
        let mut stream = UnixStream::connect(path).map_err(words)?;
        Request::ask(Command::Start, &[], &mut stream).map_err(words)?;
        let file = self.file.as_ref().ok_or("VM is not running")?;
        protocol::send_memory(SLOT, file.as_fd(), &mut stream).map_err(words)?;
        let size = memory_bytes(&self.config)?;
        let mapping = json!({ "slot": SLOT, "gpa": 0, "size": size, "zone_id": "mem0", "virtio_mem": false, "file_offset": 0 });
        let config = json!({
            "vm_config": self.config,
            "memory_manager_data": { "guest_ram_mappings": [mapping] },
        });
        Request::ask(Command::Config, config.to_string().as_bytes(), &mut stream).map_err(words)?;
        let mut vm = self.vm()?;
        vm.pause().map_err(words)?;
        let state = json!({ "microvm": vm.capture().map_err(words)?.to_bytes() });
        drop(vm);
        Request::ask(Command::State, state.to_string().as_bytes(), &mut stream).map_err(words)?;
        let end = if self.running { Command::Complete } else { Command::CompletePaused };
        Request::ask(end, &[], &mut stream).map_err(words)
    }

    pub(crate) fn receive_migration(&mut self, body: &Value) -> Result<(), String> {
        if self.vm.is_some() || body["memory_mode"] != "Postcopy" {
            return Err("the stand-in receives one VM, in memory mode Postcopy".into());
        }
        let url = body["receiver_url"].as_str().and_then(|url| url.strip_prefix("unix:"));
        let listener = UnixListener::bind(url.ok_or("receiver_url must be unix:PATH")?).map_err(words)?;
        let (mut stream, _) = listener.accept().map_err(words)?;
        let next = |expected: Command, stream: &mut UnixStream| {
            let request = Request::read(stream).map_err(words)?;
            if request.command == expected {
                Ok(request)
            } else {
                Err(format!("Can't handle {:?} where {expected:?} belongs", request.command))
            }
        };
        next(Command::Start, &mut stream)?.check_version().map_err(words)?;
        protocol::answer(true, &mut stream).map_err(words)?;
        let request = next(Command::MemoryFd, &mut stream)?;
        let (_, file) = protocol::receive_memory(&request, &stream).map_err(words)?;
        protocol::answer(true, &mut stream).map_err(words)?;
        let config = next(Command::Config, &mut stream)?.payload(&mut stream).map_err(words)?;
        let config: Value = serde_json::from_slice(&config).map_err(words)?;
        self.config = config["vm_config"].clone();
        let memory = Arc::new(GuestMemory::shared_file(&file, memory_bytes(&self.config)?).map_err(words)?);
        protocol::answer(true, &mut stream).map_err(words)?;
        let request = next(Command::State, &mut stream)?;
        // The fault connection must be there before the state is looked at.
        let (mut faults, _) = listener.accept().map_err(words)?;
        let mut role = [0; 2];
        faults.read_exact(&mut role).map_err(words)?;
        if role != [2, 0] {
            return Err(format!("unknown connection role: {role:?}"));
        }
        serve_faults(memory.clone(), faults)?;
        let state: Value =
            serde_json::from_slice(&request.payload(&mut stream).map_err(words)?).map_err(words)?;
        let bytes: Vec<u8> = serde_json::from_value(state["microvm"].clone()).map_err(words)?;
        let state = VmState::from_bytes(&bytes).map_err(words)?;
        let identity = Identity(u64::from(std::process::id()));
        let mut vm = MicroVm::restore(&state, memory, identity).map_err(words)?;
        protocol::answer(true, &mut stream).map_err(words)?;
        let last = Request::read(&mut stream).map_err(words)?.command;
        match last {
            Command::Complete => vm.resume().map_err(words)?,
            Command::CompletePaused => {}
            other => return Err(format!("Can't handle {other:?} at the end")),
        }
        protocol::answer(true, &mut stream).map_err(words)?;
        self.file = Some(File::from(file));
        self.take(vm, last == Command::Complete)
    }
}

/// Registers the memory, and answers its faults by asking for pages; in between, asks for all others, one after the other.
fn serve_faults(memory: Arc<GuestMemory>, mut stream: UnixStream) -> Result<(), String> {
    let uffd = Uffd::for_memory(&memory, Backing::SharedFile).map_err(words)?;
    std::thread::spawn(move || {
        let pages = memory.page_count();
        let mut asked = vec![false; pages];
        let mut walk = 0;
        while walk < pages {
            let mut fds = [PollFd::new(uffd.as_fd(), PollFlags::POLLIN)];
            let mut page = walk;
            if poll(&mut fds, PollTimeout::ZERO).expect("polls") > 0 {
                let mut message = [0u8; 32];
                if nix::unistd::read(&uffd, &mut message) == Ok(32) && message[0] == 0x12 {
                    let address = u64::from_le_bytes(*message[16..].first_chunk().expect("eight bytes"));
                    page = usize::try_from(address - memory.address()).expect("within") / PAGE_SIZE;
                }
            }
            let at = (page * PAGE_SIZE) as u64;
            if !std::mem::replace(&mut asked[page], true) && !ask(&mut stream, at) {
                eprintln!("the page source is gone");
                std::process::exit(1);
            }
            let filled = uffd.continue_(memory.address() + at, PAGE_SIZE as u64);
            if filled.error == Some(nix::Error::EEXIST) {
                uffd.wake(memory.address() + at, PAGE_SIZE as u64).expect("registered");
            }
            while walk < pages && asked[walk] {
                walk += 1;
            }
        }
        // All of it is in the file: the registration ends with the descriptor.
    });
    Ok(())
}

fn ask(stream: &mut UnixStream, gpa: u64) -> bool {
    let mut range = gpa.to_le_bytes().to_vec();
    range.extend((PAGE_SIZE as u64).to_le_bytes());
    stream.flush().is_ok() && Request::ask(Command::PageFault, &range, stream).is_ok()
}
