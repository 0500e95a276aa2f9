//! The hosts' phases: who is waited for, who is taken off its groups, who has failed.

use super::flight::At;
use super::host::{Host, Phase};
use super::{Event, Session};
use std::time::Duration;
use wire::BlockId;
use wire::control::{self, ToHost};

/// Slowness is judged over so long …
const SLOW_WINDOW: Duration = Duration::from_millis(400);
/// … and is holding the others up for this share of it. Equal hosts that take turns do not come near.
const SLOW_SHARE: f64 = 0.7;
/// A host that claims to lack more than this share of what its groups carry makes them carry it again for it alone …
const CLAIM_SHARE_MAX: f64 = 0.3;
/// … unless the half of the others with the smaller claims lack as much as this, too: then it is the network …
const CLAIM_SHARE_USUAL: f64 = 0.1;
/// … and fewer symbols do not tell.
const CLAIM_SYMBOLS_MIN: u64 = 500;
/// A host that falls silent so often, each time within `SILENCE_MEMORY` of the last, is too slow for its groups.
const SILENCES_MAX: u32 = 3;
const SILENCE_MEMORY: Duration = Duration::from_secs(10);

impl Session {
    pub(super) fn set_phase(&mut self, host: usize, phase: Phase, now: Duration) {
        if self.hosts[host].phase == phase {
            return;
        }
        let entry = &mut self.hosts[host];
        entry.phase = phase.clone();
        entry.restart_judgement(now);
        if phase != Phase::Active {
            self.take_off_flights(host);
        }
        self.events.push_back(Event::Phase { host, phase });
    }

    /// Fails a host: it is named, with the reason, and never waited for again.
    pub fn fail(&mut self, host: usize, reason: impl Into<String>, now: Duration) {
        if self.hosts[host].is_over() {
            return;
        }
        let reason = reason.into();
        if self.hosts[host].connected {
            self.say(host, ToHost::Cancel { reason: control::reason(&reason) });
        }
        self.hosts[host].owed.clear();
        self.hosts[host].catching_up.clear();
        self.hosts[host].counted.clear();
        self.set_phase(host, Phase::Failed { reason }, now);
    }

    /// Ends the session: every host that is not complete is told so and fails with `reason`.
    pub fn cancel(&mut self, reason: &str, now: Duration) {
        self.cancelled = true;
        for host in 0..self.hosts.len() {
            self.fail(host, reason, now);
        }
    }

    /// Takes the host off every block in flight; what it lacks of them it owes.
    fn take_off_flights(&mut self, host: usize) {
        let ids: Vec<u64> =
            self.in_flight.iter().filter(|(_, f)| f.hosts.contains_key(&host)).map(|(id, _)| *id).collect();
        for id in ids {
            self.owe(host, id);
        }
        let entry = &mut self.hosts[host];
        entry.acked_bytes = entry.sent_bytes;
        // Of the others, which it seemed to hold, nobody will ask any more. Some got done before they were asked about:
        // sent whole, they would never be heard of again.
        let unasked = entry.to_ask.drain(..).chain(entry.undecided.drain(..).map(|(_, id)| id));
        entry.owed.extend(unasked.filter(|id| !entry.done.contains(BlockId(*id))));
    }

    /// A silent host speaks again. It was on its groups all the while, so it may well have what it owes: it is asked
    /// first, and what is still in flight for others is so for it, too. One that falls silent again and again is too slow for
    /// its groups.
    pub(super) fn resume(&mut self, host: usize, now: Duration) {
        let entry = &mut self.hosts[host];
        entry.silences = if now > entry.silent_at + SILENCE_MEMORY { 1 } else { entry.silences + 1 };
        entry.silent_at = now;
        if entry.silences > SILENCES_MAX && self.may_serve_apart() {
            self.hosts[host].silences = 0;
            self.serve_apart(host, now);
            return;
        }
        self.set_phase(host, Phase::Active, now);
        for id in std::mem::take(&mut self.hosts[host].owed) {
            self.put_on_flight(host, id, now);
        }
    }

    /// Asks for a block that a host may have in part, and repairs it with the others on the group if they lack it still.
    fn put_on_flight(&mut self, host: usize, id: u64, now: Duration) {
        let flight = self.in_flight.get_mut(&id);
        let entry = &mut self.hosts[host];
        let Some(flight) = flight.filter(|flight| entry.is_member(flight.channel, now)) else {
            return entry.to_ask.push(id);
        };
        entry.flights += usize::from(flight.hosts.insert(host, At::Sending).is_none());
        if flight.bursts == 0 {
            entry.to_ask.push(id);
        }
    }

