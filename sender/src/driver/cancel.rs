//! A transfer of clones that is cancelled, or whose pages nobody vouches for any more: hosts end those that lack pages and say which,
//! then it is over.

use super::Transfer;
use crate::session::Phase;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use wire::control::{EndClones, ToHost};

/// Why clones of a transfer that was cancelled are ended: what their reason begins with.
pub const CANCELLED: &str = "cancelled by `scatter cancel`";
/// A host that has not ended its clones by then is named, and left alone.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Why pages that were read until now are not vouched for, once they are not: in words that begin with their VM.
pub type Vouch = Arc<dyn Fn() -> Option<String> + Send + Sync>;

/// Whether, why, and since when.
#[derive(Default)]
pub(super) struct Cancelling {
    flag: Arc<AtomicBool>,
    vouch: Option<Vouch>,
    reason: Option<String>,
    since: Option<Duration>,
}

impl Cancelling {
    /// Whether nothing may be told any more of pages that were read until now.
    pub(super) fn is_broken(&mut self) -> bool {
        let broken = self.vouch.as_ref().and_then(|vouch| vouch());
        let is_broken = broken.is_some();
        // It stays so.
        self.reason = broken.or(self.reason.take());
        is_broken
    }

    /// Why it is to be cancelled, if it is.
    fn reason(&mut self) -> Option<String> {
        if self.since.is_none() && !self.is_broken() && self.flag.load(Ordering::Relaxed) {
            self.reason = Some(CANCELLED.to_owned());
        }
        self.reason.clone()
    }
}

impl Transfer {
    /// Once the flag is set, clones that lack pages are ended at their hosts, and with them the transfer; before [`run`](Self::run). For
    /// VMs that leave it is [`depart`](Self::depart) that is told.
    pub fn cancel_when(&mut self, flag: Arc<AtomicBool>) {
        self.cancelling.flag = flag;
    }

    /// Asked each time after pages were read and before anything of them is told to a host; before [`run`](Self::run). Once it gives a
    /// reason nothing of them is, and clones that lack pages are ended for it: so no host has a page that was read too late.
    pub fn vouched_by(&mut self, vouch: Vouch) {
        self.cancelling.vouch = Some(vouch);
    }

    pub(super) fn steer_cancel(&mut self) {
        let Some(reason) = self.cancelling.reason() else { return };
        let now = self.start.elapsed();
        let going: Vec<usize> = (0..self.config.hosts.len())
            .filter(|host| !matches!(self.session.phase(*host), Phase::Complete | Phase::Failed { .. }))
            .collect();
        match self.cancelling.since {
            None => {
                self.cancelling.since = Some(now);
                for host in going {
                    if self.queues[host].is_none() {
                        let reason = format!("{reason}, which could not be told to it: it is not connected");
                        self.session.fail(host, reason, now);
                        continue;
                    }
                    let reason = wire::control::reason(&reason);
                    let end = EndClones { transfer: self.config.name.clone(), reason };
                    self.tell(host, ToHost::EndClones(end));
                }
            }
            Some(since) if now >= since + ANSWER_WITHIN => {
                let seconds = ANSWER_WITHIN.as_secs();
                for host in going {
                    self.session.fail(host, format!("{reason}, and did not answer within {seconds} s"), now);
                }
            }
            Some(_) => {}
        }
    }
}
