//! Loss, duplication and rates, as rules of nftables and tc on the switch's ports.

use std::fmt::Write;

use super::LabError;

/// Which frames a fault hits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// UDP to groups and to hosts.
    #[default]
    Datagrams,
    /// UDP to groups.
    Multicast,
    /// UDP to hosts.
    Unicast,
    /// UDP and TCP.
    DatagramsAndStreams,
}

impl Scope {
    /// As an expression of nftables' bridge family.
    const fn expression(self) -> &'static str {
        match self {
            Self::Datagrams => "meta l4proto udp",
            Self::Multicast => "meta pkttype multicast meta l4proto udp",
            Self::Unicast => "meta pkttype != multicast meta l4proto udp",
            Self::DatagramsAndStreams => "meta l4proto { tcp, udp }",
        }
    }
}

/// Which of the frames are lost. Fractions are in thousandths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Pattern {
    /// Each with the same chance, anew in each run.
    Random {
        /// 0 to 1,000.
        permille: u16,
    },
    /// The same in each run: those whose payload's first 8 bytes have one of the unlucky hashes. So a datagram that
    /// is sent again is lost again, for ever, unless these bytes hold something that differs.
    Deterministic {
        /// 0 to 1,000.
        permille: u16,
        /// Another seed, other losses.
        seed: u32,
    },
    /// The first `length` of each `every` frames.
    Burst {
        /// Frames lost in a row.
        length: u32,
        /// From one burst's start to the next one's; more than 0.
        every: u32,
    },
}

/// Frames lost on the way from the switch to a host. Nothing else is ever hit: neither ARP nor IGMP nor MLD.
///
/// ```
/// # use lab::hosts::{Loss, Scope};
/// let one_percent = Loss::random(10);
/// let only_groups = Loss::burst(50, 1_000).of(Scope::Multicast);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loss {
    /// Which are lost.
    pub pattern: Pattern,
    /// Among which.
    pub scope: Scope,
}

impl Loss {
    /// Each datagram with a chance of `permille` thousandths.
    #[must_use]
    pub const fn random(permille: u16) -> Self {
        Self { pattern: Pattern::Random { permille }, scope: Scope::Datagrams }
    }

    /// The same `permille` thousandths of all datagrams in each run; see [`Pattern::Deterministic`].
    #[must_use]
    pub const fn deterministic(permille: u16, seed: u32) -> Self {
        Self { pattern: Pattern::Deterministic { permille, seed }, scope: Scope::Datagrams }
    }

    /// The first `length` of each `every` datagrams.
    #[must_use]
    pub const fn burst(length: u32, every: u32) -> Self {
        Self { pattern: Pattern::Burst { length, every }, scope: Scope::Datagrams }
    }

    /// The same among other frames.
    #[must_use]
    pub const fn of(self, scope: Scope) -> Self {
        Self { scope, ..self }
    }

    fn expression(&self) -> Result<String, LabError> {
        let bad = |reason: String| Err(LabError::Options { reason });
        let hit = match self.pattern {
            Pattern::Random { permille } | Pattern::Deterministic { permille, .. } if permille > 1_000 => {
                return bad(format!("{permille} thousandths cannot be lost"));
            }
            Pattern::Burst { length, every } if every == 0 || length > every => {
                return bad(format!("{length} of each {every} frames cannot be lost"));
            }
            Pattern::Random { permille: 1_000 } | Pattern::Deterministic { permille: 1_000, .. } => {
                String::new()
            }
            Pattern::Burst { length, every } if length == every => String::new(),
            Pattern::Random { permille } => format!("numgen random mod 1000 < {permille}"),
            // Bits 64 to 127 of the transport header: the payload's first 8 bytes, after UDP's 8.
            Pattern::Deterministic { permille, seed } => {
                format!("jhash @th,64,64 mod 1000 seed {} < {permille}", seed.max(1))
            }
            Pattern::Burst { length, every } => format!("numgen inc mod {every} < {length}"),
        };
        Ok(format!("{} {hit}", self.scope.expression()))
    }
}

/// Marks second copies, so that they are not doubled again. Cleared when a frame enters a host's namespace.
const COPY_MARK: u32 = 0x5ca7_7e12;

