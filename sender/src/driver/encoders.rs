//! The threads that encode stripes, and the order in which their blocks come out.

use super::Happening;
use crate::encode::{EncodePlan, EncodedBlock, encode_stripe};
use crate::prepare::{Prepared, Stripe};
use crossbeam_channel::{Receiver, Sender, unbounded};
use pages::block::Scratch;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::thread::JoinHandle;

/// Encodes stripes in the order asked for, and single stripes once more for hosts that catch up.
pub(super) struct Encoders {
    jobs: Option<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
    stripes: Vec<Stripe>,
    /// Stripes handed to the threads and not taken back, in the order in which their blocks are to come out.
    order: VecDeque<usize>,
    ready: BTreeMap<usize, Vec<EncodedBlock>>,
}

/// The threads to encode with.
#[derive(Copy, Clone)]
pub(super) struct Threads {
    /// At least one is started.
    pub(super) count: usize,
    /// Clones are starting, so bulk data are less urgent than guests, here as at hosts that share these CPUs.
    pub(super) yields: bool,
}

struct Job {
    stripe: usize,
    spec: Stripe,
    again: bool,
}

/// A stripe's blocks, done.
pub(super) struct Encoded {
    pub(super) stripe: usize,
    pub(super) blocks: Vec<EncodedBlock>,
    /// For catching up, not in the order of the schedule.
    pub(super) again: bool,
}

impl Encoders {
    /// Starts the threads, which have nothing to do yet.
    pub(super) fn start(
        prepared: &Arc<Prepared>,
        stripes: Vec<Stripe>,
        plan: EncodePlan,
        with: Threads,
        out: &Sender<Happening>,
    ) -> Self {
        let (jobs, queue) = unbounded();
        let threads = (0..with.count.max(1))
            .map(|index| {
                let (prepared, queue, out) = (Arc::clone(prepared), queue.clone(), out.clone());
                std::thread::Builder::new()
                    .name(format!("encode-{index}"))
                    .spawn(move || {
                        if with.yields {
                            usage::priority::yield_to_guests();
                        }
                        work(&prepared, &plan, &queue, &out);
                    })
                    .expect("the system can start a thread")
            })
            .collect();
        Self { jobs: Some(jobs), threads, stripes, order: VecDeque::new(), ready: BTreeMap::new() }
    }

    /// Starts on a stripe, whose blocks come out after those of earlier ones.
    pub(super) fn start_on(&mut self, stripe: usize) {
        self.submit(stripe, false);
        self.order.push_back(stripe);
    }

    /// Encodes a stripe once more.
    pub(super) fn encode_again(&self, stripe: usize) {
        self.submit(stripe, true);
    }

    fn submit(&self, stripe: usize, again: bool) {
        let job = Job { stripe, spec: self.stripes[stripe].clone(), again };
        if let Some(jobs) = &self.jobs {
            jobs.send(job).expect("encoders live as long as their queue");
        }
    }

    /// Whether a stripe's blocks name contents and do not carry them.
    pub(super) fn only_names(&self, stripe: usize) -> bool {
        !self.stripes[stripe].named.is_empty()
    }

    /// Takes back a stripe; `pop` gives stripes in the order in which they were started on.
    pub(super) fn put(&mut self, encoded: Encoded) {
        self.ready.insert(encoded.stripe, encoded.blocks);
    }

    /// The next stripe's index and blocks, if they are done.
    pub(super) fn pop(&mut self) -> Option<(usize, Vec<EncodedBlock>)> {
        let stripe = *self.order.front()?;
        let blocks = self.ready.remove(&stripe)?;
        self.order.pop_front();
        Some((stripe, blocks))
    }
}

impl Drop for Encoders {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // A panic there was reported by the thread itself, and ends the transfer by its silence.
            let _ = thread.join();
        }
    }
}

fn work(prepared: &Prepared, plan: &EncodePlan, queue: &Receiver<Job>, out: &Sender<Happening>) {
    let mut scratch = Scratch::new();
    for Job { stripe, spec, again } in queue {
        let blocks = encode_stripe(prepared, &spec, plan, &mut scratch);
        if out.send(Happening::Encoded(Encoded { stripe, blocks, again })).is_err() {
            return;
        }
    }
}

/// Encoded bytes to expect of so many.
pub(super) fn scaled(bytes: u64, ratio: f64) -> u64 {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an estimate of bytes, positive"
    )]
    let scaled = (bytes as f64 * ratio.clamp(0.001, 2.0)) as u64;
    scaled.max(1)
}
