//! SIGINT, SIGTERM and SIGHUP: the first asks for a clean end, the second ends at once.

use crate::cli::exit::Exit;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Set by the first signal.
pub(crate) type Flag = Arc<AtomicBool>;

/// Its place among the signals.
const HANG_UP: usize = 2;

/// What is done in any case, however much in a hurry somebody is.
type Duty = Box<dyn FnOnce() + Send>;
static DUTIES: Mutex<Vec<Duty>> = Mutex::new(Vec::new());

/// Has this done before the process is ended by a second signal. Who ends by himself does it himself.
pub(crate) fn before_the_end(duty: impl FnOnce() + Send + 'static) {
    DUTIES.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(duty));
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
            let mut duties = DUTIES.lock().unwrap_or_else(PoisonError::into_inner);
            duties.drain(..).for_each(|duty| duty());
            std::process::exit(Exit::Interrupted as i32);
        }
    }
}

/// By proc_pid_status(5): a mask of signals, of which SIGHUP is the first.
fn ignores_hang_ups() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 != 0)
}
