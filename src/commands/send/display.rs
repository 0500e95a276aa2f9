//! A transfer while it runs: bars on a terminal, lines elsewhere, JSON lines for machines.

use crate::report::{Settings, TransferReport, text};
use crate::units::{bit_rate, bytes, float, time};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use planner::Plan;
use sender::driver::Progress;
use sender::guests::CloneOutcome;
use sender::prepare::Prepared;
use sender::residents::Residents;
use sender::session::Phase;
use serde_json::json;
use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::time::Duration;
use vmm::image::MappedImage;

/// Plain and JSON progress comes this often.
const LINE_EVERY: Duration = Duration::from_secs(1);
/// With more hosts than this, one bar stands for all.
const BARS_MAX: usize = 24;

/// Where progress goes.
enum Style {
    Bars(Bars),
    Lines,
    Json,
}

struct Bars {
    all: MultiProgress,
    hosts: Vec<ProgressBar>,
}

/// Tells of a transfer.
pub(super) struct Display {
    style: Style,
    hosts: Vec<String>,
    phases: Vec<Phase>,
    /// What was last told of each clone.
    clones: Vec<&'static str>,
    told: Duration,
    /// When data began to flow.
    flowing: Option<Duration>,
}

impl Display {
    pub(super) fn new(plan: &Plan, json: bool) -> Self {
        let style = match json {
            true => Style::Json,
            false if std::io::stderr().is_terminal() => {
                Style::Bars(Bars { all: MultiProgress::new(), hosts: Vec::new() })
            }
            false => Style::Lines,
        };
        let hosts: Vec<String> = plan.hosts.iter().map(|host| host.name.clone()).collect();
        Self {
            style,
            phases: vec![Phase::Absent; hosts.len()],
            hosts,
            clones: Vec::new(),
            told: Duration::ZERO,
            flowing: None,
        }
    }

    pub(super) fn reading(&self, images: &[Arc<MappedImage>]) {
        let all = images.iter().map(|image| image.info().file_len).sum();
        match &self.style {
            Style::Json => {
                say(&json!({"event": "reading", "images": images.len(), "bytes": all}).to_string())
            }
            _ => eprintln!("reading {} images, {}", images.len(), bytes(all)),
        }
    }

    /// What hosts hold already, and who did not tell.
    pub(super) fn residents(&self, residents: &Residents) {
        let name = |host: &u16| self.hosts[usize::from(*host)].as_str();
        if let Style::Json = &self.style {
            let told = residents
                .told
                .iter()
                .map(|(host, contents)| json!({"host": name(host), "contents": contents}));
            let failed =
                residents.failed.iter().map(|(host, why)| json!({"host": name(host), "reason": why}));
            let (told, failed): (Vec<_>, Vec<_>) = (told.collect(), failed.collect());
            say(&json!({"event": "residents", "told": told, "failed": failed}).to_string());
            return;
        }
        for (host, contents) in &residents.told {
            eprintln!(
                "{} has {} of what it needs already",
                name(host),
                bytes(contents * pages::PAGE_SIZE as u64)
            );
        }
        for (host, why) in &residents.failed {
            eprintln!("{} does not tell what it has already, and is sent everything: {why}", name(host));
        }
    }

    pub(super) fn prepared(&mut self, prepared: &Prepared, settings: &Settings, took: Duration) {
        let contents = u64::from(prepared.index.content_count()) * pages::PAGE_SIZE as u64;
        match &mut self.style {
            Style::Json => {
                let event = json!({"event": "prepared", "seconds": took.as_secs_f64(), "content_bytes": contents,
                    "segments": prepared.segments.len(), "settings": settings});
                say(&event.to_string());
            }
            Style::Bars(_) | Style::Lines => {
                eprintln!(
                    "merged in {}: {} of different contents for {} sets of hosts; {}, {} bytes a symbol, rate {}",
                    time(took.as_secs_f64()),
                    bytes(contents),
                    prepared.segments.len(),
                    settings.encoding,
                    settings.symbol_bytes,
                    settings.rate
                );
            }
        }
        if let Style::Bars(bars) = &mut self.style {
            bars.start(&self.hosts);
        }
    }