    /// Counts the time in which answers could be heard. While this program does not run, such as on a busy machine, nobody's
    /// answer is late.
    pub(super) fn listen(&mut self, now: Duration) {
        let most = self.config.lag_limit / 4;
        self.listened += now.saturating_sub(self.listened_at).min(most);
        self.listened_at = now;
    }

    /// How long a host may be silent: the configured time, or much longer than half of the hosts take to answer, since
    /// then the machines are busy. If half of them are silent at once, it is the network or this host that does not hear.
    fn silence_max(&self) -> Duration {
        let here: Vec<&Host> = self.hosts.iter().filter(|host| host.connected && !host.is_over()).collect();
        let mut latencies: Vec<Duration> = here.iter().map(|host| host.latency).collect();
        latencies.sort_unstable();
        let median = latencies.get(latencies.len() / 2).copied().unwrap_or_default();
        let lag = self.config.lag_limit.max(median * 4);
        let silent = here.iter().filter(|host| host.is_silent(self.listened, lag)).count();
        if silent > 1 && silent * 2 >= here.len() { lag * 8 } else { lag }
    }

    /// Sending starts when every host has accepted or failed, or those that have not had their time.
    pub(super) fn has_started(&mut self, now: Duration) -> bool {
        if self.started_at.is_none() && now >= self.start_due() {
            self.started_at = Some(now);
        }
        self.started_at.is_some()
    }

    /// When sending starts at the latest, as things stand.
    pub(super) fn start_due(&self) -> Duration {
        let absent = || self.hosts.iter().filter(|host| host.phase == Phase::Absent);
        if absent().next().is_none() {
            Duration::ZERO
        } else if absent().all(|host| host.last_trouble.is_some()) {
            self.config.start_grace
        } else {
            self.config.start_wait_max
        }
    }

    /// Judges silence and slowness.
    pub(super) fn judge_hosts(&mut self, now: Duration) {
        self.charge_full_window(now);
        self.ask_again(now);
        let lag = self.silence_max();
        for host in 0..self.hosts.len() {
            if self.hosts[host].is_over() {
                continue;
            }
            self.restart_clocks(host, now);
            if let Some(reason) = self.hopeless(host, now) {
                self.fail(host, reason, now);
                continue;
            }
            let entry = &self.hosts[host];
            let silent = entry.is_silent(self.listened, lag);
            match &entry.phase {
                Phase::Active if silent => self.set_phase(host, Phase::Suspended, now),
                Phase::Active if now > entry.blocking_since + SLOW_WINDOW => self.judge_slowness(host, now),
                Phase::Unicast if entry.has_caught_up() => {
                    self.set_phase(host, Phase::Active, now);
                    self.join_open_channels(host);
                }
                _ => {}
            }
        }
    }

    /// While nothing is under way to a host, it cannot get on: its turn has not come, and that is not its fault.
    fn restart_clocks(&mut self, host: usize, now: Duration) {
        let is_finishing = self.is_finishing(host);
        let entry = &mut self.hosts[host];
        if !entry.has_under_way() && !is_finishing {
            entry.last_progress = now;
        }
        if entry.owed.is_empty() && !entry.has_under_way() || !entry.connected {
            entry.useful_since = now;
            entry.useful_bytes = entry.done_bytes;
        }
    }

    fn is_finishing(&self, host: usize) -> bool {
        self.encoding_done && self.hosts[host].connected && self.hosts[host].has_all()
    }

    /// Why a host will not be complete in useful time, if so.
    fn hopeless(&mut self, host: usize, now: Duration) -> Option<String> {
        let rate_min = self.useful_rate();
        let (timeout, finish) = (self.config.host_timeout, self.config.finish_timeout);
        let is_finishing = self.is_finishing(host);
        let entry = &mut self.hosts[host];
        if now > entry.last_heard + timeout {
            let trouble = entry.last_trouble.as_ref().map(|trouble| format!(": {trouble}"));
            return Some(format!("no answer for {} s{}", timeout.as_secs(), trouble.unwrap_or_default()));
        }
        if !matches!(entry.phase, Phase::Active | Phase::Unicast) {
            return None;
        }
        if is_finishing {
            let late = now > entry.last_progress + finish;
            let words = "has every block and does not complete its images";
            return late.then(|| format!("{words} for {} s: look at its disk", finish.as_secs()));
        }
        if now > entry.last_progress + timeout {
            return Some(format!("no progress for {} s", timeout.as_secs()));
        }
        let window = self.config.useful_window;
        if now <= entry.useful_since + window {
            return None;
        }
        let taken = entry.done_bytes.saturating_sub(entry.useful_bytes);
        entry.useful_since = now;
        entry.useful_bytes = entry.done_bytes;
        let least = rate_min.saturating_mul(window.as_secs().max(1));
        (taken < least).then(|| {
            format!(
                "took {taken} bytes in {} s, of at least {least}: too slow to be waited for",
                window.as_secs()
            )
        })
    }

