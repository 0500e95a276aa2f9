//! A transfer of clones that is cancelled: hosts end those that lack pages and say which, then it is over.

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

/// Whether, and since when.
#[derive(Default)]
pub(super) struct Cancelling {
    flag: Arc<AtomicBool>,
    since: Option<Duration>,
}

impl Transfer {
    /// Once the flag is set, clones that lack pages are ended at their hosts, and with them the transfer; before [`run`](Self::run). For
    /// VMs that leave it is [`depart`](Self::depart) that is told.
    pub fn cancel_when(&mut self, flag: Arc<AtomicBool>) {
        self.cancelling.flag = flag;
    }

    pub(super) fn steer_cancel(&mut self) {
        if !self.cancelling.flag.load(Ordering::Relaxed) {
            return;
        }
        let now = self.start.elapsed();
        let going: Vec<usize> = (0..self.config.hosts.len())
            .filter(|host| !matches!(self.session.phase(*host), Phase::Complete | Phase::Failed { .. }))
            .collect();
        match self.cancelling.since {
            None => {
                self.cancelling.since = Some(now);
                for host in going {
                    if self.queues[host].is_none() {
                        let reason =
                            format!("{CANCELLED}, which could not be told to it: it is not connected");
                        self.session.fail(host, reason, now);
                        continue;
                    }
                    let end = EndClones { transfer: self.config.name.clone(), reason: CANCELLED.to_owned() };
                    self.tell(host, ToHost::EndClones(end));
                }
            }
            Some(since) if now >= since + ANSWER_WITHIN => {
                let seconds = ANSWER_WITHIN.as_secs();
                for host in going {
                    self.session.fail(
                        host,
                        format!("{CANCELLED}, and did not answer within {seconds} s"),
                        now,
                    );
                }
            }
            Some(_) => {}
        }
    }
}