    pub(super) fn progress(&mut self, progress: &Progress) {
        if progress.started && self.flowing.is_none() {
            self.flowing = Some(progress.elapsed);
        }
        self.phase_changes(progress);
        self.clone_changes(progress);
        let due = progress.elapsed >= self.told + LINE_EVERY;
        if due {
            self.told = progress.elapsed;
        }
        match &self.style {
            Style::Bars(bars) => bars.show(self, progress),
            Style::Lines if due => self.line(progress),
            Style::Json if due => self.json(progress),
            Style::Lines | Style::Json => {}
        }
    }

    /// What became of a host is told at once.
    fn phase_changes(&mut self, progress: &Progress) {
        for (index, (phase, _, _)) in progress.hosts.iter().enumerate() {
            if *phase == self.phases[index] {
                continue;
            }
            self.phases[index] = phase.clone();
            let (name, elapsed) = (&self.hosts[index], progress.elapsed.as_secs_f64());
            match (&self.style, phase) {
                (Style::Json, _) => {
                    let mut event = json!({"event": "phase", "elapsed_s": elapsed, "host": name});
                    if let (Some(event), Ok(serde_json::Value::Object(phase))) =
                        (event.as_object_mut(), serde_json::to_value(phase))
                    {
                        event.extend(phase);
                    }
                    say(&event.to_string());
                }
                // Bars show phases themselves; a reason needs more room.
                (Style::Bars(bars), Phase::Failed { reason }) => {
                    let _ = bars.all.println(format!("{name}: failed: {reason}"));
                }
                (Style::Bars(_), _) => {}
                (Style::Lines, Phase::Failed { reason }) => {
                    say(&format!("{elapsed:6.1} s  {name}: failed: {reason}"))
                }
                (Style::Lines, _) => say(&format!("{elapsed:6.1} s  {name}: {}", phase_name(phase))),
            }
        }
    }

    /// What became of a clone, too.
    fn clone_changes(&mut self, progress: &Progress) {
        let clones = progress.clones.all();
        self.clones.resize(clones.len(), "");
        for (clone, told) in clones.iter().zip(&mut self.clones) {
            let state = match clone {
                CloneOutcome { failed: Some(_), .. } => "failed",
                CloneOutcome { ended: true, .. } => "ended",
                CloneOutcome { complete: Some(_), .. } => "independent",
                CloneOutcome { running: Some(_), .. } => "running",
                _ => "",
            };
            if *told == state {
                continue;
            }
            *told = state;
            let (host, elapsed) = (&self.hosts[clone.host], progress.elapsed.as_secs_f64());
            let reason = clone.failed.as_ref().map_or(String::new(), |reason| format!(": {reason}"));
            match &self.style {
                Style::Json => say(&json!({"event": "clone", "elapsed_s": elapsed, "clone": clone.name, "host": host,
                    "state": state, "reason": clone.failed, "running_s": clone.running.map(|at| at.as_secs_f64()),
                    "faults": clone.faults.here + clone.faults.network(), "network_faults": clone.faults.network()})
                .to_string()),
                Style::Bars(bars) if state == "failed" => {
                    let _ = bars.all.println(format!("{} on {host}: failed{reason}", clone.name));
                }
                Style::Bars(_) => {}
                Style::Lines => say(&format!("{elapsed:6.2} s  {} on {host}: {state}{reason}", clone.name)),
            }
        }
    }

    /// Seconds that a host will need from now on, at its rate so far.
    fn left(&self, progress: &Progress, host: usize) -> Option<f64> {
        let flowing = progress.elapsed.saturating_sub(self.flowing?).as_secs_f64();
        let (_, done, _) = &progress.hosts[host];
        let rest = progress.expected_bytes[host].saturating_sub(*done);
        (*done > 0 && flowing > 0.2).then(|| float(rest) * flowing / float(*done))
    }

    fn line(&self, progress: &Progress) {
        let count = |wanted: fn(&Phase) -> bool| self.phases.iter().filter(|phase| wanted(phase)).count();
        let (done, expected) = sums(progress);
        let slowest = (0..self.hosts.len()).filter(|host| is_going(&self.phases[*host]));
        let left = slowest.filter_map(|host| self.left(progress, host)).fold(0.0, f64::max);
        say(&format!(
            "{:6.1} s  {} of {} in all, {} of {} hosts complete, {} failed, rate {}, ETA {}",
            progress.elapsed.as_secs_f64(),
            bytes(done),
            bytes(expected),
            count(|phase| *phase == Phase::Complete),
            self.hosts.len(),
            count(|phase| matches!(phase, Phase::Failed { .. })),
            bit_rate(float(progress.rate_bytes_per_s) * 8.0),
            time(left),
        ));
    }

