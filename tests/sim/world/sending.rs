//! The sender's end: encoding, sealing, catching up.

use super::{SYMBOL_SIZE, World, sim};
use lab::sim::Dest;
use sender::encode::{EncodedBlock, encode_stripe, supply};
use sender::session::Event;
use wire::BlockId;
use wire::control::ToHost;
use wire::datagram::OVERHEAD_BYTES;

impl World {
    fn add_stripe(&mut self, segment: usize) {
        let Some(stripe) = self.todo[segment].next() else { return };
        for (place, block) in self.encode(stripe).into_iter().enumerate() {
            let len = u32::try_from(block.bytes.len()).expect("small");
            let id = self.sender.handle_block(segment, len, block.digest);
            self.keep(id, block.bytes);
            self.origins.push((stripe, place));
        }
        if self.todo[segment].is_empty() {
            self.sender.handle_segment_encoded(segment);
        }
    }

    fn keep(&mut self, id: BlockId, bytes: Vec<u8>) {
        let len = u32::try_from(bytes.len()).expect("small");
        let shape = fec::BlockShape::for_len(len, SYMBOL_SIZE).expect("shape");
        self.window.keep(id, bytes, shape).expect("length");
    }

    pub(super) fn drive_sender(&mut self) {
        while let Some(segment) = (0..self.todo.len())
            .find(|segment| !self.todo[*segment].is_empty() && self.sender.wants_blocks(*segment, 0, 0))
        {
            self.add_stripe(segment);
        }
        self.sender.handle_timeout(self.now);
        self.flush_control();
        let mut idle = true;
        while let Some(transmit) = self.sender.poll_transmit(self.now) {
            idle = false;
            self.flush_control();
            let spec = &self.channels[transmit.channel];
            let dest = match spec.group {
                Some(_) => Dest::Group(spec.id.0),
                None => Dest::Unicast(sim(spec.hosts[0])),
            };
            if let Some(batch) = self.window.seal(&transmit).expect("seal") {
                assert!(batch.datagram <= usize::from(SYMBOL_SIZE) + OVERHEAD_BYTES);
                for datagram in batch.bytes.chunks(batch.datagram) {
                    self.sent_datagrams += 1;
                    self.net.send(self.now, 0, dest, datagram);
                }
            }
        }
        while let Some((host, id)) = self.sender.poll_catch_up(self.now) {
            idle = false;
            let bytes = self.block(id);
            self.whole_bytes += bytes.len() as u64;
            let data = if self.sender.lacks_contents(host, id) {
                let body = supply(&self.prepared.vms, &bytes, &mut self.scratch).expect("it names them");
                self.supplied += 1;
                ToHost::Supply { block: id.0, body }
            } else {
                ToHost::BlockData { block: id.0, bytes }
            };
            self.flush_control();
            self.tell_host(host, &data);
        }
        while let Some(id) = self.sender.poll_recall() {
            if self.sender.handle_recalled(id) {
                let bytes = self.block(id);
                self.keep(id, bytes);
            }
        }
        self.flush_control();
        // Nothing to do, and yet no time to sleep: a driver would spin.
        let due = self.sender.poll_timeout(self.now);
        self.spins += u64::from(idle && due.is_some_and(|at| at <= self.now));
        while let Some(id) = self.sender.poll_release() {
            self.window.release(id);
        }
        while let Some(event) = self.sender.poll_event() {
            if std::env::var_os("SIM_TRACE").is_some() {
                println!("{:?} {event:?} {}", self.now, self.describe());
            }
            if let Event::Phase { host, phase } = event {
                self.phases.push((self.now, host, phase));
            }
        }
    }

    fn encode(&mut self, stripe: usize) -> Vec<EncodedBlock> {
        encode_stripe(&self.prepared, &self.stripes[stripe], &self.plan, &mut self.scratch)
    }

    fn block(&mut self, id: BlockId) -> Vec<u8> {
        if let Some(bytes) = self.window.block(id) {
            return bytes.to_vec();
        }
        let (stripe, place) = self.origins[usize::try_from(id.0).expect("small")];
        self.encode(stripe).swap_remove(place).bytes
    }

    fn flush_control(&mut self) {
        while let Some((host, message)) = self.sender.poll_control() {
            self.tell_host(host, &message);
        }
    }
}
