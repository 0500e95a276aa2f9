//! `scatter save-image`: a captured VM as an image for `virsh restore`.

use super::capture::MEMORY;
use super::qemu_capture::STATE;
use crate::cli::clones::SaveImage;
use crate::cli::exit::{Coded, Exit, Outcome};
use crate::units;
use anyhow::Context;
use vmm::MappedImage;
use vmm::qemu::DeviceState;
use vmm::qemu::libvirt::{SaveHead, write};

pub(crate) fn run(args: &SaveImage) -> Outcome {
    let xml = super::read_text(&args.xml)?;
    let path = args.dir.join(STATE);
    let named = || path.display().to_string();
    let state = std::fs::read(&path).with_context(named).or_exit(Exit::Input)?;
    let state = DeviceState::decode(&state).with_context(named).or_exit(Exit::Input)?;
    let path = args.dir.join(MEMORY);
    let pages = MappedImage::open(&path, None).or_exit(Exit::Input)?;
    let has = pages::PageSource::page_count(&pages);
    if has < state.page_count() {
        let wrong =
            format!("{}: {has} pages, where its `{STATE}` tells of {}", path.display(), state.page_count());
        return Err(crate::cli::exit::Failure::new(Exit::Input, wrong));
    }
    let head = SaveHead::new(xml, None, !args.paused)
        .with_context(|| args.xml.display().to_string())
        .or_exit(Exit::Input)?;
    write(&args.image, &head, &pages, &state).or_exit(Exit::Input)?;
    let bytes = std::fs::metadata(&args.image).or_exit(Exit::Input)?.len();
    println!("{}: {}: virsh restore {0}", args.image.display(), units::bytes(bytes));
    Ok(Exit::Done)
}