    fn json(&self, progress: &Progress) {
        let host = |(index, (phase, done, _)): (usize, &(Phase, u64, u64))| {
            json!({"host": self.hosts[index], "phase": phase_name(phase), "done_bytes": done,
                "expected_bytes": progress.expected_bytes[index], "eta_s": self.left(progress, index)})
        };
        let hosts: Vec<serde_json::Value> = progress.hosts.iter().enumerate().map(host).collect();
        let event = json!({"event": "progress", "elapsed_s": progress.elapsed.as_secs_f64(),
            "rate_bps": progress.rate_bytes_per_s * 8, "counters": progress.stats, "hosts": hosts});
        say(&event.to_string());
    }

    pub(super) fn finish(&mut self, report: &TransferReport) {
        match &self.style {
            Style::Json => say(&json!({"event": "report", "report": report}).to_string()),
            Style::Bars(bars) => {
                // What stays on the screen is the table. A bar that is not finished would draw itself once more.
                bars.hosts.iter().for_each(ProgressBar::finish_and_clear);
                let _ = bars.all.clear();
                say(text(report).trim_start());
            }
            Style::Lines => say(text(report).trim_start()),
        }
    }
}

impl Bars {
    fn start(&mut self, hosts: &[String]) {
        let wide = hosts.iter().map(String::len).max().unwrap_or(0);
        let template = format!("{{prefix:<{wide}}} {{bar:32.cyan/blue}} {{percent:>3}} % {{msg}}");
        let style = ProgressStyle::with_template(&template).expect("a constant template but for a width");
        let all = ["all hosts".to_owned()];
        let names = if hosts.len() > BARS_MAX { &all[..] } else { hosts };
        self.hosts = names
            .iter()
            .map(|name| self.all.add(ProgressBar::new(1).with_style(style.clone()).with_prefix(name.clone())))
            .collect();
    }

    fn show(&self, display: &Display, progress: &Progress) {
        if self.hosts.len() != display.hosts.len() {
            let (done, expected) = sums(progress);
            let complete = display.phases.iter().filter(|phase| **phase == Phase::Complete).count();
            self.hosts[0].set_length(expected.max(1));
            self.hosts[0].set_position(done);
            self.hosts[0].set_message(format!("{complete} of {} complete", display.hosts.len()));
            return;
        }
        let flowing = display.flowing.map_or(0.0, |at| progress.elapsed.saturating_sub(at).as_secs_f64());
        for (host, bar) in self.hosts.iter().enumerate() {
            let (phase, done, _) = &progress.hosts[host];
            let expected = progress.expected_bytes[host].max(*done).max(1);
            bar.set_length(expected);
            bar.set_position(if *phase == Phase::Complete { expected } else { *done });
            if !is_going(phase) || *phase == Phase::Absent {
                bar.set_message(format!("{:>10}  {}", bytes(*done), phase_name(phase)));
                continue;
            }
            let goodput = if flowing > 0.0 { float(*done) * 8.0 / flowing } else { 0.0 };
            let left = display.left(progress, host).map_or("–".to_owned(), time);
            bar.set_message(format!(
                "{:>10}  {}  {}  ETA {left}",
                bytes(*done),
                phase_name(phase),
                bit_rate(goodput)
            ));
        }
    }
}

fn is_going(phase: &Phase) -> bool {
    !matches!(phase, Phase::Complete | Phase::Failed { .. })
}

fn phase_name(phase: &Phase) -> &'static str {
    match phase {
        Phase::Absent => "connecting",
        Phase::Active => "receiving",
        Phase::Suspended => "silent",
        Phase::Unicast => "catching up by unicast",
        Phase::Complete => "complete",
        Phase::Failed { .. } => "failed",
        _ => "in an unknown phase",
    }
}

/// Bytes done and expected of all hosts.
fn sums(progress: &Progress) -> (u64, u64) {
    let done: u64 = progress.hosts.iter().map(|(_, done, _)| done).sum();
    (done, progress.expected_bytes.iter().sum::<u64>().max(done))
}

fn say(line: &str) {
    // Nobody reads any more: no reason to stop sending.
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}
