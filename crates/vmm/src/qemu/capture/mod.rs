//! Taking a VM: its memory as an image file, everything else as a [`DeviceState`].
//!
//! | [`Way`] | needs | source |
//! |---|---|---|
//! | `SharedRam` | RAM in a shared file, and a file system that copies by reference unless the VM stays stopped | stopped for the device state only |
//! | `MappedRam` | QEMU 9.0; asked for by name | runs while its pages are written |
//! | `LiveStream` | nothing | runs while its pages are sent |
//!
//! [`evacuate`] takes a VM away by pre-copy and post-copy: the source cannot go on by itself afterwards. [`DepartingVm`] takes
//! one in steps, so that it can go on until its new host has it.

mod depart;
mod driver;
mod evacuate;
mod live;
mod mapped;
mod patience;
mod ram_file;
mod settings;
mod shared;
mod versions;

pub use depart::{DepartFiles, DepartingVm, resume_stopped};
pub use evacuate::{EvacuateOptions, Evacuated, Switched, evacuate};
pub use live::import_stream;
pub use mapped::import_mapped_ram;
pub use ram_file::RamFile;

use super::error::QemuError;
use super::qmp::Qmp;
use super::state::{DeviceState, Fingerprint};
use crate::image::ImageFormat;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// How a VM is taken.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Way {
    /// We are the destination of an ordinary migration.
    LiveStream,
    /// Device state by `x-ignore-shared`; memory from the file it is in.
    SharedRam,
    /// QEMU writes the image itself, with capability `mapped-ram`.
    MappedRam,
}

impl std::fmt::Display for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::LiveStream => "live stream",
            Self::SharedRam => "shared RAM file",
            Self::MappedRam => "mapped-ram file",
        })
    }
}

/// What is done while the source is stopped and its memory taken: snapshots of disks, above all.
pub type WhilePaused<'a> = &'a mut dyn FnMut(&mut Qmp) -> Result<(), QemuError>;

/// How to capture.
pub struct CaptureOptions<'a> {
    /// The image, made anew; best on a tmpfs.
    pub image: &'a Path,
    /// `None`: the best one that the VM allows.
    pub way: Option<Way>,
    /// Whether a source that ran goes on afterwards.
    pub resume: bool,
    /// After so long a source that dirties its memory faster than it is read is stopped.
    pub converge_within: Duration,
    /// After so long the capture fails, and the source goes on.
    pub within: Duration,
    /// Set from elsewhere: the capture ends, and the source goes on.
    pub cancel: Option<&'a AtomicBool>,
    /// Called once, while the source is stopped.
    pub while_paused: Option<WhilePaused<'a>>,
}

impl<'a> CaptureOptions<'a> {
    /// Into this file, the best way, the source goes on, at most 30 s to converge, at most 10 min.
    #[must_use]
    pub fn new(image: &'a Path) -> Self {
        Self {
            image,
            way: None,
            resume: true,
            converge_within: Duration::from_secs(30),
            within: Duration::from_secs(600),
            cancel: None,
            while_paused: None,
        }
    }
}

/// What a capture cost.
#[derive(Copy, Clone, Default, PartialEq, Debug, Serialize, Deserialize)]
pub struct CaptureFigures {
    /// From the first command to the last byte.
    pub total: Duration,
    /// How long the source's vCPUs stood still, by QEMU's own events. Zero if it stood before, or still stands.
    pub pause: Duration,
    /// Bytes of QEMU's stream.
    pub stream_bytes: u64,
    /// Pages taken with their bytes, those that came again included.
    pub pages: u64,
    /// Pages told to be zero.
    pub zero_pages: u64,
}

/// A VM that was taken.
#[derive(Clone, PartialEq, Debug)]
pub struct Captured {
    /// Its memory; page numbers of [`DeviceState::blocks`] are pages of this file.
    pub image: PathBuf,
    /// What kind of file that is.
    pub format: ImageFormat,
    /// Everything else; [`DeviceState::encode`] makes the attachment that travels with the pages.
    pub state: DeviceState,
    /// How it was taken.
    pub way: Way,
    /// Why this way.
    pub because: String,
    /// What it cost.
    pub figures: CaptureFigures,
}

