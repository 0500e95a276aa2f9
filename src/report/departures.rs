//! VMs that left their host.

use super::ClassReport;
use super::html::escape;
use super::text::class_name;
use crate::units::{bytes, float, time};
use schemars::JsonSchema;
use sender::driver::DepartureOutcome;
use serde::{Deserialize, Serialize};
use std::fmt::Write;
use std::time::Duration;

/// One of them. Times from the start of the command.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DepartureReport {
    /// Its name.
    pub(crate) vm: String,
    /// The host that gets it.
    pub(crate) host: String,
    /// Where it stands (docs/evacuation.md): `running` (here), `migrating`, `paused`, `handed over`, `released`.
    pub(crate) state: String,
    /// Why it stays, or what is wrong.
    pub(crate) reason: Option<String>,
    /// When it was told to stop here.
    pub(crate) stopped_s: Option<f64>,
    /// From then until its host said that it runs there: at most a round trip more than it stood.
    pub(crate) downtime_s: Option<f64>,
    /// When nothing of it was needed here any more.
    pub(crate) evicted_s: Option<f64>,
    /// Looks at what had changed while it ran here (pre-copy).
    pub(crate) rounds: u32,
    /// Different pages that changed each second: in the last of them, or from the first pass until it stopped.
    pub(crate) dirty_pages_per_s: u32,
    /// Pages that were newer than those in blocks when it stopped.
    pub(crate) stale_pages: u32,
    /// Of those, the ones that had changed since they were last brought to its host: what it stood for.
    #[serde(default)]
    pub(crate) late_pages: u32,
    /// Pages sent by themselves: those, and answers to its faults.
    pub(crate) answered_pages: u64,
    /// Encoded bytes of these. What came in blocks is shared with other VMs: `network` has it.
    pub(crate) answered_bytes: u64,
    /// Its pages as they were first read, by class.
    pub(crate) classes: Vec<ClassReport>,
    /// Its page faults at its host on pages that were there.
    pub(crate) faults_here: u64,
    /// … that a block brought.
    pub(crate) faults_block: u64,
    /// … that its source answered.
    pub(crate) faults_sender: u64,
    /// … that another host's block brought.
    pub(crate) faults_peer: u64,
    /// Half of its faults that had to wait took at most so many microseconds.
    pub(crate) waited_p50_us: u32,
    /// 99 of 100 did.
    pub(crate) waited_p99_us: u32,
}

impl DepartureReport {
    /// Of a VM whose transfer began `prepare` after the command did.
    pub(crate) fn of(outcome: &DepartureOutcome, prepare: Duration, classes: Vec<ClassReport>) -> Self {
        let DepartureOutcome { vm, host, state, reason, figures, faults } = outcome;
        let at = |time: Option<Duration>| time.map(|time| (prepare + time).as_secs_f64());
        let downtime = figures.stopped.zip(figures.running).map(|(from, to)| to.saturating_sub(from));
        Self {
            vm: vm.clone(),
            host: host.clone(),
            state: state.to_string(),
            reason: reason.clone(),
            stopped_s: at(figures.stopped),
            downtime_s: downtime.map(|time| time.as_secs_f64()),
            evicted_s: at(figures.released),
            rounds: figures.rounds,
            dirty_pages_per_s: figures.dirty_pages_per_s,
            stale_pages: figures.stale_pages,
            late_pages: figures.late_pages,
            answered_pages: figures.answered_pages,
            answered_bytes: figures.answered_bytes,
            classes,
            faults_here: faults.here,
            faults_block: faults.block,
            faults_sender: faults.sender,
            faults_peer: faults.peer,
            waited_p50_us: faults.waited_p50_us,
            waited_p99_us: faults.waited_p99_us,
        }
    }

    /// Where it stands, and its figures, in words.
    pub(crate) fn words(&self) -> String {
        let mut words = self.state.clone();
        if let Some(downtime) = self.downtime_s {
            let _ = write!(words, ", stood {:.0} ms", downtime * 1e3);
        }
        if let Some(evicted) = self.evicted_s {
            let _ = write!(words, ", evicted after {}", time(evicted));
        }
        if self.rounds > 0 {
            let _ = write!(words, ", {} rounds", self.rounds);
        }
        if self.stopped_s.is_some() {
            let _ = write!(words, ", {} stale pages", self.stale_pages);
            if self.rounds > 0 {
                let _ = write!(words, ", {} of them late", self.late_pages);
            }
        }
        let _ = write!(words, ", {} dirty pages/s", self.dirty_pages_per_s);
        if self.answered_pages > 0 {
            let _ = write!(
                words,
                ", {} pages by themselves ({})",
                self.answered_pages,
                bytes(self.answered_bytes)
            );
        }
        let waited = self.faults_block + self.faults_sender + self.faults_peer;
        if waited + self.faults_here > 0 {
            let p99 = time(float(self.waited_p99_us.into()) / 1e6);
            let _ = write!(
                words,
                ", {} faults, {waited} of them waited (99 %: {p99})",
                waited + self.faults_here
            );
        }
        if let Some(reason) = &self.reason {
            let _ = write!(words, ": {reason}");
        }
        words
    }
}

/// As text.
pub(super) fn text(out: &mut String, departures: &[DepartureReport]) {
    let _ = writeln!(out);
    for departure in departures {
        let _ = writeln!(out, "{} → {}: {}", departure.vm, departure.host, departure.words());
        let shares = departure.classes.iter().filter(|class| class.pages > 0);
        let shares: Vec<String> =
            shares.map(|class| format!("{} {}", class.pages, class_name(&class.name))).collect();
        let _ = writeln!(out, "  pages: {}", shares.join(", "));
    }
}

/// As a section of the HTML page.
pub(super) fn html(out: &mut String, departures: &[DepartureReport]) {
    out.push_str(
        "<section><h2>Running VMs that left</h2><table><thead><tr><th>VM</th><th>host</th><th>state</th><th class=\"n\">stood</th>\
         <th class=\"n\">evicted after</th><th class=\"n\">dirty pages/s</th><th class=\"n\">stale pages</th>\
         <th class=\"n\">sent by themselves</th><th class=\"n\">faults that waited</th><th class=\"n\">wait, 99 %</th></tr></thead><tbody>",
    );
    let seconds = |at: Option<f64>| at.map_or("–".to_owned(), time);
    for departure in departures {
        let state = match &departure.reason {
            Some(reason) => format!("{}: <b class=\"bad\">{}</b>", departure.state, escape(reason)),
            None => departure.state.clone(),
        };
        let waited = departure.faults_block + departure.faults_sender + departure.faults_peer;
        let _ = write!(
            out,
            "<tr><td>{}</td><td>{}</td><td>{state}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td>\
             <td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{waited}</td><td class=\"n\">{}</td></tr>",
            escape(&departure.vm),
            escape(&departure.host),
            departure.downtime_s.map_or("–".to_owned(), |time| format!("{:.0} ms", time * 1e3)),
            seconds(departure.evicted_s),
            departure.dirty_pages_per_s,
            departure.stale_pages,
            bytes(departure.answered_bytes),
            time(float(departure.waited_p99_us.into()) / 1e6),
        );
    }
    out.push_str("</tbody></table></section>\n");
}
