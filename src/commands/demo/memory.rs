//! Which memory the demo sends: images of real guests if there are any, else generated ones.

use crate::cli::args::Demo;
use crate::cli::exit::{Coded, Exit, Failure, Outcome};
use anyhow::Context;
use lab::memory::Fleet;
use std::path::{Path, PathBuf};

/// Pages in a MiB.
const PAGES_PER_MIB: u32 = 256;
/// Where examples/guests/make-guests.sh leaves images.
const GUESTS: &str = "target/guests/small";

/// One VM's image.
pub(super) struct Image {
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
}

/// Images, and what they are in words.
pub(super) struct Memory {
    pub(super) images: Vec<Image>,
    pub(super) words: String,
}

/// Finds or makes images: one that is cloned to every host, and about one for each host.
pub(super) fn memory(args: &Demo, dir: &Path) -> Outcome<Memory> {
    let wanted = usize::from(args.hosts) + 1;
    let given = args.images.clone();
    let found = if args.generated { None } else { given.clone().or_else(guests) };
    let Some(found) = found else { return generate(args, wanted, dir) };
    let mut images = images(&found)?;
    if images.is_empty() {
        let message = format!("no guests.json, *.ram or *.raw in {}", found.display());
        return Err(Failure::new(Exit::Input, message));
    }
    images.truncate(wanted);
    let real = found.join("guests.json").is_file();
    let kind = if real { "real Debian guests" } else { "images" };
    Ok(Memory { images, words: format!("{kind} ({})", found.display()) })
}

/// The images of make-guests.sh, in a directory above this one or above the program.
fn guests() -> Option<PathBuf> {
    let here = std::env::current_dir().unwrap_or_default();
    let program = std::env::current_exe().unwrap_or_default();
    let places = here.ancestors().chain(program.ancestors()).map(|dir| dir.join(GUESTS));
    places.into_iter().find(|place| place.join("guests.json").is_file())
}

fn images(dir: &Path) -> Outcome<Vec<Image>> {
    let list = dir.join("guests.json");
    let paths = if list.is_file() { listed(&list)? } else { found(dir)? };
    let image = |(name, path): (String, PathBuf)| {
        let metadata = std::fs::metadata(&path).with_context(|| format!("image {}", path.display()));
        let bytes = metadata.or_exit(Exit::Input)?.len();
        let path = std::path::absolute(path).or_exit(Exit::Input)?;
        Ok(Image { name, path, bytes })
    };
    paths.into_iter().map(image).collect()
}

fn listed(list: &Path) -> Outcome<Vec<(String, PathBuf)>> {
    #[derive(serde::Deserialize)]
    struct Guests {
        guests: Vec<Guest>,
    }
    #[derive(serde::Deserialize)]
    struct Guest {
        name: String,
        path: PathBuf,
    }
    let text = crate::commands::read_text(list)?;
    let guests: Guests =
        serde_json::from_str(&text).with_context(|| list.display().to_string()).or_exit(Exit::Input)?;
    let dir = list.parent().unwrap_or(Path::new(""));
    Ok(guests.guests.into_iter().map(|guest| (guest.name, dir.join(guest.path))).collect())
}

fn found(dir: &Path) -> Outcome<Vec<(String, PathBuf)>> {
    let entries = std::fs::read_dir(dir).with_context(|| dir.display().to_string()).or_exit(Exit::Input)?;
    let is_image = |path: &PathBuf| path.extension().is_some_and(|end| end == "ram" || end == "raw");
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(is_image).collect();
    paths.sort();
    let name = |path: &PathBuf| path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    Ok(paths.into_iter().map(|path| (name(&path), path)).collect())
}

fn generate(args: &Demo, wanted: usize, dir: &Path) -> Outcome<Memory> {
    let vms = u16::try_from(wanted).expect("at most 33");
    let fleet = Fleet { vms, pages: args.size * PAGES_PER_MIB, systems: 2, ..Fleet::default() };
    let paths = fleet.write_images(dir).or_exit(Exit::System)?;
    let image = |path: PathBuf| Image {
        name: path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
        bytes: u64::from(args.size) << 20,
        path,
    };
    let words = "the project's own generated guest memory, as no images of real guests are here \
                 (examples/guests/make-guests.sh makes some)";
    let words = if args.generated { "the project's own generated guest memory" } else { words };
    Ok(Memory { images: paths.into_iter().map(image).collect(), words: words.to_owned() })
}
