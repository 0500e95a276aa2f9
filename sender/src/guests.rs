//! VMs that are started at their hosts while their memory arrives: what hosts are told of them, and how their clones fare.

use std::time::Duration;
use wire::control::{
    Attachment, AttachmentOffer, CloneOffer, FaultFigures, FirstTouched, GuestOffer, GuestReport, GuestState,
    LeaveOffer, Paging, ToHost,
};
use wire::limits;

/// Device state is small and read before all else: it is compressed quickly.
const ATTACHMENT_LEVEL: i32 = 1;

/// A VM that is started at its hosts.
#[derive(Clone, Debug, Default)]
pub struct GuestInput {
    /// Index of the VM whose memory it has.
    pub vm: u16,
    /// What runs it, as `microvm`.
    pub kind: String,
    /// What the host's program must be able to run.
    pub fingerprint: String,
    /// Names and bytes of what is needed beside the memory.
    pub attachments: Vec<(String, Vec<u8>)>,
    /// It is no clone: the VM itself moves to its one host, its attachments are told when it stands.
    pub leaves: Option<LeaveOffer>,
    /// The clones, each with the index of its host; positions in the list over all VMs are the clones' numbers.
    pub clones: Vec<(usize, String)>,
    /// Its recorded working set: pages in first-touch order, none twice. Hosts are told of it; that its contents are sent first is
    /// the schedule's affair.
    pub working_set: Vec<u32>,
    /// What hosts ask for beside faults, and when clones start.
    pub paging: Paging,
    /// Bulk data wait until its clones have run for so long: they wait for no page then, but need the CPUs of their hosts.
    pub settle: Duration,
}

/// Why a guest cannot be offered.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GuestError {
    /// Too many attachments.
    #[error("{count} attachments of one VM; at most {}", limits::ATTACHMENTS_MAX)]
    Attachments {
        /// So many.
        count: usize,
    },
    /// An attachment is too large.
    #[error("attachment {name} has {len} bytes; at most {}", limits::ATTACHMENT_BYTES_MAX)]
    AttachmentLength {
        /// Its name.
        name: String,
        /// Its bytes.
        len: usize,
    },
    /// Its working set has too many pages.
    #[error("a working set of {count} pages; at most {}", limits::WORKING_SET_MAX)]
    WorkingSet {
        /// So many.
        count: usize,
    },
    /// Too many clones of a VM on one host.
    #[error("{count} clones of one VM on one host; at most {}", limits::CLONES_MAX)]
    Clones {
        /// So many.
        count: usize,
    },
}

/// A clone and how it fares.
#[derive(Clone, Debug)]
pub struct CloneOutcome {
    /// Its name.
    pub name: String,
    /// Index of its host.
    pub host: usize,
    /// Index of the VM whose memory it has.
    pub vm: u16,
    /// From the start of the transfer until the word came that it executes instructions.
    pub running: Option<Duration>,
    /// From the start until it depended on nobody any more.
    pub complete: Option<Duration>,
    /// Why it could not start, or was ended.
    pub failed: Option<String>,
    /// It ended by itself.
    pub ended: bool,
    /// It is no clone, but the VM itself, which moves.
    pub leaves: bool,
    /// Its page faults, as last told.
    pub faults: FaultFigures,
    /// How it runs, in its host's words, as last told.
    pub words: String,
}

/// The clones of a transfer, by number.
#[derive(Clone, Debug, Default)]
pub struct Clones(Vec<CloneOutcome>);