/// Takes a VM. On any failure the image is removed and the source is as it was before, running if it ran.
///
/// # Errors
///
/// [`QemuError::Refused`] for VMs that cannot be carried, named; [`QemuError::Migration`] if QEMU gave up;
/// [`QemuError::TimedOut`]; and what the system, the stream and the monitor may answer.
pub fn capture(qmp: &mut Qmp, mut options: CaptureOptions<'_>) -> Result<Captured, QemuError> {
    let start = Instant::now();
    let ran = readiness(qmp)?;
    let fingerprint = Fingerprint::of(qmp)?;
    let shared = shared::backing_files(qmp, &fingerprint)?;
    let (way, because) = match options.way {
        Some(way) => (way, "asked for".to_owned()),
        None => choose(&options, ran, &fingerprint, &shared),
    };
    let saved = settings::Settings::of(qmp)?;
    let file = File::options().read(true).write(true).create_new(true).open(options.image);
    let file = file.map_err(QemuError::io("make", options.image))?;
    let taken = match way {
        Way::LiveStream => live::take(qmp, &options, file, &fingerprint, &[]),
        Way::SharedRam if shared.is_empty() => Err(QemuError::refused(
            "no RAM in a shared file (memory-backend-file,share=on), which way shared-ram needs",
        )),
        Way::SharedRam => live::take(qmp, &options, file, &fingerprint, &shared),
        Way::MappedRam => mapped::take(qmp, &options, &file, &fingerprint),
    };
    // The source is stopped now if all went well.
    let outcome = taken.and_then(|taken| {
        if let Some(while_paused) = options.while_paused.as_mut() {
            while_paused(qmp)?;
        }
        Ok(taken)
    });
    // Whatever fails from here on, too, leaves the source as it was.
    let outcome = outcome.and_then(|(state, format, mut figures)| {
        if ran && options.resume {
            qmp.execute("cont", Value::Null)?;
            figures.pause = driver::pause_seen(qmp)?;
        }
        Ok((state, format, figures))
    });
    if outcome.is_err() {
        driver::abandon(qmp, ran);
        let _ = std::fs::remove_file(options.image);
    }
    saved.restore(qmp);
    let (state, format, mut figures) = outcome?;
    figures.total = start.elapsed();
    Ok(Captured { image: options.image.to_owned(), format, state, way, because, figures })
}

/// Whether the VM runs; refuses one that is in no state to be taken.
fn readiness(qmp: &mut Qmp) -> Result<bool, QemuError> {
    let status = qmp.execute("query-status", Value::Null)?;
    let migration = qmp.execute("query-migrate", Value::Null)?;
    if let Some(under_way @ ("active" | "setup" | "device" | "cancelling" | "pre-switchover")) =
        migration["status"].as_str()
    {
        return Err(QemuError::refused(format!("another migration of it is {under_way}")));
    }
    if let Some(reason) = migration["blocked-reasons"][0].as_str() {
        return Err(QemuError::refused(reason));
    }
    match status["status"].as_str() {
        Some("running") => Ok(true),
        Some("paused" | "postmigrate" | "prelaunch" | "suspended") => Ok(false),
        other => Err(QemuError::refused(format!("it is in state {}", other.unwrap_or("unknown")))),
    }
}

fn choose(
    options: &CaptureOptions<'_>,
    ran: bool,
    fingerprint: &Fingerprint,
    shared: &[shared::BackingFile],
) -> (Way, String) {
    let knows = |name: &str| fingerprint.capabilities.iter().any(|capability| capability == name);
    let live = |because: &str| (Way::LiveStream, because.to_owned());
    if shared.is_empty() || !knows("x-ignore-shared") {
        return live("its RAM is in no shared file");
    }
    let stands = !ran || !options.resume;
    if stands {
        return (Way::SharedRam, "its RAM is in a shared file, and it stands".to_owned());
    }
    if shared.iter().all(|file| shared::copies_by_reference(&file.path, options.image)) {
        return (Way::SharedRam, "its RAM is in a shared file, which is copied by reference".to_owned());
    }
    // Copying the file would keep the source stopped for longer than a stream does.
    live(
        "its RAM is in a shared file, but the file system has no copies by reference, so it would stand too long",
    )
}
