//! A QEMU's VM that leaves, and what an earlier process left of one.

use super::{Departing, Newest, Stood};
use crate::handover::journal::{Journal, JournalError, Leaving};
use net::control::with_causes;
use pages::{Bitmap, Page, PageSource, Pfn};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use vmm::image::{ImageError, ImageFormat, MappedImage};
use vmm::qemu::capture::{DepartFiles, DepartingVm, may_be_followed, resume_stopped};
use vmm::qemu::{DeviceState, QemuError, Qmp, QmpError};
use wire::limits::OUTLINE_BYTES_MAX;

/// How long a look at what changed takes.
const FOLLOW_FOR: Duration = Duration::from_millis(100);
/// How long a monitor is waited for: it serves one client at a time.
const MONITOR_WITHIN: Duration = Duration::from_secs(10);

/// Why a VM cannot leave.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DepartureError {
    /// Its QEMU.
    #[error(transparent)]
    Qemu(#[from] QemuError),
    /// Its monitor.
    #[error(transparent)]
    Monitor(#[from] QmpError),
    /// Its journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Its memory's file.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A file beside it.
    #[error("cannot use {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// It was handed over, and what it had is gone: as after a restart of this machine.
    #[error(
        "VM {vm} was handed over to {host}, and its pages are not in {} any more: it runs there with what it has, or is lost",
        path.display()
    )]
    Lost {
        /// The VM.
        vm: String,
        /// Whose it is.
        host: String,
        /// Where its pages were.
        path: PathBuf,
    },
}

/// Files of one VM on a tmpfs.
#[derive(Clone)]
struct Files(PathBuf);

impl Files {
    fn at(&self, what: &str) -> PathBuf {
        let mut path = self.0.clone().into_os_string();
        path.push(format!(".{what}"));
        path.into()
    }

    fn remove(&self) {
        for what in ["first", "newer", "stale", "state"] {
            // What is not there needs no removing.
            let _ = std::fs::remove_file(self.at(what));
        }
    }

    fn write(&self, what: &str, bytes: &[u8]) -> Result<(), DepartureError> {
        let path = self.at(what);
        std::fs::write(&path, bytes).map_err(|source| DepartureError::File { path, source })
    }

    fn read(&self, what: &str) -> Result<Vec<u8>, DepartureError> {
        let path = self.at(what);
        std::fs::read(&path).map_err(|source| DepartureError::File { path, source })
    }
}

/// Pages of two files: the newest of each.
struct TwoVersions {
    first: Arc<MappedImage>,
    newer: MappedImage,
    stale: Bitmap,
}

impl PageSource for TwoVersions {
    fn page_count(&self) -> u32 {
        self.first.page_count()
    }

    fn page(&self, pfn: Pfn) -> &Page {
        if self.stale.get(pfn.0) { self.newer.page(pfn) } else { self.first.page(pfn) }
    }
}

/// A VM under QEMU that leaves; or one that an earlier process handed over, whose pages are still here.
pub struct QemuDeparture {
    vm: Option<DepartingVm>,
    monitor: PathBuf,
    files: Files,
    first: Arc<MappedImage>,
    /// Of a VM that was handed over before this process began.
    stood: Option<Stood>,
    fingerprint: String,
    outline: Vec<u8>,
}

impl QemuDeparture {
    /// Takes the first pass over a running VM's memory, into `memory` (a directory on a tmpfs); or finds what an earlier process
    /// handed over. A VM that an earlier one left standing without a decision runs on first. `follows`: it will be followed, in
    /// pre-copy.
    ///
    /// # Errors
    /// [`DepartureError`]: the VM runs on.
    pub fn begin(
        leaving: &Leaving,
        journal: &Journal,
        memory: &Path,
        follows: bool,
        cancel: &AtomicBool,
    ) -> Result<Self, DepartureError> {
        let files = Files(memory.join(&leaving.vm));
        if journal.is_decided(&leaving.vm) {
            return Self::handed_over(leaving, files);
        }
        let mut qmp = Qmp::connect(&leaving.monitor, MONITOR_WITHIN)?;
        if journal.find(&leaving.vm)?.is_some() {
            resume_stopped(&mut qmp)?;
            journal.forget(&leaving.vm)?;
        }
        files.remove();
        if follows {
            may_be_followed(&mut qmp)?;
        }
        std::fs::create_dir_all(memory)
            .map_err(|source| DepartureError::File { path: memory.to_owned(), source })?;
        journal.begin(leaving)?;
        let into = DepartFiles { first: files.at("first"), newer: files.at("newer") };
        let vm = match DepartingVm::begin(qmp, &into, cancel) {
            Ok(vm) => vm,
            Err(error) => {
                files.remove();
                journal.forget(&leaving.vm)?;
                return Err(error.into());
            }
        };
        let first = Arc::new(MappedImage::open(files.at("first"), Some(ImageFormat::Raw))?);
        let (fingerprint, outline) = (vm.outline().offer(), outline(&vm.outline()));
        let monitor = leaving.monitor.clone();
        Ok(Self { vm: Some(vm), monitor, files, first, stood: None, fingerprint, outline })
    }

