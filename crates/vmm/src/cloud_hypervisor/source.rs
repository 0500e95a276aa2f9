//! The source: Cloud Hypervisor hands over a VM's memory as files, and waits.

use super::protocol::{self, Command, Request};
use super::{Api, CloudHypervisorError, fingerprint, migration};
use pages::PAGE_SIZE;
use serde_json::{Value, json};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long Cloud Hypervisor may take to connect after it was asked to migrate.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// And once it has answered.
const ANSWERED_TIMEOUT: Duration = Duration::from_secs(3);
const POLL_INTERVAL: Duration = Duration::from_millis(2);
/// How long it may take for each step: it pauses the VM in one of them.
const STEP_TIMEOUT: Duration = Duration::from_secs(60);
/// Memory slots of one VM.
const SLOTS_MAX: usize = 256;
const CHUNK: usize = 64 * PAGE_SIZE;

/// A range of a guest's memory and where it stands in its file.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Slot {
    /// Its number.
    pub slot: u32,
    /// Guest address.
    pub gpa: u64,
    /// Bytes, whole pages.
    pub size: u64,
    /// First byte in the slot's file.
    pub file_offset: u64,
    /// First byte in an image: slots stand one after the other, by guest address.
    pub image_offset: u64,
}

/// Reads a migration's configuration: where memory stands, by guest address.
///
/// # Errors
///
/// [`CloudHypervisorError::Config`] says what is missing or wrong.
pub fn slots(config: &[u8]) -> Result<Vec<Slot>, CloudHypervisorError> {
    let odd = CloudHypervisorError::Config;
    let config: Value = serde_json::from_slice(config).map_err(|_| odd("it is no JSON"))?;
    let mappings = config["memory_manager_data"]["guest_ram_mappings"]
        .as_array()
        .ok_or(odd("it has no memory_manager_data.guest_ram_mappings"))?;
    if mappings.is_empty() || mappings.len() > SLOTS_MAX {
        return Err(odd("it has no memory slots, or too many"));
    }
    let mut slots = Vec::with_capacity(mappings.len());
    for mapping in mappings {
        let number = |name: &str| mapping[name].as_u64().ok_or(odd("a memory slot lacks a number"));
        let slot = u32::try_from(number("slot")?).map_err(|_| odd("a slot's number is too large"))?;
        let (gpa, size, file_offset) = (number("gpa")?, number("size")?, number("file_offset")?);
        let whole = |bytes: u64| bytes.is_multiple_of(PAGE_SIZE as u64);
        if !whole(gpa) || !whole(size) || !whole(file_offset) || size == 0 {
            return Err(odd("a memory slot is no whole number of pages"));
        }
        slots.push(Slot { slot, gpa, size, file_offset, image_offset: 0 });
    }
    slots.sort_by_key(|slot| slot.gpa);
    let mut at = 0u64;
    for slot in &mut slots {
        slot.image_offset = at;
        at = at.checked_add(slot.size).ok_or(odd("its memory is too large"))?;
        let end = slot.gpa.checked_add(slot.size).and_then(|_| slot.file_offset.checked_add(slot.size));
        end.ok_or(odd("its memory is too large"))?;
    }
    if slots.windows(2).any(|pair| pair[0].gpa + pair[0].size > pair[1].gpa) {
        return Err(odd("two memory slots overlap"));
    }
    Ok(slots)
}

/// A VM whose Cloud Hypervisor has paused it and waits for the answer to its last request. Dropped, the migration fails there, and
/// Cloud Hypervisor lets the VM run on.
#[derive(Debug)]
pub struct Captured {
    /// The migration's configuration, JSON.
    pub config: Vec<u8>,
    /// The VM's state, JSON.
    pub state: Vec<u8>,
    /// What can restore it.
    pub fingerprint: String,
    /// Whether it was running, and is to run on the other side.
    pub running: bool,
    slots: Vec<(Slot, File)>,
    stream: UnixStream,
    asked: JoinHandle<Result<Value, CloudHypervisorError>>,
    socket: PathBuf,
}

