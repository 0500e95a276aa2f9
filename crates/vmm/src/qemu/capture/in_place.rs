//! RAM that is read where QEMU has it: in a shared file. Whether it can be, and the files, opened.

use super::super::error::QemuError;
use super::super::qmp::Qmp;
use super::super::state::Fingerprint;
use super::super::stream::{Block, PAGE_BYTES};
use super::shared::BackingFile;
use crate::image::Piece;
use nix::sys::stat::{major, minor};
use serde_json::{Value, json};
use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Devices, objects and network backends of which another process, the host's kernel or its hardware writes to the guest's memory:
/// by what their types are called (`-device help`, `-object help`, `-netdev help` of QEMU 10.0). QEMU stops most of them with the VM,
/// but whether they have stopped is their word, not QEMU's; the memory of `ivshmem` is other VMs', which run on.
///
/// A tap with `vhost=on` is not among them, as QEMU tells nobody of it: it stops in a call that QEMU waits for.
const OUTSIDERS: [&str; 5] = ["vhost-", "vfio", "ivshmem", "pci-proxy", "x-remote"];

/// A block's file, open, and known to be the one that QEMU has mapped.
pub(super) struct OpenFile {
    block: String,
    file: File,
    path: PathBuf,
    offset: u64,
}

/// Opens the files of RAM that is to be read in place; or why that cannot be, in words.
pub(super) fn open(
    qmp: &mut Qmp,
    fingerprint: &Fingerprint,
    files: &[BackingFile],
) -> Result<Result<Vec<OpenFile>, String>, QemuError> {
    if let Some(outsider) = outsider(qmp)? {
        return Ok(Err(format!("its {outsider} writes to its memory from outside QEMU")));
    }
    Ok(maps(qmp).and_then(|maps| files.iter().map(|file| open_one(&maps, fingerprint, file)).collect()))
}

fn open_one(maps: &str, fingerprint: &Fingerprint, of: &BackingFile) -> Result<OpenFile, String> {
    let BackingFile { block, path, offset } = of;
    let row = fingerprint.blocks.iter().find(|row| row.id == *block);
    if row.is_none_or(|row| row.page_size != PAGE_BYTES) || !offset.is_multiple_of(PAGE_BYTES) {
        return Err(format!("{} has huge pages", path.display()));
    }
    let file = File::open(path).map_err(|error| format!("{} cannot be opened: {error}", path.display()))?;
    let metadata = file.metadata().map_err(|error| format!("{}: {error}", path.display()))?;
    if !metadata.is_file() {
        return Err(format!("{} is no regular file", path.display()));
    }
    match is_mapped(maps, &metadata) {
        true => Ok(OpenFile { block: block.clone(), file, path: path.clone(), offset: *offset }),
        false => Err(not_mapped(path)),
    }
}

/// Which of these files is not the one that QEMU has mapped, as far as that can be told: another one stands under the name by now, or
/// QEMU sees another file system than we do.
pub(super) fn foreign(qmp: &Qmp, files: &[BackingFile]) -> Option<String> {
    let maps = maps(qmp).ok()?;
    // Some file systems (btrfs, overlayfs) tell another device by stat(2) than in maps: the same number under the same name cannot be told apart.
    let is_foreign = |of: &&BackingFile| {
        let same = |line: &str, number: u64| {
            let mut fields = line.split_ascii_whitespace().skip(4);
            fields.next().and_then(|of| of.parse().ok()) == Some(number) && fields.next() == of.path.to_str()
        };
        let mapped = |metadata: Metadata| {
            is_mapped(&maps, &metadata) || maps.lines().any(|line| same(line, metadata.ino()))
        };
        File::open(&of.path).and_then(|file| file.metadata()).is_ok_and(|metadata| !mapped(metadata))
    };
    files.iter().find(is_foreign).map(|of| not_mapped(&of.path))
}

fn not_mapped(path: &Path) -> String {
    format!("the {} that is here is not mapped by the process that its monitor belongs to", path.display())
}

/// Whether a file is among what a process has mapped.
fn is_mapped(maps: &str, file: &Metadata) -> bool {
    maps.lines().any(|line| is_shared_mapping(line, file.dev(), file.ino()))
}

/// What the process that listens at the monitor's socket has mapped (proc_pid_maps(5)); or why that cannot be told.
fn maps(qmp: &Qmp) -> Result<String, String> {
    let pid = qmp.peer().ok_or("the system does not tell which process its monitor belongs to")?;
    std::fs::read_to_string(format!("/proc/{pid}/maps"))
        .map_err(|error| format!("/proc/{pid}/maps cannot be read: {error}"))
}