    fn handed_over(leaving: &Leaving, files: Files) -> Result<Self, DepartureError> {
        let lost = || DepartureError::Lost {
            vm: leaving.vm.clone(),
            host: leaving.host.clone(),
            path: files.0.clone(),
        };
        let bytes = files.read("state").map_err(|_| lost())?;
        let state = DeviceState::decode(&bytes).map_err(|_| lost())?;
        let first = Arc::new(MappedImage::open(files.at("first"), Some(ImageFormat::Raw))?);
        let stale = Bitmap::from_le_bytes(first.page_count(), &files.read("stale")?).map_err(|_| lost())?;
        let stood = stood(&files, &first, stale.clone(), stale, bytes)?;
        let fingerprint = state.offer();
        let outline = outline(&DeviceState { devices: Vec::new(), description: Vec::new(), ..state });
        let monitor = leaving.monitor.clone();
        Ok(Self { vm: None, monitor, files, first, stood: Some(stood), fingerprint, outline })
    }

    /// Its memory as it was first seen, which does not change: blocks are made of it.
    #[must_use]
    pub fn image(&self) -> &Arc<MappedImage> {
        &self.first
    }

    /// Whether an earlier process handed it over.
    #[must_use]
    pub fn is_handed_over(&self) -> bool {
        self.vm.is_none()
    }

    /// What a host must be able to run, for its offer.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// What its host's hypervisor can be fed under before it stands.
    #[must_use]
    pub fn outline(&self) -> &[u8] {
        &self.outline
    }

    fn vm(&mut self) -> Result<&mut DepartingVm, String> {
        self.vm.as_mut().ok_or_else(|| "it was handed over by an earlier process".to_owned())
    }

    fn newest(&self, stale: Bitmap, fresh: Bitmap) -> Result<Newest, DepartureError> {
        newest(&self.files, &self.first, stale, fresh)
    }

    fn try_stop(&mut self) -> Result<Stood, DepartureError> {
        let Some(vm) = &mut self.vm else { return Err(QemuError::refused("it does not run here").into()) };
        let state = vm.stop()?.encode();
        let (stale, fresh) = vm.newer();
        // Whoever comes after this process finds them; the decision follows.
        self.files.write("stale", &stale.to_le_bytes())?;
        self.files.write("state", &state)?;
        stood(&self.files, &self.first, stale, fresh, state)
    }
}

/// Encoded; nothing if it is larger than is told, and then its host's hypervisor is fed when it stands.
fn outline(state: &DeviceState) -> Vec<u8> {
    Some(state.encode()).filter(|bytes| bytes.len() <= OUTLINE_BYTES_MAX).unwrap_or_default()
}

fn newest(
    files: &Files,
    first: &Arc<MappedImage>,
    stale: Bitmap,
    fresh: Bitmap,
) -> Result<Newest, DepartureError> {
    let newer = MappedImage::open(files.at("newer"), Some(ImageFormat::Raw))?;
    let source = TwoVersions { first: Arc::clone(first), newer, stale: stale.clone() };
    Ok(Newest { stale, fresh, source: Arc::new(source) })
}

fn stood(
    files: &Files,
    first: &Arc<MappedImage>,
    stale: Bitmap,
    fresh: Bitmap,
    state: Vec<u8>,
) -> Result<Stood, DepartureError> {
    let newest = newest(files, first, stale, fresh)?;
    Ok(Stood { newest, attachments: vec![("state".to_owned(), state)] })
}

/// Lets a VM run on that an earlier process left, removes what that took of it (into the directory `memory`, if that is known),
/// and forgets it; not one that was handed over.
///
/// # Errors
/// [`DepartureError`]: it may stand.
pub fn put_right(leaving: &Leaving, journal: &Journal, memory: Option<&Path>) -> Result<(), DepartureError> {
    if journal.is_decided(&leaving.vm) {
        return Err(QemuError::refused("it was handed over: its host may run it already").into());
    }
    resume_stopped(&mut Qmp::connect(&leaving.monitor, MONITOR_WITHIN)?)?;
    if let Some(memory) = memory {
        Files(memory.join(&leaving.vm)).remove();
    }
    Ok(journal.forget(&leaving.vm)?)
}

impl Departing for QemuDeparture {
    fn follow(&mut self) -> Result<Newest, String> {
        let fresh = self.vm()?.follow(FOLLOW_FOR).map_err(|error| with_causes(&error))?;
        let (stale, _) = self.vm()?.newer();
        self.newest(stale, fresh).map_err(|error| with_causes(&error))
    }

    fn stop(&mut self) -> Result<Stood, String> {
        match &self.stood {
            Some(stood) => Ok(stood.clone()),
            None => self.try_stop().map_err(|error| with_causes(&error)),
        }
    }

    fn settle(&mut self) -> Result<(), String> {
        self.vm()?.settle().map_err(|error| with_causes(&error))
    }

    fn resume(&mut self) -> Result<(), String> {
        self.vm()?.resume().map_err(|error| with_causes(&error))?;
        self.vm = None;
        self.files.remove();
        Ok(())
    }

    fn release(&mut self) -> Result<(), String> {
        let quit = match &mut self.vm {
            Some(vm) => vm.quit(),
            None => Qmp::connect(&self.monitor, Duration::from_secs(1))
                .and_then(|mut qmp| qmp.execute("quit", serde_json::Value::Null))
                .map(drop)
                .map_err(Into::into),
        };
        if let Err(error) = quit {
            // It may be gone already, and is of no use in any case.
            tracing::warn!(monitor = %self.monitor.display(), %error, "a released VM's QEMU was not there to be ended");
        }
        self.files.remove();
        Ok(())
    }
}
