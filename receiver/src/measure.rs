//! `scatter measure`'s far end: measures the images here, and tells what `pages::measure` needs to join them with those
//! of other hosts. Of pages only keyed hashes leave this host.

use crate::residents::Kept;
use net::control::{FrameReader, FrameWriter};
use pages::PageSource;
use pages::block::Encoding;
use pages::measure::{Candidate, HostSummary, MeasureInput, Measured, Sampling, measure};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use vmm::image::MappedImage;
use wire::control::measure::{
    Ask, HASHES_PART_MAX, HashTold, PART_BYTES_MAX, SETS_PART_MAX, SETS_VMS_MAX, SetTold, Start, Tell, VmTold,
};
use wire::control::{Message, ToHost, ToSender, reason};
use wire::limits::{NAME_BYTES_MAX, VMS_MAX};

/// How often a host that reads says so.
const BUSY_EVERY: Duration = Duration::from_secs(1);
/// How long a host keeps what it measured for a coordinator that says nothing: other hosts may have more to read.
const COORDINATOR_WAIT: Duration = Duration::from_secs(1800);
/// Endings of images' file names.
const ENDINGS: [&str; 2] = ["ram", "raw"];

/// What may be measured here. One measurement at a time: each reads all images.
pub(crate) struct Agent {
    pub(crate) dirs: Vec<PathBuf>,
    pub(crate) threads: usize,
    /// What senders were told to be here already.
    pub(crate) kept: Arc<Kept>,
    store: PathBuf,
    turn: Arc<Semaphore>,
}

/// What a measurement gives.
pub(crate) struct Scan {
    names: Vec<String>,
    pub(crate) paths: Vec<PathBuf>,
    pub(crate) domains: Vec<u32>,
    images: Vec<MappedImage>,
    encoding: Encoding,
    pub(crate) measured: Measured,
}

impl Scan {
    /// Reads and encodes some contents.
    fn summary(&self, candidates: Vec<bool>) -> Result<HostSummary, String> {
        let summary = self.measured.summary(&sources(&self.images), self.encoding, candidates.into_iter());
        self.images.iter().try_for_each(MappedImage::check_unchanged).map_err(|error| error.to_string())?;
        Ok(summary)
    }
}

fn sources(images: &[MappedImage]) -> Vec<&dyn PageSource> {
    images.iter().map(|image| image as &dyn PageSource).collect()
}

impl Agent {
    pub(crate) fn new(dirs: Vec<PathBuf>, threads: usize, store: PathBuf) -> Self {
        Self { dirs, threads, kept: Arc::default(), store, turn: Arc::new(Semaphore::new(1)) }
    }

    /// Images that an interrupted run of this transfer finished here. They are no help to it: what is left out of a segment
    /// because they have it would make other blocks of the rest, and nothing that hosts hold of the old ones would count.
    pub(crate) fn finished_by(&self, transfer: &str) -> Vec<(u64, u64)> {
        crate::store::finished_by(&self.store, transfer)
    }

    pub(crate) fn permit(&self) -> Result<OwnedSemaphorePermit, String> {
        if self.dirs.is_empty() {
            let way_out =
                "start `scatter receive` with --measure DIR, its store or where its VMs' images are";
            return Err(format!("this host does not let its images be measured; {way_out}"));
        }
        Arc::clone(&self.turn)
            .try_acquire_owned()
            .map_err(|_| "another measurement is under way here; try again when it is over".to_owned())
    }
}

/// Serves one measurement.
pub(crate) async fn serve(start: Start, agent: &Agent, reader: &mut FrameReader, writer: &mut FrameWriter) {
    let told = converse(start, agent, reader, writer).await;
    end(told, "a measurement was not completed", writer).await;
}

/// Ends a conversation about what is here; whoever asked is told why if it failed, `failed` goes to the log.
pub(crate) async fn end(told: Result<(), String>, failed: &str, writer: &mut FrameWriter) {
    if let Err(why) = told {
        tracing::info!(why, "{failed}");
        // It may be gone already; then nobody has to be told.
        let failed = ToSender::Measured(Tell::Failed { reason: reason(&why) });
        let _ = writer.write_frame(&failed.encode()).await;
    }
    // Everything was said.
    let _ = writer.shutdown().await;
}

/// `who` asks in this protocol version.
pub(crate) fn check_version(theirs: u8, who: &str) -> Result<(), String> {
    let ours = wire::VERSION;
    if theirs == ours {
        return Ok(());
    }
    Err(format!("the {who} speaks protocol version {theirs}, this host {ours}: update the older"))
}

/// Asks for how long fingerprints are to be, and tells them.
pub(crate) async fn fingerprints(
    reader: &mut FrameReader,
    writer: &mut FrameWriter,
    measured: &Measured,
) -> Result<(), String> {
    let Ask::Fingerprints { bits } = ask(reader).await? else {
        return Err("expected to be asked for fingerprints".into());
    };
    if !(8..=56).contains(&bits) {
        return Err(format!("fingerprints of {bits} bits: 8 to 56 are possible"));
    }
    tell_fingerprints(writer, measured, bits).await
}

