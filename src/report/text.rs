//! A report as text, for terminals.

use super::{HostReport, TransferReport};
use crate::units::{bit_rate, bytes, float, percent, time};
use std::fmt::Write;

/// The whole report.
pub(crate) fn text(report: &TransferReport) -> String {
    let mut out = String::new();
    let vms = report.vms.len();
    let _ = writeln!(
        out,
        "\n{}: {}, {} VMs ({}) to {} hosts in {} ({} reading and merging)",
        report.name,
        report.state,
        vms,
        bytes(report.image_bytes()),
        report.hosts.len(),
        time(report.times.total_s),
        time(report.times.prepare_s),
    );
    hosts(&mut out, report);
    for capture in &report.captures {
        let _ = writeln!(out, "\n{}", super::capture_words(capture));
    }
    if let Some(clones) = &report.clones {
        super::clones::text(&mut out, clones);
    }
    if !report.departures.is_empty() {
        super::departures::text(&mut out, &report.departures);
    }
    classes(&mut out, report);
    network(&mut out, report);
    cost(&mut out, report);
    out
}

fn hosts(out: &mut String, report: &TransferReport) {
    let wide = report.hosts.iter().map(|host| host.name.len()).max().unwrap_or(0).max(4);
    let _ = writeln!(
        out,
        "\n{:<wide$}  {:<9} {:>8} {:>10} {:>12}  VMs",
        "host", "state", "after", "needed", "goodput"
    );
    for host in &report.hosts {
        let after = host.complete_s.map_or("–".to_owned(), time);
        let goodput = goodput(report, host).map_or("–".to_owned(), bit_rate);
        let _ = writeln!(
            out,
            "{:<wide$}  {:<9} {after:>8} {:>10} {goodput:>12}  {}",
            host.name,
            host.state,
            bytes(host.needed_bytes),
            host.reason.clone().unwrap_or_else(|| host.vms.join(", ")),
        );
    }
}

/// Encoded bytes that a host needed, over the time in which data flowed to it.
pub(super) fn goodput(report: &TransferReport, host: &HostReport) -> Option<f64> {
    let seconds = host.complete_s? - report.times.first_datagram_s?;
    (seconds > 0.0).then(|| float(host.needed_bytes) * 8.0 / seconds)
}

/// A class in words.
pub(super) fn class_name(name: &str) -> &str {
    match name {
        "zero" => "zero",
        "uniform_nonzero" => "uniform, not zero",
        "unique" => "unique",
        "repeated_in_one_vm" => "repeated in one VM",
        "shared_by_vms_of_one_host" => "shared by VMs of one host",
        "shared_across_hosts" => "shared across hosts",
        other => other,
    }
}

fn classes(out: &mut String, report: &TransferReport) {
    let all: u64 = report.classes.iter().map(|class| class.pages).sum();
    let _ = writeln!(out, "\n{:<27}{:>10} {:>10} {:>8}", "pages by class", "pages", "contents", "share");
    for class in &report.classes {
        let _ = writeln!(
            out,
            "  {:<25}{:>10} {:>10} {:>8}",
            class_name(&class.name),
            class.pages,
            class.contents,
            percent(class.pages, all)
        );
    }
}

fn network(out: &mut String, report: &TransferReport) {
    let net = &report.network;
    out.push_str("\nbytes\n");
    let mut row = |name: &str, value: String| {
        let _ = writeln!(out, "  {name:<25}{value}");
    };
    row("all copies", bytes(report.copies_bytes()));
    row("different contents", bytes(net.content_bytes));
    row(
        "encoded",
        format!("{} in {} blocks ({})", bytes(net.encoded_bytes), net.blocks, report.settings.encoding),
    );
    row(
        "on the sender's link",
        format!("{} in {} datagrams, headers counted", bytes(net.wire_bytes), net.datagrams),
    );
    let repair = net.again_datagrams + net.cauchy_datagrams + net.raptorq_datagrams;
    row(
        "repair",
        format!(
            "{} of datagrams: {} source again, {} Cauchy, {} RaptorQ; {} blocks needed it",
            percent(repair, net.datagrams),
            net.again_datagrams,
            net.cauchy_datagrams,
            net.raptorq_datagrams,
            net.blocks_repaired
        ),
    );
    if net.catch_up_blocks > 0 {
        row("catch-up by unicast", format!("{} blocks, {}", net.catch_up_blocks, bytes(net.catch_up_bytes)));
    }
    if net.blocks_skipped > 0 {
        row("held by all hosts before", format!("{} blocks, not sent", net.blocks_skipped));
    }
    row("groups", format!("{}, {} joins, {} leaves", net.groups, net.joins, net.leaves));
}

fn cost(out: &mut String, report: &TransferReport) {
    let (cost, times) = (&report.cost, &report.times);
    out.push_str("\ncost\n");
    let mut row = |name: &str, value: String| {
        let _ = writeln!(out, "  {name:<25}{value}");
    };
    let flowing = times.transfer_s - times.first_datagram_s.unwrap_or(0.0);
    if flowing > 0.0 {
        row("rate while sending", bit_rate(float(report.network.wire_bytes) * 8.0 / flowing));
    }
    if report.delivered_bytes > 0 {
        row(
            "memory delivered",
            format!(
                "{} at {}",
                bytes(report.delivered_bytes),
                bit_rate(float(report.delivered_bytes) * 8.0 / times.total_s)
            ),
        );
    }
    row("CPU of the sender", format!("{}, {:.2} s per GiB of memory", time(cost.cpu_s), cost.cpu_s_per_gib));
    row(
        "memory of the sender",
        format!(
            "{} beyond the images (index {}, window {})",
            bytes(cost.peak_anonymous_bytes),
            bytes(cost.index_bytes),
            bytes(cost.window_bytes)
        ),
    );
}
