//! The links from the source to the hosts, as wide as what they carry, coloured by how busy they are.

use super::draw::{Drawing, INK, bytes, fitted, seconds};
use super::{GAP, WIDTH};
use crate::network::LinkKind;
use crate::{Network, Plan};

/// Hosts drawn; more are counted.
const HOSTS_MAX: usize = 64;
/// Widest and thinnest line.
const LINE: (f64, f64) = (1.0, 10.0);
/// How busy a link is, of the whole time: below, and its colour. Blue to vermilion tells apart for all eyes.
const BUSY: [(f64, &str); 4] =
    [(0.25, "#a6cee3"), (0.5, "#56b4e9"), (0.8, "#e69f00"), (f64::INFINITY, "#d55e00")];
const FIRST_X: f64 = 190.0;
const STEP_X: f64 = 150.0;
const BAR: f64 = 220.0;
/// Between the hosts of two switches: room for a switch's label.
const SWITCH_GAP: f64 = 16.0;

/// Where a link ends.
struct End {
    x: f64,
    y: f64,
}

pub(super) fn draw(drawing: &mut Drawing, plan: &Plan, top: f64) -> f64 {
    let network = plan.network();
    let links = network.links();
    let first_host = links.len() - network.hosts();
    let shown = network.hosts().min(HOSTS_MAX);
    let row = if shown <= 12 { 30.0 } else { 19.0 };
    heading(drawing, plan, top);
    let top = top + 46.0;
    let ends = ends(&network, first_host, shown, row, top);
    let load = |link: usize| -> (u64, u64) {
        let load = plan.predicted.as_ref().and_then(|predicted| predicted.links.get(link));
        load.map_or((0, 0), |load| (load.network_bytes, load.busy_ms))
    };
    let whole = plan.predicted.as_ref().map_or(0, |predicted| predicted.duration_ms).max(1) as f64;
    let most = (0..links.len()).map(|link| load(link).0).max().unwrap_or(0).max(1) as f64;
    let source = End { x: GAP + 118.0, y: ends[0].y };
    for link in (0..first_host + shown).rev() {
        let (carried, busy) = load(link);
        let from = links[link].towards.map_or(&source, |towards| &ends[towards]);
        let width = LINE.0 + (LINE.1 - LINE.0) * carried as f64 / most;
        let share = busy as f64 / whole;
        let title = format!(
            "{} {}: {}, busy {:.0} %",
            links[link].kind,
            links[link].name,
            bytes(carried),
            share * 100.0
        );
        drawing.curve((from.x, from.y), (ends[link].x, ends[link].y), colour(share), width, &title);
    }
    drawing.rect([GAP, source.y - 20.0, 118.0, 40.0], INK, "");
    drawing.text_middle(GAP + 59.0, source.y - 3.0, 12.0, &fitted(&plan.source.name, 12.0, 110.0), "#ffffff");
    let (carried, busy) = load(0);
    let said = format!("{}, {:.0} %", bytes(carried), busy as f64 * 100.0 / whole);
    drawing.text_middle(GAP + 59.0, source.y + 13.0, 11.0, &said, "#ffffff");
    switches(drawing, plan, &network, &ends[..first_host], &load, whole);
    for host in 0..shown {
        host_row(drawing, plan, host, &ends[first_host + host], load(first_host + host), (most, whole, row));
    }
    let last = ends[first_host..first_host + shown].iter().map(|end| end.y).fold(top, f64::max);
    let bottom = last + row / 2.0;
    match network.hosts() - shown {
        0 => bottom,
        more => {
            drawing.faint(ends[first_host].x, bottom + 14.0, 12.0, &format!("and {more} hosts more"));
            bottom + 20.0
        }
    }
}

fn heading(drawing: &mut Drawing, plan: &Plan, top: f64) {
    let mut said =
        "Links: as wide as what they carry, by how much of the whole time they are busy".to_owned();
    if let Some(predicted) = &plan.predicted {
        said = format!(
            "Links: {} foreseen, at least {} by the busiest link. As wide as what they carry; busy for",
            seconds(predicted.duration_ms as f64),
            seconds(predicted.duration_ms_min as f64)
        );
    }
    drawing.text(GAP, top + 12.0, 14.0, &said);
    let mut x = GAP;
    for (words, (_, colour)) in ["< 25 %", "< 50 %", "< 80 %", "more of the time"].iter().zip(BUSY) {
        drawing.rect([x, top + 22.0, 22.0, 10.0], colour, "");
        drawing.faint(x + 28.0, top + 32.0, 12.0, words);
        x += 90.0;
    }
}

