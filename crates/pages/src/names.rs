//! Names of contents: what stands for a page's bytes where they cannot be compared, at another host or on a disk.

use crate::page::Page;

/// Bytes of a name.
pub const NAME_BYTES: usize = 16;

/// The first 128 bits of a page's BLAKE3 under a key, little-endian. Guests do not know the key while they run, so they
/// cannot make pages of one name; two different pages have one by chance once in 2^64.
///
/// # Panics
/// Never: a digest is longer than a name.
#[must_use]
pub fn name_of(key: &[u8; 32], page: &Page) -> u128 {
    let digest = blake3::keyed_hash(key, page);
    u128::from_le_bytes(*digest.as_bytes().first_chunk().expect("32 bytes"))
}

/// The key of one domain (a tenant that is kept apart), made from that of a measurement or transfer: equal pages of
/// different domains have names that say nothing of it.
#[must_use]
pub fn domain_key(key: &[u8; 32], domain: u32) -> [u8; 32] {
    *blake3::keyed_hash(key, &domain.to_le_bytes()).as_bytes()
}
