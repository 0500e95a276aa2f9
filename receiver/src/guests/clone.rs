//! A clone and its thread.

use super::launch::{CloneSpec, Launch, Ward};
use crossbeam_channel::Sender;
use net::udp::Waker;
use std::sync::Arc;
use std::thread::JoinHandle;
use wire::control::{self, GuestReport, GuestState, ToSender};

/// A clone of this host.
pub(super) struct Clone {
    pub(super) number: u32,
    pub(super) ward: Arc<Ward>,
    pub(super) thread: Option<JoinHandle<()>>,
    pub(super) state: State,
    pub(super) told_complete: bool,
    /// Why it is over, if not by itself.
    pub(super) why_over: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    Starting,
    Running,
    Over,
}

/// What a clone's thread tells.
pub(super) enum Event {
    Loaded(u32),
    Running(u32),
    Over(u32, Result<(), String>),
}

/// News of a clone.
pub(super) fn report(clone: &Clone, state: GuestState) -> ToSender {
    let words = control::reason(&clone.ward.status());
    ToSender::Guest(GuestReport { clone: clone.number, state, faults: clone.ward.faults(), words })
}

/// Starts a clone on a thread of its own.
pub(super) fn start(
    spec: CloneSpec,
    launcher: &Arc<dyn Launch>,
    out: &Sender<Event>,
    waker: &Arc<Waker>,
) -> Clone {
    let number = spec.clone;
    let tell = {
        let (out, waker) = (out.clone(), Arc::clone(waker));
        move |event| {
            // Nobody listens any more when the receiver ends.
            let _ = out.send(event);
            waker.wake();
        }
    };
    let (running, loaded) = (tell.clone(), tell.clone());
    let running = Box::new(move || running(Event::Running(number)));
    let ward = Arc::new(if spec.moves.is_some() {
        Ward::of_move(running, Box::new(move || loaded(Event::Loaded(number))))
    } else {
        Ward::new(running)
    });
    let (launcher, own) = (Arc::clone(launcher), Arc::clone(&ward));
    let failed = tell.clone();
    let thread = std::thread::Builder::new().name(format!("clone-{number}")).spawn(move || {
        tracing::info!(clone = number, name = spec.name, "starting");
        if spec.moves.is_none() {
            // Whatever else moves here: a clone's program and vCPUs are no more urgent than other guests.
            usage::priority::leave();
        }
        // A clone whose program panics is over like any other, and is named.
        let run = std::panic::AssertUnwindSafe(|| launcher.run(&spec, &own));
        let ended = std::panic::catch_unwind(run).unwrap_or_else(|_| Err("its program panicked".into()));
        tracing::info!(clone = number, name = spec.name, ?ended, "over");
        tell(Event::Over(number, ended));
    });
    let thread = match thread {
        Ok(thread) => Some(thread),
        Err(error) => {
            failed(Event::Over(number, Err(format!("cannot start a thread: {error}"))));
            None
        }
    };
    Clone { number, ward, thread, state: State::Starting, told_complete: false, why_over: None }
}
