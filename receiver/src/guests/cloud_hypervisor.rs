//! Clones that are Cloud Hypervisor processes ([`vmm::cloud_hypervisor`]): a thread of this process answers each one's page faults.

use super::places::{Place, Places};
use super::words::{LOOK, figures, words};
use super::{CloneSpec, Launch, Ward};
use std::path::PathBuf;
use std::time::Duration;
use vmm::cloud_hypervisor::{self, Clone, CloneConfig, binary_version, personal, post_copy_is_safe, start};
use vmm::uffd::VmStatus;

/// What a snapshot must bring.
const STATE: &str = "state";
const CONFIG: &str = "config";
/// What it says itself, in a clone's folder.
const LOG: &str = "log";

/// How this host runs Cloud Hypervisors.
#[derive(Clone, Debug)]
pub struct CloudHypervisorConfig {
    /// The binary; a name alone is looked up in PATH.
    pub binary: PathBuf,
    /// Where each clone has a folder with its API's socket (`api.sock`), its serial port's file (`serial.log`), its log (`log`).
    pub clones: PathBuf,
    /// As [`FirecrackerConfig::tap`](super::FirecrackerConfig::tap).
    pub tap: Option<String>,
}

/// Launches Cloud Hypervisors. One whose faults are not answered any more, as this process died, ends by itself.
pub struct CloudHypervisors {
    config: CloudHypervisorConfig,
    places: Places,
}

impl CloudHypervisors {
    /// A launcher, if the binary runs and can restore by page faults here.
    ///
    /// # Errors
    /// In words, what is missing.
    pub fn new(config: CloudHypervisorConfig) -> Result<Self, String> {
        let version = binary_version(&config.binary).map_err(|error| words(&error))?;
        post_copy_is_safe(&version).map_err(|error| words(&error))?;
        tracing::info!(%version, binary = %config.binary.display(), "Cloud Hypervisor");
        Ok(Self { places: Places::new(&config.clones)?, config })
    }

    fn start(&self, spec: &CloneSpec, place: &Place<'_>) -> Result<Clone, String> {
        let attachment = |name: &str| spec.attachment(name).ok_or(format!("it has no attachment `{name}`"));
        let device = |id: &str| self.config.tap.as_deref().map(|of| place.tap(of, id)).transpose();
        let own = personal(attachment(CONFIG)?, &place.dir, &device).map_err(|error| words(&error))?;
        let config = CloneConfig {
            binary: self.config.binary.clone(),
            dir: place.dir.clone(),
            id: place.id.clone(),
            config: own,
            state: attachment(STATE)?.to_vec(),
            resume: true,
        };
        start(&spec.image, &config).map_err(|error| words(&error))
    }
}

impl Launch for CloudHypervisors {
    fn kind(&self) -> &'static str {
        "cloud-hypervisor"
    }

    fn check(&self, fingerprint: &str, attachments: &[&str]) -> Result<(), String> {
        let mut names = attachments.to_vec();
        names.sort_unstable();
        if names != [CONFIG, STATE] {
            return Err(format!(
                "it needs the attachments `config` and `state`; these are offered: {}",
                attachments.join(", ")
            ));
        }
        cloud_hypervisor::check(&self.config.binary, fingerprint).map_err(|error| words(&error))
    }

    /// When the ward is stopped, a clone that is complete lives on: it depends on nobody. Another one is killed.
    fn run(&self, spec: &CloneSpec, ward: &Ward) -> Result<(), String> {
        let place = self.places.take(&spec.name)?;
        let clone = self
            .start(spec, &place)
            .map_err(|reason| format!("{reason}; its log is in {}", place.dir.display()))?;
        ward.running();
        loop {
            ward.note_faults(figures(&clone.stats()));
            ward.note_status(format!("process {}, {}", clone.pid(), place.dir.display()));
            if let VmStatus::Ended(reason) = clone.wait(Duration::ZERO) {
                return Err(reason);
            }
            if let Some(status) = clone.ended().map_err(|error| words(&error))? {
                if status.success() {
                    place.remove();
                    return Ok(());
                }
                return Err(format!("its Cloud Hypervisor ended ({status}): {}", place.last_words(LOG)));
            }
            if ward.is_stopped() {
                match clone.let_go() {
                    Ok(pid) => tracing::info!(pid, name = spec.name, "lives on"),
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
