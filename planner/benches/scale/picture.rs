//! How time grows with the number of VMs, drawn on logarithmic axes.

use crate::Row;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 70.0;
const BOTTOM: f64 = 350.0;
const TOP: f64 = 40.0;
const RIGHT: f64 = 610.0;
/// 10 VMs to 10,000 and a little; a millisecond to ten minutes.
const VMS: (f64, f64) = (10.0, 12_000.0);
const SECONDS: (f64, f64) = (0.001, 600.0);

pub(crate) fn svg(rows: &[Row]) -> String {
    let at = |value: f64, (low, high): (f64, f64)| ((value / low).ln() / (high / low).ln()).clamp(0.0, 1.0);
    let x = |vms: f64| LEFT + at(vms, VMS) * (RIGHT - LEFT);
    let y = |seconds: f64| BOTTOM - at(seconds, SECONDS) * (BOTTOM - TOP);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"22\" font-size=\"14\">Time of a plan by number of VMs (ten to a host), one core</text>\n"
    );
    for (seconds, label) in [
        (0.001, "1 ms"),
        (0.01, "10 ms"),
        (0.1, "0.1 s"),
        (1.0, "1 s"),
        (10.0, "10 s"),
        (100.0, "100 s"),
        (600.0, "10 min"),
    ] {
        let y = y(seconds);
        svg += &format!(
            "<path d=\"M{LEFT} {y:.1}H{RIGHT}\" stroke=\"#ddd\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>\n",
            LEFT - 6.0,
            y + 4.0
        );
    }
    for vms in [10.0, 100.0, 1_000.0, 10_000.0] {
        let x = x(vms);
        svg += &format!(
            "<path d=\"M{x:.1} {TOP}V{BOTTOM}\" stroke=\"#ddd\"/><text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{vms}</text>\n",
            BOTTOM + 18.0
        );
    }
    svg += &format!(
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">VMs</text>\n",
        (LEFT + RIGHT) / 2.0,
        BOTTOM + 36.0
    );
    for (vms, seconds, label) in [
        (100.0, 1.0, "100 × 20: 1 s"),
        (1_000.0, 30.0, "1,000 × 100: 30 s"),
        (10_000.0, 600.0, "10,000 × 1,000: 10 min"),
    ] {
        svg += &format!(
            "<path d=\"M{:.1} {:.1}h20\" stroke=\"#c33\" stroke-width=\"3\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#c33\">{label}</text>\n",
            x(vms) - 10.0,
            y(seconds),
            x(vms) - 14.0,
            y(seconds) + 14.0
        );
    }
    type Time = fn(&Row) -> f64;
    let lines: [(Time, &str, &str); 2] =
        [(|row| row.plan_s, "#1a6", "whole plan, checked"), (|row| row.place_s, "#27c", "placement alone")];
    for (number, (time, colour, label)) in (0u32..).zip(lines) {
        let points: Vec<String> =
            rows.iter().map(|row| format!("{:.1},{:.1}", x(row.vms as f64), y(time(row)))).collect();
        svg += &format!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\n",
            points.join(" ")
        );
        for row in rows {
            svg += &format!(
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"/>\n",
                x(row.vms as f64),
                y(time(row))
            );
        }
        let top = TOP + 16.0 + 18.0 * f64::from(number);
        svg += &format!(
            "<path d=\"M{:.1} {top:.1}h24\" stroke=\"{colour}\" stroke-width=\"2\"/><text x=\"{:.1}\" y=\"{:.1}\">{label}</text>\n",
            LEFT + 10.0,
            LEFT + 40.0,
            top + 4.0
        );
    }
    svg + "</svg>\n"
}
