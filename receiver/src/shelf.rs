//! What this host can hand to others of its transfer, and what it lacks: known from what the sender told while it lived.
//!
//! Blocks are not kept, only their heads (where their pages stand); a block that is asked for is written anew from the images, and
//! goes out only if its bytes have the digest that the sender announced.

use crate::store::Intake;
use pages::block::{BlockLimits, Scratch, body_head, rebuild_body};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use wire::Digest;
use wire::control::{Announce, Circle, Offer, Peer};

#[derive(Default)]
struct Known {
    /// The others in each circle, as the sender that is or was connected last names it.
    named: BTreeMap<u32, Arc<[Peer]>>,
    /// Blocks that were announced, and the others in the circle of each.
    circles: HashMap<Digest, Arc<[Peer]>>,
    /// Header and placements of those placed here.
    heads: HashMap<Digest, Box<[u8]>>,
    /// Hosts that brought some.
    helpers: Vec<String>,
}

/// See the module's text. One for each transfer with guests.
#[derive(Default)]
pub struct Shelf(Mutex<Known>);

impl Shelf {
    fn known(&self) -> MutexGuard<'_, Known> {
        // What is known is whole at any time.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A sender has connected: its announcements will name these circles. What is known of blocks stays.
    pub fn handle_offer(&self, offer: &Offer) {
        let peer = |index: &u16| offer.peers.get(usize::from(*index)).cloned();
        let circle = |circle: &Circle| (circle.id, circle.peers.iter().filter_map(peer).collect());
        self.known().named = offer.circles.iter().map(circle).collect();
    }

    /// Notes what the sender announces.
    pub fn announce(&self, announce: &Announce) {
        let mut known = self.known();
        let circle = known.named.get(&announce.circle).cloned().unwrap_or_default();
        known.circles.extend(announce.blocks.iter().map(|(_, digest)| (*digest, Arc::clone(&circle))));
    }

    /// Notes a block whose digest matched, and whose pages are placed. One whose body does not carry its contents is noted without a
    /// body: it is here, and cannot be handed on.
    pub fn placed(&self, digest: &Digest, body: &[u8]) {
        let head = body_head(body).unwrap_or_default();
        self.known().heads.insert(*digest, head.into());
    }

    /// Blocks that were announced and are not here, each with the hosts that may have it.
    #[must_use]
    pub fn lacking(&self) -> Vec<(Digest, Arc<[Peer]>)> {
        let known = self.known();
        let lacking = known.circles.iter().filter(|(digest, _)| !known.heads.contains_key(*digest));
        lacking.map(|(digest, circle)| (*digest, Arc::clone(circle))).collect()
    }

    /// Notes that a peer brought a block.
    pub fn note_helper(&self, name: &str) {
        let mut known = self.known();
        if known.helpers.iter().all(|helper| helper != name) {
            known.helpers.push(name.to_owned());
        }
    }

    /// Hosts that brought blocks.
    #[must_use]
    pub fn helpers(&self) -> Vec<String> {
        self.known().helpers.clone()
    }

    /// The bytes of a block for another host, if it is in the block's circle and this host has it.
    #[must_use]
    pub fn body(
        &self,
        digest: &Digest,
        host: &str,
        intake: &Intake,
        scratch: &mut Scratch,
    ) -> Option<Vec<u8>> {
        let head = {
            let known = self.known();
            if !known.circles.get(digest)?.iter().any(|peer| peer.name == host) {
                return None;
            }
            known.heads.get(digest)?.clone()
        };
        let mut page = |vm, pfn, into: &mut pages::Page| intake.read_page(vm, pfn, into).is_ok();
        let body = rebuild_body(&head, &BlockLimits::default(), &mut page, scratch).ok()??;
        (blake3::hash(&body).as_bytes() == digest).then_some(body)
    }
}

/// The shelves of all transfers here, by name, for those that answer peers.
#[derive(Clone, Default)]
pub(crate) struct Shelves(Arc<Mutex<ByTransfer>>);

type ByTransfer = BTreeMap<String, (Arc<Shelf>, Weak<Intake>)>;

