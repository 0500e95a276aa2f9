//! Bytes on the network: datagram and control codecs, sealing, limits.
//!
//! A *data datagram* ([`datagram`]) carries one symbol of one block, sealed ([`seal`]) under the key
//! of its channel. A *control message* ([`control`]) is one frame on the TLS connection between the
//! sender and one host. Nothing here does I/O, keeps time or allocates by a length that it has not
//! checked against [`limits`].
//!
//! Start at [`datagram::Header`] and [`control::Message`].

#![forbid(unsafe_code)]

mod block_set;
pub mod control;
pub mod datagram;
pub mod limits;
pub mod seal;

pub use block_set::BlockSet;

/// The protocol's version, sent in the first control message and in each datagram. Zero is invalid.
pub const VERSION: u8 = 3;

/// A channel: one multicast group (or one host's unicast port) within one session. Allotted at random by
/// the sender, so that datagrams of another session are told apart before a key is tried.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ChannelId(pub u32);

/// A block within one session: numbered by the sender in the order in which blocks were encoded.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BlockId(pub u64);

/// BLAKE3 of a block's bytes, as it travels over the control channel.
pub type Digest = [u8; 32];
