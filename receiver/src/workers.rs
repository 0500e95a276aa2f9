//! Threads that check and place blocks, and the receiving thread's part in it.
//!
//! A wake-up costs more than a small block where CPUs are few and many receivers share them. So the receiving
//! thread takes blocks itself while its sockets are empty, and workers are woken only for what it does not get to:
//! a backlog, or an image to be synced, which takes long. On a host with CPUs to spare the sockets are rarely
//! empty while data flow, and the workers do nearly all of it.

use crate::check::{Checked, Job, Place, check};
use crate::residents::Residents;
use crate::store::Intake;
use crossbeam_channel::{Receiver, Sender, unbounded};
use net::udp::Waker;
use pages::VmId;
use pages::block::{BlockLimits, Scratch};
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Blocks left to the receiving thread before a worker is woken.
const BACKLOG: usize = 2;
/// The receiving thread keeps away from a store that needed so long for one block: its sockets come first …
const SLOW_BLOCK: Duration = Duration::from_millis(20);
/// … for so long.
const SLOW_PAUSE: Duration = Duration::from_secs(1);

/// What a worker did.
pub(crate) enum Done {
    /// A block was checked.
    Checked(Checked),
    /// A VM's image was synced and named, or could not be.
    Finished(u16, Result<(), String>),
}

enum Task {
    Check(Box<Job>),
    Finish(u16),
}

#[derive(Default)]
struct Queue {
    tasks: VecDeque<Task>,
    /// Images to be synced among them: a worker's task only.
    finishing: usize,
    asleep: usize,
    closed: bool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    work: Condvar,
}

impl Shared {
    fn queue(&self) -> std::sync::MutexGuard<'_, Queue> {
        // A worker that panicked held no half-done queue: pushes and pops are whole.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next task for a worker; `None` when there will be none.
    fn next(&self) -> Option<Task> {
        let mut queue = self.queue();
        loop {
            if let Some(task) = queue.tasks.pop_front() {
                queue.finishing -= usize::from(matches!(task, Task::Finish(_)));
                return Some(task);
            }
            if queue.closed {
                return None;
            }
            queue.asleep += 1;
            queue = self.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.asleep -= 1;
        }
    }
}

/// See the module's text.
pub(crate) struct Workers {
    shared: Arc<Shared>,
    intake: Arc<Intake>,
    residents: Option<Arc<Residents>>,
    results: Receiver<Done>,
    threads: Vec<JoinHandle<()>>,
    scratch: Scratch,
    limits: BlockLimits,
    away_until: Option<Instant>,
}

impl Workers {
    /// Starts `count` threads, at least one. Their results wake the receiving thread by `waker`.
    pub(crate) fn start(
        count: usize,
        intake: &Arc<Intake>,
        residents: Option<Arc<Residents>>,
        waker: &Arc<Waker>,
    ) -> Self {
        let shared = Arc::new(Shared::default());
        let (out, results) = unbounded();
        let threads = (0..count.max(1))
            .map(|index| {
                let (shared, out) = (Arc::clone(&shared), out.clone());
                let (intake, waker) = (Arc::clone(intake), Arc::clone(waker));
                let residents = residents.clone();
                std::thread::Builder::new()
                    .name(format!("place-{index}"))
                    .spawn(move || work(&shared, &out, &intake, residents.as_deref(), &waker))
                    .expect("the system can start a thread")
            })
            .collect();
        Self {
            shared,
            intake: Arc::clone(intake),
            residents,
            results,
            threads,
            scratch: Scratch::new(),
            limits: BlockLimits::default(),
            away_until: None,
        }
    }

    /// Hands in a block; the session's bound on bytes in flight bounds how many wait.
    pub(crate) fn check(&self, job: Box<Job>) {
        self.submit(Task::Check(job));
    }

    /// Hands in a VM whose pages are all placed.
    pub(crate) fn finish(&self, vm: u16) {
        self.submit(Task::Finish(vm));
    }

    fn submit(&self, task: Task) {
        let mut queue = self.shared.queue();
        queue.finishing += usize::from(matches!(task, Task::Finish(_)));
        queue.tasks.push_back(task);
        let wake = queue.asleep > 0
            && (queue.tasks.len() > BACKLOG || queue.finishing > 0 || self.away_until.is_some());
        drop(queue);
        if wake {
            self.shared.work.notify_one();
        }
    }

    /// What the workers have done since the last call.
    pub(crate) fn results(&self) -> impl Iterator<Item = Done> {
        self.results.try_iter()
    }

    /// Whether a block waits that [`Workers::help`] would do.
    pub(crate) fn has_work_here(&self) -> bool {
        self.away_until.is_none() && {
            let queue = self.shared.queue();
            queue.tasks.len() > queue.finishing
        }
    }

    /// Does one waiting block on this thread, which has nothing to receive; `None` if there is none for it.
    pub(crate) fn help(&mut self) -> Option<Checked> {
        let start = Instant::now();
        match self.away_until {
            Some(until) if start < until => return None,
            _ => self.away_until = None,
        }
        let job = {
            let mut queue = self.shared.queue();
            let at = queue.tasks.iter().position(|task| matches!(task, Task::Check(_)))?;
            match queue.tasks.remove(at) {
                Some(Task::Check(job)) => job,
                _ => return None,
            }
        };
        let (intake, residents) = (&*self.intake, self.residents.as_deref());
        let place = Place { intake, residents, limits: &self.limits };
        let checked = check(*job, place, &mut self.scratch);
        let end = Instant::now();
        if end - start > SLOW_BLOCK {
            self.away_until = Some(end + SLOW_PAUSE);
            self.shared.work.notify_all();
        }
        Some(checked)
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.shared.queue().closed = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // A panic was reported by the thread; the transfer then ends by the sender's time-out.
            let _ = thread.join();
        }
    }
}

fn work(shared: &Shared, out: &Sender<Done>, intake: &Intake, residents: Option<&Residents>, waker: &Waker) {
    let (limits, mut scratch) = (BlockLimits::default(), Scratch::new());
    let place = Place { intake, residents, limits: &limits };
    while let Some(task) = shared.next() {
        let done = match task {
            Task::Check(job) => Done::Checked(check(*job, place, &mut scratch)),
            Task::Finish(vm) => {
                let finished = intake.finish(VmId(vm)).map(|_| ()).map_err(|error| error.to_string());
                Done::Finished(vm, finished)
            }
        };
        if out.send(done).is_err() {
            return;
        }
        waker.wake();
    }
}
