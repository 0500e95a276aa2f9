//! Taking a VM: its memory as an image file, everything else as a [`DeviceState`].
//!
//! | [`Way`] | needs | source |
//! |---|---|---|
//! | `SharedRam` | RAM in a shared file, and a file system that copies by reference unless the VM stays stopped | stopped for the device state only |
//! | `InPlace` | RAM in a shared file, and whoever reads it does so at once ([`capture_for_transfer`]) | stands until it is read |
//! | `MappedRam` | QEMU 9.0; asked for by name | runs while its pages are written |
//! | `LiveStream` | nothing | runs while its pages are sent |
//!
//! [`evacuate`] takes a VM away by pre-copy and post-copy: the source cannot go on by itself afterwards. [`DepartingVm`] takes
//! one in steps, so that it can go on until its new host has it.

mod depart;
mod driver;
mod evacuate;
mod in_place;
mod incoming;
mod live;
mod mapped;
mod patience;
mod ram_file;
mod settings;
mod shared;
mod standing;
mod versions;

pub use depart::{DepartFiles, DepartingVm};
pub use driver::resume_stopped;
pub use evacuate::{EvacuateOptions, Evacuated, Switched, evacuate};
pub use live::import_stream;
pub use mapped::import_mapped_ram;
pub use ram_file::RamFile;
pub use standing::{Disturbed, PutBack, Standing, Watch};

use super::error::QemuError;
use super::qmp::Qmp;
use super::state::{DeviceState, Fingerprint};
use crate::image::{ImageFormat, MappedImage};
use in_place::OpenFile;
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
    /// Device state by `x-ignore-shared`; memory is read from the file it is in, which the image does not have: the VM stands until
    /// that is done. Only [`capture_for_transfer`] takes a VM so.
    InPlace,
    /// QEMU writes the image itself, with capability `mapped-ram`.
    MappedRam,
}

impl std::fmt::Display for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::LiveStream => "live stream",
            Self::SharedRam => "shared RAM file",
            Self::InPlace => "shared RAM in place",
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
pub fn capture(qmp: &mut Qmp, options: CaptureOptions<'_>) -> Result<Captured, QemuError> {
    take(qmp, options, false).map(|taken| taken.captured)
}

/// Takes a VM whose image is read at once, and not again: as [`capture`], but memory in a shared file may be read where it
/// is ([`Way::InPlace`]). It is chosen by itself for VMs that stand. Then there is a [`Standing`], which is to be kept until the image
/// was read, and asked whether what was read is right.
///
/// On any failure the image is removed and the source is as it was before, running if it ran.
///
/// # Errors
///
/// As [`capture`]; [`QemuError::Image`] if the image cannot be mapped.
pub fn capture_for_transfer(
    mut qmp: Qmp,
    options: CaptureOptions<'_>,
) -> Result<(Captured, MappedImage, Option<Standing>), QemuError> {
    let resume = options.resume;
    let Taken { captured, files, ran } = take(&mut qmp, options, true)?;
    let opened = (|| -> Result<_, QemuError> {
        let pieces = in_place::pieces(files, &captured.state.blocks)?;
        Ok(MappedImage::open(&captured.image, Some(captured.format))?.with_pieces(pieces)?)
    })();
    let opened = match opened {
        Ok(image) if captured.way == Way::InPlace => {
            Standing::begin(qmp, ran, resume).map(|standing| (image, Some(standing)))
        }
        Ok(image) => Ok((image, None)),
        Err(error) => {
            // It stands, be it for us to read or because its owner wanted it so; else it runs already.
            if captured.way == Way::InPlace || !resume {
                driver::abandon(&mut qmp, ran);
            }
            Err(error)
        }
    };
    match opened {
        Ok((image, standing)) => Ok((captured, image, standing)),
        Err(error) => {
            let _ = std::fs::remove_file(&captured.image);
            Err(error)
        }
    }
}

/// What [`take`] took.
struct Taken {
    captured: Captured,
    /// Where the rest of its memory is, if it was taken in place.
    files: Vec<OpenFile>,
    /// It ran before. If it was taken in place, it stands still.
    ran: bool,
}

