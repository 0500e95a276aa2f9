//! The values of flags: rates, symbol sizes, encodings, times.

use pages::block::Encoding;
use sender::rate::RateConfig;
use std::time::Duration;

/// `--rate`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Rate(pub(crate) RateConfig);

/// `--encoding`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum EncodingChoice {
    /// Measured on the images, for the link's rate.
    Auto,
    /// This one.
    Fixed(Encoding),
}

/// `--symbol-size`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SymbolSize {
    /// What fits the interface's and the paths' MTU.
    Auto,
    /// Bytes.
    Fixed(u16),
}

/// A figure in bits per second: `900M`, `2.5G`, `10000000`. Decimal prefixes.
pub(crate) fn bits_per_s(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is no rate: a figure in bits per second such as 900M or 2.5G");
    let text_trimmed = text.trim_end_matches("bit/s").trim_end_matches("bps");
    let (figure, factor) = match text_trimmed.char_indices().last() {
        Some((at, 'k' | 'K')) => (&text_trimmed[..at], 1e3),
        Some((at, 'M' | 'm')) => (&text_trimmed[..at], 1e6),
        Some((at, 'G' | 'g')) => (&text_trimmed[..at], 1e9),
        Some((at, 'T' | 't')) => (&text_trimmed[..at], 1e12),
        _ => (text_trimmed, 1.0),
    };
    let figure: f64 = figure.parse().map_err(|_| wrong())?;
    let rate = figure * factor;
    if !(rate.is_finite() && (8e3..=1e15).contains(&rate)) {
        return Err(format!("{}; between 8k and 1000T", wrong()));
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive and below 10^15")]
    Ok(rate as u64)
}

/// `auto`, `auto:min=10M,init=1G,max=10G`, or a figure.
pub(crate) fn rate(text: &str) -> Result<Rate, String> {
    let Some(rest) = text.strip_prefix("auto") else {
        return Ok(Rate(RateConfig::Fixed(bits_per_s(text)? / 8)));
    };
    let RateConfig::Auto { mut min, mut init, mut max } = RateConfig::AUTO else {
        return Err("the automatic rate has no bounds".to_owned());
    };
    let options = match rest.strip_prefix(':') {
        Some(options) => options,
        None if rest.is_empty() => return Ok(Rate(RateConfig::AUTO)),
        None => {
            return Err(format!("`{text}` is no rate; write auto, auto:max=10G, or a figure such as 900M"));
        }
    };
    let mut init_given = false;
    for option in options.split(',') {
        match option.split_once('=') {
            Some(("min", value)) => min = bits_per_s(value)? / 8,
            Some(("init", value)) => (init, init_given) = (bits_per_s(value)? / 8, true),
            Some(("max", value)) => max = bits_per_s(value)? / 8,
            _ => return Err(format!("`{option}` is none of min=, init= and max=")),
        }
    }
    if !init_given {
        init = init.clamp(min.min(max), max);
    }
    if min > max || !(min..=max).contains(&init) {
        return Err("auto needs min ≤ init ≤ max".to_owned());
    }
    Ok(Rate(RateConfig::Auto { min, init, max }))
}

/// `auto`, or an encoding.
pub(crate) fn encoding(text: &str) -> Result<EncodingChoice, String> {
    if text == "auto" {
        return Ok(EncodingChoice::Auto);
    }
    text.parse().map(EncodingChoice::Fixed).map_err(|_| {
        format!("`{text}` is no encoding: auto, raw, lz4, zstd, or zstd:LEVEL with LEVEL from -128 to 22")
    })
}

/// An encoding, named.
pub(crate) fn fixed_encoding(text: &str) -> Result<Encoding, String> {
    match encoding(text)? {
        EncodingChoice::Fixed(encoding) => Ok(encoding),
        EncodingChoice::Auto => Err("here it must be raw, lz4, zstd, or zstd:LEVEL".to_owned()),
    }
}

/// `auto`, or bytes.
pub(crate) fn symbol_size(text: &str) -> Result<SymbolSize, String> {
    if text == "auto" {
        return Ok(SymbolSize::Auto);
    }
    let (min, max) = (sender::encode::SYMBOL_BYTES_MIN, wire::limits::SYMBOL_BYTES_MAX);
    match text.parse() {
        Ok(bytes) if (min..=max).contains(&bytes) && bytes % 8 == 0 => Ok(SymbolSize::Fixed(bytes)),
        _ => Err(format!("`{text}` is no symbol size: auto, or a multiple of 8 from {min} to {max}")),
    }
}

/// A host and a figure: `h3=50`.
pub(crate) fn host_figure(text: &str) -> Result<(String, u64), String> {
    let wrong = || format!("`{text}` is no host with a figure, as h3=50");
    let (host, figure) = text.split_once('=').ok_or_else(wrong)?;
    Ok((host.to_owned(), figure.parse().map_err(|_| wrong())?))
}

/// Two names: `web1,db`.
pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once(',').filter(|(a, b)| !a.is_empty() && !b.is_empty() && !b.contains(','));
    let (a, b) = pair.ok_or_else(|| format!("`{text}` is no pair of VMs, as web1,db"))?;
    Ok((a.to_owned(), b.to_owned()))
}

