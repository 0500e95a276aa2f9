//! Blocks from other hosts of the transfer, when its sender is gone.
//!
//! A thread a transfer, as long as its guests wait for a sender: it asks the peers of each missing block's circle, one after the other,
//! and again after a while, since they ask each other too. A block counts only if it has the digest that the sender told.

use crate::shelf::Shelf;
use crate::store::Intake;
use net::control::connect_peer;
use net::pki::Identity;
use net::udp::Waker;
use pages::VmId;
use pages::block::{BlockLimits, Scratch, decode_block};
use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use wire::Digest;
use wire::control::{Fetch, Message, ToHost, ToSender};
use wire::limits;

/// A sender that is only started again, or lost its connection, is back by then.
const FIRST_AFTER: Duration = Duration::from_millis(500);
/// Peers are asked again after so long.
const AGAIN_AFTER: Duration = Duration::from_millis(500);
/// How often a thread that fetches looks whether it is to end.
const STOP_EVERY: Duration = Duration::from_millis(20);
/// A peer that does not answer for so long is not asked on in this round.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a thread that fetches has to work with.
pub(crate) struct Job {
    pub(crate) transfer: String,
    pub(crate) shelf: Arc<Shelf>,
    pub(crate) intake: Arc<Intake>,
    pub(crate) identity: Arc<Identity>,
    /// The VMs of the transfer.
    pub(crate) vms: Vec<u16>,
    /// Woken when something was placed.
    pub(crate) waker: Arc<Waker>,
}

/// A thread that fetches, until this is dropped.
pub(crate) struct Fetching {
    stop: Arc<AtomicBool>,
    /// Rounds in which every peer was asked and none had anything.
    fruitless: Arc<Mutex<u32>>,
    thread: Option<JoinHandle<()>>,
}

impl Fetching {
    /// Starts it; without a thread or a runtime there is none, which is said.
    pub(crate) fn start(job: Job) -> Self {
        let (stop, fruitless) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(0)));
        let (flag, count) = (Arc::clone(&stop), Arc::clone(&fruitless));
        let thread = std::thread::Builder::new().name("peers".into()).spawn(move || {
            match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime.block_on(rounds(&job, &flag, &count)),
                Err(error) => tracing::warn!(%error, "no blocks can be asked of peers"),
            }
        });
        if let Err(error) = &thread {
            tracing::warn!(%error, "no blocks can be asked of peers");
        }
        Self { stop, fruitless, thread: thread.ok() }
    }

    /// Whether all peers were asked and none had what is missing, at the last time.
    pub(crate) fn is_fruitless(&self) -> bool {
        *self.fruitless.lock().unwrap_or_else(PoisonError::into_inner) > 0
    }
}

impl Drop for Fetching {
    /// Ends it within the time that a block takes.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Its panic was reported by the thread.
            let _ = thread.join();
        }
    }
}

async fn rounds(job: &Job, stop: &AtomicBool, fruitless: &Mutex<u32>) {
    let mut scratch = Scratch::new();
    let mut wait = FIRST_AFTER;
    loop {
        tokio::select! {
            () = stopped(stop) => return,
            () = tokio::time::sleep(wait) => {}
        }
        let placed = tokio::select! {
            () = stopped(stop) => return,
            placed = round(job, &mut scratch) => placed,
        };
        let mut count = fruitless.lock().unwrap_or_else(PoisonError::into_inner);
        *count = if placed == 0 { count.saturating_add(1) } else { 0 };
        drop(count);
        finish(job);
        if job.vms.iter().all(|vm| job.intake.is_complete(VmId(*vm))) {
            return;
        }
        wait = AGAIN_AFTER;
    }
}

async fn stopped(stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        tokio::time::sleep(STOP_EVERY).await;
    }
}

/// Gives the images that are whole now their names.
fn finish(job: &Job) {
    for vm in &job.vms {
        if job.intake.is_complete(VmId(*vm))
            && let Err(error) = job.intake.finish(VmId(*vm))
        {
            tracing::warn!(vm, %error, "an image that peers completed cannot be finished");
        }
    }
}

