//! Control messages: what sender and host say to each other beside the data, a frame each on their TLS
//! connection, in postcard's format (varints, little-endian; <https://postcard.jamesmunns.com>).
//!
//! ```text
//! sender                                   host
//!   Offer (version, session, VMs) ─────────▶
//!   ◀──────────── Held* , Accept │ Refuse        what an earlier, interrupted run left there
//!   Join (channel, key, group) ────────────▶
//!   ◀──────────────────────────────── Joined
//!   Announce (blocks: length, digest) ─────▶     before the blocks' datagrams
//!   Through (seq, blocks sent so far) ─────▶     asks: what is missing of these?
//!   ◀── Report (seq, done, deficits, counts)     also unasked, when blocks get done
//!   BlockData ─────────────────────────────▶     catch-up of a host that is off the group
//!   ◀─────────────────────────────────── Lacks   a block names contents that are not here after all
//!   Supply ────────────────────────────────▶
//!   Leave ─────────────────────────────────▶
//!   ◀────────────────────────── VmComplete*
//!   ◀──────────────────────────── AllComplete
//!   Release ───────────────────────────────▶     over everywhere: forget the journal
//! ```
//!
//! Either side ends early with `Cancel`/`Failed` and a reason in words.

mod check;
mod guests;
mod handover;
pub mod measure;
mod peers;
mod ranges;
mod status;
#[cfg(test)]
mod tests;
mod to_host;
mod to_sender;

pub use guests::{
    Attachment, AttachmentOffer, CloneOffer, EndClones, FaultFigures, FirstTouched, GuestOffer, GuestReport,
    GuestState, PageRange, Paging, Want,
};
pub use handover::{HostWord, LeaveOffer, SourceWord};
pub use peers::{Circle, Fetch, Fetched, Peer};
pub use ranges::{BlockRange, ranges};
pub use status::{CloneStatus, HostStatus, TransferStatus};
pub use to_host::{Announce, Join, Offer, Probe, Through, ToHost, VmOffer};
pub use to_sender::{Accept, Deficit, HostStats, ProbeResult, RefuseCause, Report, ToSender};

use crate::limits;
use check::at_most;
use serde::{Deserialize, Serialize};

/// Why a frame is no valid message.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// Not in the format, or bytes left over.
    #[error("control message of {0} bytes is malformed")]
    Malformed(usize),
    /// A list, name or number is over its named limit.
    #[error("control message: {field} of {value} is over the limit of {limit}")]
    Limit {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// What is allowed.
        limit: u64,
    },
}

/// A message in either direction: encoding and checked decoding.
pub trait Message: Serialize + for<'de> Deserialize<'de> {
    /// Checks every list, name and number against [`limits`].
    ///
    /// # Errors
    /// [`ControlError::Limit`] names the field.
    fn check(&self) -> Result<(), ControlError>;

    /// The frame's bytes.
    ///
    /// # Panics
    /// Never: no message holds a type that postcard cannot write.
    fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("control messages are plain data")
    }

    /// Reads a frame.
    ///
    /// # Errors
    /// [`ControlError`] if the frame is not exactly one message within the limits.
    fn decode(frame: &[u8]) -> Result<Self, ControlError> {
        at_most("frame", frame.len(), limits::FRAME_BYTES_MAX as usize)?;
        match postcard::take_from_bytes::<Self>(frame) {
            Ok((message, [])) => message.check().map(|()| message),
            _ => Err(ControlError::Malformed(frame.len())),
        }
    }
}

/// A reason cut to [`limits::REASON_BYTES_MAX`] at a character's border.
#[must_use]
pub fn reason(words: &str) -> String {
    let mut end = words.len().min(limits::REASON_BYTES_MAX);
    while !words.is_char_boundary(end) {
        end -= 1;
    }
    words[..end].to_owned()
}
