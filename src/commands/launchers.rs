//! The programs that a host may start for senders: a kind, what it needs, and what of it is configured.

use crate::cli::clones::{LaunchKind, Programs};
use crate::cli::exit::{Exit, Failure, Outcome};
use receiver::guests::{
    CloudHypervisorConfig, CloudHypervisors, FirecrackerConfig, Firecrackers, Launch, MicroVms, QemuMachine,
    Qemus,
};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Folder of clones' folders in the store, if nothing else is said.
const CLONES: &str = "clones";

/// A launcher for each kind that is allowed.
pub(super) fn launchers(
    kinds: &[LaunchKind],
    programs: &Programs,
    store: &Path,
) -> Outcome<Vec<Arc<dyn Launch>>> {
    let clones = programs.clones.clone().unwrap_or_else(|| store.join(CLONES));
    let machines = machines(&programs.qemu)?;
    let launcher = |kind: &LaunchKind| {
        launcher(*kind, programs, &machines, &clones)
            .map_err(|reason| Failure::new(Exit::System, format!("--launch {}: {reason}", kind.name())))
    };
    kinds.iter().map(launcher).collect()
}

/// A file of `--qemu`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Machines {
    qemu: Vec<QemuMachine>,
}

/// The machines of these files. Relative paths of disks start at the file that names them.
pub(super) fn machines(files: &[PathBuf]) -> Outcome<Vec<QemuMachine>> {
    let mut machines = Vec::new();
    for path in files {
        let base = path.parent().unwrap_or(Path::new(""));
        for mut machine in super::receive::parse::<Machines>(path)?.qemu {
            if let Some(disk) = &mut machine.disk {
                disk.file = base.join(&disk.file);
            }
            machines.push(machine);
        }
    }
    Ok(machines)
}

/// The machines of a file of `--rehearse`, at least one.
pub(super) fn machines_to_rehearse(file: &Path) -> Outcome<Vec<QemuMachine>> {
    let machines = machines(&[file.to_owned()])?;
    if machines.is_empty() {
        return Err(Failure::new(Exit::Input, format!("--rehearse: {} has no [[qemu]]", file.display())));
    }
    Ok(machines)
}

/// The one place where a kind becomes a program. `clones` is where processes of clones have their folders.
fn launcher(
    kind: LaunchKind,
    programs: &Programs,
    machines: &[QemuMachine],
    clones: &Path,
) -> Result<Arc<dyn Launch>, String> {
    // A name alone is looked up in PATH.
    let binary = |given: &Option<PathBuf>, name: &str| given.clone().unwrap_or_else(|| name.into());
    Ok(match kind {
        LaunchKind::Microvm => Arc::new(MicroVms::new()?),
        LaunchKind::Firecracker => Arc::new(Firecrackers::new(FirecrackerConfig {
            binary: binary(&programs.firecracker, "firecracker"),
            clones: clones.to_owned(),
            tap: programs.tap.clone(),
        })?),
        LaunchKind::CloudHypervisor => Arc::new(CloudHypervisors::new(CloudHypervisorConfig {
            binary: binary(&programs.cloud_hypervisor, "cloud-hypervisor"),
            clones: clones.to_owned(),
            tap: programs.tap.clone(),
        })?),
        LaunchKind::Qemu => {
            let mut qemus = Qemus::new(machines, clones)?;
            qemus.keep_warm()?;
            Arc::new(qemus)
        }
    })
}
