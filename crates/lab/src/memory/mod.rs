//! Believable memory images of VMs that do not exist, for the demo and for tests where no real guests are at hand.
//!
//! A [`Fleet`] names how many VMs there are and how their pages are mixed. Each image is made page by page under a
//! seed, so it is never whole in memory, and image *n* is the same whatever the number of VMs. The default mix is
//! that of idle Debian guests as measured for this project: 60 % zero, 4 % repeated in the VM; of the rest about two
//! thirds stand in other VMs of the same system too, most of them at another page number, and zstd-1 makes about a third of it.
//!
//! It is a stand-in: figures from it say so, and figures from real guests go before it.

mod contents;
mod layout;

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use contents::Contents;
use layout::Layout;

/// Bytes of a page.
pub const PAGE_SIZE: usize = 4096;

/// How a VM's pages are mixed, in thousandths of all its pages. What the four classes leave over is unique.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageMix {
    /// Zero pages.
    pub zero_permille: u16,
    /// Pages of one repeated 64-bit word that is not zero.
    pub uniform_permille: u16,
    /// Pages that stand about eight times in this VM and in no other.
    pub repeated_permille: u16,
    /// Pages of the VM's operating system. Each VM holds four fifths of its system's pages, in an order of its own.
    pub system_permille: u16,
    /// Of the system's pages, those in which this VM has changed a few words; they are unique then.
    pub drifted_permille: u16,
    /// Of all contents, those that no compressor makes smaller.
    pub incompressible_permille: u16,
}

impl Default for PageMix {
    /// As an idle Debian guest; see the module's page.
    fn default() -> Self {
        Self {
            zero_permille: 600,
            uniform_permille: 5,
            repeated_permille: 40,
            system_permille: 230,
            drifted_permille: 20,
            incompressible_permille: 80,
        }
    }
}

/// Several VMs whose memory can be written to files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fleet {
    /// Everything follows from it.
    pub seed: u64,
    /// Number of VMs.
    pub vms: u16,
    /// Pages of each VM.
    pub pages: u32,
    /// Number of operating systems, at least 1: VM `i` runs system `i % systems`.
    pub systems: u16,
    /// How the pages are mixed.
    pub mix: PageMix,
}

impl Default for Fleet {
    /// Four VMs of 64 MiB that run one system.
    fn default() -> Self {
        Self { seed: 1, vms: 4, pages: 16_384, systems: 1, mix: PageMix::default() }
    }
}

/// How many of a VM's pages are of which kind, exactly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageCounts {
    /// Zero pages.
    pub zero: u32,
    /// Pages of one repeated word, not zero.
    pub uniform: u32,
    /// Pages found several times in this VM only.
    pub repeated: u32,
    /// Pages of the operating system as all VMs of that system have them.
    pub system: u32,
    /// Pages of the operating system that this VM has changed.
    pub drifted: u32,
    /// Pages found nowhere else.
    pub unique: u32,
}