/// Asks a Cloud Hypervisor, whose VM has `memory shared=on`, to migrate to us over a socket in `dir`.
///
/// # Errors
///
/// It refuses, or does not keep to the protocol; the VM runs on then.
pub fn capture(api: &Api, dir: &Path) -> Result<Captured, CloudHypervisorError> {
    let version = api.version()?;
    let socket = dir.join("migration.sock");
    let listener = UnixListener::bind(&socket).map_err(migration("make a socket for it"))?;
    let body = json!({ "destination_url": format!("unix:{}", socket.display()), "local": true });
    let api = api.clone();
    let asked = std::thread::spawn(move || api.request("PUT", "vm.send-migration", Some(&body)));
    let accepted = accept(&listener, &asked);
    let mut stream = match accepted {
        Ok(stream) => stream,
        Err(error) => {
            // Its own words say more, if it has said any.
            let said = if asked.is_finished() { asked.join().ok().and_then(Result::err) } else { None };
            return Err(said
                .unwrap_or(CloudHypervisorError::Migration { step: "it does not connect", source: error }));
        }
    };
    let received = receive(&mut stream)?;
    let mut files = received.files;
    let mut found = Vec::new();
    for slot in slots(&received.config)? {
        let at = files.iter().position(|(number, _)| *number == slot.slot).ok_or(
            CloudHypervisorError::Config("a memory slot came without its file: is memory shared=on?"),
        )?;
        found.push((slot, File::from(files.swap_remove(at).1)));
    }
    Ok(Captured {
        config: received.config,
        state: received.state,
        fingerprint: fingerprint(&version),
        running: received.running,
        slots: found,
        stream,
        asked,
        socket,
    })
}

fn accept(
    listener: &UnixListener,
    asked: &JoinHandle<Result<Value, CloudHypervisorError>>,
) -> io::Result<UnixStream> {
    let deadline = Instant::now() + CONNECT_TIMEOUT;
    listener.set_nonblocking(true)?;
    let mut patience = None;
    loop {
        if asked.is_finished() {
            // Newer versions answer before they migrate, and an error is an answer too.
            patience.get_or_insert_with(|| Instant::now() + ANSWERED_TIMEOUT);
        }
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                stream.set_read_timeout(Some(STEP_TIMEOUT))?;
                return Ok(stream);
            }
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
            Err(_) if Instant::now() >= patience.unwrap_or(deadline) => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            Err(_) => std::thread::sleep(POLL_INTERVAL),
        }
    }
}

struct Received {
    files: Vec<(u32, OwnedFd)>,
    config: Vec<u8>,
    state: Vec<u8>,
    running: bool,
}

/// The destination's part, up to the request that ends it, which is not answered.
fn receive(stream: &mut UnixStream) -> Result<Received, CloudHypervisorError> {
    let broken = migration("it breaks off");
    let start = Request::read(stream).map_err(&broken)?;
    if start.command != Command::Start {
        return Err(CloudHypervisorError::Unexpected { found: start.command, expected: "Start" });
    }
    start.check_version().map_err(&broken)?;
    protocol::answer(true, stream).map_err(&broken)?;
    let (mut files, mut config, mut state) = (Vec::new(), None, None);
    loop {
        let request = Request::read(stream).map_err(&broken)?;
        match request.command {
            Command::MemoryFd if files.len() < SLOTS_MAX => {
                files.push(protocol::receive_memory(&request, stream).map_err(&broken)?);
            }
            Command::Config => config = Some(request.payload(stream).map_err(&broken)?),
            Command::State => state = Some(request.payload(stream).map_err(&broken)?),
            Command::Complete | Command::CompletePaused => {
                let (Some(config), Some(state)) = (config, state) else {
                    return Err(CloudHypervisorError::Unexpected {
                        found: request.command,
                        expected: "Config or State",
                    });
                };
                let running = request.command == Command::Complete;
                return Ok(Received { files, config, state, running });
            }
            found => {
                return Err(CloudHypervisorError::Unexpected { found, expected: "MemoryFd, Config, State" });
            }
        }
        protocol::answer(true, stream).map_err(&broken)?;
    }
}

