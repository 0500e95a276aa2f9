//! SIGINT, SIGTERM and SIGHUP: the first asks for a clean end, the second ends at once.

use crate::cli::exit::Exit;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Set by the first signal.
pub(crate) type Flag = Arc<AtomicBool>;

/// Its place among the signals.
const HANG_UP: usize = 2;
/// How long a second signal waits for what was begun to be over: longer than a monitor and a cancelled migration may take to answer.
const OVER_WITHIN: Duration = Duration::from_secs(30);
/// How often it looks.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// What is done in any case, however much in a hurry somebody is.
pub(crate) type Duty = Box<dyn FnOnce() + Send>;
static DUTIES: Mutex<Vec<Duty>> = Mutex::new(Vec::new());

/// Does something that must not be left half-done, as a capture, which may have stopped its VM: a second signal waits for it to be
/// over, and does then what is still to be done by its word, before it ends the process. Who ends by himself does that himself.
/// `what` is said if it does not come to an end.
pub(crate) fn to_its_end<T>(what: String, work: impl FnOnce() -> (T, Option<Duty>)) -> T {
    let place = Arc::new(Mutex::new(None));
    // Held for as long as it is worked on, so that nobody sees the place before it has its duty.
    let mut own = place.lock().unwrap_or_else(PoisonError::into_inner);
    let shared = Arc::clone(&place);
    let duty = Box::new(move || fulfil(&shared, &what));
    DUTIES.lock().unwrap_or_else(PoisonError::into_inner).push(duty);
    let (done, duty) = work();
    *own = duty;
    drop(own);
    done
}

fn fulfil(place: &Mutex<Option<Duty>>, what: &str) {
    let deadline = Instant::now() + OVER_WITHIN;
    let duty = loop {
        match place.try_lock() {
            Ok(mut duty) => break duty.take(),
            // It panicked: what it did is undone by what it dropped.
            Err(TryLockError::Poisoned(duty)) => break duty.into_inner().take(),
            Err(TryLockError::WouldBlock) if Instant::now() > deadline => {
                tracing::error!("{what} does not come to an end, and is left as it is");
                return;
            }
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOOK_EVERY),
        }
    };
    if let Some(duty) = duty {
        duty();
    }
}

/// Ends the process once all duties are done. Nobody begins anything that must come to its end meanwhile.
fn end() -> ! {
    let mut duties = DUTIES.lock().unwrap_or_else(PoisonError::into_inner);
    // What is under way, if anything, is last, so that the others need not wait for it.
    duties.drain(..).for_each(|duty| duty());
    std::process::exit(Exit::Interrupted as i32)
}

/// Starts listening for signals; what they did until now holds until then. A hang-up that is ignored (nohup(1)) stays so.
pub(crate) fn install() -> std::io::Result<Flag> {
    let flag = Flag::default();
    let shared = Arc::clone(&flag);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listen = |kind| {
        let _inside = runtime.enter();
        signal(kind)
    };
    let mut signals = vec![listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?];
    if !ignores_hang_ups() {
        signals.push(listen(SignalKind::hangup())?);
    }
    let watch = move || runtime.block_on(watch(signals, &shared));
    std::thread::Builder::new().name("signals".to_owned()).spawn(watch)?;
    Ok(flag)
}

async fn watch(mut signals: Vec<Signal>, flag: &AtomicBool) {
    loop {
        let received = std::future::poll_fn(|context| {
            let came = |(at, signal): (usize, &mut Signal)| match signal.poll_recv(context) {
                Poll::Ready(received) => Some(received.map(|()| at)),
                Poll::Pending => None,
            };
            signals.iter_mut().enumerate().find_map(came).map_or(Poll::Pending, Poll::Ready)
        });
        let Some(received) = received.await else { return };
        // A terminal that is closed may say so twice, by its shell and by the kernel.
        if flag.swap(true, Ordering::Relaxed) && received != HANG_UP {
            // Asked twice: nothing else is worth waiting for. Another thread here may be at it already: that one ends the process.
            end();
        }
    }
}

/// By proc_pid_status(5): a mask of signals, of which SIGHUP is the first.
fn ignores_hang_ups() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, Sender, channel};

    /// Who is in a hurry meanwhile; what is done is told in order.
    fn hurried(place: &Arc<Mutex<Option<Duty>>>, told: &Sender<&'static str>) {
        let (place, told) = (Arc::clone(place), told.clone());
        std::thread::spawn(move || {
            fulfil(&place, "it");
            // Nobody listens any more if the test failed.
            let _ = told.send("ended");
        });
    }

    fn all(told: &Receiver<&'static str>) -> Vec<&'static str> {
        told.iter().collect()
    }

    #[test]
    fn somebody_in_a_hurry_waits_for_what_must_not_be_left_half_done() {
        let (tell, told) = channel();
        let place = Arc::new(Mutex::new(None));
        let mut own = place.lock().expect("nobody panicked");
        hurried(&place, &tell);
        assert!(told.recv_timeout(Duration::from_millis(50)).is_err(), "it waits");
        let undone = tell.clone();
        *own = Some(Box::new(move || undone.send("undone").expect("the test listens")));
        tell.send("done").expect("the test listens");
        drop((own, tell));
        assert_eq!(all(&told), ["done", "undone", "ended"]);
    }

    #[test]
    fn what_panicked_or_left_nothing_to_do_keeps_nobody() {
        let (tell, told) = channel();
        let place = Arc::new(Mutex::new(None));
        let same = Arc::clone(&place);
        let panics = std::thread::spawn(move || {
            let _own = same.lock().expect("nobody panicked");
            panic!("on purpose");
        });
        assert!(panics.join().is_err());
        hurried(&place, &tell);
        drop(tell);
        assert_eq!(all(&told), ["ended"]);
    }

    #[test]
    fn what_was_done_is_given_back_with_its_duty_in_place() {
        let (tell, told) = channel();
        let duty: Duty = Box::new(move || tell.send("undone").expect("the test listens"));
        assert_eq!(to_its_end("it".to_owned(), || (7, Some(duty))), 7);
        assert!(told.try_recv().is_err(), "nobody is in a hurry");
        let duties: Vec<Duty> = DUTIES.lock().expect("nobody panicked").drain(..).collect();
        duties.into_iter().for_each(|duty| duty());
        assert_eq!(all(&told), ["undone"]);
    }
}
