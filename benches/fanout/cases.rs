//! What is measured, and which figures are required (docs/performance.md).

use std::fmt;

/// Links and hosts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, serde::Serialize)]
pub(crate) struct Case {
    /// Receiving hosts.
    pub(crate) hosts: u16,
    /// Bytes.
    pub(crate) mtu: u32,
    /// Of everything that is sent to a host, in thousandths, at each host by itself.
    pub(crate) loss_permille: u16,
}

/// `hosts/MTU/loss in percent`.
impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.hosts, self.mtu, self.loss_percent())
    }
}

impl Case {
    /// All of these, those on the same links one after the other.
    pub(crate) fn all(hosts: &[u16], mtus: &[u32], losses: &[u16]) -> Vec<Self> {
        let links = hosts.iter().flat_map(|hosts| mtus.iter().map(|mtu| (*hosts, *mtu)));
        links
            .flat_map(|(hosts, mtu)| losses.iter().map(move |loss| Self { hosts, mtu, loss_permille: *loss }))
            .collect()
    }

    pub(crate) fn loss_percent(self) -> String {
        let (whole, part) = (self.loss_permille / 10, self.loss_permille % 10);
        if part == 0 { whole.to_string() } else { format!("{whole}.{part}") }
    }

    /// Whether a pattern such as `8/1500/1`, `4`, `*/9000` or `*/*/0` means this case.
    pub(crate) fn matches(self, pattern: &str) -> bool {
        let name = self.to_string();
        let mut parts = name.split('/');
        pattern.split('/').all(|wanted| parts.next().is_some_and(|part| wanted == "*" || wanted == part))
    }

    /// The same links without loss.
    pub(crate) fn without_loss(self) -> Self {
        Self { loss_permille: 0, ..self }
    }

    /// Times the goodput of the faster plaintext TCP that keeps what it receives.
    pub(crate) fn required_of_tcp(self) -> f64 {
        match self.hosts {
            0..4 => 0.75,
            4..8 => 1.0,
            _ => 1.2,
        }
    }

    /// Times the goodput of TLS.
    pub(crate) fn required_of_tls(self) -> Option<f64> {
        (self.hosts == 8).then_some(2.0)
    }

    /// Times the goodput of the faster of UFTP and udpcast.
    pub(crate) const fn required_of_multicast() -> f64 {
        5.0
    }

    /// Times our own goodput without loss.
    pub(crate) fn required_of_ours(self) -> Option<f64> {
        (self.loss_permille == 10).then_some(0.8)
    }
}
