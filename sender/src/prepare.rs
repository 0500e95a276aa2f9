//! From images to segments: pages merged, contents sorted by the hosts that need them, cut into stripes.

use crate::residents::Residents;
use pages::block::UniformPlacement;
use pages::merge::{ClassCounts, ContentId, MergeIndex, MergeInput, PageIdentity, merge};
use pages::{IdSet, PageSource, Pfn, VmId};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;

/// Contents in one stripe: what one encoding job takes, 8 MiB of pages.
pub const STRIPE_CONTENTS: usize = 2048;
/// The same where guests run meanwhile: what is sent next follows what they touch.
pub const STRIPE_CONTENTS_WITH_GUESTS: usize = 512;
/// What a uniform run takes in a block, about.
const UNIFORM_RUN_BYTES: u64 = 4;
/// What a content takes that is only named, about: its name, where it belongs, its part of the header.
pub const NAMED_BYTES: u64 = 20;
/// Uniform runs in one stripe.
const STRIPE_UNIFORM: usize = 8192;

/// One VM to be sent.
#[derive(Clone)]
pub struct VmInput {
    /// Its name, unique in the transfer.
    pub name: String,
    /// Its pages.
    pub source: Arc<dyn PageSource>,
    /// Bytes of the image file.
    pub file_len: u64,
    /// Indexes of the hosts that get it.
    pub hosts: IdSet,
    /// Pages merge only among VMs of one domain: the tenant under strict isolation, else 0.
    pub domain: u32,
}

/// The contents of one host set.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Indexes of the hosts that need them.
    pub hosts: IdSet,
    /// Ascending by representative, so that neighbours in memory stay neighbours for the compressor.
    pub contents: Vec<ContentId>,
    /// Uniform runs of VMs that go to exactly these hosts.
    pub uniform: Vec<UniformPlacement>,
    /// Contents that the host, then the only one, holds already: it is told their names. Ascending.
    pub named: Vec<ContentId>,
}

/// The unit of encoding: a part of one segment. Its blocks depend on nothing else, so that any stripe can be encoded
/// on any thread, and encoded again later, with the same bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stripe {
    /// Index of the segment.
    pub segment: usize,
    /// Range of its `contents`.
    pub contents: Range<usize>,
    /// Range of its `uniform`.
    pub uniform: Range<usize>,
    /// Range of its `named`: not empty if the two others are.
    pub named: Range<usize>,
}

/// Everything known of the VMs before the first byte is sent.
pub struct Prepared {
    /// The VMs, in the order of their ids.
    pub vms: Vec<VmInput>,
    /// Which pages are equal.
    pub index: MergeIndex,
    /// Segments, in the order of host sets; a schedule puts them into another order.
    pub segments: Vec<Segment>,
    /// Pages by class.
    pub classes: ClassCounts,
    /// What hosts hold already.
    pub residents: Option<Residents>,
}

impl Prepared {
    /// Reads every page once, merges, and sorts contents by host set.
    ///
    /// # Panics
    /// With more than 65,535 VMs, which the plan's check refuses.
    #[must_use]
    pub fn new(vms: Vec<VmInput>, threads: usize) -> Self {
        let sources: Vec<&dyn PageSource> = vms.iter().map(|vm| &*vm.source).collect();
        let domains: Vec<u32> = vms.iter().map(|vm| vm.domain).collect();
        let index = merge(&MergeInput { sources: &sources, domains: &domains, threads });
        let hosts_of_vm: Vec<IdSet> = vms.iter().map(|vm| vm.hosts.clone()).collect();
        let classes = index.class_counts(&hosts_of_vm);
        let segments = segments(&vms, &index, None);
        Self { vms, index, segments, classes, residents: None }
    }

    /// Pages by class, of each VM.
    #[must_use]
    pub fn classes_by_vm(&self) -> Vec<ClassCounts> {
        let hosts_of_vm: Vec<IdSet> = self.vms.iter().map(|vm| vm.hosts.clone()).collect();
        self.index.class_counts_by_vm(&hosts_of_vm)
    }

