//! SIGINT and SIGTERM: the first asks for a clean end, the second ends at once.

use crate::cli::exit::Exit;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Set by the first signal.
pub(crate) type Flag = Arc<AtomicBool>;

/// Starts listening for signals; what they did until now holds until then.
pub(crate) fn install() -> std::io::Result<Flag> {
    let flag = Flag::default();
    let shared = Arc::clone(&flag);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listen = |kind| {
        let _inside = runtime.enter();
        signal(kind)
    };
    let (interrupt, terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    let watch = move || runtime.block_on(watch(interrupt, terminate, &shared));
    std::thread::Builder::new().name("signals".to_owned()).spawn(watch)?;
    Ok(flag)
}

async fn watch(mut interrupt: Signal, mut terminate: Signal, flag: &AtomicBool) {
    loop {
        tokio::select! {
            received = interrupt.recv() => if received.is_none() { return },
            received = terminate.recv() => if received.is_none() { return },
        }
        if flag.swap(true, Ordering::Relaxed) {
            // Asked twice: nothing is worth waiting for.
            std::process::exit(Exit::Interrupted as i32);
        }
    }
}
