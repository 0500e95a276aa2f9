//! From collected symbols to pages in the store: decode, compare the digest, place.
//!
//! This is the one place where a block becomes memory, and the digest stands before everything that interprets
//! its bytes: neither the decompressor nor the store ever sees an unverified block.

use crate::residents::Residents;
use crate::store::Intake;
use fec::{BlockShape, Collector, Decode};
use pages::VmId;
use pages::block::{BlockLimits, DecodedBlock, Scratch, decode_block, decode_named, is_named};
use std::collections::BTreeSet;
use wire::control::HostStats;
use wire::{BlockId, Digest};

/// A block that may be decodable.
#[derive(Debug)]
pub struct Job {
    /// The block.
    pub block: BlockId,
    /// What its bytes must hash to.
    pub digest: Digest,
    /// Its length and symbols.
    pub shape: BlockShape,
    /// What has been received.
    pub payload: Payload,
}

/// What a job has to work with.
#[derive(Debug)]
pub enum Payload {
    /// Symbols from datagrams.
    Symbols(Collector),
    /// The whole block from the control channel.
    Whole(Vec<u8>),
    /// The contents of a block that only named them, from the control channel: as a body that the announced digest is not of.
    /// The channel is the sender's own, so it needs none.
    Supplied(Vec<u8>),
}

/// How a block was put together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum How {
    /// All source symbols arrived.
    Plain,
    /// Solved with Cauchy repair symbols.
    Cauchy,
    /// Solved with RaptorQ repair symbols.
    RaptorQ,
    /// Came whole over the control channel.
    Unicast,
}

impl How {
    pub(crate) fn count(self, stats: &mut HostStats) {
        match self {
            Self::Plain => stats.blocks_plain += 1,
            Self::Cauchy => stats.blocks_cauchy += 1,
            Self::RaptorQ => stats.blocks_raptorq += 1,
            Self::Unicast => stats.blocks_unicast += 1,
        }
    }
}

/// A job's result.
#[derive(Debug)]
pub struct Checked {
    /// The block.
    pub block: BlockId,
    /// What came of it.
    pub outcome: Outcome,
    /// The collector, for more symbols or for reuse.
    pub collector: Option<Collector>,
}

/// What came of a job.
#[derive(Debug)]
pub enum Outcome {
    /// Verified and placed.
    Placed {
        /// Which way it was decoded.
        how: How,
        /// VMs whose finished image had to be opened again for this block.
        reopened: Vec<u16>,
        /// VMs of this host that have all their pages now.
        complete_vms: Vec<u16>,
    },
    /// The solver needs further symbols.
    NeedMore,
    /// The bytes do not have the announced digest: collected anew.
    Mismatch,
    /// Verified, but it names contents that are not here (any more).
    Lacking,
    /// The store failed, or the sender's block makes no sense: this host cannot go on.
    Failed(String),
}

/// Where blocks go, and what they may refer to.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    /// The images.
    pub intake: &'a Intake,
    /// Contents that were here before, if the sender was told of any.
    pub residents: Option<&'a Residents>,
    /// What a block may hold.
    pub limits: &'a BlockLimits,
}

/// Does one job. `scratch` is one thread's own.
pub fn check(job: Job, place: Place<'_>, scratch: &mut Scratch) -> Checked {
    let Job { block, digest, shape, payload } = job;
    let (outcome, collector) = match payload {
        Payload::Whole(bytes) => (place.verified(&bytes, How::Unicast, digest, scratch), None),
        Payload::Supplied(body) => (place.carried(&body, How::Unicast, digest, scratch), None),
        Payload::Symbols(mut collector) => {
            let how = how_complete(&collector);
            let outcome = match collector.try_decode() {
                Decode::Ready => place.verified(collector.block(), how, digest, scratch),
                Decode::NeedMore { .. } => Outcome::NeedMore,
            };
            if matches!(outcome, Outcome::Mismatch) && !collector.discard_repair() {
                collector.reset(shape);
            }
            (outcome, Some(collector))
        }
    };
    Checked { block, outcome, collector }
}

/// What the solver, if any, will work with.
fn how_complete(collector: &Collector) -> How {
    let (raptorq, _) = collector.repair_counts();
    match (collector.is_ready(), raptorq) {
        (true, _) => How::Plain,
        (false, 0) => How::Cauchy,
        (false, _) => How::RaptorQ,
    }
}

impl Place<'_> {
    /// Compares the digest, then places.
    fn verified(self, bytes: &[u8], how: How, digest: Digest, scratch: &mut Scratch) -> Outcome {
        if *blake3::hash(bytes).as_bytes() != digest {
            return Outcome::Mismatch;
        }
        if !is_named(bytes) {
            let outcome = self.carried(bytes, how, digest, scratch);
            if matches!(outcome, Outcome::Placed { .. }) {
                self.intake.note_placed(&digest, bytes);
            }
            return outcome;
        }
        let outcome = match decode_named(bytes, self.limits, scratch) {
            Ok(named) => match self.residents.and_then(|residents| residents.contents_of(named)) {
                Some(decoded) => self.decoded(&decoded, how, digest),
                None => Outcome::Lacking,
            },
            Err(error) => Outcome::Failed(format!("a verified block cannot be read: {error}")),
        };
        if matches!(outcome, Outcome::Placed { .. }) {
            self.intake.note_placed(&digest, &[]);
        }
        outcome
    }

    /// Places a body that carries its contents and is known to be the sender's.
    fn carried(self, bytes: &[u8], how: How, digest: Digest, scratch: &mut Scratch) -> Outcome {
        match decode_block(bytes, self.limits, scratch) {
            Ok(decoded) => self.decoded(&decoded, how, digest),
            Err(error) => Outcome::Failed(format!("a verified block cannot be read: {error}")),
        }
    }

    fn decoded(self, decoded: &DecodedBlock<'_>, how: How, digest: Digest) -> Outcome {
        let intake = self.intake;
        let placed = match intake.place(digest, decoded) {
            Ok(placed) => placed,
            Err(error) => return Outcome::Failed(error.to_string()),
        };
        let reopened = placed.reopened.iter().map(|vm| vm.0).collect();
        let vms: BTreeSet<VmId> = (decoded.runs.iter().map(|run| run.vm))
            .chain(decoded.uniform.iter().map(|placement| placement.vm))
            .collect();
        let complete_vms = vms.into_iter().filter(|vm| intake.is_complete(*vm)).map(|vm| vm.0).collect();
        Outcome::Placed { how, reopened, complete_vms }
    }
}
