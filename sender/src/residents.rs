//! Contents that hosts hold already, and need not be sent.
//!
//! Asked before the transfer, over the authenticated control channel ([`wire::control::measure`] has the messages): each
//! host tells short fingerprints of what its images hold, and of those that its new VMs need, the names. A content that a
//! host names is left out of that host's part of the transfer ([`crate::prepare::Prepared::leave_out`]): a block tells the
//! host its name and where it belongs, some 20 bytes for 4 KiB.
//!
//! Names are keyed BLAKE3 ([`pages::names`]) under a key drawn for each session. A host hears names only of contents that it
//! told itself.

use crate::driver::HostTarget;
use crate::measure::{Line, at_once, unexpected};
use crate::prepare::VmInput;
use net::pki::Identity;
use pages::measure::{fingerprint_bits, short};
use pages::names::{domain_key, name_of};
use pages::{ContentId, IdSet, MergeIndex};
use std::collections::{BTreeMap, HashMap, HashSet};
use wire::control::measure::{Ask, Residents as Start, Tell};

/// Contents of one host at most: this end holds eight bytes for each while it asks. 1 TiB.
const CONTENTS_MAX: u64 = 1 << 28;

/// What to ask.
#[derive(Clone)]
pub struct ResidentsConfig {
    /// The plan's name.
    pub transfer: String,
    /// Drawn for this session of the transfer ([`crate::measure::fresh_key`]).
    pub key: [u8; 32],
    /// Images that may be used at hosts, each with its domain; empty: all, in domain 0.
    pub images: Vec<(String, u32)>,
    /// Threads that hash.
    pub threads: usize,
}

/// Which contents which hosts hold.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Residents {
    /// By content: its name, if it was needed to ask.
    names: Vec<u128>,
    /// By content: the hosts that hold it, as an index of `sets`.
    holders: Vec<u32>,
    /// The sets of hosts that occur; the first is the empty one.
    sets: Vec<IdSet>,
    /// Hosts that told, and how many contents that they need they hold.
    pub told: Vec<(u16, u64)>,
    /// Hosts that did not, and why: they are sent everything.
    pub failed: Vec<(u16, String)>,
}

impl Residents {
    /// The hosts that hold a content.
    #[must_use]
    pub fn holders(&self, content: ContentId) -> &IdSet {
        &self.sets[self.holders[content.0 as usize] as usize]
    }

    /// A content's name.
    #[must_use]
    pub fn name(&self, content: ContentId) -> u128 {
        self.names[content.0 as usize]
    }

    /// From what each host named.
    ///
    /// # Panics
    /// With more than 2^32 sets of hosts.
    #[must_use]
    pub fn new(
        names: Vec<u128>,
        held: &[(u16, HashSet<u128>)],
        needed: impl Fn(u16, ContentId) -> bool,
    ) -> Self {
        let (mut sets, mut numbers) = (vec![IdSet::new()], HashMap::from([(IdSet::new(), 0)]));
        let mut told: BTreeMap<u16, u64> = held.iter().map(|(host, _)| (*host, 0)).collect();
        let mut holders = Vec::with_capacity(names.len());
        for (content, name) in (0..).map(ContentId).zip(&names) {
            let mut set = IdSet::new();
            for (host, held) in held {
                if held.contains(name) && needed(*host, content) {
                    set.insert(*host);
                    *told.entry(*host).or_default() += 1;
                }
            }
            let number = *numbers.entry(set).or_insert_with_key(|set| {
                sets.push(set.clone());
                u32::try_from(sets.len() - 1).expect("fewer sets than contents")
            });
            holders.push(number);
        }
        Self { names, holders, sets, told: told.into_iter().collect(), failed: Vec::new() }
    }
}

/// A host that is being asked.
struct Asked {
    name: String,
    host: u16,
    line: Line,
    contents: u64,
}