/// Why no images were made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// The classes of the mix make more than all pages.
    #[error("the mix of pages makes {permille} thousandths of a VM")]
    Mix {
        /// Their sum, or the fraction that is above 1,000 itself.
        permille: u32,
    },
    /// No operating system to run.
    #[error("the fleet has no operating system: systems must be at least 1")]
    NoSystem,
    /// A file could not be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Fleet {
    /// Writes VM `vm`'s memory, `pages` × 4 KiB, lowest page first. Any `vm` has an image, also above `vms`.
    ///
    /// # Errors
    /// [`MemoryError::Mix`] or [`MemoryError::NoSystem`] for a fleet that cannot be; else what `out` reports, as an
    /// I/O error of kind `Other` holding it for the former.
    pub fn write_image(&self, vm: u16, out: &mut impl Write) -> io::Result<()> {
        self.check().map_err(io::Error::other)?;
        let layout = Layout::new(self, vm);
        let contents = Contents::new(self, vm);
        let mut page = [0u8; PAGE_SIZE];
        for extent in layout.extents() {
            for offset in 0..extent.pages {
                contents.fill(extent.class, extent.first + extent.step() * offset, &mut page);
                out.write_all(&page)?;
            }
        }
        Ok(())
    }

    /// Writes the files `vm0.ram`, `vm1.ram`, … to a directory and returns their paths.
    ///
    /// # Errors
    /// [`MemoryError::Mix`] or [`MemoryError::NoSystem`] for a fleet that cannot be, [`MemoryError::Write`] for a
    /// file that cannot be made or written.
    pub fn write_images(&self, directory: &Path) -> Result<Vec<PathBuf>, MemoryError> {
        self.check()?;
        (0..self.vms)
            .map(|vm| {
                let path = directory.join(format!("vm{vm}.ram"));
                let write = |path: &Path| {
                    let mut out = BufWriter::with_capacity(1 << 20, File::create(path)?);
                    self.write_image(vm, &mut out)?;
                    out.flush()
                };
                match write(&path) {
                    Ok(()) => Ok(path),
                    Err(source) => Err(MemoryError::Write { path, source }),
                }
            })
            .collect()
    }

    /// How many of a VM's pages are of which kind. The kinds are of the plan: two random contents that happen to
    /// be equal are counted as planned.
    ///
    /// # Errors
    /// [`MemoryError::Mix`] or [`MemoryError::NoSystem`] for a fleet that cannot be.
    pub fn page_counts(&self, vm: u16) -> Result<PageCounts, MemoryError> {
        self.check()?;
        let contents = Contents::new(self, vm);
        Ok(Layout::new(self, vm).counts(|page| contents.is_drifted(page)))
    }

    fn check(&self) -> Result<(), MemoryError> {
        let mix = self.mix;
        let classes = [mix.zero_permille, mix.uniform_permille, mix.repeated_permille, mix.system_permille];
        let sum: u32 = classes.into_iter().map(u32::from).sum();
        let worst = sum.max(mix.drifted_permille.into()).max(mix.incompressible_permille.into());
        if worst > 1_000 {
            return Err(MemoryError::Mix { permille: worst });
        }
        if self.systems == 0 {
            return Err(MemoryError::NoSystem);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn image(fleet: &Fleet, vm: u16) -> Vec<u8> {
        let mut bytes = Vec::new();
        fleet.write_image(vm, &mut bytes).expect("memory takes everything");
        assert_eq!(bytes.len(), fleet.pages as usize * PAGE_SIZE);
        bytes
    }

    /// Page → (VM, page number) of all places.
    type Places<'a> = HashMap<&'a [u8], Vec<(usize, usize)>>;

    fn places(images: &[Vec<u8>]) -> Places<'_> {
        let mut places = Places::new();
        for (vm, image) in images.iter().enumerate() {
            for (pfn, page) in image.chunks_exact(PAGE_SIZE).enumerate() {
                places.entry(page).or_default().push((vm, pfn));
            }
        }
        places
    }

    #[test]
    fn pages_are_mixed_as_planned() {
        let fleet = Fleet { pages: 4_000, vms: 3, ..Fleet::default() };
        let images: Vec<_> = (0..3).map(|vm| image(&fleet, vm)).collect();
        let places = places(&images);
        for vm in 0..3u16 {
            let counts = fleet.page_counts(vm).expect("a possible mix");
            let mut seen = PageCounts::default();
            for page in images[usize::from(vm)].chunks_exact(PAGE_SIZE) {
                let at = &places[page];
                let only_here = at.iter().all(|(other, _)| *other == usize::from(vm));
                if page.iter().all(|byte| *byte == 0) {
                    seen.zero += 1;
                } else if page.chunks_exact(8).all(|word| word == &page[..8]) {
                    seen.uniform += 1;
                } else if !only_here {
                    seen.system += 1;
                } else if at.len() > 1 {
                    seen.repeated += 1;
                } else {
                    seen.unique += 1;
                }
            }
            assert_eq!((seen.zero, seen.uniform), (2_400, 20));
            assert_eq!(
                (seen.zero, seen.uniform, seen.repeated),
                (counts.zero, counts.uniform, counts.repeated)
            );
            assert_eq!(counts.system + counts.drifted, 920);
            assert!((5..40).contains(&counts.drifted), "2 % drifted: {}", counts.drifted);
            // A system page that no other VM happens to hold is seen as unique.
            assert!(
                seen.system <= counts.system && seen.system > counts.system * 85 / 100,
                "{seen:?} {counts:?}"
            );
        }
    }

    #[test]
    fn vms_of_one_system_share_pages_at_other_places_and_others_none() {
        let fleet = Fleet { pages: 2_000, vms: 4, systems: 2, ..Fleet::default() };
        let images: Vec<_> = (0..4).map(|vm| image(&fleet, vm)).collect();
        let (mut shared, mut elsewhere) = (0, 0);
        for (page, at) in places(&images) {
            if page.chunks_exact(8).all(|word| word == &page[..8]) {
                continue;
            }
            let first = at[0];
            assert!(at.iter().all(|(vm, _)| vm % 2 == first.0 % 2), "shared between systems");
            if let Some(other) = at.iter().find(|(vm, _)| *vm != first.0) {
                shared += 1;
                elsewhere += usize::from(other.1 != first.1);
            }
        }
        assert!(shared > 500 && elsewhere * 10 > shared * 9, "{elsewhere} of {shared} moved");
    }

    #[test]
    fn an_image_depends_on_seed_and_vm_only() {
        let fleet = Fleet { pages: 500, ..Fleet::default() };
        let more = Fleet { vms: 9, ..fleet };
        assert_eq!(image(&fleet, 2), image(&more, 2));
        assert_ne!(image(&fleet, 2), image(&Fleet { seed: 2, ..fleet }, 2));
        assert_ne!(image(&fleet, 2), image(&fleet, 3));
    }

    #[test]
    fn contents_compress_like_guests() {
        let fleet = Fleet { pages: 4_000, ..Fleet::default() };
        let bytes: Vec<u8> = image(&fleet, 0)
            .chunks_exact(PAGE_SIZE)
            .filter(|page| page.iter().any(|byte| *byte != 0))
            .flatten()
            .copied()
            .collect();
        let packed: usize = bytes
            .chunks(1 << 20)
            .map(|block| zstd::bulk::compress(block, 1).expect("compresses").len())
            .sum();
        let percent = packed * 100 / bytes.len();
        eprintln!("{percent} %");
        assert!((25..=42).contains(&percent), "zstd-1 leaves {percent} %");
    }

    #[test]
    fn impossible_fleets_are_refused_and_odd_ones_made() {
        let mix = PageMix { zero_permille: 900, system_permille: 101, ..PageMix::default() };
        let fleet = Fleet { mix, ..Fleet::default() };
        assert!(matches!(fleet.page_counts(0), Err(MemoryError::Mix { permille: 1_046 })));
        assert!(fleet.write_image(0, &mut Vec::new()).is_err());
        assert!(matches!(
            Fleet { systems: 0, ..Fleet::default() }.page_counts(0),
            Err(MemoryError::NoSystem)
        ));
        for pages in [0, 1, 2, 7] {
            image(&Fleet { pages, ..Fleet::default() }, 0);
        }
        let all_unique = PageMix {
            zero_permille: 0,
            uniform_permille: 0,
            repeated_permille: 0,
            system_permille: 0,
            ..PageMix::default()
        };
        let images = [image(&Fleet { pages: 1_000, mix: all_unique, ..Fleet::default() }, 0)];
        assert_eq!(places(&images).len(), 1_000);
    }

    #[test]
    fn files_are_written_and_errors_name_them() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let fleet = Fleet { pages: 64, vms: 2, ..Fleet::default() };
        let paths = fleet.write_images(directory.path()).expect("written");
        assert_eq!(std::fs::read(&paths[1]).expect("there"), image(&fleet, 1));
        let error = fleet.write_images(&directory.path().join("absent")).expect_err("no such directory");
        assert!(error.to_string().contains("absent/vm0.ram"), "{error}");
    }
}
