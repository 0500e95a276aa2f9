//! The memory that is sent: of real guests where examples/guests/make-guests.sh has made images, else generated.

use lab::memory::{Fleet, PageMix};
use serde_json::Value;
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

const PAGE_BYTES: usize = 4096;
/// Pages in a MiB.
const MIB_PAGES: u32 = 256;
/// Of a generated image in place of a guest's.
const GENERATED_MIB: u32 = 96;

/// A VM's image.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
}

impl Image {
    fn new(name: impl Into<String>, path: PathBuf) -> Self {
        Self { name: name.into(), path }
    }

    pub(crate) fn mib(&self) -> u64 {
        fs::metadata(&self.path).expect("an image").len().div_ceil(1 << 20)
    }

    /// Hashes of its different pages, but for those of one repeated word: what has to be carried to whoever has none
    /// of it. Counted here by other means than the program's.
    pub(crate) fn contents(&self) -> HashSet<[u8; 32]> {
        let bytes = fs::read(&self.path).expect("an image");
        let pages = bytes.chunks(PAGE_BYTES).filter(|page| !is_uniform(page));
        pages.map(|page| blake3::hash(page).into()).collect()
    }

    /// Bytes of [`Self::contents`].
    pub(crate) fn content_bytes(&self) -> u64 {
        (self.contents().len() * PAGE_BYTES) as u64
    }
}

fn is_uniform(page: &[u8]) -> bool {
    page.chunks(8).all(|word| word == &page[..8])
}

/// Whole images of `wanted` VMs; says which memory they are.
pub(crate) fn guests(wanted: u16, dir: &Path) -> Vec<Image> {
    let list = guest_list();
    let found = list.as_deref().map(listed).unwrap_or_default();
    if found.len() >= usize::from(wanted) {
        let images: Vec<Image> = found.into_iter().take(wanted.into()).collect();
        let names: Vec<&str> = images.iter().map(|image| image.name.as_str()).collect();
        println!("memory: real Debian guests, {}", names.join(", "));
        return images;
    }
    println!(
        "memory: generated, as there are no {wanted} real guests (examples/guests/make-guests.sh makes some)"
    );
    let fleet = Fleet { vms: wanted, pages: GENERATED_MIB * MIB_PAGES, systems: 2, ..Fleet::default() };
    let paths = fleet.write_images(dir).expect("room for images");
    paths.into_iter().enumerate().map(|(vm, path)| Image::new(format!("vm{vm}"), path)).collect()
}

/// The first MiB of a guest's memory, as an image of its own: real pages, in less time.
pub(crate) fn guest_part(mib: u64, dir: &Path) -> Image {
    let whole = guests(1, dir).remove(0);
    let path = dir.join("part.raw");
    let mut file = File::create(&path).expect("a new file");
    let source = File::open(&whole.path).expect("an image");
    io::copy(&mut source.take(mib << 20), &mut file).expect("room for an image");
    let part = Image::new(format!("{}-part", whole.name), path);
    println!("of {}: its first {mib} MiB, {:.1} MB of contents", whole.name, mb(part.content_bytes()));
    part
}

/// An image that nothing makes smaller.
pub(crate) fn incompressible(mib: u32, name: &str, dir: &Path) -> Image {
    let mix = PageMix {
        zero_permille: 0,
        uniform_permille: 0,
        repeated_permille: 0,
        system_permille: 0,
        drifted_permille: 0,
        incompressible_permille: 1_000,
    };
    let fleet = Fleet { seed: 3, vms: 1, pages: mib * MIB_PAGES, systems: 1, mix };
    println!("memory: generated, {mib} MiB that no encoding makes smaller");
    let dir = dir.join(name);
    fs::create_dir(&dir).expect("a new directory");
    Image::new(name, fleet.write_images(&dir).expect("room for an image").remove(0))
}

/// The list that make-guests.sh writes: where `SCATTER_GUESTS` says, else where scripts leave it.
fn guest_list() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("SCATTER_GUESTS") {
        let named = PathBuf::from(named);
        assert!(named.is_file(), "SCATTER_GUESTS={} is no guests.json", named.display());
        return Some(named);
    }
    let usual = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/guests/small/guests.json");
    usual.is_file().then_some(usual)
}

/// The guests of a list. The second one's memory is taken as QEMU wrote it (`mapped-ram`) if it is there so.
fn listed(list: &Path) -> Vec<Image> {
    let text = fs::read_to_string(list).expect("a readable list of guests");
    let json: Value = serde_json::from_str(&text).expect("a list of guests");
    let dir = list.parent().expect("a file has a directory");
    let image = |(index, guest): (usize, &Value)| {
        let also = guest["also"].as_array().and_then(|also| {
            also.iter().find(|form| index == 1 && form["format"] == "qemu-mapped-ram")?["path"].as_str()
        });
        let path = also.or(guest["path"].as_str()).expect("a path");
        Image::new(guest["name"].as_str().expect("a name"), dir.join(path))
    };
    json["guests"].as_array().expect("guests").iter().enumerate().map(image).collect()
}

/// Whether a rebuilt file is its source, whose bytes are given; a file that cannot be read is not.
pub(crate) fn is_same(source: &[u8], rebuilt: &Path) -> bool {
    let compare = || -> io::Result<bool> {
        let mut file = File::open(rebuilt)?;
        if file.metadata()?.len() != source.len() as u64 {
            return Ok(false);
        }
        let mut buffer = vec![0; 1 << 20];
        for chunk in source.chunks(buffer.len()) {
            file.read_exact(&mut buffer[..chunk.len()])?;
            if buffer[..chunk.len()] != *chunk {
                return Ok(false);
            }
        }
        Ok(true)
    };
    compare().unwrap_or(false)
}

/// Bytes in MB, for what tests print.
pub(crate) fn mb(bytes: u64) -> f64 {
    float(bytes) / 1e6
}

/// A count as a number to divide by.
pub(crate) fn float(count: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "counts in tests, far below 2^53")]
    let float = count as f64;
    float
}