async fn converse(
    start: Start,
    agent: &Agent,
    reader: &mut FrameReader,
    writer: &mut FrameWriter,
) -> Result<(), String> {
    check_version(start.version, "coordinator")?;
    let permit = agent.permit()?;
    let (dirs, threads) = (agent.dirs.clone(), agent.threads);
    let (scanned, _permit) = busy(writer, move || (scan(&dirs, &start, threads, &[]), permit)).await?;
    let scan = scanned?;
    let measured = &scan.measured;
    let vms = scan.names.iter().cloned().zip(measured.vms()).map(|(name, vm)| VmTold {
        name,
        pages: vm.pages,
        zero: vm.zero,
        uniform_nonzero: vm.uniform_nonzero,
    });
    tell(writer, Tell::Scanned { vms: vms.collect(), contents: measured.content_count() }).await?;
    fingerprints(reader, writer, measured).await?;
    let candidates = candidates(reader, measured.content_count()).await?;
    let summary = busy(writer, move || scan.summary(candidates)).await??;
    tell_summary(writer, &summary).await
}

/// Reads on a thread of its own, and says meanwhile that it does.
pub(crate) async fn busy<T: Send + 'static>(
    writer: &mut FrameWriter,
    read: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    let mut reading = tokio::task::spawn_blocking(read);
    loop {
        tokio::select! {
            done = &mut reading => return done.map_err(|_| "measuring broke off; the log has why".to_owned()),
            () = tokio::time::sleep(BUSY_EVERY) => tell(writer, Tell::Busy).await?,
        }
    }
}

pub(crate) async fn tell(writer: &mut FrameWriter, tell: Tell) -> Result<(), String> {
    writer.write_frame(&ToSender::Measured(tell).encode()).await.map_err(|error| error.to_string())
}

async fn ask(reader: &mut FrameReader) -> Result<Ask, String> {
    let frame = tokio::time::timeout(COORDINATOR_WAIT, reader.read_frame()).await;
    let frame = frame.map_err(|_| "the coordinator said nothing for too long".to_owned())?;
    let frame = frame.map_err(|error| error.to_string())?.ok_or("the coordinator closed the connection")?;
    match ToHost::decode(&frame).map_err(|error| error.to_string())? {
        ToHost::Measure(ask) => Ok(ask),
        _ => Err("expected a message of this measurement".into()),
    }
}

async fn tell_fingerprints(writer: &mut FrameWriter, measured: &Measured, bits: u8) -> Result<(), String> {
    let fingerprints = measured.fingerprints(bits);
    let (rice, code_bytes) = (fingerprints.rice, fingerprints.code.len() as u64);
    // At least one message, also about nothing.
    let parts =
        fingerprints.code.chunks(PART_BYTES_MAX).chain(fingerprints.code.is_empty().then_some(&[][..]));
    for part in parts {
        tell(writer, Tell::Fingerprints { rice, code_bytes, part: part.to_vec() }).await?;
    }
    Ok(())
}

/// A bit for each content.
pub(crate) async fn candidates(reader: &mut FrameReader, contents: u64) -> Result<Vec<bool>, String> {
    let count = usize::try_from(contents).map_err(|_| "too many contents".to_owned())?;
    let mut candidates = Vec::with_capacity(count);
    while candidates.len() < count {
        let Ask::Candidates { bits } = ask(reader).await? else {
            return Err("expected to be told candidates".into());
        };
        if bits.is_empty() {
            return Err("expected to be told candidates, not an empty list".into());
        }
        let flat = bits.iter().flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1 == 1));
        candidates.extend(flat.take(count - candidates.len()));
    }
    Ok(candidates)
}

async fn tell_summary(writer: &mut FrameWriter, summary: &HostSummary) -> Result<(), String> {
    let (mut part, mut vms) = (Vec::new(), 0);
    for ((set, content_bytes), own) in summary.sets.iter().zip(&summary.set_bytes).zip(&summary.own) {
        if part.len() == SETS_PART_MAX || (vms + set.len() > SETS_VMS_MAX && !part.is_empty()) {
            tell(writer, Tell::Sets(std::mem::take(&mut part))).await?;
            vms = 0;
        }
        vms += set.len();
        part.push(SetTold {
            vms: set.clone(),
            content_bytes: *content_bytes,
            contents: own.contents,
            pages: own.pages,
            repeated_contents: own.repeated_contents,
            repeated_pages: own.repeated_pages,
        });
    }
    tell(writer, Tell::Sets(part)).await?;
    for part in summary.candidates.chunks(HASHES_PART_MAX) {
        let hash = |candidate: &Candidate| HashTold {
            hash: candidate.hash.to_le_bytes(),
            set: candidate.set,
            pages: candidate.pages,
            bytes: candidate.bytes,
        };
        tell(writer, Tell::Hashes(part.iter().map(hash).collect())).await?;
    }
    tell(writer, Tell::Complete).await
}

