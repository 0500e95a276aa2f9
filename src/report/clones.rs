//! What became of clones, in the report.

use super::html::escape;
use crate::units::{bytes, float, time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt::Write;

/// Clones that were started while their memory arrived. Times in seconds from the start of the command; a clone's word has come
/// back to the sender by then.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClonesReport {
    /// Clones that ran.
    pub(crate) running: u64,
    /// Half of them executed an instruction by then.
    pub(crate) first_instruction_p50_s: Option<f64>,
    /// 99 of 100 did.
    pub(crate) first_instruction_p99_s: Option<f64>,
    /// The last one did.
    pub(crate) first_instruction_last_s: Option<f64>,
    /// Page faults on pages that were on the host already. Faults are counted up to the moment when a clone depended on nobody.
    pub(crate) faults_here: u64,
    /// … that a block brought while the fault waited.
    pub(crate) faults_block: u64,
    /// … that the sender answered.
    pub(crate) faults_sender: u64,
    /// … that another receiver answered.
    pub(crate) faults_peer: u64,
    /// Share of the faults that waited for the network.
    pub(crate) network_fault_ratio: Option<f64>,
    /// Pages that the sender sent because a guest waited for them.
    pub(crate) pages_answered: u64,
    /// Pages that it sent with them, ahead of faults.
    pub(crate) pages_ahead: u64,
    /// Pages that it sent to hosts since another host's clones of the same VM waited for them.
    #[serde(default)]
    pub(crate) pages_spread: u64,
    /// Pages asked for while on their way, and not sent again.
    pub(crate) wants_suppressed: u64,
    /// Pages that guests waited for and a block for the whole group brought in place of an answer.
    #[serde(default)]
    pub(crate) pages_shared: u64,
    /// Pages that were to come so and were answered after all, being late.
    #[serde(default)]
    pub(crate) pages_late: u64,
    /// Blocks sent out of turn for such pages.
    #[serde(default)]
    pub(crate) blocks_hastened: u64,
    /// Encoded bytes of all answers.
    pub(crate) answer_bytes: u64,
    /// VMs that ran once at the sender before their clones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) rehearsals: Vec<RehearsalReport>,
    /// Each clone.
    pub(crate) clones: Vec<CloneReport>,
}

/// A VM that ran once at the sender, to see what its clones will touch first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RehearsalReport {
    /// Its name.
    pub(crate) vm: String,
    /// Pages that it touched.
    pub(crate) pages: u64,
    /// How long it took, beside reading and merging.
    pub(crate) total_s: f64,
}

/// A VM that was captured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CaptureReport {
    /// Its name.
    pub(crate) vm: String,
    /// Its monitor, or the file.
    pub(crate) source: String,
    /// How its memory was taken.
    pub(crate) way: String,
    /// Why so.
    pub(crate) because: String,
    /// From the first command to the last byte.
    pub(crate) total_s: f64,
    /// How long the source stood, if it ran before: in place, until the transfer was over.
    pub(crate) pause_s: f64,
    /// Pages taken with their bytes, those that came again included; 0 for files.
    pub(crate) pages: u64,
    /// Pages told to be zero.
    pub(crate) zero_pages: u64,
    /// Bytes of QEMU's stream.
    pub(crate) stream_bytes: u64,
    /// Disks that were frozen: their files do not change any more, and clones' overlays go over them.
    pub(crate) disks: Vec<String>,
    /// Its memory was read in place, and what happened to it meanwhile: the transfer failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) disturbed: Option<String>,
}

/// In words.
pub(crate) fn capture_words(capture: &CaptureReport) -> String {
    let mut words = format!(
        "{} captured by {} ({}) in {}, {}",
        capture.vm,
        capture.way,
        capture.because,
        time(capture.total_s),
        bytes(capture.stream_bytes),
    );
    if capture.pause_s > 0.0 {
        let _ = write!(words, "; it stood for {}, and goes on", time(capture.pause_s));
    }
    if let Some(disturbed) = &capture.disturbed {
        let _ = write!(words, "; not vouched for: {disturbed}");
    }
    if !capture.disks.is_empty() {
        let _ = write!(words, "; frozen disks: {}", capture.disks.join(", "));
    }
    words
}

/// One clone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CloneReport {
    /// Its name.
    pub(crate) name: String,
    /// The VM that it is a clone of.
    pub(crate) vm: String,
    /// Its host.
    pub(crate) host: String,
    /// When it executed an instruction.
    pub(crate) first_instruction_s: Option<f64>,
    /// When it had all of its memory.
    pub(crate) independent_s: Option<f64>,
    /// How it runs, in its host's words: what its memory shares, where its monitor is.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) how: String,
    /// Why it could not start, or was ended.
    pub(crate) failed: Option<String>,
    /// It ended by itself.
    pub(crate) ended: bool,
    /// See [`ClonesReport`].
    pub(crate) faults_here: u64,
    /// See [`ClonesReport`].
    pub(crate) faults_block: u64,
    /// See [`ClonesReport`].
    pub(crate) faults_sender: u64,
    /// See [`ClonesReport`].
    pub(crate) faults_peer: u64,
    /// Half of its faults that had to wait took at most so many microseconds.
    pub(crate) waited_p50_us: u32,
    /// 99 of 100 did.
    pub(crate) waited_p99_us: u32,
}

