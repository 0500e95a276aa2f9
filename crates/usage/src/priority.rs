//! How urgent this process's threads are to the scheduler, beside virtual machines' (setpriority(2): on Linux a nice value is a
//! thread's, and threads inherit it).

use rustix::process::{Pid, getpriority_process, setpriority_process};
use std::io;
use std::sync::{Mutex, PoisonError};

/// Nice value while virtual machines leave their host or come to another: guests at work take all CPUs there are, and a host is
/// emptied as fast as this process gets any. Three times a guest's share.
pub const MOVING: i32 = -5;

/// How many [`Raised`] there are, and the nice value before the first.
static RAISED: Mutex<(usize, i32)> = Mutex::new((0, 0));

/// All threads of this process are more urgent for as long as there is one of these.
#[derive(Debug)]
pub struct Raised(());

impl Raised {
    /// Gives all threads of this process, and those that they start, this nice value; nothing changes if they have a lower one.
    ///
    /// # Errors
    /// The system's: a value below the process's own needs root, `CAP_SYS_NICE` or a limit (`RLIMIT_NICE`).
    pub fn to(nice: i32) -> io::Result<Self> {
        let mut raised = RAISED.lock().unwrap_or_else(PoisonError::into_inner);
        let own = getpriority_process(None)?;
        if raised.0 == 0 {
            raised.1 = own;
        }
        if nice < own {
            set_all(nice).inspect_err(|_| drop(set_all(own)))?;
        }
        raised.0 += 1;
        Ok(Self(()))
    }
}

impl Drop for Raised {
    fn drop(&mut self) {
        let mut raised = RAISED.lock().unwrap_or_else(PoisonError::into_inner);
        raised.0 -= 1;
        if raised.0 == 0 {
            // Less urgent is always allowed. Without a descriptor to list threads by, this process stays more urgent: nothing is wrong by that.
            let _ = set_all(raised.1);
        }
    }
}

/// What the calling thread starts is as urgent as this process was before it was raised: for programs that outlive it.
pub fn leave() {
    let raised = RAISED.lock().unwrap_or_else(PoisonError::into_inner);
    if raised.0 > 0 {
        // Less urgent is always allowed.
        let _ = setpriority_process(None, raised.1);
    }
}

/// The calling thread is less urgent than guests: a third of one's share. It cannot be put back without a right to that.
pub fn yield_to_guests() {
    // Less urgent is always allowed.
    let _ = getpriority_process(None).and_then(|own| setpriority_process(None, own + 5));
}

fn set_all(nice: i32) -> io::Result<()> {
    for task in std::fs::read_dir("/proc/self/task")? {
        let task = task?.file_name();
        let Some(task) = task.to_str().and_then(|id| id.parse().ok()).and_then(Pid::from_raw) else {
            continue;
        };
        match setpriority_process(Some(task), nice) {
            // It has ended.
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn threads_are_raised_together_and_put_back_with_the_last_one() {
        let own = getpriority_process(None).expect("a nice value");
        let (ask, asked) = channel();
        let (tell, told) = channel();
        let other = std::thread::spawn(move || {
            for leaves in asked {
                if leaves {
                    leave();
                }
                tell.send(getpriority_process(None).expect("a nice value")).expect("heard");
            }
        });
        let elsewhere = |leaves| {
            ask.send(leaves).expect("it listens");
            told.recv().expect("it answers")
        };
        let raised = match Raised::to(own - 3) {
            Ok(raised) => raised,
            Err(error) => {
                // As any user: nothing has changed, and it is said.
                assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
                assert_eq!(elsewhere(false), own);
                return;
            }
        };
        let second = Raised::to(own - 2).expect("allowed");
        assert_eq!((getpriority_process(None).expect("a nice value"), elsewhere(false)), (own - 3, own - 3));
        assert_eq!(elsewhere(true), own, "what that thread starts is as before");
        drop(raised);
        assert_eq!(getpriority_process(None).expect("a nice value"), own - 3);
        drop(second);
        assert_eq!((getpriority_process(None).expect("a nice value"), elsewhere(false)), (own, own));
        drop(ask);
        other.join().expect("it ended");
    }
}
