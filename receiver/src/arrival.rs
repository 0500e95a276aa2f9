//! An offer as it comes in: whether it makes sense, how it is accepted, and when another one takes its place.

use crate::link::Link;
use crate::listen::Incoming;
use crossbeam_channel::Receiver;
use std::collections::VecDeque;
use std::net::SocketAddr;
use wire::control::{Accept, Offer, RefuseCause, ToSender};
use wire::limits;

/// Sends what is held from an earlier run, and the acceptance.
pub(crate) fn accept(intake: &crate::store::Intake, link: &Link, unicast: SocketAddr, rcvbuf_bytes: usize) {
    for digests in intake.live_digests().chunks(limits::DIGESTS_MAX) {
        let held = ToSender::Held { digests: digests.to_vec() };
        // A closed connection shows itself on the incoming side.
        link.say(&held);
    }
    // The kernel charges a small datagram's whole buffer; half of the buffer is what surely fits.
    let credit_bytes = (rcvbuf_bytes as u64 / 2).max(64 << 10);
    let accept = Accept { version: wire::VERSION, unicast, credit_bytes };
    link.say(&ToSender::Accept(accept));
}

/// Looks at new connections while a transfer runs: the same transfer again takes over (its sender was started again,
/// or lost this connection), another one is told to come back.
pub(crate) fn preempt(
    offer: &Offer,
    incoming: &Receiver<Result<Incoming, String>>,
    waiting: &mut VecDeque<Incoming>,
) -> Option<String> {
    match incoming.try_recv().ok()? {
        Ok(new) if new.offer.transfer == offer.transfer => {
            waiting.push_back(new);
            Some("the sender connected anew".into())
        }
        Ok(new) => {
            let reason = format!("transfer {} is under way here: try again when it is over", offer.transfer);
            let refusal = ToSender::Refuse { cause: RefuseCause::Busy, reason };
            new.link.say(&refusal);
            None
        }
        Err(reason) => {
            tracing::warn!(reason, "a connection was refused");
            None
        }
    }
}
