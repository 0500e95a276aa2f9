//! Disks of a VM at the moment of its capture: memory alone is no VM.

use super::error::QemuError;
use super::qmp::Qmp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// A disk that a VM writes to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Disk {
    /// QEMU's name for it: the drive's, else the block node's.
    pub name: String,
    /// The file that it is in.
    pub file: PathBuf,
    /// The file's format, as `qcow2`.
    pub format: String,
    /// How QEMU's commands name it.
    by_node: bool,
}

/// The disks that a VM can write to; those that it reads only are the same for all clones.
///
/// # Errors
///
/// [`QemuError::Qmp`].
pub fn writable_disks(qmp: &mut Qmp) -> Result<Vec<Disk>, QemuError> {
    let answer = qmp.execute("query-block", Value::Null)?;
    let disk = |entry: &Value| {
        let inserted = &entry["inserted"];
        if inserted["ro"] != false {
            return None;
        }
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let device = text(&entry["device"]);
        let by_node = device.is_empty();
        Some(Disk {
            name: if by_node { text(&inserted["node-name"]) } else { device },
            file: PathBuf::from(text(&inserted["file"])),
            format: text(&inserted["drv"]),
            by_node,
        })
    };
    Ok(answer.as_array().map(|list| list.iter().filter_map(disk).collect()).unwrap_or_default())
}

/// Freezes disks as they are: all at once, each gets a new overlay in `dir` that the VM writes to from now on, so that the files
/// it had do not change any more and clones' overlays can be made over them. To be called while the VM stands
/// ([`super::CaptureOptions::while_paused`]).
///
/// # Errors
///
/// [`QemuError::Qmp`] with QEMU's reason; nothing has changed then.
pub fn freeze_disks(qmp: &mut Qmp, disks: &[Disk], dir: &Path) -> Result<(), QemuError> {
    if disks.is_empty() {
        return Ok(());
    }
    let stamp = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let stamp = stamp.unwrap_or_default().as_millis();
    let action = |disk: &Disk| {
        let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
        let name: String = disk.name.chars().map(plain).collect();
        let key = if disk.by_node { "node-name" } else { "device" };
        let mut data = json!({
            "snapshot-file": dir.join(format!("{name}-{stamp}.qcow2")).to_string_lossy(),
            "format": "qcow2",
        });
        data[key] = disk.name.clone().into();
        if disk.by_node {
            data["snapshot-node-name"] = format!("scatter-{name}-{stamp}").into();
        }
        json!({"type": "blockdev-snapshot-sync", "data": data})
    };
    let actions: Vec<Value> = disks.iter().map(action).collect();
    qmp.execute("transaction", json!({"actions": actions}))?;
    Ok(())
}
