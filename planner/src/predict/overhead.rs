//! What headers and repair add to payload.

use std::cell::RefCell;
use std::collections::BTreeMap;

use crate::inventory::Multicast;

/// Header and tag of one of our datagrams (`docs/protocol.md`), UDP, and Ethernet without its checksum, as interfaces
/// count it.
const OURS_BYTES: u64 = 48;
const UDP_BYTES: u64 = 8;
const ETHERNET_BYTES: u64 = 14;
const IPV4_BYTES: u64 = 20;
const IPV6_BYTES: u64 = 40;
/// Largest symbol of the protocol.
const SYMBOL_BYTES_MAX: u64 = 8920;
/// Source symbols of a block, as the expectation of repair takes them.
const BLOCK_SYMBOLS: usize = 128;

/// Turns payload bytes into bytes on a link.
#[derive(Clone, Debug)]
pub struct Overhead {
    symbol_bytes: u64,
    frame_bytes: u64,
    loss_ppm: u32,
    /// Symbols sent for a block's, in millionths, by number of receivers.
    repair: RefCell<BTreeMap<usize, u64>>,
}

impl Overhead {
    /// For packets of `mtu` bytes, of which `loss_ppm` millionths are lost on the way to each host, independently.
    #[must_use]
    pub fn new(mtu: u32, loss_ppm: u32, ipv6: bool) -> Self {
        let headers = OURS_BYTES + UDP_BYTES + if ipv6 { IPV6_BYTES } else { IPV4_BYTES };
        let symbol_bytes = (u64::from(mtu).saturating_sub(headers) / 8 * 8).clamp(8, SYMBOL_BYTES_MAX);
        Self {
            symbol_bytes,
            frame_bytes: symbol_bytes + headers + ETHERNET_BYTES,
            loss_ppm,
            repair: RefCell::default(),
        }
    }

    /// For an inventory's or plan's network.
    #[must_use]
    pub fn of(multicast: &Multicast) -> Self {
        Self::new(multicast.mtu, multicast.loss_ppm, multicast.pool.contains(':'))
    }

    /// No headers and no loss: bytes stay what they are.
    #[must_use]
    pub fn none() -> Self {
        Self { symbol_bytes: 1, frame_bytes: 1, loss_ppm: 0, repair: RefCell::default() }
    }

    /// Bytes of a source symbol.
    #[must_use]
    pub fn symbol_bytes(&self) -> u64 {
        self.symbol_bytes
    }

    /// Bytes on a link for `payload` bytes to `receivers` hosts at once.
    #[must_use]
    pub fn bytes(&self, payload: u64, receivers: usize) -> u64 {
        let symbols = u128::from(payload.div_ceil(self.symbol_bytes));
        let sent = symbols * u128::from(self.repair(receivers));
        u64::try_from(sent * u128::from(self.frame_bytes) / 1_000_000).unwrap_or(u64::MAX)
    }

    /// Symbols sent for a million source symbols, repair included, until all receivers have a block.
    fn repair(&self, receivers: usize) -> u64 {
        if self.loss_ppm == 0 {
            return 1_000_000;
        }
        *self.repair.borrow_mut().entry(receivers).or_insert_with(|| expected(self.loss_ppm, receivers))
    }
}

/// The expected largest of as many negative binomial numbers as receivers: symbols sent until each has a block's,
/// rateless (ALGORITHMS of multicast FEC: Nonnenmacher, Biersack and Towsley 1998), in millionths of the block's.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a number from 1 to some hundreds"
)]
fn expected(loss_ppm: u32, receivers: usize) -> u64 {
    let loss = f64::from(loss_ppm) / 1e6;
    // probability[i]: one receiver has i of the block's symbols; the last: all.
    let mut probability = vec![0.0f64; BLOCK_SYMBOLS + 1];
    probability[0] = 1.0;
    let mut expected = 0.0;
    for _ in 0..BLOCK_SYMBOLS * 64 {
        // The chance that some receiver is not done before this symbol.
        let open = 1.0 - power(probability[BLOCK_SYMBOLS], receivers as u64);
        if open < 1e-9 {
            break;
        }
        expected += open;
        probability[BLOCK_SYMBOLS] += probability[BLOCK_SYMBOLS - 1] * (1.0 - loss);
        for i in (1..BLOCK_SYMBOLS).rev() {
            probability[i] = probability[i] * loss + probability[i - 1] * (1.0 - loss);
        }
        probability[0] *= loss;
    }
    (expected / BLOCK_SYMBOLS as f64 * 1e6).round() as u64
}

/// By squaring: the same on every machine, which `powi` is not.
pub(crate) fn power(base: f64, mut exponent: u64) -> f64 {
    let (mut result, mut square) = (1.0, base);
    while exponent > 0 {
        if exponent & 1 == 1 {
            result *= square;
        }
        square *= square;
        exponent >>= 1;
    }
    result
}

#[cfg(test)]
mod tests {
    use super::Overhead;

    /// Of ALGORITHMS.md 2 (d): 64 receivers, blocks of 128 symbols.
    #[test]
    fn repair_is_as_computed_elsewhere() {
        for (loss_ppm, factor) in [(10_000, 1_036_000u64), (1_000, 1_011_000), (100, 1_004_000)] {
            let sent = Overhead { loss_ppm, ..Overhead::none() }.bytes(1_000_000, 64);
            assert!(sent.abs_diff(factor) < 2_000, "{loss_ppm}: {sent}");
        }
    }

    #[test]
    fn headers_take_their_share() {
        // 1424 of 1514 bytes of a frame.
        assert_eq!(Overhead::new(1500, 0, false).bytes(1424 * 1000, 8), 1514 * 1000);
        assert_eq!(Overhead::new(1500, 0, false).symbol_bytes(), 1424);
        assert_eq!(Overhead::new(9000, 0, true).symbol_bytes(), 8904);
        assert_eq!(Overhead::none().bytes(77, 3), 77);
    }
}
