//! The HTTP side: requests are read, checked as Firecracker checks them, and carried out one after the other.

use crate::common;
use crate::machine::Machine;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CreateSnapshot {
    #[serde(default)]
    pub(crate) snapshot_type: SnapshotType,
    pub(crate) snapshot_path: PathBuf,
    pub(crate) mem_file_path: PathBuf,
}

#[derive(Deserialize, Default, PartialEq)]
pub(crate) enum SnapshotType {
    Diff,
    #[default]
    Full,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MemBackend {
    pub(crate) backend_path: PathBuf,
    pub(crate) backend_type: BackendType,
}

#[derive(Deserialize, PartialEq)]
pub(crate) enum BackendType {
    File,
    Uffd,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LoadSnapshot {
    pub(crate) snapshot_path: PathBuf,
    pub(crate) mem_backend: MemBackend,
    #[serde(default)]
    pub(crate) resume_vm: bool,
    #[serde(default)]
    pub(crate) track_dirty_pages: Option<bool>,
    #[serde(default)]
    pub(crate) enable_diff_snapshots: Option<bool>,
    #[serde(default)]
    pub(crate) network_overrides: Vec<NetworkOverride>,
    pub(crate) vsock_override: Option<VsockOverride>,
}

#[derive(Deserialize, Serialize, Clone)]
pub(crate) struct NetworkOverride {
    pub(crate) iface_id: String,
    pub(crate) host_dev_name: String,
}

#[derive(Deserialize)]
pub(crate) struct VsockOverride {
    pub(crate) uds_path: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Vm {
    state: VmState,
}

#[derive(Deserialize)]
enum VmState {
    Paused,
    Resumed,
}

#[derive(Deserialize)]
struct MachineConfig {
    mem_size_mib: u64,
}

#[derive(Deserialize)]
struct BootSource {
    kernel_image_path: PathBuf,
    boot_args: Option<String>,
}

#[derive(Deserialize)]
struct Balloon {
    amount_mib: u64,
}

/// What Firecracker has from which version on; before, it refuses the field as unknown.
fn known(load: &LoadSnapshot, version: &str) -> Result<(), String> {
    let mut numbers = version.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let fields = [
        ("network_overrides", !load.network_overrides.is_empty(), (1, 12)),
        ("vsock_override", load.vsock_override.is_some(), (1, 16)),
        ("track_dirty_pages", load.track_dirty_pages.is_some(), (1, 13)),
    ];
    match fields.iter().find(|(_, used, since)| *used && version < *since) {
        Some((name, ..)) => Err(format!("unknown field `{name}`")),
        None => Ok(()),
    }
}

fn carry_out(
    machine: &mut Machine,
    version: &str,
    what: (&str, &str),
    body: &[u8],
) -> Result<Option<Value>, String> {
    fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, String> {
        serde_json::from_slice(body).map_err(|error| {
            format!("An error occurred when deserializing the json body of a request: {error}.")
        })
    }
    match what {
        ("GET", "/version") => return Ok(Some(json!({ "firecracker_version": version }))),
        ("PUT", "/machine-config") => machine.memory_mib = read::<MachineConfig>(body)?.mem_size_mib,
        ("PUT", "/boot-source") => {
            let source: BootSource = read(body)?;
            if !source.kernel_image_path.exists() {
                return Err("The kernel file cannot be opened".into());
            }
            machine.boot_args = source.boot_args.unwrap_or_default();
        }
        ("PUT", "/actions") => machine.boot()?,
        ("PATCH", "/vm") => match read::<Vm>(body)?.state {
            VmState::Paused => machine.pause()?,
            VmState::Resumed => machine.resume()?,
        },
        ("PUT", "/snapshot/create") => machine.create_snapshot(&read(body)?)?,
        ("PUT", "/snapshot/load") => {
            let load: LoadSnapshot = read(body)?;
            known(&load, version)?;
            machine.load_snapshot(&load)?;
        }
        ("GET", "/vm/config") => return Ok(Some(machine.devices.config())),
        ("GET", "/mmds") => return Ok(Some(machine.devices.metadata.clone())),
        ("PUT", "/mmds") => {
            machine.devices.metadata = read(body)?;
            println!("metadata: {}", machine.devices.metadata);
        }
        ("PUT", "/mmds/config") => machine.devices.mmds = read(body)?,
        ("PUT", "/vsock") => machine.devices.add_vsock(read(body)?)?,
        ("PUT", path) if path.starts_with("/network-interfaces/") => {
            machine.devices.add_interface(read(body)?)?
        }
        ("PATCH", "/balloon") => machine.balloon(read::<Balloon>(body)?.amount_mib)?,
        (method, path) => return Err(format!("Invalid request method and/or path: {method} {path}.")),
    }
    Ok(None)
}

pub(crate) fn serve(socket: &Path, version: &str) {
    let listener = UnixListener::bind(socket).expect("the API socket can be made");
    let mut machine = Machine::default();
    for stream in listener.incoming() {
        // A client that only looks whether the socket is there sends nothing.
        let mut stream = stream.expect("a connection");
        if let Some((method, path, body)) = common::read_request(&mut stream) {
            let result = carry_out(&mut machine, version, (&method, &path), &body);
            match result {
                Ok(None) => common::answer(&mut stream, "204 No Content", ""),
                Ok(Some(value)) => common::answer(&mut stream, "200 OK", &value.to_string()),
                Err(words) => {
                    let body = json!({ "fault_message": words }).to_string();
                    common::answer(&mut stream, "400 Bad Request", &body);
                }
            }
        }
    }
}