    /// Bytes per second that a host must take: less than configured if the session itself sends so slowly.
    fn useful_rate(&self) -> u64 {
        const SHARE: u64 = 64;
        let fair = self.pacer.bytes_per_s() / (SHARE * self.hosts.len().max(1) as u64);
        self.config.useful_bytes_per_s.min(fair)
    }

    /// Whether yet another host may be taken off its groups for slowness. If half of them are slow, slow is normal.
    fn may_serve_apart(&self) -> bool {
        let apart = self.hosts.iter().filter(|host| host.phase == Phase::Unicast).count();
        let here = self.hosts.iter().filter(|host| !host.is_over() && host.connected).count();
        (apart + 1) * 2 <= here
    }

    /// At the end of a window: did the host hold its groups up, or make them carry everything again?
    fn judge_slowness(&mut self, host: usize, now: Duration) {
        let entry = &mut self.hosts[host];
        let slow = entry.blocking > SLOW_WINDOW.mul_f64(SLOW_SHARE);
        entry.claim_share = entry.claims();
        let share = entry.claim_share.unwrap_or(0.0);
        entry.restart_judgement(now);
        let greedy = share > CLAIM_SHARE_MAX && self.usual_claim_share(host) < CLAIM_SHARE_USUAL;
        if (slow || greedy) && self.may_serve_apart() {
            self.serve_apart(host, now);
        }
    }

    /// What half of the other hosts do not exceed, as far as they tell yet; all, if none does.
    fn usual_claim_share(&self, host: usize) -> f64 {
        let others = (0..self.hosts.len()).filter(|other| *other != host && self.hosts[*other].is_active());
        let mut shares: Vec<f64> = others.filter_map(|other| self.hosts[other].claims()).collect();
        shares.sort_by(f64::total_cmp);
        shares.get(shares.len().saturating_sub(1) / 2).copied().unwrap_or(1.0)
    }

    /// Takes a host off its groups; what it lacks it gets over its control connection.
    pub(super) fn serve_apart(&mut self, host: usize, now: Duration) {
        for channel in 0..self.channels.len() {
            self.leave(host, channel);
        }
        let entry = &mut self.hosts[host];
        entry.times_apart = entry.times_apart.saturating_add(1);
        // Measured anew if it is tried on its groups again, whichever judge took it off: the other one must not judge it by
        // what was lost before.
        (entry.loss, entry.claim_share, entry.deaf_since) = (0.0, None, None);
        self.set_phase(host, Phase::Unicast, now);
    }

    /// Charges the hosts that hold up the others, if they are few, with the time since they were last charged.
    pub(super) fn charge(&mut self, blockers: &[usize], of: usize, now: Duration) {
        if of < 2 || blockers.len() * 2 > of {
            return;
        }
        for host in blockers {
            let entry = &mut self.hosts[*host];
            entry.blocking += now.saturating_sub(entry.charged_at).min(self.config.through_interval);
            entry.charged_at = now;
        }
    }
}

impl Host {
    /// The share of what its groups carried that it claimed to lack: since the judgement began, or before if that is too
    /// little to tell.
    fn claims(&self) -> Option<f64> {
        #[expect(clippy::cast_precision_loss, reason = "counts of symbols in half a second")]
        let share = self.claimed as f64 / self.offered as f64;
        if self.offered >= CLAIM_SYMBOLS_MIN { Some(share) } else { self.claim_share }
    }

    /// Whether a question waits for its answer for longer than `lag`, at a time when the session had `listened` so long.
    fn is_silent(&self, listened: Duration, lag: Duration) -> bool {
        self.asks.front().is_some_and(|ask| listened > ask.listened + lag)
    }

    fn restart_judgement(&mut self, now: Duration) {
        self.blocking = Duration::ZERO;
        self.blocking_since = now;
        (self.offered, self.claimed) = (0, 0);
    }
}
