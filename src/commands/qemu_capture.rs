//! VMs under QEMU as an image and a state: for `scatter capture`, and what `clone` captures by itself.

use crate::cli::capture::{How, WayChoice};
use crate::cli::exit::{Coded, Exit, Failure, Outcome};
use crate::interrupt;
use crate::report::CaptureReport;
use anyhow::Context;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use vmm::image::{ImageFormat, MappedImage};
use vmm::qemu::capture::{RamFile, import_mapped_ram};
use vmm::qemu::disks::{Disk, freeze_disks, writable_disks};
use vmm::qemu::{
    CaptureOptions, Captured, DeviceState, Qmp, Standing, Way, capture, capture_for_transfer, libvirt,
};

/// The attachment that QEMU's guests have.
pub(crate) const STATE: &str = "state";
/// A monitor that does not answer within this serves somebody else.
const MONITOR_WITHIN: Duration = Duration::from_secs(5);

/// A VM that was taken.
pub(crate) struct Taken {
    /// Its memory.
    pub(crate) image: PathBuf,
    pub(crate) format: ImageFormat,
    pub(crate) state: DeviceState,
    pub(crate) report: CaptureReport,
    /// The image, if it is mapped already.
    pub(crate) mapped: Option<MappedImage>,
    /// It is read in place: the VM stands for as long as this is there.
    pub(crate) standing: Option<Standing>,
}

/// What becomes of a VM's memory once it is taken.
#[derive(Copy, Clone, PartialEq, Eq)]
pub(crate) enum For {
    /// A file, for later.
    File,
    /// It is sent at once.
    Transfer,
}

/// Takes a VM that runs, or a file that has one, into a folder: `memory` and `state`.
pub(crate) fn into_folder(source: &Path, dir: &Path, how: &How) -> Outcome<Taken> {
    let memory = dir.join("memory");
    let name = source.display().to_string();
    let running = std::fs::metadata(source).is_ok_and(|file| file.file_type().is_socket());
    let taken = if running {
        of_running(&name, source, &memory, how, For::File)?
    } else {
        of_file(&name, source, &memory)?.ok_or_else(|| {
            let message = "is neither a monitor's socket, nor a mapped-ram file, nor an image of virsh save";
            Failure::new(Exit::Input, format!("{} {message}", source.display()))
        })?
    };
    let path = dir.join(STATE);
    std::fs::write(&path, taken.state.encode())
        .with_context(|| format!("cannot write {}", path.display()))
        .or_exit(Exit::Input)?;
    Ok(taken)
}

/// Takes a VM that runs into a new file, but for what of it can be read in place.
pub(crate) fn of_running(vm: &str, socket: &Path, image: &Path, how: &How, purpose: For) -> Outcome<Taken> {
    let named = || format!("VM {vm}: monitor {}", socket.display());
    let interrupt = interrupt::install().or_exit(Exit::System)?;
    let mut qmp = Qmp::connect(socket, MONITOR_WITHIN).with_context(named).or_exit(Exit::Input)?;
    let disks = writable_disks(&mut qmp).with_context(named).or_exit(Exit::Input)?;
    if !disks.is_empty() && how.snapshot_disks.is_none() && !how.ignore_disks {
        let message = format!(
            "VM {vm} writes to disks, which must be cloned as they are at this moment: {}. Give --snapshot-disks DIR, or \
             --ignore-disks if they are taken care of otherwise",
            words(&disks)
        );
        return Err(Failure::new(Exit::Input, message));
    }
    let frozen = how.snapshot_disks.as_deref().map(std::path::absolute).transpose().or_exit(Exit::Input)?;
    let mut freeze = |qmp: &mut Qmp| match &frozen {
        Some(dir) => freeze_disks(qmp, &disks, dir),
        None => Ok(()),
    };
    let options = CaptureOptions {
        way: how.way.map(|way| match way {
            WayChoice::LiveStream => Way::LiveStream,
            WayChoice::SharedRam => Way::SharedRam,
            WayChoice::SharedRamInPlace => Way::InPlace,
            WayChoice::MappedRam => Way::MappedRam,
        }),
        resume: !how.stop,
        cancel: Some(&interrupt),
        while_paused: Some(&mut freeze),
        ..CaptureOptions::new(image)
    };
    let what = format!("the capture of VM {vm}, which may stand (`cont` in its monitor lets it run),");
    let captured = interrupt::to_its_end(what, || match purpose {
        For::File => (capture(&mut qmp, options).map(|captured| (captured, None, None)), None),
        For::Transfer => match capture_for_transfer(qmp, options) {
            Ok((captured, mapped, standing)) => {
                let put_back = standing.as_ref().map(Standing::put_back);
                let duty = put_back.map(|of| Box::new(move || of.put_back()) as interrupt::Duty);
                (Ok((captured, Some(mapped), standing)), duty)
            }
            Err(error) => (Err(error), None),
        },
    });
    let cancelled = interrupt.load(Ordering::Relaxed);
    let exit = if cancelled { Exit::Interrupted } else { Exit::Input };
    let (captured, mapped, standing) = captured.with_context(named).or_exit(exit)?;
    let frozen = if frozen.is_some() { &disks[..] } else { &[] };
    let report = report(vm, socket, &captured, frozen);
    let Captured { image, format, state, .. } = captured;
    Ok(Taken { image, format, state, report, mapped, standing })
}

