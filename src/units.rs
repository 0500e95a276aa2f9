//! Figures for people.

use std::time::Duration;

/// `12.3 MiB`.
pub(crate) fn bytes(bytes: u64) -> String {
    let mut value = float(bytes);
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1000.0 {
            return match unit {
                "B" => format!("{value:.0} B"),
                _ if value < 9.995 => format!("{value:.2} {unit}"),
                _ if value < 99.95 => format!("{value:.1} {unit}"),
                _ => format!("{value:.0} {unit}"),
            };
        }
        value /= 1024.0;
    }
    format!("{value:.2} TiB")
}

/// `940 Mbit/s`.
pub(crate) fn bit_rate(bits_per_s: f64) -> String {
    match bits_per_s {
        rate if rate >= 1e10 => format!("{:.1} Gbit/s", rate / 1e9),
        rate if rate >= 1e9 => format!("{:.2} Gbit/s", rate / 1e9),
        rate if rate >= 1e6 => format!("{:.0} Mbit/s", rate / 1e6),
        rate => format!("{:.0} kbit/s", rate / 1e3),
    }
}

/// `0.53 s`, `12.4 s`, `3:05`.
pub(crate) fn time(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 10.0 => format!("{seconds:.2} s"),
        seconds if seconds < 120.0 => format!("{seconds:.1} s"),
        seconds => {
            let whole = Duration::from_secs_f64(seconds).as_secs();
            format!("{}:{:02}", whole / 60, whole % 60)
        }
    }
}

/// `part` in per cent of `whole`.
pub(crate) fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "–".to_owned();
    }
    format!("{:.1} %", float(part) * 100.0 / float(whole))
}

/// A count as a figure to calculate with.
pub(crate) fn float(count: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a figure for people; 53 bits are plenty")]
    let value = count as f64;
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1 << 20), "1.00 MiB");
        assert_eq!(bytes(640 << 20), "640 MiB");
        assert_eq!(bytes(3 << 40), "3.00 TiB");
        assert_eq!(bit_rate(9.4e8), "940 Mbit/s");
        assert_eq!(time(0.534), "0.53 s");
        assert_eq!(time(185.0), "3:05");
        assert_eq!(percent(1, 3), "33.3 %");
        assert_eq!(percent(1, 0), "–");
    }
}