/// As text.
pub(super) fn text(out: &mut String, clones: &ClonesReport) {
    for RehearsalReport { vm, pages, total_s } in &clones.rehearsals {
        let _ = writeln!(
            out,
            "\n{vm} rehearsed in {}: its clones were given {pages} pages at their start",
            time(*total_s)
        );
    }
    let seconds = |at: Option<f64>| at.map_or("–".to_owned(), time);
    let _ = writeln!(
        out,
        "\n{} of {} clones ran; first instruction after {} (half), {} (99 %), {} (last)",
        clones.running,
        clones.clones.len(),
        seconds(clones.first_instruction_p50_s),
        seconds(clones.first_instruction_p99_s),
        seconds(clones.first_instruction_last_s),
    );
    let _ = writeln!(
        out,
        "page faults: {} on pages here, {} waited for a block, {} for the sender, {} for a peer{}",
        clones.faults_here,
        clones.faults_block,
        clones.faults_sender,
        clones.faults_peer,
        clones
            .network_fault_ratio
            .map_or(String::new(), |ratio| format!(" ({:.0} % by the network)", ratio * 100.0)),
    );
    let p99 = clones.clones.iter().map(|clone| clone.waited_p99_us).max().unwrap_or(0);
    let _ = writeln!(
        out,
        "answers: {} pages, {} to other hosts with the VM, and {} ahead of faults, {}; {} pages by {} blocks sent next to all, {} of them late; the slowest clone's p99 of waits {}",
        clones.pages_answered,
        clones.pages_spread,
        clones.pages_ahead,
        bytes(clones.answer_bytes),
        clones.pages_shared + clones.pages_late,
        clones.blocks_hastened,
        clones.pages_late,
        time(float(p99.into()) / 1e6),
    );
    for clone in &clones.clones {
        if let Some(reason) = &clone.failed {
            let _ = writeln!(out, "{} on {}: failed: {reason}", clone.name, clone.host);
        }
    }
}

/// As a section of the HTML page.
pub(super) fn html(out: &mut String, clones: &ClonesReport) {
    let seconds = |at: Option<f64>| at.map_or("–".to_owned(), time);
    let all = clones.clones.len();
    let good = clones.running == all as u64 && clones.clones.iter().all(|clone| clone.failed.is_none());
    let _ = write!(
        out,
        "<section><h2>Clones that run while their memory arrives</h2><div class=\"tiles\"><div class=\"tile\"><b>{}</b>\
         <span>until half of the clones ran, from the start of the command</span></div><div class=\"tile\"><b>{}</b>\
         <span>until the last one ran</span></div></div><p><span class=\"pill {}\">{} of {all} clones ran</span></p>",
        seconds(clones.first_instruction_p50_s),
        seconds(clones.first_instruction_last_s),
        if good { "good" } else { "bad" },
        clones.running,
    );
    out.push_str(
        "<table><thead><tr><th>clone</th><th>host</th><th class=\"n\">first instruction</th><th class=\"n\">all memory there</th>\
         <th class=\"n\">faults: here</th><th class=\"n\">by a block</th><th class=\"n\">by the sender</th>\
         <th class=\"n\">by a peer</th><th class=\"n\">wait, 99 %</th></tr></thead><tbody>",
    );
    for clone in &clones.clones {
        let first = clone.failed.as_ref().map_or_else(
            || seconds(clone.first_instruction_s),
            |reason| format!("<b class=\"bad\">failed: {}</b>", escape(reason)),
        );
        let _ = write!(
            out,
            "<tr><td>{}</td><td>{}</td><td class=\"n\">{first}</td><td class=\"n\">{}</td><td class=\"n\">{}</td>\
             <td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td></tr>",
            escape(&clone.name),
            escape(&clone.host),
            seconds(clone.independent_s),
            clone.faults_here,
            clone.faults_block,
            clone.faults_sender,
            clone.faults_peer,
            time(float(clone.waited_p99_us.into()) / 1e6),
        );
    }
    let _ = writeln!(
        out,
        "</tbody></table><p class=\"note\">The sender sent {} pages because a guest waited for them, {} since another \
         host's guest did, and {} ahead of faults, {}. \
         Times are until the sender knows.</p></section>",
        clones.pages_answered,
        clones.pages_spread,
        clones.pages_ahead,
        bytes(clones.answer_bytes),
    );
}