/// The switch's tables, before any fault: a frame to a port without loss meets one empty map.
pub(super) const TABLES: &str = "\
add table bridge lab
add map bridge lab ports { type ifname : verdict; }
add chain bridge lab forward { type filter hook forward priority 0; }
add rule bridge lab forward oifname vmap @ports
add table netdev lab
";

/// Replaces the loss of a host's port, `p` or, with a relay, `b`.
pub(super) fn loss_rules(host: u16, loss: Option<Loss>) -> Result<String, LabError> {
    let mut rules = format!(
        "add counter bridge lab lost{host}
add chain bridge lab to{host}
add element bridge lab ports {{ \"p{host}\" : jump to{host}, \"b{host}\" : jump to{host} }}
flush chain bridge lab to{host}
"
    );
    match loss {
        Some(loss) => {
            let expression = loss.expression()?;
            writeln!(rules, "add rule bridge lab to{host} {expression} counter name lost{host} drop")
        }
        None => writeln!(rules, "delete element bridge lab ports {{ \"p{host}\", \"b{host}\" }}"),
    }
    .expect("a String takes everything");
    Ok(rules)
}

/// Replaces a port's duplication.
pub(super) fn duplication_rules(host: u16, permille: u16) -> Result<String, LabError> {
    if permille > 1_000 {
        return Err(LabError::Options { reason: format!("{permille} thousandths cannot be duplicated") });
    }
    let chain = format!("netdev lab twice{host}");
    let mut rules = format!(
        "add counter netdev lab duplicated{host}
add chain {chain} {{ type filter hook egress device \"p{host}\" priority 0; }}
delete chain {chain}
"
    );
    if permille > 0 {
        let scope = Scope::Datagrams.expression();
        let chance =
            if permille == 1_000 { String::new() } else { format!("numgen random mod 1000 < {permille} ") };
        write!(
            rules,
            "add chain {chain} {{ type filter hook egress device \"p{host}\" priority 0; }}
add rule {chain} {scope} meta mark != {COPY_MARK} {chance}meta mark set {COPY_MARK} counter name duplicated{host} dup to \"p{host}\"
"
        )
        .expect("a String takes everything");
    }
    Ok(rules)
}

/// A line for `tc -batch` that limits what leaves through a device.
///
/// The bucket holds half a millisecond (at least 72 KiB, so that a super-packet fits), the queue in front of it ten
/// (at least 256 KiB), as a switch port's buffer might.
pub(super) fn rate_line(device: &str, rate_bps: u64) -> Result<String, LabError> {
    if rate_bps < 8_000 {
        return Err(LabError::Options {
            reason: format!("a rate of {rate_bps} bit/s is too low to be shaped"),
        });
    }
    // tbf cuts up a super-packet that is larger than the bucket, and what the queue does not hold of it is lost without
    // the socket being told. No network card does that.
    let burst = (rate_bps / 16_000).max(72 << 10);
    let queue = (rate_bps / 800).max(256 << 10);
    Ok(format!("qdisc replace dev {device} root tbf rate {rate_bps}bit burst {burst} limit {queue}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_faults_are_refused() {
        for loss in [Loss::random(1_001), Loss::deterministic(2_000, 1), Loss::burst(2, 1), Loss::burst(0, 0)]
        {
            assert!(matches!(loss_rules(1, Some(loss)), Err(LabError::Options { .. })), "{loss:?}");
        }
        assert!(duplication_rules(1, 1_001).is_err());
        assert!(rate_line("p1", 0).is_err());
    }

    #[test]
    fn total_loss_needs_no_chance() {
        let rules = loss_rules(3, Some(Loss::random(1_000).of(Scope::Multicast))).expect("possible");
        assert!(
            rules.contains("to3 meta pkttype multicast meta l4proto udp  counter name lost3 drop"),
            "{rules}"
        );
    }

    #[test]
    fn buckets_grow_with_the_rate() {
        let line = rate_line("p0", 1_000_000_000).expect("possible");
        assert_eq!(line, "qdisc replace dev p0 root tbf rate 1000000000bit burst 73728 limit 1250000\n");
    }
}