fn report(vm: &str, socket: &Path, captured: &Captured, frozen: &[Disk]) -> CaptureReport {
    let figures = captured.figures;
    CaptureReport {
        vm: vm.to_owned(),
        source: socket.display().to_string(),
        way: captured.way.to_string(),
        because: captured.because.clone(),
        total_s: figures.total.as_secs_f64(),
        pause_s: figures.pause.as_secs_f64(),
        pages: figures.pages,
        zero_pages: figures.zero_pages,
        stream_bytes: figures.stream_bytes,
        disks: frozen.iter().map(|disk| words(std::slice::from_ref(disk))).collect(),
        disturbed: None,
    }
}

/// Reads the memory of a file that has a VM's device state with it into a new file; `None` for other files.
pub(crate) fn of_file(vm: &str, path: &Path, image: &Path) -> Outcome<Option<Taken>> {
    let start = Instant::now();
    let named = || format!("VM {vm}: {}", path.display());
    let mut head = Vec::new();
    let mut file = File::open(path).with_context(named).or_exit(Exit::Input)?;
    file.by_ref().take(16).read_to_end(&mut head).with_context(named).or_exit(Exit::Input)?;
    let (way, state) = if head.starts_with(b"LibvirtQemud") {
        let (_, state) = libvirt::read(path, image).with_context(named).or_exit(Exit::Input)?;
        ("image of virsh save", state)
    } else if head.starts_with(b"QEVM") {
        let out = File::options().read(true).write(true).create_new(true).open(image);
        let out = out.with_context(|| format!("cannot make {}", image.display())).or_exit(Exit::Input)?;
        let ram = RamFile::new(out, image);
        let state = import_mapped_ram(&file, path, 0, ram).inspect_err(|_| remove(image));
        ("mapped-ram file", state.with_context(named).or_exit(Exit::Input)?)
    } else {
        return Ok(None);
    };
    let report = CaptureReport {
        vm: vm.to_owned(),
        source: path.display().to_string(),
        way: way.to_owned(),
        because: "it is a file".to_owned(),
        total_s: start.elapsed().as_secs_f64(),
        pause_s: 0.0,
        pages: 0,
        zero_pages: 0,
        stream_bytes: file.metadata().map_or(0, |file| file.len()),
        disks: Vec::new(),
        disturbed: None,
    };
    let (image, format) = (image.to_owned(), ImageFormat::Raw);
    Ok(Some(Taken { image, format, state, report, mapped: None, standing: None }))
}

fn words(disks: &[Disk]) -> String {
    let word = |disk: &Disk| format!("{} ({}, {})", disk.name, disk.file.display(), disk.format);
    disks.iter().map(word).collect::<Vec<_>>().join(", ")
}

fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != ErrorKind::NotFound
    {
        eprintln!("scatter: warning: cannot remove {}: {error}", path.display());
    }
}
