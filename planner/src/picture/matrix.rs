//! What VMs have in common, each with each, those of one host side by side.

use super::draw::{Drawing, INK, RULE, bytes, fitted};
use super::{GAP, Sharing, WIDTH};
use crate::Plan;

/// VMs drawn: of more, those with most bytes.
const VMS_MAX: usize = 64;
/// Cells with figures in them are at least as large.
const FIGURE_MIN: f64 = 44.0;
/// Room for names at the left, and above.
const NAMES: (f64, f64) = (150.0, 70.0);
/// Around pairs that are together on a host.
const TOGETHER: &str = "#d55e00";
/// Shades of one blue.
const SHADES: [&str; 6] = ["#f7fbff", "#d0e1f2", "#94c4df", "#4a98c9", "#1764ab", "#08306b"];

pub(super) fn draw(drawing: &mut Drawing, plan: &Plan, sharing: &Sharing, top: f64) -> f64 {
    let count = plan.vms.len();
    let order = order(plan, sharing);
    let common = common(&order, sharing, count);
    heading(drawing, top, count - order.len());
    let side = order.len() as f64;
    let cell =
        ((WIDTH - 2.0 * GAP - NAMES.0 - 160.0) / side).min(if order.len() <= 12 { 56.0 } else { 16.0 });
    let (left, first) = (GAP + NAMES.0, top + 44.0 + NAMES.1);
    let size = (cell * 0.75).clamp(8.0, 12.0);
    for (row, &a) in order.iter().enumerate() {
        let y = first + row as f64 * cell;
        let name = fitted(&plan.vms[a].name, size, NAMES.0 - 8.0);
        drawing.text_end(left - 6.0, y + cell / 2.0 + size * 0.36, size, &name);
        let x = left + row as f64 * cell + cell / 2.0 + 4.0;
        drawing.text_up(x, first - 6.0, size, &fitted(&plan.vms[a].name, size, NAMES.1));
        for (column, &b) in order.iter().enumerate() {
            let at = [left + column as f64 * cell, y, cell];
            square(drawing, at, ((row, a), (column, b)), &common, plan);
        }
    }
    frames(drawing, plan, &order, (left, first), cell);
    first + side * cell
}

/// The VMs drawn, those of one host side by side.
fn order(plan: &Plan, sharing: &Sharing) -> Vec<usize> {
    let mut own = vec![0u64; plan.vms.len()];
    for (vms, bytes) in &sharing.sets {
        vms.iter().for_each(|vm| own[usize::from(*vm)] += bytes);
    }
    let mut order: Vec<usize> = (0..own.len()).collect();
    order.sort_by_key(|&vm| std::cmp::Reverse(own[vm]));
    order.truncate(VMS_MAX);
    order.sort_by_key(|&vm| (plan.vms[vm].hosts.clone(), vm));
    order
}

/// Bytes in common of each two of the VMs drawn, by their places in the order.
fn common(order: &[usize], sharing: &Sharing, count: usize) -> Vec<Vec<u64>> {
    let mut place = vec![None; count];
    order.iter().enumerate().for_each(|(at, vm)| place[*vm] = Some(at));
    let mut common = vec![vec![0u64; order.len()]; order.len()];
    for (vms, bytes) in &sharing.sets {
        let drawn: Vec<usize> = vms.iter().filter_map(|vm| place[usize::from(*vm)]).collect();
        for &a in &drawn {
            drawn.iter().for_each(|&b| common[a][b] += bytes);
        }
    }
    common
}

fn heading(drawing: &mut Drawing, top: f64, more: usize) {
    let mut said =
        "What VMs have in common, of the smaller one's memory; the diagonal is a VM's own".to_owned();
    if more > 0 {
        said += &format!("; {more} smaller VMs left out");
    }
    drawing.text(GAP, top + 12.0, 14.0, &said);
    let mut x = GAP;
    for (words, shade) in ["nothing", "< 10 %", "< 25 %", "< 50 %", "< 75 %", "more"].iter().zip(SHADES) {
        drawing.rect([x, top + 22.0, 22.0, 12.0], RULE, "");
        drawing.rect([x + 0.5, top + 22.5, 21.0, 11.0], shade, "");
        drawing.faint(x + 28.0, top + 32.0, 12.0, words);
        x += 90.0;
    }
    drawing.frame([x, top + 22.0, 22.0, 12.0], TOGETHER);
    drawing.faint(x + 28.0, top + 32.0, 12.0, "together on a host");
}

/// One pair.
fn square(
    drawing: &mut Drawing,
    [x, y, cell]: [f64; 3],
    ((row, a), (column, b)): ((usize, usize), (usize, usize)),
    common: &[Vec<u64>],
    plan: &Plan,
) {
    let both = common[row][column];
    let smaller = common[row][row].min(common[column][column]).max(1);
    let share = both as f64 / smaller as f64;
    let shade = match share {
        _ if both == 0 => 0,
        share if share < 0.1 => 1,
        share if share < 0.25 => 2,
        share if share < 0.5 => 3,
        share if share < 0.75 => 4,
        _ => 5,
    };
    let fill = if a == b { "#e8e8e8" } else { SHADES[shade] };
    let title = format!("{} and {}: {}", plan.vms[a].name, plan.vms[b].name, bytes(both));
    drawing.rect([x + 0.5, y + 0.5, cell - 1.0, cell - 1.0], fill, &title);
    if cell >= FIGURE_MIN && both > 0 {
        let colour = if a != b && shade >= 3 { "#ffffff" } else { INK };
        drawing.text_middle(x + cell / 2.0, y + cell / 2.0 + 4.0, 11.0, &bytes(both), colour);
    }
}

/// Around pairs that are together on a host, and the hosts' names at the right.
fn frames(drawing: &mut Drawing, plan: &Plan, order: &[usize], (left, first): (f64, f64), cell: f64) {
    let size = (cell * 0.75).clamp(8.0, 12.0);
    for (row, &a) in order.iter().enumerate() {
        let hosts = &plan.vms[a].hosts;
        let y = first + row as f64 * cell;
        for (column, _) in order.iter().enumerate().filter(|(column, b)| {
            *column != row && plan.vms[**b].hosts.iter().any(|host| hosts.contains(host))
        }) {
            drawing.frame([left + column as f64 * cell + 1.0, y + 1.0, cell - 2.0, cell - 2.0], TOGETHER);
        }
        let said = if hosts.len() > 3 { format!("{} hosts", hosts.len()) } else { hosts.join(", ") };
        let x = left + order.len() as f64 * cell + 10.0;
        let said = format!("→ {}", fitted(&said, size, 140.0));
        drawing.faint(x, y + cell / 2.0 + size * 0.36, size, &said);
    }
}
