//! Who gets what when, and who is in a group at that time.

use std::collections::BTreeMap;

use super::draw::{Drawing, INK, RULE, bytes, fitted, seconds};
use super::{GAP, WIDTH};
use crate::network::Network;
use crate::predict::time;
use crate::{HostSet, Overhead, Plan};

/// Hosts drawn; more are counted.
const HOSTS_MAX: usize = 64;
const NAMES: f64 = 110.0;
/// What a host needs, by multicast; what comes to it for others; by unicast; in a group without data for it.
const COLOURS: [(&str, &str); 4] = [
    ("needed, by multicast", "#0072b2"),
    ("needed, by unicast", "#009e73"),
    ("not needed", "#d55e00"),
    ("in a group whose data are not there yet, or no more", "#cfe3f1"),
];

/// A segment's time, in ms.
struct Span {
    from: f64,
    to: f64,
    hosts: HostSet,
    group: Option<usize>,
    bytes: u64,
}

struct Axis {
    left: f64,
    ms: f64,
}

impl Axis {
    fn x(&self, ms: f64) -> f64 {
        self.left + (WIDTH - GAP - self.left) * (ms / self.ms).clamp(0.0, 1.0)
    }
}

pub(super) fn draw(drawing: &mut Drawing, plan: &Plan, overhead: &Overhead, top: f64) -> f64 {
    let network = plan.network();
    let index: BTreeMap<&str, u16> = plan.hosts.iter().map(|host| host.name.as_str()).zip(0..).collect();
    let set = |names: &[String]| -> HostSet {
        names.iter().filter_map(|name| index.get(name.as_str()).copied()).collect()
    };
    let members: Vec<HostSet> = plan.groups.iter().map(|group| set(&group.hosts)).collect();
    let spans = spans(plan, &network, overhead, &set);
    let axis = Axis { left: GAP + NAMES, ms: spans.last().map_or(1.0, |span| span.to).max(1.0) };
    let shown = plan.hosts.len().min(HOSTS_MAX);
    let row = if shown <= 12 { 24.0 } else { 14.0 };
    let first = heading(drawing, top) + 8.0;
    source_row(drawing, &axis, &spans, first);
    let hosts_top = first + 30.0;
    let join = f64::from(plan.multicast.join_latency_ms);
    for host in 0..shown {
        let y = hosts_top + host as f64 * row;
        let name = fitted(&plan.hosts[host].name, 11.0, NAMES - 8.0);
        drawing.text_end(axis.left - 8.0, y + row / 2.0 + 4.0, 11.0, &name);
        drawing.line((axis.left, y + row), (WIDTH - GAP, y + row), RULE, 0.5);
        let host = u16::try_from(host).expect("at most 64");
        for (group, of_group) in members.iter().enumerate().filter(|(_, members)| members.contains(host)) {
            let mut of = spans.iter().filter(|span| span.group == Some(group));
            let Some(begin) = of.next() else { continue };
            let end = of.next_back().unwrap_or(begin).to;
            let (x1, x2) = (axis.x(begin.from - join), axis.x(end));
            let title = format!(
                "{} in group {}, of {} hosts",
                plan.hosts[usize::from(host)].name,
                plan.groups[group].address,
                of_group.len()
            );
            drawing.rect([x1, y + 2.0, x2 - x1, row - 4.0], COLOURS[3].1, &title);
        }
        for span in &spans {
            cell(drawing, &axis, span, host, &members, (y + row * 0.25, row * 0.5));
        }
    }
    let bottom = hosts_top + shown as f64 * row;
    ticks(drawing, &axis, first, bottom);
    match plan.hosts.len() - shown {
        0 => bottom + 24.0,
        more => {
            drawing.faint(axis.left, bottom + 34.0, 12.0, &format!("and {more} hosts more"));
            bottom + 40.0
        }
    }
}

fn heading(drawing: &mut Drawing, top: f64) -> f64 {
    drawing.text(
        GAP,
        top + 12.0,
        14.0,
        "Segments in the order of sending, and who is joined to a group meanwhile",
    );
    let mut x = GAP;
    for (words, colour) in COLOURS {
        drawing.rect([x, top + 22.0, 22.0, 12.0], colour, "");
        drawing.faint(x + 28.0, top + 32.0, 12.0, words);
        x += 180.0;
    }
    top + 40.0
}

