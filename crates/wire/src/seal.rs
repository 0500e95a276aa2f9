//! Sealing a symbol under its channel's key: AES-256-GCM, the header as associated data.
//!
//! The nonce is the channel's 4-byte salt and the header's 64-bit counter. A [`Sealer`] hands counters out once
//! and lives as long as its key, so no nonce repeats. Members of a channel share the key: a seal proves
//! membership, not the sender (DESIGN.md §4); the block's digest proves the rest.

use crate::datagram::{HEADER_BYTES, Header, OVERHEAD_BYTES, TAG_BYTES, View};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use std::fmt;

/// A channel's secret: 32 bytes of key and 4 of salt, random for each channel of each session.
#[derive(Clone, PartialEq, Eq)]
pub struct ChannelSecret {
    /// AES-256 key.
    pub key: [u8; 32],
    /// The nonce's fixed part.
    pub salt: [u8; 4],
}

impl ChannelSecret {
    /// A fresh secret from the operating system.
    ///
    /// # Panics
    /// If the operating system has no random bytes to give: nothing secure can be done then.
    #[must_use]
    pub fn random() -> Self {
        let mut secret = Self { key: [0; 32], salt: [0; 4] };
        getrandom::fill(&mut secret.key).expect("the operating system gives random bytes");
        getrandom::fill(&mut secret.salt).expect("the operating system gives random bytes");
        secret
    }
}

impl fmt::Debug for ChannelSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ChannelSecret(..)")
    }
}

/// The datagram could not be opened: damaged, forged, or of another key.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the seal does not open under the channel's key")]
pub struct OpenError;

/// Opens datagrams of one channel.
#[derive(Debug)]
pub struct Opener {
    key: LessSafeKey,
    salt: [u8; 4],
}

/// Seals datagrams of one channel and numbers them.
#[derive(Debug)]
pub struct Sealer {
    key: LessSafeKey,
    salt: [u8; 4],
    counter: u64,
}

fn key(secret: &ChannelSecret) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &secret.key).expect("an AES-256 key has 32 bytes"))
}

fn nonce(salt: [u8; 4], counter: u64) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    bytes[..4].copy_from_slice(&salt);
    bytes[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

impl Opener {
    /// An opener for the channel with this secret.
    #[must_use]
    pub fn new(secret: &ChannelSecret) -> Self {
        Self { key: key(secret), salt: secret.salt }
    }

    /// Opens the symbol into `out`, whose length is the symbol's.
    ///
    /// # Errors
    /// [`OpenError`]; `out` then holds garbage, so mark a symbol as received only after success.
    pub fn open(&self, view: &View<'_>, out: &mut [u8]) -> Result<(), OpenError> {
        self.key
            .open_separate_gather(
                nonce(self.salt, view.header.counter),
                Aad::from(view.associated),
                view.symbol,
                view.tag,
                out,
            )
            .map_err(|_| OpenError)
    }
}

impl Sealer {
    /// A sealer that starts at counter 0. One secret must never have two.
    #[must_use]
    pub fn new(secret: &ChannelSecret) -> Self {
        Self { key: key(secret), salt: secret.salt, counter: 0 }
    }

    /// The counter that the next datagram gets; also the number of datagrams sealed so far.
    #[must_use]
    pub fn counter(&self) -> u64 {
        self.counter
    }

    /// Seals `symbol` into `out`, which becomes a whole datagram of `symbol.len() + OVERHEAD_BYTES` bytes. The
    /// header's counter is overwritten by the sealer's own.
    ///
    /// # Panics
    /// If `out` has another length, or after 2^64 datagrams.
    pub fn seal(&mut self, mut header: Header, symbol: &[u8], out: &mut [u8]) {
        assert_eq!(out.len(), symbol.len() + OVERHEAD_BYTES, "room for exactly one datagram");
        header.counter = self.counter;
        self.counter = self.counter.checked_add(1).expect("fewer than 2^64 datagrams in a session");
        let (head, rest) = out.split_first_chunk_mut::<HEADER_BYTES>().expect("length asserted above");
        header.write(head);
        let (sealed, tag) = rest.split_last_chunk_mut::<TAG_BYTES>().expect("length asserted above");
        self.key
            .seal_out_of_place_scatter(
                nonce(self.salt, header.counter),
                Aad::from(&*head),
                symbol,
                sealed,
                &[],
                tag,
            )
            .expect("lengths are right and far below AES-GCM's limit");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datagram::parse;
    use crate::{BlockId, ChannelId};

    fn header() -> Header {
        Header { scheme: 0, channel: ChannelId(1), block: BlockId(2), esi: 3, block_len: 640, counter: 0 }
    }

    fn sealed(sealer: &mut Sealer, symbol: &[u8]) -> Vec<u8> {
        let mut out = vec![0; symbol.len() + OVERHEAD_BYTES];
        sealer.seal(header(), symbol, &mut out);
        out
    }

    #[test]
    fn opens_what_was_sealed_and_counts() {
        let secret = ChannelSecret::random();
        let (mut sealer, opener) = (Sealer::new(&secret), Opener::new(&secret));
        let symbol = [0x5a; 64];
        for counter in 0..3 {
            let datagram = sealed(&mut sealer, &symbol);
            let view = parse(&datagram).expect("well formed");
            assert_eq!(view.header.counter, counter);
            let mut out = [0; 64];
            opener.open(&view, &mut out).expect("same key");
            assert_eq!(out, symbol);
        }
    }

    #[test]
    fn every_flipped_bit_and_every_other_key_is_refused() {
        let secret = ChannelSecret::random();
        let datagram = sealed(&mut Sealer::new(&secret), &[7; 64]);
        let opener = Opener::new(&secret);
        for bit in 0..datagram.len() * 8 {
            let mut copy = datagram.clone();
            copy[bit / 8] ^= 1 << (bit % 8);
            if let Ok(view) = parse(&copy) {
                let mut out = vec![0; view.symbol.len()];
                assert_eq!(opener.open(&view, &mut out), Err(OpenError), "bit {bit}");
            }
        }
        let view = parse(&datagram).expect("well formed");
        let other = Opener::new(&ChannelSecret::random());
        assert_eq!(other.open(&view, &mut [0; 64]), Err(OpenError));
    }
}
