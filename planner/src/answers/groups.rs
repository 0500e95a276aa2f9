//! How many groups are needed, and what more would buy.

use std::fmt::Write;

use super::{size, time};
use crate::{GroupLimits, Plan, PoolError, group_curve, groups_needed};

/// A table of what so many group addresses would cost, and what the plan uses; in words.
///
/// # Errors
/// [`PoolError`]; never for a checked plan.
pub fn groups_table(plan: &Plan) -> Result<String, PoolError> {
    let network = plan.network();
    let limits: GroupLimits = plan.group_limits(network.links()[0].rate_bps)?;
    let curve = group_curve(&plan.segment_weights(), &limits, &network);
    let mut text = format!(
        "{:>9}  {:>7}  {:>11}  {:>12}  {:>11}  {:>8}  {:>9}  {}\n",
        "addresses", "joins", "sent", "on all links", "not needed", "waiting", "time", "how"
    );
    for point in &curve {
        let best = if point.churning.cost <= point.fixed.cost { &point.churning } else { &point.fixed };
        let way = if point.addresses == 0 { "unicast".to_owned() } else { best.mode.to_string() };
        writeln!(
            text,
            "{:>9}  {:>7}  {:>11}  {:>12}  {:>11}  {:>8}  {:>9}  {way}",
            point.addresses,
            best.joins,
            size(best.source_bytes),
            size(best.traffic_bytes),
            size(best.unwanted_bytes),
            time(best.stall_ms),
            time(best.duration_ms),
        )
        .expect("strings take everything");
    }
    text += "(bytes and times without headers and repair)\n";
    if let Some(needed) = groups_needed(&curve) {
        let most = curve.last().map_or(0, |point| point.addresses);
        let more = if needed < most { format!("; {most} would buy less than 1 %") } else { String::new() };
        writeln!(text, "{needed} {} enough{more}", if needed == 1 { "is" } else { "are" })
            .expect("strings take everything");
    }
    if let Some(predicted) = &plan.predicted {
        writeln!(
            text,
            "the plan uses {} groups: {}; limits: {} addresses, {} memberships of a host",
            plan.groups.len(),
            predicted.mode,
            plan.multicast.max_groups,
            plan.multicast.memberships_max
        )
        .expect("strings take everything");
    }
    Ok(text)
}
