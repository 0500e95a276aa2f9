//! Pages that guests wait for, sent from this host's memory ahead of everything else. No I/O and no clock here.
//!
//! **A page goes to a host at most once on a connection**: the connection loses nothing, so a page asked for again is on
//! its way, and a host that asks without end gets each page once. That bounds the queues, too.
//!
//! **Order.** Pages that a guest waits for come first, hosts in turn; then those that another host's guest of the same VM waited for; then pages that guests will probably touch next;
//! bulk data after both (the driver sees to that).

use pages::Bitmap;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use wire::control::Want;
use wire::limits;

/// Pages in one answer to faults: few, so that the first is not kept waiting by the last.
const ANSWER_PAGES: usize = 8;
/// Pages in one answer ahead of faults.
const AHEAD_PAGES: usize = 32;

/// A page that a block is expected to bring is answered by itself if it has not come after so long: some batches on the wire, the
/// question what is missing, and its answer.
const SHARED_PATIENCE: Duration = Duration::from_millis(30);

/// Pages to send to one host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// Index of the host.
    pub host: usize,
    /// The VM.
    pub vm: u16,
    /// Its pages, at least one; in the order of the faults, or ascending.
    pub pages: Vec<u32>,
    /// Guests wait for them.
    pub urgent: bool,
}

/// Counters of a page service, in pages.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, serde::Serialize)]
pub struct PageStats {
    /// Answers to faults.
    pub answered: u64,
    /// Sent ahead of faults.
    pub ahead: u64,
    /// Sent to hosts since another host's clones of the same VM waited for them.
    pub spread: u64,
    /// Asked for again while on their way, or after: not sent again.
    pub suppressed: u64,
    /// Pages that guests waited for and the group's next block, or one on its way, brought in place of an answer.
    pub shared: u64,
    /// Of pages that were to come by the group: answered after all, since they did not in time.
    pub late: u64,
    /// Encoded bytes of all answers.
    pub bytes: u64,
}

/// A host asked for what it cannot need: it is not to be trusted with this transfer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WantError {
    /// No clone of this VM is there.
    #[error("asked for pages of VM {vm}, of which it has no clone")]
    Vm {
        /// The VM.
        vm: u16,
    },
    /// The VM has no such page.
    #[error("asked for page {page} of VM {vm}, which has {page_count}")]
    Page {
        /// The VM.
        vm: u16,
        /// The page.
        page: u64,
        /// Pages of the VM.
        page_count: u32,
    },
}

#[derive(Default)]
struct Host {
    vms: BTreeMap<u16, Asked>,
    urgent: VecDeque<(u16, u32)>,
    spread: VecDeque<(u16, u32)>,
    ahead: VecDeque<(u16, u32)>,
}

/// Pages of one VM at one host, on its connection.
struct Asked {
    /// Sent, or queued.
    taken: Bitmap,
    /// In one of the queues of pages that nobody here waits for. An entry there without its bit was sent as an answer meanwhile.
    ahead: Bitmap,
}

/// See the module's text. The default one has no hosts.
#[derive(Default)]
pub struct PageService {
    /// Pages of each VM.
    page_counts: BTreeMap<u16, u32>,
    hosts: Vec<Host>,
    /// VMs that are started at each host.
    vms_of_host: Vec<Vec<u16>>,
    next: usize,
    stats: PageStats,
    /// Pages that blocks are expected to bring, by the time until which.
    held: VecDeque<(Duration, usize, u16, u32)>,
    /// Pages that a guest waited for, each once, by VM: with the order of their first faults.
    touched: BTreeMap<u16, (Bitmap, Vec<u32>)>,
}

impl PageService {
    /// A service for `vms_of_host`: the VMs started at each host; and the number of pages of each of these VMs.
    #[must_use]
    pub fn new(vms_of_host: Vec<Vec<u16>>, page_counts: BTreeMap<u16, u32>) -> Self {
        let hosts = vms_of_host.iter().map(|_| Host::default()).collect();
        let touched =
            page_counts.iter().map(|(vm, count)| (*vm, (Bitmap::new(*count), Vec::new()))).collect();
        Self {
            page_counts,
            hosts,
            vms_of_host,
            next: 0,
            stats: PageStats::default(),
            held: VecDeque::new(),
            touched,
        }
    }

