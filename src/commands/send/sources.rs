//! Where the memory of a plan's VMs is read: files, VMs that run, files that have the device state with them.

use super::rehearsal::Stage;
use super::standing::StandingVms;
use crate::cli::clones::Clone as CloneArgs;
use crate::cli::exit::{Coded, Exit, Failure, Outcome};
use crate::commands::qemu_capture::{For, Taken, of_file, of_running};
use crate::images;
use crate::report::CaptureReport;
use crate::scratch::Scratch;
use anyhow::Context;
use planner::Plan;
use planner::plan::PlannedVm;
use std::path::Path;
use std::sync::Arc;
use vmm::image::MappedImage;

/// The VMs' memory, and what was taken for this transfer alone.
pub(super) struct Sources {
    pub(super) images: Vec<Arc<MappedImage>>,
    /// Device state of the VMs that were taken, in the plan's order.
    pub(super) states: Vec<Option<Vec<u8>>>,
    pub(super) captures: Vec<CaptureReport>,
    /// VMs whose memory is read in place.
    pub(super) standing: StandingVms,
    /// Where they are to be tried.
    pub(super) stage: Option<Stage>,
    /// Captured memory; gone when the transfer is.
    _dir: Option<Scratch>,
}

impl Sources {
    /// Memory of VMs that leave, as it was first seen.
    pub(super) fn leaving(images: Vec<Arc<MappedImage>>) -> Self {
        let states = vec![None; images.len()];
        let (captures, standing) = (Vec::new(), StandingVms::default());
        Self { images, states, captures, standing, stage: None, _dir: None }
    }
}

/// Opens the images, and captures what is to be captured if this is a clone.
pub(super) fn open(plan: &Plan, file: &Path, clone: Option<&CloneArgs>) -> Outcome<Sources> {
    let mut sources = Sources::leaving(Vec::new());
    for (number, vm) in plan.vms.iter().enumerate() {
        let taken = match clone {
            Some(args) if is_taken(vm) => take(vm, file, args, number, &mut sources._dir)?,
            None if images::is_running(&vm.image) => {
                let message = format!("VM {}: {} runs: `scatter clone` captures it", vm.name, vm.image);
                return Err(Failure::new(Exit::Input, message));
            }
            _ => None,
        };
        match taken {
            Some(taken) => {
                if let Some(standing) = taken.standing {
                    sources.standing.add(&vm.name, sources.captures.len(), standing);
                }
                let open = || MappedImage::open(&taken.image, Some(taken.format));
                let image = taken.mapped.map_or_else(open, Ok);
                let image = image.with_context(|| format!("VM {}", vm.name)).or_exit(Exit::Input)?;
                sources.images.push(Arc::new(image));
                sources.states.push(Some(taken.state.encode()));
                sources.captures.push(taken.report);
            }
            None => {
                let path = images::path_beside(file, &vm.image);
                sources.images.push(images::open(&vm.name, &path, vm.format)?);
                sources.states.push(None);
            }
        }
    }
    Ok(sources)
}

/// Whether a VM's image must be taken first: it runs, or its state is in the image.
fn is_taken(vm: &PlannedVm) -> bool {
    vm.launch.as_ref().is_some_and(|launch| launch.kind == "qemu" && launch.attachments.is_empty())
}

fn take(
    vm: &PlannedVm,
    file: &Path,
    args: &CloneArgs,
    number: usize,
    dir: &mut Option<Scratch>,
) -> Outcome<Option<Taken>> {
    let dir = match dir {
        Some(dir) => dir,
        None => {
            let made = Scratch::new(&args.capture_dir, "scatter-captured-");
            let words = || format!("cannot make a directory in {}", args.capture_dir.display());
            dir.insert(made.with_context(words).or_exit(Exit::Input)?)
        }
    };
    let image = dir.path().join(number.to_string());
    match images::monitor(file, &vm.image) {
        Some(socket) => of_running(&vm.name, &socket, &image, &args.capture, For::Transfer).map(Some),
        None => of_file(&vm.name, &images::path_beside(file, &vm.image), &image),
    }
}