/// Asks each peer for what it may have; the number of blocks placed. May be dropped at any time: what is placed stays.
async fn round(job: &Job, scratch: &mut Scratch) -> usize {
    let lacking = job.shelf.lacking();
    tracing::debug!(transfer = job.transfer, blocks = lacking.len(), "asking peers");
    let mut by_peer: BTreeMap<String, (SocketAddr, Vec<Digest>)> = BTreeMap::new();
    for (digest, peers) in lacking {
        for peer in &*peers {
            let (_, digests) = by_peer.entry(peer.name.clone()).or_insert_with(|| (peer.address, Vec::new()));
            digests.push(digest);
        }
    }
    let mut done: HashSet<Digest> = HashSet::new();
    for (name, (address, mut digests)) in by_peer {
        digests.retain(|digest| !done.contains(digest));
        if digests.is_empty() {
            continue;
        }
        if let Err(reason) = ask(job, &name, address, &digests, scratch, &mut done).await {
            tracing::info!(peer = name, reason, "a peer brings no blocks");
        }
    }
    done.len()
}

async fn ask(
    job: &Job,
    name: &str,
    address: SocketAddr,
    wanted: &[Digest],
    scratch: &mut Scratch,
    done: &mut HashSet<Digest>,
) -> Result<(), String> {
    let control = connect_peer(address, &job.identity, name).await.map_err(|error| error.to_string())?;
    let (mut reader, mut writer) = control.split();
    for digests in wanted.chunks(limits::FETCHED_MAX) {
        let fetch = Fetch { transfer: job.transfer.clone(), digests: digests.to_vec() };
        writer.write_frame(&ToHost::Fetch(fetch).encode()).await.map_err(|error| error.to_string())?;
        for digest in digests {
            let frame = tokio::time::timeout(PATIENCE, reader.read_frame()).await;
            let frame = frame.map_err(|_| "it does not answer")?.map_err(|error| error.to_string())?;
            let answer = ToSender::decode(&frame.ok_or("it closed the connection")?);
            let Ok(ToSender::Fetched(fetched)) = answer else {
                return Err("it answers something else".into());
            };
            if fetched.digest != *digest {
                return Err("it answers for another block".into());
            }
            if !fetched.bytes.is_empty() {
                place(job, digest, &fetched.bytes, scratch)?;
                job.shelf.note_helper(name);
                done.insert(*digest);
            }
        }
    }
    let _ = writer.shutdown().await;
    Ok(())
}

/// The one place where a peer's bytes become memory: the digest stands before everything that interprets them.
fn place(job: &Job, digest: &Digest, bytes: &[u8], scratch: &mut Scratch) -> Result<(), String> {
    tracing::debug!(bytes = bytes.len(), "a block of a peer");
    if blake3::hash(bytes).as_bytes() != digest {
        return Err("a block of it has not the digest that the sender told".into());
    }
    let decoded = decode_block(bytes, &BlockLimits::default(), scratch).map_err(|error| error.to_string())?;
    job.intake.place_from_peer(*digest, &decoded).map_err(|error| error.to_string())?;
    decoded.recycle(scratch);
    job.shelf.placed(digest, bytes);
    job.waker.wake();
    Ok(())
}

/// Answers a peer's questions on its connection until it closes it.
pub(crate) async fn serve(
    first: Fetch,
    host: &str,
    shelves: &crate::shelf::Shelves,
    reader: &mut net::control::FrameReader,
    writer: &mut net::control::FrameWriter,
) {
    let mut fetch = first;
    loop {
        let shelf = shelves.get(&fetch.transfer);
        for digest in fetch.digests {
            let (shelf, host) = (shelf.clone(), host.to_owned());
            // Compression takes a millisecond or so, which other connections' tasks do not wait for.
            let bytes = tokio::task::spawn_blocking(move || {
                shelf.and_then(|(shelf, intake)| shelf.body(&digest, &host, &intake, &mut Scratch::new()))
            });
            let bytes = bytes.await.ok().flatten().unwrap_or_default();
            let fetched = ToSender::Fetched(wire::control::Fetched { digest, bytes });
            if writer.write_frame(&fetched.encode()).await.is_err() {
                return;
            }
        }
        let next = tokio::time::timeout(PATIENCE, reader.read_frame()).await;
        fetch = match next {
            Ok(Ok(Some(frame))) => match ToHost::decode(&frame) {
                Ok(ToHost::Fetch(fetch)) => fetch,
                _ => return,
            },
            _ => return,
        };
    }
}