impl Captured {
    /// Its memory's ranges, by guest address.
    #[must_use]
    pub fn slots(&self) -> Vec<Slot> {
        self.slots.iter().map(|(slot, _)| *slot).collect()
    }

    /// Writes all memory to a raw image, zero pages as holes.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn write_image(&self, path: &Path) -> Result<(), CloudHypervisorError> {
        let error =
            |action| move |source| CloudHypervisorError::File { path: path.to_owned(), action, source };
        let image = File::create(path).map_err(error("make it"))?;
        let len = self.slots.iter().map(|(slot, _)| slot.size).sum();
        image.set_len(len).map_err(error("size it"))?;
        let mut chunk = vec![0; CHUNK];
        for (slot, file) in &self.slots {
            let mut done = 0;
            while done < slot.size {
                let part = usize::try_from(slot.size - done).map_or(CHUNK, |left| left.min(CHUNK));
                let bytes = &mut chunk[..part];
                file.read_exact_at(bytes, slot.file_offset + done)
                    .map_err(error("read the VM's memory for it"))?;
                for (index, page) in bytes.chunks(PAGE_SIZE).enumerate() {
                    if page.iter().any(|byte| *byte != 0) {
                        let at = slot.image_offset + done + (index * PAGE_SIZE) as u64;
                        image.write_all_at(page, at).map_err(error("write it"))?;
                    }
                }
                done += part as u64;
            }
        }
        Ok(())
    }

    /// Lets go of the VM. With `moved`, Cloud Hypervisor is told that it runs elsewhere, and ends; else that the migration failed, and
    /// it runs on where it was.
    ///
    /// # Errors
    ///
    /// It cannot be told; it has lost the connection then, and runs on.
    pub fn finish(mut self, moved: bool) -> Result<(), CloudHypervisorError> {
        protocol::answer(moved, &mut self.stream).map_err(migration("it cannot be told the end"))?;
        // A socket that is left behind does no harm.
        let _ = std::fs::remove_file(&self.socket);
        match self.asked.join().map_err(|_| CloudHypervisorError::Panicked)? {
            // Refused is what it says of a migration that we failed; ending, it may close its API before it answers.
            Ok(_) | Err(CloudHypervisorError::Refused { .. } | CloudHypervisorError::Api { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(mappings: Value) -> Result<Vec<Slot>, CloudHypervisorError> {
        slots(json!({ "memory_manager_data": { "guest_ram_mappings": mappings } }).to_string().as_bytes())
    }

    #[test]
    fn slots_stand_in_an_image_by_guest_address() {
        let found = parse(json!([
            { "slot": 1, "gpa": 0x1_0000_0000u64, "size": 8192, "file_offset": 0x3000, "zone_id": "mem0" },
            { "slot": 0, "gpa": 0, "size": 0x3000, "file_offset": 0, "virtio_mem": false },
        ]))
        .expect("two slots");
        assert_eq!((found[0].slot, found[0].image_offset), (0, 0));
        assert_eq!((found[1].slot, found[1].image_offset, found[1].file_offset), (1, 0x3000, 0x3000));
        let slot = |gpa: u64, size: u64| json!({ "slot": 0, "gpa": gpa, "size": size, "file_offset": 0 });
        for odd in [
            json!([]),
            json!({}),
            json!([{ "slot": 0 }]),
            json!([slot(0, 0)]),
            json!([slot(1, 4096)]),
            json!([slot(0, 8192), slot(4096, 4096)]),
            json!([slot(u64::MAX - 4095, 8192)]),
        ] {
            assert!(parse(odd.clone()).is_err(), "{odd}");
        }
        assert!(slots(b"no JSON").is_err() && slots(b"{}").is_err());
    }
}
