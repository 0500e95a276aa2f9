//! The hosts' phases: who is waited for, who is taken off its groups, who has failed.

use super::Event;
use super::Session;
use super::host::{Host, Phase};
use std::time::Duration;
use wire::control::{self, ToHost};
use wire::limits;

/// Slowness is judged over so long …
const SLOW_WINDOW: Duration = Duration::from_millis(400);
/// … and is holding the others up for this share of it. Equal hosts that take turns do not come near.
const SLOW_SHARE: f64 = 0.7;

impl Session {
    pub(super) fn set_phase(&mut self, host: usize, phase: Phase, now: Duration) {
        if self.hosts[host].phase == phase {
            return;
        }
        self.hosts[host].phase = phase.clone();
        self.hosts[host].blocking = Duration::ZERO;
        self.hosts[host].blocking_since = now;
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
        // Of the others, which it seemed to hold, nobody will ask any more.
        entry.owed.extend(entry.to_ask.drain(..));
    }

    /// A silent host speaks again. It was on its groups all the while, so it may well have what it owes: it is asked
    /// first, and only what it lacks is sent whole.
    pub(super) fn resume(&mut self, host: usize, now: Duration) {
        self.set_phase(host, Phase::Active, now);
        let entry = &mut self.hosts[host];
        if entry.owed.len() <= limits::DEFICITS_MAX {
            entry.to_ask.extend(std::mem::take(&mut entry.owed));
        }
    }

    /// How long a host may be silent: the configured time, or much longer than half of the hosts take to answer, since
    /// then the machines are busy. If half of them are silent at once, it is the network or this host that does not hear.
    fn silence_max(&self, now: Duration) -> Duration {
        let here: Vec<&Host> = self.hosts.iter().filter(|host| host.connected && !host.is_over()).collect();
        let mut latencies: Vec<Duration> = here.iter().map(|host| host.latency).collect();
        latencies.sort_unstable();
        let median = latencies.get(latencies.len() / 2).copied().unwrap_or_default();
        let lag = self.config.lag_limit.max(median * 4);
        let is_silent = |host: &&&Host| host.asks.front().is_some_and(|ask| now > ask.at + lag);
        let silent = here.iter().filter(is_silent).count();
        if silent > 1 && silent * 2 >= here.len() { lag * 8 } else { lag }
    }

    /// Sending starts when every host has accepted or failed, or those that have not had their time.
    pub(super) fn has_started(&mut self, now: Duration) -> bool {
        if self.started_at.is_some() {
            return true;
        }
        let absent = || self.hosts.iter().filter(|host| host.phase == Phase::Absent);
        let tried = absent().all(|host| host.last_trouble.is_some());
        let grace = if tried { self.config.start_grace } else { self.config.start_wait_max };
        if absent().next().is_none() || now >= grace {
            self.started_at = Some(now);
        }
        self.started_at.is_some()
    }

    /// Judges silence and slowness.
    pub(super) fn judge_hosts(&mut self, now: Duration) {
        self.charge_full_window(now);
        self.ask_again(now);
        let (lag, timeout) = (self.silence_max(now), self.config.host_timeout);
        for host in 0..self.hosts.len() {
            let entry = &mut self.hosts[host];
            let silent = entry.asks.front().is_some_and(|ask| now > ask.at + lag);
            let stuck = now > entry.last_progress + timeout;
            match &entry.phase {
                Phase::Active if silent => self.set_phase(host, Phase::Suspended, now),
                Phase::Active if now > entry.blocking_since + SLOW_WINDOW => {
                    let slow = entry.blocking > SLOW_WINDOW.mul_f64(SLOW_SHARE);
                    entry.blocking = Duration::ZERO;
                    entry.blocking_since = now;
                    if slow && self.may_serve_apart() {
                        self.serve_apart(host, now);
                    }
                }
                Phase::Unicast if !stuck && entry.has_caught_up() => {
                    self.set_phase(host, Phase::Active, now);
                    self.join_open_channels(host);
                }
                Phase::Active | Phase::Unicast if stuck && entry.has_work() => {
                    let reason = format!("no progress for {} s", timeout.as_secs());
                    self.fail(host, reason, now);
                }
                Phase::Absent | Phase::Suspended if stuck => {
                    let trouble = entry.last_trouble.as_ref().map(|trouble| format!(": {trouble}"));
                    let trouble = trouble.unwrap_or_default();
                    let reason = format!("no answer for {} s{trouble}", timeout.as_secs());
                    self.fail(host, reason, now);
                }
                _ => {}
            }
        }
    }

    /// Whether yet another host may be taken off its groups for slowness. If half of them are slow, slow is normal.
    fn may_serve_apart(&self) -> bool {
        let apart = self.hosts.iter().filter(|host| host.phase == Phase::Unicast).count();
        let here = self.hosts.iter().filter(|host| !host.is_over() && host.connected).count();
        (apart + 1) * 2 <= here
    }

    pub(super) fn serve_apart(&mut self, host: usize, now: Duration) {
        for channel in 0..self.channels.len() {
            self.leave(host, channel);
        }
        self.hosts[host].times_apart = self.hosts[host].times_apart.saturating_add(1);
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
