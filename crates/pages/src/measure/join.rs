//! From what hosts told to the weight of each exact VM set over all of them.

use super::{PLAIN_BYTES, Sampling, VmPages};
use std::collections::BTreeMap;

/// Contents of one VM set that no other host can have.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct Own {
    /// Contents, each once.
    pub contents: u64,
    /// Pages that hold them.
    pub pages: u64,
    /// Of `contents`, those that stand at several pages of one VM.
    pub repeated_contents: u64,
    /// Of `pages`, those of `repeated_contents`.
    pub repeated_pages: u64,
}

impl Own {
    /// A content of `vms` VMs that stands at so many pages.
    pub(super) fn add(&mut self, pages: u32, vms: usize) {
        self.contents += 1;
        self.pages += u64::from(pages);
        if pages as usize > vms {
            self.repeated_contents += 1;
            self.repeated_pages += u64::from(pages);
        }
    }
}

/// What one host tells of its VMs.
#[derive(Clone, PartialEq, Debug)]
pub struct HostSummary {
    /// Which contents were kept; the same at all hosts.
    pub sampling: Sampling,
    /// Each VM's pages.
    pub vms: Vec<VmPages>,
    /// The VM sets that occur, as indexes of `vms`.
    pub sets: Vec<Vec<u16>>,
    /// Encoded bytes of a content of each set.
    pub set_bytes: Vec<u16>,
    /// Contents of each set that are no candidates.
    pub own: Vec<Own>,
    /// Contents that other hosts may have, too.
    pub candidates: Vec<Candidate>,
}

/// A content that other hosts may have, too.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// 128 bits of the keyed BLAKE3.
    pub hash: u128,
    /// Index of its VM set at its host.
    pub set: u32,
    /// Pages of its host's VMs that hold it, at least 1.
    pub pages: u32,
    /// Bytes that it takes encoded, about.
    pub bytes: u16,
}

/// An exact VM set over all hosts and what its VMs have in common. With sampling these are estimates.
#[derive(Clone, PartialEq, Debug)]
pub struct JoinedWeight {
    /// VMs as numbered over all hosts: the first host's first, then the second's. Ascending.
    pub vms: Vec<u32>,
    /// Contents that exactly these VMs hold.
    pub contents: u64,
    /// Pages that hold them, over all VMs.
    pub pages: u64,
    /// Bytes to send them, encoded.
    pub bytes: u64,
    /// Of `contents`, those that stand at several pages of one VM.
    pub repeated: u64,
    /// Standard error of `contents`; 0 if all were counted. About two thirds of the estimates are within it.
    pub standard_error: u64,
}

/// Pages and contents by class, over all hosts. Uniform pages are counted; the others estimated if sampled.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct JoinedClasses {
    /// Pages of zeroes.
    pub zero_pages: u64,
    /// Pages of one repeated word, not 0.
    pub uniform_nonzero_pages: u64,
    /// Pages, and as many contents, that stand nowhere else.
    pub unique: u64,
    /// Contents of one VM that stand at several of its pages, and those pages.
    pub repeated_in_one_vm: (u64, u64),
    /// Contents of several VMs, all measured on one host, and their pages.
    pub shared_by_vms_of_one_host: (u64, u64),
    /// Contents of VMs on several hosts, and their pages.
    pub shared_across_hosts: (u64, u64),
}

/// All hosts' VMs.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Joined {
    /// The exact VM sets, ascending.
    pub weights: Vec<JoinedWeight>,
    /// By class.
    pub classes: JoinedClasses,
    /// All different contents.
    pub contents: u64,
    /// Standard error of `contents`; 0 if all were counted.
    pub contents_standard_error: u64,
    /// Candidates that turned out to be of one host only.
    pub false_candidates: u64,
}

#[derive(Copy, Clone, Default)]
struct Sum {
    contents: u64,
    pages: u64,
    bytes: u64,
    repeated: u64,
}

/// Joins what hosts told. What a host says of its own VMs is taken as it says; sets and VM numbers out of range are
/// left out.
#[must_use]
pub fn join(hosts: &[HostSummary]) -> Joined {
    let sampling = hosts.first().map_or(Sampling::ALL, |host| host.sampling);
    let mut joined = Joined::default();
    let mut sums: BTreeMap<Vec<u32>, Sum> = BTreeMap::new();
    let mut first_vm = 0u32;
    let mut starts = Vec::with_capacity(hosts.len());
    let mut classes = JoinedClasses::default();
    for host in hosts {
        starts.push(first_vm);
        first_vm += u32::try_from(host.vms.len()).unwrap_or(0);
        for vm in &host.vms {
            classes.zero_pages += vm.zero;
            classes.uniform_nonzero_pages += vm.uniform_nonzero;
        }
        for (set, own) in host.sets.iter().zip(&host.own).take(host.set_bytes.len()).map(|(s, o)| (s, *o)) {
            add_own(&mut classes, set.len(), &own);
        }
        for (index, own) in host.own.iter().enumerate().filter(|(_, own)| own.contents > 0) {
            let Some((vms, bytes)) = set_of(host, index, starts[starts.len() - 1]) else { continue };
            let sum = sums.entry(vms).or_default();
            sum.contents = sum.contents.saturating_add(own.contents);
            sum.pages = sum.pages.saturating_add(own.pages);
            sum.repeated = sum.repeated.saturating_add(own.repeated_contents);
            sum.bytes = sum.bytes.saturating_add(own.contents.saturating_mul(bytes));
        }
    }
    candidates(hosts, &starts, &mut sums, &mut classes, &mut joined.false_candidates);
    let fraction = sampling.fraction();
    let seen: u64 = sums.values().map(|sum| sum.contents).sum();
    joined.contents = scaled(seen, fraction);
    joined.contents_standard_error = standard_error(seen, fraction);
    joined.weights = sums
        .into_iter()
        .map(|(vms, sum)| JoinedWeight {
            vms,
            contents: scaled(sum.contents, fraction),
            pages: scaled(sum.pages, fraction),
            bytes: scaled(sum.bytes, fraction),
            repeated: scaled(sum.repeated, fraction),
            standard_error: standard_error(sum.contents, fraction),
        })
        .collect();
    joined.classes = scaled_classes(&classes, fraction);
    joined
}

