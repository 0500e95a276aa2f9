//! What the other threads tell, and what the session wants done.

use super::control::Link;
use super::{Happening, Transfer};
use crate::session::{Event, Phase};
use net::udp::Family;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use wire::BlockId;
use wire::control::{ToHost, ToSender};

/// How a host's unicast datagrams reach it.
enum Unicast {
    /// At this address, which its control connection proves to be its own.
    At(SocketAddr),
    /// Not at all: its own blocks go over its control connection.
    None,
    /// It names an address that is not its own; why, in words.
    Wrong(String),
}

impl Transfer {
    pub(super) fn take_in(&mut self, happening: Happening) {
        let now = self.start.elapsed();
        match happening {
            Happening::Encoded(encoded) if encoded.again => {
                if !self.cancelling.is_broken() {
                    self.again.keep(encoded);
                }
            }
            Happening::Encoded(encoded) => {
                self.encoders.put(encoded);
                while let Some((stripe, blocks)) = self.encoders.pop() {
                    self.add_blocks(stripe, blocks);
                }
            }
            Happening::Departure { index, told } => self.departure_told(index, told),
            Happening::Link { host, link } => match link {
                Link::Up(queue) => {
                    self.queues[host] = Some(queue);
                    self.guests.service.handle_connected(host);
                    self.session.handle_connected(host, now);
                }
                Link::Message(message, _permit) => self.message(host, *message, now),
                Link::Down { reason, fatal } => {
                    self.queues[host] = None;
                    self.departures.handle_disconnected(host);
                    self.session.handle_disconnected(host, now);
                    if fatal {
                        self.session.fail(host, reason, now);
                    } else {
                        self.session.note(host, reason);
                    }
                }
            },
        }
    }

    fn message(&mut self, host: usize, message: ToSender, now: Duration) {
        if let ToSender::Accept(accept) = &message {
            let control = self.config.hosts[host].address.ip();
            match unicast(accept.unicast, control, self.config.ipv6) {
                Unicast::At(dest) => {
                    if let Some(channel) = self.unicast_channel[host] {
                        self.transmitter.set_dest(channel, dest);
                    }
                }
                Unicast::None => self.session.forbid_unicast(host),
                Unicast::Wrong(reason) => return self.session.fail(host, reason, now),
            }
        }
        if let ToSender::Lacks { block } = message {
            return self.handle_lacks(host, BlockId(block));
        }
        if let Some(message) = self.guest_message(host, message, now) {
            self.session.handle_control(host, message, now);
        }
    }

    /// Keeps a block's bytes while they may be asked for.
    pub(super) fn keep(&mut self, id: BlockId, bytes: Vec<u8>) {
        let len = u32::try_from(bytes.len()).expect("at most 1 MiB");
        let shape = fec::BlockShape::for_len(len, self.config.session.symbol_size_max)
            .expect("the encoder keeps blocks in the limits");
        self.window.keep(id, bytes, shape).expect("the shape was made for this length");
    }

    pub(super) fn flush_control(&mut self) {
        while let Some((host, message)) = self.session.poll_control() {
            self.tell(host, message);
        }
    }

    /// Queues a message for a host, which has failed if it does not read.
    pub(super) fn tell(&mut self, host: usize, message: ToHost) {
        let Some(queue) = &self.queues[host] else { return };
        if queue.say(message).is_err() {
            self.queues[host] = None;
            let now = self.start.elapsed();
            self.session.fail(host, "does not read its control connection", now);
        }
    }

    pub(super) fn after_steps(&mut self) {
        let now = self.start.elapsed();
        while let Some(id) = self.session.poll_release() {
            self.window.release(id);
        }
        while let Some(event) = self.session.poll_event() {
            match event {
                Event::Phase { host, phase } => {
                    tracing::info!(host = %self.config.hosts[host].name, ?phase, "phase");
                    if phase == Phase::Complete {
                        self.complete_at[host] = Some(now);
                    }
                }
                Event::VmComplete { host, vm } if !self.vm_complete[host].contains(&vm) => {
                    self.vm_complete[host].push(vm);
                }
                Event::VmComplete { .. } => {}
                Event::SegmentStarted { segment } => self.segment_log.push((segment, now)),
            }
        }
    }
}

/// Whether a host may be sent datagrams at the address that it names. Any other than that of its control connection
/// could be a third party's, which the transfer would flood.
fn unicast(named: SocketAddr, control: IpAddr, ipv6: bool) -> Unicast {
    let family = if ipv6 { Family::V6 } else { Family::V4 };
    if named.port() == 0 || Family::of(control) != family {
        return Unicast::None;
    }
    if named.ip() != control {
        return Unicast::Wrong(format!(
            "wants its datagrams sent to {}, but is reached at {control}",
            named.ip()
        ));
    }
    if named.ip().is_multicast() || named.ip().is_unspecified() {
        return Unicast::Wrong(format!("wants its datagrams sent to {}, which is no host", named.ip()));
    }
    Unicast::At(named)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_address_of_the_control_connection_gets_datagrams() {
        let control: IpAddr = [10, 0, 0, 7].into();
        let named = |text: &str| unicast(text.parse().expect("an address"), control, false);
        assert!(matches!(named("10.0.0.7:4000"), Unicast::At(_)));
        assert!(matches!(named("10.0.0.7:0"), Unicast::None));
        for other in
            ["10.0.0.8:4000", "239.1.1.1:4000", "0.0.0.0:4000", "255.255.255.255:4000", "[fe80::1]:4000"]
        {
            assert!(matches!(named(other), Unicast::Wrong(_)), "{other}");
        }
        // Nothing proves an address of the other family.
        let six = unicast("[fd00::7]:4000".parse().expect("an address"), control, true);
        assert!(matches!(six, Unicast::None));
    }
}
