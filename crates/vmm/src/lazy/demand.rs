//! Pages that guests wait for, each queued once.

use super::bits::Bits;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, OnceLock};

/// What a demand came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Demand {
    /// The page is here.
    Here,
    /// It is asked for now.
    Queued,
    /// It was asked for before and is under way.
    Pending,
    /// The image has no such page.
    Beyond,
}

type Wake = Box<dyn Fn() + Send + Sync>;

pub(super) struct Demands {
    /// Demanded at some time: it bounds the queue to one entry a page.
    wanted: Bits,
    queue: Mutex<VecDeque<u32>>,
    waker: OnceLock<Wake>,
    demanded: AtomicU64,
    suppressed: AtomicU64,
}

impl Demands {
    pub(super) fn new(pages: u32) -> Self {
        Self {
            wanted: Bits::new(pages),
            queue: Mutex::default(),
            waker: OnceLock::new(),
            demanded: AtomicU64::new(0),
            suppressed: AtomicU64::new(0),
        }
    }

    pub(super) fn demand(&self, page: u32, here: &Bits) -> Demand {
        if here.get(page) {
            return Demand::Here;
        }
        if !self.wanted.set_one(page) {
            self.suppressed.fetch_add(1, Relaxed);
            // It may have come between the two looks.
            return if here.get(page) { Demand::Here } else { Demand::Pending };
        }
        self.demanded.fetch_add(1, Relaxed);
        self.lock().push_back(page);
        if let Some(wake) = self.waker.get() {
            wake();
        }
        Demand::Queued
    }

    pub(super) fn next(&self, here: &Bits) -> Option<u32> {
        let mut queue = self.lock();
        loop {
            let page = queue.pop_front()?;
            if !here.get(page) {
                return Some(page);
            }
        }
    }

    pub(super) fn outstanding(&self, here: &Bits, page_count: u32) -> Vec<u32> {
        self.lock().clear();
        let wanted = self.wanted.runs(0..page_count, true);
        wanted.into_iter().flatten().filter(|page| !here.get(*page)).collect()
    }

    pub(super) fn set_waker(&self, wake: Wake) {
        // Set once by whoever owns the image; a second one would have to share the queue with the first.
        let _ = self.waker.set(wake);
    }

    pub(super) fn counts(&self) -> (u64, u64) {
        (self.demanded.load(Relaxed), self.suppressed.load(Relaxed))
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<u32>> {
        self.queue.lock().expect("nothing panics while it holds the queue")
    }
}
