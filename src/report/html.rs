//! A report as one HTML page that needs nothing else: no script, no font, no image from elsewhere.

use super::charts;
use super::text::{class_name, goodput};
use super::{HostReport, TransferReport};
use crate::units::{bit_rate, bytes, float, percent, time};
use std::fmt::Write;

const STYLE: &str = include_str!("page.css");

/// The page.
pub(crate) fn page(report: &TransferReport) -> String {
    let title = format!("{} · VMScatter", escape(&report.name));
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<style>\n{STYLE}</style></head>\
         <body><main>\n"
    );
    head(&mut out, report);
    comparison(&mut out, report);
    if !report.departures.is_empty() {
        super::departures::html(&mut out, &report.departures);
    }
    if let Some(clones) = &report.clones {
        super::clones::html(&mut out, clones);
    }
    bytes_section(&mut out, report);
    classes(&mut out, report);
    hosts(&mut out, report);
    timeline(&mut out, report);
    plan_picture(&mut out, report);
    details(&mut out, report);
    out.push_str("</main></body></html>\n");
    out
}

/// Text that means itself.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn head(out: &mut String, report: &TransferReport) {
    let complete = report.hosts.iter().filter(|host| host.is_complete()).count();
    let all = report.hosts.len();
    let state = if complete == all { "good" } else { "bad" };
    let _ = writeln!(
        out,
        "<header><p class=\"brand\">VMScatter · transfer report</p><h1>{}</h1>\
         <p class=\"lead\">{} of <b>{} VMs</b>, {} to carry in all, from <b>{}</b> to <b>{all} hosts</b> in <b>{}</b>. \
         <span class=\"pill {state}\">{complete} of {all} hosts complete</span></p></header>",
        escape(&report.name),
        bytes(report.image_bytes()),
        report.vms.len(),
        bytes(report.copies_bytes()),
        escape(&report.source),
        time(report.times.total_s),
    );
}

/// What the page is for, if there is something to compare with.
fn comparison(out: &mut String, report: &TransferReport) {
    let Some(comparison) = &report.comparison else { return };
    out.push_str("<section><h2>Beside the alternative</h2>");
    if let Some(other) = comparison.others.first() {
        let fewer = float(other.link_bytes) / float(comparison.scatter.link_bytes.max(1));
        let faster = other.seconds / comparison.scatter.seconds.max(1e-9);
        let _ = write!(
            out,
            "<div class=\"tiles\"><div class=\"tile\"><b>{fewer:.1}×</b><span>fewer bytes on the sender's link than a {}</span>\
             </div><div class=\"tile\"><b>{faster:.1}×</b><span>{} than it, reading and merging included</span></div></div>",
            escape(&other.name),
            if faster >= 1.0 { "faster" } else { "as fast" },
        );
    }
    let ways: Vec<_> = std::iter::once(&comparison.scatter).chain(&comparison.others).collect();
    let bars = |value: &dyn Fn(&super::Alternative) -> (f64, String)| {
        let rows = ways.iter().enumerate().map(|(index, way)| {
            let (length, label) = value(way);
            charts::Bar {
                name: way.name.clone(),
                length,
                label,
                class: if index == 0 { "ours" } else { "other" },
            }
        });
        charts::bars(&rows.collect::<Vec<_>>())
    };
    let _ = write!(
        out,
        "<div class=\"pair\"><figure><figcaption>Bytes on the sender's link</figcaption>{}</figure>\
         <figure><figcaption>Time until the last host has everything</figcaption>{}</figure></div>",
        bars(&|way| (float(way.link_bytes), bytes(way.link_bytes))),
        bars(&|way| (way.seconds, time(way.seconds))),
    );
    let verified = ways.iter().all(|way| way.verified);
    let _ = writeln!(
        out,
        "<p class=\"note\">{} Links: {}. Bytes counted {}. Memory: {}.</p></section>",
        if verified {
            "Every rebuilt image was compared byte for byte with its source: all the same."
        } else {
            "<b class=\"bad\">Some rebuilt image differs from its source.</b>"
        },
        escape(&comparison.links),
        escape(&comparison.counted),
        escape(&comparison.memory),
    );
}

/// From all copies to the wire: where the bytes went.
fn bytes_section(out: &mut String, report: &TransferReport) {
    let net = &report.network;
    let steps = [
        ("All copies, as they are", report.copies_bytes(), "other"),
        ("Each VM once", report.image_bytes(), "step"),
        ("Different contents (merged, no uniform pages)", net.content_bytes, "step"),
        ("Encoded", net.encoded_bytes, "step"),
        ("On the sender's link: sealed, repaired, headers", net.wire_bytes, "ours"),
    ];
    let rows = steps.map(|(name, value, class)| charts::Bar {
        name: name.to_owned(),
        length: float(value),
        label: format!("{} · {}", bytes(value), percent(value, report.copies_bytes())),
        class,
    });
    let _ = writeln!(
        out,
        "<section><h2>Where the bytes went</h2><figure>{}</figure></section>",
        charts::bars(&rows)
    );
}

