//! The page's charts, as inline SVG.

use super::html::escape;
use super::{SegmentReport, TransferReport};
use crate::units::{bytes, float, time};
use std::fmt::Write;

/// One bar with its name above it and its figure behind it.
pub(super) struct Bar {
    pub(super) name: String,
    pub(super) length: f64,
    pub(super) label: String,
    pub(super) class: &'static str,
}

/// Drawing width of a chart of bars; it scales with the page.
const WIDE: f64 = 520.0;
/// Room for a bar's figure.
const LABEL: f64 = 130.0;
const ROW: f64 = 44.0;

/// Horizontal bars, the longest as wide as there is room.
pub(super) fn bars(rows: &[Bar]) -> String {
    let longest = rows.iter().map(|bar| bar.length).fold(f64::MIN_POSITIVE, f64::max);
    let mut out = String::new();
    let mut top = 0.0;
    for bar in rows {
        let wide = (bar.length / longest * (WIDE - LABEL)).max(2.0);
        let _ = write!(
            out,
            "<text class=\"soft\" x=\"0\" y=\"{:.0}\">{}</text><rect class=\"{}\" x=\"0\" y=\"{:.0}\" width=\"{wide:.1}\" \
             height=\"20\" rx=\"3\"/><text x=\"{:.1}\" y=\"{:.0}\">{}</text>",
            top + 11.0,
            escape(&bar.name),
            bar.class,
            top + 16.0,
            wide + 8.0,
            top + 31.0,
            escape(&bar.label),
        );
        top += ROW;
    }
    format!(
        "<svg viewBox=\"0 0 {WIDE} {top}\" style=\"max-width:{:.0}px\" role=\"img\">{out}</svg>",
        WIDE * 1.2
    )
}

/// Parts of a whole, side by side, in the classes' colours.
pub(super) fn stack(parts: &[(String, u64)]) -> String {
    const LINE: f64 = 1000.0;
    let all: u64 = parts.iter().map(|(_, part)| part).sum();
    let (mut out, mut left) = (String::new(), 0.0);
    for (index, (name, part)) in parts.iter().enumerate() {
        let wide = float(*part) / float(all.max(1)) * LINE;
        let _ = write!(
            out,
            "<rect class=\"c{index}\" x=\"{left:.1}\" y=\"0\" width=\"{wide:.1}\" height=\"30\"><title>{}</title></rect>",
            escape(name)
        );
        left += wide;
    }
    format!("<svg viewBox=\"0 0 {LINE} 30\" role=\"img\">{out}</svg>")
}

/// Hosts over time: which segments were sent to whom. Nothing if no segment was sent.
pub(super) fn timeline(report: &TransferReport) -> Option<String> {
    const LEFT: f64 = 110.0;
    const PLOT: f64 = 860.0;
    const LANE: f64 = 26.0;
    let mut sent: Vec<(&SegmentReport, f64)> =
        report.segments.iter().filter_map(|segment| Some((segment, segment.start_s?))).collect();
    sent.sort_by(|a, b| a.1.total_cmp(&b.1));
    let begin = sent.first()?.1;
    let complete = report.hosts.iter().filter_map(|host| host.complete_s).reduce(f64::max);
    // A segment may start after the last host that did not fail was complete.
    let finish = complete.unwrap_or(report.times.transfer_s).max(sent.last()?.1);
    let scale = PLOT / (finish - begin).max(1e-6);
    let x = |at: f64| LEFT + (at - begin) * scale;
    let lanes = float(report.hosts.len() as u64) * LANE;
    let mut out = String::new();
    for step in 0..=4_u32 {
        let at = begin + (finish - begin) * f64::from(step) / 4.0;
        let _ = write!(
            out,
            "<line class=\"grid\" x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"0\" y2=\"{lanes:.0}\"/><text class=\"soft\" x=\"{0:.1}\" \
             y=\"{1:.0}\" text-anchor=\"middle\">{2}</text>",
            x(at),
            lanes + 18.0,
            time(at)
        );
    }
    for (position, (segment, start)) in sent.iter().enumerate() {
        let end = sent.get(position + 1).map_or(finish, |next| next.1);
        let wide = ((end - start) * scale - 1.0).max(1.5);
        let class = if segment.group.is_some() { "ours" } else { "unicast" };
        for (lane, host) in report.hosts.iter().enumerate() {
            if segment.hosts.contains(&host.name) {
                let _ = write!(
                    out,
                    "<rect class=\"{class}\" x=\"{:.1}\" y=\"{:.0}\" width=\"{wide:.1}\" height=\"{:.0}\" rx=\"2\">\
                     <title>{} of contents, {}</title></rect>",
                    x(*start),
                    float(lane as u64) * LANE + 4.0,
                    LANE - 8.0,
                    bytes(segment.content_bytes),
                    escape(segment.group.as_deref().unwrap_or("unicast")),
                );
            }
        }
    }
    for (lane, host) in report.hosts.iter().enumerate() {
        let middle = float(lane as u64) * LANE + LANE / 2.0;
        let _ = write!(out, "<text x=\"0\" y=\"{:.0}\">{}</text>", middle + 4.0, escape(&host.name));
        match host.complete_s {
            Some(at) => {
                let _ =
                    write!(out, "<circle class=\"done\" cx=\"{:.1}\" cy=\"{middle:.0}\" r=\"4\"/>", x(at));
            }
            None => {
                let _ = write!(
                    out,
                    "<text class=\"failed\" x=\"{:.0}\" y=\"{:.0}\">✕ failed</text>",
                    LEFT + PLOT + 6.0,
                    middle + 4.0
                );
            }
        }
    }
    Some(format!("<svg viewBox=\"0 0 1040 {:.0}\" role=\"img\">{out}</svg>", lanes + 26.0))
}
