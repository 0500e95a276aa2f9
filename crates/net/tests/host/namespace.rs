//! A network namespace of a thread's own: it vanishes with the thread.

use nix::sched::{CloneFlags, unshare};
use std::process::Command;

/// Runs `f` on a thread in a fresh network namespace with loopback up, if this user may make one; else says so and
/// returns `None`. Programs that `f` starts run in the namespace.
pub(crate) fn run<T: Send>(what: &str, f: impl FnOnce() -> T + Send) -> Option<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
                eprintln!("skipped {what}: no network namespace of our own ({error})");
                return None;
            }
            ip("link set lo up");
            ip("link set lo multicast on");
            Some(f())
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// `ip ARGUMENTS`, which must succeed.
pub(crate) fn ip(arguments: &str) {
    let status =
        Command::new("ip").args(arguments.split_whitespace()).status().expect("iproute2 is installed");
    assert!(status.success(), "ip {arguments}");
}
