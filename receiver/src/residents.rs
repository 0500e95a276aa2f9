//! Contents that this host holds already, in images that are not part of a transfer: they are not sent, but copied.
//!
//! Before a transfer whose plan counts on them the sender asks ([`wire::control::measure`]): this host tells short
//! fingerprints of all its contents, learns which of them its new VMs need, tells the names of those, and remembers where
//! they stand. In the transfer a block then *names* contents ([`pages::block::NamedBlock`]); each is read from where it
//! stood, and taken only if it still has its name: images may be written or deleted meanwhile, also by guests that run
//! from them. What is not as it was is asked for (`Lacks`) and comes as bytes.
//!
//! Names are keyed BLAKE3 under a key of that session of the transfer. This host learns which of its own contents its new
//! VMs hold, and nothing of others.

use crate::measure::{Agent, busy, candidates, check_version, end, fingerprints, scan, tell};
use net::control::{FrameReader, FrameWriter};
use nix::libc;
use pages::block::{DecodedBlock, Encoding, NamedBlock};
use pages::names::{domain_key, name_of};
use pages::{PAGE_SIZE, Page};
use std::borrow::Cow;
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use wire::control::measure::{NAMES_PART_MAX, Residents as Start, Start as Measure, Tell};

/// Contents that one transfer may be told to copy: 64 GiB of them, 512 MiB of memory.
const CONTENTS_MAX: usize = 1 << 24;
/// Transfers for which this is remembered at once; a further one replaces the oldest.
const KEPT_MAX: usize = 4;

/// Where named contents stand at this host.
pub struct Residents {
    images: Vec<(File, [u8; 32])>,
    /// Ascending by name.
    contents: Vec<Resident>,
}

/// A content.
struct Resident {
    name: u128,
    pfn: u32,
    image: u16,
}

impl Residents {
    /// Of images, each with the key of its contents' names, and of names, each with its image's index and a page of it that
    /// has this name. The page is read when it is needed.
    #[must_use]
    pub fn new(images: Vec<(File, [u8; 32])>, contents: impl IntoIterator<Item = (u128, u16, u32)>) -> Self {
        let resident = |(name, image, pfn)| Resident { name, pfn, image };
        let mut contents: Vec<Resident> = contents.into_iter().map(resident).collect();
        contents.sort_unstable_by_key(|content| content.name);
        Self { images, contents }
    }

    /// Reads the page of this name. `false` if it is not here, or not any more; `page` may hold anything then.
    fn read(&self, name: u128, page: &mut Page) -> bool {
        let at = self.contents.partition_point(|content| content.name < name);
        let same = self.contents[at..].iter().take_while(|content| content.name == name);
        // One is enough, but where several images have it the first may have changed.
        same.into_iter().any(|content| {
            let Some((file, key)) = self.images.get(usize::from(content.image)) else { return false };
            let from = u64::from(content.pfn) * PAGE_SIZE as u64;
            // The bytes are copied first and named then: whoever writes the image does not get between. The last page of an
            // image may be short: zeroes follow.
            page.fill(0);
            read_upto(file, page, from).is_ok() && name_of(key, page) == name
        })
    }

    /// The contents that a block names, read from here; `None` if one of them cannot be had.
    #[must_use]
    pub fn contents_of(&self, block: NamedBlock) -> Option<DecodedBlock<'static>> {
        let NamedBlock { runs, uniform, names } = block;
        let mut contents = vec![0; names.len() * PAGE_SIZE];
        let (pages, _) = contents.as_chunks_mut::<PAGE_SIZE>();
        if !names.iter().zip(pages).all(|(name, page)| self.read(*name, page)) {
            return None;
        }
        Some(DecodedBlock { runs, uniform, contents: Cow::Owned(contents), encoding: Encoding::Raw })
    }
}

fn read_upto(file: &File, page: &mut Page, from: u64) -> std::io::Result<()> {
    let mut done = 0;
    while done < PAGE_SIZE {
        match file.read_at(&mut page[done..], from + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// What was found for which transfer of which sender.
#[derive(Default)]
pub(crate) struct Kept(Mutex<VecDeque<(String, String, Arc<Residents>)>>);

impl Kept {
    fn put(&self, sender: &str, transfer: &str, residents: Residents) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|(other, of, _)| (other.as_str(), of.as_str()) != (sender, transfer));
        kept.truncate(KEPT_MAX - 1);
        kept.push_front((sender.to_owned(), transfer.to_owned(), Arc::new(residents)));
    }

    /// What that sender's transfer may count on here.
    pub(crate) fn get(&self, sender: &str, transfer: &str) -> Option<Arc<Residents>> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of = |(other, of, _): &&(String, String, Arc<Residents>)| {
            (other.as_str(), of.as_str()) == (sender, transfer)
        };
        kept.iter().find(of).map(|(_, _, residents)| Arc::clone(residents))
    }

    /// The transfer is over.
    pub(crate) fn forget(&self, sender: &str, transfer: &str) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|(other, of, _)| (other.as_str(), of.as_str()) != (sender, transfer));
    }
}

/// Serves one question.
pub(crate) async fn serve(
    start: Start,
    sender: &str,
    agent: &Agent,
    reader: &mut FrameReader,
    writer: &mut FrameWriter,
) {
    let told = converse(start, sender, agent, reader, writer).await;
    end(told, "a sender was not told what this host holds", writer).await;
}

async fn converse(
    start: Start,
    sender: &str,
    agent: &Agent,
    reader: &mut FrameReader,
    writer: &mut FrameWriter,
) -> Result<(), String> {
    check_version(start.version, "sender")?;
    let permit = agent.permit()?;
    let transfer = start.transfer.clone();
    let own = agent.finished_by(&transfer);
    let (dirs, threads) = (agent.dirs.clone(), agent.threads);
    let key = start.key;
    let measure = Measure {
        version: start.version,
        key,
        keep_below: 0,
        encoding: Encoding::Raw.to_string(),
        vms: start.images,
    };
    let (scanned, _permit) = busy(writer, move || (scan(&dirs, &measure, threads, &own), permit)).await?;
    let scan = scanned?;
    let contents = scan.measured.content_count();
    tell(writer, Tell::Scanned { vms: Vec::new(), contents }).await?;
    fingerprints(reader, writer, &scan.measured).await?;
    let needed = candidates(reader, contents).await?;
    if needed.iter().filter(|needed| **needed).count() > CONTENTS_MAX {
        return Err(format!("more than {CONTENTS_MAX} contents are here already: send fewer VMs at once"));
    }
    let found: Vec<(u128, u16, u32)> =
        scan.measured.named(needed.into_iter()).map(|(name, vm, pfn)| (name, vm.0, pfn.0)).collect();
    let names: Vec<[u8; 16]> = found.iter().map(|(name, _, _)| name.to_le_bytes()).collect();
    agent.kept.put(sender, &transfer, Residents::new(open(&scan.paths, &scan.domains, &key)?, found));
    for part in names.chunks(NAMES_PART_MAX) {
        tell(writer, Tell::Names(part.to_vec())).await?;
    }
    tell(writer, Tell::Complete).await
}

/// Images as files: a mapping of one that shrinks would end this process.
fn open(paths: &[PathBuf], domains: &[u32], key: &[u8; 32]) -> Result<Vec<(File, [u8; 32])>, String> {
    let open = |(path, domain): (&PathBuf, &u32)| {
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path);
        let file = file.map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        Ok((file, domain_key(key, *domain)))
    };
    paths.iter().zip(domains).map(open).collect()
}
