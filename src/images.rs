//! Images of a plan or inventory: opened, sampled, watched.

use crate::cli::exit::{Coded, Exit, Outcome};
use crate::units::float;
use anyhow::Context;
use pages::block::{Encoding, EncodingCost, choose_encoding, sample_costs};
use pages::{ContentId, MergeIndex, Page, PageSource};
use planner::inventory::ImageFormat;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;
use vmm::image::MappedImage;

/// How much is encoded to learn what the encodings cost.
#[derive(Clone, Copy)]
pub(crate) enum Sample {
    /// 4 MiB, some 50 ms: bytes and times are foretold by it.
    Thorough,
    /// 1 MiB: to choose by, while hosts wait.
    Quick,
}

impl Sample {
    /// Runs of contents, from all over the images.
    const RUNS: u32 = 16;

    /// Contents in a run, neighbours in memory as in a block.
    fn run(self) -> u32 {
        match self {
            Self::Thorough => 64,
            Self::Quick => 16,
        }
    }
}

/// What an image begins with that is no file but a monitor's socket of a QEMU that runs.
const RUNNING: &str = "qmp:";

/// Whether an image is to be captured from a VM that runs.
pub(crate) fn is_running(image: &str) -> bool {
    image.starts_with(RUNNING)
}

/// The monitor's socket of such an image.
pub(crate) fn monitor(file: &Path, image: &str) -> Option<PathBuf> {
    image.strip_prefix(RUNNING).map(|socket| path_beside(file, socket))
}

/// Where an image of a file stands: relative paths start at that file.
pub(crate) fn path_beside(file: &Path, image: &str) -> PathBuf {
    file.parent().unwrap_or(Path::new("")).join(image)
}

/// Maps an image.
pub(crate) fn open(vm: &str, path: &Path, format: Option<ImageFormat>) -> Outcome<Arc<MappedImage>> {
    let format = format.map(|format| match format {
        ImageFormat::Raw => vmm::image::ImageFormat::Raw,
        ImageFormat::QemuMappedRam => vmm::image::ImageFormat::QemuMappedRam,
        ImageFormat::Firecracker => vmm::image::ImageFormat::Firecracker,
    });
    let opened = MappedImage::open(path, format).with_context(|| format!("VM {vm}"));
    opened.map(Arc::new).or_exit(Exit::Input)
}

/// What the encodings cost on these contents, on this machine: some spots all over the images are tried.
pub(crate) fn encoding_costs<S: AsRef<dyn PageSource>>(
    index: &MergeIndex,
    sources: &[S],
    sample: Sample,
) -> [EncodingCost; 3] {
    let count = index.content_count();
    let runs = Sample::RUNS.min(count.div_ceil(sample.run())).max(1);
    let spots = (0..runs).map(|run| u64::from(count) * u64::from(run) / u64::from(runs));
    let ids =
        spots.flat_map(|spot| (spot..spot + u64::from(sample.run())).take_while(|id| *id < u64::from(count)));
    let page = |id: u64| -> &Page {
        let id = ContentId(u32::try_from(id).expect("below the number of contents"));
        let (vm, pfn) = index.representative(id);
        sources[usize::from(vm.0)].as_ref().page(pfn)
    };
    let pages: Vec<&Page> = ids.map(page).collect();
    let start = Instant::now();
    sample_costs(&pages, &|| start.elapsed())
}

/// What sending a byte costs the sender's CPU, sealing and the kernel's work: no link is faster than that.
const SEND_NS_PER_BYTE: f64 = 1.0;

/// The encoding for a link of so many bits per second, and encoded bytes per byte of contents to expect of it.
pub(crate) fn encoding_for(
    costs: &[EncodingCost],
    forced: Option<Encoding>,
    bits_per_s: u64,
    threads: usize,
) -> (Encoding, f64) {
    let ns_per_byte = (8e9 / float(bits_per_s.max(1))).max(SEND_NS_PER_BYTE);
    let encoding = forced.or_else(|| choose_encoding(costs, ns_per_byte, threads)).unwrap_or(Encoding::Raw);
    // Levels differ by little: the sampled one of the same scheme stands for all.
    let sampled = costs.iter().find(|cost| cost.encoding.code() == encoding.code());
    (encoding, sampled.map_or(1.0, |cost| cost.ratio))
}

/// Fails if an image is not what it was when it was opened.
pub(crate) fn check_unchanged(images: &[Arc<MappedImage>]) -> Outcome<()> {
    images.iter().try_for_each(|image| image.check_unchanged()).or_exit(Exit::Input)
}