/// The VMs of a host's set, as numbered over all hosts, and the encoded bytes of a content.
fn set_of(host: &HostSummary, index: usize, start: u32) -> Option<(Vec<u32>, u64)> {
    let set = host.sets.get(index)?;
    let mut vms: Vec<u32> = Vec::with_capacity(set.len());
    for vm in set {
        if usize::from(*vm) >= host.vms.len() {
            return None;
        }
        vms.push(start + u32::from(*vm));
    }
    vms.sort_unstable();
    vms.dedup();
    let bytes = host.set_bytes.get(index).map_or(PLAIN_BYTES, |bytes| u64::from(*bytes));
    (!vms.is_empty()).then_some((vms, bytes))
}

/// Contents with one hash are one content, wherever they are.
fn candidates(
    hosts: &[HostSummary],
    starts: &[u32],
    sums: &mut BTreeMap<Vec<u32>, Sum>,
    classes: &mut JoinedClasses,
    false_candidates: &mut u64,
) {
    let mut told: Vec<(usize, &Candidate)> = Vec::new();
    for (at, host) in hosts.iter().enumerate() {
        told.extend(host.candidates.iter().map(|candidate| (at, candidate)));
    }
    told.sort_unstable_by_key(|(host, candidate)| (candidate.hash, *host));
    for equal in told.chunk_by(|a, b| a.1.hash == b.1.hash) {
        let (mut vms, mut bytes, mut pages, mut of_hosts) = (Vec::new(), None, 0u64, 0u64);
        let mut last_host = None;
        for (host, candidate) in equal {
            let Some((more, _)) = set_of(&hosts[*host], candidate.set as usize, starts[*host]) else {
                continue;
            };
            vms.extend(more);
            bytes.get_or_insert(u64::from(candidate.bytes));
            pages += u64::from(candidate.pages);
            of_hosts += u64::from(last_host != Some(*host));
            last_host = Some(*host);
        }
        vms.sort_unstable();
        vms.dedup();
        let Some(bytes) = bytes else { continue };
        let class = match (of_hosts, vms.len()) {
            (1, 1) if pages == 1 => {
                classes.unique += 1;
                None
            }
            (1, 1) => Some(&mut classes.repeated_in_one_vm),
            (1, _) => Some(&mut classes.shared_by_vms_of_one_host),
            _ => Some(&mut classes.shared_across_hosts),
        };
        if let Some(class) = class {
            class.0 += 1;
            class.1 += pages;
        }
        *false_candidates += u64::from(of_hosts == 1);
        let repeated = pages > vms.len() as u64;
        let sum = sums.entry(vms).or_default();
        sum.repeated += u64::from(repeated);
        sum.contents += 1;
        sum.pages += pages;
        sum.bytes += bytes;
    }
}

fn add_own(classes: &mut JoinedClasses, vms: usize, own: &Own) {
    if vms > 1 {
        classes.shared_by_vms_of_one_host.0 += own.contents;
        classes.shared_by_vms_of_one_host.1 += own.pages;
    } else {
        classes.unique += own.contents.saturating_sub(own.repeated_contents);
        classes.repeated_in_one_vm.0 += own.repeated_contents;
        classes.repeated_in_one_vm.1 += own.repeated_pages;
    }
}

fn scaled_classes(classes: &JoinedClasses, fraction: f64) -> JoinedClasses {
    let pair = |(contents, pages)| (scaled(contents, fraction), scaled(pages, fraction));
    JoinedClasses {
        zero_pages: classes.zero_pages,
        uniform_nonzero_pages: classes.uniform_nonzero_pages,
        unique: scaled(classes.unique, fraction),
        repeated_in_one_vm: pair(classes.repeated_in_one_vm),
        shared_by_vms_of_one_host: pair(classes.shared_by_vms_of_one_host),
        shared_across_hosts: pair(classes.shared_across_hosts),
    }
}

/// Each content is kept with probability `fraction`, independently: the number kept is binomial, and divided by the
/// fraction it estimates the whole without bias (Horvitz–Thompson).
fn scaled(seen: u64, fraction: f64) -> u64 {
    if fraction >= 1.0 { seen } else { whole(seen as f64 / fraction) }
}

/// √(n (1 − p)) / p for n seen of a sample of fraction p.
fn standard_error(seen: u64, fraction: f64) -> u64 {
    if fraction >= 1.0 { 0 } else { whole((seen as f64 * (1.0 - fraction)).sqrt() / fraction) }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive; the cast saturates")]
fn whole(figure: f64) -> u64 {
    figure.round() as u64
}