fn classes(out: &mut String, report: &TransferReport) {
    let all: u64 = report.classes.iter().map(|class| class.pages).sum();
    let parts: Vec<(String, u64)> =
        report.classes.iter().map(|class| (class_name(&class.name).to_owned(), class.pages)).collect();
    out.push_str("<section><h2>Pages by class</h2>");
    out.push_str(&charts::stack(&parts));
    out.push_str(
        "<table><thead><tr><th></th><th>class</th><th class=\"n\">pages</th><th class=\"n\">memory</th>\
         <th class=\"n\">share</th><th class=\"n\">different contents</th></tr></thead><tbody>",
    );
    for (index, class) in report.classes.iter().enumerate() {
        let _ = write!(
            out,
            "<tr><td><i class=\"key c{index}\"></i></td><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td>\
             <td class=\"n\">{}</td><td class=\"n\">{}</td></tr>",
            class_name(&class.name),
            class.pages,
            bytes(class.pages * pages::PAGE_SIZE as u64),
            percent(class.pages, all),
            class.contents,
        );
    }
    out.push_str(
        "</tbody></table><p class=\"note\">Zero and uniform pages cost next to nothing whoever sends them; they are no \
         credit to merging.</p></section>\n",
    );
}

fn hosts(out: &mut String, report: &TransferReport) {
    out.push_str(
        "<section><h2>Hosts</h2><table><thead><tr><th>host</th><th>state</th><th class=\"n\">after</th>\
         <th class=\"n\">needed</th><th class=\"n\">goodput</th><th class=\"n\">repaired blocks</th>\
         <th class=\"n\">CPU</th><th class=\"n\">peak memory</th><th>VMs</th></tr></thead><tbody>",
    );
    for host in &report.hosts {
        host_row(out, report, host);
    }
    out.push_str("</tbody></table></section>\n");
}

fn host_row(out: &mut String, report: &TransferReport, host: &HostReport) {
    let dash = || "–".to_owned();
    let figures = host.figures.as_ref();
    let repaired =
        figures.map_or_else(dash, |figures| (figures.blocks_cauchy + figures.blocks_raptorq).to_string());
    let class = if host.is_complete() { "good" } else { "bad" };
    let words = host.reason.clone().unwrap_or_else(|| host.vms.join(", "));
    let _ = write!(
        out,
        "<tr><td><b>{}</b></td><td><span class=\"pill {class}\">{}</span></td><td class=\"n\">{}</td>\
         <td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{repaired}</td><td class=\"n\">{}</td>\
         <td class=\"n\">{}</td><td>{}</td></tr>",
        escape(&host.name),
        escape(&host.state),
        host.complete_s.map_or_else(dash, time),
        bytes(host.needed_bytes),
        goodput(report, host).map_or_else(dash, bit_rate),
        figures.map_or_else(dash, |figures| time(figures.cpu_s)),
        figures.map_or_else(dash, |figures| bytes(figures.peak_memory_bytes)),
        escape(&words),
    );
}

fn timeline(out: &mut String, report: &TransferReport) {
    let Some(chart) = charts::timeline(report) else { return };
    let _ = writeln!(
        out,
        "<section><h2>What was sent when, and to whom</h2><figure>{chart}</figure><p class=\"note\">A column is a \
         segment: the contents of one set of hosts, sent once to their multicast group (filled) or by unicast \
         (outlined). Dots mark where a host had its last image.</p></section>"
    );
}

fn plan_picture(out: &mut String, report: &TransferReport) {
    let Some(picture) = &report.plan_picture else { return };
    let _ = writeln!(
        out,
        "<section><h2>The plan, as it was foreseen</h2><figure class=\"plan\">{picture}</figure><p class=\"note\">Bytes \
         on links are foreseen with headers and repair, and to be held against those that were carried, above.</p></section>"
    );
}

fn details(out: &mut String, report: &TransferReport) {
    let (net, cost, times, settings) = (&report.network, &report.cost, &report.times, &report.settings);
    let repair = net.again_datagrams + net.cauchy_datagrams + net.raptorq_datagrams;
    let rows = [
        ("Reading and merging", time(times.prepare_s)),
        ("Connecting until the first datagram", times.first_datagram_s.map_or("–".to_owned(), time)),
        ("Transfer", time(times.transfer_s)),
        ("Datagrams", format!("{} of up to {} bytes of content", net.datagrams, settings.symbol_bytes)),
        (
            "Repair",
            format!(
                "{} of datagrams: {} source symbols again, {} Cauchy, {} RaptorQ; {} of {} blocks needed it",
                percent(repair, net.datagrams),
                net.again_datagrams,
                net.cauchy_datagrams,
                net.raptorq_datagrams,
                net.blocks_repaired,
                net.blocks
            ),
        ),
        ("Catch-up by unicast", format!("{} blocks, {}", net.catch_up_blocks, bytes(net.catch_up_bytes))),
        ("Groups", format!("{}, {} joins, {} leaves", net.groups, net.joins, net.leaves)),
        ("Encoding", settings.encoding.clone()),
        ("Rate", settings.rate.clone()),
        ("Interface", format!("{}, MTU {}", settings.interface, settings.mtu)),
        ("CPU of the sender", format!("{}, {:.2} s per GiB of memory", time(cost.cpu_s), cost.cpu_s_per_gib)),
        (
            "Memory of the sender",
            format!(
                "{} beyond the images, of these index {} and window {}",
                bytes(cost.peak_anonymous_bytes),
                bytes(cost.index_bytes),
                bytes(cost.window_bytes)
            ),
        ),
    ];
    out.push_str("<section><h2>Details</h2><table class=\"plain\"><tbody>");
    for (name, value) in rows {
        let _ = write!(out, "<tr><th>{name}</th><td>{}</td></tr>", escape(&value));
    }
    let _ = writeln!(
        out,
        "</tbody></table></section><footer>scatter {}, transfer of {} s since 1970</footer>",
        escape(&report.scatter),
        report.started_unix_s
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_break_out() {
        assert_eq!(escape("<b a=\"x\">&"), "&lt;b a=&quot;x&quot;&gt;&amp;");
    }
}
