//! A guest that is a thread: it touches its memory as a trace says, behind a userfaultfd, and measures each touch.

use receiver::guests::{CloneSpec, Launch, Ward};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use vmm::memory::GuestMemory;
use vmm::uffd::{Attachment, Backing, FaultStats, Guard, PageServer, Region, ServedVm, Uffd};

pub(crate) const KIND: &str = "player";
/// What a guest does between two touches.
const THINK: Duration = Duration::from_micros(50);
/// Counters are at most a tenth of a second old while anything happens.
const SETTLE: Duration = Duration::from_millis(300);

/// The bytes of a page: a word that tells it, and what does not compress.
pub(crate) fn page_of(page: u32) -> [u8; pages::PAGE_SIZE] {
    let mut bytes = [0; pages::PAGE_SIZE];
    let mut word = u64::from(page) + 1;
    for out in bytes.chunks_exact_mut(8) {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        out.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// What one guest saw.
#[derive(Clone, Debug)]
pub(crate) struct Played {
    pub(crate) faults: FaultStats,
    /// Sum of the times that touches took beyond a microsecond each.
    pub(crate) stall: Duration,
    pub(crate) wall: Duration,
}

/// Starts players; keeps what they saw.
pub(crate) struct Players {
    pub(crate) trace: Arc<[u32]>,
    pub(crate) server: PageServer,
    pub(crate) played: Arc<Mutex<Vec<Played>>>,
    /// Before the first touch.
    pub(crate) delay: Duration,
}

impl Players {
    fn play(&self, memory: &GuestMemory, served: &ServedVm, ward: &Ward) -> Result<(), String> {
        std::thread::sleep(self.delay);
        let start = Instant::now();
        let mut stall = Duration::ZERO;
        let mut bytes = [0; pages::PAGE_SIZE];
        for (step, &page) in self.trace.iter().enumerate() {
            let before = Instant::now();
            memory.read_page(page as usize, &mut bytes);
            let took = before.elapsed();
            stall += took.saturating_sub(Duration::from_micros(1));
            if bytes != page_of(page) {
                return Err(format!("page {page} is wrong"));
            }
            if step == 0 {
                ward.running();
            }
            if ward.is_stopped() {
                return Err("stopped".into());
            }
            while before.elapsed() < took + THINK {
                std::hint::spin_loop();
            }
        }
        let wall = start.elapsed();
        std::thread::sleep(SETTLE);
        let played = Played { faults: served.stats(), stall, wall };
        self.played.lock().unwrap_or_else(PoisonError::into_inner).push(played);
        Ok(())
    }
}

impl Launch for Players {
    fn kind(&self) -> &str {
        KIND
    }

    fn check(&self, _fingerprint: &str, _attachments: &[&str]) -> Result<(), String> {
        Ok(())
    }

    fn run(&self, spec: &CloneSpec, ward: &Ward) -> Result<(), String> {
        let words = |error: &dyn std::error::Error| error.to_string();
        let len = spec.image.page_count() as usize * pages::PAGE_SIZE;
        let memory = GuestMemory::anonymous(len).map_err(|error| words(&error))?;
        let uffd = Uffd::for_memory(&memory, Backing::Anonymous).map_err(|error| words(&error))?;
        let guard = Guard::Hook(Box::new(|_| {}));
        let (image, regions) = (Arc::clone(&spec.image), vec![Region::whole(&memory)]);
        let mut attachment = Attachment::new(&spec.name, uffd, image, regions, Backing::Anonymous, guard);
        attachment.first = spec.working_set.to_vec();
        let served = self.server.attach(attachment).map_err(|error| words(&error))?;
        let played = self.play(&memory, &served, ward);
        // Its memory goes only when nobody fills it any more.
        while !ward.is_stopped() && played.is_ok() && served.status() == vmm::uffd::VmStatus::Serving {
            std::thread::sleep(Duration::from_millis(5));
        }
        played
    }
}