/// `in_place`: it may be taken so.
fn take(qmp: &mut Qmp, mut options: CaptureOptions<'_>, in_place: bool) -> Result<Taken, QemuError> {
    let start = Instant::now();
    let ran = readiness(qmp)?;
    let fingerprint = Fingerprint::of(qmp)?;
    let shared = shared::backing_files(qmp, &fingerprint)?;
    let (way, because, files) =
        choose(qmp, &options, ran && options.resume, in_place, &fingerprint, &shared)?;
    if ran {
        sees_writes(&fingerprint)?;
    }
    let saved = settings::Settings::of(qmp)?;
    let file = File::options().read(true).write(true).create_new(true).open(options.image);
    let file = file.map_err(QemuError::io("make", options.image))?;
    let taken = match way {
        Way::LiveStream => live::take(qmp, &options, file, &fingerprint, live::ALL),
        Way::SharedRam => live::take(qmp, &options, file, &fingerprint, live::Shared::Copied(&shared)),
        Way::InPlace => live::take(qmp, &options, file, &fingerprint, live::Shared::InPlace),
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
        if ran && options.resume && way != Way::InPlace {
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
    let captured = Captured { image: options.image.to_owned(), format, state, way, because, figures };
    Ok(Taken { captured, files, ran })
}

/// Whether a VM can be [followed](DepartingVm::follow).
///
/// # Errors
///
/// [`QemuError::Refused`] if its QEMU may miss what it writes; the monitor's.
pub fn may_be_followed(qmp: &mut Qmp) -> Result<(), QemuError> {
    sees_writes(&Fingerprint::of(qmp)?)
}

/// Refuses a QEMU that may miss what a VM writes while it is read.
fn sees_writes(fingerprint: &Fingerprint) -> Result<(), QemuError> {
    if fingerprint.misses_writes() {
        return Err(QemuError::refused(format!(
            "QEMU {} under TCG may miss what a running VM writes: let it stand while it is captured (`stop` in its monitor), or leave by hybrid \
             or postcopy; or take QEMU 9.0 or newer",
            fingerprint.version
        )));
    }
    Ok(())
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
        Some("paused" | "prelaunch" | "suspended") => Ok(false),
        // QEMU refuses, too, and does not say what to do.
        Some("postmigrate") => Err(QemuError::refused(
            "it stands since it was captured before: `cont` in its monitor lets it run, and then it can be captured again",
        )),
        other => Err(QemuError::refused(format!("it is in state {}", other.unwrap_or("unknown")))),
    }
}

/// The way, why, and the files that are read in place. `goes_on`: the source runs, and is to run on.
fn choose(
    qmp: &mut Qmp,
    options: &CaptureOptions<'_>,
    goes_on: bool,
    in_place: bool,
    fingerprint: &Fingerprint,
    shared: &[shared::BackingFile],
) -> Result<(Way, String, Vec<OpenFile>), QemuError> {
    let knows = |name: &str| fingerprint.capabilities.iter().any(|capability| capability == name);
    let by = |way, because: &str| Ok((way, because.to_owned(), Vec::new()));
    match options.way {
        Some(Way::SharedRam | Way::InPlace) if shared.is_empty() => {
            return Err(QemuError::refused(
                "no RAM in a shared file (memory-backend-file,share=on), which way shared-ram needs",
            ));
        }
        Some(Way::InPlace) if !in_place => {
            return Err(QemuError::refused(
                "it can be taken in place only for one transfer at once (scatter clone of qmp:SOCKET), not as files",
            ));
        }
        Some(Way::InPlace) => {
            let files = in_place::open(qmp, fingerprint, shared)?;
            let refused = |why| QemuError::refused(format!("its memory cannot be read in place: {why}"));
            return Ok((Way::InPlace, "asked for".to_owned(), files.map_err(refused)?));
        }
        Some(Way::SharedRam) => {
            return in_place::foreign(qmp, shared)
                .map_or_else(|| by(Way::SharedRam, "asked for"), |why| Err(QemuError::refused(why)));
        }
        Some(way) => return by(way, "asked for"),
        None => {}
    }
    if shared.is_empty() || !knows("x-ignore-shared") {
        return by(Way::LiveStream, "its RAM is in no shared file");
    }
    if let Some(why) = in_place::foreign(qmp, shared) {
        return by(Way::LiveStream, &format!("its RAM is in a shared file, but {why}"));
    }
    if !goes_on {
        const STANDS: &str = "its RAM is in a shared file, and it stands";
        if !in_place {
            return by(Way::SharedRam, STANDS);
        }
        return match in_place::open(qmp, fingerprint, shared)? {
            Ok(files) => Ok((Way::InPlace, STANDS.to_owned(), files)),
            Err(why) => by(Way::SharedRam, &format!("{STANDS}; not in place, as {why}")),
        };
    }
    if shared.iter().all(|file| shared::copies_by_reference(&file.path, options.image)) {
        return by(Way::SharedRam, "its RAM is in a shared file, which is copied by reference");
    }
    // Copying the file would keep the source stopped for longer than a stream does.
    by(
        Way::LiveStream,
        "its RAM is in a shared file, but the file system has no copies by reference, so it would stand too long",
    )
}