    /// Pages of a VM that its clones missed when they touched them, in the order in which the first of them asked.
    #[must_use]
    pub fn first_faults(&self, vm: u16) -> &[u32] {
        self.touched.get(&vm).map_or(&[], |(_, pages)| pages)
    }

    /// Counters so far.
    #[must_use]
    pub fn stats(&self) -> PageStats {
        self.stats
    }

    /// Notes what an answer took on the network.
    pub fn count_bytes(&mut self, bytes: usize) {
        self.stats.bytes += bytes as u64;
    }

    /// A host has connected: what was on its way on an earlier connection may not have come, and is asked for again.
    pub fn handle_connected(&mut self, host: usize) {
        self.hosts[host] = Host::default();
        self.held.retain(|(_, other, _, _)| *other != host);
    }

    /// A host asks for pages. `is_coming` tells of a page of the VM that a guest waits for whether the host's group is about to bring
    /// it: then it is not answered by itself unless it is late.
    ///
    /// # Errors
    /// [`WantError`]: nothing of it is queued; the host is to be failed.
    pub fn handle_want(
        &mut self,
        host: usize,
        want: &Want,
        now: Duration,
        is_coming: &mut dyn FnMut(u32) -> bool,
    ) -> Result<(), WantError> {
        let vm = want.vm;
        let page_count = match self.page_counts.get(&vm) {
            Some(count) if self.vms_of_host[host].contains(&vm) => *count,
            _ => return Err(WantError::Vm { vm }),
        };
        let singles = want.pages.iter().map(|page| u64::from(*page));
        let ends =
            want.ahead.iter().map(|range| (u64::from(range.first) + u64::from(range.count)).max(1) - 1);
        if let Some(page) = singles.chain(ends).find(|page| *page >= u64::from(page_count)) {
            return Err(WantError::Page { vm, page, page_count });
        }
        if let Some((seen, pages)) = self.touched.get_mut(&vm) {
            let room = limits::WORKING_SET_MAX - pages.len().min(limits::WORKING_SET_MAX);
            pages.extend(want.pages.iter().filter(|page| seen.set(**page)).take(room));
        }
        let Host { vms, urgent, ahead, .. } = &mut self.hosts[host];
        let asked = || Asked { taken: Bitmap::new(page_count), ahead: Bitmap::new(page_count) };
        let asked = vms.entry(vm).or_insert_with(asked);
        for page in &want.pages {
            // One that waits among those ahead, a guest waits for now.
            if asked.taken.set(*page) || asked.ahead.unset(*page) {
                if is_coming(*page) {
                    self.held.push_back((now + SHARED_PATIENCE, host, vm, *page));
                } else {
                    urgent.push_back((vm, *page));
                }
            } else {
                self.stats.suppressed += 1;
            }
        }
        for page in want.ahead.iter().flat_map(|range| range.first..range.first + range.count) {
            if asked.taken.set(page) {
                asked.ahead.set(page);
                ahead.push_back((vm, page));
            } else {
                self.stats.suppressed += 1;
            }
        }
        Ok(())
    }

    /// Sends these pages of a VM to a host though nobody asked: after what guests wait for, ascending, each at most once
    /// on a connection; `again` says that those sent before have changed since.
    ///
    /// # Panics
    /// If the VM is not started at the host, or has no such page.
    pub fn push(&mut self, host: usize, vm: u16, pages: &Bitmap, again: bool) {
        let page_count = self.page_counts[&vm];
        assert!(self.vms_of_host[host].contains(&vm) && pages.len() == page_count, "pages of a guest");
        let Host { vms, ahead, .. } = &mut self.hosts[host];
        let asked = || Asked { taken: Bitmap::new(page_count), ahead: Bitmap::new(page_count) };
        let asked = vms.entry(vm).or_insert_with(asked);
        for page in pages.iter_set_ranges().flatten() {
            let waits = asked.ahead.get(page);
            if (asked.taken.set(page) || again) && !waits {
                asked.ahead.set(page);
                ahead.push_back((vm, page));
            }
        }
    }

