//! A plan in words: why a VM goes where it goes, what else it would cost, and what if something were otherwise.
//!
//! Everything is worked out anew from inventory, signatures and plan, by other code than placement's: a sum over the
//! contents of one VM, so that a reader can follow it.

mod groups;
#[cfg(test)]
mod tests;
mod what_if;
mod why;

pub use groups::groups_table;
pub use what_if::{Question, QuestionError, what_if};
pub use why::{Alternative, Obstacle, Reason, why};

/// `12.3 MiB`.
fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1000.0 {
            return match unit {
                "B" => format!("{value:.0} {unit}"),
                _ if value < 9.995 => format!("{value:.2} {unit}"),
                _ if value < 99.95 => format!("{value:.1} {unit}"),
                _ => format!("{value:.0} {unit}"),
            };
        }
        value /= 1024.0;
    }
    format!("{value:.2} TiB")
}

/// The first names, and how many more.
fn listed<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> String {
    const SHOWN_MAX: usize = 6;
    let count = names.len();
    let shown: Vec<&str> = names.take(SHOWN_MAX).collect();
    match count.saturating_sub(SHOWN_MAX) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// A difference of bytes: `61.0 MiB more`, `3.00 MiB less`, `nothing more`.
fn difference(change: i128) -> String {
    let bytes = size(u64::try_from(change.unsigned_abs()).unwrap_or(u64::MAX));
    match change {
        0 => "nothing more".to_owned(),
        more if more > 0 => format!("{bytes} more"),
        _ => format!("{bytes} less"),
    }
}

/// Milliseconds: `5.86 s`.
fn time(ms: u64) -> String {
    match ms {
        ms if ms < 1000 => format!("{ms} ms"),
        ms if ms < 120_000 => format!("{:.2} s", ms as f64 / 1e3),
        ms => format!("{}:{:02} min", ms / 60_000, ms / 1000 % 60),
    }
}