/// A VM and its hypervisor's API socket: `golden=/run/golden.sock`.
pub(crate) fn vm_socket(text: &str) -> Result<(String, String), String> {
    let parts = text.split_once('=').filter(|(vm, socket)| !vm.is_empty() && !socket.is_empty());
    let (vm, socket) =
        parts.ok_or_else(|| format!("`{text}` is no VM with a socket, as golden=/run/golden.sock"))?;
    Ok((vm.to_owned(), socket.to_owned()))
}

/// A host and a rate: `h3=200M`.
pub(crate) fn host_rate(text: &str) -> Result<(String, u64), String> {
    let (host, rate) =
        text.split_once('=').ok_or_else(|| format!("`{text}` is no host with a rate, as h3=200M"))?;
    Ok((host.to_owned(), bits_per_s(rate)?))
}

/// A positive number of seconds, fractions allowed, at most a day.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    match text.trim_end_matches('s').parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= 86_400.0 => Ok(Duration::from_secs_f64(seconds)),
        _ => Err(format!("`{text}` is no time: seconds above 0, at most 86400")),
    }
}

/// How a VM leaves.
pub(crate) fn mode(text: &str) -> Result<sender::departure::Mode, String> {
    use sender::departure::Mode;
    match text {
        "precopy" | "pre-copy" => Ok(Mode::Precopy),
        "postcopy" | "post-copy" => Ok(Mode::Postcopy),
        "hybrid" => Ok(Mode::Hybrid),
        _ => Err(format!("`{text}` is no mode: precopy, postcopy or hybrid")),
    }
}

/// A time in milliseconds.
pub(crate) fn milliseconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(ms @ 1..=2_000_000) => Ok(Duration::from_millis(ms)),
        _ => Err(format!("`{text}` is no time: milliseconds, 1 to 2000000")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates() {
        assert_eq!(bits_per_s("900M"), Ok(900_000_000));
        assert_eq!(bits_per_s("2.5G"), Ok(2_500_000_000));
        assert_eq!(bits_per_s("10000bps"), Ok(10_000));
        for bad in ["", "M", "fast", "-1G", "inf", "NaN", "1", "1e99"] {
            assert!(bits_per_s(bad).is_err(), "{bad}");
        }
        assert_eq!(rate("8M"), Ok(Rate(RateConfig::Fixed(1_000_000))));
        assert_eq!(rate("auto"), Ok(Rate(RateConfig::AUTO)));
        let bounded = Rate(RateConfig::Auto { min: 1_000_000, init: 2_000_000, max: 4_000_000 });
        assert_eq!(rate("auto:min=8M,init=16M,max=32M"), Ok(bounded));
        assert!(matches!(rate("auto:max=80M"), Ok(Rate(RateConfig::Auto { init: 10_000_000, .. }))));
        for bad in ["auto:", "auto:speed=1G", "automatic", "auto:min=1G,max=1M", "auto:init=1M,min=2M"] {
            assert!(rate(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn other_values() {
        assert_eq!(encoding("zstd:3"), Ok(EncodingChoice::Fixed(Encoding::Zstd { level: 3 })));
        assert!(encoding("gzip").is_err());
        assert_eq!(symbol_size("1424"), Ok(SymbolSize::Fixed(1424)));
        assert!(symbol_size("1423").is_err() && symbol_size("9000").is_err() && symbol_size("8").is_err());
        assert_eq!(seconds("1.5"), Ok(Duration::from_millis(1500)));
        assert!(seconds("0").is_err() && seconds("-1").is_err() && seconds("NaN").is_err());
    }
}