/// Asks these hosts, by index in the transfer, which contents of their VMs they hold. A host that does not tell is in
/// [`Residents::failed`].
pub async fn ask(
    vms: &[VmInput],
    index: &MergeIndex,
    hosts: &[(u16, HostTarget)],
    identity: &Identity,
    config: &ResidentsConfig,
) -> Residents {
    let mut failed = Vec::new();
    let asked =
        at_once(hosts.iter().map(|(host, target)| start(*host, target, identity, config)), &mut failed);
    let asked = asked.await;
    let hosts_of_signature: Vec<IdSet> = (index.signatures().iter())
        .map(|signature| {
            let mut hosts = IdSet::new();
            signature.iter().for_each(|vm| hosts.union_with(&vms[usize::from(vm)].hosts));
            hosts
        })
        .collect();
    let needed = |host: u16, content: ContentId| {
        hosts_of_signature[index.signature_of(content).0 as usize].contains(host)
    };
    let wanted: Vec<u16> = asked.iter().map(|asked| asked.host).collect();
    let names = names(vms, index, config, |content| wanted.iter().any(|host| needed(*host, content)));
    let steps = asked.into_iter().map(|asked| {
        let host = asked.host;
        let own = index.contents().filter(|content| needed(host, *content));
        named(asked, own.map(|content| names[content.0 as usize]).collect())
    });
    let held = at_once(steps, &mut failed).await;
    let mut residents = Residents::new(names, &held, needed);
    let number = |name: &str| hosts.iter().find(|(_, target)| target.name == name).map(|(host, _)| *host);
    residents.failed = failed.into_iter().filter_map(|(name, why)| Some((number(&name)?, why))).collect();
    residents
}

async fn start(
    host: u16,
    target: &HostTarget,
    identity: &Identity,
    config: &ResidentsConfig,
) -> Result<Asked, (String, String)> {
    let begin = async {
        let mut line = Line::open(target.address, identity, &target.name).await?;
        let (transfer, images) = (config.transfer.clone(), config.images.clone());
        line.ask(Ask::Residents(Start { version: wire::VERSION, transfer, key: config.key, images })).await?;
        match line.told().await? {
            Tell::Scanned { contents, .. } if contents <= CONTENTS_MAX => {
                Ok(Asked { name: target.name.clone(), host, line, contents })
            }
            Tell::Scanned { contents, .. } => {
                Err(format!("has {contents} contents, and at most {CONTENTS_MAX} can be asked about"))
            }
            _ => Err(unexpected()),
        }
    };
    begin.await.map_err(|why| (target.name.clone(), why))
}

/// Which of the contents that a host needs it names.
async fn named(mut asked: Asked, needed: Vec<u128>) -> Result<(u16, HashSet<u128>), (String, String)> {
    let get = async {
        let bits = fingerprint_bits(asked.contents + needed.len() as u64);
        let told = asked.line.fingerprints(bits, asked.contents).await?;
        let mut wanted: Vec<u64> = needed.iter().map(|name| short(*name, bits)).collect();
        wanted.sort_unstable();
        let wanted: Vec<bool> = told.iter().map(|told| wanted.binary_search(told).is_ok()).collect();
        let most = wanted.iter().filter(|wanted| **wanted).count();
        asked.line.candidates(&wanted).await?;
        let needed: HashSet<u128> = needed.into_iter().collect();
        let (mut held, mut count) = (HashSet::new(), 0);
        loop {
            match asked.line.told().await? {
                Tell::Names(names) => {
                    count += names.len();
                    if count > most {
                        return Err(format!("names more than the {most} contents asked for"));
                    }
                    // Fingerprints are short: some of those named are other contents.
                    held.extend(
                        names.into_iter().map(u128::from_le_bytes).filter(|name| needed.contains(name)),
                    );
                }
                Tell::Complete => return Ok(held),
                _ => return Err(unexpected()),
            }
        }
    };
    match get.await {
        Ok(held) => Ok((asked.host, held)),
        Err(why) => Err((asked.name, why)),
    }
}

/// Names contents; 0 for those that nobody wants.
fn names(
    vms: &[VmInput],
    index: &MergeIndex,
    config: &ResidentsConfig,
    wanted: impl Fn(ContentId) -> bool + Sync,
) -> Vec<u128> {
    let keys: HashMap<u32, [u8; 32]> =
        vms.iter().map(|vm| (vm.domain, domain_key(&config.key, vm.domain))).collect();
    let mut names = vec![0; index.content_count() as usize];
    let part = names.len().div_ceil(config.threads.max(1)).max(1);
    let name = |content: ContentId| {
        let (vm, pfn) = index.representative(content);
        let vm = &vms[usize::from(vm.0)];
        name_of(&keys[&vm.domain], vm.source.page(pfn))
    };
    std::thread::scope(|scope| {
        for (first, part) in (0..).step_by(part).zip(names.chunks_mut(part)) {
            let (name, wanted) = (&name, &wanted);
            scope.spawn(move || {
                for (content, slot) in (first..).map(ContentId).zip(part) {
                    if wanted(content) {
                        *slot = name(content);
                    }
                }
            });
        }
    });
    names
}