    /// Leaves out what hosts hold already. Segments are numbered anew.
    pub fn leave_out(&mut self, residents: Residents) {
        self.segments = segments(&self.vms, &self.index, Some(&residents));
        self.residents = Some(residents);
    }

    /// Bytes that a segment takes, if contents are encoded to `ratio` of theirs.
    #[must_use]
    pub fn expected_bytes(&self, segment: usize, ratio: f64) -> u64 {
        let Segment { uniform, named, .. } = &self.segments[segment];
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a positive number of bytes"
        )]
        let contents = (self.segment_bytes(segment) as f64 * ratio) as u64;
        contents + uniform.len() as u64 * UNIFORM_RUN_BYTES + named.len() as u64 * NAMED_BYTES
    }

    /// Splits segments: contents of the recorded working sets (pages of a VM, in first-touch order) become segments of their
    /// own, in that order and with the uniform runs, which cost next to nothing. Returns pairs of a segment and the new one
    /// that is to be sent before it. Pages that a VM has not are left out.
    pub fn put_first(&mut self, sets: &[(VmId, &[u32])]) -> Vec<(usize, usize)> {
        let mut ranks: HashMap<ContentId, usize> = HashMap::new();
        for (vm, pages) in sets {
            for (rank, page) in pages.iter().enumerate() {
                if let Some(PageIdentity::Content(id)) = self.index.identity(*vm, Pfn(*page)) {
                    // What two VMs want goes where the first of them wants it.
                    ranks.entry(id).and_modify(|other| *other = rank.min(*other)).or_insert(rank);
                }
            }
        }
        let mut parts = Vec::new();
        for segment in 0..self.segments.len() {
            let Segment { hosts, contents, uniform, named } = &mut self.segments[segment];
            let (mut first, rest): (Vec<ContentId>, Vec<ContentId>) =
                contents.iter().partition(|id| ranks.contains_key(*id));
            if first.is_empty() {
                continue;
            }
            first.sort_by_key(|id| (ranks[id], *id));
            *contents = rest;
            // What is only named costs next to nothing either.
            let (hosts, uniform, named) = (hosts.clone(), std::mem::take(uniform), std::mem::take(named));
            let first = Segment { hosts, contents: first, uniform, named };
            parts.push((segment, self.segments.len()));
            self.segments.push(first);
        }
        parts
    }

    /// Contents (4 KiB each) of a segment, as bytes.
    #[must_use]
    pub fn segment_bytes(&self, segment: usize) -> u64 {
        self.segments[segment].contents.len() as u64 * pages::PAGE_SIZE as u64
    }

    /// Pages of a VM that are not uniform: what its image needs on disk.
    #[must_use]
    pub fn content_pages(&self, vm: VmId) -> u32 {
        let uniform: u32 = self.index.uniform_runs(vm).iter().map(|run| run.count).sum();
        self.index.page_count(vm) - uniform
    }

    /// The stripes of one segment.
    #[must_use]
    pub fn stripes(&self, segment: usize) -> Vec<Stripe> {
        self.stripes_of(segment, STRIPE_CONTENTS)
    }

    /// The stripes of one segment, of so many contents.
    #[must_use]
    pub fn stripes_of(&self, segment: usize, stripe_contents: usize) -> Vec<Stripe> {
        let Segment { contents, uniform, named, .. } = &self.segments[segment];
        let count = contents.len().div_ceil(stripe_contents).max(uniform.len().div_ceil(STRIPE_UNIFORM));
        let part =
            |index: usize, size: usize, len: usize| (index * size).min(len)..((index + 1) * size).min(len);
        let plain = (0..count).map(|index| Stripe {
            segment,
            contents: part(index, stripe_contents, contents.len()),
            uniform: part(index, STRIPE_UNIFORM, uniform.len()),
            named: 0..0,
        });
        let named = (0..named.len().div_ceil(stripe_contents)).map(|index| Stripe {
            segment,
            contents: 0..0,
            uniform: 0..0,
            named: part(index, stripe_contents, named.len()),
        });
        plain.chain(named).collect()
    }
}

