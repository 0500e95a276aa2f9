//! Guests at the hosts: their attachments go out before all else, their page faults are answered first.

use super::go_first::GoFirst;
use super::{Transfer, TransferConfig};
use crate::encode::encode_pages;
use crate::guests::{Clones, Packed};
use crate::page_service::PageService;
use crate::prepare::Prepared;
use pages::block::Scratch;
use pages::merge::{ContentId, PageIdentity};
use pages::{PageSource, Pfn, VmId};
use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;
use wire::BlockId;
use wire::control::{ToHost, ToSender};

/// Bytes of answers to one host not yet written to its connection, beyond which nothing is sent ahead of faults.
const AHEAD_BYTES_MAX: u64 = 256 << 10;

/// What the driver keeps for guests.
pub(super) struct Guests {
    pub(super) service: PageService,
    pub(super) clones: Clones,
    packed: Packed,
    prepared: Arc<Prepared>,
    /// Of VMs that run here, or did: pages newer than those that blocks are made of.
    pub(super) newest: BTreeMap<u16, Arc<dyn PageSource>>,
    scratch: Scratch,
    /// The block of each content that a group carries, if faults may be answered so.
    blocks: Vec<Option<NonZeroU32>>,
    pub(super) go_first: GoFirst,
}

/// A block's number and one, so that four bytes a content suffice.
fn numbered(block: BlockId) -> Option<NonZeroU32> {
    NonZeroU32::new(u32::try_from(block.0 + 1).ok()?)
}

impl Guests {
    /// `expected_bytes` are to be sent once they are encoded.
    pub(super) fn new(prepared: &Arc<Prepared>, config: &TransferConfig, expected_bytes: u64) -> Self {
        let guests = &config.guests;
        let at_host = |host: usize| {
            let here = guests.iter().filter(|guest| guest.clones.iter().any(|(at, _)| *at == host));
            here.map(|guest| guest.vm).collect()
        };
        let pages = |vm: u16| prepared.vms[usize::from(vm)].source.page_count();
        Self {
            service: PageService::new(
                (0..config.hosts.len()).map(at_host).collect(),
                guests.iter().map(|guest| (guest.vm, pages(guest.vm))).collect(),
            ),
            clones: Clones::new(guests),
            packed: Packed::new(guests),
            prepared: Arc::clone(prepared),
            newest: BTreeMap::new(),
            scratch: Scratch::new(),
            blocks: match config.shared_faults && !guests.is_empty() {
                true => vec![None; prepared.index.content_count() as usize],
                false => Vec::new(),
            },
            go_first: GoFirst::new(config.hosts.len(), expected_bytes, guests),
        }
    }
}

impl Guests {
    /// Notes a block that a group will carry, with these contents.
    pub(super) fn note_block(&mut self, block: BlockId, contents: &[ContentId]) {
        for id in contents {
            if let Some(of) = self.blocks.get_mut(id.0 as usize) {
                *of = numbered(block);
            }
        }
    }

    /// The block that brings a page, if it is known and a group carries it. A VM that ran here while blocks were made may have a newer
    /// version of the page, which no block brings.
    fn block_of(&self, vm: u16, page: u32) -> Option<BlockId> {
        if self.newest.contains_key(&vm) {
            return None;
        }
        let Some(PageIdentity::Content(id)) = self.prepared.index.identity(VmId(vm), Pfn(page)) else {
            return None;
        };
        self.blocks.get(id.0 as usize)?.map(|number| BlockId(u64::from(number.get()) - 1))
    }
}

impl Transfer {
    /// Takes in what a host says of its guests; gives back what is for the session.
    pub(super) fn guest_message(
        &mut self,
        host: usize,
        message: ToSender,
        now: Duration,
    ) -> Option<ToSender> {
        match message {
            ToSender::Accept(accept) => {
                self.guests.go_first.note_accepted(host);
                let parts: Vec<ToHost> = self.guests.packed.of_host(host).cloned().collect();
                parts.into_iter().for_each(|part| self.tell(host, part));
                self.departures_accepted(host);
                Some(ToSender::Accept(accept))
            }
            ToSender::Want(want) => {
                // Looked up before anything is queued: a host that asks for what it cannot have is failed all the same.
                let coming: Vec<u32> = (want.pages.iter().copied())
                    .filter(|page| {
                        let block = self.guests.block_of(want.vm, *page);
                        block.is_some_and(|block| self.session.hasten(host, block, now))
                    })
                    .collect();
                let mut is_coming = |page: u32| coming.contains(&page);
                if let Err(error) = self.guests.service.handle_want(host, &want, now, &mut is_coming) {
                    self.session.fail(host, error.to_string(), now);
                } else {
                    self.guests.share_faults(host, &want, now);
                    self.follow(&want);
                }
                None
            }
            ToSender::Guest(report) => {
                let clone = report.clone;
                if !self.guests.clones.handle(host, report, now) {
                    self.session.fail(host, format!("told news of clone {clone}, which it has not"), now);
                }
                None
            }
            ToSender::HandOver { vm, word } => {
                if let Err(reason) = self.handle_host_word(host, vm, word) {
                    self.session.fail(host, reason, now);
                }
                None
            }
            message => Some(message),
        }
    }

    /// Sends pages that guests wait for, then what fits of those that they will probably touch next.
    pub(super) fn answer_faults(&mut self) {
        let now = self.start.elapsed();
        if self.guests.service.poll_timeout().is_some_and(|due| due <= now) {
            let mut service = std::mem::take(&mut self.guests.service);
            service.handle_timeout(now, &mut |host, vm, page| {
                let block = self.guests.block_of(vm, page);
                block.is_some_and(|block| self.session.has_block(host, block))
            });
            self.guests.service = service;
        }
        let Guests { service, prepared, newest, scratch, .. } = &mut self.guests;
        let queues = &self.queues;
        let mut has_room =
            |host: usize| queues[host].as_ref().is_some_and(|queue| queue.first_bytes() < AHEAD_BYTES_MAX);
        while let Some(answer) = service.poll(&mut has_room) {
            let Some(queue) = &queues[answer.host] else { continue };
            let source = newest.get(&answer.vm).unwrap_or(&prepared.vms[usize::from(answer.vm)].source);
            let body = encode_pages(&**source, VmId(answer.vm), &answer.pages, scratch);
            if self.cancelling.is_broken() {
                continue;
            }
            service.count_bytes(body.len());
            self.departures.count_answer(answer.vm, answer.pages.len(), body.len());
            self.session.spend(self.start.elapsed(), body.len() as u64);
            queue.say_first(&ToHost::Pages { body });
        }
    }
}
