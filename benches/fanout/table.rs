//! Results as text.

use crate::results::{Figures, Ratio, Results, Sample};
use std::fmt::Write;

/// One run, as it ends.
pub(crate) fn line(sample: &Sample) -> String {
    let figure =
        |figure: Option<f64>, unit: &str| figure.map_or("-".to_owned(), |f| format!("{f:.2} {unit}"));
    let trouble = sample.trouble.as_ref().map_or(String::new(), |trouble| format!("  FAILED: {trouble}"));
    format!(
        "{:<11} {:<21} {:>10}  data {:>7}  wall {:>7}  load {:.1}{trouble}",
        sample.case.to_string(),
        sample.program,
        figure(sample.goodput_gbps, "Gb/s"),
        figure(sample.data_s, "s"),
        figure(sample.wall_s, "s"),
        sample.load,
    )
}

/// The tables: goodput of each program, then ratios beside the required figures.
pub(crate) fn text(results: &Results) -> String {
    let figures = results.figures();
    let mut out = format!("\n{}\n", results.machine.words());
    out += "\nGoodput in Gb/s for each receiver: the file's bits from the start of the data phase to the last host's completion\n";
    out += &goodput(results, &figures, |figures| &figures.goodput_gbps);
    out += "\nThe same with the handshake: from the sending program's start to its end\n";
    out += &goodput(results, &figures, |figures| &figures.wall_goodput_gbps);
    out += "\nscatter, times the others (required)\n";
    out += &ratios(&figures);
    out
}

fn goodput(
    results: &Results,
    figures: &[Figures],
    of: impl Fn(&Figures) -> &Vec<(String, Option<f64>)>,
) -> String {
    let mut out = format!("{:<12}", "case");
    let programs = results.programs();
    for program in &programs {
        let _ = write!(out, " {:>w$}", program, w = program.len().max(8));
    }
    out.push('\n');
    for line in figures {
        let _ = write!(out, "{:<12}", line.case.to_string());
        for (program, figure) in of(line) {
            let figure = figure.map_or("-".to_owned(), |figure| format!("{figure:.2}"));
            let _ = write!(out, " {figure:>w$}", w = program.len().max(8));
        }
        out.push('\n');
    }
    out
}

fn ratios(figures: &[Figures]) -> String {
    let mut out = format!(
        "{:<12} {:<18} {:<18} {:<18} {:<18} {:<18} {:<18}\n",
        "case", "tcp-write", "tcp-sendfile", "tls", "uftp, udpcast", "own without loss", "(tcp, dropped)"
    );
    for line in figures {
        let ratios = [
            line.to_tcp_write,
            line.to_tcp_sendfile,
            line.to_tls,
            line.to_multicast,
            line.to_lossless,
            line.to_tcp_dropped,
        ];
        let _ = write!(out, "{:<12}", line.case.to_string());
        for ratio in ratios {
            let _ = write!(out, " {:<18}", cell(ratio));
        }
        out = out.trim_end().to_owned() + "\n";
    }
    out
}

fn cell(ratio: Ratio) -> String {
    let value = ratio.value.map_or("-".to_owned(), |value| format!("{value:.2}"));
    match (ratio.required, ratio.verdict()) {
        (Some(required), Some(verdict)) => {
            format!("{value} ({required}) {}", if verdict { "OK" } else { "short" })
        }
        _ => value,
    }
}