/// Whether a line of /proc/PID/maps (proc_pid_maps(5)) is a shared mapping of this file.
fn is_shared_mapping(line: &str, device: u64, inode: u64) -> bool {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (mode, _, on, number) = (fields.next(), fields.next(), fields.next(), fields.next());
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let on = on.and_then(|on| on.split_once(':')).map(|(major, minor)| (hex(major), hex(minor)));
    mode.is_some_and(|mode| mode.ends_with('s'))
        && number.and_then(|number| number.parse().ok()) == Some(inode)
        && on == Some((Some(major(device)), Some(minor(device))))
}

/// What of a VM writes to its memory from outside QEMU, if anything does.
fn outsider(qmp: &mut Qmp) -> Result<Option<String>, QemuError> {
    let mut types = Vec::new();
    for path in ["/machine/peripheral", "/machine/peripheral-anon", "/objects"] {
        let devices = qmp.execute("qom-list", json!({ "path": path }))?;
        let of = |device: &Value| device["type"].as_str().map(str::to_owned);
        types.extend(devices.as_array().into_iter().flatten().filter_map(of));
    }
    // Network backends are no objects that could be listed.
    let network = qmp.execute("human-monitor-command", json!({"command-line": "info network"}))?;
    Ok(outsider_among(&types, network.as_str().unwrap_or_default()))
}

/// The same, of a list of `child<TYPE>` and what `info network` says.
fn outsider_among(types: &[String], network: &str) -> Option<String> {
    let devices = types.iter().map(|kind| kind.trim_start_matches("child<").trim_end_matches('>'));
    // A backend tells what it is in `type=`, or behind that (`passt` with vhost-user); to take a name for it costs a copy, no more.
    let backends = network.split([',', ' ', '=', '\r', '\n']);
    let mut names = devices.chain(backends);
    names.find(|name| OUTSIDERS.iter().any(|outsider| name.contains(outsider))).map(str::to_owned)
}

/// The pages of the image that these files have. A block that the stream did not name would be zeros in the image.
pub(super) fn pieces(files: Vec<OpenFile>, blocks: &[Block]) -> Result<Vec<Piece>, QemuError> {
    let piece = |OpenFile { block, file, path, offset }| {
        let found = blocks.iter().find(|row| row.id == block);
        let missing = || QemuError::refused(format!("its stream does not name the RAM block {block}"));
        let pages = found.ok_or_else(missing)?.page_range();
        Ok(Piece { file, path, offset, pages })
    };
    files.into_iter().map(piece).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_is_known_by_its_file_and_not_by_its_path() {
        let device = nix::sys::stat::makedev(0x1a, 0x20);
        let line = "7f2a54000000-7f2a5c000000 rw-s 00000000 1a:20 1027                       /dev/shm/ram";
        assert!(is_shared_mapping(line, device, 1027));
        assert!(!is_shared_mapping(line, device, 1028));
        assert!(!is_shared_mapping(line, nix::sys::stat::makedev(0x1a, 0x21), 1027));
        assert!(!is_shared_mapping(&line.replace("rw-s", "rw-p"), device, 1027));
        assert!(!is_shared_mapping("7f2a54000000-7f2a5c000000 rw-p 00000000 00:00 0", device, 0));
        assert!(!is_shared_mapping("", device, 0));
    }

    #[test]
    fn devices_of_which_others_write_to_memory_are_found() {
        let of = |types: &[&str], network| {
            outsider_among(&types.iter().map(|name| format!("child<{name}>")).collect::<Vec<_>>(), network)
        };
        let user = "net0: index=0,type=nic,model=virtio-net-pci\r\n \\ user0: index=0,type=user,net=10.0.2.0";
        let own = ["virtio-net-pci", "virtio-crypto-pci", "cryptodev-backend-builtin", "memory-backend-file"];
        assert_eq!(of(&own, user), None);
        for outsider in [
            "vhost-user-blk-pci",
            "vhost-vsock-pci",
            "vhost-scsi-pci",
            "vhost-vdpa-device-pci",
            "cryptodev-vhost-user",
            "vfio-pci",
            "ivshmem-plain",
            "ivshmem-doorbell",
            "x-pci-proxy-dev",
            "x-remote-object",
        ] {
            assert_eq!(of(&["vmgenid", outsider], "").as_deref(), Some(outsider));
        }
        let other = user.replace("type=user", "type=vhost-user");
        assert_eq!(of(&["virtio-net-pci"], &other).as_deref(), Some("vhost-user"));
        let behind = user.replace("type=user", "type=passt,vhost-user");
        assert_eq!(of(&["virtio-net-pci"], &behind).as_deref(), Some("vhost-user"));
    }
}