impl Shelves {
    fn lock(&self) -> MutexGuard<'_, ByTransfer> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn put(&self, transfer: &str, shelf: &Arc<Shelf>, intake: &Arc<Intake>) {
        let mut shelves = self.lock();
        shelves.retain(|_, (_, intake)| intake.strong_count() > 0);
        shelves.insert(transfer.to_owned(), (Arc::clone(shelf), Arc::downgrade(intake)));
    }

    /// A transfer's shelf and images, while both are here.
    pub(crate) fn get(&self, transfer: &str) -> Option<(Arc<Shelf>, Arc<Intake>)> {
        let shelves = self.lock();
        let (shelf, intake) = shelves.get(transfer)?;
        Some((Arc::clone(shelf), intake.upgrade()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Store, VmSpec};
    use pages::block::{BlockParts, ContentRun, Encoding, decode_block, encode_block};
    use pages::{PAGE_SIZE, Pfn, VmId};

    fn offer(circle: u32) -> Offer {
        let peer = |name: &str| Peer { name: name.into(), address: ([127, 0, 0, 1], 9).into() };
        Offer {
            version: wire::VERSION,
            session: 0,
            transfer: "t".into(),
            host: "h1".into(),
            symbol_size_max: 1424,
            multicast_port: 1,
            ipv6: false,
            vms: Vec::new(),
            guests: Vec::new(),
            peers: vec![peer("h2"), peer("h3")],
            circles: vec![Circle { id: circle, peers: vec![1] }],
        }
    }

    /// A block of 3 contents for pages 1, 2, 5 of a VM of 8, and of another VM elsewhere.
    fn block(encoding: Encoding) -> Vec<u8> {
        let pages: Vec<[u8; PAGE_SIZE]> =
            (1..4).map(|of| std::array::from_fn(|at| u8::try_from(at % (of * 50)).expect("small"))).collect();
        let pages: Vec<&[u8; PAGE_SIZE]> = pages.iter().collect();
        let run = |vm, pfn, content, count| ContentRun { vm: VmId(vm), pfn: Pfn(pfn), content, count };
        let runs = [run(0, 1, 0, 2), run(0, 5, 2, 1), run(7, 0, 0, 3)];
        let parts = BlockParts { runs: &runs, uniform: &[], contents: &pages };
        encode_block(&parts, encoding, &mut Scratch::new())
    }

    #[test]
    fn a_block_is_written_anew_for_hosts_of_its_circle_only() {
        for encoding in [Encoding::Raw, Encoding::Lz4, Encoding::Zstd { level: 3 }] {
            let dir = tempfile::tempdir().expect("a directory");
            let store = Store::open(dir.path()).expect("a store");
            let spec = VmSpec { name: "a".into(), file_len: 8 * 4096, page_count: 8, content_pages: 3 };
            let intake = store.begin("t", &[(VmId(0), spec)], false).expect("begun");
            let shelf = Shelf::default();
            shelf.handle_offer(&offer(4));
            let (body, mut scratch) = (block(encoding), Scratch::new());
            let digest = *blake3::hash(&body).as_bytes();
            let len = u32::try_from(body.len()).expect("small");
            shelf.announce(&Announce { first_block: 0, circle: 4, blocks: vec![(len, digest)] });
            assert_eq!(shelf.lacking().len(), 1);
            assert_eq!(shelf.body(&digest, "h3", &intake, &mut scratch), None, "not here yet");
            let decoded = decode_block(&body, &BlockLimits::default(), &mut scratch).expect("a block");
            intake.place(digest, &decoded).expect("placed");
            shelf.placed(&digest, &body);
            assert!(shelf.lacking().is_empty());
            // Another sender may name its circles otherwise.
            shelf.handle_offer(&offer(9));
            assert_eq!(shelf.body(&digest, "h3", &intake, &mut scratch).as_ref(), Some(&body));
            assert_eq!(shelf.body(&digest, "h2", &intake, &mut scratch), None, "a peer of other blocks");
            assert_eq!(shelf.body(&digest, "h9", &intake, &mut scratch), None, "a stranger");
            assert_eq!(shelf.body(&[1; 32], "h3", &intake, &mut scratch), None);
        }
    }
}