/// Each segment at the rate of the slowest link that it crosses, one after the other.
fn spans(
    plan: &Plan,
    network: &Network,
    overhead: &Overhead,
    set: &dyn Fn(&[String]) -> HostSet,
) -> Vec<Span> {
    let by_id: BTreeMap<u32, usize> = plan.groups.iter().map(|group| group.id).zip(0..).collect();
    let mut clock = plan.predicted.as_ref().map_or(0.0, |predicted| predicted.stall_ms as f64);
    let mut spans = Vec::with_capacity(plan.schedule.len());
    for segment in &plan.schedule {
        let hosts = set(&segment.hosts);
        let group = segment.group.and_then(|id| by_id.get(&id).copied());
        let (receivers, copies) = match group {
            Some(group) => (set(&plan.groups[group].hosts), 1),
            None => (hosts.clone(), hosts.len() as u64),
        };
        let once = overhead.bytes(segment.predicted_bytes, receivers.len());
        let on =
            |link: usize| time(if link == 0 { once * copies } else { once }, network.links()[link].rate_bps);
        let longest = network.tree(&receivers).into_iter().map(on).max().unwrap_or_default();
        let to = clock + longest.as_secs_f64() * 1e3;
        spans.push(Span { from: clock, to, hosts, group, bytes: segment.predicted_bytes });
        clock = to;
    }
    spans
}

fn source_row(drawing: &mut Drawing, axis: &Axis, spans: &[Span], y: f64) {
    drawing.text_end(axis.left - 8.0, y + 16.0, 11.0, "sent");
    for (at, span) in spans.iter().enumerate() {
        let (x1, x2) = (axis.x(span.from), axis.x(span.to));
        let fill = if at % 2 == 0 { "#4d4d4d" } else { "#8c8c8c" };
        let title = format!("segment {at}: {} for {} hosts", bytes(span.bytes), span.hosts.len());
        drawing.rect([x1, y, x2 - x1, 22.0], fill, &title);
        let said = bytes(span.bytes);
        if x2 - x1 > 8.0 * said.len() as f64 {
            drawing.text_middle(f64::midpoint(x1, x2), y + 15.0, 11.0, &said, "#ffffff");
        }
    }
}

/// A segment at a host, if it comes there.
fn cell(
    drawing: &mut Drawing,
    axis: &Axis,
    span: &Span,
    host: u16,
    members: &[HostSet],
    (y, height): (f64, f64),
) {
    let needed = span.hosts.contains(host);
    let comes = span.group.map_or(needed, |group| members[group].contains(host));
    if !comes {
        return;
    }
    let (what, colour) = match (needed, span.group) {
        (true, Some(_)) => COLOURS[0],
        (true, None) => COLOURS[1],
        (false, _) => COLOURS[2],
    };
    let (x1, x2) = (axis.x(span.from), axis.x(span.to));
    // Thin segments are seen, too.
    let title = format!("{what}: {}, {} to {}", bytes(span.bytes), seconds(span.from), seconds(span.to));
    drawing.rect([x1, y, (x2 - x1).max(1.2), height], colour, &title);
}

fn ticks(drawing: &mut Drawing, axis: &Axis, top: f64, bottom: f64) {
    let step = [1.0, 2.0, 5.0].iter().flat_map(|factor| (0..9).map(move |power| factor * 10f64.powi(power)));
    let mut steps: Vec<f64> = step.filter(|step| axis.ms / step <= 10.0).collect();
    steps.sort_by(f64::total_cmp);
    let step = steps.first().copied().unwrap_or(axis.ms);
    let mut at = 0.0;
    while at <= axis.ms {
        let x = axis.x(at);
        drawing.line((x, top), (x, bottom + 4.0), RULE, 0.5);
        drawing.text_middle(x, bottom + 18.0, 11.0, &seconds(at), INK);
        at += step;
    }
}
