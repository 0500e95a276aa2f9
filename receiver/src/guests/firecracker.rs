//! Clones that are Firecracker processes ([`vmm::firecracker`]): this process answers their page faults.

use super::places::{Place, Places};
use super::words::{LOOK, figures, words};
use super::{CloneSpec, Launch, Ward};
use std::path::PathBuf;
use std::sync::Arc;
use vmm::firecracker::{self, CONSOLE, Clone, CloneConfig, Devices, NetworkOverride, binary_version, start};
use vmm::uffd::{PageServer, VmStatus, Watchdog};

/// What a snapshot must bring, and may bring.
const VMSTATE: &str = "vmstate";
const CONFIG: &str = "config";
/// Where a vsock's sockets begin in a clone's folder.
const VSOCK: &str = "vsock.sock";

/// How this host runs Firecrackers.
#[derive(Clone, Debug)]
pub struct FirecrackerConfig {
    /// The binary; a name alone is looked up in PATH.
    pub binary: PathBuf,
    /// Where each clone has a folder with its API's socket (`api.sock`), its console and log (`console.log`).
    pub clones: PathBuf,
    /// The tap of a clone's interface: `{slot}` is the smallest number that no other clone has now, from 0, `{iface}` the interface's
    /// id. `None`: as in the snapshot, which one clone a host can have.
    pub tap: Option<String>,
}

/// Launches Firecrackers. One page server answers the faults of all of them; a watchdog ends those that need it if this process dies.
pub struct Firecrackers {
    config: FirecrackerConfig,
    places: Places,
    server: PageServer,
    watchdog: Arc<Watchdog>,
}

impl Firecrackers {
    /// A launcher, if the binary runs.
    ///
    /// # Errors
    /// In words, what is missing.
    pub fn new(config: FirecrackerConfig) -> Result<Self, String> {
        let version = binary_version(&config.binary).map_err(|error| words(&error))?;
        let places = Places::new(&config.clones)?;
        let watchdog = Arc::new(Watchdog::start().map_err(|error| words(&error))?);
        tracing::info!(%version, binary = %config.binary.display(), "Firecracker");
        Ok(Self { config, places, server: PageServer::start().map_err(|error| words(&error))?, watchdog })
    }

    fn start(&self, spec: &CloneSpec, place: &Place<'_>) -> Result<Clone, String> {
        let vmstate = spec.attachment(VMSTATE).ok_or("it has no attachment `vmstate`")?;
        let devices = spec.attachment(CONFIG).map(Devices::parse).transpose();
        let devices = devices.map_err(|reason| format!("its configuration: {reason}"))?.unwrap_or_default();
        let metadata = devices.metadata_of(&spec.name, spec.clone);
        let vmstate = place.write(VMSTATE, vmstate)?;
        let config = CloneConfig {
            binary: self.config.binary.clone(),
            dir: place.dir.clone(),
            id: place.id.clone(),
            vmstate: vmstate.clone(),
            network: self.network(&devices, place)?,
            vsock: devices.vsock.then(|| place.dir.join(VSOCK)),
            // A guest that asks who it is must find the answer from its first instruction on.
            resume: metadata.is_none(),
            track_dirty_pages: false,
        };
        let started = start(&self.server, Some(&self.watchdog), &spec.image, &config);
        // It was read; nobody needs a second copy of the guest's registers.
        let _ = std::fs::remove_file(vmstate);
        let clone = started.map_err(|error| words(&error))?;
        if let Some(metadata) = metadata {
            let told = clone.api.put_metadata(&metadata).and_then(|()| clone.api.resume());
            told.map_err(|error| words(&error))?;
        }
        Ok(clone)
    }

    fn network(&self, devices: &Devices, place: &Place<'_>) -> Result<Vec<NetworkOverride>, String> {
        let Some(tap) = &self.config.tap else { return Ok(Vec::new()) };
        let device = |iface: &String| {
            Ok(NetworkOverride { iface_id: iface.clone(), host_dev_name: place.tap(tap, iface)? })
        };
        devices.interfaces.iter().map(device).collect()
    }
}

impl Launch for Firecrackers {
    fn kind(&self) -> &'static str {
        "firecracker"
    }

    fn check(&self, fingerprint: &str, attachments: &[&str]) -> Result<(), String> {
        if !attachments.contains(&VMSTATE) || attachments.iter().any(|name| ![VMSTATE, CONFIG].contains(name))
        {
            return Err(format!(
                "it needs the attachment `vmstate`, and takes `config`; these are offered: {}",
                attachments.join(", ")
            ));
        }
        firecracker::check(&self.config.binary, fingerprint).map_err(|error| words(&error))
    }

    /// When the ward is stopped, a clone that is complete lives on: it depends on nobody. Another one is killed.
    fn run(&self, spec: &CloneSpec, ward: &Ward) -> Result<(), String> {
        let place = self.places.take(&spec.name)?;
        let mut clone = self
            .start(spec, &place)
            .map_err(|reason| format!("{reason}; its log is in {}", place.dir.display()))?;
        ward.running();
        loop {
            ward.note_faults(figures(&clone.served.stats()));
            ward.note_status(format!("process {}, {}", clone.pid(), place.dir.display()));
            if let VmStatus::Ended(reason) = clone.served.status() {
                return Err(reason);
            }
            if let Some(status) = clone.ended().map_err(|error| words(&error))? {
                if status.success() {
                    place.remove();
                    return Ok(());
                }
                return Err(format!("its Firecracker ended ({status}): {}", place.last_words(CONSOLE)));
            }
            if ward.is_stopped() {
                match clone.let_go() {
                    Ok(child) => tracing::info!(pid = child.id(), name = spec.name, "lives on"),
                    Err(clone) => {
                        drop(clone);
                        place.remove();
                    }
                }
                return Ok(());
            }
            std::thread::sleep(LOOK);
        }
    }
}
