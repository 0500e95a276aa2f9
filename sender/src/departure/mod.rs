//! VMs that leave this host: what a transfer asks of whoever holds one ([`Departing`]), each on a thread of its own
//! ([`Actor`]), since a VM's monitor may keep one waiting.

mod qemu;

pub use qemu::{DepartureError, QemuDeparture, put_right};

use crossbeam_channel::{Sender, unbounded};
use pages::{Bitmap, PageSource};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// Which pages of a VM are newer than those that blocks are made of, and where their newest versions stand.
#[derive(Clone)]
pub struct Newest {
    /// All of them.
    pub stale: Bitmap,
    /// Those that became so, or changed again, since this was last told.
    pub fresh: Bitmap,
    /// Every page in its newest version, until the next change is asked for.
    pub source: Arc<dyn PageSource>,
}

/// A VM that stands.
#[derive(Clone)]
pub struct Stood {
    /// Its memory, which will not change any more.
    pub newest: Newest,
    /// What it needs beside it: names and bytes.
    pub attachments: Vec<(String, Vec<u8>)>,
}

/// A VM that is leaving. Errors are in words.
pub trait Departing: Send {
    /// What changed; the VM runs on.
    ///
    /// # Errors
    /// The VM's pages can no longer be had. It runs on.
    fn follow(&mut self) -> Result<Newest, String>;

    /// Makes it stand. Until [`settle`](Self::settle) it runs on by itself if this process dies.
    ///
    /// # Errors
    /// It does not stand, or not all of it is known: [`resume`](Self::resume) follows.
    fn stop(&mut self) -> Result<Stood, String>;

    /// From now on only [`resume`](Self::resume) lets it run on.
    ///
    /// # Errors
    /// It may run on: `resume` follows.
    fn settle(&mut self) -> Result<(), String>;

    /// Lets it run on here.
    ///
    /// # Errors
    /// It does not: somebody has to look at it.
    fn resume(&mut self) -> Result<(), String>;

    /// Nothing of it is needed here any more.
    ///
    /// # Errors
    /// Something is left.
    fn release(&mut self) -> Result<(), String>;
}

/// What an actor is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ask {
    Follow,
    Stop,
    Settle,
    Resume,
    Release,
}

/// What it answers.
pub(crate) enum Told {
    Followed(Result<Newest, String>),
    Stood(Result<Stood, String>),
    Settled(Result<(), String>),
    Resumed(Result<(), String>),
    Released(Result<(), String>),
}

/// A thread that holds one VM.
pub(crate) struct Actor {
    asks: Option<Sender<Ask>>,
    thread: Option<JoinHandle<()>>,
}

impl Actor {
    /// `tell` is called with each answer, in order.
    pub(crate) fn start(
        mut vm: Box<dyn Departing>,
        tell: impl Fn(Told) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (asks, asked) = unbounded();
        let thread = std::thread::Builder::new().name("departure".into()).spawn(move || {
            for ask in asked {
                tell(match ask {
                    Ask::Follow => Told::Followed(vm.follow()),
                    Ask::Stop => Told::Stood(vm.stop()),
                    Ask::Settle => Told::Settled(vm.settle()),
                    Ask::Resume => Told::Resumed(vm.resume()),
                    Ask::Release => Told::Released(vm.release()),
                });
            }
        })?;
        Ok(Self { asks: Some(asks), thread: Some(thread) })
    }

    pub(crate) fn ask(&self, ask: Ask) {
        if let Some(asks) = &self.asks {
            // A thread that is gone has panicked, and said so.
            let _ = asks.send(ask);
        }
    }
}

impl Drop for Actor {
    /// Waits until everything asked for is done.
    fn drop(&mut self) {
        self.asks = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// How a VM leaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// It runs here until its host has all of it.
    Precopy,
    /// It runs at its host at once; all of it follows.
    Postcopy,
    /// It runs here while all of it is brought once, then at its host; what changed meanwhile follows.
    Hybrid,
}

/// When a VM stops here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pace {
    /// How it leaves.
    pub mode: Mode,
    /// Pre-copy: it is stopped when what is left takes no longer than half of this.
    pub downtime_limit: Duration,
    /// Hybrid: it is stopped after so long at the latest. Pre-copy: it stays here if it cannot be stopped until then.
    pub precopy_timeout: Duration,
}