impl Clones {
    pub(crate) fn new(guests: &[GuestInput]) -> Self {
        let clones = guests.iter().flat_map(|guest| {
            guest.clones.iter().map(|(host, name)| CloneOutcome {
                name: name.clone(),
                host: *host,
                vm: guest.vm,
                running: None,
                complete: None,
                failed: None,
                ended: false,
                leaves: guest.leaves.is_some(),
                faults: FaultFigures::default(),
                words: String::new(),
            })
        });
        Self(clones.collect())
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> &[CloneOutcome] {
        &self.0
    }

    /// Takes in a host's word; `false` if the host has no such clone.
    pub(crate) fn handle(&mut self, host: usize, report: GuestReport, now: Duration) -> bool {
        let clone = usize::try_from(report.clone).ok().and_then(|clone| self.0.get_mut(clone));
        let Some(clone) = clone.filter(|clone| clone.host == host) else { return false };
        clone.faults = report.faults;
        clone.words = report.words;
        match report.state {
            GuestState::Running => {
                clone.running.get_or_insert(now);
            }
            GuestState::Complete => {
                clone.complete.get_or_insert(now);
            }
            GuestState::Failed { reason } => clone.failed = Some(reason),
            GuestState::Ended => clone.ended = true,
            _ => return false,
        }
        true
    }
}

/// Checks what a user may get wrong.
///
/// # Errors
/// [`GuestError`].
pub fn check(guests: &[GuestInput]) -> Result<(), GuestError> {
    for guest in guests {
        let count = guest.attachments.len();
        if count > limits::ATTACHMENTS_MAX {
            return Err(GuestError::Attachments { count });
        }
        let count = guest.working_set.len();
        if count > limits::WORKING_SET_MAX {
            return Err(GuestError::WorkingSet { count });
        }
        for (name, bytes) in &guest.attachments {
            if bytes.len() > limits::ATTACHMENT_BYTES_MAX {
                return Err(GuestError::AttachmentLength { name: name.clone(), len: bytes.len() });
            }
        }
        for (host, _) in &guest.clones {
            let count = guest.clones.iter().filter(|(other, _)| other == host).count();
            if count > limits::CLONES_MAX {
                return Err(GuestError::Clones { count });
            }
        }
    }
    Ok(())
}

/// What one host is offered.
pub(crate) fn offers(guests: &[GuestInput], host: usize) -> Vec<GuestOffer> {
    let mut number = 0;
    let mut offers = Vec::new();
    for guest in guests {
        let mut clones = Vec::new();
        for (at, name) in &guest.clones {
            if *at == host {
                clones.push(CloneOffer { clone: number, name: name.clone() });
            }
            number += 1;
        }
        if clones.is_empty() {
            continue;
        }
        let attachments = guest.attachments.iter().map(|(name, bytes)| attachment_offer(name, bytes));
        offers.push(GuestOffer {
            vm: guest.vm,
            kind: guest.kind.clone(),
            fingerprint: guest.fingerprint.clone(),
            attachments: attachments.collect(),
            clones,
            working_set: u32::try_from(guest.working_set.len()).expect("checked before"),
            paging: guest.paging,
            leaves: guest.leaves.clone(),
        });
    }
    offers
}

/// What a host is told of an attachment before it comes.
///
/// # Panics
/// If it is longer than [`limits::ATTACHMENT_BYTES_MAX`], which [`check`] refuses.
pub(crate) fn attachment_offer(name: &str, bytes: &[u8]) -> AttachmentOffer {
    AttachmentOffer {
        name: name.to_owned(),
        len: u32::try_from(bytes.len()).expect("checked before"),
        digest: *blake3::hash(bytes).as_bytes(),
    }
}

/// The attachments of each guest as messages, compressed once for all hosts.
pub(crate) struct Packed(Vec<(GuestInput, Vec<ToHost>)>);

impl Packed {
    pub(crate) fn new(guests: &[GuestInput]) -> Self {
        let pack = |guest: &GuestInput| {
            let messages = guest
                .attachments
                .iter()
                .enumerate()
                .flat_map(|(index, (_, bytes))| parts(guest.vm, index, bytes));
            let first = guest
                .working_set
                .chunks(limits::FIRST_TOUCHED_MAX)
                .map(|pages| ToHost::FirstTouched(FirstTouched { vm: guest.vm, pages: pages.to_vec() }));
            let messages = messages.chain(first).collect();
            (GuestInput { attachments: Vec::new(), working_set: Vec::new(), ..guest.clone() }, messages)
        };
        Self(guests.iter().map(pack).collect())
    }

    /// What a host is sent right after its acceptance.
    pub(crate) fn of_host(&self, host: usize) -> impl Iterator<Item = &ToHost> {
        let here =
            move |(guest, _): &&(GuestInput, Vec<ToHost>)| guest.clones.iter().any(|(at, _)| *at == host);
        self.0.iter().filter(here).flat_map(|(_, messages)| messages)
    }
}

pub(crate) fn parts(vm: u16, index: usize, bytes: &[u8]) -> Vec<ToHost> {
    let packed = zstd::bulk::compress(bytes, ATTACHMENT_LEVEL).expect("memory for 16 MiB");
    let index = u8::try_from(index).expect("at most 8 attachments");
    let chunks: Vec<&[u8]> = packed.chunks(limits::ATTACHMENT_PART_BYTES_MAX).collect();
    let part = |(at, bytes): (usize, &&[u8])| {
        ToHost::Attachment(Attachment { vm, index, last: at + 1 == chunks.len(), bytes: bytes.to_vec() })
    };
    chunks.iter().enumerate().map(part).collect()
}