fn colour(share: f64) -> &'static str {
    BUSY.iter().find(|(below, _)| share < *below).map_or(INK, |(_, colour)| colour)
}

/// Hosts below each other, those of one switch together; a switch in the middle of its hosts.
fn ends(network: &Network, first_host: usize, shown: usize, row: f64, top: f64) -> Vec<End> {
    let links = network.links();
    let depth = |link: usize| std::iter::successors(links[link].towards, |&at| links[at].towards).count();
    let deepest = (0..first_host).map(depth).max().unwrap_or(0);
    let way = |link: usize| std::iter::successors(Some(link), |&at| links[at].towards);
    let mut order: Vec<usize> = (first_host..first_host + shown).collect();
    // Switches come in the order of their first hosts.
    let mut firsts = vec![usize::MAX; links.len()];
    order.iter().for_each(|&host| way(host).for_each(|at| firsts[at] = firsts[at].min(host)));
    order.sort_by_cached_key(|&host| {
        let mut from_host: Vec<usize> = way(host).map(|at| firsts[at]).collect();
        from_host.reverse();
        from_host
    });
    let mut ends: Vec<End> =
        (0..links.len()).map(|link| End { x: FIRST_X + STEP_X * depth(link) as f64, y: 0.0 }).collect();
    let (mut y, mut switch) = (top + row / 2.0, order.first().and_then(|&link| links[link].towards));
    for &link in &order {
        if links[link].towards != switch {
            (y, switch) = (y + SWITCH_GAP, links[link].towards);
        }
        ends[link] = End { x: FIRST_X + STEP_X * (deepest + 1) as f64, y };
        y += row;
    }
    for link in (0..first_host).rev() {
        let below = |other: usize| way(other).any(|at| at == link);
        let ys: Vec<f64> = order.iter().filter(|&&host| below(host)).map(|&host| ends[host].y).collect();
        let middle = if ys.is_empty() { top + row / 2.0 } else { ys.iter().sum::<f64>() / ys.len() as f64 };
        ends[link].y = middle;
    }
    ends
}

fn switches(
    drawing: &mut Drawing,
    plan: &Plan,
    network: &Network,
    ends: &[End],
    load: &dyn Fn(usize) -> (u64, u64),
    whole: f64,
) {
    for (link, end) in ends.iter().enumerate() {
        let of = &network.links()[link];
        let name = match of.kind {
            LinkKind::Source => plan.source.rack.clone().unwrap_or_else(|| "switch".to_owned()),
            LinkKind::RackUp => "core".to_owned(),
            LinkKind::RackDown | LinkKind::Host => of.name.clone(),
        };
        drawing.rect([end.x - 5.0, end.y - 12.0, 10.0, 24.0], INK, &name);
        // Where no line runs: above the box, or below it if the line comes from above.
        let is_low = of.towards.is_some_and(|towards| end.y > ends[towards].y + 1.0);
        let y = if is_low { end.y + 25.0 } else { end.y - 17.0 };
        let name = fitted(&name, 11.0, 60.0);
        let said = if of.kind == LinkKind::Source {
            name
        } else {
            let (carried, busy) = load(link);
            format!("{name}: {}, {:.0} %", bytes(carried), busy as f64 * 100.0 / whole)
        };
        drawing.text_middle(end.x, y, 11.0, &said, INK);
    }
}

/// A host's name, its load as a bar and in figures, its VMs.
fn host_row(
    drawing: &mut Drawing,
    plan: &Plan,
    host: usize,
    end: &End,
    (carried, busy): (u64, u64),
    (most, whole, row): (f64, f64, f64),
) {
    let name = &plan.hosts[host].name;
    let y = end.y + 4.0;
    drawing.text(end.x + 8.0, y, 12.0, &fitted(name, 12.0, 84.0));
    let bar_x = end.x + 96.0;
    let share = busy as f64 / whole;
    let thick = (row * 0.55).min(14.0);
    let bar = BAR * 0.5;
    drawing.rect([bar_x, end.y - thick / 2.0, bar, thick], "#f0f0f0", "");
    drawing.rect([bar_x, end.y - thick / 2.0, bar * carried as f64 / most, thick], colour(share), name);
    drawing.text(bar_x + bar + 8.0, y, 11.0, &format!("{}, {:.0} %", bytes(carried), share * 100.0));
    let vms: Vec<&str> =
        plan.vms.iter().filter(|vm| vm.hosts.contains(name)).map(|vm| vm.name.as_str()).collect();
    let x = bar_x + bar + 104.0;
    let words = if vms.is_empty() { "no VM".to_owned() } else { vms.join(", ") };
    drawing.faint(x, y, 11.0, &fitted(&words, 11.0, WIDTH - GAP - x));
}