/// Opens and measures what was asked for, but for files named by device and inode in `without`. Reads whole images: not for
/// an asynchronous thread.
pub(crate) fn scan(
    dirs: &[PathBuf],
    start: &Start,
    threads: usize,
    without: &[(u64, u64)],
) -> Result<Scan, String> {
    let encoding = start.encoding.parse().map_err(|error| format!("{error}"))?;
    let mut images = images(dirs)?;
    images.retain(|(_, path)| {
        // One that is gone by now is found to be so when it is opened.
        path.symlink_metadata().map_or(true, |at| !without.contains(&(at.dev(), at.ino())))
    });
    let mut domains = vec![0; images.len()];
    if !start.vms.is_empty() {
        let wanted = |name: &str| start.vms.iter().find(|(vm, _)| vm == name).map(|(_, domain)| *domain);
        images.retain(|(name, _)| wanted(name).is_some());
        domains = images.iter().filter_map(|(name, _)| wanted(name)).collect();
    }
    let mut opened = Vec::with_capacity(images.len());
    for (name, path) in &images {
        opened.push(MappedImage::open(path, None).map_err(|error| format!("VM {name}: {error}"))?);
    }
    let sampling = Sampling::from_threshold(start.keep_below);
    let input =
        MeasureInput { sources: &sources(&opened), domains: &domains, key: &start.key, sampling, threads };
    let measured = measure(&input).map_err(|error| error.to_string())?;
    let (names, paths) = images.into_iter().unzip();
    Ok(Scan { names, paths, domains, images: opened, encoding, measured })
}

/// Names and paths of the images of these directories, by name; where two have one name, the first directory's.
fn images(dirs: &[PathBuf]) -> Result<Vec<(String, PathBuf)>, String> {
    let mut found: Vec<(String, PathBuf)> = Vec::new();
    for dir in dirs {
        let words = |error: std::io::Error| format!("cannot read {}: {error}", dir.display());
        let mut here = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(words)? {
            let entry = entry.map_err(words)?;
            // A link may lead out of the directory.
            let is_file = entry.file_type().map_err(words)?.is_file();
            here.extend(is_file.then(|| entry.path()).and_then(|path| Some((image_name(&path)?, path))));
        }
        here.retain(|(name, _)| !found.iter().any(|(other, _)| other == name));
        found.extend(here);
    }
    found.sort();
    found.dedup_by(|a, b| a.0 == b.0);
    if found.len() > VMS_MAX {
        return Err(format!(
            "there are {} images here, and at most {VMS_MAX} can be measured at once",
            found.len()
        ));
    }
    Ok(found)
}

/// The VM's name, if this is an image. What is half done has another ending, or begins with a dot.
fn image_name(path: &Path) -> Option<String> {
    let ending = path.extension()?.to_str()?;
    let name = path.file_stem()?.to_str()?;
    let fits = ENDINGS.contains(&ending) && !name.starts_with('.') && name.len() <= NAME_BYTES_MAX;
    fits.then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_images_are_found_and_links_are_not_followed() {
        let dir = tempfile::tempdir().expect("a directory");
        let other = tempfile::tempdir().expect("a directory");
        for name in ["web.ram", "db.raw", ".web2.ram", "notes.txt", "journal"] {
            std::fs::write(dir.path().join(name), [1; 4096]).expect("written");
        }
        std::fs::write(other.path().join("secret.ram"), [1; 4096]).expect("written");
        std::fs::write(other.path().join("web.ram"), [2; 4096]).expect("written");
        std::os::unix::fs::symlink(other.path().join("secret.ram"), dir.path().join("link.ram"))
            .expect("linked");
        let found = images(&[dir.path().to_owned()]).expect("readable");
        let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["db", "web"]);
        let both = images(&[dir.path().to_owned(), other.path().to_owned()]).expect("readable");
        assert_eq!(both.len(), 3);
        assert!(both.iter().any(|(name, path)| name == "web" && path.starts_with(dir.path())));
        assert!(images(&[dir.path().join("absent")]).expect_err("absent").contains("absent"));
    }

    #[tokio::test]
    async fn a_host_is_measured_only_if_it_says_so_and_once_at_a_time() {
        let closed = Agent::new(Vec::new(), 1, PathBuf::new());
        assert!(closed.permit().expect_err("closed").contains("--measure"));
        let open = Agent::new(vec![PathBuf::from(".")], 1, PathBuf::new());
        let first = open.permit().expect("open");
        assert!(open.permit().expect_err("busy").contains("under way"));
        drop(first);
        assert!(open.permit().is_ok());
    }
}
