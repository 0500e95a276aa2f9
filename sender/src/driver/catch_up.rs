//! Blocks sent whole to hosts that are off the group, from the window or encoded once more.

use super::Transfer;
use super::encoders::Encoded;
use crate::encode::EncodedBlock;
use pages::block::Scratch;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use wire::BlockId;
use wire::control::ToHost;

/// Stripes encoded again that are kept: some 50 MiB at most.
const STRIPES_MAX: usize = 16;

/// Stripes encoded once more, and who waits for them.
#[derive(Default)]
pub(super) struct Again {
    /// Empty while a stripe is being encoded.
    stripes: HashMap<usize, Vec<EncodedBlock>>,
    order: VecDeque<usize>,
    waiting: Vec<(For, BlockId)>,
    scratch: Scratch,
}

/// Who gets a block that is not in the window any more.
#[derive(Clone, Copy)]
enum For {
    /// A host, over its control connection.
    Host(usize),
    /// A group, once more.
    Group,
}

impl Again {
    /// Takes in a stripe and forgets the oldest ones.
    pub(super) fn keep(&mut self, encoded: Encoded) {
        self.stripes.insert(encoded.stripe, encoded.blocks);
        while self.stripes.len() > STRIPES_MAX {
            let Some(oldest) = self.order.pop_front() else { break };
            if self.stripes.get(&oldest).is_some_and(Vec::is_empty) {
                self.order.push_back(oldest);
                break;
            }
            self.stripes.remove(&oldest);
        }
    }
}

impl Transfer {
    /// A host lacks contents that a block only names.
    pub(super) fn handle_lacks(&mut self, host: usize, block: BlockId) {
        let origin = usize::try_from(block.0).ok().and_then(|at| self.origins.get(at));
        let now = self.start.elapsed();
        match origin {
            Some((stripe, _)) if self.encoders.only_names(*stripe) => {
                self.session.handle_lacks(host, block, now);
            }
            _ => self.session.fail(host, "lacks contents of a block that carries them", now),
        }
    }

    /// Sends the contents that a block names, from the images here.
    fn supply(&mut self, host: usize, block: BlockId, named: &[u8]) {
        let body = crate::encode::supply(&self.prepared.vms, named, &mut self.again.scratch);
        let body = body.expect("a host lacks contents only of blocks that name them");
        if self.cancelling.is_broken() {
            return;
        }
        self.tell(host, ToHost::Supply { block: block.0, body });
    }

    /// Sends what can be sent, and starts encoding what is not at hand.
    pub(super) fn catch_up(&mut self) {
        let mut wanted = std::mem::take(&mut self.again.waiting);
        let now = self.start.elapsed();
        while let Some((host, id)) = self.session.poll_catch_up(now) {
            wanted.push((For::Host(host), id));
        }
        while let Some(id) = self.session.poll_recall() {
            wanted.push((For::Group, id));
        }
        // Announcements go before the blocks.
        self.flush_control();
        for (whom, id) in wanted {
            let (stripe, place) = self.origins[usize::try_from(id.0).expect("block ids count up from 0")];
            let resident = self.window.block(id);
            let bytes =
                resident.or_else(|| Some(self.again.stripes.get(&stripe)?.get(place)?.bytes.as_slice()));
            let Some(bytes) = bytes.map(<[u8]>::to_vec) else {
                if let Entry::Vacant(entry) = self.again.stripes.entry(stripe) {
                    entry.insert(Vec::new());
                    self.again.order.push_back(stripe);
                    self.encoders.encode_again(stripe);
                }
                self.again.waiting.push((whom, id));
                continue;
            };
            match whom {
                For::Host(host) if self.session.lacks_contents(host, id) => self.supply(host, id, &bytes),
                For::Host(host) => self.tell(host, ToHost::BlockData { block: id.0, bytes }),
                For::Group if self.session.handle_recalled(id) => self.keep(id, bytes),
                For::Group => {}
            }
        }
    }
}