    /// Other hosts than `from` that have this VM, and are `ready`, get these pages, too, each at most once on a connection: after what
    /// their own guests wait for.
    pub fn share(&mut self, from: usize, want: &Want, ready: &mut dyn FnMut(usize) -> bool) {
        let Some(page_count) = self.page_counts.get(&want.vm).copied() else { return };
        for host in (0..self.hosts.len()).filter(|host| *host != from && ready(*host)) {
            if !self.vms_of_host[host].contains(&want.vm) {
                continue;
            }
            let Host { vms, spread, .. } = &mut self.hosts[host];
            let asked = || Asked { taken: Bitmap::new(page_count), ahead: Bitmap::new(page_count) };
            let asked = vms.entry(want.vm).or_insert_with(asked);
            for page in &want.pages {
                if asked.taken.set(*page) {
                    asked.ahead.set(*page);
                    spread.push_back((want.vm, *page));
                }
            }
        }
    }

    /// Whether everything that was pushed to a host, or asked for ahead, has been handed out.
    #[must_use]
    pub fn is_idle(&self, host: usize) -> bool {
        let Host { urgent, spread, ahead, .. } = &self.hosts[host];
        urgent.is_empty() && spread.is_empty() && ahead.is_empty()
    }

    /// Whether a guest waits for an answer.
    #[must_use]
    pub fn is_urgent(&self) -> bool {
        self.hosts.iter().any(|host| !host.urgent.is_empty())
    }

    /// Pages that blocks were to bring and did not in time are to be answered now. `has_come` tells of a host's page whether the host
    /// has its block.
    pub fn handle_timeout(&mut self, now: Duration, has_come: &mut dyn FnMut(usize, u16, u32) -> bool) {
        while let Some((_, host, vm, page)) = self.held.front().copied().filter(|(until, ..)| *until <= now) {
            self.held.pop_front();
            if has_come(host, vm, page) {
                self.stats.shared += 1;
            } else {
                self.stats.late += 1;
                self.hosts[host].urgent.push_back((vm, page));
            }
        }
    }

    /// When [`PageService::handle_timeout`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        self.held.front().map(|(until, ..)| *until)
    }

    /// The next answer. `has_room` tells whether a host can be sent pages ahead of its faults now.
    pub fn poll(&mut self, has_room: &mut dyn FnMut(usize) -> bool) -> Option<Answer> {
        let count = self.hosts.len();
        let turn = |at: usize| (self.next + at) % count;
        if let Some(host) = (0..count).map(turn).find(|host| !self.hosts[*host].urgent.is_empty()) {
            self.next = (host + 1) % count;
            let (vm, pages) = take(&mut self.hosts[host].urgent, ANSWER_PAGES, &mut |_, _| true);
            self.stats.answered += pages.len() as u64;
            return Some(Answer { host, vm, pages, urgent: true });
        }
        for host in (0..count).map(turn) {
            let Host { vms, spread, ahead, .. } = &mut self.hosts[host];
            if spread.is_empty() && ahead.is_empty() || !has_room(host) {
                continue;
            }
            // Those without their bit were sent as answers meanwhile.
            let mut queued = |vm, page| vms.get_mut(&vm).is_some_and(|asked| asked.ahead.unset(page));
            for (queue, counter) in [(spread, &mut self.stats.spread), (ahead, &mut self.stats.ahead)] {
                let (vm, pages) = take(queue, AHEAD_PAGES, &mut queued);
                if !pages.is_empty() {
                    self.next = (host + 1) % count;
                    *counter += pages.len() as u64;
                    return Some(Answer { host, vm, pages, urgent: false });
                }
            }
        }
        None
    }
}

/// Takes up to `most` wanted pages of one VM off the front of a queue; none only if the queue has none.
fn take(
    queue: &mut VecDeque<(u16, u32)>,
    most: usize,
    wanted: &mut dyn FnMut(u16, u32) -> bool,
) -> (u16, Vec<u32>) {
    let (mut of, mut pages) = (0, Vec::new());
    while let Some((vm, page)) = queue.front().copied() {
        if pages.len() == most || (vm != of && !pages.is_empty()) {
            break;
        }
        queue.pop_front();
        of = vm;
        if wanted(vm, page) {
            pages.push(page);
        }
    }
    (of, pages)
}

#[cfg(test)]
mod tests;
