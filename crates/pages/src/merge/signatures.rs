//! Each content's VM set, each different set held once.

use super::assemble::Contents;
use super::layout::{Layout, NONE, Starts};
use super::{ContentId, Peak, heap_bytes};
use crate::ids::IdSet;
use std::hash::{BuildHasher, RandomState};

pub(crate) struct Signatures {
    /// For each content its signature.
    pub(crate) of_content: Vec<u32>,
    /// The sets, in the order in which contents first have them.
    pub(crate) sets: Vec<IdSet>,
}

impl Signatures {
    pub(crate) fn bytes(&self) -> usize {
        let heap: usize = self.sets.iter().map(IdSet::heap_bytes).sum();
        heap_bytes(&self.of_content) + heap_bytes(&self.sets) + heap
    }
}

/// While sets are collected, a set is named by the first content that has it and read off that content's
/// placements; only at the end, when their number is known, are they written out. So memory stays bounded
/// even if nearly every content has a VM set of its own.
pub(crate) fn intern(layout: &Layout<'_>, contents: &Contents, held: usize, peak: &mut Peak) -> Signatures {
    let held = held + layout.starts.bytes() + contents.bytes();
    let starts = &layout.starts;
    let mut of_content = Vec::with_capacity(contents.count() as usize);
    // Contents of one VM are the most; their signatures are found without hashing.
    let mut of_vm = vec![NONE; starts.vms()];
    let mut first_with = Vec::new();
    let mut table = Table::new();
    let mut set: Vec<u16> = Vec::new();
    let mut last_vm = None;
    for id in (0..contents.count()).map(ContentId) {
        let pages = contents.placements(id);
        let (Some(low), Some(high)) = (pages.first(), pages.last()) else {
            unreachable!("a content has a placement");
        };
        let vm = match last_vm {
            Some(vm) if starts.is_in(*low, vm) => vm,
            _ => starts.split(*low).0,
        };
        last_vm = Some(vm);
        let fresh = u32::try_from(first_with.len()).expect("no more signatures than contents");
        let signature = if starts.is_in(*high, vm) {
            let slot = &mut of_vm[usize::from(vm.0)];
            if *slot == NONE {
                *slot = fresh;
            }
            *slot
        } else {
            set.clear();
            set.extend(starts.vms_of(pages));
            table.find_or_insert(&set, fresh, &|signature, visit| {
                visit_set(starts, contents.placements(first_with[signature as usize]), visit)
            })
        };
        if signature == fresh {
            first_with.push(id);
        }
        of_content.push(signature);
    }
    let scratch = heap_bytes(&of_vm) + heap_bytes(&first_with) + table.bytes_peak();
    peak.note(held + heap_bytes(&of_content) + scratch);
    drop(table);
    let mut sets = Vec::with_capacity(first_with.len());
    for id in &first_with {
        set.clear();
        set.extend(starts.vms_of(contents.placements(*id)));
        sets.push(IdSet::from_ascending(&set));
    }
    let signatures = Signatures { of_content, sets };
    peak.note(held + signatures.bytes() + heap_bytes(&of_vm) + heap_bytes(&first_with));
    signatures
}

fn visit_set(starts: &Starts, pages: &[u32], visit: &mut dyn FnMut(&mut dyn Iterator<Item = u16>)) {
    visit(&mut starts.vms_of(pages));
}

/// Gives the ids of a signature that is in the table already, ascending.
type Lookup<'a> = &'a dyn Fn(u32, &mut dyn FnMut(&mut dyn Iterator<Item = u16>));

/// Open addressing over signature numbers, four bytes a slot. Hashed under a random key, since guests decide
/// which VMs share pages.
struct Table {
    slots: Vec<u32>,
    used: usize,
    hasher: RandomState,
}

impl Table {
    fn new() -> Self {
        Self { slots: vec![NONE; 64], used: 0, hasher: RandomState::new() }
    }

    /// Bytes held while the slots were last doubled.
    fn bytes_peak(&self) -> usize {
        heap_bytes(&self.slots) * 3 / 2
    }

    fn home(&self, set: impl Iterator<Item = u16>) -> usize {
        use std::hash::Hasher;
        let mut hasher = self.hasher.build_hasher();
        set.for_each(|id| hasher.write_u16(id));
        // The slots are a power of two; only the lower bits count.
        usize::try_from(hasher.finish() & (self.slots.len() as u64 - 1)).expect("a slot's number")
    }

    /// The signature of `set`, or `fresh` if there is none yet, which then is its.
    fn find_or_insert(&mut self, set: &[u16], fresh: u32, ids_of: Lookup<'_>) -> u32 {
        if self.used * 2 >= self.slots.len() {
            self.grow(ids_of);
        }
        let mut at = self.home(set.iter().copied());
        loop {
            let signature = self.slots[at];
            if signature == NONE {
                self.slots[at] = fresh;
                self.used += 1;
                return fresh;
            }
            let mut equal = false;
            ids_of(signature, &mut |ids| equal = ids.eq(set.iter().copied()));
            if equal {
                return signature;
            }
            at = (at + 1) & (self.slots.len() - 1);
        }
    }

    fn grow(&mut self, ids_of: Lookup<'_>) {
        let doubled = vec![NONE; self.slots.len() * 2];
        let old = std::mem::replace(&mut self.slots, doubled);
        for signature in old.into_iter().filter(|signature| *signature != NONE) {
            let mut at = 0;
            ids_of(signature, &mut |ids| at = self.home(ids));
            while self.slots[at] != NONE {
                at = (at + 1) & (self.slots.len() - 1);
            }
            self.slots[at] = signature;
        }
    }
}