fn segments(vms: &[VmInput], index: &MergeIndex, residents: Option<&Residents>) -> Vec<Segment> {
    let host_sets: Vec<IdSet> = (index.signatures().iter())
        .map(|signature| {
            let mut hosts = IdSet::new();
            signature.iter().for_each(|vm| hosts.union_with(&vms[usize::from(vm)].hosts));
            hosts
        })
        .collect();
    let mut by_hosts: BTreeMap<IdSet, Segment> = BTreeMap::new();
    let entry = |map: &mut BTreeMap<IdSet, Segment>, hosts: &IdSet, f: &mut dyn FnMut(&mut Segment)| {
        let segment = map.entry(hosts.clone()).or_insert_with(|| Segment {
            hosts: hosts.clone(),
            contents: Vec::new(),
            uniform: Vec::new(),
            named: Vec::new(),
        });
        f(segment);
    };
    for (vm, input) in (0..).zip(vms) {
        for run in index.uniform_runs(VmId(vm)) {
            let placement = UniformPlacement { vm: VmId(vm), run: *run };
            entry(&mut by_hosts, &input.hosts, &mut |segment| segment.uniform.push(placement));
        }
    }
    // Few host sets, many contents: the set of each signature, and of who holds its contents, is found once.
    let mut ids: HashMap<(u32, &IdSet), Vec<ContentId>> = HashMap::new();
    let nobody = IdSet::new();
    for content in index.contents() {
        let holders = residents.map_or(&nobody, |residents| residents.holders(content));
        ids.entry((index.signature_of(content).0, holders)).or_default().push(content);
    }
    for ((signature, holders), contents) in ids {
        let hosts = &host_sets[signature as usize];
        let (held, lacking): (Vec<u16>, Vec<u16>) = hosts.iter().partition(|host| holders.contains(*host));
        if !lacking.is_empty() {
            let lacking = IdSet::from_ascending(&lacking);
            entry(&mut by_hosts, &lacking, &mut |segment| segment.contents.extend(&contents));
        }
        for host in held {
            let host = IdSet::from_ascending(&[host]);
            entry(&mut by_hosts, &host, &mut |segment| segment.named.extend(&contents));
        }
    }
    let mut segments: Vec<Segment> = by_hosts.into_values().collect();
    for segment in &mut segments {
        segment.contents.sort_unstable();
        segment.named.sort_unstable();
    }
    segments
}

#[cfg(test)]
mod tests {
    use super::*;
    use pages::{PAGE_SIZE, Page};

    struct Counting(u32);

    impl PageSource for Counting {
        fn page_count(&self) -> u32 {
            self.0
        }

        /// Page 3 is zero; others begin with their number.
        fn page(&self, pfn: Pfn) -> &Page {
            let mut page = [0; PAGE_SIZE];
            if pfn.0 != 3 {
                page[..4].copy_from_slice(&(pfn.0 + 1).to_le_bytes());
            }
            Box::leak(Box::new(page))
        }
    }

    #[test]
    fn a_working_set_becomes_segments_of_its_own_in_its_order() {
        let vm = |name: &str, hosts: &[u16]| VmInput {
            name: name.into(),
            source: Arc::new(Counting(10)),
            file_len: 10 * PAGE_SIZE as u64,
            hosts: hosts.iter().copied().collect(),
            domain: u32::from(hosts[0]),
        };
        let mut prepared = Prepared::new(vec![vm("a", &[0, 1]), vm("b", &[2])], 1);
        let before = prepared.segments.clone();
        let parts = prepared.put_first(&[(VmId(0), &[7, 3, 99, 2, 7])]);
        let [(segment, first)] = parts[..] else { panic!("{parts:?}") };
        let pages = |segment: &Segment| -> Vec<u32> {
            segment.contents.iter().map(|id| prepared.index.representative(*id).1.0).collect()
        };
        assert_eq!(pages(&prepared.segments[first]), [7, 2]);
        assert_eq!(pages(&prepared.segments[segment]), [0, 1, 4, 5, 6, 8, 9]);
        assert_eq!(prepared.segments[first].hosts, before[segment].hosts);
        assert_eq!(prepared.segments[first].uniform, before[segment].uniform);
        assert!(prepared.segments[segment].uniform.is_empty());
        assert_eq!(prepared.segments[1 - segment].contents, before[1 - segment].contents, "the other VM's");
    }
}
